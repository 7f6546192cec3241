"""The LSTM against the float64 loop and against plain derivatives: states, segments, gradients, meshes, its cache."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import reference
from gpt1_jax.errors import UserError
from gpt1_jax.model import architecture, lstm
from gpt1_jax.model.classifier import Classifier
from gpt1_jax.model.sizes import SIZES
from gpt1_jax.training.partitioning import unbox

RNG = np.random.default_rng(1)
TOKENS = RNG.integers(0, 43, (4, 16))
SEGMENTS = np.array([[1] * 7 + [2] * 5 + [0] * 4, [1] * 16, list(range(16)), [3] * 3 + [1] * 13])
REFERENCE = models.random_lstm_params()
PARAMS = {'params': jax.tree.map(np.float32, REFERENCE)}
UNITS, WIDTH = REFERENCE['out_kernel'].shape


def expected_hidden(tokens, segments=None):
    segments = [None] * len(tokens) if segments is None else segments
    return np.stack([reference.lstm_forward(REFERENCE, *row) for row in zip(tokens, segments)])


def apply(tokens, segments=None, params=PARAMS, dropped=False, **changes):
    """The output of a model with these changes; `dropped`: in training, with one key."""
    model, rngs = models.lstm(**changes), {'dropout': jax.random.key(0)}
    return jax.jit(lambda *inputs: model.apply(*inputs, train=dropped, rngs=rngs))(params, tokens, None, segments)


def test_states_equal_the_loop():
    output = apply(TOKENS)
    np.testing.assert_allclose(output.hidden, expected_hidden(TOKENS), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(output.embedding, PARAMS['params']['table'])
    assert output.cache is None


def test_the_state_is_zero_where_a_segment_begins():
    hidden = apply(TOKENS, SEGMENTS).hidden
    np.testing.assert_allclose(hidden, expected_hidden(TOKENS, SEGMENTS), rtol=1e-5, atol=1e-5)


def test_a_packed_row_equals_its_parts():
    first, second = TOKENS[0, :7], TOKENS[0, 7:12]
    packed = apply(TOKENS[:1], SEGMENTS[:1]).hidden[0]
    for part, there in ((first, packed[:7]), (second, packed[7:12])):
        alone = apply(part[None]).hidden[0]
        np.testing.assert_allclose(there, alone, rtol=1e-5, atol=1e-6)
    changed = TOKENS[:1].copy()
    changed[0, :7], changed[0, 12:] = 5, 9  # another segment and the padding
    unseen = apply(changed, SEGMENTS[:1]).hidden[0]
    np.testing.assert_array_equal(unseen[7:12], packed[7:12])


@pytest.mark.parametrize('t', [0, 6, 7, 11, 15])
def test_causality_by_gradient(t):
    """The state at t has a gradient with respect to the inputs of its own segment up to t, and none to others."""
    tokens = np.arange(16)[None]  # every place reads a row of its own

    def state(table):
        params = {'params': PARAMS['params'] | {'table': table}}
        return models.lstm().apply(params, tokens, None, SEGMENTS[:1]).hidden[0, t].sum() ** 2

    touched = np.abs(jax.jit(jax.grad(state))(PARAMS['params']['table'])).max(axis=1) > 0
    seen = (np.arange(16) <= t) & (SEGMENTS[0] == SEGMENTS[0, t])
    np.testing.assert_array_equal(touched[:16], seen)
    assert not touched[16:].any()


def plain_recur(inputs, kernel, starts):
    """`recur`, cell by cell in JAX's own derivatives."""

    def step(state, now):
        x, start = now
        h, c = (jnp.where(start[:, None], 0.0, part) for part in state)
        i, f, g, o = (x[:, k] + h @ kernel[:, k] for k in range(4))
        c = c * jax.nn.sigmoid(f) + jnp.tanh(g) * jax.nn.sigmoid(i)
        h = jnp.tanh(c) * jax.nn.sigmoid(o)
        return (h, c), h

    zeros = jnp.zeros((inputs.shape[1], inputs.shape[3]))
    return jax.lax.scan(step, (zeros, zeros), (inputs, starts))[1]


@pytest.mark.parametrize(('scale', 'forget'), [(1, 5.0), (100, 0.0)])
def test_gradients_through_512_steps_are_those_of_the_plain_loop(scale, forget):
    """With a memory that reaches from the last step to the first; and with inputs that saturate the gates."""
    length, batch, units = 512, 3, 8
    inputs = jnp.asarray(scale * RNG.normal(size=(length, batch, 4, units)), jnp.float32).at[:, :, 1].add(forget)
    kernel = jnp.asarray(0.2 * RNG.normal(size=(units, 4, units)), jnp.float32)
    starts = jnp.zeros((length, batch), bool).at[0].set(True).at[200, 1].set(True)
    last = RNG.normal(size=(batch, units)).astype(np.float32)

    def gradient(recur):
        return jax.jit(jax.grad(lambda *args: jnp.sum(last * recur(*args, starts)[-1]), (0, 1)))(inputs, kernel)

    (d_inputs, d_kernel), expected = gradient(lstm.recur), gradient(plain_recur)
    models.assert_trees_close((d_inputs, d_kernel), expected, rtol=1e-4, atol=1e-4)
    assert np.isfinite(d_inputs).all() and np.isfinite(d_kernel).all() and np.abs(d_kernel).max() > 0
    assert not d_inputs[:200, 1].any()  # before the segment
    assert forget == 0 or np.abs(d_inputs[0, 0]).max() > 1e-8


def test_gradients_of_the_whole_model_are_those_of_the_plain_loop(monkeypatch):
    model = models.lstm(dropout=0.3, residual_dropout=0.3)
    keys = {'dropout': jax.random.key(3)}
    loss = lambda p: jnp.sum(model.apply(p, TOKENS, None, SEGMENTS, train=True, rngs=keys).hidden ** 3)
    gradient = jax.jit(jax.grad(loss))(PARAMS)
    monkeypatch.setattr(lstm, 'recur', plain_recur)
    models.assert_trees_close(gradient, jax.jit(jax.grad(lambda p: loss(p)))(PARAMS))


def test_bfloat16_is_near_float32():
    hidden = apply(TOKENS, dtype=jnp.bfloat16).hidden
    assert hidden.dtype == jnp.bfloat16
    scale = np.abs(expected_hidden(TOKENS)).max()
    np.testing.assert_allclose(hidden.astype(np.float32), expected_hidden(TOKENS), atol=0.02 * scale)


def test_gradients_in_bfloat16_are_near_those_in_float32():
    def gradient(dtype):
        model = models.lstm(dtype=dtype)
        loss = lambda p: jnp.mean(model.apply(p, TOKENS, None, SEGMENTS).hidden.astype(jnp.float32) ** 2)
        return jax.jit(jax.grad(loss))(PARAMS)

    near, exact = gradient(jnp.bfloat16), gradient(jnp.float32)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(near), jax.tree.leaves(exact)):
        assert a.dtype == jnp.float32 and np.linalg.norm(a - b) < 0.02 * np.linalg.norm(b), path


def test_the_cell_stays_float32():
    """A sum that bfloat16 would stop: 600 steps that each add 1/4, with all gates open."""
    inputs = jnp.array([30.0, 30.0, np.arctanh(0.25), 30.0], jnp.bfloat16)[None, None, :, None].repeat(600, axis=0)
    zeros = jnp.zeros((1, 1))
    _, cells, _ = lstm._forward(
        inputs, jnp.zeros((1, 4, 1)), jnp.zeros((600, 1), bool), zeros.astype(jnp.bfloat16), zeros
    )
    assert cells.dtype == jnp.float32 and abs(cells[-1, 0, 0] - 150) < 1


def test_table_dropout_is_one_mask_for_look_up_and_softmax():
    output = apply(TOKENS, dropped=True, dropout=0.5)
    kept = np.asarray(output.embedding != 0)
    assert 0.4 < kept.mean() < 0.6
    np.testing.assert_allclose(np.asarray(output.embedding)[kept], 2 * PARAMS['params']['table'][kept], rtol=1e-6)
    params = {'params': PARAMS['params'] | {'table': output.embedding}}
    np.testing.assert_allclose(output.hidden, apply(TOKENS, params=params).hidden, rtol=1e-5, atol=1e-5)
    output = apply(TOKENS, dropped=True, dropout=0.5, embedding_dropout='sum')
    np.testing.assert_array_equal(output.embedding, PARAMS['params']['table'])
    assert np.abs(output.hidden - expected_hidden(TOKENS)).max() > 0.01


def test_residual_dropout_is_between_layer_and_projection():
    """With a projection that is the identity, the states are the layer's, half of them dropped, the rest doubled."""
    identity = {'out_kernel': np.eye(UNITS, WIDTH, dtype=np.float32), 'out_bias': np.zeros(WIDTH, np.float32)}
    params = {'params': PARAMS['params'] | identity}
    whole = apply(TOKENS, params=params).hidden
    hidden = apply(TOKENS, params=params, dropped=True, residual_dropout=0.5).hidden
    kept = np.asarray(hidden != 0)
    assert 0.4 < kept.mean() < 0.6
    np.testing.assert_allclose(np.asarray(hidden)[kept], 2 * np.asarray(whole)[kept], rtol=1e-5)


@pytest.mark.parametrize('embedding_dropout', ['table', 'sum'])
def test_rows_that_follow_change_no_mask(embedding_dropout):
    """On some meshes the last places of a batch are empty."""
    rates = dict(dropout=0.5, residual_dropout=0.5, embedding_dropout=embedding_dropout)
    alone, followed = (apply(tokens, dropped=True, **rates).hidden for tokens in (TOKENS, np.concatenate([TOKENS] * 2)))
    np.testing.assert_allclose(followed[:4], alone, rtol=1e-5, atol=1e-6)
    assert np.abs(followed[4:] - alone).max() > 0.01


@pytest.mark.parametrize('lengths', [(16, 16, 16), (1, 7, 0), (5, 16, 11)])
def test_the_cache_holds_a_row_up_to_its_length(lengths):
    """It continues rows of different lengths, and what stands after them is nothing to it."""
    model, params, tokens = models.lstm(), jax.device_put(PARAMS), TOKENS[:3]
    read = jax.jit(lambda tokens, cache, lengths: model.apply(params, tokens, cache=cache, lengths=lengths))
    caches = []
    for padding in (0, 9):
        padded = np.where(np.arange(16)[None] < np.array(lengths)[:, None], tokens, padding)
        caches.append(read(padded, model.empty_cache(3, 16), np.array(lengths)).cache)
    for one, other in zip(*caches):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(caches[0].lengths, lengths)
    following = np.array([[3, 4], [5, 6], [7, 8]])
    output = read(following, caches[0], np.array([2, 1, 0]))
    np.testing.assert_array_equal(output.cache.lengths, np.array(lengths) + [2, 1, 0])
    for row, length, two, hidden in zip(tokens, lengths, following, output.hidden):
        expected = reference.lstm_forward(REFERENCE, [*row[:length], *two])[-2:]
        np.testing.assert_allclose(hidden, expected, rtol=1e-5, atol=1e-5)
    again = read(following, output.cache, np.zeros(3, int))
    expected = reference.lstm_forward(REFERENCE, [*tokens[1][: lengths[1]], 5, 5])[-1]
    np.testing.assert_allclose(again.hidden[1, 0], expected, rtol=1e-5, atol=1e-5)


def test_a_whole_cache_without_lengths():
    model = models.lstm()
    cache, parts = model.empty_cache(4, 16), []
    for part in (TOKENS[:, :6], TOKENS[:, 6:]):
        output = model.apply(PARAMS, part, cache=cache)
        cache = output.cache
        parts.append(output.hidden)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), expected_hidden(TOKENS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(('source_special', 'n_special'), [(0, 0), (0, 3), (3, 3), (3, 0)])
@pytest.mark.parametrize('n_layers', [0, 1])
def test_transfer(source_special, n_special, n_layers):
    """Bit for bit: rows of tokens; special rows if both have them; all else, or nothing."""
    fresh, source = (
        jax.tree.map(np.float32, models.random_lstm_params(seed, models.SIZES | dict(n_special=n)))
        for seed, n in ((1, n_special), (2, source_special))
    )
    made = models.lstm(n_special=n_special).transfer(fresh, source, source_special, n_layers)
    assert made.keys() == fresh.keys() and made['table'].shape == (40 + n_special, 16)
    np.testing.assert_array_equal(made['table'][:40], source['table'][:40])
    np.testing.assert_array_equal(
        made['table'][40:], (source if source_special else fresh)['table'][40 : 40 + n_special]
    )
    for name in fresh.keys() - {'table'}:
        np.testing.assert_array_equal(made[name], (source if n_layers else fresh)[name])


def built(**changes):
    size = SIZES['lstm']
    return architecture.build({'kind': 'lstm', **size.sizes, **changes}, size.vocab_size, 3, 'cpu')


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (dict(units=0), 'model.units=0 is not'),
        (dict(units=-8), 'model.units=-8 is not'),
        (dict(layers=2), 'an LSTM has model.layers=1'),
        (dict(layers=0), 'an LSTM has model.layers=1'),
    ],
)
def test_sizes_that_cannot_be(changes, words):
    with pytest.raises(UserError) as caught:
        built(**changes)
    assert re.fullmatch(
        rf'model: The sizes do not fit together \(.*{words}.*\)\. Change one of them\.', str(caught.value)
    )


def test_parameters_and_flops_of_the_paper_s_size_by_hand():
    """One layer of 2,048 units on 768-wide embeddings; 40,000 tokens and 3 special rows."""
    shapes = jax.eval_shape(Classifier(built()).init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    products = 4 * 2048 * 768 + 4 * 2048 * 2048 + 2048 * 768  # input, state, projection
    assert products == 24_641_536
    assert count == 40_003 * 768 + products + 4 * 2048 + 768 == 55_372_800
    assert built().flops_per_token() == 3 * 2 * (products + 40_003 * 768) == 332_183_040
    assert built().flops_per_token(lm_head=False) == 3 * 2 * products


def test_new_models_remember_at_first():
    """Biases of the forget gates are 1 (Jozefowicz et al., 2015), all others 0; the rest is as the transformer's."""
    params = unbox(models.lstm(sizes=models.SIZES | dict(mlp=96), init_std=0.1).init(jax.random.key(0), TOKENS))[
        'params'
    ]
    np.testing.assert_array_equal(params.pop('bias'), np.eye(4)[1][:, None].repeat(96, axis=1))
    assert not params.pop('out_bias').any()
    for name, array in params.items():
        assert abs(array.std() - 0.1) < 0.01 and abs(array.mean()) < 0.02, name


def test_shared_contexts_are_not_read_in_silence():
    with pytest.raises(ValueError, match='context'):
        models.lstm().apply(PARAMS, TOKENS, None, None, SEGMENTS)
