"""Metric files, progress lines, throughput and MFU against hand computations."""

import json
import os
import sys
import types

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from gpt1_jax.errors import UserError
from gpt1_jax.training import telemetry
from gpt1_jax.training.telemetry import MetricWriter, Progress, Throughput, flops_per_token, mfu, peak_flops


def reject(constant):
    raise ValueError(f'{constant} is not JSON')


def read_lines(workdir):
    text = (workdir / 'metrics.jsonl').read_text()
    return [json.loads(line, parse_constant=reject) for line in text.splitlines()]


def read_events(workdir):
    """The records of the event files in order of writing: length, its CRC, the protobuf, its CRC."""
    for path in sorted((workdir / 'tensorboard').iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at:at + 8], 'little')
            body = data[at + 12:at + 12 + size]
            crc = int.from_bytes(data[at + 12 + size:at + 16 + size], 'little')
            assert crc == masked_crc32c(body)
            at += 16 + size
            yield Event.FromString(body)


def scalars(workdir):
    return [(event.step, value.tag, value.simple_value)
            for event in read_events(workdir) for value in event.summary.value]


def test_lines_are_json_and_flushed(tmp_path):
    writer = MetricWriter(tmp_path / 'new' / 'run')
    writer.write(1, {'loss': 2.5, 'lr': np.float32(0.25)})
    writer.write(np.int64(2), {'loss': float('nan'), 'up': float('inf'), 'down': -np.inf})
    lines = read_lines(tmp_path / 'new' / 'run')  # before close
    writer.close()
    assert [list(line) for line in lines] == [['step', 'time', 'loss', 'lr'],
                                              ['step', 'time', 'loss', 'up', 'down']]
    assert lines[0]['step'] == 1 and lines[0]['loss'] == 2.5 and lines[0]['lr'] == 0.25
    assert lines[1]['step'] == 2 and 1.6e9 < lines[0]['time'] <= lines[1]['time']
    assert [lines[1][name] for name in ('loss', 'up', 'down')] == ['nan', 'inf', '-inf']


def test_tensorboard_reads_back(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(3, {'train/loss': 2.5, 'lr': 0.125})
    writer.write(7, {'train/loss': 1.5})
    writer.close()
    assert scalars(tmp_path) == [(3, 'train/loss', 2.5), (3, 'lr', 0.125), (7, 'train/loss', 1.5)]


def test_a_resumed_run_writes_what_an_uninterrupted_one_does(tmp_path):
    def run(workdir, start, stop):
        writer = MetricWriter(workdir)
        writer.truncate_after(start)
        for step in range(start + 1, stop + 1):
            writer.write(step, {'loss': 1 / step})
        writer.close()

    run(tmp_path / 'whole', 0, 9)
    run(tmp_path / 'cut', 0, 7)  # its last checkpoint was at step 4
    with (tmp_path / 'cut' / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 3, "lo')  # killed while writing
    run(tmp_path / 'cut', 4, 4)
    os.truncate(tmp_path / 'cut' / 'metrics.jsonl', os.path.getsize(tmp_path / 'cut' / 'metrics.jsonl') - 1)
    run(tmp_path / 'cut', 4, 9)

    def timeless(workdir):
        return [{name: line[name] for name in line if name != 'time'} for line in read_lines(workdir)]
    assert timeless(tmp_path / 'cut') == timeless(tmp_path / 'whole')
    assert [line['step'] for line in timeless(tmp_path / 'cut')] == list(range(1, 10))
    # TensorBoard drops what it read before a START event, of that step and later.
    kept = []
    for event in read_events(tmp_path / 'cut'):
        if event.HasField('session_log'):
            kept = [step for step in kept if step < event.step]
        kept += [event.step for _ in event.summary.value]
    assert kept == list(range(1, 10))


def test_a_workdir_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=f'cannot write metrics to {tmp_path}/file/run .*writable folder'):
        MetricWriter(tmp_path / 'file' / 'run')


def test_other_processes_write_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(telemetry.jax, 'process_index', lambda: 1)
    writer = MetricWriter(tmp_path / 'run', use_wandb=True)
    writer.truncate_after(1)
    writer.write(2, {'loss': 1.})
    writer.close()
    progress = Progress(10, 0, 'pretrain')
    progress.update(1, 1., None, None)
    progress.close()
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().err == ''


def test_weights_and_biases(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)  # as if not installed
    with pytest.raises(UserError, match='needs the package wandb: pip install wandb'):
        MetricWriter(tmp_path, use_wandb=True)
    calls = []
    run = types.SimpleNamespace(log=lambda metrics, step: calls.append((step, metrics)),
                                finish=lambda: calls.append('finish'))
    ids = iter(['first', 'second'])
    fake = types.SimpleNamespace(init=lambda **options: calls.append(options) or run,
                                 util=types.SimpleNamespace(generate_id=lambda: next(ids)))
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    for _ in range(2):
        writer = MetricWriter(tmp_path, use_wandb=True, config={'seed': 3})
        writer.write(5, {'loss': 2.})
        writer.close()
    assert calls[1:3] == [(5, {'loss': 2.}), 'finish']
    assert calls[0] == calls[3] and calls[0]['id'] == 'first' and calls[0]['config'] == {'seed': 3}


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when told."""
    clock = types.SimpleNamespace(now=100.)
    fake = types.SimpleNamespace(monotonic=lambda: clock.now, perf_counter=lambda: clock.now)
    monkeypatch.setattr(telemetry, 'time', fake)
    return clock


def test_progress_off_a_terminal_is_plain_lines(clock, capsys):
    progress = Progress(1000, 200, 'pretrain')
    for step, loss in zip(range(201, 210), range(9)):
        progress.update(step, loss, 123456.7 if step > 201 else None, 0.3456 if step > 201 else None)
        clock.now += 4
    clock.now += 4 * 790
    progress.update(1000, 2.34567, 1e6, None)
    progress.close()
    assert capsys.readouterr().err.splitlines() == [
        'pretrain: step 201/1000, loss 0.0000',
        'pretrain: step 204/1000, loss 3.0000, 123,457 tokens/s, MFU 34.6%, 0:53:04 left',
        'pretrain: step 207/1000, loss 6.0000, 123,457 tokens/s, MFU 34.6%, 0:52:52 left',
        'pretrain: step 1000/1000, loss 2.3457, 1,000,000 tokens/s, 0:00:00 left']


def test_progress_on_a_terminal_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    progress = Progress(1000, 200, 'finetune')
    for step in (400, 1000):
        progress.update(step, 1.25, 1234.5, 0.5)
    progress.close()
    shown = capsys.readouterr().err
    assert '200/1000' in shown and '1000/1000' in shown and 'finetune: 100%' in shown and '\r' in shown
    assert 'loss 1.2500, 1,234 tokens/s, MFU 50.0%' in shown


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


def test_flops_and_mfu_of_gpt1_by_hand():
    # One block: q, k, v 3*768*768, output 768*768, feed-forward 2*768*3072: 7,077,888. Twelve: 84,934,656.
    # Softmax 40478*768 = 31,087,104. Together 116,021,760: the paper's 117M less positions, biases, norms.
    parameters = 116_021_760
    # A position sees 512/2 others on average: 256 * 768 * 2 operations for q.k, as many for v; 12 layers.
    attention = 12 * 2 * 256 * 768 * 2
    assert attention == 9_437_184
    assert flops_per_token(parameters, 12, 768, 512, training=False) == 232_043_520 + attention == 241_480_704
    training = flops_per_token(parameters, 12, 768, 512)
    assert training == 724_442_112
    # 8 TPU v5e: 1,576 TFLOP/s would be 2,175,466 tokens/s; half of that is 50 %.
    assert mfu(1_087_733, training, peak_flops('TPU v5 lite', 'bfloat16'), 8) == pytest.approx(0.5, abs=1e-6)
    assert mfu(None, training, 1e12, 8) is None and mfu(1e6, training, None, 8) is None
    assert flops_per_token(parameters, 0, 0, 0) == 6 * parameters  # the LSTM has no attention


@pytest.mark.parametrize('kind, tera', [
    ('TPU v2', 23), ('TPU v3', 61.5), ('TPU v4', 275), ('TPU v5 lite', 197), ('TPU v5e', 197),
    ('TPU v5', 459), ('TPU v5p', 459), ('TPU v6 lite', 918), ('TPU v6e', 918), ('NVIDIA A100-SXM4-40GB', 312),
    ('NVIDIA A100-SXM4-80GB', 312), ('NVIDIA A100 80GB PCIe', 312), ('NVIDIA H100 80GB HBM3', 989),
    ('NVIDIA H100 PCIe', 756), ('NVIDIA H100 NVL', 835), ('NVIDIA H200', 989), ('NVIDIA L4', 121)])
def test_peak_of_known_hardware(kind, tera):
    assert peak_flops(kind, 'bfloat16') == pytest.approx(tera * 1e12)
    assert peak_flops(kind, 'float32') is None


@pytest.mark.parametrize('kind', [
    'cpu', '', 'TPU v4 lite', 'TPU v9', 'NVIDIA L40S', 'NVIDIA GeForce RTX 4090',
    'NVIDIA H100 80GB HBM3 MIG 1g.10gb', 'Tesla T4', 'Tesla V100-SXM2-16GB'])
def test_peak_of_unknown_hardware_is_none(kind):
    assert peak_flops(kind, 'bfloat16') is None
