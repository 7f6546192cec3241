"""Losses as pure functions of arrays (Radford et al., 2018, equations 1, 4 and 5; weights as in the release)."""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from gpt1_jax.model import mesh
from gpt1_jax.model.products import outer_products, product

_ROW_MULTIPLE = 128  # rows of a matrix tile


def gradient(logits: jax.Array, targets: jax.Array, weights: jax.Array, dtype: jnp.dtype) -> tuple:
    """(the gradient of the weighted sum of negative log-likelihoods with respect to the logits, in `dtype`; the
    negative log-likelihoods). logits: float32 [..., entries]; targets: int [...]; weights: float32 [...]."""
    exponentials, total, nll = _exponentials_and_nll(logits, targets)
    one_hot = targets[..., None] == jnp.arange(logits.shape[-1])[(None,) * targets.ndim]
    d_logits = exponentials * (weights / total)[..., None] - jnp.where(one_hot, weights[..., None], 0.0)
    return d_logits.astype(dtype), nll


def lm_loss(
    hidden: jax.Array,
    embedding: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    chunk_tokens: int = 1024,
    gradient: Callable = gradient,
) -> jax.Array:
    """Weighted sum of next-token negative log-likelihoods, in nats; float32 scalar.

    Logits exist for one chunk of tokens at a time. The gradient is taken in the forward pass, chunk by chunk, so
    that no logits are kept or computed twice. Each shard sums the gradient of its own copy of `embedding`, because
    otherwise every chunk would need an all-reduce of the table.

    Args:
      hidden: [shards, N, T, width].
      embedding: [rows, width], the softmax's rows, or [shards, rows, width], a copy for each shard.
      targets: int [shards, N, T].
      weights: float32 [shards, N, T].
      chunk_tokens: most tokens of a shard in one chunk (but at least one position of every row).
      gradient: the function `gradient`, or a kernel that computes the same.
    """
    return _lm_loss(hidden, one_each(embedding, len(hidden)), targets, weights, chunk_tokens, gradient)


def token_nll(hidden: jax.Array, embedding: jax.Array, targets: jax.Array, *, chunk_tokens: int = 1024) -> jax.Array:
    """Negative log-likelihood of each target in nats, float32 [shards, N, T]; for evaluation. See `lm_loss`."""
    table, rows = _pad_rows(one_each(embedding, len(hidden)).astype(hidden.dtype))
    _, nll = jax.lax.scan(
        lambda _, chunk: (None, _exponentials_and_nll(_logits(chunk[0], table, rows), chunk[1])[2]),
        None,
        _split(chunk_tokens, hidden, targets),
    )
    return _join(nll, targets.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _lm_loss(hidden, embedding, targets, weights, chunk_tokens, gradient):
    nll = token_nll(hidden, embedding, targets, chunk_tokens=chunk_tokens)
    return jnp.sum(nll * weights)


def _lm_loss_forward(hidden, embedding, targets, weights, chunk_tokens, gradient):
    table, rows = _pad_rows(embedding.astype(hidden.dtype))

    def one_chunk(table_gradient, chunk):
        h, target, weight = chunk
        d_logits, nll = gradient(_logits(h, table, rows), target, weight, h.dtype)
        d_hidden = product('gntv,gvw->gntw', d_logits, table)
        table_gradient += jax.vmap(outer_products)(d_logits, h)
        return nn.with_logical_constraint(table_gradient, ('batch', 'vocab', None)), (nll, d_hidden)

    zeros = nn.with_logical_constraint(jnp.zeros(table.shape, jnp.float32), ('batch', 'vocab', None))
    table_gradient, (nll, d_hidden) = jax.lax.scan(one_chunk, zeros, _split(chunk_tokens, hidden, targets, weights))
    nll = _join(nll, targets.shape)
    table_gradient = table_gradient[:, :rows].astype(embedding.dtype)
    return jnp.sum(nll * weights), (_join(d_hidden, hidden.shape), table_gradient, nll)


def _lm_loss_backward(chunk_tokens, gradient, residuals, cotangent):
    del chunk_tokens, gradient
    d_hidden, d_embedding, nll = residuals
    scale = lambda x: (cotangent * x).astype(x.dtype)
    return scale(d_hidden), scale(d_embedding), None, scale(nll)


_lm_loss.defvjp(_lm_loss_forward, _lm_loss_backward)


def one_each(embedding: jax.Array, shards: int) -> jax.Array:
    """[shards, rows, width] from [rows, width] or [1 or shards, rows, width]."""
    return jnp.broadcast_to(embedding, (shards, *embedding.shape[-2:]))


def _pad_rows(embedding):
    """(the table, padded with zeros to whole tiles if devices must have equal parts of it; the number of real rows)"""
    rows, parts = embedding.shape[1], mesh.shards('vocab')
    table = jnp.pad(embedding, ((0, 0), (0, -rows % math.lcm(_ROW_MULTIPLE, parts) if parts > 1 else 0), (0, 0)))
    return nn.with_logical_constraint(table, ('batch', 'vocab', None)), rows


def _logits(hidden, table, rows):
    """hidden [g, n, t, width] -> float32 [g, n, t, rows of the table]."""
    logits = jnp.einsum('gntw,gvw->gntv', hidden, table, preferred_element_type=jnp.float32)
    if rows < table.shape[1]:
        logits = jnp.where(jnp.arange(table.shape[1])[None, None, None] < rows, logits, -jnp.inf)
    return logits


def _exponentials_and_nll(logits, targets):
    """The exponentials of the logits, up to a factor for each token; their sum and the nll [...]."""
    most = jnp.max(logits, axis=-1)
    exponentials = jnp.exp(logits - most[..., None])
    total = jnp.sum(exponentials, axis=-1)
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return exponentials, total, most + jnp.log(total) - target_logits


def _split(chunk_tokens, *arrays):
    """[shards, N, T, ...] -> [chunks, shards, N, T / chunks, ...]; cut along T, so that each chunk has every shard.

    Where T has no divisor that gives chunks of half the wanted size or more, such as a prime, zeros follow the last
    position: many small products are slow. A weight of zero has no part in the loss, and `_join` cuts the rest off.
    """
    _, n, length = arrays[0].shape[:3]
    most = min(length, max(1, chunk_tokens // n))
    positions = next(divisor for divisor in range(most, 0, -1) if length % divisor == 0)
    if 2 * positions < most:
        positions = math.ceil(length / math.ceil(length / most))  # equal parts
    padding = -length % positions

    def split(x):
        if padding:
            x = jnp.pad(x, ((0, 0), (0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 3))
        return jnp.moveaxis(x.reshape(*x.shape[:2], -1, positions, *x.shape[3:]), 2, 0)

    return tuple(split(x) for x in arrays)


def _join(x, shape):
    joined = jnp.moveaxis(x, 0, 2)
    return joined.reshape(*shape[:2], -1, *shape[3:])[:, :, : shape[2]]


def classification_loss(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted sum of cross-entropies. logits [N, classes]; labels int [N]; weights [N]; float32 scalar.

    In multiple choice the choices are the classes: `logits` are the scores [N, choices].
    """
    one_hot = jax.nn.one_hot(labels, logits.shape[-1])
    return jnp.sum(weights * optax.softmax_cross_entropy(logits.astype(jnp.float32), one_hot))


def ordinal_targets(scores: jax.Array, classes: int) -> jax.Array:
    """Scores [N] in [0, classes - 1] as distributions [N, classes]: the two integers next to a score share its mass
    linearly (release, STS-B)."""
    return jnp.maximum(0.0, 1.0 - jnp.abs(scores[:, None] - jnp.arange(classes, dtype=jnp.float32)[None]))


def ordinal_loss(logits: jax.Array, scores: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted sum of cross-entropies with `ordinal_targets`. logits [N, classes]; scores, weights [N]."""
    targets = ordinal_targets(scores, logits.shape[-1])
    return jnp.sum(weights * optax.softmax_cross_entropy(logits.astype(jnp.float32), targets))


def squared_loss(predicted: jax.Array, scores: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted sum of squared errors, an alternative for STS-B. predicted [N, 1]; scores, weights [N]."""
    return jnp.sum(weights * jnp.square(predicted[:, 0].astype(jnp.float32) - scores))


TASK_LOSSES = {
    'classification': classification_loss,
    'multiple_choice': classification_loss,
    'ordinal': ordinal_loss,
    'mse': squared_loss,
}


def finetune_loss(task_loss: jax.Array, lm: jax.Array, lm_coefficient: float) -> jax.Array:
    """L3 = L2 + lambda * L1 (equation 5)."""
    return task_loss + lm_coefficient * lm
