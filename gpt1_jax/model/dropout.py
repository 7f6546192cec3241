"""Dropout with a mask that is a hash of the position, not a stored random array.

Threefry takes twenty rounds per element, and its masks are kept for the backward pass; apart from matrix products, a
GPT-1 step spends most of its time there. This mask takes three multiplications per element, fuses into its consumer
and is recomputed, not stored. It depends on (key, global index) alone, so it is the same on any mesh.
"""

import jax
import jax.numpy as jnp
from jax import lax


def keep(index: jax.Array, seeds: jax.Array, rate: float) -> jax.Array:
    """Boolean like `index`, True with probability 1 - rate; elementwise, so that a kernel can call it on its block.

    The rounds are those of `triple32` (C. Wellons, "Prospecting for Hash Functions", 2018); the seeds and their order
    are ours. Two rounds (`lowbias32`), even of `index` times an odd constant, leave correlations of 0.01 at some lags.

    Args:
      index: uint32, of any shape: positions of the elements in the whole array.
      seeds: two uint32, `seeds[0]` and `seeds[1]`.
      rate: probability of False, 0 <= rate < 1.
    """
    x = index ^ seeds[0]
    x = (x ^ (x >> 17)) * jnp.uint32(0xED5AD4BB)
    x = x ^ seeds[1]
    x = (x ^ (x >> 11)) * jnp.uint32(0xAC4C1B51)
    x = x ^ seeds[0]
    x = (x ^ (x >> 15)) * jnp.uint32(0x31848BAB)
    # triple32 ends with x ^ (x >> 14), left out here: it keeps the 14 highest bits, which nearly always decide.
    return x >= jnp.uint32(threshold(rate))


def threshold(rate: float) -> int:
    """The number that hashes are below with probability `rate`: these are dropped."""
    return min(round(rate * 2**32), 2**32 - 1)


def seeds(key: jax.Array) -> jax.Array:
    """uint32 [2]: the words of `key`, for `keep`. Bits drawn from it would be no better: a key is drawn itself."""
    return jax.random.key_data(key).reshape(-1)[:2]


def keep_mask(key: jax.Array, shape: tuple[int, ...], rate: float) -> jax.Array:
    """Boolean [*shape], True with probability 1 - rate: `keep` of the row-major index and `seeds(key)`."""
    index = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(shape):
        # Wraps after 2**32 elements; that the pattern then repeats does no harm.
        index = index * jnp.uint32(size) + lax.broadcasted_iota(jnp.uint32, shape, axis)
    return keep(index, seeds(key), rate)


def dropout(
    x: jax.Array,
    key: jax.Array | None,
    rate: float,
    broadcast_axes: tuple[int, ...] = (),
    index: jax.Array | None = None,
) -> jax.Array:
    """`x` with elements zeroed with probability `rate` and the rest scaled by 1 / (1 - rate).

    key: None (evaluation) returns `x`. broadcast_axes: axes along which one mask is shared.
    index: uint32, shaped like `x`, if its elements come from another array: their row-major positions there.
    """
    if key is None or rate == 0.0:
        return x
    shape = tuple(1 if axis in broadcast_axes else size for axis, size in enumerate(x.shape))
    # Scaled in float32: 0.9 in bfloat16 is 0.8984.
    kept = (x.astype(jnp.float32) / (1.0 - rate)).astype(x.dtype)
    mask = keep_mask(key, shape, rate) if index is None else keep(index, seeds(key), rate)
    return jnp.where(mask, kept, jnp.zeros((), x.dtype))
