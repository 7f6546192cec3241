"""What a mesh of eight host devices divides."""

import jax
import pytest

from gpt1_jax.model import mesh
from gpt1_jax.training.partitioning import Partitioner

ROLES = ('batch', 'heads', 'vocab', 'embed')


@pytest.mark.parametrize(
    ('strategy', 'shape', 'axes', 'shards'),
    [
        ('dp', (8, 1, 1), (('data',), (), (), ()), (8, 1, 1, 1)),
        ('fsdp', (2, 4, 1), (('data', 'fsdp'), (), (), ('fsdp',)), (8, 1, 1, 4)),
        ('fsdp+tp', (1, 4, 2), (('fsdp',), ('tensor',), ('tensor',), ('fsdp',)), (4, 2, 2, 4)),
        ('dp', (1, 1, 1), ((), (), (), ()), (1, 1, 1, 1)),
    ],
)
def test_axes_of_several_devices_divide(strategy, shape, axes, shards):
    found = []
    jitted = Partitioner(strategy, shape, jax.devices()[: len(jax.devices()) if max(shape) > 1 else 1]).jit(
        lambda x: found.append([(mesh.axes(role), mesh.shards(role)) for role in ROLES]) or x
    )
    jitted(0.0)
    assert found == [list(zip(axes, shards, strict=True))]


def test_without_a_mesh_nothing_is_divided():
    assert [(mesh.axes(role), mesh.shards(role)) for role in ROLES] == [((), 1)] * len(ROLES)
