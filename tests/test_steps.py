"""Whole updates against the float64 reference; the same on any mesh, for any accumulation and any packing."""

import jax
import jax.numpy as jnp
import numpy as np
import ours
import pytest
import reference

from gpt1_jax.config import optimizer_defaults
from gpt1_jax.data.packing import EvaluationBatches, FinetuningBatches
from gpt1_jax.data.transforms import Encoded
from gpt1_jax.model.heads import ClassifierHead
from gpt1_jax.training import steps
from gpt1_jax.training.optimizer import make_optimizer
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.state import abstract_state, create_state, params_initialiser

MESHES = [('dp', ()), ('fsdp', ()), ('tp', (2, 1, 4)), ('fsdp+tp', (2, 2, 2))]
ONE = ('dp', (1, 1, 1))
KINDS = [('classification', 'classification', 3, 1), ('similarity', 'ordinal', 6, 2),
         ('multiple_choice', 'multiple_choice', 1, 3)]  # kind, loss, classes, sequences an example


def run(loss_fn_of, model, head, batch_of, mesh=ONE, params=None, n_steps=2):
    """(state, metrics of each step) after `n_steps`, from `params` or from scratch."""
    partitioner = Partitioner(*mesh, devices=jax.devices()[:1] if mesh == ONE else None)
    optimizer, rate = make_optimizer(optimizer_defaults(schedule='linear', learning_rate=0.01, warmup_fraction=0.2), 10)
    init_params = params_initialiser(model, head)
    abstract = abstract_state(init_params, optimizer, partitioner)
    with partitioner.activate():
        state = create_state(init_params, optimizer, abstract, seed=0)
        if params is not None:
            state = state.replace(params=jax.tree.map(
                lambda x, leaf: jax.device_put(x, leaf.sharding), params, abstract.params))
        step = steps.jit_train_step(
            steps.train_step(loss_fn_of(partitioner.groups), optimizer, rate), abstract, partitioner)
        metrics = []
        for index in range(n_steps):
            batch = partitioner.put_batch(batch_of(index, partitioner.groups), axis=1)
            if mesh != ONE and index == 0:  # without its context, flax would silently leave the constraints out
                assert 'sharding_constraint' in str(jax.make_jaxpr(step)(state, batch))
            state, values = step(state, batch)
            metrics.append(jax.device_get(values))
    return jax.device_get(state), metrics


def assert_params_close(actual, expected, rtol=1e-4, atol=1e-5):
    ours.assert_trees_close(ours.without_invariant(actual), ours.without_invariant(expected), rtol, atol)


def assert_same_run(actual, expected):
    for a, e in zip(actual[1], expected[1]):
        assert a.keys() == e.keys()
        for name in e:
            np.testing.assert_allclose(a[name], e[name], rtol=2e-5, err_msg=name)
    assert_params_close(actual[0].params, expected[0].params, rtol=1e-3, atol=1e-4)


# Pre-training


def tokens_of(index, accumulation=1, vocab=40, length=16):
    rng = np.random.default_rng(index)
    return {'tokens': rng.integers(0, vocab, (accumulation, 16 // accumulation, length + 1)).astype(np.uint16)}


def pretrain(model, mesh=ONE, accumulation=1, **options):
    return run(lambda groups: steps.pretrain_loss_fn(model, groups, 16), model, None,
               lambda index, groups: tokens_of(index, accumulation), mesh, **options)


def test_pretraining_updates_equal_the_reference():
    sizes = ours.TINY | dict(n_special=0)
    params = ours.random_params(sizes=sizes)
    model = ours.decoder(sizes)
    batch_of = lambda index: tokens_of(index, vocab=9, length=8)
    tree = ours.from_reference(params, heads=2)
    state, metrics = run(lambda groups: steps.pretrain_loss_fn(model, groups, 16), model, None,
                         lambda index, _: batch_of(index), params={'decoder': tree['decoder']})
    adam = reference.adam_init(params)
    for t in (1, 2):
        sequences = batch_of(t - 1)['tokens'][0].astype(int)

        def loss(params):
            hidden = [reference.forward(params, s[:-1], 2, n_positions=8) for s in sequences]
            return np.mean([reference.lm_nll(params, h, s[1:], n_positions=8) for h, s in zip(hidden, sequences)])

        np.testing.assert_allclose(metrics[t - 1]['loss'], loss(params), rtol=1e-5)
        params, adam = reference.adam_update(
            params, reference.gradients(loss, params), adam, t, lr=0.01, schedule=reference.linear_schedule, total=10,
            warmup=0.2, l2=0.01, clip=1.0)
    assert_params_close(state.params['decoder'], ours.from_reference(params, heads=2)['decoder'])


DROPPING = dict(n_special=0, dropout=0.1, attention_dropout=0.1, residual_dropout=0.1)


def test_pretraining_is_the_same_on_every_mesh_with_dropout_on():
    model = ours.decoder(**DROPPING)
    expected = pretrain(model)
    assert expected[1][0]['loss'] != pretrain(ours.decoder(n_special=0), n_steps=1)[1][0]['loss']
    for mesh in MESHES:
        assert_same_run(pretrain(model, mesh), expected)


def test_accumulation_equals_the_large_batch():
    model = ours.decoder(n_special=0)
    for accumulation, mesh in ((4, ONE), (2, ('fsdp', ()))):
        assert_same_run(pretrain(model, mesh, accumulation), pretrain_rows(model, accumulation))


def pretrain_rows(model, accumulation):
    """One batch of the rows that `accumulation` micro-batches hold."""
    return run(lambda groups: steps.pretrain_loss_fn(model, groups, 16), model, None,
               lambda index, _: {'tokens': tokens_of(index, accumulation)['tokens'].reshape(1, 16, 17)})


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted():
    model = ours.decoder(n_special=0)
    params = {'decoder': ours.from_reference(ours.random_params(n_special=0))['decoder']}
    params['decoder']['table'][3] = np.nan
    state, metrics = pretrain(model, params=params, n_steps=3)
    assert [m['skipped'] for m in metrics] == [1, 2, 3] and state.step == 3
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(state.opt_state))


def test_after_a_skipped_step_the_schedule_goes_on_and_the_bias_correction_does_not():
    """The rate of a step is that of a run that skips nothing; the moments are those of the updates that were made."""
    sizes, bad_step = ours.TINY | dict(n_special=0), 1
    params, model = ours.random_params(sizes=sizes), ours.decoder(sizes)
    tree = ours.from_reference(params, heads=2)
    batch_of = lambda index: tokens_of(index, vocab=9, length=8)
    plain, bad = steps.pretrain_loss_fn(model, 1, 16), batch_of(bad_step)['tokens'][0]

    def spoilt(params, batch, key):
        loss = plain(params, batch, key)[0] * jnp.where(jnp.all(batch['tokens'] == bad), jnp.nan, 1.0)
        return loss, {'loss': loss}

    (state, metrics), (_, without_skips) = (
        run(lambda groups: loss_fn, model, None, lambda index, _: batch_of(index), n_steps=4,
            params={'decoder': tree['decoder']}) for loss_fn in (spoilt, plain))
    assert [m['skipped'] for m in metrics] == [0, 1, 0, 0]
    assert state.step == 4 and state.opt_state[-1].count == 3
    assert [m['learning_rate'] for m in metrics] == [m['learning_rate'] for m in without_skips]

    adam, skipped = reference.adam_init(params), 0
    for step in range(4):
        if step == bad_step:
            skipped += 1
            continue
        sequences = batch_of(step)['tokens'][0].astype(int)

        def loss(params):
            hidden = [reference.forward(params, s[:-1], 2, n_positions=8) for s in sequences]
            return np.mean([reference.lm_nll(params, h, s[1:], n_positions=8) for h, s in zip(hidden, sequences)])

        params, adam = reference.adam_update(
            params, reference.gradients(loss, params), adam, step + 1 - skipped, lr=0.01,
            schedule=lambda _, warmup, step=step: reference.linear_schedule(step / 10, warmup), total=10, warmup=0.2,
            l2=0.01, clip=1.0)
    assert_params_close(state.params['decoder'], ours.from_reference(params, heads=2)['decoder'])


# Fine-tuning


def encoded_of(kind, loss, classes, sequences, n=24, vocab=40, longest=16):
    """Random sequences with special tokens, `sequences` an example."""
    rng = np.random.default_rng(5)
    start, extract = vocab, vocab + 2
    one = lambda: np.array([start, *rng.integers(0, vocab, rng.integers(1, longest - 1)), extract], np.int32)
    labels = rng.uniform(0, 5, n).astype(np.float32) if loss == 'ordinal' else (
        rng.integers(0, max(classes, sequences), n).astype(np.int32))
    return Encoded([[one() for _ in range(sequences)] for _ in range(n)], labels, [str(i) for i in range(n)], 0, 0)


def finetune(case, mesh=ONE, packing=True, accumulation=1, sizes=ours.SIZES, params=None, encoded=None, **flags):
    kind, loss, classes, sequences = case
    encoded = encoded or encoded_of(*case)
    model = ours.decoder(sizes)
    head = ClassifierHead(kind, classes, dropout=0.0)
    batches = lambda groups: FinetuningBatches(
        encoded, batch_size=8, min_row_length=32, groups=groups, accumulation=accumulation, packing=packing,
        **flags)
    return run(lambda groups: steps.finetune_loss_fn(model, head, loss, 0.5), model, head,
               lambda index, groups: batches(groups).batch_at(index), mesh, params)


@pytest.mark.parametrize('case', KINDS, ids=[case[0] for case in KINDS])
def test_finetuning_updates_equal_the_reference(case):
    kind, loss, classes, sequences = case
    sizes, vocab = ours.TINY, 9
    encoded = encoded_of(*case, n=8, vocab=vocab, longest=8)
    params = ours.random_params(classes=classes, sizes=sizes)
    state, metrics = finetune(case, sizes=sizes, params=ours.from_reference(params, heads=2), encoded=encoded)
    adam = reference.adam_init(params)
    f = lambda params: reference.finetune_loss(
        params, encoded.sequences, encoded.labels, 2, kind=kind, loss=loss, lam=0.5, n_positions=8)
    for t in (1, 2):
        np.testing.assert_allclose(metrics[t - 1]['loss'], f(params), rtol=1e-5)
        params, adam = reference.adam_update(
            params, reference.gradients(f, params), adam, t, lr=0.01, schedule=reference.linear_schedule, total=10,
            warmup=0.2, l2=0.01, clip=1.0)
    assert_params_close(state.params, ours.from_reference(params, heads=2))


@pytest.mark.parametrize('case', KINDS, ids=[case[0] for case in KINDS])
def test_packed_equals_unpacked_equals_accumulated(case):
    expected = finetune(case, packing=False)
    assert_same_run(finetune(case), expected)
    assert_same_run(finetune(case, accumulation=4), expected)


def test_a_shared_context_equals_one_for_each_choice():
    case = next(case for case in KINDS if case[0] == 'multiple_choice')
    encoded = encoded_of(*case)
    contexts = np.random.default_rng(6).integers(0, 40, (24, 9)).astype(np.int32)
    longer = [[np.concatenate([sequence[:1], context[:i % 10], sequence[-5:]]) for sequence in example]
              for i, (context, example) in enumerate(zip(contexts, encoded.sequences))]
    encoded = Encoded(longer, encoded.labels, encoded.ids, 0, 0)
    expected = finetune(case, packing=False, encoded=encoded)
    assert_same_run(finetune(case, MESHES[3], accumulation=2, encoded=encoded, share_context=True), expected)


def test_finetuning_is_the_same_on_every_mesh():
    case = KINDS[1]
    expected = finetune(case)
    for mesh in MESHES:
        assert_same_run(finetune(case, mesh), expected)


def test_every_example_is_predicted_once_on_eight_devices():
    """A prime number of examples; the logits are those of the reference, example by example."""
    case = kind, loss, classes, _ = KINDS[2]
    encoded = encoded_of(*case, n=13)
    params = ours.random_params(classes=classes)
    partitioner = Partitioner('dp')
    model, head = ours.decoder(), ClassifierHead(kind, classes)
    optimizer, _ = make_optimizer(optimizer_defaults(schedule='linear', learning_rate=0.01), 10)
    abstract = abstract_state(params_initialiser(model, head), optimizer, partitioner)
    batches = EvaluationBatches(encoded, batch_size=10, min_row_length=32, groups=8)
    with partitioner.activate():
        step = steps.jit_eval_step(steps.predict_step(model, head), abstract.params, partitioner)
        tree = ours.from_reference(params)
        outputs = [step(tree, partitioner.put_batch(batches.batch_at(i))) for i in range(batches.steps)]
    ids = np.concatenate([output['ids'] for output in outputs])
    assert sorted(ids[ids >= 0]) == list(range(13))
    logits = np.concatenate([output['logits'] for output in outputs])[ids >= 0]
    expected = reference.finetune_logits(params, encoded.sequences, 4, kind=kind, n_positions=16)
    np.testing.assert_allclose(logits, np.array(expected)[ids[ids >= 0]], rtol=1e-4, atol=1e-5)


def test_one_dropout_mask_for_all_choices_of_an_example():
    head = ClassifierHead('multiple_choice', 1, dropout=0.5)
    params = head.init(jax.random.key(0), jnp.zeros((1, 1, 8)))
    states = jnp.broadcast_to(jax.random.normal(jax.random.key(1), (6, 1, 8)), (6, 3, 8))
    scores = head.apply(params, states, train=True, rngs={'dropout': jax.random.key(2)})
    np.testing.assert_allclose(scores, jnp.broadcast_to(scores[:, :1], scores.shape), rtol=1e-6)
    assert not np.allclose(scores, head.apply(params, states))
