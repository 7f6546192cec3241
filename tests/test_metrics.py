"""Metrics against formulas written out by hand, and their edge cases."""

import warnings

import numpy as np
import pytest

from gpt1_jax.data.labelled import registry
from gpt1_jax.errors import UserError
from gpt1_jax.evaluation import metrics

# 3 true positives, 4 true negatives, 1 false positive, 2 false negatives.
LABELS = np.array([1, 1, 1, 0, 0, 1, 0, 0, 1, 0])
GUESSES = np.array([1, 0, 1, 0, 1, 1, 0, 0, 0, 0])


def test_class_metrics_by_hand():
    result = metrics.compute(['accuracy', 'f1', 'matthews'], LABELS, GUESSES)
    assert result['accuracy'] == pytest.approx(0.7)
    assert result['f1'] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert result['matthews'] == pytest.approx((3 * 4 - 1 * 2) / np.sqrt(4 * 5 * 5 * 6))
    assert all(type(value) is float for value in result.values())


def test_score_metrics_by_hand():
    labels, guesses = np.array([0.0, 1.5, 3.0, 5.0, 2.0]), np.array([0.1, 1.0, 4.0, 4.5, 4.2])
    result = metrics.compute(['pearson', 'spearman'], labels, guesses)
    ranks = lambda x: np.argsort(np.argsort(x))
    assert result['pearson'] == pytest.approx(np.corrcoef(labels, guesses)[0, 1])
    assert result['spearman'] == pytest.approx(np.corrcoef(ranks(labels), ranks(guesses))[0, 1])


@pytest.mark.parametrize('constant', [0, 1])
def test_constant_predictions_are_zero_not_nan(constant):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        guesses = np.full(10, constant)
        assert metrics.compute(['matthews', 'pearson', 'spearman'], LABELS, guesses) == {
            'matthews': 0.0,
            'pearson': 0.0,
            'spearman': 0.0,
        }
        if constant == 0:
            assert metrics.compute(['f1'], LABELS, guesses) == {'f1': 0.0}
        assert metrics.compute(['pearson'], np.full(10, 2.5), np.arange(10.0)) == {'pearson': 0.0}
        of_class = ['accuracy', 'matthews', 'f1']  # of examples with one label alone
        assert metrics.compute(of_class, guesses, guesses) == {'accuracy': 1.0, 'matthews': 0.0, 'f1': float(constant)}
        assert metrics.compute(['matthews'], guesses, GUESSES) == {'matthews': 0.0}


def test_nan_is_an_error():
    guesses = GUESSES.astype(float)
    guesses[3] = np.nan
    with pytest.raises(UserError, match='1 of 10 predictions'):
        metrics.compute(['pearson'], LABELS, guesses)
    with pytest.raises(UserError, match='not finite'):
        metrics.predictions('classification', np.array([[0.0, np.inf]]))


def test_predictions():
    logits = np.array([[0.0, 2.0, 1.0], [3.0, -1.0, 0.0]])
    for kind in ('classification', 'multiple_choice'):
        assert metrics.predictions(kind, logits).tolist() == [1, 0]
    # Logits log p give back p: the expectation of classes 0, 1, 2.
    p = np.array([[0.2, 0.5, 0.3], [0.0625, 0.0625, 0.875]])
    np.testing.assert_allclose(metrics.predictions('ordinal', np.log(p) + 7), [1.1, 1.8125], rtol=1e-6)


def test_every_metric_of_a_data_set_exists():
    assert set(metrics.METRICS) == {*registry.CLASS_METRICS, *registry.SCORE_METRICS}
    for dataset in registry.REGISTRY.values():
        assert set(dataset.metrics) <= set(metrics.METRICS)


def test_per_class_by_hand():
    rows = metrics.per_class(LABELS, GUESSES, ('no', 'yes', 'never'))
    assert rows['yes'] == pytest.approx({'precision': 3 / 4, 'recall': 3 / 5, 'f1': 2 / 3, 'examples': 5})
    assert rows['no'] == pytest.approx({'precision': 4 / 6, 'recall': 4 / 5, 'f1': 8 / 11, 'examples': 5})
    assert rows['never'] == {'precision': 0, 'recall': 0, 'f1': 0, 'examples': 0}


def test_score_of_subsets():
    logits = np.eye(2)[GUESSES] * 3
    right = LABELS == GUESSES
    expected = [
        ('accuracy', '', 0.7, 10),
        ('f1', '', 2 / 3, 10),
        ('accuracy', 'high', right[:4].mean(), 4),
        ('f1', 'high', 4 / 5, 4),
        ('accuracy', 'middle', right[4:].mean(), 6),
        ('f1', 'middle', 1 / 2, 6),
    ]
    subsets = ['high'] * 4 + ['middle'] * 6
    scores = metrics.score(('accuracy', 'f1'), 'classification', LABELS, logits, subsets)
    assert [score[:2] + score[3:] for score in scores] == [score[:2] + score[3:] for score in expected]
    assert [value for _, _, value, _ in scores] == pytest.approx([value for _, _, value, _ in expected])
    assert metrics.score(('accuracy', 'f1'), 'classification', LABELS, logits) == scores[:2]
    unnamed = metrics.score(('accuracy', 'f1'), 'classification', LABELS, logits, ['high'] * 4 + [''] * 6)
    assert unnamed == scores[:4]  # '' is not a subset


def test_predictions_of_squared_loss_are_the_outputs():
    assert metrics.predictions('mse', np.array([[2.5], [-1.0]])).tolist() == [2.5, -1.0]


def test_the_same_answer_to_all_by_hand():
    """The most frequent label: of 5 examples 3 are of label 1."""
    labels = np.array([1, 0, 1, 1, 2])
    assert metrics.constant('accuracy', labels) == pytest.approx(3 / 5)
    assert metrics.constant('matthews', labels) == 0
    assert metrics.constant('f1', np.array([1, 0, 1, 1])) == pytest.approx(2 * 3 / (2 * 3 + 1))
    assert metrics.constant('f1', np.array([0, 0, 1])) == pytest.approx(2 / (2 + 2))  # all of the rarer label
    assert metrics.constant('pearson', np.float32([0.5, 2, 2, 4])) == 0
