"""Whole updates against the float64 reference; the same for any packing. On meshes: test_meshes.py."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import models
import reference
from configs import common
from gpt1_jax.data.labelled.packing import EvaluationBatches, FinetuningBatches, Rows
from gpt1_jax.data.labelled.sequences import Encoded
from gpt1_jax.data.placement import Placement
from gpt1_jax.model.classifier import Classifier, ClassifierHead
from gpt1_jax.training import program, steps
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.state import abstract_params

ONE = ('dp', (1, 1, 1))
KINDS = [
    ('classification', 'classification', 3, 1),
    ('similarity', 'ordinal', 6, 2),
    ('multiple_choice', 'multiple_choice', 1, 3),  # kind, loss, classes, sequences an example
]
ADAM = dict(lr=0.01, schedule=reference.linear_schedule, total=10, warmup=0.2, l2=0.01, clip=1.0)  # of the reference


def run(loss_fn, classifier, batch_of, mesh=ONE, params=None, n_steps=2):
    """(state, metrics of each step) after `n_steps`, from `params` or from scratch."""
    partitioner = Partitioner(*mesh, devices=jax.devices()[:1] if mesh == ONE else None)
    config = ml_collections.ConfigDict(
        {'optimizer': common.optimizer_defaults(schedule='linear', learning_rate=0.01, warmup_fraction=0.2)}
    )
    made = program._program(config, classifier, loss_fn, 10, partitioner)
    state = made.create_state(seed=0)
    if params is not None:
        state = state.replace(
            params=jax.tree.map(lambda x, leaf: jax.device_put(x, leaf.sharding), params, made.abstract.params)
        )
    metrics = []
    for index in range(n_steps):
        batch = partitioner.put_batch(batch_of(index, partitioner.placement))
        if mesh != ONE and index == 0:  # without the mesh's context, flax would silently leave the constraints out
            assert 'sharding_constraint' in made.train_step.lower(state, batch).as_text()
        state, values = made.train_step(state, batch)
        metrics.append(jax.device_get(values))
    return jax.device_get(state), metrics


def assert_params_close(actual, expected, rtol=1e-4, atol=1e-5):
    models.assert_trees_close(models.without_invariant(actual), models.without_invariant(expected), rtol, atol)


def assert_same_run(actual, expected):
    for a, e in zip(actual[1], expected[1]):
        assert a.keys() == e.keys()
        for name in e:
            np.testing.assert_allclose(a[name], e[name], rtol=2e-5, err_msg=name)
    assert_params_close(actual[0].params, expected[0].params, rtol=1e-3, atol=1e-4)


# Pre-training


def tokens_of(index, placement=Placement(), accumulation=1, vocab=40, length=16):
    """16 windows as a batch."""
    rng, rows = np.random.default_rng(index), 16 // accumulation // placement.shards
    tokens = rng.integers(0, vocab, (accumulation, placement.shards, rows, length + 1))
    weights = np.full((*tokens.shape[:3], length), 1 / 16 / length, np.float32)
    return {'tokens': tokens.astype(np.uint16), 'weights': weights}


def pretrain(model, mesh=ONE, accumulation=1, **options):
    classifier = Classifier(model)
    return run(
        steps.pretrain_loss_fn(classifier),
        classifier,
        lambda index, placement: tokens_of(index, placement, accumulation),
        mesh,
        **options,
    )


def test_pretraining_updates_equal_the_reference():
    sizes = models.TINY | dict(n_special=0)
    params = models.random_params(sizes=sizes)
    classifier = Classifier(models.decoder(sizes))
    batch_of = lambda index, _=None: tokens_of(index, vocab=9, length=8)
    tree = models.from_reference(params, heads=2)
    state, metrics = run(steps.pretrain_loss_fn(classifier), classifier, batch_of, params={'decoder': tree['decoder']})
    adam = reference.adam_init(params)
    for t in (1, 2):
        sequences = batch_of(t - 1)['tokens'][0, 0].astype(int)

        def loss(params):
            hidden = [reference.forward(params, s[:-1], 2, n_positions=8) for s in sequences]
            return np.mean([reference.lm_nll(params, h, s[1:], n_positions=8) for h, s in zip(hidden, sequences)])

        np.testing.assert_allclose(metrics[t - 1]['loss'], loss(params), rtol=1e-5)
        params, adam = reference.adam_update(params, reference.gradients(loss, params), adam, t, **ADAM)
    assert_params_close(state.params['decoder'], models.from_reference(params, heads=2)['decoder'])


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted():
    model = models.decoder(n_special=0)
    params = {'decoder': models.from_reference(models.random_params(n_special=0))['decoder']}
    params['decoder']['table'][3] = np.nan
    state, metrics = pretrain(model, params=params, n_steps=3)
    assert [m['skipped'] for m in metrics] == [1, 2, 3] and state.step == 3
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(state.opt_state))


@pytest.mark.slow
def test_after_a_skipped_step_the_schedule_goes_on_and_the_bias_correction_does_not():
    """The rate of a step is that of a run that skips nothing; the moments are those of the updates that were made."""
    sizes, bad_step = models.TINY | dict(n_special=0), 1
    params, classifier = models.random_params(sizes=sizes), Classifier(models.decoder(sizes))
    tree = models.from_reference(params, heads=2)
    batch_of = lambda index, _=None: tokens_of(index, vocab=9, length=8)
    plain, bad = steps.pretrain_loss_fn(classifier), batch_of(bad_step)['tokens'][0]

    def spoilt(params, batch, key):
        loss = plain(params, batch, key)[0] * jnp.where(jnp.all(batch['tokens'] == bad), jnp.nan, 1.0)
        return loss, {'loss': loss}

    (state, metrics), (_, without_skips) = (
        run(loss_fn, classifier, batch_of, n_steps=4, params={'decoder': tree['decoder']})
        for loss_fn in (spoilt, plain)
    )
    assert [m['skipped'] for m in metrics] == [0, 1, 0, 0]
    assert state.step == 4 and state.opt_state[-1].count == 3
    assert [m['learning_rate'] for m in metrics] == [m['learning_rate'] for m in without_skips]

    adam, skipped = reference.adam_init(params), 0
    for step in range(4):
        if step == bad_step:
            skipped += 1
            continue
        sequences = batch_of(step)['tokens'][0, 0].astype(int)

        def loss(params):
            hidden = [reference.forward(params, s[:-1], 2, n_positions=8) for s in sequences]
            return np.mean([reference.lm_nll(params, h, s[1:], n_positions=8) for h, s in zip(hidden, sequences)])

        params, adam = reference.adam_update(
            params,
            reference.gradients(loss, params),
            adam,
            step + 1 - skipped,
            lr=0.01,
            schedule=lambda _, warmup, step=step: reference.linear_schedule(step / 10, warmup),
            total=10,
            warmup=0.2,
            l2=0.01,
            clip=1.0,
        )
    assert_params_close(state.params['decoder'], models.from_reference(params, heads=2)['decoder'])


# Fine-tuning


def encoded_of(kind, loss, classes, sequences, n=24, vocab=40, longest=16):
    """Random sequences with special tokens, `sequences` an example."""
    rng = np.random.default_rng(5)
    start, extract = vocab, vocab + 2
    one = lambda: np.array([start, *rng.integers(0, vocab, rng.integers(1, longest - 1)), extract], np.int32)
    labels = (
        rng.uniform(0, 5, n).astype(np.float32)
        if loss == 'ordinal'
        else (rng.integers(0, max(classes, sequences), n).astype(np.int32))
    )
    return Encoded([[one() for _ in range(sequences)] for _ in range(n)], labels, [str(i) for i in range(n)], 0, 0)


def finetune(case, mesh=ONE, packing=True, accumulation=1, sizes=models.SIZES, params=None, encoded=None, **flags):
    kind, loss, classes, sequences = case
    encoded = encoded or encoded_of(*case)
    classifier = Classifier(models.decoder(sizes), ClassifierHead(kind, classes, dropout=0.0))
    batch_of = lambda index, placement: FinetuningBatches(
        encoded, batch_size=8, rows=Rows(32), placement=placement, accumulation=accumulation, packing=packing, **flags
    ).batch_at(index)
    return run(steps.finetune_loss_fn(classifier, loss, 0.5), classifier, batch_of, mesh, params)


@pytest.mark.slow
@pytest.mark.parametrize('case', KINDS, ids=[case[0] for case in KINDS])
def test_finetuning_updates_equal_the_reference(case):
    kind, loss, classes, sequences = case
    sizes, vocab = models.TINY, 9
    encoded = encoded_of(*case, n=8, vocab=vocab, longest=8)
    params = models.random_params(classes=classes, sizes=sizes)
    state, metrics = finetune(case, sizes=sizes, params=models.from_reference(params, heads=2), encoded=encoded)
    adam = reference.adam_init(params)
    f = lambda params: reference.finetune_loss(
        params, encoded.sequences, encoded.labels, 2, kind=kind, loss=loss, lam=0.5, n_positions=8
    )
    for t in (1, 2):
        np.testing.assert_allclose(metrics[t - 1]['loss'], f(params), rtol=1e-5)
        params, adam = reference.adam_update(params, reference.gradients(f, params), adam, t, **ADAM)
    assert_params_close(state.params, models.from_reference(params, heads=2))


@pytest.mark.slow
@pytest.mark.parametrize('case', KINDS, ids=[case[0] for case in KINDS])
def test_packed_equals_unpacked_equals_accumulated(case):
    expected = finetune(case, packing=False)
    assert_same_run(finetune(case), expected)
    assert_same_run(finetune(case, accumulation=4), expected)


def test_a_shared_context_equals_one_for_each_choice():
    case = next(case for case in KINDS if case[0] == 'multiple_choice')
    encoded = encoded_of(*case)
    contexts = np.random.default_rng(6).integers(0, 40, (24, 9)).astype(np.int32)
    longer = [
        [np.concatenate([sequence[:1], context[: i % 10], sequence[-5:]]) for sequence in example]
        for i, (context, example) in enumerate(zip(contexts, encoded.sequences))
    ]
    encoded = Encoded(longer, encoded.labels, encoded.ids, 0, 0)
    expected = finetune(case, packing=False, encoded=encoded)
    shared = finetune(case, ('fsdp+tp', (2, 2, 2)), accumulation=2, encoded=encoded, share_context=True)
    assert_same_run(shared, expected)


def test_every_example_is_predicted_once_on_eight_devices():
    """A prime number of examples; the logits are those of the reference, example by example."""
    case = kind, loss, classes, _ = KINDS[2]
    encoded = encoded_of(*case, n=13)
    params = models.random_params(classes=classes)
    partitioner = Partitioner('dp')
    classifier = Classifier(models.decoder(), ClassifierHead(kind, classes))
    step = program.prediction(classifier, abstract_params(classifier, partitioner), partitioner)
    batches = EvaluationBatches(encoded, batch_size=10, rows=Rows(32), placement=partitioner.placement)
    tree = models.from_reference(params)
    outputs = [step(tree, partitioner.put_batch(batches.batch_at(i))) for i in range(batches.steps)]
    ids = np.concatenate([output['ids'][0] for output in outputs])
    assert sorted(ids[ids >= 0]) == list(range(13))
    logits = np.concatenate([output['logits'][0] for output in outputs])[ids >= 0]
    expected = reference.finetune_logits(params, encoded.sequences, 4, kind=kind, n_positions=16)
    np.testing.assert_allclose(logits, np.array(expected)[ids[ids >= 0]], rtol=1e-4, atol=1e-5)
