"""Generation as pure functions: a prompt is read into the model's cache, then one compiled step makes tokens.

Between two steps the cache of a row holds all of its tokens but the last. Prompts are padded on the right; the model is
told each row's length and keeps nothing of the padding: a row does not depend on the others.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gpt1_jax.data.tokenizers import UNKNOWN_ID

_SMALLEST_BUCKET = 32


class State(NamedTuple):
    """B unfinished sequences of at most K tokens.

    Attributes:
      tokens: int32 [B, K], the prompt and its continuation.
      lengths: int32 [B], tokens so far.
      limits: int32 [B], length at which a row ends; its own length after the stop token.
      samples: int32 [B], number of the row's random stream.
      cache: the model's, of all tokens but the last.
    """

    tokens: jax.Array
    lengths: jax.Array
    limits: jax.Array
    samples: jax.Array
    cache: Any


class Sampling(NamedTuple):
    """How the next token is drawn: from the `top_k` most probable tokens (0: all), of these from the fewest that have
    `top_p` of the probability, at `temperature` (0: the most probable token); `seed`: of all draws."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


def bucket(length: int, longest: int) -> int:
    """`length` rounded up to 32, 64, 128, ..., at most `longest`, so that few shapes are compiled."""
    return min(max(_SMALLEST_BUCKET, 1 << (int(length) - 1).bit_length()), longest)


def unstack_layers(params: dict) -> dict:
    """Parameters with a tuple of one tree per layer in place of stacked layers, if there are any; jit it."""
    if 'blocks' not in params:
        return params
    n_layers = jax.tree.leaves(params['blocks'])[0].shape[0]
    layers = (jax.tree.map(lambda leaf: leaf[i], params['blocks']) for i in range(n_layers))
    return params | {'blocks': tuple(layers)}


def prefill(
    model: nn.Module,
    params: dict,
    prompts: jax.Array,
    lengths: jax.Array,
    limits: jax.Array,
    samples: jax.Array,
    *,
    places: int,
) -> State:
    """Reads prompts, int32 [B, bucket], padded on the right. places: K, at least the bucket and every limit."""
    empty = model.empty_cache(prompts.shape[0], places)
    cache = model.apply({'params': params}, prompts, cache=empty, lengths=lengths - 1).cache
    tokens = jnp.pad(prompts, ((0, 0), (0, places - prompts.shape[1])))
    return State(tokens, lengths, limits, samples, cache)


def decode(
    model: nn.Module,
    params: dict,
    state: State,
    sampling: Sampling,
    stop_id: jax.Array,
    n_tokens: jax.Array,
    *,
    greedy: bool,
    truncated: bool,
) -> State:
    """Adds up to `n_tokens` tokens to each row; ends early when all rows have reached the stop token or their limit.

    A token is drawn with a key of (seed, samples[b], position), so that a row's text depends on its batch by rounding
    alone: in bfloat16 this may be enough to draw another token.

    Only the flags are static: greedy, whether the temperature is 0; truncated, whether top_k or top_p leave tokens out.
    stop_id: a token, or -1 for none.
    """
    key = jax.random.key(sampling.seed)
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, state.samples)

    def next_tokens(state, active):
        last = jnp.take_along_axis(state.tokens, state.lengths[:, None] - 1, axis=1)
        output = model.apply({'params': params}, last, cache=state.cache, lengths=active.astype(jnp.int32))
        logits = token_logits(model, output.hidden[:, 0], output.embedding)
        if greedy:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32), output.cache
        keys = jax.vmap(jax.random.fold_in)(row_keys, state.lengths)
        return jax.vmap(draw, (0, 0, None, None))(keys, logits, sampling, truncated), output.cache

    def step(carry):
        count, state = carry
        active = state.lengths < state.limits
        new, cache = next_tokens(state, active)
        place = jnp.arange(state.tokens.shape[1])[None] == state.lengths[:, None]
        tokens = jnp.where(place & active[:, None], new[:, None], state.tokens)
        lengths = state.lengths + active
        limits = jnp.where(active & (new == stop_id), lengths, state.limits)
        return count + 1, State(tokens, lengths, limits, state.samples, cache)

    unfinished = lambda carry: (carry[0] < n_tokens) & jnp.any(carry[1].lengths < carry[1].limits)
    return jax.lax.while_loop(unfinished, step, (jnp.zeros((), jnp.int32), state))[1]


def token_logits(model: nn.Module, hidden: jax.Array, embedding: jax.Array) -> jax.Array:
    """hidden [B, width], embedding [rows, width] -> float32 logits [B, rows]; -inf for what is not text: special and
    position rows, and the unknown piece, which stands for text that the vocabulary cannot write."""
    # Masked, not sliced, so that the product reads the table without a copy.
    logits = jnp.einsum('bw,vw->bv', hidden, embedding, preferred_element_type=jnp.float32)
    rows = jnp.arange(embedding.shape[0])[None]
    return jnp.where((rows < model.vocab_size) & (rows != UNKNOWN_ID), logits, -jnp.inf)


def draw(key: jax.Array, logits: jax.Array, sampling: Sampling, truncated: bool) -> jax.Array:
    """One token, int32 [], from float32 logits [rows]."""
    logits = (logits - logits.max()) / sampling.temperature  # never NaN, however small the temperature
    if truncated:
        logits = truncate(logits, sampling)
    return jax.random.categorical(key, logits).astype(jnp.int32)


def truncate(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """float32 logits [rows], with -inf for the tokens that `sampling` leaves out."""
    top_k = jnp.where(sampling.top_k > 0, sampling.top_k, logits.shape[0])
    logits = _keep_largest(logits, jnp.ones_like(logits), top_k)
    return _keep_largest(logits, jax.nn.softmax(logits), sampling.top_p)


def _keep_largest(logits, weights, amount):
    """`logits`, with -inf for those below the largest threshold from which on the weights sum to `amount` or more.

    The threshold is found bit by bit, with the logits as integers of the same order: 32 sums instead of a sort, which
    takes many times as long. Ties with the smallest one kept are kept, and the largest in any case.
    """
    bits = jax.lax.bitcast_convert_type(logits, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    ordered = jnp.where(bits >= sign, ~bits, bits | sign)

    def decide(i, threshold):
        higher = threshold | (sign >> i.astype(jnp.uint32))
        return jnp.where(jnp.sum(jnp.where(ordered >= higher, weights, 0)) >= amount, higher, threshold)

    threshold = jax.lax.fori_loop(0, 32, decide, jnp.zeros((), jnp.uint32))
    return jnp.where(ordered >= jnp.minimum(threshold, ordered.max()), logits, -jnp.inf)
