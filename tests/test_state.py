"""The training state: a function of the seed on any mesh, sharded as the strategy says, and its items."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import models
from configs import common
from gpt1_jax.model.classifier import Classifier, ClassifierHead
from gpt1_jax.training.optimizer import make_optimizer
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.state import TrainState, abstract_params, abstract_state, create_state

CLASSIFIER = Classifier(models.decoder(), ClassifierHead('classification', 2))
OPTIMIZER, _ = make_optimizer(common.optimizer_defaults(schedule='linear', learning_rate=0.01), 10)
SHARDED = {  # with both strategies together; what is not here is whole on every device
    'decoder/table': P(None, 'fsdp'),
    'decoder/blocks/attention/qkv_kernel': P(None, 'fsdp', None, 'tensor', None),
    'decoder/blocks/attention/qkv_bias': P(None, None, 'tensor', None),
    'decoder/blocks/attention/out_kernel': P(None, 'tensor', None, 'fsdp'),
    'decoder/blocks/mlp/in/kernel': P(None, 'fsdp', 'tensor'),
    'decoder/blocks/mlp/in/bias': P(None, 'tensor'),
    'decoder/blocks/mlp/out/kernel': P(None, 'tensor', 'fsdp'),
}


def one_device():
    return Partitioner('dp', (1, 1, 1), jax.devices()[:1])


def by_name(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator='/'): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.slow
@pytest.mark.parametrize('mesh', [('dp', ()), ('fsdp', ()), ('tp', (2, 1, 4)), ('fsdp+tp', (2, 2, 2))])
def test_a_state_is_a_function_of_the_seed_whatever_the_mesh(mesh):
    state, expected = (
        create_state(CLASSIFIER, OPTIMIZER, partitioner, seed=3) for partitioner in (Partitioner(*mesh), one_device())
    )
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_seeds_give_other_states():
    one, other = (create_state(CLASSIFIER, OPTIMIZER, one_device(), seed=seed) for seed in (0, 1))
    assert not np.array_equal(one.key, other.key)
    for state in (one, other):
        assert state.step.dtype == state.skipped.dtype == np.int32 and state.step == state.skipped == 0
        assert not any(leaf.any() for leaf in jax.tree.leaves(state.opt_state))
    kernels = [name for name in by_name(one.params) if name.endswith(('kernel', 'table'))]
    assert len(kernels) == 6
    for name in kernels:
        assert not np.array_equal(by_name(one.params)[name], by_name(other.params)[name])


def test_dropout_has_a_key_that_first_values_do_not_have():
    state = create_state(CLASSIFIER, OPTIMIZER, one_device(), seed=0)
    key = jax.random.wrap_key_data(state.key)
    assert key != jax.random.key(0)
    # Close, not equal: what is compiled together may be rounded otherwise.
    assert not np.allclose(CLASSIFIER.init(key)['decoder']['table'].value, state.params['decoder']['table'])


def test_parameters_and_moments_are_sharded_as_the_strategy_says():
    partitioner = Partitioner('fsdp+tp', (2, 2, 2))
    state = abstract_state(CLASSIFIER, OPTIMIZER, partitioner)
    _, moments, *_ = state.opt_state
    for tree in (state.params, moments.mu, moments.nu, abstract_params(CLASSIFIER, partitioner)):
        leaves = by_name(tree)
        assert len(leaves) == 15 and SHARDED.keys() <= leaves.keys()
        for name, leaf in leaves.items():
            expected = jax.sharding.NamedSharding(partitioner.mesh, SHARDED.get(name, P()))
            assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), name
    for leaf in (state.step, state.skipped, state.key):
        assert leaf.sharding.is_fully_replicated


def test_abstract_parameters_are_those_of_the_state_and_of_a_language_model_s():
    partitioner = Partitioner('fsdp')
    whole = abstract_params(CLASSIFIER, partitioner)
    assert whole == abstract_state(CLASSIFIER, OPTIMIZER, partitioner).params
    assert abstract_params(Classifier(CLASSIFIER.model), partitioner) == {'decoder': whole['decoder']}


def test_items_make_the_state_again():
    state = create_state(CLASSIFIER, OPTIMIZER, one_device(), seed=0)
    state = state.replace(step=state.step + 5, skipped=state.skipped + 2)
    items = state.items()
    assert items.keys() == {'params', 'opt_state', 'run'} and items['params'] is state.params
    again = TrainState.from_items(items)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, again, state)
