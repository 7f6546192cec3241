"""What the log says of the labels of a run, and of dev examples that are in train."""

import dataclasses
import logging

import numpy as np
import pytest

from gpt1_jax.data.labelled.checks import log_labels, log_shared, log_subsets
from gpt1_jax.data.labelled.registry import REGISTRY, custom_dataset
from gpt1_jax.data.labelled.sequences import Encoded

COLOURS = custom_dataset(kind='classification', fields=['text'], labels=['red', 'green', 'blue'])


@pytest.fixture
def logged(caplog):
    """A function that calls another one and gives (levels, text) of what that logs."""

    def call(function, *args):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger='absl'):
            function(*args)
        return [record.levelname for record in caplog.records], caplog.text

    return call


def test_labels_are_counted_in_one_line(logged):
    levels, text = logged(log_labels, COLOURS, 'train', np.array([2, 0, 2, 1]), 4)
    assert levels == ['INFO'] and 'custom, train split: 4 examples: red 1, green 1, blue 2' in text
    levels, text = logged(log_labels, REGISTRY['stsb'], 'dev', np.float32([0.5, 4.75, 1.5]), 3)
    assert levels == ['INFO'] and 'stsb, dev split: 3 examples: scores from 0.5 to 4.75, 2.25 on average' in text
    levels, text = logged(log_labels, COLOURS, 'test', None, 7)
    assert levels == ['INFO'] and '7 examples: without labels' in text


@pytest.mark.parametrize('split', ['train', 'dev', 'dev_mismatched'])
def test_labels_that_never_occur_are_named(logged, split):
    levels, text = logged(log_labels, COLOURS, split, np.array([1, 1]), 2)
    assert (
        levels == ['INFO', 'WARNING'] and f'The {split} split has no example of 2 of the 3 labels: red, blue.' in text
    )
    assert logged(log_labels, COLOURS, 'test', np.array([1, 1]), 2)[0] == ['INFO']


@pytest.mark.parametrize(('scores', 'warned'), [([0, 1], True), ([0.2, 0.9], True), ([0, 1.2], False)])
def test_scores_of_another_scale_are_told(logged, scores, warned):
    levels, text = logged(log_labels, REGISTRY['stsb'], 'train', np.float32(scores), 2)
    assert levels == ['INFO', 'WARNING'][: 1 + warned]
    assert ('No score of the train split is above 1, but they go up to 5' in text) == warned
    binary = custom_dataset(kind='classification', fields=['text'], max_score=1)
    assert logged(log_labels, binary, 'train', np.float32(scores).clip(0, 1), 2)[0] == ['INFO']


def encoded(texts):
    """Two sequences an example."""
    return Encoded(
        [[list(map(ord, a)), list(map(ord, b))] for a, b in texts], None, list(map(str, range(len(texts)))), 0, 0
    )


def test_dev_examples_that_are_in_train_are_counted(logged):
    train = [(f'a{i}', f'b{i}') for i in range(100)]
    for dev, number, level in (
        (train, 100, 'WARNING'),
        ([('c', f'd{i}') for i in range(97)] + train[:3], 3, 'INFO'),
        ([('c', f'd{i}') for i in range(94)] + 6 * train[:1], 6, 'WARNING'),
        ([('a1', 'b2'), ('b1', 'a1')], 0, None),  # other pairs of the same texts
    ):
        levels, text = logged(log_shared, COLOURS, encoded(train).take(np.arange(100)[::-1]), encoded(dev))
        assert levels == [level] * (level is not None)
        assert not number or f'{number} of the {len(dev)} dev examples are training examples too' in text


def test_a_level_that_train_lacks_is_named(logged):
    of = lambda *levels: dataclasses.replace(encoded([('a', 'b')] * len(levels)), subsets=list(levels))
    for train, dev, missing in (
        (of('high', 'high'), of('high', 'middle'), 'middle'),
        (of('high', 'middle'), of('high', 'middle'), ''),
        (encoded([('a', 'b')]), of('high'), ''),  # it is unknown which train has
        (encoded([('a', 'b')]), encoded([('a', 'b')]), ''),
    ):
        levels, text = logged(log_subsets, REGISTRY['race'], train, dev)
        assert levels == ['WARNING'] * bool(missing) and f'No training example is of {missing}' * bool(missing) in text
