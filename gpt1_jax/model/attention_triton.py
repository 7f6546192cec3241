"""Causal self-attention with dropout as one kernel each way for NVIDIA GPUs; `attend` in attention.py is its reference.

Scores never leave the chip. A program has one block of one head's queries (or keys), and goes through the blocks of
keys that these see (or queries that see these). The forward pass saves the logarithm of each softmax's denominator; the
backward pass computes the probabilities and the dropout's mask again. Queries, keys and values are read, and their
gradients written, in the order in which one matrix product makes them: [tokens, 3 * width].

Written in Triton and called through jax-triton, because JAX gives up its own way to Triton. Both are optional.
"""

import functools
import inspect
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from gpt1_jax.model import mesh
from gpt1_jax.model.attention_blocks import MASKED
from gpt1_jax.model.attention_kernels import Settings

try:
    import jax_triton
    import triton.language as tl
    from triton import jit
    from triton.language import constexpr
except ImportError:  # then `obstacle` says so, and no kernel is called
    jax_triton, jit, constexpr = None, lambda kernel: kernel, float

_LOG2_E = constexpr(math.log2(math.e))
_MASKED = constexpr(MASKED)

# jax-triton 0.4 renamed an argument. It may meet a Triton that writes newer PTX than the assembler of JAX's CUDA reads.
_NEW = jax_triton and 'out_type' in inspect.signature(jax_triton.triton_call).parameters
_SHAPES = 'out_type' if _NEW else 'out_shape'
_OPTIONS = {'backend_options': {'ptx_version': 83}} if _NEW else {}


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
    if jax_triton is None:
        return 'there is none for a GPU without pip install -e ".[triton]"'
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
        columns = bias.astype(qkv.dtype).reshape(1, -1)
        qkv = (qkv.reshape(-1, columns.size) + columns).reshape(qkv.shape)  # a matrix: XLA's product adds the bias
        first_row = lax.axis_index(rows) * qkv.shape[0] if rows else 0
        first_head = lax.axis_index(heads) * (qkv.shape[3] // settings.head_dim) if heads else 0
        return _attend(jnp.stack([*seeds, jnp.uint32(first_row), jnp.uint32(first_head)]), ids, qkv, settings)

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


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(scalars, ids, qkv, settings):
    """On one device. scalars: uint32 [4], two seeds and the first row and head here. qkv: [B, T, 3, H * D]."""
    return _forward(scalars, ids, qkv, settings)[0]


def _forward(scalars, ids, qkv, settings):
    rows, length, _, width = qkv.shape
    shapes = (
        jax.ShapeDtypeStruct((rows, length, width), qkv.dtype),
        jax.ShapeDtypeStruct((rows, width // settings.head_dim, length), jnp.float32),
    )
    mixed, log_sums = _call(_forward_kernel, scalars, ids, (qkv,), shapes, settings)
    return mixed, (scalars, ids, qkv, mixed, log_sums)


def _backward(settings, saved, gradient):
    scalars, ids, qkv, mixed, log_sums = saved
    per_head = lambda x: x.reshape(*x.shape[:2], -1, settings.head_dim).astype(jnp.float32)
    slopes = jnp.sum(per_head(mixed) * per_head(gradient), axis=-1).swapaxes(1, 2)
    arrays = qkv, gradient, jnp.stack([log_sums, slopes], axis=2)
    result = _call(_backward_kernel, scalars, ids, arrays, jax.ShapeDtypeStruct(qkv.shape, qkv.dtype), settings)
    nothing = lambda x: np.zeros(x.shape, jax.dtypes.float0)
    return nothing(scalars), [nothing(x) for x in ids], result


_attend.defvjp(_forward, _backward)


def _call(kernel, scalars, ids, arrays, shapes, settings):
    rows, length, _, width = arrays[0].shape
    block = 64 if arrays[0].dtype.itemsize == 2 else 32  # what the registers hold
    sizes = Sizes(
        rows=rows,
        length=length,
        blocks=-(-length // block),
        block=block,
        step=block // 2,
        heads=width // settings.head_dim,
        all_heads=settings.heads,
        head_dim=settings.head_dim,
        ids=len(ids),
        threshold=min(round(settings.rate * 2**32), 2**32 - 1),
        kept=1 - settings.rate,
    )
    return jax_triton.triton_call(
        scalars,
        jnp.stack(ids) if ids else scalars,  # not read
        *arrays,
        kernel=kernel,
        grid=rows * sizes.heads * sizes.blocks,
        sizes=sizes,
        num_warps=4,
        num_stages=2,
        **{_SHAPES: shapes},
        **_OPTIONS,
    )


@jit
def _keep(scalars, query, key, sizes: constexpr):
    """`dropout.keep` of places in [B, H, Q, K] on all devices. query, key: numbers in the row; they broadcast."""
    first, second = tl.load(scalars), tl.load(scalars + 1)
    _, row, head = _place(sizes)
    head = (tl.load(scalars + 2) + row.to(tl.uint32)) * sizes.all_heads + tl.load(scalars + 3) + head.to(tl.uint32)
    x = (head * sizes.length + query.to(tl.uint32)) * sizes.length + key.to(tl.uint32)
    x = x ^ first
    x = (x ^ (x >> 17)) * 0xED5AD4BB
    x = x ^ second
    x = (x ^ (x >> 11)) * 0xAC4C1B51
    x = x ^ first
    x = (x ^ (x >> 15)) * 0x31848BAB
    return x >= sizes.threshold


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
    """To the base 2: exp2 is one instruction."""
    return tl.dot(rows, columns.T, input_precision='ieee') * (sizes.head_dim**-0.5 * _LOG2_E)


@jit
def _forward_kernel(scalars, ids, qkv, mixed, log_sums, sizes: constexpr):
    block, row, head = _place(sizes)
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
    log_sums += (row * sizes.heads + head) * sizes.length + query
    tl.store(log_sums, largest / _LOG2_E + tl.log(total), mask=query < sizes.length)


@jit
def _backward_kernel(scalars, ids, qkv, gradient, statistics, result, sizes: constexpr):
    """One block's keys and values, then its queries: all programs have equally much to do."""
    _to_keys(scalars, ids, qkv, gradient, statistics, result, sizes)
    _to_queries(scalars, ids, qkv, gradient, statistics, result, sizes)


@jit
def _to_keys(scalars, ids, qkv, gradient, statistics, result, sizes: constexpr):
    block, _, _ = _place(sizes)
    key = block * sizes.block + tl.arange(0, sizes.block)
    keys, values = _load(qkv, key, 1, 3, sizes), _load(qkv, key, 2, 3, sizes)
    to_keys = tl.full([sizes.block, sizes.head_dim], 0.0, tl.float32)
    to_values = tl.full([sizes.block, sizes.head_dim], 0.0, tl.float32)
    for later in tl.static_range(2):  # queries of this block, then of later ones
        stop = sizes.blocks if later else block + 1
        for start in range((block + later) * sizes.block, stop * sizes.block, sizes.step):
            query = start + tl.arange(0, sizes.step)
            queries, gradients = _load(qkv, query, 0, 3, sizes), _load(gradient, query, 0, 1, sizes)
            log_sum, slope = _statistics(statistics, query, sizes)
            scores = _scores(keys, queries, sizes)
            powers = tl.exp2(scores - log_sum[None, :])
            if not later or sizes.ids:
                powers = tl.where(_seen(ids, query[None, :], key[:, None], sizes), powers, 0.0)
            to_dropped = tl.dot(values, gradients.T, input_precision='ieee')
            dropped = powers
            if sizes.threshold:
                kept = _keep(scalars, query[None, :], key[:, None], sizes)
                dropped = tl.where(kept, powers, 0.0)
                to_dropped = tl.where(kept, to_dropped, 0.0) * (1 / sizes.kept)
            to_scores = powers * (to_dropped - slope[None, :])
            to_values = tl.dot(dropped.to(values.dtype), gradients, to_values, input_precision='ieee')
            to_keys = tl.dot(to_scores.to(keys.dtype), queries, to_keys, input_precision='ieee')
    _store(result, key, to_keys * sizes.head_dim**-0.5, 1, 3, sizes)
    _store(result, key, to_values / sizes.kept, 2, 3, sizes)


@jit
def _to_queries(scalars, ids, qkv, gradient, statistics, result, sizes: constexpr):
    block, _, _ = _place(sizes)
    query = block * sizes.block + tl.arange(0, sizes.block)
    queries, gradients = _load(qkv, query, 0, 3, sizes), _load(gradient, query, 0, 1, sizes)
    log_sum, slope = _statistics(statistics, query, sizes)
    to_queries = tl.full([sizes.block, sizes.head_dim], 0.0, tl.float32)
    for diagonal in tl.static_range(2):  # keys of earlier blocks, then of this one
        for start in range(block * sizes.block * diagonal, (block + diagonal) * sizes.block, sizes.step):
            key = start + tl.arange(0, sizes.step)
            keys, values = _load(qkv, key, 1, 3, sizes), _load(qkv, key, 2, 3, sizes)
            scores = _scores(queries, keys, sizes)
            powers = tl.exp2(scores - log_sum[:, None])
            if diagonal or sizes.ids:
                powers = tl.where(_seen(ids, query[:, None], key[None, :], sizes), powers, 0.0)
            to_dropped = tl.dot(gradients, values.T, input_precision='ieee')
            if sizes.threshold:
                kept = _keep(scalars, query[:, None], key[None, :], sizes)
                to_dropped = tl.where(kept, to_dropped, 0.0) * (1 / sizes.kept)
            to_scores = powers * (to_dropped - slope[:, None])
            to_queries = tl.dot(to_scores.to(keys.dtype), keys, to_queries, input_precision='ieee')
    _store(result, query, to_queries * sizes.head_dim**-0.5, 0, 3, sizes)


@jit
def _statistics(statistics, query, sizes: constexpr):
    """Of each query: the logarithm (base 2) of the softmax's denominator, and the mean slope of its probabilities.
    After the row's end both are 0, as queries and gradients are: nothing comes of them."""
    _, row, head = _place(sizes)
    statistics += (row * sizes.heads + head) * (2 * sizes.length) + query
    log_sum = tl.load(statistics, mask=query < sizes.length, other=0.0)
    return log_sum * _LOG2_E, tl.load(statistics + sizes.length, mask=query < sizes.length, other=0.0)
