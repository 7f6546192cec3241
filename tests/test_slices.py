"""Names of TPU slices, and what they stand for."""

import pytest

from gpt1_jax.errors import UserError
from gpt1_jax.meter import slices
from gpt1_jax.training.throughput import peak_flops


@pytest.mark.parametrize(
    ('name', 'topology', 'count', 'chips'),
    [
        ('v5e-8', 'v5e:2x4', 1, 8),
        ('v5litepod-16', 'v5e:4x4', 1, 16),
        ('v4-8', 'v4:2x2x1', 1, 4),
        ('v4-32', 'v4:2x2x4', 1, 16),
        ('v5p-8', 'v5p:2x2x1', 1, 4),
        ('v6e-256', 'v6e:16x16', 1, 256),
        ('2xv5e-8', 'v5e:2x4', 2, 16),
    ],
)
def test_names(name, topology, count, chips):
    one = slices.named(name)
    assert (one.topology, one.slices, one.chips) == (topology, count, chips)


@pytest.mark.parametrize('name', ['v9-8', '8', 'v5e-7', 'v4-9', '0xv5e-8', '1xv5e-8', 'v5e-8x2', ''])
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match='is unknown .* Choose one of v4-8, v4-16'):
        slices.named(name)


@pytest.mark.parametrize('generation', slices.GENERATIONS)
def test_grids_hold_their_chips(generation):
    assert peak_flops(slices.GENERATIONS[generation].kind, 'bfloat16')
    for chips, grid in slices.GENERATIONS[generation].grids.items():
        product = 1
        for side in grid.split('x'):
            product *= int(side)
        assert product == chips


@pytest.mark.parametrize('name', ['v5e-8', 'v4-8', 'v5p-8', 'v6e-8', '2xv5e-8', 'v5e-1'])
def test_devices_are_those_of_the_name(name):
    pytest.importorskip('libtpu', reason='libtpu, which compiles for TPUs, is not installed')
    one = slices.named(name)
    devices = one.devices()
    assert len(devices) == one.chips and devices[0].device_kind == one.generation.kind
    assert len({getattr(device, 'slice_index', 0) for device in devices}) == one.slices
