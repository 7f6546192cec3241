"""Losses and their gradients against the float64 reference and plain JAX."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
from gpt1_jax.training import losses
from gpt1_jax.training.partitioning import Partitioner

RNG = np.random.default_rng(0)
HIDDEN, TABLE = RNG.normal(size=(4, 12, 8)), RNG.normal(size=(133, 8))
TARGETS = RNG.integers(0, 133, (4, 12))
WEIGHTS = RNG.random((4, 12)) * (RNG.random((4, 12)) > 0.3)


def f32(*arrays):
    return [jnp.asarray(a, jnp.float32) if a.dtype == float else jnp.asarray(a) for a in arrays]


def plain(hidden, table, targets, weights):
    log_probabilities = jax.nn.log_softmax(jnp.einsum('ntd,vd->ntv', hidden, table))
    return -jnp.sum(weights * jnp.take_along_axis(log_probabilities, targets[..., None], -1)[..., 0])


def in_shards(shards, *arrays):
    return [array.reshape(shards, -1, *array.shape[1:]) for array in arrays]


@pytest.mark.parametrize('shards', [1, 2, 4])
@pytest.mark.parametrize('chunk_tokens', [1, 5, 8, 1024])
def test_lm_loss_and_gradients_for_any_chunks(shards, chunk_tokens):
    expected = sum(
        w @ -reference.log_softmax(h @ TABLE.T)[np.arange(12), t] for h, t, w in zip(HIDDEN, TARGETS, WEIGHTS)
    )
    arguments = f32(HIDDEN, TABLE, TARGETS, WEIGHTS)

    def chunked(hidden, embedding, weights):
        hidden, targets, weights = in_shards(shards, hidden, arguments[2], weights)
        return 3.0 * losses.lm_loss(hidden, embedding, targets, weights, chunk_tokens=chunk_tokens)

    whole = lambda h, e, w: 3.0 * plain(h, e, arguments[2], w)
    inputs = arguments[0], arguments[1], arguments[3]
    value, gradients = jax.jit(jax.value_and_grad(chunked, (0, 1, 2)))(*inputs)
    np.testing.assert_allclose(value, 3 * expected, rtol=1e-5)
    np.testing.assert_allclose(chunked(*inputs), 3 * expected, rtol=1e-5)  # not differentiated: another code path
    for ours, theirs in zip(gradients, jax.grad(whole, (0, 1, 2))(*inputs)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(('mesh', 'part'), [((2, 1, 4), 64), ((1, 1, 8), 32), ((1, 1, 3), 128)])
def test_rows_that_the_shards_of_a_vocabulary_do_not_divide(mesh, part):
    """133 rows are padded; the padding has no part in the softmax, of training or of scores,
    and no gradient. All logits are so far below 0, that of a row of zeros, that it would be the prediction."""
    partitioner, shards = Partitioner('tp', mesh, jax.devices()[: math.prod(mesh)]), mesh[0]
    hidden, table, targets, weights = f32(HIDDEN, TABLE, TARGETS, WEIGHTS)
    hidden, table = hidden.at[..., 0].set(4.0), table.at[:, 0].add(-5.0)

    def sharded(hidden, embedding):
        parts = in_shards(shards, hidden, targets, weights)
        nll = losses.token_nll(parts[0], embedding, parts[1], chunk_tokens=8)
        return losses.lm_loss(parts[0], embedding, *parts[1:], chunk_tokens=8), nll.reshape(4, 12)

    step = partitioner.jit(jax.value_and_grad(sharded, (0, 1), has_aux=True), out_shardings=partitioner.sharding())
    compiled = step.lower(hidden, table).compile()
    assert f'f32[1,{4 // shards},{2 * shards},{part}]' in compiled.as_text()  # logits of a device
    expected, gradients = jax.value_and_grad(plain, (0, 1))(hidden, table, targets, weights)
    (value, nll), (d_hidden, d_table) = compiled(hidden, table)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(nll * weights), expected, rtol=1e-5)
    np.testing.assert_allclose(d_hidden, gradients[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(d_table, gradients[1], rtol=1e-4, atol=1e-5)


def test_token_nll():
    hidden, table, targets = f32(HIDDEN, TABLE, TARGETS)
    hidden, targets = in_shards(2, hidden, targets)
    nll = losses.token_nll(hidden, table, targets, chunk_tokens=8).reshape(4, 12)
    expected = [-reference.log_softmax(h @ TABLE.T)[np.arange(12), t] for h, t in zip(HIDDEN, TARGETS)]
    np.testing.assert_allclose(nll, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(('rows', 'length', 'tokens', 'positions'), [(1, 12, 5, 4), (1, 15, 8, 5), (4, 12, 1, 1)])
def test_a_chunk_is_the_largest_that_divides_a_row(rows, length, tokens, positions):
    """At least one position of every row."""
    given = np.arange(2 * rows * length).reshape(2, rows, length)
    (chunks,) = losses._split(tokens, given)
    assert chunks.shape == (length // positions, 2, rows, positions)
    np.testing.assert_array_equal(chunks[1], given[..., positions : 2 * positions])


@pytest.mark.parametrize(('length', 'chunks'), [(12, 3), (13, 3), (11, 3), (7, 2), (2, 1)])
def test_lengths_without_a_divisor_near_the_wanted_one(length, chunks):
    """At most 5 positions of 4 rows at a time: 12 has 4 as a divisor; to 13 and 11 zeros are added, up to 15 and 12."""
    rng = np.random.default_rng(length)
    hidden, targets, weights = (
        rng.normal(size=(4, length, 8)),
        rng.integers(0, 133, (4, length)),
        rng.random((4, length)),
    )
    arguments = f32(hidden, TABLE, targets, weights)

    def chunked(hidden, embedding, weights):
        parts = in_shards(1, hidden, arguments[2], weights)
        return losses.lm_loss(parts[0], embedding, *parts[1:], chunk_tokens=20)

    inputs = arguments[0], arguments[1], arguments[3]
    nll = [-reference.log_softmax(h @ TABLE.T)[np.arange(length), t] for h, t in zip(hidden, targets)]
    np.testing.assert_allclose(
        losses.token_nll(arguments[0][None], arguments[1], arguments[2][None], chunk_tokens=20)[0], nll, rtol=1e-4
    )
    value, gradients = jax.jit(jax.value_and_grad(chunked, (0, 1, 2)))(*inputs)
    np.testing.assert_allclose(value, np.sum(weights * nll), rtol=1e-5)
    for ours, theirs in zip(gradients, jax.grad(lambda h, e, w: plain(h, e, arguments[2], w), (0, 1, 2))(*inputs)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert f'length={chunks}' in str(jax.make_jaxpr(chunked)(*inputs))  # of the loop


def test_logits_of_all_tokens_never_exist():
    """What the compiled gradient holds at once is less than the logits of all tokens."""
    arguments = f32(np.zeros((1, 4, 64, 8)), np.zeros((4096, 8)), np.zeros((1, 4, 64), int), np.zeros((1, 4, 64)))
    f = jax.grad(lambda h, e, t, w: losses.lm_loss(h, e, t, w, chunk_tokens=16), (0, 1))
    compiled = jax.jit(f).lower(*arguments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 4 * 64 * 4096


def test_task_losses():
    logits = RNG.normal(size=(5, 6))
    labels, weights = RNG.integers(0, 6, 5), np.array([0.2, 0.2, 0.0, 0.5, 0.1])
    expected = sum(w * reference.classification_loss(x, y) for x, y, w in zip(logits, labels, weights))
    for name in ('classification', 'multiple_choice'):
        np.testing.assert_allclose(losses.TASK_LOSSES[name](*f32(logits, labels, weights)), expected, rtol=1e-5)
    scores = np.array([0.0, 5.0, 2.5, 3.8, 1.0])
    expected = sum(w * reference.ordinal_loss(x, y) for x, y, w in zip(logits, scores, weights))
    np.testing.assert_allclose(losses.ordinal_loss(*f32(logits, scores, weights)), expected, rtol=1e-5)
    expected = sum(w * (x[0] - y) ** 2 for x, y, w in zip(logits, scores, weights))
    np.testing.assert_allclose(losses.squared_loss(*f32(logits[:, :1], scores, weights)), expected, rtol=1e-5)


def test_ordinal_targets_by_hand():
    targets = losses.ordinal_targets(jnp.array([0.0, 3.8, 5.0]), 6)
    np.testing.assert_allclose(targets, [[1, 0, 0, 0, 0, 0], [0, 0, 0, 0.2, 0.8, 0], [0, 0, 0, 0, 0, 1]], atol=1e-6)
