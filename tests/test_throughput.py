"""Tokens a second and MFU against numbers by hand."""

import types

import pytest

from gpt1_jax.training import throughput
from gpt1_jax.training.throughput import Throughput, mfu, peak_flops


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when told."""
    clock = types.SimpleNamespace(now=100.0)
    fake = types.SimpleNamespace(monotonic=lambda: clock.now, perf_counter=lambda: clock.now)
    monkeypatch.setattr(throughput, 'time', fake)
    return clock


def test_throughput_leaves_out_compilation_and_pauses(clock):
    throughput = Throughput()
    assert throughput.read() is None
    clock.now += 60  # compiles
    with throughput.pause():
        clock.now += 1
    throughput.step(4096)
    assert throughput.read() is None
    for _ in range(3):
        clock.now += 2
        throughput.step(4096)
    with throughput.pause():
        clock.now += 30
    assert throughput.read() == 4096 / 2
    with throughput.pause():  # between two readings
        clock.now += 10
    clock.now += 1
    throughput.step(1000)
    assert throughput.read() == 1000
    assert throughput.read() is None


def test_mfu_of_gpt1_by_hand():
    training = 724_442_112  # operations a token (test_flops.py)
    # 8 TPU v5e: 1,576 TFLOP/s would be 2,175,466 tokens/s; half of that is 50 %.
    assert mfu(1_087_733, training, peak_flops('TPU v5 lite', 'bfloat16'), 8) == pytest.approx(0.5, abs=1e-6)
    assert mfu(None, training, 1e12, 8) is None and mfu(1e6, training, None, 8) is None


@pytest.mark.parametrize(
    'kind, tera',
    [
        ('TPU v2', 23),
        ('TPU v3', 61.5),
        ('TPU v4', 275),
        ('TPU v5 lite', 197),
        ('TPU v5e', 197),
        ('TPU v5', 459),
        ('TPU v5p', 459),
        ('TPU v6 lite', 918),
        ('TPU v6e', 918),
        ('NVIDIA A100-SXM4-40GB', 312),
        ('NVIDIA A100-SXM4-80GB', 312),
        ('NVIDIA A100 80GB PCIe', 312),
        ('NVIDIA H100 80GB HBM3', 989),
        ('NVIDIA H100 PCIe', 756),
        ('NVIDIA H100 NVL', 835),
        ('NVIDIA H200', 989),
        ('NVIDIA H200 NVL', 835),
        ('NVIDIA L4', 121),
    ],
)
def test_peak_of_known_hardware(kind, tera):
    assert peak_flops(kind, 'bfloat16') == pytest.approx(tera * 1e12)
    assert peak_flops(kind, 'float32') is None


@pytest.mark.parametrize(
    'kind',
    [
        'cpu',
        '',
        'TPU v4 lite',
        'TPU v9',
        'NVIDIA L40S',
        'NVIDIA GeForce RTX 4090',
        'NVIDIA H100 80GB HBM3 MIG 1g.10gb',
        'Tesla T4',
        'Tesla V100-SXM2-16GB',
    ],
)
def test_peak_of_unknown_hardware_is_none(kind):
    assert peak_flops(kind, 'bfloat16') is None
