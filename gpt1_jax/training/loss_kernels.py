"""The language model's loss as two TPU kernels; `losses.lm_loss` is their reference.

Logits exist for one block of tokens and entries at a time, in the chip's vector memory. The first kernel is attention
whose keys and values are both the softmax's table: it gives the log-normaliser and the mean row of the table under the
softmax, from which the loss and the gradient of the states follow. The second computes the logits again and from them
the gradient of the table, each entry of which is written once. Blocks of logits are [entries, tokens]: sums over
entries are then plain additions of registers, and what there is one of per token is a compact row.
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

# Elementwise operations per logit, for the cost that the kernels declare.
_OPERATIONS = {'states': 7, 'table': 8}


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
    """See `losses.lm_loss`, which computes it where the vocabulary is divided among devices.

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
    nll, log_normaliser, d_hidden = _on_mesh(call, *arrays)
    return jnp.sum(nll * weights), (arrays, nll, log_normaliser, d_hidden)


def _backward(blocks, interpret, saved, cotangent):
    (hidden, embedding, targets, weights), nll, log_normaliser, d_hidden = saved
    scale = lambda x: (cotangent * x).astype(x.dtype)
    call = functools.partial(_table_on_device, blocks=blocks, interpret=interpret)
    # Times the weights here, not its result, which would be one more pass over it.
    d_embedding = _on_mesh(call, hidden, embedding, targets, scale(weights), log_normaliser)
    return scale(d_hidden), d_embedding, np.zeros(targets.shape, jax.dtypes.float0), scale(nll)


_lm_loss.defvjp(_forward, _backward)


def _on_mesh(call, *arrays):
    axes = mesh.axes('batch')
    if not axes:
        return call(*arrays)
    each = PartitionSpec(axes)
    return jax.shard_map(call, in_specs=each, out_specs=each, check_vma=False)(*arrays)


def _states_on_device(hidden, embedding, targets, weights, *, blocks, interpret):
    """nll and log-normaliser [shards, N, T], and the gradient of the states. embedding: [1, rows, width]."""
    embedding = embedding[0]
    own = embedding[targets.reshape(-1)].astype(jnp.float32)
    blocks, flat, _ = _in_blocks(blocks, hidden, targets)
    mean, log_normaliser = _call(_states_kernel, (flat, embedding), (), blocks, interpret)
    n_tokens = targets.size
    log_normaliser = log_normaliser[0, :n_tokens]
    nll = log_normaliser - jnp.sum(flat[:n_tokens].astype(jnp.float32) * own, axis=-1)
    d_hidden = weights.reshape(-1, 1) * (mean[:n_tokens] - own)
    of_shape = lambda x: x.reshape(targets.shape)
    return of_shape(nll), of_shape(log_normaliser), d_hidden.astype(hidden.dtype).reshape(hidden.shape)


def _table_on_device(hidden, embedding, targets, weights, log_normaliser, *, blocks, interpret):
    """The gradient [1, rows, width] of the embedding."""
    blocks, flat, row = _in_blocks(blocks, hidden, targets)
    rows = row(targets), row(weights), row(log_normaliser)
    return _call(_table_kernel, (flat, embedding[0]), rows, blocks, interpret)[None]


def _in_blocks(blocks, hidden, targets):
    """(blocks that are not larger than need be; the states [tokens, width], padded to whole ones, and what makes such a
    row [1, tokens])"""
    n_tokens, width = targets.size, hidden.shape[-1]
    blocks = Blocks(min(blocks.tokens, n_tokens + -n_tokens % _LANES), blocks.entries)
    pad = -n_tokens % blocks.tokens
    row = lambda x: jnp.pad(x.reshape(1, -1), ((0, 0), (0, pad)))
    return blocks, jnp.pad(hidden.reshape(-1, width), ((0, pad), (0, 0))), row


def _call(kernel, arrays, rows, blocks, interpret):
    hidden, table = arrays
    (n_tokens, width), n_entries = hidden.shape, table.shape[0]
    grid = n_tokens // blocks.tokens, pl.cdiv(n_entries, blocks.entries)
    states = kernel is _states_kernel
    # The inner loop is over what the result is a sum of.
    order = (lambda token, entry: (token, entry)) if states else (lambda entry, token: (token, entry))
    by_token = pl.BlockSpec((blocks.tokens, width), lambda *at: (order(*at)[0], 0))
    by_entry = pl.BlockSpec((blocks.entries, width), lambda *at: (order(*at)[1], 0))
    row = pl.BlockSpec((1, blocks.tokens), lambda *at: (0, order(*at)[0]))
    if states:
        shapes = (jax.ShapeDtypeStruct(hidden.shape, jnp.float32), jax.ShapeDtypeStruct((1, n_tokens), jnp.float32))
        scratch = [pltpu.VMEM((size, blocks.tokens), jnp.float32) for size in (width, 1, 1)]
    else:
        shapes, scratch = jax.ShapeDtypeStruct(table.shape, jnp.float32), ()
    return pl.pallas_call(
        functools.partial(kernel, n_entries=n_entries),
        grid=grid if states else grid[::-1],
        in_specs=(by_token, by_entry, *(row,) * len(rows)),
        out_specs=(by_token, row) if states else by_entry,
        out_shape=shapes,
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'arbitrary'), vmem_limit_bytes=_MEMORY),
        cost_estimate=_cost(states, arrays, rows, shapes, grid),
        interpret=interpret,
    )(*arrays, *rows)


def _cost(states, arrays, rows, shapes, grid):
    """What one call does: the array of the outer loop is read once, that of the inner one in every round."""
    hidden, table = arrays
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    read = size(hidden) + grid[0] * size(table) if states else size(table) + grid[1] * size((hidden, rows))
    logits = hidden.shape[0] * table.shape[0]
    operations = _OPERATIONS['states' if states else 'table']
    return pl.CostEstimate(
        flops=logits * (2 * 2 * hidden.shape[1] + operations),
        transcendentals=logits,
        bytes_accessed=read + size(shapes),
    )


# Inside a program: logits [entries, tokens].


def _product(a, b, contracted):
    return lax.dot_general(a, b, ((contracted[:1], contracted[1:]), ((), ())), preferred_element_type=jnp.float32)


def _logits(hidden, table, entry, n_entries):
    """Logits, and which entry each belongs to; entries of the last block that are not there count nothing."""
    logits = _product(table, hidden, (1, 1))
    entries = lax.broadcasted_iota(jnp.int32, logits.shape, 0) + entry * table.shape[0]
    return jnp.where(entries < n_entries, logits, -jnp.inf), entries


def _states_kernel(hidden, table, mean, log_normaliser, total_row, largest, total, *, n_entries):
    """The mean row of the table under the softmax, and the log-normaliser, for a block of tokens."""
    entry, last = pl.program_id(1), pl.num_programs(1) - 1

    @pl.when(entry == 0)
    def _():
        largest[...] = jnp.full(largest.shape, -jnp.inf, jnp.float32)
        total_row[...] = jnp.zeros(total_row.shape, jnp.float32)
        total[...] = jnp.zeros(total.shape, jnp.float32)

    there = lax.broadcasted_iota(jnp.int32, table.shape, 0) + entry * table.shape[0] < n_entries
    rows = jnp.where(there, table[...], 0)
    logits, _ = _logits(hidden[...], rows, entry, n_entries)
    new_largest = jnp.maximum(largest[...], logits.max(axis=0, keepdims=True))
    shrink = jnp.exp(largest[...] - new_largest)
    powers = jnp.exp(logits - new_largest)
    largest[...] = new_largest
    total[...] = shrink * total[...] + powers.sum(axis=0, keepdims=True)
    total_row[...] = shrink * total_row[...] + _product(rows, powers.astype(rows.dtype), (0, 0))

    @pl.when(entry == last)
    def _():
        # An entry with nearly all of the mass has the power 1, exact in any type: it cancels against the target's row.
        mean[...] = (total_row[...] / total[...]).T
        log_normaliser[...] = largest[...] + jnp.log(total[...])


def _table_kernel(hidden, table, targets, weights, log_normaliser, gradient, *, n_entries):
    """The gradient of a block of entries."""
    token = pl.program_id(1)
    logits, entries = _logits(hidden[...], table[...], pl.program_id(0), n_entries)
    probabilities = jnp.exp(logits - log_normaliser[...])
    d_logits = weights[...] * jnp.where(entries == targets[...], probabilities - 1, probabilities)
    summed = _product(d_logits.astype(hidden.dtype), hidden[...], (1, 0))

    @pl.when(token == 0)
    def _():
        gradient[...] = summed

    @pl.when(token != 0)
    def _():
        gradient[...] += summed
