"""The language model's loss with a kernel for NVIDIA GPUs between its matrix products; `losses.lm_loss` is its
reference.

The products are XLA's. From the logits the kernel makes their gradient and the loss; it reads them once from memory and
once more from the cache, where XLA goes through them four times.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gpt1_jax.model import mesh, triton_calls
from gpt1_jax.model.triton_calls import constexpr, jit, tl
from gpt1_jax.training import losses

_CHUNK_TOKENS = 8192  # of a device: the more, the better for the products; 2 GB of logits and gradients
_BLOCK, _WARPS = 8192, 16  # entries that a program reads at a time: the fastest on an H100


class Sizes(NamedTuple):
    """What is fixed when the kernel is compiled: entries of the table; those that a program reads at a time."""

    entries: int
    block: int


def lm_loss(hidden: jax.Array, embedding: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """See `losses.lm_loss`, which computes it if the vocabulary is divided among devices."""
    if mesh.axes('vocab'):
        return losses.lm_loss(hidden, embedding, targets, weights)
    return losses.lm_loss(hidden, embedding, targets, weights, chunk_tokens=_CHUNK_TOKENS, gradient=gradient)


def gradient(logits: jax.Array, targets: jax.Array, weights: jax.Array, dtype: jnp.dtype) -> tuple:
    """See `losses.gradient`."""
    axes = mesh.axes('batch')
    on_device = lambda *arrays: _on_device(*arrays, dtype)
    if axes:
        on_device = jax.shard_map(
            on_device, in_specs=PartitionSpec(axes), out_specs=PartitionSpec(axes), check_vma=False
        )
    return on_device(logits, targets, weights)


def _on_device(logits, targets, weights, dtype):
    sizes = Sizes(logits.shape[-1], _BLOCK)
    return triton_calls.call(
        _kernel,
        *(logits, targets.astype(jnp.int32), weights),
        shapes=(jax.ShapeDtypeStruct(logits.shape, dtype), jax.ShapeDtypeStruct(targets.shape, jnp.float32)),
        grid=targets.size,
        sizes=sizes,
        tuning=triton_calls.Tuning(_WARPS),
    )


@jit
def _kernel(logits, targets, weights, d_logits, nll, sizes: constexpr):
    """For one token."""
    token = tl.program_id(0).to(tl.int64)
    logits += token * sizes.entries
    d_logits += token * sizes.entries
    target, weight = tl.load(targets + token), tl.load(weights + token)
    entry = tl.arange(0, sizes.block)
    largest = tl.full([sizes.block], -float('inf'), tl.float32)
    total = tl.full([sizes.block], 0.0, tl.float32)
    for start in range(0, sizes.entries, sizes.block):
        there = start + entry < sizes.entries
        values = tl.load(logits + start + entry, mask=there, other=-float('inf')).to(tl.float32)
        now = tl.maximum(largest, values)
        # A place that has read nothing yet has the largest -inf, and nothing to shrink.
        total = tl.where(there, total * tl.exp(largest - now) + tl.exp(values - now), total)
        largest = now
    most = tl.max(largest, 0)
    log_total = most + tl.log(tl.sum(total * tl.exp(largest - most), 0))
    tl.store(nll + token, log_total - tl.load(logits + target).to(tl.float32))
    for start in range(0, sizes.entries, sizes.block):
        there = start + entry < sizes.entries
        # Read and written for the last time: the cache keeps logits that are still to be read again.
        values = tl.load(logits + start + entry, mask=there, other=0.0, eviction_policy='evict_first').to(tl.float32)
        slopes = tl.exp(values - log_total) - tl.where(start + entry == target, 1.0, 0.0)
        slopes = (weight * slopes).to(d_logits.dtype.element_ty)
        tl.store(d_logits + start + entry, slopes, mask=there, eviction_policy='evict_first')
