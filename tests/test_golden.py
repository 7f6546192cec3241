"""The package against Hugging Face transformers' OpenAI GPT, in float64 (tests/golden, written by make_golden.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import ours
import pytest
from test_reference import GOLDEN, HEADS, tree

from gpt1_jax.config import optimizer_defaults
from gpt1_jax.data.packing import FinetuningBatches
from gpt1_jax.data.transforms import Encoded
from gpt1_jax.model.heads import ClassifierHead
from gpt1_jax.training import steps
from gpt1_jax.training.optimizer import make_optimizer

SIZES = dict(vocab=50, n_special=0, n_positions=16, width=16, layers=2, heads=HEADS, mlp=64)
MODEL = ours.decoder(SIZES, softmax_rows='tokens')  # the port's softmax has no position rows
KEY = jax.random.key(0)


@pytest.fixture(scope='module')
def golden():
    with np.load(GOLDEN, allow_pickle=False) as file:
        return dict(file)


def decoder_params(golden):
    return ours.from_reference(tree(golden, 'weights'), HEADS)['decoder']


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
    loss_fn = steps.pretrain_loss_fn(MODEL, groups=2, batch_size=4)
    batch = {'tokens': golden['tokens'].reshape(-1, 12)}
    (loss, _), gradients = jax.value_and_grad(loss_fn, has_aux=True)({'decoder': decoder_params(golden)}, batch, KEY)
    np.testing.assert_allclose(loss, golden['lm_loss'], rtol=1e-5)
    expected = ours.from_reference(tree(golden, 'lm_gradients'), HEADS)['decoder']
    ours.assert_trees_close(ours.without_invariant(gradients['decoder']), ours.without_invariant(expected), 1e-3, 1e-5)


def test_finetuning_loss_gradients_and_updates(golden):
    """Multiple choice through the packed batch; then four Adam updates as torch makes them."""
    sequences = [list(example) for example in golden['tokens']]
    encoded = Encoded(sequences, golden['labels'], ['0', '1'], 0, 0)
    batch = FinetuningBatches(encoded, batch_size=2, min_row_length=32).batch_at(0)
    batch = {name: jnp.asarray(value[0]) for name, value in batch.items()}
    params = ours.from_reference(tree(golden, 'weights'), HEADS)
    loss_fn = steps.finetune_loss_fn(MODEL, ClassifierHead('multiple_choice', 1, dropout=0.0), 'multiple_choice', 0.5)
    (_, metrics), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params, batch, KEY)
    np.testing.assert_allclose(metrics['task_loss'], golden['choice_loss'], rtol=1e-5)
    np.testing.assert_allclose(metrics['lm_loss'], golden['lm_loss'], rtol=1e-5)
    expected = ours.from_reference(tree(golden, 'finetune_gradients'), HEADS)
    ours.assert_trees_close(ours.without_invariant(gradients), ours.without_invariant(expected), 1e-3, 1e-5)

    optimizer, _ = make_optimizer(optimizer_defaults(schedule='linear', learning_rate=0.01, warmup_fraction=0.2), 10)
    state = optimizer.init(params)
    for scale in golden['gradient_scales']:
        updates, state = optimizer.update(jax.tree.map(lambda g, s=scale: np.float32(s) * g, expected), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    ours.assert_trees_close(ours.without_invariant(params), ours.without_invariant(
        ours.from_reference(tree(golden, 'updated'), HEADS)), 1e-5, 1e-6)


def test_classification_logits(golden):
    params = ours.from_reference(tree(golden, 'weights', classifier=True), HEADS)
    hidden = MODEL.apply({'params': params['decoder']}, golden['tokens'].reshape(-1, 12)).hidden
    logits = ClassifierHead('classification', 3).apply({'params': params['head']}, hidden[:, -1:])
    np.testing.assert_allclose(logits, golden['class_logits'], rtol=1e-4, atol=1e-4)
