"""The decoder against the float64 reference, and the properties that packing and decoding rest on."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import reference
from gpt1_jax.model.dropout import dropout
from gpt1_jax.model.transformer import look_up
from gpt1_jax.training.partitioning import Partitioner

TOKENS = np.random.default_rng(1).integers(0, 43, (3, 16))
REFERENCE = models.random_params()
PARAMS = {'params': models.from_reference(REFERENCE)['decoder']}


def expected_hidden(tokens):
    return np.stack([reference.forward(REFERENCE, row, 4, n_positions=16) for row in tokens])


@pytest.mark.parametrize('changes', [{}, {'scan': False}, {'remat': True}])
def test_hidden_states_equal_the_reference(changes):
    model = models.decoder(**changes)
    hidden = model.apply(PARAMS, TOKENS).hidden
    np.testing.assert_allclose(hidden, expected_hidden(TOKENS), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_scan_and_remat_have_the_same_gradients():
    def gradient(**changes):
        model = models.decoder(dropout=0.1, attention_dropout=0.1, residual_dropout=0.1, **changes)
        hidden = lambda params: model.apply(params, TOKENS, train=True, rngs={'dropout': jax.random.key(3)}).hidden
        return jax.grad(lambda params: jnp.sum(hidden(params) ** 3))(PARAMS)

    base = gradient()
    for changes in ({'scan': False}, {'remat': True}, {'scan': False, 'remat': True}):
        models.assert_trees_close(gradient(**changes), base)


def test_given_positions_and_segments_make_a_packed_row_equal_its_parts():
    first, second = TOKENS[0, :7], TOKENS[1, :5]
    row = np.concatenate([first, second, [0, 0, 0, 0]])[None]
    segments = np.array([[1] * 7 + [2] * 5 + [0] * 4])
    positions = np.concatenate([np.arange(7), np.arange(5), [0] * 4])[None]
    hidden = models.decoder().apply(PARAMS, row, positions, segments).hidden[0]
    np.testing.assert_allclose(hidden[:7], expected_hidden([first])[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(hidden[7:12], expected_hidden([second])[0], rtol=1e-4, atol=1e-5)
    changed = row.copy()
    changed[0, :7], changed[0, 12:] = 5, 9  # another segment and the padding
    unseen = models.decoder().apply(PARAMS, changed, positions, segments).hidden[0]
    np.testing.assert_array_equal(unseen[7:12], hidden[7:12])


def test_causality_by_gradient():
    """The state at t has a gradient with respect to the inputs at 0..t, and exactly none after."""
    model, n_rows = models.decoder(n_positions=16), 43
    tokens = np.arange(16)[None]  # every position reads a row of its own

    def state(table, t):
        params = {'params': PARAMS['params'] | {'table': table}}
        return model.apply(params, tokens).hidden[0, t].sum() ** 2

    for t in (0, 5, 15):
        gradient = jax.grad(state)(PARAMS['params']['table'], t)
        touched = np.abs(gradient[:16]).max(axis=1) > 0
        np.testing.assert_array_equal(touched, np.arange(16) <= t)
        np.testing.assert_array_equal(np.abs(gradient[n_rows:]).max(axis=1) > 0, np.arange(16) <= t)


def test_softmax_rows():
    assert models.decoder().apply(PARAMS, TOKENS).embedding.shape == (59, 16)
    assert models.decoder(softmax_rows='tokens').apply(PARAMS, TOKENS).embedding.shape == (43, 16)


def test_table_dropout_is_one_mask_for_look_up_and_softmax():
    model = models.decoder(dropout=0.5)
    output = model.apply(PARAMS, TOKENS, train=True, rngs={'dropout': jax.random.key(0)})
    dropped = np.asarray(output.embedding == 0)
    assert 0.4 < dropped.mean() < 0.6
    kept = ~dropped
    np.testing.assert_allclose(np.asarray(output.embedding)[kept], 2 * PARAMS['params']['table'][kept], rtol=1e-6)
    # With no layers' dropout, the states are those of a model whose table is the dropped one.
    params = {'params': PARAMS['params'] | {'table': output.embedding}}
    np.testing.assert_allclose(output.hidden, models.decoder().apply(params, TOKENS).hidden, rtol=1e-5, atol=1e-5)
    undropped = (
        models.decoder(dropout=0.5, embedding_dropout='sum')
        .apply(PARAMS, TOKENS, train=True, rngs={'dropout': jax.random.key(0)})
        .embedding
    )
    np.testing.assert_array_equal(undropped, PARAMS['params']['table'])


@pytest.mark.slow
def test_cache_continues_what_it_holds():
    model = models.decoder()
    cache = model.empty_cache(batch=3, length=16)
    parts = []
    for start, stop in ((0, 6), (6, 7), (7, 8), (8, 16)):
        output = model.apply(PARAMS, TOKENS[:, start:stop], cache=cache)
        cache = output.cache
        parts.append(output.hidden)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), expected_hidden(TOKENS), rtol=1e-4, atol=1e-5)


def test_bfloat16_is_near_float32():
    low = models.decoder(dtype=jnp.bfloat16).apply(PARAMS, TOKENS).hidden
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(np.float32), expected_hidden(TOKENS), atol=0.15)


def test_a_large_mean_costs_no_digits_of_a_norm():
    """The variance of states near 2000 is lost where it is the difference of their mean square and squared mean."""
    layer = REFERENCE['layers'][0] | {'c_proj_w': np.zeros((16, 16))}  # no attention to numbers so large
    moved = REFERENCE | {'table': np.round(REFERENCE['table'], 2) + 1000.0, 'layers': [layer]}
    params = {'params': models.from_reference(moved)['decoder']}
    expected = reference.forward(moved, TOKENS[0], 4, n_positions=16)
    hidden = jax.jit(models.decoder(layers=1).apply)(params, TOKENS[:1]).hidden[0]
    np.testing.assert_allclose(hidden, expected, atol=0.01)


@pytest.mark.slow
def test_bfloat16_keeps_the_gradient_of_a_frequent_token():
    """A thousand uses of one row: a sum in bfloat16 would stop growing."""
    tokens = np.where(np.random.default_rng(0).random((128, 16)) < 0.6, 1, np.arange(16) + 5)

    def row_gradient(dtype):
        model = models.decoder(dtype=dtype)
        loss = lambda params: jnp.mean(model.apply({'params': params}, tokens).hidden.astype(jnp.float32)[..., 0])
        return np.asarray(jax.jit(jax.grad(loss))(PARAMS['params'])['table'][1], np.float64)

    expected = row_gradient(jnp.float32)
    assert np.linalg.norm(row_gradient(jnp.bfloat16) - expected) < 0.01 * np.linalg.norm(expected)


def test_paper_size_has_the_papers_number_of_parameters():
    model = models.decoder(
        vocab_size=40478, n_special=0, n_positions=512, width=768, layers=12, heads=12, mlp_width=3072
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert count(shapes) == 116_534_784
    assert count(shapes['blocks']) == 85_054_464


@pytest.mark.parametrize('changes', [{}, {'scan': False}, {'remat': True}])
def test_without_layers_a_state_is_the_sum_of_two_rows(changes):
    table = PARAMS['params']['table']
    model = models.decoder(layers=0, **changes)
    assert set(model.init(jax.random.key(0), TOKENS)['params']) == {'table'}
    expected = table[TOKENS] + table[43 + np.arange(16)][None]
    np.testing.assert_allclose(model.apply({'params': {'table': table}}, TOKENS).hidden, expected, rtol=1e-6)
    assert model.flops_per_token() == 6 * (43 + 16) * 16  # of the softmax alone: 2 forward, 4 backward


def test_without_layers_a_cache_counts_tokens():
    table, model = PARAMS['params']['table'], models.decoder(layers=0)
    cache = model.empty_cache(3, 16)
    for t in (0, 1):
        output = model.apply({'params': {'table': table}}, TOKENS[:, t : t + 1], cache=cache)
        np.testing.assert_allclose(output.hidden[:, 0], table[TOKENS[:, t]] + table[43 + t][None], rtol=1e-6)
        cache = output.cache
    assert cache.lengths.tolist() == [2, 2, 2]


def plain_look_up(table, places, key, rate, dropped, dtype, rounded):
    """The whole table is dropped from, rounded if devices send it each other, and then read."""
    table = dropout(table, key, rate) if dropped == 'table' else table
    x = sum((table.astype(dtype).astype(table.dtype) if rounded else table)[place] for place in places).astype(dtype)
    return dropout(x, key, rate) if dropped == 'sum' else x, table.astype(dtype)


@pytest.mark.parametrize(
    ('mesh', 'n_rows'),
    [
        (None, 43),
        *(((strategy, shape), 43) for strategy, shape in (('dp', (8, 1, 1)), ('fsdp', (2, 4, 1)), ('tp', (2, 1, 4)))),
        (('dp', (8, 1, 1)), 40),  # each device has some of the rows, else of the columns
    ],
)
@pytest.mark.parametrize(('dropped', 'dtype'), [('table', jnp.float32), ('table', jnp.bfloat16), ('sum', jnp.float32)])
def test_rows_are_read_as_from_the_dropped_table(mesh, n_rows, dropped, dtype):
    """Bit for bit, whichever device has which part of it. On a mesh, each shard uses the table in its own way, and
    gradients are float32."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(n_rows, 16)).astype(np.float32)
    places = rng.integers(0, 9, (8, 5)), 30 + np.arange(5)[None]  # tokens, some often; positions, the same in all rows
    shards = Partitioner(*mesh).placement.shards if mesh else 1
    ways = [rng.integers(-99, 99, shape).astype(np.float32) for shape in ((8, 5, 16), (shards, n_rows, 16))]

    def both(function, dtype=dtype):
        def loss(table):
            outputs = function(table, places, jax.random.key(1), 0.3, dropped, dtype, mesh is not None)
            each = zip(ways, outputs)
            return sum(jnp.sum(way * jnp.broadcast_to(x.astype(jnp.float32), way.shape)) for way, x in each), outputs

        return jax.grad(loss, has_aux=True)

    jit = jax.jit
    if mesh:
        boxed = {'table': nn.LogicallyPartitioned(table, ('table_rows', 'table_embed'))}
        partitioner = Partitioner(*mesh).spread(boxed)
        jit = partitioner.jit
        table = jax.device_put(table, partitioner.tree_shardings(boxed)['table'])
        assert table.addressable_shards[0].data.size < table.size
    gradient, (x, read) = jit(both(look_up))(table)
    table = np.asarray(table)
    expected_gradient, (expected_x, expected_table) = jax.jit(both(plain_look_up))(table)
    if mesh:
        expected_gradient, _ = jax.jit(both(plain_look_up, jnp.float32))(table)
    np.testing.assert_array_equal(x, expected_x)
    np.testing.assert_array_equal(read, np.broadcast_to(expected_table, read.shape))
    assert read.shape == ((shards, n_rows, 16) if mesh else (n_rows, 16))
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-5)
