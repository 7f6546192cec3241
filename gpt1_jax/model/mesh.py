"""The mesh in use, for kernels, which are called on each device with its part of the arrays."""

import math

import flax.linen as nn
import jax


def axes(role: str) -> tuple[str, ...]:
    """The mesh axes that divide a role among several devices."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return ()
    [found] = nn.logical_to_mesh_axes((role,)) or (None,)
    found = (found,) if isinstance(found, str) else found or ()
    return tuple(axis for axis in found if mesh.shape[axis] > 1)


def shards(role: str) -> int:
    """Among how many devices the mesh divides a role."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes[axis] for axis in axes(role))
