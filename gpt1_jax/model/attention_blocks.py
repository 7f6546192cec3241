"""Causal attention in XLA's own operations, block by block; `attend` in attention.py is its reference.

Keys in blocks after the queries' are skipped. As in a kernel, the backward pass computes the probabilities again, from
the logarithm of each softmax's denominator. It has them as [keys, queries], so that no product of two blocks transposes
one of them, at which XLA is slow on a CPU.
"""

import functools

import jax
import jax.numpy as jnp

from gpt1_jax.model import dropout

MASKED = -1e9  # the release adds this to masked scores; after the softmax it is an exact zero
BLOCK = 128  # queries

_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, rate: float, dropout_key: jax.Array | None
) -> jax.Array:
    """What `attention.attend` computes, for queries and keys of the same tokens.

    Args:
      query: [B, T, H, D].
      key: likewise.
      value: likewise.
      mask: boolean [B, 1, T, T], what a query sees; no key that comes after it.
      dropout_key: None for no dropout.
    """
    heads_first = (x.swapaxes(1, 2) for x in (query, key, value))
    return _attend(*heads_first, mask, dropout_key, rate).swapaxes(1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(query, key, value, mask, dropout_key, rate):
    return _forward(query, key, value, mask, dropout_key, rate)[0]


def _forward(query, key, value, mask, dropout_key, rate):
    kept = _kept(query, dropout_key, rate)
    mixed, normalisers = [], []
    for start, end in _blocks(query):
        scores = _product('bhqd,bhkd->bhqk', query[:, :, start:end], key[:, :, :end]) * query.shape[-1] ** -0.5
        scores = jnp.where(mask[:, :, start:end, :end], scores, MASKED)
        most = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - most)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        normalisers.append((most + jnp.log(total))[..., 0])
        if kept is not None:
            weights = jnp.where(kept[:, :, start:end, :end], weights / (1.0 - rate), 0.0)
        block = _product('bhqk,bhkd->bhqd', weights.astype(value.dtype), value[:, :, :end])
        mixed.append((block / total).astype(value.dtype))
    mixed, normalisers = jnp.concatenate(mixed, axis=2), jnp.concatenate(normalisers, axis=2)
    return mixed, (query, key, value, mask, dropout_key, mixed, normalisers)


def _backward(rate, residuals, d_mixed):
    query, key, value, mask, dropout_key, mixed, normalisers = residuals
    scale, length, dtype = query.shape[-1] ** -0.5, query.shape[2], query.dtype
    weighted = jnp.sum(d_mixed.astype(jnp.float32) * mixed.astype(jnp.float32), axis=-1)  # probabilities . d_weights
    key_columns = key.swapaxes(2, 3)
    kept = _kept(query, dropout_key, rate)
    d_query, d_key, d_value = [], 0.0, 0.0
    for start, end in _blocks(query):
        queries, d_mixed_block = query[:, :, start:end], d_mixed[:, :, start:end]
        of_query = lambda x: x[:, :, None, start:end]
        scores = _product('bhkd,bhqd->bhkq', key[:, :, :end], queries) * scale
        scores = jnp.where(mask.swapaxes(2, 3)[:, :, :end, start:end], scores, MASKED)
        probabilities = jnp.exp(scores - of_query(normalisers))
        d_weights = _product('bhkd,bhqd->bhkq', value[:, :, :end], d_mixed_block)
        weights = probabilities
        if kept is not None:
            of_block = kept.swapaxes(2, 3)[:, :, :end, start:end]
            weights, d_weights = (jnp.where(of_block, x / (1.0 - rate), 0.0) for x in (weights, d_weights))
        d_scores = (probabilities * (d_weights - of_query(weighted)) * scale).astype(dtype)
        all_keys = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0)))
        d_value += all_keys(_product('bhkq,bhqd->bhkd', weights.astype(dtype), d_mixed_block))
        d_key += all_keys(_product('bhkq,bhqd->bhkd', d_scores, queries))
        d_query.append(_product('bhdk,bhkq->bhdq', key_columns[..., :end], d_scores).astype(dtype))
    d_query = jnp.concatenate(d_query, axis=3).swapaxes(2, 3)
    return d_query, d_key.astype(dtype), d_value.astype(dtype), None, None


_attend.defvjp(_forward, _backward)


def _blocks(query):
    """(start, end) of each block of queries."""
    length = query.shape[2]
    return [(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


def _kept(query, dropout_key, rate):
    """What dropout keeps of the weights, [B, H, T, T]; XLA computes only the elements that are used, where they are."""
    batch, heads, length, _ = query.shape
    return None if dropout_key is None else dropout.keep_mask(dropout_key, (batch, heads, length, length), rate)
