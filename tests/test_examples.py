"""Entries -> examples: texts, labels and ids, and one message for each mistake."""

import json
import logging

import numpy as np
import pytest

from gpt1_jax.data.labelled import examples
from gpt1_jax.data.labelled.registry import REGISTRY, custom_dataset
from gpt1_jax.errors import UserError
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
        (('0', '1'), 'True', 1),  # as pandas writes it
        (('1', '2'), True, None),  # not the first of them
        (('yes', 'no'), 'hidden', None),
        (('hidden', 'x'), 'hidden', 0),
        (('1', '2'), '2.0', 1),
        (('1.0', '2.0'), 1, 0),
        (('1', '1.0', 'x'), '1.00', None),
        (('yes', 'no'), '1.0', 1),
        (('yes', 'no'), 0.5, None),
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


@pytest.mark.parametrize('mark', [-1, '', None, '-1', -1.0, 'hidden', '-', float('nan')])
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


@pytest.mark.parametrize('column', ['idx', 'id', 'ID', 'Index', 'story_id', 'InputStoryid', 'test_id'])
@pytest.mark.parametrize(
    ('ids', 'bad'),
    [((3, 4, 'x'), 0), ((3, 4, 3), 1), ((7, 7, 7), 2), ((3, '', 4), 1), ((3, None, 4), 1), ((3, '', ''), 2)]
    + [((3, 'a\nb', 4), 1), ((3, '\ud83d', 4), 1)],  # they would break a line of predictions
)
def test_ids_that_repeat_or_are_missing_become_numbers(tmp_path, caplog, column, ids, bad):
    entries = [{'a': 'x', 'b': 'y', 'label': i % 2, column: id_} for i, id_ in enumerate(ids)]
    (tmp_path / 'train.jsonl').write_text('\n'.join(map(json.dumps, entries)))
    assert load_files(PAIRS, tmp_path).ids == (['0', '1', '2'] if bad else ['3', '4', 'x'])
    words = f'empty or repeated ids (the examples are numbered instead): {bad}.'
    assert [record.levelname for record in caplog.records if words in record.message] == ['WARNING'] * bool(bad)


def test_the_column_of_the_labels_has_no_ids(tmp_path, caplog):
    dataset = custom_dataset(kind='classification', fields=['text'], labels=['x', 'y'], label_field='ID')
    write_lines(tmp_path / 'train.jsonl', [{'text': 'a', 'ID': one, 'Index': f'n{one}'} for one in 'yx'])
    examples = load_files(dataset, tmp_path)
    assert examples.ids == ['ny', 'nx'] and examples.labels.tolist() == [1, 0] and not caplog.records


def test_of_two_ids_the_usual_name_counts(tmp_path):
    entries = [{'a': 'x', 'b': 'y', 'label': 1, 'ID': 7 + i, 'index': i + 3} for i in range(2)]
    write_lines(tmp_path / 'train.jsonl', entries)
    assert load_files(PAIRS, tmp_path).ids == ['3', '4']


def test_without_ids_there_are_numbers_and_no_warning(tmp_path, caplog):
    for entry in ({}, {'id': None}):
        write_lines(tmp_path / 'train.jsonl', [{'a': 'x', 'b': 'y', 'label': i, **entry} for i in (1, 0)])
        assert load_files(PAIRS, tmp_path).ids == ['0', '1']
    assert not caplog.records


def test_empty_fields_are_text(tmp_path, caplog):
    entries = [{'a': '', 'b': ' \t', 'label': 1}, {'a': 'x', 'b': '', 'label': 0}]
    write_lines(tmp_path / 'train.jsonl', entries)
    assert load_files(PAIRS, tmp_path).fields == {'a': ['', 'x'], 'b': [' \t', '']}
    assert ', train split of 2 examples: examples without any text: 1.' in caplog.text


def test_half_a_character_is_replaced_and_counted(tmp_path, caplog):
    """JSON can write one half of a surrogate pair; two halves that meet are one character."""
    lines = [r'{"a": "so \ud83d", "b": "\ude00\ud83d\ude00", "label": 1}', r'{"a": "x", "b": "\u0000y", "label": 0}']
    (tmp_path / 'train.jsonl').write_text('\n'.join(lines))
    assert load_files(PAIRS, tmp_path).fields == {'a': ['so \ufffd', 'x'], 'b': ['\ufffd\U0001f600', '\0y']}
    assert (
        'texts with half a character (U+FFFD stands for it): 2' in caplog.text
        and caplog.records[0].levelname == 'WARNING'
    )


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


def test_a_train_or_dev_split_without_any_label_is_refused(tmp_path):
    """Also of a set that leaves out examples without one: nothing would remain."""
    for name in ('snli', 'mnli'):
        write_lines(tmp_path / 'train.jsonl', 2 * [{'premise': 'a', 'hypothesis': 'b', 'label': '-'}])
        words = "train.jsonl, line 1, column 'label': The value '-' stands for no label, as in 2 of 2 examples. Label"
        assert words in refusal(name, tmp_path)


@pytest.mark.parametrize('value', ['', None, ' ', float('nan')])
def test_a_label_that_is_not_there(tmp_path, value):
    (tmp_path / 'train.jsonl').write_text(json.dumps({'sentence': 'x', 'label': value}))
    message = refusal('sst2', tmp_path)
    assert "column 'label': There is no label, as in 1 of 1 examples." in message and message.endswith('none at all).')


@pytest.mark.parametrize(
    ('labels', 'values', 'fix'),
    [
        (('negative', 'neutral', 'positive'), (-1, 0, 1), '-1,0,1'),
        (('negative', 'neutral', 'positive'), ('1', '0', '-1', '', '1'), '-1,0,1'),
        (('negative', 'neutral', 'positive'), (-1.0, 1.0, 0.0, None), '-1,0,1'),
        (('negative', 'positive'), ('-1', '1'), '-1,1'),
        (('negative', 'positive'), ('positive', 'hidden'), 'negative,positive,hidden'),
    ],
)
def test_a_label_that_looks_like_none(tmp_path, labels, values, fix):
    write_lines(tmp_path / 'train.jsonl', [{'text': 'x', 'label': value} for value in values])
    message = refusal(custom_dataset(kind='classification', fields=['text'], labels=labels), tmp_path)
    mark = next(value for value in values if value in (-1, '-1', 'hidden'))
    assert f'The value {mark!r} stands for no label, as in ' in message
    assert message.endswith(f'none at all); if it is a label, set data.labels={fix}.')
    values = [value for value in values if value not in ('', None)]
    write_lines(tmp_path / 'train.jsonl', [{'text': 'x', 'label': value} for value in values])
    dataset = custom_dataset(kind='classification', fields=['text'], labels=fix.split(','))
    ids = [fix.split(',').index(str(value).removesuffix('.0')) for value in values]
    assert load_files(dataset, tmp_path).labels.tolist() == ids


def test_a_score_that_stands_for_none_is_quoted(tmp_path):
    write_lines(tmp_path / 'train.tsv', [{'sentence1': 'x', 'sentence2': 'y', 'label': score} for score in (2, -1)])
    message = refusal('stsb', tmp_path)
    assert "line 3, column 'label': The value '-1' stands for no label, as in 1 of 2 examples. Label every" in message
    assert 'data.labels' not in message


def test_choices_have_as_many_labels_as_before(tmp_path):
    columns = ['a', 'b']
    entries = [{'story': 's', 'a': 'x', 'b': 'y', 'label': label} for label in ('a', '-1', 'b')]
    write_lines(tmp_path / 'train.csv', entries)
    dataset = custom_dataset(kind='multiple_choice', fields=['story'], choices=columns)
    assert "The value '-1' stands for no label" in (message := refusal(dataset, tmp_path))
    assert 'data.labels' not in message


@pytest.mark.parametrize(
    ('ids', 'expected'),
    [
        ((10.0, 9.0, 2.0), ['10', '9', '2']),  # of a parquet file whose column had nulls once
        ((1.5, 1.0, 2), ['1.5', '1', '2']),
        ((' 1', '1.0', 1), [' 1', '1.0', '1']),  # text is as it is
    ],
)
def test_ids_that_are_whole_floats(tmp_path, ids, expected):
    write_lines(tmp_path / 'train.jsonl', [{'a': 'x', 'b': 'y', 'label': 1, 'idx': id_} for id_ in ids])
    assert load_files(PAIRS, tmp_path).ids == expected


def test_multinli_leaves_out_examples_without_a_label(tmp_path, caplog):
    labels = ['-', 'neutral', 'hidden', 'entailment', '']
    with caplog.at_level(logging.INFO, logger='absl'):
        write_lines(
            tmp_path / 'dev_matched.jsonl',
            [{'sentence1': 'a', 'sentence2': 'b', 'gold_label': label} for label in labels],
        )
        examples = load_files('mnli', tmp_path, 'dev')
    assert examples.labels.tolist() == [1, 0] and examples.ids == ['1', '3']
    assert '3 of the 5 examples of the dev split' in caplog.text


@pytest.mark.parametrize(
    ('name', 'value', 'expected'),
    [
        ('scitail', 'entailment', 0),
        ('scitail', 'entails', 0),
        ('scitail', 'neutral', 1),
        ('scitail', 'contradiction', None),
        ('qqp', True, 1),
        ('qqp', False, 0),
        ('qqp', 'True', 1),
        ('sst2', True, None),
        ('copa', 'choice2', 1),
        ('copa', 2, None),
        ('story_cloze', '2.0', 1),
        ('dpr', 1.0, 1),
    ],
)
def test_other_words_for_labels(name, value, expected):
    """Those of SciTail's SNLI form and of Quora's truth values."""
    if expected is None:
        with pytest.raises(UserError, match='The label .* is unknown. Use '):
            examples._label(REGISTRY[name], value, 'here', set())
    else:
        assert examples._label(REGISTRY[name], value, 'here', set()) == expected


def test_case_of_labels_is_told(tmp_path):
    write_lines(tmp_path / 'train.jsonl', [{'a': 'x', 'b': 'y', 'label': 'Yes'}])
    message = refusal(PAIRS, tmp_path)
    assert "The label 'Yes' is unknown, only 'yes' is known: upper and lower case differ. Use no, yes, or" in message


def test_a_label_with_a_comma_needs_quotes(tmp_path):
    write_lines(tmp_path / 'train.jsonl', [{'text': 'x', 'label': 'arts, crafts'}])
    dataset = custom_dataset(kind='classification', fields=['text'], labels=['arts', 'crafts', 'news'])
    wanted = 'in data.labels, put a name with a comma in quotes, as in "arts, crafts",other.'
    assert refusal(dataset, tmp_path).endswith(wanted)


def numbered(folder, labels, names=('low', 'mid', 'high')):
    write_lines(folder / 'train.jsonl', [{'text': 'x', 'label': label} for label in labels])
    return custom_dataset(kind='classification', fields=['text'], labels=names)


def test_numbers_that_may_begin_with_1_are_not_read_in_silence(tmp_path, caplog):
    dataset = numbered(tmp_path, (1, 2, 3))
    fix = 'if they begin with 1, set data.labels=1,2,3'
    assert f'The label 3 is unknown. Use low, mid, high, or their ids 0 to 2; {fix}.' in refusal(dataset, tmp_path)
    assert not caplog.records
    numbered(tmp_path, (1, '2', 1))
    assert load_files(dataset, tmp_path).labels.tolist() == [1, 2, 1]  # nobody can know
    [record] = caplog.records
    assert f'the labels are numbers, but never 0: 1 is read as mid, 2 is read as high ({fix})' in record.message
    assert record.levelname == 'WARNING'
    assert load_files(numbered(tmp_path, (1, 2, 3), ('1', '2', '3')), tmp_path).labels.tolist() == [0, 1, 2]
    for labels in ((0, 1), ('mid', 'high'), (1, 'low')):
        load_files(numbered(tmp_path, labels), tmp_path)
    assert len(caplog.records) == 1
    write_lines(tmp_path / 'train.jsonl', [{'sentence': 'x', 'label': 1}])
    load_files('sst2', tmp_path)
    assert '1 is read as positive (if they begin with 1, write the names)' in caplog.text


def test_copa_with_labels_1_and_2_is_refused(tmp_path):
    entry = {'premise': 'a', 'choice1': 'b', 'choice2': 'c', 'question': 'cause'}
    write_lines(tmp_path / 'train.jsonl', [{**entry, 'label': label} for label in (1, 2)])
    assert 'The label 2 is unknown. Use choice1, choice2, or their ids 0 to 1' in refusal('copa', tmp_path)


def test_a_decimal_comma_is_told(tmp_path):
    write_lines(tmp_path / 'train.jsonl', [{'sentence1': 'x', 'sentence2': 'y', 'label': '3,8'}])
    assert "The score '3,8' is not between 0 and 5. Correct it (with a point, not a comma)." in refusal(
        'stsb', tmp_path
    )


def choices_of(columns, labels=None):
    return custom_dataset(kind='multiple_choice', fields=['story'], choices=columns, labels=labels)


def test_choices_in_columns(tmp_path):
    entries = [{'story': f's{i}', 'b': f'b{i}', 'a': f'a{i}', 'label': label} for i, label in enumerate('211')]
    write_lines(tmp_path / 'train.csv', entries)
    found = load_files(choices_of(['a', 'b'], ['1', '2']), tmp_path)
    assert [*found.fields.values()] == [['s0', 's1', 's2'], [['a0', 'b0'], ['a1', 'b1'], ['a2', 'b2']]]
    assert found.labels.tolist() == [1, 0, 0]
    message = refusal(choices_of(['a', 'b']), tmp_path)  # neither 0 nor 1 is known to be the first
    assert "The label '2' is unknown. Use a, b; if they are numbers, set data.labels=1,2 or data.labels=0,1." in message
    write_lines(tmp_path / 'train.csv', [entry | {'label': 'ab'[i % 2]} for i, entry in enumerate(entries)])
    assert load_files(choices_of(['a', 'b']), tmp_path).labels.tolist() == [0, 1, 0]
    assert "There is no column 'c', only story, b, a, label" in refusal(choices_of(['a', 'c']), tmp_path)


def test_a_column_that_is_one_of_several_choices_is_told(tmp_path):
    dataset = custom_dataset(kind='multiple_choice', fields=['story', 'a'], labels=['1', '2'])
    write_lines(tmp_path / 'train.csv', [{'story': 's', 'a': 'x', 'b': 'y', 'label': 1}])
    assert 'If each choice has its own column, name these in data.choices.' in refusal(dataset, tmp_path)


def test_null_is_no_text(tmp_path):
    write_lines(tmp_path / 'train.jsonl', [{'a': None, 'b': 'y', 'label': 1}])
    assert "train.jsonl, line 1, column 'a': The value is null, not text. Write it" in refusal(PAIRS, tmp_path)
