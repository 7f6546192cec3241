"""Every dropout of a run has a mask of its own: of a step, a micro-batch, a layer, a place in the layer, the head."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import models
from configs import common
from gpt1_jax.model.classifier import Classifier, ClassifierHead
from gpt1_jax.model.dropout import keep_mask
from gpt1_jax.training import steps
from gpt1_jax.training.optimizer import make_optimizer
from gpt1_jax.training.state import TrainState
from helpers import assert_rows_are_uncorrelated

WIDTH, LAYERS, STEPS, MICRO_BATCHES = 64, 3, 3, 3
DROPPING = dict(dropout=0.5, attention_dropout=0.5, residual_dropout=0.5)
# A head for each element of the width: of one token, a layer's attention mask is as large as its others.
SIZES = dict(vocab=4, n_special=0, n_positions=1, width=WIDTH, layers=LAYERS, heads=WIDTH, mlp=32)
MODEL, HEAD = models.decoder(SIZES, **DROPPING), ClassifierHead('classification', 3, dropout=0.5)


def pretraining():
    """(loss_fn, a batch of one token, the same for each micro-batch)."""
    return steps.pretrain_loss_fn(Classifier(MODEL)), batch_of(MICRO_BATCHES, rows=1, length=1)


def batch_of(micro_batches, rows, length):
    """Zeros, each of them with the same weight."""
    shape = micro_batches, 1, rows
    weights = np.full((*shape, length), 1 / (micro_batches * rows * length), np.float32)
    return {'tokens': np.zeros((*shape, length + 1), np.uint16), 'weights': weights}


def finetuning():
    shape = MICRO_BATCHES, 1, 1
    batch = {name: np.zeros((*shape, 1), np.int32) for name in ('tokens', 'positions', 'segment_ids', 'extract')}
    batch |= {'labels': np.zeros(shape, np.int32), 'example_weights': np.ones(shape, np.float32)}
    return steps.finetune_loss_fn(Classifier(MODEL, HEAD), 'classification', 0.0), batch


def updates(loss_fn, params):
    """Function of a step's number and its batch: `params` after that step."""
    optimizer, rate = make_optimizer(
        common.optimizer_defaults(schedule='linear', learning_rate=0.01, warmup_fraction=0.0, weight_decay=0.0), 10
    )
    step = jax.jit(steps.train_step(loss_fn, optimizer, rate))

    def update(number, batch):
        state = TrainState(
            step=jnp.int32(number),
            skipped=jnp.int32(0),
            params=params,
            opt_state=optimizer.init(params),
            key=jax.random.key_data(jax.random.key(0)),
        )
        return step(state, batch)[0].params

    return update


@pytest.mark.slow
@pytest.mark.parametrize('task', [pretraining, finetuning])
def test_no_two_masks_are_alike(task):
    """What a mask drops gets no gradient, so the parameters that a step leaves as they were show its masks."""
    task_loss, batch = task()

    def loss_fn(params, micro_batch, key):
        loss = micro_batch['weight'] * task_loss(params, micro_batch, key)[0]
        return loss, {'loss': loss}

    params = models.from_reference(models.random_params(classes=3, sizes=SIZES), heads=WIDTH)
    update = updates(loss_fn, params)
    masks = {}
    for step, index in itertools.product(range(STEPS), range(MICRO_BATCHES)):
        only_one = {'weight': np.eye(MICRO_BATCHES, dtype=np.float32)[index]}
        changed = jax.tree.map(lambda new, old: np.asarray(new != old), update(step, batch | only_one), params)
        blocks = changed['decoder']['blocks']
        masks[step, index, 'table'] = changed['decoder']['table'][0]
        if task is finetuning:
            masks[step, index, 'head'] = changed['head']['kernel'].any(axis=1)
        for layer in range(LAYERS):
            masks[step, index, layer, 'attention'] = blocks['attention']['qkv_bias'][layer, 2, :, 0]  # of the values
            masks[step, index, layer, 'residual of attention'] = blocks['attention']['out_bias'][layer]
            masks[step, index, layer, 'residual of the MLP'] = blocks['mlp']['out']['bias'][layer]

    # Two masks agree in a binomial number of elements; of all pairs one has more than `most` with probability 1e-4.
    pairs = list(itertools.combinations(masks, 2))
    most = stats.binom.isf(1e-4 / len(pairs), WIDTH, 0.5)
    assert [(a, b) for a, b in pairs if np.sum(masks[a] == masks[b]) > most] == []


@pytest.mark.slow
def test_masks_of_training_are_uncorrelated(monkeypatch):
    """All masks of two steps of two micro-batches, in slices as large as one head's for one sequence."""
    masks = {}  # by their bits: attention's are made again in the backward pass

    def recording(*arguments):
        mask = keep_mask(*arguments)
        jax.debug.callback(lambda values: masks.update({np.packbits(values).tobytes(): np.asarray(values)}), mask)
        return mask

    monkeypatch.setattr('gpt1_jax.model.dropout.keep_mask', recording)
    sizes = dict(vocab=192, n_special=0, n_positions=64, width=64, layers=LAYERS, heads=4, mlp=32)
    params = models.from_reference(models.random_params(sizes=sizes))
    classifier = Classifier(models.decoder(sizes, **DROPPING))
    update = updates(steps.pretrain_loss_fn(classifier), {'decoder': params['decoder']})
    for number in range(2):
        update(number, batch_of(2, rows=4, length=64))
    jax.effects_barrier()
    assert len(masks) == 2 * 2 * (1 + 3 * LAYERS)
    assert_rows_are_uncorrelated(np.concatenate([mask.reshape(-1, 64 * 64) for mask in masks.values()]))
