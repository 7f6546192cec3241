"""Scores of a split, and their flat names; the files of logits and of errors."""

import json

import numpy as np
import pytest
from etils import epath

from gpt1_jax.data.labelled.examples import Examples
from gpt1_jax.data.labelled.registry import REGISTRY
from gpt1_jax.data.labelled.sequences import Encoded
from gpt1_jax.evaluation.classification import (
    _in_order,
    flat_metrics,
    named_scores,
    score_split,
    spread,
    write_errors,
    write_logits,
)
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
    earlier = flat_metrics(scores[:1])  # of a version that found no subsets
    assert named_scores(REGISTRY['race'], 'test', encoded, earlier) == scores[:1]


def test_the_first_metric_of_a_data_set_is_the_score():
    logits = np.eye(2)[[1, 1, 0, 0]]
    encoded = Encoded([[[1], [1]]] * 4, np.array([1, 0, 0, 0]), list('abcd'), 0, 0)
    scores = score_split(REGISTRY['mrpc'], 'classification', 'dev', encoded, logits)
    flat = flat_metrics(scores)
    assert flat == pytest.approx({'dev_score': 2 / 3, 'dev_f1': 2 / 3, 'dev_accuracy': 3 / 4})
    assert list(flat) == ['dev_score', 'dev_f1', 'dev_accuracy']
    assert named_scores(REGISTRY['mrpc'], 'dev', encoded, flat) == scores


def test_logits_come_in_the_order_of_the_examples():
    """Of a batch, whose shards may be packed in any order; -1 is padding."""
    output = {
        'ids': np.array([[12, -1, 10, 13, -1, 11]]),
        'logits': np.array([[[2.0, 2.5], [9, 9], [0, 0.5], [3, 3.5], [9, 9], [1, 1.5]]]),
    }
    assert _in_order(output).tolist() == [[0, 0.5], [1, 1.5], [2, 2.5], [3, 3.5]]


def test_a_spread_of_indices():
    assert spread(7, 10).tolist() == list(range(7)) and spread(0, 5).tolist() == spread(5, 0).tolist() == []
    assert spread(10, 4).tolist() == [0, 2, 5, 7]
    chosen = spread(9815, 100)
    assert len(set(chosen)) == 100 and set(np.diff(chosen)) == {98, 99} and 9815 - chosen[-1] <= 99


def errors(tmp_path, name, *arguments):
    write_errors(epath.Path(tmp_path) / 'errors.jsonl', REGISTRY[name], *arguments)
    return [json.loads(line) for line in (tmp_path / 'errors.jsonl').read_text().splitlines()]


def test_errors_are_wrong_few_and_spread(tmp_path):
    labels = np.random.default_rng(0).integers(0, 3, 1000)
    predicted = np.where(np.arange(1000) % 4 < 1, labels, (labels + 1) % 3)  # three of four are wrong
    texts = {'premise': [f'{i} ' + 'x' * 500 for i in range(1000)], 'hypothesis': [f'h{i}' for i in range(1000)]}
    found = errors(tmp_path, 'mnli', Examples(texts, labels, list(map(str, range(1000)))), labels, predicted)
    indices = [error['index'] for error in found]
    assert len(indices) == 100 and set(np.diff(indices)) <= {9, 10, 11} and 1000 - indices[-1] <= 11
    names = REGISTRY['mnli'].labels
    for error in found:
        i = error['index']
        assert i % 4 and error['texts'] == [texts['premise'][i][:400], f'h{i}']
        assert (error['label'], error['prediction']) == (names[labels[i]], names[predicted[i]])
    assert errors(tmp_path, 'mnli', None, labels[:9], predicted[:9])[-1] == {
        'index': 7,
        'texts': [],
        'label': names[labels[7]],
        'prediction': names[predicted[7]],
    }
    assert errors(tmp_path, 'mnli', None, labels, labels) == []


def test_errors_of_scores_are_the_largest(tmp_path):
    rng = np.random.default_rng(0)
    labels, predicted = rng.uniform(0, 5, (2, 300)).astype(np.float32)
    found = errors(tmp_path, 'stsb', None, labels, predicted)
    sizes = np.abs(labels - predicted)
    assert [error['index'] for error in found] == sorted(sorted(range(300), key=lambda i: -sizes[i])[:100])
    assert [error['label'] for error in found] == [float(labels[error['index']]) for error in found]
    assert [error['prediction'] for error in found] == [float(predicted[error['index']]) for error in found]


def test_each_choice_is_a_text(tmp_path):
    examples = Examples({'article': ['a'], 'question': ['q'], 'options': [['w', 'x', 'y', 'z']]}, None, ['0'])
    assert errors(tmp_path, 'race', examples, np.array([1]), np.array([3])) == [
        {'index': 0, 'texts': ['a', 'q', 'w', 'x', 'y', 'z'], 'label': 'B', 'prediction': 'D'}
    ]


@pytest.mark.parametrize('subsets', [None, ['middle', '', 'high']])
def test_logits_are_kept(tmp_path, subsets):
    path = epath.Path(tmp_path) / 'dev.npz'
    logits = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    write_logits(path, Encoded([[[1]] * 4] * 3, np.array([0, 3, 1], np.int32), list('abc'), 0, 0, subsets), logits)
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    assert arrays['labels'].tolist() == [0, 3, 1] and arrays['logits'].dtype == np.float32
    np.testing.assert_array_equal(arrays['logits'], logits)
    assert arrays.get('subsets', np.array(None)).tolist() == subsets
