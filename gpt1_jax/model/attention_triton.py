"""Causal self-attention with dropout as kernels for NVIDIA GPUs; `attend` in attention.py is their reference.

Scores never leave the chip. A program has one block of one head's queries (or keys), and goes through the blocks of
keys that these see (or queries that see these). The forward pass saves the logarithm of each softmax's denominator; the
backward pass computes the probabilities and the dropout's mask again, once for the gradients of the queries and once
for those of keys and values. All are read and written in the order in which one matrix product makes them: [tokens,
3 * width]. That product adds the biases, too; their gradients are summed block by block, and then by XLA.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from gpt1_jax.model import mesh, triton_calls
from gpt1_jax.model.attention_blocks import MASKED
from gpt1_jax.model.attention_kernels import Settings
from gpt1_jax.model.dropout import threshold
from gpt1_jax.model.triton_calls import constexpr, jit, kept, tl

_LOG2_E = constexpr(math.log2(math.e))
_MASKED = constexpr(MASKED)

# Tokens of a block, and of the other side that are read at a time: the fastest for heads of 64 on an H100.
_BLOCKS = {'forward': (64, 32), 'to_queries': (64, 32), 'to_keys': (64, 16)}
_TUNING = triton_calls.Tuning(warps=4, stages=3)


class Sizes(NamedTuple):
    """What is fixed when a kernel is compiled.

    Attributes:
      rows: on this device.
      length: of a row, T.
      blocks: that a row has.
      block: tokens in a block.
      step: tokens of the other side that are read at a time.
      heads: on this device.
      all_heads: on all devices.
      head_dim: D.
      ids: how many arrays of ids say what is seen: 0, 1 (segments), or 2 (and contexts).
      threshold: hashes below it are dropped; 0 for no dropout.
      kept: probability that an element is kept.
    """

    rows: int
    length: int
    blocks: int
    block: int
    step: int
    heads: int
    all_heads: int
    head_dim: int
    ids: int
    threshold: int
    kept: float


def obstacle(length: int, heads: int, head_dim: int) -> str | None:
    """Why the kernels cannot serve rows of `length` tokens with `heads` heads of `head_dim` on a device, or None."""
    if why_not := triton_calls.obstacle():
        return why_not
    if head_dim < 16 or head_dim > 128 or head_dim & (head_dim - 1):
        return f'a head of {head_dim} is not 16, 32, 64 or 128 wide'
    return None


def attend(
    qkv: jax.Array, bias: jax.Array, ids: Sequence[jax.Array], seeds: jax.Array, settings: Settings
) -> jax.Array:
    """See `attention_kernels.attend`."""
    ids = [each.astype(jnp.int32) for each in ids]
    qkv = jnp.moveaxis(qkv, 0, 2)  # the order in which one matrix product makes it: XLA moves nothing
    rows, heads = mesh.axes('batch'), mesh.axes('heads')

    def on_device(seeds, ids, qkv, bias):
        first_head = jnp.uint32(lax.axis_index(heads) * (qkv.shape[3] // settings.head_dim) if heads else 0)
        scalars = jnp.stack([*seeds, triton_calls.first_row(len(qkv)), first_head])
        return _attend(scalars, ids, qkv, bias, settings)

    if rows or heads:
        on_device = jax.shard_map(
            on_device,
            in_specs=(
                PartitionSpec(),
                PartitionSpec(rows),
                PartitionSpec(rows, None, None, heads),
                PartitionSpec(None, heads),
            ),
            out_specs=PartitionSpec(rows, None, heads),
            check_vma=False,
        )
    return on_device(seeds, ids, qkv, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(scalars, ids, qkv, bias, settings):
    """On one device. scalars: uint32 [4], two seeds and the first row and head here. qkv: [B, T, 3, H * D]. bias:
    float32 [3, H * D]."""
    return _forward(scalars, ids, qkv, bias, settings)[0]


def _forward(scalars, ids, qkv, bias, settings):
    rows, length, _, width = qkv.shape
    columns = bias.astype(qkv.dtype).reshape(1, -1)
    qkv = (qkv.reshape(-1, columns.size) + columns).reshape(qkv.shape)  # a matrix: XLA's product adds the bias
    sizes = _sizes(qkv, ids, settings, 'forward')
    shapes = (
        jax.ShapeDtypeStruct((rows, length, width), qkv.dtype),
        jax.ShapeDtypeStruct((rows, sizes.heads, length), jnp.float32),
    )
    stacked = jnp.stack(ids) if ids else scalars  # not read
    mixed, log_sums = _call(_forward_kernel, sizes, shapes, scalars, stacked, qkv)
    return mixed, (scalars, ids, stacked, qkv, mixed, log_sums)


def _backward(settings, saved, gradient):
    scalars, ids, stacked, qkv, mixed, log_sums = saved
    rows, _, _, width = qkv.shape
    result = jax.ShapeDtypeStruct(qkv.shape, qkv.dtype)
    to_bias = lambda sizes, parts: jax.ShapeDtypeStruct((rows * sizes.blocks, parts, width), jnp.float32)
    sizes = _sizes(qkv, ids, settings, 'to_queries')
    arrays = scalars, stacked, qkv, mixed, gradient, log_sums
    shapes = result, jax.ShapeDtypeStruct(log_sums.shape, jnp.float32), to_bias(sizes, 1)
    result_, slopes, first = _call(_to_queries_kernel, sizes, shapes, *arrays)
    sizes = _sizes(qkv, ids, settings, 'to_keys')
    arrays = scalars, stacked, qkv, gradient, log_sums, slopes, result_
    to_qkv, rest = _call(_to_keys_kernel, sizes, (result, to_bias(sizes, 2)), *arrays, aliases={6: 0})
    to_bias = jnp.concatenate([jnp.sum(first, axis=0), jnp.sum(rest, axis=0)])
    nothing = lambda x: np.zeros(x.shape, jax.dtypes.float0)
    return nothing(scalars), [nothing(x) for x in ids], to_qkv, to_bias


_attend.defvjp(_forward, _backward)


def _sizes(qkv, ids, settings, kernel):
    rows, length, _, width = qkv.shape
    block, step = _BLOCKS[kernel] if qkv.dtype.itemsize == 2 else (32, 16)
    return Sizes(
        rows=rows,
        length=length,
        blocks=-(-length // block),
        block=block,
        step=step,
        heads=width // settings.head_dim,
        all_heads=settings.heads,
        head_dim=settings.head_dim,
        ids=len(ids),
        threshold=threshold(settings.rate),
        kept=1 - settings.rate,
    )


def _call(kernel, sizes, shapes, *arrays, aliases=None):
    grid = sizes.rows * sizes.heads * sizes.blocks
    return triton_calls.call(kernel, *arrays, shapes=shapes, grid=grid, sizes=sizes, tuning=_TUNING, aliases=aliases)


@jit
def _keep(scalars, query, key, sizes: constexpr):
    """`dropout.keep` of places in [B, H, Q, K] on all devices. query, key: numbers in the row; they broadcast."""
    _, row, head = _place(sizes)
    head = (tl.load(scalars + 2) + row.to(tl.uint32)) * sizes.all_heads + tl.load(scalars + 3) + head.to(tl.uint32)
    index = (head * sizes.length + query.to(tl.uint32)) * sizes.length + key.to(tl.uint32)
    return kept(index, tl.load(scalars), tl.load(scalars + 1), sizes.threshold)


@jit
def _seen(ids, query, key, sizes: constexpr):
    """Whether queries see keys. query, key: numbers in the row; they broadcast."""
    seen = key <= query
    if sizes.ids:
        _, row, _ = _place(sizes)
        segments, contexts = ids + row * sizes.length, ids + (sizes.rows + row) * sizes.length
        of_key = tl.load(segments + key, mask=key < sizes.length, other=0)
        among = of_key == tl.load(segments + query, mask=query < sizes.length, other=0)
        if sizes.ids == 2:
            among |= of_key == tl.load(contexts + query, mask=query < sizes.length, other=0)
        seen &= among
    return seen


@jit
def _place(sizes: constexpr):
    """This program's block, row (64 bits) and head."""
    program = tl.program_id(0)
    head = program // sizes.blocks
    return program % sizes.blocks, (head // sizes.heads).to(tl.int64), head % sizes.heads


@jit
def _places(tokens, part: constexpr, parts: constexpr, sizes: constexpr):
    """[tokens, D], where this program's head is in an array [rows, length, parts, heads, D]."""
    _, row, head = _place(sizes)
    first = (row * (sizes.length * parts) + part) * (sizes.heads * sizes.head_dim) + head * sizes.head_dim
    return first + tokens[:, None] * (parts * sizes.heads * sizes.head_dim) + tl.arange(0, sizes.head_dim)[None, :]


@jit
def _load(array, tokens, part: constexpr, parts: constexpr, sizes: constexpr):
    places = _places(tokens, part, parts, sizes)
    return tl.load(array + places, mask=tokens[:, None] < sizes.length, other=0.0)


@jit
def _store(array, tokens, values, part: constexpr, parts: constexpr, sizes: constexpr):
    places = _places(tokens, part, parts, sizes)
    tl.store(array + places, values.to(array.dtype.element_ty), mask=tokens[:, None] < sizes.length)


@jit
def _scores(rows, columns, sizes: constexpr):
    """Scores to the base 2, because exp2 is one instruction."""
    return tl.dot(rows, columns.T, input_precision='ieee') * (sizes.head_dim**-0.5 * _LOG2_E)


@jit
def _per_query(array, query, sizes: constexpr):
    """The queries' values of an array [rows, heads, length]; 0 after the row's end."""
    _, row, head = _place(sizes)
    return tl.load(array + (row * sizes.heads + head) * sizes.length + query, mask=query < sizes.length, other=0.0)


@jit
def _store_per_query(array, query, values, sizes: constexpr):
    _, row, head = _place(sizes)
    tl.store(array + (row * sizes.heads + head) * sizes.length + query, values, mask=query < sizes.length)


@jit
def _store_sums(array, tokens, values, part: constexpr, parts: constexpr, sizes: constexpr):
    """The sum of `values` [block, D] over this program's tokens, in an array [rows * blocks, parts, heads, D]."""
    block, row, head = _place(sizes)
    first = (((row * sizes.blocks + block) * parts + part) * sizes.heads + head) * sizes.head_dim
    total = tl.sum(tl.where(tokens[:, None] < sizes.length, values, 0.0), 0)
    tl.store(array + first + tl.arange(0, sizes.head_dim), total)


@jit
def _forward_kernel(scalars, ids, qkv, mixed, log_sums, sizes: constexpr):
    block, _, _ = _place(sizes)
    query = block * sizes.block + tl.arange(0, sizes.block)
    queries = _load(qkv, query, 0, 3, sizes)
    largest = tl.full([sizes.block], _MASKED, tl.float32)
    total = tl.full([sizes.block], 0.0, tl.float32)
    sums = tl.full([sizes.block, sizes.head_dim], 0.0, tl.float32)
    for diagonal in tl.static_range(2):  # keys of earlier blocks, then of this one
        for start in range(block * sizes.block * diagonal, (block + diagonal) * sizes.block, sizes.step):
            key = start + tl.arange(0, sizes.step)
            keys, values = _load(qkv, key, 1, 3, sizes), _load(qkv, key, 2, 3, sizes)
            scores = _scores(queries, keys, sizes)
            if diagonal or sizes.ids:
                # What a query takes up before it sees a key is multiplied with 0 when it sees the first.
                scores = tl.where(_seen(ids, query[:, None], key[None, :], sizes), scores, _MASKED)
            now = tl.maximum(largest, tl.max(scores, 1))
            powers, shrink = tl.exp2(scores - now[:, None]), tl.exp2(largest - now)
            largest, total = now, total * shrink + tl.sum(powers, 1)
            if sizes.threshold:
                powers = tl.where(_keep(scalars, query[:, None], key[None, :], sizes), powers, 0.0)
            sums = tl.dot(powers.to(values.dtype), values, sums * shrink[:, None], input_precision='ieee')
    _store(mixed, query, sums / (total * sizes.kept)[:, None], 0, 1, sizes)
    _store_per_query(log_sums, query, largest / _LOG2_E + tl.log(total), sizes)


@jit
def _to_queries_kernel(scalars, ids, qkv, mixed, gradient, log_sums, result, slopes, to_bias, sizes: constexpr):
    """The gradients of a block of queries, and the mean slope of each query's probabilities."""
    block, _, _ = _place(sizes)
    query = block * sizes.block + tl.arange(0, sizes.block)
    queries, gradients = _load(qkv, query, 0, 3, sizes), _load(gradient, query, 0, 1, sizes)
    slope = tl.sum(_load(mixed, query, 0, 1, sizes).to(tl.float32) * gradients.to(tl.float32), 1)
    _store_per_query(slopes, query, slope, sizes)
    log_sum = _per_query(log_sums, query, sizes) * _LOG2_E
    to_queries = tl.full([sizes.block, sizes.head_dim], 0.0, tl.float32)
    for diagonal in tl.static_range(2):  # keys of earlier blocks, then of this one
        for start in range(block * sizes.block * diagonal, (block + diagonal) * sizes.block, sizes.step):
            key = start + tl.arange(0, sizes.step)
            keys, values = _load(qkv, key, 1, 3, sizes), _load(qkv, key, 2, 3, sizes)
            powers = tl.exp2(_scores(queries, keys, sizes) - log_sum[:, None])
            if diagonal or sizes.ids:
                powers = tl.where(_seen(ids, query[:, None], key[None, :], sizes), powers, 0.0)
            to_dropped = tl.dot(gradients, values.T, input_precision='ieee')
            if sizes.threshold:
                keep = _keep(scalars, query[:, None], key[None, :], sizes)
                to_dropped = tl.where(keep, to_dropped, 0.0) * (1 / sizes.kept)
            to_scores = powers * (to_dropped - slope[:, None])
            to_queries = tl.dot(to_scores.to(keys.dtype), keys, to_queries, input_precision='ieee')
    to_queries *= sizes.head_dim**-0.5
    _store(result, query, to_queries, 0, 3, sizes)
    _store_sums(to_bias, query, to_queries, 0, 1, sizes)


@jit
def _to_keys_kernel(scalars, ids, qkv, gradient, log_sums, slopes, other, result, to_bias, sizes: constexpr):
    """The gradients of a block of keys and values. other: the result so far, written in place."""
    block, _, _ = _place(sizes)
    key = block * sizes.block + tl.arange(0, sizes.block)
    keys, values = _load(qkv, key, 1, 3, sizes), _load(qkv, key, 2, 3, sizes)
    to_keys = tl.full([sizes.block, sizes.head_dim], 0.0, tl.float32)
    to_values = tl.full([sizes.block, sizes.head_dim], 0.0, tl.float32)
    for later in tl.static_range(2):  # queries of this block, then of later ones
        stop = sizes.blocks if later else block + 1
        for start in range((block + later) * sizes.block, stop * sizes.block, sizes.step):
            # After the row's end queries, gradients, logarithms and slopes are 0: nothing comes of them.
            query = start + tl.arange(0, sizes.step)
            queries, gradients = _load(qkv, query, 0, 3, sizes), _load(gradient, query, 0, 1, sizes)
            log_sum, slope = _per_query(log_sums, query, sizes) * _LOG2_E, _per_query(slopes, query, sizes)
            powers = tl.exp2(_scores(keys, queries, sizes) - log_sum[None, :])
            if not later or sizes.ids:
                powers = tl.where(_seen(ids, query[None, :], key[:, None], sizes), powers, 0.0)
            to_dropped = tl.dot(values, gradients.T, input_precision='ieee')
            dropped = powers
            if sizes.threshold:
                keep = _keep(scalars, query[None, :], key[:, None], sizes)
                dropped = tl.where(keep, powers, 0.0)
                to_dropped = tl.where(keep, to_dropped, 0.0) * (1 / sizes.kept)
            to_scores = powers * (to_dropped - slope[None, :])
            to_values = tl.dot(dropped.to(values.dtype), gradients, to_values, input_precision='ieee')
            to_keys = tl.dot(to_scores.to(keys.dtype), queries, to_keys, input_precision='ieee')
    to_keys, to_values = to_keys * sizes.head_dim**-0.5, to_values / sizes.kept
    _store(result, key, to_keys, 1, 3, sizes)
    _store(result, key, to_values, 2, 3, sizes)
    _store_sums(to_bias, key, to_keys, 0, 2, sizes)
    _store_sums(to_bias, key, to_values, 1, 2, sizes)
