"""Functions and batches on a mesh of eight host devices, and the boxes of logical axes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import models
from gpt1_jax.data.placement import Placement
from gpt1_jax.errors import UserError
from gpt1_jax.model.classifier import Classifier, ClassifierHead
from gpt1_jax.training.partitioning import Partitioner, unbox

CLASSIFIER = Classifier(models.decoder(), ClassifierHead('classification', 2))


def constrained(x):
    return jnp.tanh(nn.with_logical_constraint(jnp.sin(x), ('batch', None, 'heads')))


@pytest.mark.parametrize(
    ('strategy', 'shape', 'spec'),
    [
        ('dp', (8, 1, 1), (('data', 'fsdp'), None, None)),
        ('fsdp', (1, 8, 1), (('data', 'fsdp'), None, None)),
        ('fsdp+tp', (2, 2, 2), (('data', 'fsdp'), None, 'tensor')),
    ],
)
def test_jit_needs_no_context_for_constraints_to_act(strategy, shape, spec):
    """Called, and lowered, outside of any mesh; the result is that of one device."""
    partitioner, x = Partitioner(strategy, shape), np.random.default_rng(0).normal(size=(8, 3, 4)).astype(np.float32)
    function = partitioner.jit(constrained)
    expected = NamedSharding(partitioner.mesh, PartitionSpec(*spec))
    out = function(x)
    assert out.sharding.is_equivalent_to(expected, 3)
    assert function.lower(x).compile().output_shardings.is_equivalent_to(expected, 3)
    np.testing.assert_allclose(out, np.tanh(np.sin(x)), rtol=1e-5)
    assert function.__name__ == 'constrained'


@pytest.mark.parametrize(
    ('strategy', 'shape'), [('dp', (8, 1, 1)), ('fsdp', (1, 8, 1)), ('tp', (1, 1, 8)), ('fsdp+tp', (1, 4, 2))]
)
def test_the_mesh_of_a_strategy_that_is_given_no_shape(strategy, shape):
    assert tuple(Partitioner(strategy).mesh.shape.values()) == (1, *shape)


def test_jit_takes_the_options_of_jax():
    partitioner = Partitioner('fsdp')
    x = jax.device_put(jnp.ones((8, 2)), partitioner.sharding('batch'))
    whole = partitioner.jit(lambda x, times: jnp.tile(x, times), static_argnums=1, out_shardings=partitioner.sharding())
    assert whole(x, 3).is_fully_replicated and whole(x, 3).shape == (8, 6)
    np.testing.assert_array_equal(partitioner.jit(lambda x: x + 1, donate_argnums=0)(x), np.full((8, 2), 2))
    assert x.is_deleted()


@pytest.mark.parametrize(
    ('flags', 'options'),
    [
        ('', {'xla_backend_optimization_level': 1, 'xla_cpu_copy_insertion_use_region_analysis': True}),
        ('--xla_backend_optimization_level=2', {'xla_cpu_copy_insertion_use_region_analysis': True}),
    ],
)
def test_level_of_optimisation_on_a_cpu_unless_xla_flags_say_another(flags, options, monkeypatch):
    monkeypatch.setenv('XLA_FLAGS', flags)
    given, jit = [], jax.jit
    monkeypatch.setattr(jax, 'jit', lambda function, **options: given.append(options) or jit(function, **options))
    own = {'xla_cpu_copy_insertion_use_region_analysis': True}
    assert Partitioner('dp').jit(lambda x: x + 1, compiler_options=own)(1) == 2
    assert given == [{'compiler_options': options}]


def test_unbox_constrains_nothing_wherever_it_is_called():
    """Flax's own would move the arrays inside of a mesh."""
    boxed = CLASSIFIER.init(jax.random.key(0))
    plain = jax.tree.leaves(nn.unbox(boxed))
    partitioner = Partitioner('fsdp+tp', (2, 2, 2))
    outside = jax.tree.leaves(unbox(boxed))
    with jax.set_mesh(partitioner.mesh), nn.logical_axis_rules(partitioner.rules):
        inside = jax.tree.leaves(unbox(boxed))
    assert len(outside) == len(inside) == len(plain) == 15
    assert all(a is b is c for a, b, c in zip(outside, inside, plain))
    assert 'sharding_constraint' not in partitioner.jit(lambda: unbox(boxed)).lower().as_text()
    assert unbox({'array': np.ones(2), 'none': None}).keys() == {'array', 'none'}


@pytest.mark.parametrize('local', [range(4), [3, 1, 0, 2]])
@pytest.mark.parametrize('mesh', [('fsdp', (2, 2, 1)), ('fsdp+tp', (2, 2, 2))])
def test_local_shards_come_to_their_places_in_any_order(mesh, local):
    partitioner = Partitioner(*mesh, devices=jax.devices()[: np.prod(mesh[1])])
    assert partitioner.placement.shards == 4 and sorted(partitioner.placement.local) == [0, 1, 2, 3]
    partitioner.placement = Placement(4, list(local))
    rows = np.arange(8 * 5).reshape(8, 5).astype(np.uint16)
    batch = {
        'tokens': np.concatenate([partitioner.placement.take(rows), partitioner.placement.take(rows + 100)]),
        'labels': np.repeat(partitioner.placement.take(rows[:, 0]), 2, axis=0),
    }
    placed = partitioner.put_batch(batch)
    expected = {
        'tokens': np.stack([rows, rows + 100]).reshape(2, 4, 2, 5),
        'labels': np.stack([rows[:, 0]] * 2).reshape(2, 4, 2),
    }
    for name, array in expected.items():
        assert placed[name].dtype == array.dtype and placed[name].sharding == partitioner.batch_sharding()
        np.testing.assert_array_equal(placed[name], array)
        for shard in placed[name].addressable_shards:  # one shard of the batch for each device
            assert shard.data.shape == (2, 1, *array.shape[2:])


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (('fdsp',), ['fdsp', 'dp, fsdp, tp, fsdp+tp']),
        (('dp', (3, 1, 1)), ['(3, 1, 1)', '8 devices']),
        (('dp', (2, 1, 1)), ['(2, 1, 1)', '8 devices']),
        (('dp', (0, -1, 1)), ['(0, -1, 1) is not valid']),
        (('dp', (-1, -1, 1)), ['-1']),
        (('dp', (8, 1)), ['(8, 1)']),
    ],
)
def test_a_mesh_that_cannot_be(arguments, words):
    with pytest.raises(UserError) as caught:
        Partitioner(*arguments)
    assert all(word in str(caught.value) for word in words)


def test_a_dimension_that_does_not_divide_is_named():
    partitioner = Partitioner('tp', (1, 1, 8))  # the model has 4 heads
    boxed = jax.eval_shape(CLASSIFIER.init, jax.random.key(0))
    with pytest.raises(UserError) as caught:
        partitioner.tree_shardings(boxed)
    assert all(word in str(caught.value) for word in ("'tensor'", '8', "'heads'", '4'))


def parts_of(partitioner):
    """Name -> the shape of one device's part, for parameters with axes that are divided."""
    boxed = jax.eval_shape(CLASSIFIER.init, jax.random.key(0))
    shapes = jax.tree.map(
        lambda leaf, sharding: sharding.shard_shape(leaf.shape),
        unbox(boxed),
        partitioner.spread(boxed).tree_shardings(boxed),
    )
    blocks = shapes['decoder']['blocks']
    return (
        shapes['decoder']['table'],
        blocks['attention']['qkv_kernel'],
        blocks['mlp']['out']['kernel'],
        blocks['norm_1'],
    )


@pytest.mark.parametrize(
    ('mesh', 'devices', 'table', 'qkv', 'out'),
    [
        (('dp', (8, 1, 1)), 8, (59, 2), (2, 2, 3, 4, 4), (2, 32, 2)),
        (('dp', (3, 1, 1)), 3, (59, 16), (2, 16, 3, 4, 4), (2, 32, 16)),  # 3 does not divide 16
        (('tp', (2, 1, 4)), 8, (59, 8), (2, 8, 3, 1, 4), (2, 8, 8)),
        (('fsdp', (2, 4, 1)), 8, (59, 4), (2, 4, 3, 4, 4), (2, 32, 4)),  # groups keep what the strategy divides
        (('fsdp+tp', (2, 2, 2)), 8, (59, 8), (2, 8, 3, 2, 4), (2, 16, 8)),
    ],
)
def test_what_each_device_keeps_in_training(mesh, devices, table, qkv, out):
    partitioner = Partitioner(*mesh, devices=jax.devices()[:devices])
    *parts, norm = parts_of(partitioner)
    assert parts == [table, qkv, out] and norm == {'scale': (2, 16), 'bias': (2, 16)}
    whole = partitioner.tree_shardings(jax.eval_shape(CLASSIFIER.init, jax.random.key(0)))  # as it was
    assert 'data' not in str(jax.tree.map(lambda sharding: sharding.spec, whole))


@pytest.mark.parametrize(
    ('mesh', 'rows', 'part'),
    [
        (('dp', (8, 1, 1)), 64, (8, 16)),
        (('dp', (8, 1, 1)), 60, (60, 2)),  # 8 does not divide 60
        (('fsdp', (2, 4, 1)), 64, (64, 4)),  # the strategy has divided columns
        (('tp', (2, 1, 4)), 64, (64, 8)),  # the softmax divides rows otherwise
    ],
)
def test_rows_of_the_table_are_spread_rather_than_columns(mesh, rows, part):
    boxed = nn.LogicallyPartitioned(jax.ShapeDtypeStruct((rows, 16), np.float32), ('table_rows', 'table_embed'))
    assert Partitioner(*mesh).spread(boxed).tree_shardings(boxed).shard_shape((rows, 16)) == part
