"""Checksums of arrays, against their definition in Python integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from gpt1_jax.training import checksums


def numpy_checksum(array):
    """The definition again, with Python integers, from the bytes."""
    width = min(array.dtype.itemsize, 4)
    total = 0
    for index, word in enumerate(np.frombuffer(array.tobytes(), f'<u{width}').tolist()):
        x = word ^ (index * 0x9E3779B9 & 0xFFFFFFFF)
        x = (x ^ x >> 16) * 0x85EBCA6B & 0xFFFFFFFF
        x = (x ^ x >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
        total += x ^ x >> 16
    return total % 2**32


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16', 'int32', 'uint32', 'int8', 'bool'])
def test_checksum_is_the_definition_for_any_sharding(dtype):
    values = jnp.asarray(np.random.default_rng(0).standard_normal((8, 4, 6)) * 50).astype(dtype)
    mesh = jax.make_mesh((2, 4), ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2)
    for spec in ((), ('fsdp', 'data'), (None, 'fsdp', 'data')):
        assert checksums.compute([jax.device_put(values, NamedSharding(mesh, P(*spec)))]) == [
            numpy_checksum(np.asarray(values))
        ]
    assert checksums.compute({'scalar': jnp.asarray(3, dtype)}) == [numpy_checksum(np.asarray(jnp.asarray(3, dtype)))]


def test_checksum_notices_swaps_and_signs():
    rng = np.random.default_rng(1)
    values = rng.standard_normal(1000, dtype=np.float32)
    before = checksums.compute([jnp.asarray(values)])
    for _ in range(20):
        i, j = rng.choice(1000, 2, replace=False)
        swapped, flipped = values.copy(), values.copy()
        swapped[[i, j]] = values[[j, i]]
        flipped[[i, j]] *= -1  # top bits: a plain weighted sum of words does not notice two of them
        assert checksums.compute([jnp.asarray(swapped)]) != before
        assert checksums.compute([jnp.asarray(flipped)]) != before
