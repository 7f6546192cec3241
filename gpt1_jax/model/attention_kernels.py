"""Causal self-attention with dropout as one TPU kernel each way; `attend` in attention.py is its reference.

Scores never leave the chip's vector memory. A program of the kernel has all tokens of one row, for as many heads as
fill the 128 lanes of a vector register, and reads and writes them where the projections have them, so that nothing is
padded, transposed or copied. Keys in blocks after the queries' are skipped. The forward pass saves the logarithm of
each softmax's denominator; the backward pass computes the probabilities and the dropout's mask again.

Scores are [keys, columns], and a column is a query of one of the group's heads: sums over keys are then plain additions
of registers, and an array with one number per query is a compact row.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from gpt1_jax.model import dropout, mesh
from gpt1_jax.model.attention_blocks import MASKED

LANES = 128  # of a vector register; also the queries in a block
LONGEST = 1024  # tokens in a row: 32 MiB of vector memory hold what its backward pass needs for two heads

# Elementwise operations per score, by line, for the cost that the kernels declare (a test counts them).
_FORWARD, _BACKWARD, _DROPPED, _AMONG_IDS = 7, 10, 16, 2


class Settings(NamedTuple):
    """What is fixed when the kernels are compiled.

    Attributes:
      heads: of the model, on all devices together.
      head_dim: D.
      rate: of the dropout; 0 for none.
      interpret: run without a TPU, slowly, for tests.
    """

    heads: int
    head_dim: int
    rate: float
    interpret: bool = False


def obstacle(length: int, heads: int, head_dim: int) -> str | None:
    """Why the kernels cannot serve rows of `length` tokens with `heads` heads of `head_dim` on a device, or None."""
    if LANES % head_dim or heads * head_dim % LANES:
        return f'{heads} heads of {head_dim} do not make whole groups of {LANES} lanes'
    longest = min(LONGEST, LONGEST * head_dim * 2 // LANES)
    return f'rows of {length} tokens are longer than {longest}' if length > longest else None


def attend(
    qkv: jax.Array, bias: jax.Array, ids: Sequence[jax.Array], seeds: jax.Array, settings: Settings
) -> jax.Array:
    """What `attention.attend` computes, for queries and keys of the same tokens.

    Args:
      qkv: [3, B, T, H * D]: queries, keys and values, without the bias.
      bias: [3, H * D], which the kernels add; they also sum its gradient, for which XLA would read all of qkv's again.
      ids: each int [B, T]: a token's segment and its context, another segment that it sees; none, the first, or both.
      seeds: uint32 [2], of the dropout.

    Returns:
      [B, T, H * D] in the dtype of `qkv`.
    """
    length = qkv.shape[2]
    pad = -length % LANES  # keys that come after all queries
    ids = [jnp.pad(each, ((0, 0), (0, pad)))[:, None] for each in ids]
    return _attend(jnp.pad(qkv, ((0, 0), (0, 0), (0, pad), (0, 0))), bias, ids, seeds, length, settings)[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(qkv, bias, ids, seeds, length, settings):
    return _forward(qkv, bias, ids, seeds, length, settings)[0]


def _forward(qkv, bias, ids, seeds, length, settings):
    mixed, log_sums = _on_mesh(_call_forward, seeds, ids, (qkv, bias), length, settings)
    return mixed, (qkv, bias, ids, seeds, log_sums)


def _backward(length, settings, saved, gradient):
    qkv, bias, ids, seeds, log_sums = saved
    to_qkv, to_bias = _on_mesh(_call_backward, seeds, ids, (qkv, bias, gradient, log_sums), length, settings)
    nothing = lambda x: np.zeros(x.shape, jax.dtypes.float0)
    return to_qkv, to_bias.sum(axis=0), [nothing(x) for x in ids], nothing(seeds)


_attend.defvjp(_forward, _backward)


def _on_mesh(call, seeds, ids, arrays, length, settings):
    """`call` on each device's part of the arrays; it is told where that part begins in the whole, because the mask of
    the dropout is that of the whole."""
    rows, heads = mesh.axes('batch'), mesh.axes('heads')

    def on_device(seeds, ids, arrays):
        _, n_rows, _, width = arrays[0].shape
        first_row = lax.axis_index(rows) * n_rows if rows else 0
        first_head = lax.axis_index(heads) * (width // settings.head_dim) if heads else 0
        scalars = jnp.stack([seeds[0], seeds[1], jnp.uint32(first_row), jnp.uint32(first_head)])
        return call(scalars, ids, arrays, length, settings)

    if not rows and not heads:
        return on_device(seeds, ids, arrays)
    qkv, bias, mixed = (
        PartitionSpec(None, rows, None, heads),
        PartitionSpec(None, heads),
        PartitionSpec(rows, None, heads),
    )
    log_sums, by_row = PartitionSpec(rows, heads), PartitionSpec(rows)
    forward = call is _call_forward
    return jax.shard_map(
        on_device,
        in_specs=(PartitionSpec(), by_row, (qkv, bias) if forward else (qkv, bias, mixed, log_sums)),
        out_specs=(mixed, log_sums) if forward else (qkv, mixed),
        check_vma=False,
    )(seeds, ids, arrays)


def _call_forward(scalars, ids, arrays, length, settings):
    _, rows, tokens, width = arrays[0].shape
    shapes = (
        jax.ShapeDtypeStruct((rows, tokens, width), arrays[0].dtype),
        jax.ShapeDtypeStruct((rows, width // LANES, LANES // settings.head_dim, tokens), jnp.float32),
    )
    return _call(_forward_kernel, scalars, ids, arrays, shapes, (), length, settings)


def _call_backward(scalars, ids, arrays, length, settings):
    qkv = arrays[0]
    shapes = (
        jax.ShapeDtypeStruct(qkv.shape, qkv.dtype),
        jax.ShapeDtypeStruct((qkv.shape[1], 3, qkv.shape[3]), jnp.float32),
    )
    sums = [pltpu.VMEM((qkv.shape[2], LANES), jnp.float32)] * 2
    return _call(_backward_kernel, scalars, ids, arrays, shapes, [sums], length, settings)


def _call(kernel, scalars, ids, arrays, shapes, scratch, length, settings):
    _, rows, tokens, width = arrays[0].shape
    forward = kernel is _forward_kernel
    qkv = pl.BlockSpec((3, 1, tokens, LANES), lambda row, group: (0, row, 0, group))
    bias = pl.BlockSpec((3, LANES), lambda row, group: (0, group))
    to_bias = pl.BlockSpec((1, 3, LANES), lambda row, group: (row, 0, group))
    mixed = pl.BlockSpec((1, tokens, LANES), lambda row, group: (row, 0, group))
    log_sums = pl.BlockSpec((1, 1, LANES // settings.head_dim, tokens), lambda row, group: (row, group, 0, 0))
    id_spec = pl.BlockSpec((1, 1, tokens), lambda row, group: (row, 0, 0))
    return pl.pallas_call(
        functools.partial(kernel, length=length, settings=settings),
        grid=(rows, width // LANES),
        in_specs=(
            pl.BlockSpec(memory_space=pltpu.SMEM),
            [id_spec] * len(ids),
            (qkv, bias) if forward else (qkv, bias, mixed, log_sums),
        ),
        out_specs=(mixed, log_sums) if forward else (qkv, to_bias),
        out_shape=shapes,
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=('parallel', 'parallel'),
            vmem_limit_bytes=2**14 * max(LONGEST, tokens * LANES // settings.head_dim),  # at least XLA's own 16 MiB
        ),
        cost_estimate=_cost(forward, ids, arrays, shapes, settings),
        interpret=settings.interpret,
    )(scalars, ids, arrays)


def _cost(forward, ids, arrays, shapes, settings):
    """What one call does; the heads of a group share its products, each of which is as wide as the group."""
    _, rows, tokens, width = arrays[0].shape
    scores = rows * width // settings.head_dim * sum(block.stop * LANES for block in _blocks(tokens))
    products, elementwise = (2, _FORWARD) if forward else (5, _BACKWARD)
    elementwise += _DROPPED * (settings.rate > 0) + _AMONG_IDS * len(ids)
    return pl.CostEstimate(
        flops=scores * (products * 2 * LANES + elementwise),
        transcendentals=scores,
        bytes_accessed=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((ids, arrays, shapes))),
    )


# Inside a program: q, k, v, their gradients [T, LANES], each head in its own lanes; scores [keys, columns].


def _forward_kernel(scalars, ids, arrays, mixed, log_sums, *, length, settings):
    query, key, value = _with_bias(*arrays)
    value = value.T
    for block in _blocks(query.shape[0]):
        scores = _scores(ids, query, key, block, settings)
        largest = scores.max(axis=0, keepdims=True)
        powers = jnp.exp(scores - largest)
        total = powers.sum(axis=0, keepdims=True)
        probabilities = powers * (1 / total)
        if settings.rate:
            probabilities = _dropped(scalars, probabilities, block, length, settings)
        out = _product(value[:, : block.stop], probabilities.astype(value.dtype))
        mixed[0, block] = _own_columns(out, settings).astype(mixed.dtype).T
        for i, row in enumerate(jnp.split(largest + jnp.log(total), LANES // settings.head_dim, axis=1)):
            log_sums[0, 0, i : i + 1, block] = row


def _backward_kernel(scalars, ids, arrays, to_qkv, to_bias, sums, *, length, settings):
    (qkv, bias, gradient, log_sums), (to_key, to_value) = arrays, sums
    query, key, value = _with_bias(qkv, bias)
    key_t = key.T
    to_queries = jnp.zeros((1, LANES), jnp.float32)
    to_key[...] = to_value[...] = jnp.zeros(to_key.shape, jnp.float32)
    for block in _blocks(query.shape[0]):
        seen = slice(0, block.stop)
        log_sum = jnp.concatenate([log_sums[0, 0, i : i + 1, block] for i in range(log_sums.shape[2])], axis=1)
        probabilities = jnp.exp(_scores(ids, query, key, block, settings) - log_sum)
        kept = _dropped(scalars, probabilities, block, length, settings) if settings.rate else probabilities
        to_mixed = _columns(gradient[0, block], settings)
        to_value[seen] += _product(kept.astype(value.dtype), to_mixed)
        to_probabilities = kept * _product(value[seen], to_mixed, transposed=True)  # times the probabilities
        total = to_probabilities.sum(axis=0, keepdims=True)
        to_scores = (to_probabilities - probabilities * total) * settings.head_dim**-0.5
        to_scores = to_scores.astype(query.dtype)
        to_key[seen] += _product(to_scores, _columns(query[block], settings))
        to_query = _own_columns(_product(key_t[:, seen], to_scores), settings).T
        to_queries += to_query.sum(axis=0, keepdims=True)
        to_qkv[0, 0, block] = to_query.astype(to_qkv.dtype)
    to_bias[0, 0:1] = to_queries
    for i, gradients in ((1, to_key[...]), (2, to_value[...])):
        to_qkv[i, 0] = gradients.astype(to_qkv.dtype)
        to_bias[0, i : i + 1] = gradients.sum(axis=0, keepdims=True)


def _with_bias(qkv, bias):
    """Queries, keys and values, rounded twice as outside: the projection, then its sum with the bias."""
    bias = bias[...].astype(qkv.dtype).astype(jnp.float32)
    return [(qkv[i, 0].astype(jnp.float32) + bias[i : i + 1]).astype(qkv.dtype) for i in range(3)]


def _blocks(tokens):
    return [slice(start, start + LANES) for start in range(0, tokens, LANES)]


def _product(a, b, transposed=False):
    """a @ b, or a @ b.T, in float32."""
    return lax.dot_general(a, b, (((1,), (int(transposed),)), ((), ())), preferred_element_type=jnp.float32)


def _columns(x, settings):
    """One row per column of the scores, from a block [LANES, LANES]: zero except in the lanes of the column's head."""
    head = lax.broadcasted_iota(jnp.int32, x.shape, 1) >> (settings.head_dim.bit_length() - 1)
    return jnp.concatenate([jnp.where(head == i, x, 0) for i in range(LANES // settings.head_dim)])


def _own_columns(x, settings):
    """[LANES, columns] -> [LANES, LANES]: in the lanes of each head, the columns of that head."""
    heads = range(LANES // settings.head_dim)
    lanes = lambda i: slice(i * settings.head_dim, (i + 1) * settings.head_dim)
    return jnp.concatenate([x[lanes(i), i * LANES : (i + 1) * LANES] for i in heads])


def _queries(dtype, block, settings):
    """For each column [1, columns]: its head in the group, and its query in the row."""
    column = lax.broadcasted_iota(dtype, (1, LANES * LANES // settings.head_dim), 1)
    return column >> (LANES.bit_length() - 1), (column & (LANES - 1)) + block.start


def _scores(ids, query, key, block, settings):
    """Scores of the queries in a block with all keys up to its end."""
    scores = _product(key[: block.stop], _columns(query[block], settings), transposed=True) * settings.head_dim**-0.5
    seen = lax.broadcasted_iota(jnp.int32, scores.shape, 0) <= _queries(jnp.int32, block, settings)[1]
    if ids:
        keys = jnp.broadcast_to(ids[0][0], (LANES, ids[0].shape[2])).T[: block.stop, :1]
        among = [keys == jnp.concatenate([each[0, :, block]] * (LANES // settings.head_dim), axis=1) for each in ids]
        seen &= functools.reduce(jnp.logical_or, among)
    return jnp.where(seen, scores, MASKED)


def _dropped(scalars, probabilities, block, length, settings):
    """`dropout.dropout` of the probabilities as a part of the whole [B, H, Q, K]."""
    row, group = (pl.program_id(axis).astype(jnp.uint32) for axis in (0, 1))
    head, query = _queries(jnp.uint32, block, settings)
    head += scalars[3] + group * (LANES // settings.head_dim)
    start = (((scalars[2] + row) * settings.heads + head) * length + query) * length
    index = start + lax.broadcasted_iota(jnp.uint32, probabilities.shape, 0)
    kept = dropout.keep(index, (scalars[0], scalars[1]), settings.rate)
    return jnp.where(kept, probabilities * (1 / (1 - settings.rate)), 0.0)
