"""The package against Hugging Face transformers' OpenAI GPT, in float64 (tests/golden, written by make_golden.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from configs import common
from gpt1_jax.data.labelled.packing import FinetuningBatches, Rows
from gpt1_jax.data.labelled.sequences import Encoded
from gpt1_jax.model.classifier import Classifier, ClassifierHead
from gpt1_jax.training import steps
from gpt1_jax.training.optimizer import make_optimizer
from helpers import golden_tree

HEADS = 4
SIZES = dict(vocab=50, n_special=0, n_positions=16, width=16, layers=2, heads=HEADS, mlp=64)
MODEL = models.decoder(SIZES, softmax_rows='tokens')  # the port's softmax has no position rows
KEY = jax.random.key(0)


def decoder_params(golden):
    return models.from_reference(golden_tree(golden, 'weights'), HEADS)['decoder']


def test_hidden_states_and_logits(golden):
    tokens = golden['tokens'].reshape(-1, 12)
    params = {'params': decoder_params(golden)}
    output = MODEL.apply(params, tokens)
    np.testing.assert_allclose(output.hidden, golden['hidden_states'][-1], rtol=1e-4, atol=2e-5)
    logits = output.hidden @ output.embedding.T
    np.testing.assert_allclose(logits, golden['logits'], rtol=1e-4, atol=1e-4)
    shifted = MODEL.apply(params, tokens, jnp.broadcast_to(jnp.arange(3, 15), tokens.shape)).hidden
    np.testing.assert_allclose(shifted, golden['shifted_hidden'], rtol=1e-4, atol=2e-5)


def test_pretraining_loss_and_gradients(golden):
    loss_fn = steps.pretrain_loss_fn(Classifier(MODEL))
    batch = {'tokens': golden['tokens'].reshape(2, 2, 12), 'weights': np.full((2, 2, 11), 1 / 44, np.float32)}
    (loss, _), gradients = jax.value_and_grad(loss_fn, has_aux=True)({'decoder': decoder_params(golden)}, batch, KEY)
    np.testing.assert_allclose(loss, golden['lm_loss'], rtol=1e-5)
    expected = models.from_reference(golden_tree(golden, 'lm_gradients'), HEADS)['decoder']
    models.assert_trees_close(
        models.without_invariant(gradients['decoder']), models.without_invariant(expected), 1e-3, 1e-5
    )


@pytest.mark.slow
def test_finetuning_loss_gradients_and_updates(golden):
    """Multiple choice through the packed batch; then four Adam updates as torch makes them."""
    sequences = [list(example) for example in golden['tokens']]
    encoded = Encoded(sequences, golden['labels'], ['0', '1'], 0, 0)
    batch = FinetuningBatches(encoded, batch_size=2, rows=Rows(32)).batch_at(0)
    batch = {name: jnp.asarray(value[0]) for name, value in batch.items()}
    params = models.from_reference(golden_tree(golden, 'weights'), HEADS)
    classifier = Classifier(MODEL, ClassifierHead('multiple_choice', 1, dropout=0.0))
    loss_fn = steps.finetune_loss_fn(classifier, 'multiple_choice', 0.5)
    (_, metrics), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params, batch, KEY)
    np.testing.assert_allclose(metrics['task_loss'], golden['choice_loss'], rtol=1e-5)
    np.testing.assert_allclose(metrics['lm_loss'], golden['lm_loss'], rtol=1e-5)
    expected = models.from_reference(golden_tree(golden, 'finetune_gradients'), HEADS)
    models.assert_trees_close(models.without_invariant(gradients), models.without_invariant(expected), 1e-3, 1e-5)

    optimizer, _ = make_optimizer(
        common.optimizer_defaults(schedule='linear', learning_rate=0.01, warmup_fraction=0.2), 10
    )
    state = optimizer.init(params)
    for scale in golden['gradient_scales']:
        updates, state = optimizer.update(jax.tree.map(lambda g, s=scale: np.float32(s) * g, expected), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    models.assert_trees_close(
        models.without_invariant(params),
        models.without_invariant(models.from_reference(golden_tree(golden, 'updated'), HEADS)),
        1e-5,
        1e-6,
    )


def test_classification_logits(golden):
    params = models.from_reference(golden_tree(golden, 'weights', classifier=True), HEADS)
    hidden = MODEL.apply({'params': params['decoder']}, golden['tokens'].reshape(-1, 12)).hidden
    logits = ClassifierHead('classification', 3).apply({'params': params['head']}, hidden[:, -1:])
    np.testing.assert_allclose(logits, golden['class_logits'], rtol=1e-4, atol=1e-4)
