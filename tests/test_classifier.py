"""A model with a head: the model draws what it draws without one; the head's sums by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from gpt1_jax.model.classifier import Classifier, ClassifierHead

DROPPING = models.decoder(dropout=0.3, attention_dropout=0.3, residual_dropout=0.3)
TOKENS = np.random.default_rng(1).integers(0, 43, (3, 16))
KEY = jax.random.key(7)


def test_a_head_changes_nothing_of_the_model():
    """Neither its first values nor its dropout, which are those of the module alone."""
    alone, with_head = Classifier(DROPPING), Classifier(DROPPING, ClassifierHead('classification', 3))
    params, params_with_head = (jax.jit(classifier.init)(KEY) for classifier in (alone, with_head))
    assert params.keys() == {'decoder'} and params_with_head.keys() == {'decoder', 'head'}
    jax.tree.map(np.testing.assert_array_equal, params['decoder'], params_with_head['decoder'])

    hidden, with_head_hidden = (
        classifier.read(params_with_head, TOKENS, key=KEY).hidden for classifier in (alone, with_head)
    )
    np.testing.assert_array_equal(with_head_hidden, hidden)
    module = DROPPING.apply({'params': params['decoder']}, TOKENS, train=True, rngs={'dropout': KEY}).hidden
    np.testing.assert_array_equal(hidden, module)
    assert not np.array_equal(hidden, alone.read(params, TOKENS, key=jax.random.key(8)).hidden)


def test_without_a_key_nothing_is_dropped():
    params = models.from_reference(models.random_params())
    states = np.random.default_rng(2).normal(size=(4, 1, 16)).astype(np.float32)
    dropping, plain = (
        Classifier(model, ClassifierHead('classification', 2, dropout=rate))
        for model, rate in ((DROPPING, 0.5), (models.decoder(), 0.0))
    )
    np.testing.assert_array_equal(dropping.read(params, TOKENS).hidden, plain.read(params, TOKENS).hidden)
    np.testing.assert_array_equal(dropping.classify(params, states), plain.classify(params, states))
    assert not np.array_equal(dropping.classify(params, states, KEY), plain.classify(params, states))


@pytest.mark.parametrize(
    ('kind', 'sequences', 'classes'),
    [('classification', 1, 3), ('entailment', 1, 2), ('similarity', 2, 6), ('multiple_choice', 4, 1)],
)
def test_heads_by_hand(kind, sequences, classes):
    """One linear layer on the state, on the sum of those of both orders, or on each choice's."""
    rng = np.random.default_rng(3)
    states, kernel, bias = rng.normal(size=(5, sequences, 16)), rng.normal(size=(16, classes)), rng.normal(size=classes)
    classifier = Classifier(models.decoder(), ClassifierHead(kind, classes))
    shapes = jax.eval_shape(classifier.init, KEY)['head']
    assert shapes['kernel'].value.shape == kernel.shape and shapes['bias'].value.shape == bias.shape
    logits = classifier.classify({'head': jax.tree.map(jnp.float32, {'kernel': kernel, 'bias': bias})}, states)
    assert logits.dtype == jnp.float32
    if kind == 'multiple_choice':
        expected = [[state @ kernel[:, 0] + bias[0] for state in example] for example in states]
    else:
        expected = [[sum(example) @ kernel[:, c] + bias[c] for c in range(classes)] for example in states]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_one_dropout_mask_for_all_choices_of_an_example():
    head = ClassifierHead('multiple_choice', 1, dropout=0.5)
    params = head.init(jax.random.key(0), jnp.zeros((1, 1, 8)))
    states = jnp.broadcast_to(jax.random.normal(jax.random.key(1), (6, 1, 8)), (6, 3, 8))
    scores = head.apply(params, states, train=True, rngs={'dropout': jax.random.key(2)})
    np.testing.assert_allclose(scores, jnp.broadcast_to(scores[:, :1], scores.shape), rtol=1e-6)
    assert not np.allclose(scores, head.apply(params, states))
