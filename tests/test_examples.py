"""Entries -> examples: texts, labels and ids, and one message for each mistake."""

import logging

import numpy as np
import pytest

from gpt1_jax.data.labelled.registry import REGISTRY, custom_dataset
from helpers import load_files, refusal, write_lines

PAIRS = custom_dataset(kind='entailment', fields=['a', 'b'], labels=['no', 'yes'])


@pytest.mark.parametrize(
    'value, expected', [(0, 0), (1, 1), ('0', 0), ('1', 1), ('positive', 1), ('negative', 0), (1.0, 1), (' 1 ', 1)]
)
def test_labels_by_id_or_name(tmp_path, value, expected):
    write_lines(tmp_path / 'dev.jsonl', [{'sentence': 'x', 'label': value}])
    assert load_files('sst2', tmp_path, 'dev').labels.tolist() == [expected]


@pytest.mark.parametrize(
    'labels, value, expected',
    [
        (('true', 'false'), True, 0),
        (('False', 'True'), True, 1),
        (('0', '1'), True, 1),
        (('0', '1'), False, 0),
        (('yes', 'no'), True, None),
        (('-1', '1'), -1, 0),
        (('-1', '1'), 0, None),
        (('None', 'x'), None, None),
    ],
)
def test_booleans_and_numbers_as_names(tmp_path, labels, value, expected):
    """By name or not at all: nobody knows which of two ids `true` is, or whether 0 is the first of '-1' and '1'."""
    write_lines(tmp_path / 'dev.jsonl', [{'text': 'x', 'label': value}])
    dataset = custom_dataset(kind='classification', fields=['text'], labels=labels)
    if expected is None:
        assert 'label' in refusal(dataset, tmp_path, 'dev')
    else:
        assert load_files(dataset, tmp_path, 'dev').labels.tolist() == [expected]


def test_scores(tmp_path):
    entries = [{'sentence1': 'x', 'sentence2': 'y', 'label': score} for score in (0, 2.5, '5.000')]
    write_lines(tmp_path / 'train.tsv', entries)
    labels = load_files('stsb', tmp_path).labels
    assert labels.tolist() == [0.0, 2.5, 5.0] and labels.dtype == np.float32
    for bad in (5.1, 'high', 'nan', -2):
        write_lines(tmp_path / 'dev.jsonl', [{'sentence1': 'x', 'sentence2': 'y', 'label': bad}])
        message = refusal('stsb', tmp_path, 'dev')
        assert 'dev.jsonl, line 1' in message and repr(bad) in message and 'between 0 and 5' in message


@pytest.mark.parametrize('mark', [-1, '', None, '-1', -1.0])
@pytest.mark.parametrize('name', ['sst2', 'stsb'])
def test_unlabelled_test_split(tmp_path, name, mark):
    dataset = REGISTRY[name]
    entry = {**dict.fromkeys(dataset.fields, 'x'), 'label': mark}
    write_lines(tmp_path / 'test.jsonl', [entry, entry])
    assert load_files(dataset, tmp_path, 'test').labels is None
    del entry['label']
    write_lines(tmp_path / 'test.jsonl', [entry, entry])
    assert load_files(dataset, tmp_path, 'test').labels is None


def test_missing_labels_are_errors(tmp_path):
    entries = [{'sentence': 'x', 'label': 1}, {'sentence': 'y', 'label': -1}]
    for split in ('train', 'dev', 'test'):
        write_lines(tmp_path / f'{split}.jsonl', entries)
        assert f'{split}.jsonl, line 2' in refusal('sst2', tmp_path, split)


def test_story_cloze_labels_are_one_and_two(tmp_path):
    write_lines(tmp_path / 'test.jsonl', [{**{'context': 'c', 'endings': ['a', 'b']}, 'label': 0}])
    assert 'The label 0 is unknown. Use 1, 2.' in refusal('story_cloze', tmp_path, 'test')


@pytest.mark.parametrize(
    'endings, words',
    [
        (['a', 'b', 'c'], "line 1, column 'endings': The number of choices is 3, but the data set has 2"),
        ('a', "line 1, column 'endings': The value is not a list"),
        (['a', 5], "line 1, column 'endings': The value is int, not text"),
    ],
)
def test_wrong_choices(tmp_path, endings, words):
    write_lines(tmp_path / 'test.jsonl', [{'context': 'c', 'endings': endings, 'label': 1}])
    assert words in refusal('story_cloze', tmp_path, 'test')


@pytest.mark.parametrize('column', ['idx', 'id', 'index', 'story_id', 'InputStoryid'])
def test_duplicate_ids_are_refused(tmp_path, column):
    entries = [{'a': 'x', 'b': 'y', 'label': 1, column: id_} for id_ in (3, 4, 3)]
    write_lines(tmp_path / 'train.tsv', entries)
    assert "train.tsv, line 4: The id '3' is also that of line 2." in refusal(PAIRS, tmp_path)
    write_lines(tmp_path / 'train.tsv', entries[:2])
    assert load_files(PAIRS, tmp_path).ids == ['3', '4']


def test_empty_fields_are_text(tmp_path):
    write_lines(tmp_path / 'train.tsv', [{'a': '', 'b': '', 'label': 1}, {'a': 'x', 'b': '', 'label': 0}])
    assert load_files(PAIRS, tmp_path).fields == {'a': ['', 'x'], 'b': ['', '']}


def test_a_labelled_test_split_keeps_its_labels(tmp_path):
    write_lines(tmp_path / 'test.jsonl', [{'sentence': 'x', 'label': 1}, {'sentence': 'y', 'label': 'negative'}])
    assert load_files('sst2', tmp_path, 'test').labels.tolist() == [1, 0]


def test_a_score_of_json_that_is_not_a_number(tmp_path):
    (tmp_path / 'dev.jsonl').write_text('{"sentence1": "x", "sentence2": "y", "label": NaN}\n')
    assert 'dev.jsonl, line 1' in refusal('stsb', tmp_path, 'dev')


def test_what_is_left_out_is_counted(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger='absl'):
        write_lines(
            tmp_path / 'train.jsonl',
            [{'premise': 'a', 'hypothesis': 'b', 'label': label} for label in (0, -1, 2, '-', 1)],
        )
        examples = load_files('snli', tmp_path)
        assert examples.labels.tolist() == [0, 2, 1] and examples.ids == ['0', '2', '4']
        assert '2 of the 5 examples of the train split' in caplog.text
        write_lines(tmp_path / 'dev.tsv', 'question1\tquestion2\tlabel\na\tb\t1\nc\nd\te\tf\t0\ng\th\t0\n')
        assert load_files('qqp', tmp_path, 'dev').fields['question1'] == ['a', 'g']
        assert 'dev.tsv: 2 lines have too few or too many cells and are left out' in caplog.text


def test_unlabelled_examples_of_snli_in_a_test_split(tmp_path):
    entries = [{'premise': 'a', 'hypothesis': 'b', 'label': label} for label in (-1, 1, -1)]
    write_lines(tmp_path / 'test.jsonl', entries)
    examples = load_files('snli', tmp_path, 'test')
    assert examples.labels.tolist() == [1] and examples.ids == ['1']
    write_lines(tmp_path / 'test.jsonl', entries[::2])
    examples = load_files('snli', tmp_path, 'test')
    assert examples.labels is None and len(examples) == 2
