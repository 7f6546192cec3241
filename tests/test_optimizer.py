"""The optimizer against the float64 transcription of the release's rule, and against torch's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
import reference
from configs import common
from gpt1_jax.errors import UserError
from gpt1_jax.training.optimizer import decayed, make_optimizer


def config(**values):
    return common.optimizer_defaults(**{'schedule': 'linear', 'learning_rate': 0.01, 'warmup_fraction': 0.2} | values)


@pytest.mark.parametrize('schedule', ['linear', 'cosine'])
@pytest.mark.parametrize(('clip', 'skips'), [(0.5, 0), (1e9, 0), (0.5, 3)])
def test_ten_updates_equal_the_releases(schedule, clip, skips):
    """`skips`: steps without an update after the fourth one."""
    rng, total = np.random.default_rng(0), 10 + skips
    params = models.random_params()
    optimizer, rate = make_optimizer(config(schedule=schedule, max_grad_norm=clip), total)
    tree = models.from_reference(params)
    state, adam = optimizer.init(tree), reference.adam_init(params)
    update = jax.jit(optimizer.update)
    for t in range(1, 11):
        gradients = models.random_params(seed=t)
        scale = rng.choice([1e-3, 1.0])
        for path in reference.paths(gradients):
            gradients = reference.replace(gradients, path, scale * reference.get(gradients, path))
        before = tree
        skipped = skips if t > 4 else 0
        # Where nothing is skipped the count of updates stands for the step.
        of_step = {'step': jnp.int32(t - 1 + skipped)} if skips else {}
        updates, state = update(models.from_reference(gradients), state, tree, **of_step)
        tree = jax.tree.map(jnp.add, tree, updates)
        factor = getattr(reference, f'{schedule}_schedule')
        params, adam = reference.adam_update(
            params,
            gradients,
            adam,
            t,
            lr=0.01,
            schedule=lambda x, warmup: factor(x + skipped / total, warmup),
            total=total,
            warmup=0.2,
            l2=0.01,
            clip=clip,
        )
        models.assert_trees_close(tree, models.from_reference(params), rtol=1e-5, atol=1e-6)
        if t == 1:  # with a warm-up the first rate is 0
            jax.tree.map(np.testing.assert_array_equal, tree, before)
    assert abs(rate(total)) < 1e-9 and state[-1].count == 10


def test_the_state_is_that_of_optax():
    """So that checkpoints from before the schedule followed the steps load."""
    tree = models.from_reference(models.random_params())
    optimizer, _ = make_optimizer(config(), 10)
    clip, _, decay, scale = optimizer.init(tree)
    parts = (
        optax.clip_by_global_norm(1.0),
        optax.add_decayed_weights(0.01, decayed),
        optax.scale_by_learning_rate(lambda count: count),
    )
    for state, part in zip((clip, decay, scale), parts, strict=True):
        expected = part.init(tree)
        assert jax.tree.structure(state) == jax.tree.structure(expected)
        jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_rates():
    paper = config(warmup_fraction=0.0, warmup_steps=2000, schedule='cosine', learning_rate=2.5e-4)
    _, rate = make_optimizer(paper, 10_000)
    rates = [rate(jnp.float32(n)) for n in (0, 1000, 2000, 10_000)]
    np.testing.assert_allclose(rates, [0, 1.25e-4, 2.5e-4, 0], atol=1e-9)
    _, rate = make_optimizer(config(warmup_fraction=0.0), 100)
    np.testing.assert_allclose([rate(jnp.float32(n)) for n in (0, 50, 100)], [0.01, 0.005, 0], atol=1e-9)


@pytest.mark.parametrize('schedule', ['linear', 'cosine', 'constant'])
def test_without_a_warm_up_the_first_rate_is_the_peak(schedule):
    _, rate = make_optimizer(config(schedule=schedule, warmup_fraction=0.0), 100)
    np.testing.assert_allclose(rate(jnp.int32(0)), 0.01, rtol=1e-6)


def test_biases_and_gains_do_not_decay():
    tree = models.from_reference(models.random_params())
    flags = jax.tree_util.tree_leaves_with_path(decayed(tree))
    names = {jax.tree_util.keystr(path, simple=True, separator='/') for path, flag in flags if flag}
    blocks = 'decoder/blocks'
    assert names == {
        'decoder/table',
        'head/kernel',
        f'{blocks}/attention/qkv_kernel',
        f'{blocks}/attention/out_kernel',
        f'{blocks}/mlp/in/kernel',
        f'{blocks}/mlp/out/kernel',
    }


def test_errors():
    with pytest.raises(UserError, match='linear, cosine'):
        make_optimizer(config(schedule='cosin'), 10)
    with pytest.raises(UserError, match='warmup_steps: 10 is too many'):
        make_optimizer(config(warmup_steps=10), 10)
