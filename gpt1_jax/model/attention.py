"""Multi-head causal self-attention of the release, with segments and a key-value cache."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import logging

from gpt1_jax.errors import UserError
from gpt1_jax.model import attention_blocks, attention_kernels, attention_triton, mesh
from gpt1_jax.model.attention_blocks import MASKED
from gpt1_jax.model.dropout import dropout, seeds
from gpt1_jax.model.products import affine
from gpt1_jax.model.weights import for_use

# On a CPU a kernel is interpreted, slowly: for tests.
KERNELS = {'tpu': attention_kernels, 'cpu': attention_kernels, 'gpu': attention_triton}


class Visible(NamedTuple):
    """What a query may see: keys of its own segment and of its context, not later than itself.

    Attributes:
      query_order: int [B, Q], index in the row.
      key_order: int [B, K] or [1, K], likewise.
      segment_ids: int [B, Q = K]; None if each row is one sequence.
      context_ids: int [B, Q], another segment that a query sees; None if there is none.
    """

    query_order: jax.Array
    key_order: jax.Array
    segment_ids: jax.Array | None = None
    context_ids: jax.Array | None = None

    def mask(self) -> jax.Array:
        """Boolean [B, 1, Q, K], for `attend`; a kernel makes its own, block by block."""
        mask = self.query_order[:, None, :, None] >= self.key_order[:, None, None, :]
        if self.segment_ids is not None:
            keys = self.segment_ids[:, None, None, :]
            seen = self.segment_ids[:, None, :, None] == keys
            if self.context_ids is not None:
                seen |= self.context_ids[:, None, :, None] == keys
            mask &= seen
        return mask


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visible: Visible,
    rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Scaled dot-product attention with dropout on the probabilities; softmax in float32.

    Args:
      query: [B, Q, H, D].
      key: [B, K, H, D].
      value: [B, K, H, D].
      dropout_key: None for no dropout.

    Returns:
      [B, Q, H, D] in the dtype of `value`.
    """
    scores = jnp.einsum('bqhd,bkhd->bhqk', query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    probabilities = jax.nn.softmax(jnp.where(visible.mask(), scores, MASKED), axis=-1)
    probabilities = dropout(probabilities, dropout_key, rate).astype(value.dtype)
    return jnp.einsum('bhqk,bkhd->bqhd', probabilities, value)


def attend_to_cache(query: jax.Array, key: jax.Array, value: jax.Array, visible: Visible) -> jax.Array:
    """`attend` without dropout over a cache: query [B, Q, H, D]; key and value [B, H, K, D], the order in which the
    products read them, so that no step transposes the cache."""
    scores = jnp.einsum('bhqd,bhkd->bhqk', query.swapaxes(1, 2), key, preferred_element_type=jnp.float32)
    probabilities = jax.nn.softmax(jnp.where(visible.mask(), scores * query.shape[-1] ** -0.5, MASKED), axis=-1)
    return jnp.einsum('bhqk,bhkd->bhqd', probabilities.astype(value.dtype), value).swapaxes(1, 2)


def write_to_cache(cache: jax.Array, new: jax.Array, lengths: jax.Array) -> jax.Array:
    """`cache` [B, H, K, D] with `new` [B, T, H, D] written into each row b from index lengths[b] on."""
    write = lambda row, update, start: jax.lax.dynamic_update_slice(row, update, (0, start, 0))
    cache = jax.vmap(write)(cache, new.swapaxes(1, 2).astype(cache.dtype), lengths)
    return nn.with_logical_constraint(cache, ('batch', 'heads', None, None))


def obstacle(platform: str, rows: int, length: int, heads: int, head_dim: int) -> str | None:
    """Why no kernel can compute attention of `rows` rows of `length` tokens on the mesh in use; None if one can."""
    if platform not in KERNELS:
        return f'there is none for a {platform}'
    row_shards, head_shards = mesh.shards('batch'), mesh.shards('heads')
    if rows % row_shards or heads % head_shards:
        return f'{rows} rows of {heads} heads do not divide among {row_shards} x {head_shards} devices'
    return KERNELS[platform].obstacle(length, heads // head_shards, head_dim)


def attend_in_kernel(
    qkv: jax.Array,
    bias: jax.Array,
    visible: Visible,
    heads: int,
    rate: float,
    dropout_key: jax.Array | None,
    platform: str,
) -> jax.Array:
    """`attend` by the kernel of the platform, for queries and keys of the same tokens.

    Args:
      qkv: [3, B, T, H * D], without the bias.
      bias: [3, H * D].
      heads: H.
      dropout_key: None for no dropout.

    Returns:
      [B, T, H * D] in the dtype of `qkv`.
    """
    rate = 0.0 if dropout_key is None else rate
    words = seeds(dropout_key) if rate else jnp.zeros(2, jnp.uint32)
    ids = [each for each in (visible.segment_ids, visible.context_ids) if each is not None]
    settings = attention_kernels.Settings(heads, qkv.shape[-1] // heads, rate, interpret=platform == 'cpu')
    return KERNELS[platform].attend(qkv, bias, ids, words, settings)


class SelfAttention(nn.Module):
    """Attention sub-layer: joint q|k|v projection, attention, output projection (the release's `attn`).

    leave_bias: return (output, bias) in place of their sum, for a kernel that adds it; not with a cache.
    """

    heads: int
    dropout_rate: float
    init_std: float
    dtype: jnp.dtype
    attention: str
    platform: str
    leave_bias: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, visible: Visible, dropout_key: jax.Array | None = None, cache: tuple | None = None
    ) -> tuple[jax.Array | tuple, tuple | None]:
        """`x` [B, Q, width] -> ([B, Q, width], cache). dropout_key: None for no dropout.

        `cache` is (key, value, each [B, H, K, D], lengths [B]): row b's new keys and values are written from
        lengths[b] on, and `visible` is over the whole cache.
        """
        width = x.shape[-1]
        head_dim = width // self.heads
        normal, zeros = nn.initializers.normal(self.init_std), nn.initializers.zeros
        # [width, 3, H, D] is the release's c_attn [width, 3 * width] with its columns q|k|v named.
        qkv_kernel = self.param(
            'qkv_kernel',
            nn.with_logical_partitioning(normal, ('embed', None, 'heads', None)),
            (width, 3, self.heads, head_dim),
        )
        qkv_bias = self.param(
            'qkv_bias', nn.with_logical_partitioning(zeros, (None, 'heads', None)), (3, self.heads, head_dim)
        )
        out_kernel = self.param(
            'out_kernel', nn.with_logical_partitioning(normal, ('heads', None, 'embed')), (self.heads, head_dim, width)
        )
        out_bias = self.param('out_bias', nn.with_logical_partitioning(zeros, ('norm',)), (width,))
        # Heads are joined before the kernels move: a TPU pads an axis of 64 to 128.
        qkv_kernel = for_use(qkv_kernel.reshape(width, 3, width), ('embed', None, 'heads'), self.dtype)
        out_kernel = for_use(out_kernel.reshape(width, width), ('heads', 'embed'), self.dtype)

        if cache is not None:
            # With few tokens the time goes into reading the kernels, so they are read in their own layout. The order of
            # `qkv` below, and a contraction over two axes, make XLA transpose them on a CPU.
            split = qkv_kernel.reshape(width, 3, self.heads, head_dim)
            qkv = jnp.einsum('bqw,wchd->bqchd', x, split) + (qkv_bias.astype(self.dtype)[None, None])
            query, key, value = (
                nn.with_logical_constraint(qkv[:, :, i], ('batch', None, 'heads', None)) for i in range(3)
            )
            keys, values, lengths = cache
            cache = write_to_cache(keys, key, lengths), write_to_cache(values, value, lengths), lengths
            mixed = attend_to_cache(query, *cache[:2], visible).reshape(x.shape)
            return mixed @ out_kernel + out_bias.astype(self.dtype)[None, None], cache
        if self._has_kernel(*x.shape[:2], head_dim):
            qkv = jnp.einsum('bqw,wcz->cbqz', x, qkv_kernel)
            qkv = nn.with_logical_constraint(qkv, (None, 'batch', None, 'heads'))
            bias, rate = qkv_bias.reshape(3, width), self.dropout_rate
            mixed = attend_in_kernel(qkv, bias, visible, self.heads, rate, dropout_key, self.platform)
            if self.leave_bias:
                return (mixed @ out_kernel, out_bias), None
            return mixed @ out_kernel + out_bias.astype(self.dtype)[None, None], None
        projections = (affine(x, qkv_kernel[:, i], qkv_bias[i].reshape(width)) for i in range(3))
        query, key, value = (
            nn.with_logical_constraint(y.reshape(*x.shape[:2], self.heads, head_dim), ('batch', None, 'heads', None))
            for y in projections
        )
        mixed = attention_blocks.attend(query, key, value, visible.mask(), self.dropout_rate, dropout_key)
        mixed = mixed.reshape(x.shape)
        return (mixed @ out_kernel, out_bias) if self.leave_bias else affine(mixed, out_kernel, out_bias), None

    def _has_kernel(self, rows, length, head_dim):
        if self.attention == 'xla' or self.is_initializing():  # rows of an initialisation need not fit the mesh
            return False
        why_not = obstacle(self.platform, rows, length, self.heads, head_dim)
        if why_not and self.attention == 'kernel':
            raise UserError(f'model.attention: The kernel cannot compute it ({why_not}). Use auto or xla.')
        if why_not:
            logging.log_first_n(logging.WARNING, 'attention: xla, not the kernel (%s)', 1, why_not)
        return not why_not
