"""LayerNorm(x + dropout(branch + bias)) as one kernel each way for NVIDIA GPUs; `Block` in transformer.py is its
reference.

XLA goes through the states several times more. The forward pass saves the sum before the norm, and of each token the
mean and the inverse standard deviation; the backward pass computes the dropout's mask again. Gradients of what all
tokens share are summed by each program over its tokens, and then by XLA: always in the same order.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from gpt1_jax.model import mesh, triton_calls
from gpt1_jax.model.dropout import seeds, threshold
from gpt1_jax.model.triton_calls import constexpr, jit, kept, tl

_WIDEST = 8192  # the registers hold no wider row
_PROGRAMS = 1024  # of a backward pass, at most


class Sizes(NamedTuple):
    """What is fixed when a kernel is compiled.

    Attributes:
      tokens: on this device.
      width: of a token.
      padded: the width, rounded up to a power of 2.
      block: tokens that a program reads at a time.
      rounds: of a program in the backward pass.
      threshold: hashes below it are dropped; 0 for no dropout.
      kept: probability that an element is kept.
      epsilon: added to the variance.
      uses: of the result, each with a gradient of its own: 1 or 2.
    """

    tokens: int
    width: int
    padded: int
    block: int
    rounds: int
    threshold: int
    kept: float
    epsilon: float
    uses: int


class Settings(NamedTuple):
    """rate: of the dropout. epsilon: added to the variance. uses: how often the result is returned, 1 or 2."""

    rate: float
    epsilon: float
    uses: int


def obstacle(rows: int, width: int) -> str | None:
    """Why the kernels cannot serve rows of tokens of this width on the mesh in use, or None."""
    if width > _WIDEST:
        return f'a width of {width} is more than {_WIDEST}'
    if rows % mesh.shards('batch'):
        return f'{rows} rows do not divide among {mesh.shards("batch")} devices'
    return triton_calls.obstacle()


def add_and_norm(
    x: jax.Array,
    branch: jax.Array,
    branch_bias: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    dropout_key: jax.Array | None,
    settings: Settings,
) -> tuple[jax.Array, ...]:
    """scale * normalised(x + dropout(branch + branch_bias)) + bias.

    Args:
      x, branch: [B, T, width], of the same dtype.
      branch_bias, scale, bias: float32 [width].
      dropout_key: of the dropout of an array [B, T, width] (`dropout.dropout`); None if its rate is 0.

    Returns:
      [B, T, width] in the dtype of `x`, `settings.uses` times; the gradients of each are added as they are read.
    """
    words = seeds(dropout_key) if settings.rate else jnp.zeros(2, jnp.uint32)
    rows = mesh.axes('batch')

    def on_device(words, x, *rest):
        first = triton_calls.first_row(len(x)) * jnp.uint32(x.shape[1] * x.shape[2])
        return _norm(jnp.stack([*words, first]), x, *rest, settings)

    if rows:
        each, all_ = PartitionSpec(rows), PartitionSpec()
        specs = all_, each, each, all_, all_, all_
        on_device = jax.shard_map(on_device, in_specs=specs, out_specs=each, check_vma=False)
    return on_device(words, x, branch, branch_bias, scale, bias)


class Norm(nn.Module):
    """`add_and_norm` with the parameters of `nn.LayerNorm`."""

    settings: Settings

    @nn.compact
    def __call__(
        self, x: jax.Array, branch: jax.Array, branch_bias: jax.Array, dropout_key: jax.Array | None
    ) -> tuple[jax.Array, ...]:
        vector = lambda name, initial: self.param(name, nn.with_logical_partitioning(initial, ('norm',)), x.shape[-1:])
        scale, bias = vector('scale', nn.initializers.ones), vector('bias', nn.initializers.zeros)
        return add_and_norm(x, branch, branch_bias, scale, bias, dropout_key, self.settings)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _norm(scalars, x, branch, branch_bias, scale, bias, settings):
    """On one device. scalars: uint32 [3], two seeds and the place of the first element here in the whole array."""
    return _forward(scalars, x, branch, branch_bias, scale, bias, settings)[0]


def _forward(scalars, x, branch, branch_bias, scale, bias, settings):
    sizes, warps = _sizes(x, settings)
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    out, total, statistics = triton_calls.call(
        _forward_kernel,
        *(scalars, x, branch, branch_bias, scale, bias),
        shapes=(shape, shape, jax.ShapeDtypeStruct((2, sizes.tokens), jnp.float32)),
        grid=-(-sizes.tokens // sizes.block),
        sizes=sizes,
        tuning=triton_calls.Tuning(warps),
    )
    return (out,) * settings.uses, (scalars, scale, total, statistics)


def _backward(settings, saved, gradients):
    scalars, scale, total, statistics = saved
    sizes, warps = _sizes(total, settings)
    programs = -(-sizes.tokens // (sizes.block * sizes.rounds))
    shape = jax.ShapeDtypeStruct(total.shape, total.dtype)
    to_x, to_branch, sums = triton_calls.call(
        _backward_kernel,
        *(scalars, scale, total, statistics, gradients[0], gradients[-1]),
        shapes=(shape, shape, jax.ShapeDtypeStruct((programs, 3, sizes.width), jnp.float32)),
        grid=programs,
        sizes=sizes,
        tuning=triton_calls.Tuning(warps),
    )
    return np.zeros(scalars.shape, jax.dtypes.float0), to_x, to_branch, *jnp.sum(sums, axis=0)


_norm.defvjp(_forward, _backward)


def _sizes(x, settings):
    """(sizes, warps of a program)"""
    tokens, width = x.shape[0] * x.shape[1], x.shape[2]
    padded = max(128, 1 << (width - 1).bit_length())
    block = max(1, 2048 // padded)
    sizes = Sizes(
        tokens=tokens,
        width=width,
        padded=padded,
        block=block,
        rounds=-(-tokens // (block * _PROGRAMS)),
        threshold=threshold(settings.rate),
        kept=1 - settings.rate,
        epsilon=settings.epsilon,
        uses=settings.uses,
    )
    return sizes, min(16, max(4, padded // 512))


@jit
def _places(block, sizes: constexpr):
    """The tokens of a block: their numbers [tokens, 1]; the offsets of their elements in an array [tokens, width]; and
    which of these exist."""
    token = block * sizes.block + tl.arange(0, sizes.block)[:, None]
    column = tl.arange(0, sizes.padded)[None, :]
    there = (token < sizes.tokens) & (column < sizes.width)
    return token, token.to(tl.int64) * sizes.width + column, there


@jit
def _load(array, places, there):
    return tl.load(array + places, mask=there, other=0.0).to(tl.float32)


@jit
def _store(array, places, there, values):
    tl.store(array + places, values.to(array.dtype.element_ty), mask=there)


@jit
def _shared(vector, sizes: constexpr):
    """[1, padded], of what all tokens share."""
    column = tl.arange(0, sizes.padded)[None, :]
    return tl.load(vector + column, mask=column < sizes.width, other=0.0)


@jit
def _dropped(scalars, places, values, sizes: constexpr):
    if sizes.threshold:
        index = places.to(tl.uint32) + tl.load(scalars + 2)
        keep = kept(index, tl.load(scalars), tl.load(scalars + 1), sizes.threshold)
        values = tl.where(keep, values * (1 / sizes.kept), 0.0)
    return values


@jit
def _forward_kernel(scalars, x, branch, branch_bias, scale, bias, out, total, statistics, sizes: constexpr):
    token, places, there = _places(tl.program_id(0), sizes)
    added = _load(branch, places, there) + _shared(branch_bias, sizes)
    sums = _load(x, places, there) + _dropped(scalars, places, added, sizes)
    sums = sums.to(total.dtype.element_ty).to(tl.float32)  # as the backward pass will read them
    _store(total, places, there, sums)
    sums = tl.where(there, sums, 0.0)
    mean = tl.sum(sums, 1)[:, None] / sizes.width
    centred = tl.where(there, sums - mean, 0.0)
    inverse = 1 / tl.sqrt(tl.sum(centred * centred, 1)[:, None] / sizes.width + sizes.epsilon)
    _store(out, places, there, centred * inverse * _shared(scale, sizes) + _shared(bias, sizes))
    tl.store(statistics + token, mean, mask=token < sizes.tokens)
    tl.store(statistics + sizes.tokens + token, inverse, mask=token < sizes.tokens)


@jit
def _backward_kernel(scalars, scale, total, statistics, gradient, other, to_x, to_branch, sums, sizes: constexpr):
    to_branch_bias = tl.full([sizes.block, sizes.padded], 0.0, tl.float32)
    to_scale = tl.full([sizes.block, sizes.padded], 0.0, tl.float32)
    to_bias = tl.full([sizes.block, sizes.padded], 0.0, tl.float32)
    scales = _shared(scale, sizes)
    for i in range(sizes.rounds):
        token, places, there = _places(tl.program_id(0) * sizes.rounds + i, sizes)
        slope = _load(gradient, places, there)
        if sizes.uses == 2:
            slope += _load(other, places, there)
        mean = tl.load(statistics + token, mask=token < sizes.tokens, other=0.0)
        inverse = tl.load(statistics + sizes.tokens + token, mask=token < sizes.tokens, other=0.0)
        normal = tl.where(there, (_load(total, places, there) - mean) * inverse, 0.0)
        to_normal = slope * scales
        along = tl.sum(to_normal * normal, 1)[:, None] / sizes.width
        level = tl.sum(to_normal, 1)[:, None] / sizes.width
        to_sum = (to_normal - level - normal * along) * inverse
        _store(to_x, places, there, to_sum)
        dropped = _dropped(scalars, places, to_sum, sizes)
        _store(to_branch, places, there, dropped)
        to_branch_bias += tl.where(there, dropped, 0.0)
        to_scale += slope * normal
        to_bias += slope
    _store_sums(sums, to_branch_bias, 0, sizes)
    _store_sums(sums, to_scale, 1, sizes)
    _store_sums(sums, to_bias, 2, sizes)


@jit
def _store_sums(array, values, part: constexpr, sizes: constexpr):
    """The sum of `values` over this program's tokens, in an array [programs, 3, width]."""
    column = tl.arange(0, sizes.padded)
    array += (tl.program_id(0) * 3 + part) * sizes.width
    tl.store(array + column, tl.sum(values, 0), mask=column < sizes.width)
