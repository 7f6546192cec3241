"""Scores of a split, and their flat names."""

import numpy as np
import pytest

from gpt1_jax.data.labelled.registry import REGISTRY
from gpt1_jax.data.labelled.sequences import Encoded
from gpt1_jax.evaluation.classification import flat_metrics, named_scores, score_split
from gpt1_jax.report.results import Score


def test_scores_of_a_split_with_subsets():
    logits = np.eye(4)[[0, 1, 2, 3]]
    encoded = Encoded([[[1]] * 4] * 4, np.array([0, 1, 3, 3]), list('abcd'), 0, 0, ['middle', 'high', 'high', 'high'])
    scores = score_split(REGISTRY['race'], 'multiple_choice', 'test', encoded, logits)
    assert scores == [
        Score('race', 'test', 'accuracy', 3 / 4, 4),
        Score('race', 'test', 'accuracy', 2 / 3, 3, 'high'),
        Score('race', 'test', 'accuracy', 1.0, 1, 'middle'),
    ]
    assert flat_metrics(scores) == {
        'test_score': 3 / 4,
        'test_accuracy': 3 / 4,
        'test_accuracy_high': 2 / 3,
        'test_accuracy_middle': 1.0,
    }
    assert named_scores(REGISTRY['race'], 'test', encoded, flat_metrics(scores)) == scores


def test_the_first_metric_of_a_data_set_is_the_score():
    logits = np.eye(2)[[1, 1, 0, 0]]
    encoded = Encoded([[[1], [1]]] * 4, np.array([1, 0, 0, 0]), list('abcd'), 0, 0)
    scores = score_split(REGISTRY['mrpc'], 'classification', 'dev', encoded, logits)
    flat = flat_metrics(scores)
    assert flat == pytest.approx({'dev_score': 2 / 3, 'dev_f1': 2 / 3, 'dev_accuracy': 3 / 4})
    assert list(flat) == ['dev_score', 'dev_f1', 'dev_accuracy']
    assert named_scores(REGISTRY['mrpc'], 'dev', encoded, flat) == scores
