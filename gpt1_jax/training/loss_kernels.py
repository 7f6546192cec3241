"""The language model's loss as two TPU kernels; `losses.lm_loss` is their reference.

Logits exist for one block of tokens and entries at a time, in the chip's vector memory. The first kernel is attention
whose keys and values are both the softmax's table: it gives the log-normaliser and the mean row of the table under the
softmax, from which the loss and the gradient of the states follow. The second makes the gradient of the table, each
entry of which is written once, from the powers that the first has kept: exponentials of logits less the largest so far.
In float32, or if the powers are too many to keep, it computes the logits again. Blocks of logits are [entries, tokens]:
sums over entries are then plain additions of registers, and an array with one number per token is a compact row.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from gpt1_jax.model import mesh
from gpt1_jax.training import losses

_LANES = 128  # of a vector register
_MEMORY = 64 * 2**20  # bytes of vector memory that a kernel may use
TOO_SMALL = ('TPU v2', 'TPU v3', 'TPU v4', 'TPU v4 lite')  # kinds of devices that have less

_KEPT = 2**30  # most bytes of powers that a device keeps for the backward pass
_LEAST = 64 << 10  # the least power that can be packed, 2**-63, as the first 19 bits of a float32

# Elementwise operations per logit, for the cost that the kernels declare.
_OPERATIONS = {'states': 7, 'table': 8}
_PACKING = 5  # more, for powers that are kept


class Blocks(NamedTuple):
    """Sizes of the blocks of logits: `tokens`, a multiple of 128, and `entries` of the table, a multiple of 16."""

    tokens: int
    entries: int

    @classmethod
    def of(cls, width: int) -> 'Blocks':
        """The largest whose states and rows fit the vector memory."""
        size = lambda most: most // max(1, -(-width // 768)) // _LANES * _LANES
        return cls(size(2048), size(1024))


def lm_loss(
    hidden: jax.Array,
    embedding: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    blocks: Blocks | None = None,
    interpret: bool = False,
) -> jax.Array:
    """See `losses.lm_loss`, which computes it if the vocabulary is divided among devices.

    interpret: run without a TPU, slowly, for tests.
    """
    if mesh.axes('vocab'):
        return losses.lm_loss(hidden, embedding, targets, weights)
    blocks = blocks or Blocks.of(hidden.shape[-1])
    tables = losses.one_each(embedding, mesh.shards('batch')).astype(jnp.float32)  # as their gradient is
    return _lm_loss(hidden, tables, targets, weights, blocks, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _lm_loss(hidden, embedding, targets, weights, blocks, interpret):
    return _forward(hidden, embedding, targets, weights, blocks, interpret)[0]


def _forward(hidden, embedding, targets, weights, blocks, interpret):
    arrays = hidden, embedding.astype(hidden.dtype), targets, weights
    call = functools.partial(_states_on_device, blocks=blocks, interpret=interpret)
    nll, log_normaliser, d_hidden, kept = _on_mesh(call, *arrays)
    return jnp.sum(nll * weights), (arrays, nll, log_normaliser, d_hidden, kept)


def _backward(blocks, interpret, saved, cotangent):
    (hidden, embedding, targets, weights), nll, log_normaliser, d_hidden, kept = saved
    scale = lambda x: (cotangent * x).astype(x.dtype)
    call = functools.partial(_table_on_device, blocks=blocks, interpret=interpret)
    # Scales the weights, not the result, which would take one more pass over it.
    d_embedding = _on_mesh(call, hidden, embedding, targets, scale(weights), log_normaliser, kept)
    return scale(d_hidden), d_embedding, np.zeros(targets.shape, jax.dtypes.float0), scale(nll)


_lm_loss.defvjp(_forward, _backward)


def _on_mesh(call, *arrays):
    axes = mesh.axes('batch')
    if not axes:
        return call(*arrays)
    each = PartitionSpec(axes)
    return jax.shard_map(call, in_specs=each, out_specs=each, check_vma=False)(*arrays)


def _states_on_device(hidden, embedding, targets, weights, *, blocks, interpret):
    """nll and log-normaliser [shards, N, T], the gradient of the states, and what is kept for the table's gradient:
    nothing, or the powers [1, rows, tokens], packed, and the largest logit up to each block of rows [1, blocks, 1,
    tokens]."""
    embedding = embedding[0]
    own = embedding[targets.reshape(-1)].astype(jnp.float32)
    blocks, flat, _ = _in_blocks(blocks, hidden, targets)
    keep = hidden.dtype == jnp.bfloat16 and 2 * len(embedding) * len(flat) <= _KEPT
    mean, log_normaliser, *kept = _call(_states_kernel, (flat, embedding), keep, blocks, interpret)
    n_tokens = targets.size
    log_normaliser = log_normaliser[0, :n_tokens]
    nll = log_normaliser - jnp.sum(flat[:n_tokens].astype(jnp.float32) * own, axis=-1)
    d_hidden = (weights.reshape(-1, 1) * (mean[:n_tokens] - own)).astype(hidden.dtype)
    of_shape = lambda x: x.reshape(targets.shape)
    return of_shape(nll), of_shape(log_normaliser), d_hidden.reshape(hidden.shape), [x[None] for x in kept]


def _table_on_device(hidden, embedding, targets, weights, log_normaliser, kept, *, blocks, interpret):
    """The gradient [1, rows, width] of the embedding."""
    blocks, flat, row = _in_blocks(blocks, hidden, targets)
    arrays = flat, *([x[0] for x in kept] or [embedding[0]]), row(targets), row(weights), row(log_normaliser)
    [gradient] = _call(_table_kernel, arrays, bool(kept), blocks, interpret)
    return gradient[None]


def _in_blocks(blocks, hidden, targets):
    """(blocks, no larger than they need be; the states [tokens, width], padded to whole blocks; a function that makes
    an array such a padded row [1, tokens])"""
    n_tokens, width = targets.size, hidden.shape[-1]
    blocks = Blocks(min(blocks.tokens, n_tokens + -n_tokens % _LANES), blocks.entries)
    pad = -n_tokens % blocks.tokens
    row = lambda x: jnp.pad(x.reshape(1, -1), ((0, 0), (0, pad)))
    return blocks, jnp.pad(hidden.reshape(-1, width), ((0, pad), (0, 0))), row


def _call(kernel, arrays, keep, blocks, interpret):
    """The results of `_states_kernel` or `_table_kernel`. keep: whether the first gives the second its powers."""
    (n_tokens, width), n_entries = arrays[0].shape, len(arrays[1])
    grid = n_tokens // blocks.tokens, pl.cdiv(n_entries, blocks.entries)
    states = kernel is _states_kernel
    # The inner loop is over what the result is a sum of.
    order = (lambda token, entry: (token, entry)) if states else (lambda entry, token: (token, entry))
    by_token = pl.BlockSpec((blocks.tokens, width), lambda *at: (order(*at)[0], 0))
    by_entry = pl.BlockSpec((blocks.entries, width), lambda *at: (order(*at)[1], 0))
    row = pl.BlockSpec((1, blocks.tokens), lambda *at: (0, order(*at)[0]))
    by_both = pl.BlockSpec((blocks.entries, blocks.tokens), lambda *at: order(*at)[::-1])
    row_of_entries = pl.BlockSpec((1, 1, blocks.tokens), lambda *at: (order(*at)[1], 0, order(*at)[0]))
    kept = [by_both, row_of_entries] if keep else []
    shape = lambda *sizes, dtype=jnp.float32: jax.ShapeDtypeStruct(sizes, dtype)
    if states:
        in_specs, out_specs = [by_token, by_entry], [by_token, row, *kept]
        shapes = [shape(n_tokens, width), shape(1, n_tokens)]
        if keep:
            shapes += [shape(n_entries, n_tokens, dtype=jnp.int16), shape(grid[1], 1, n_tokens)]
        scratch = [pltpu.VMEM((size, blocks.tokens), jnp.float32) for size in (width, 1, 1)]
    else:
        in_specs, out_specs = [by_token, *(kept or [by_entry]), row, row, row], [by_entry]
        shapes, scratch = [shape(n_entries, width)], ()
    return pl.pallas_call(
        functools.partial(kernel, n_entries=n_entries) if states else kernel,
        grid=grid if states else grid[::-1],
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=shapes,
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'arbitrary'), vmem_limit_bytes=_MEMORY),
        cost_estimate=_cost(states, arrays, keep, shapes, grid),
        interpret=interpret,
    )(*arrays)


def _cost(states, arrays, keep, shapes, grid):
    """What one call does: the array of the outer loop is read once, that of the inner one in every round."""
    size = lambda *some: sum(x.size * x.dtype.itemsize for x in some)
    (n_tokens, width), logits = arrays[0].shape, len(arrays[0]) * len(arrays[1])
    if states:
        outer, inner, rounds = arrays[:1], arrays[1:], grid[0]
    else:
        outer, inner, rounds = arrays[1:-3], (arrays[0], *arrays[-3:]), grid[1]
    again = states or not keep  # whether it computes logits
    operations = _OPERATIONS['states' if states else 'table'] + _PACKING * (states and keep)
    return pl.CostEstimate(
        flops=logits * (2 * (1 + again) * width + operations),
        transcendentals=logits if again else n_tokens * grid[1],
        bytes_accessed=size(*outer) + rounds * size(*inner) + size(*shapes),
    )


# Inside a program: logits [entries, tokens].


def _product(a, b, contracted):
    return lax.dot_general(a, b, ((contracted[:1], contracted[1:]), ((), ())), preferred_element_type=jnp.float32)


def _entries(shape, entry):
    """Which entry each logit of a block belongs to."""
    return lax.broadcasted_iota(jnp.int32, shape, 0) + entry * shape[0]


def _states_kernel(hidden, table, mean, log_normaliser, *kept_and_sums, n_entries):
    """The mean row of the table under the softmax, and the log-normaliser, for a block of tokens; with `kept`, also the
    powers, and the largest logit so far, which was subtracted before."""
    *kept, total_row, largest, total = kept_and_sums
    entry, last = pl.program_id(1), pl.num_programs(1) - 1

    @pl.when(entry == 0)
    def _():
        largest[...] = jnp.full(largest.shape, -jnp.inf, jnp.float32)
        total_row[...] = jnp.zeros(total_row.shape, jnp.float32)
        total[...] = jnp.zeros(total.shape, jnp.float32)

    # Beyond the table's end, the last block's entries must not count.
    rows = jnp.where(_entries(table.shape, entry) < n_entries, table[...], 0)
    logits = _product(rows, hidden[...], (1, 1))
    logits = jnp.where(_entries(logits.shape, entry) < n_entries, logits, -jnp.inf)
    new_largest = jnp.maximum(largest[...], logits.max(axis=0, keepdims=True))
    shrink = jnp.exp(largest[...] - new_largest)
    powers = jnp.exp(logits - new_largest)
    largest[...] = new_largest
    total[...] = shrink * total[...] + powers.sum(axis=0, keepdims=True)
    total_row[...] = shrink * total_row[...] + _product(rows, powers.astype(rows.dtype), (0, 0))
    if kept:
        kept_powers, kept_largest = kept
        kept_powers[...] = _pack(powers)
        kept_largest[0] = new_largest

    @pl.when(entry == last)
    def _():
        # An entry with nearly all of the mass has the power 1, exact in any type: it cancels against the target's row.
        mean[...] = (total_row[...] / total[...]).T
        log_normaliser[...] = largest[...] + jnp.log(total[...])


def _table_kernel(hidden, *table_or_kept_and_rows):
    """The gradient of a block of entries; those beyond the table's end are not written."""
    *table_or_kept, targets, weights, log_normaliser, gradient = table_or_kept_and_rows
    token = pl.program_id(1)
    if len(table_or_kept) == 1:
        logits = _product(table_or_kept[0][...], hidden[...], (1, 1))
        probabilities = jnp.exp(logits - log_normaliser[...])
    else:
        powers, largest = table_or_kept
        probabilities = _unpack(powers[...]) * jnp.exp(largest[0] - log_normaliser[...])
    own = _entries(probabilities.shape, pl.program_id(0)) == targets[...]
    d_logits = weights[...] * jnp.where(own, probabilities - 1, probabilities)
    summed = _product(d_logits.astype(hidden.dtype), hidden[...], (1, 0))

    @pl.when(token == 0)
    def _():
        gradient[...] = summed

    @pl.when(token != 0)
    def _():
        gradient[...] += summed


# Powers are at most 1. Packed they have 6 bits of exponent and 10 of fraction. The gradients of logits, rounded to
# bfloat16 with its 7, are then as exact as from float32. Powers below 2^-63 come back as 2^-63; NaN as any number, but
# then the log-normaliser is NaN too, and with it the gradient.


def _pack(powers):
    bits = (lax.bitcast_convert_type(powers, jnp.int32) + 2**12) >> 13  # rounded to the nearest
    return (jnp.maximum(bits - _LEAST, 0) - 2**15).astype(jnp.int16)


def _unpack(packed):
    return lax.bitcast_convert_type((packed.astype(jnp.int32) + 2**15 + _LEAST) << 13, jnp.float32)
