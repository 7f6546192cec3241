"""Reading labelled data: formats, labels, splits, and the one sentence for each mistake."""

import csv
import gzip
import inspect
import json

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from gpt1_jax.data.datasets import REGISTRY, available_splits, custom_dataset, load_examples
from gpt1_jax.errors import UserError

PAIRS = custom_dataset(kind='entailment', fields=['a', 'b'], labels=['no', 'yes'])
ROWS = [{'a': 'one "quoted" text', 'b': 'x, y', 'label': 'yes', 'idx': 7},
        {'a': 'caf\u00e9 \u2028 separator', 'b': '', 'label': 'no', 'idx': 9}]


def write_rows(path, rows):
    """Rows as the file's name asks: .jsonl, .tsv or .csv, and .gz."""
    columns = list(rows[0])
    name = path.name.removesuffix('.gz')
    if name.endswith('.jsonl'):
        text = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
    elif name.endswith('.tsv'):
        lines = [columns, *(row.values() for row in rows)]
        text = ''.join('\t'.join(map(str, line)) + '\r\n' for line in lines)
    else:
        plain = path.with_name('plain')
        with plain.open('w', newline='', encoding='utf-8') as f:
            csv.writer(f).writerows([columns, *(row.values() for row in rows)])
        text = plain.read_bytes().decode()
        plain.unlink()
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith('.gz') else data)


def load(dataset, directory, split='train', **kwargs):
    return load_examples(dataset, f'files:{directory}', split, **kwargs)


def error(dataset, directory, split='train'):
    with pytest.raises(UserError) as caught:
        load(dataset, directory, split)
    message = str(caught.value)
    assert '\n' not in message and message.endswith('.')
    return message


@pytest.mark.parametrize('suffix', ['jsonl', 'jsonl.gz', 'tsv', 'tsv.gz', 'csv', 'csv.gz'])
def test_formats(tmp_path, suffix):
    write_rows(tmp_path / f'train.{suffix}', ROWS)
    examples = load(PAIRS, tmp_path)
    assert examples.fields == {'a': [row['a'] for row in ROWS], 'b': [row['b'] for row in ROWS]}
    assert list(examples.fields) == ['a', 'b']
    assert examples.labels.tolist() == [1, 0] and examples.labels.dtype == np.int32
    assert examples.ids == ['7', '9'] and len(examples) == 2


def test_csv_with_line_breaks_and_byte_order_mark(tmp_path):
    (tmp_path / 'train.csv').write_bytes('\ufeffa,b,label\r\n"two\nlines, ""q""",x,no\r\n'.encode())
    examples = load(PAIRS, tmp_path)
    assert examples.fields['a'] == ['two\nlines, "q"'] and examples.ids == ['0']


def test_choices_in_tsv_are_json(tmp_path):
    (tmp_path / 'test.tsv').write_text('context\tendings\tlabel\nonce\t["a", "b \\"c\\""]\t2\n')
    examples = load(REGISTRY['story_cloze'], tmp_path, 'test')
    assert examples.fields['endings'] == [['a', 'b "c"']] and examples.labels.tolist() == [1]


@pytest.mark.parametrize('value, expected', [
    (0, 0), (1, 1), ('0', 0), ('1', 1), ('positive', 1), ('negative', 0), (1.0, 1), (' 1 ', 1)])
def test_labels_by_id_or_name(tmp_path, value, expected):
    write_rows(tmp_path / 'dev.jsonl', [{'sentence': 'x', 'label': value}])
    assert load(REGISTRY['sst2'], tmp_path, 'dev').labels.tolist() == [expected]


@pytest.mark.parametrize('labels, value, expected', [
    (('true', 'false'), True, 0), (('False', 'True'), True, 1), (('0', '1'), True, 1), (('0', '1'), False, 0),
    (('yes', 'no'), True, None), (('-1', '1'), -1, 0), (('-1', '1'), 0, None), (('None', 'x'), None, None)])
def test_booleans_and_numbers_as_names(tmp_path, labels, value, expected):
    """By name or not at all: which of two ids `true` is, and whether 0 is the first of '-1' and '1', nobody knows."""
    write_rows(tmp_path / 'dev.jsonl', [{'text': 'x', 'label': value}])
    dataset = custom_dataset(kind='classification', fields=['text'], labels=labels)
    if expected is None:
        assert 'label' in error(dataset, tmp_path, 'dev')
    else:
        assert load(dataset, tmp_path, 'dev').labels.tolist() == [expected]


def test_scores(tmp_path):
    rows = [{'sentence1': 'x', 'sentence2': 'y', 'label': score} for score in (0, 2.5, '5.000')]
    write_rows(tmp_path / 'train.tsv', rows)
    labels = load(REGISTRY['stsb'], tmp_path).labels
    assert labels.tolist() == [0.0, 2.5, 5.0] and labels.dtype == np.float32
    for bad in (5.1, 'high', 'nan', -2):
        write_rows(tmp_path / 'dev.jsonl', [{'sentence1': 'x', 'sentence2': 'y', 'label': bad}])
        message = error(REGISTRY['stsb'], tmp_path, 'dev')
        assert 'dev.jsonl, line 1' in message and repr(bad) in message and 'between 0 and 5' in message


@pytest.mark.parametrize('mark', [-1, '', None, '-1', -1.0])
@pytest.mark.parametrize('name', ['sst2', 'stsb'])
def test_unlabelled_test_split(tmp_path, name, mark):
    dataset = REGISTRY[name]
    row = {**dict.fromkeys(dataset.fields, 'x'), 'label': mark}
    write_rows(tmp_path / 'test.jsonl', [row, row])
    assert load(dataset, tmp_path, 'test').labels is None
    del row['label']
    write_rows(tmp_path / 'test.jsonl', [row, row])
    assert load(dataset, tmp_path, 'test').labels is None


def test_missing_labels_are_errors(tmp_path):
    rows = [{'sentence': 'x', 'label': 1}, {'sentence': 'y', 'label': -1}]
    for split in ('train', 'dev', 'test'):
        write_rows(tmp_path / f'{split}.jsonl', rows)
        assert f'{split}.jsonl, line 2' in error(REGISTRY['sst2'], tmp_path, split)


def stories(n):
    return [{'context': f'c{i}', 'endings': [f'a{i}', f'b{i}'], 'label': 1 + i % 2} for i in range(n)]


@pytest.mark.parametrize('n, held_out', [(1871, 374), (748, 374), (747, 149), (20, 4), (2, 1)])
def test_story_cloze_splits_the_validation_file(tmp_path, n, held_out):
    write_rows(tmp_path / 'dev.jsonl.gz', stories(n))
    train, dev = (load(REGISTRY['story_cloze'], tmp_path, split) for split in ('train', 'dev'))
    expected_train, expected_dev = train_test_split(
        [f'c{i}' for i in range(n)], test_size=held_out, random_state=3535999445)
    assert train.fields['context'] == expected_train and dev.fields['context'] == expected_dev
    for examples in (train, dev):
        numbers = [int(context[1:]) for context in examples.fields['context']]
        assert examples.fields['endings'] == [[f'a{i}', f'b{i}'] for i in numbers]
        assert examples.labels.tolist() == [i % 2 for i in numbers]
        assert examples.ids == [str(i) for i in numbers]


def test_story_cloze_labels_are_one_and_two(tmp_path):
    write_rows(tmp_path / 'test.jsonl', [{**stories(1)[0], 'label': 0}])
    assert 'unknown label 0; the labels known are 1, 2.' in error(REGISTRY['story_cloze'], tmp_path, 'test')


def test_limit_keeps_the_first(tmp_path):
    write_rows(tmp_path / 'dev.jsonl', stories(30))
    whole = load(REGISTRY['story_cloze'], tmp_path)
    part = load(REGISTRY['story_cloze'], tmp_path, limit=5)
    assert part.fields['context'] == whole.fields['context'][:5] and part.ids == whole.ids[:5]
    assert part.labels.tolist() == whole.labels.tolist()[:5]
    assert len(load(REGISTRY['story_cloze'], tmp_path, limit=500)) == 24
    with pytest.raises(UserError, match='limit is 0'):
        load(REGISTRY['story_cloze'], tmp_path, limit=0)


def test_file_names_of_splits(tmp_path):
    mnli = custom_dataset(kind='entailment', fields=['a', 'b'], labels=['no', 'yes'],
                          splits={'dev': 'validation_mismatched'})
    write_rows(tmp_path / 'dev_mismatched.tsv', ROWS)
    assert len(load(mnli, tmp_path, 'dev')) == 2
    write_rows(tmp_path / 'validation_mismatched.tsv', ROWS)
    assert 'validation_mismatched.tsv and dev_mismatched.tsv' in error(mnli, tmp_path, 'dev')


def test_missing_places(tmp_path):
    assert 'nowhere is not a directory' in error(PAIRS, tmp_path / 'nowhere')
    assert 'no train.jsonl' in error(PAIRS, tmp_path) and 'only nothing' in error(PAIRS, tmp_path)
    write_rows(tmp_path / 'training.csv', ROWS)
    assert 'only training.csv' in error(PAIRS, tmp_path)
    with pytest.raises(UserError, match="no split 'valid'"):
        load(PAIRS, tmp_path, 'valid')
    for source in ('', 'file:/x', 'files:', str(tmp_path)):
        with pytest.raises(UserError, match='is not understood; use files:/dir, tfds:name, tokens:/dir or docs:'):
            load_examples(PAIRS, source, 'train')


@pytest.mark.parametrize('data, words', [
    (b'', 'has no rows'),
    (b'\n\n', 'has no rows'),
    (b'{"a": "x", "c": "y", "label": 1}\n', "line 1: there is no column 'b', only a, c, label"),
    (b'{"a": "x", "b": "y"}\n', "line 1: there is no column 'label', only a, b"),
    (b'{"a": "x", "b": "y", "label": "yes"}\n\n{"a": "x", "b": "y", "label": "maybe"}\n',
     "line 3: column 'label' has the unknown label 'maybe'; the labels known are no, yes, or their ids 0"),
    (b'{"a": "x", "b": "y", "label": 2}\n', "unknown label 2"),
    (b'{"a": "x", "b": "y", "label": 0.5}\n', "unknown label 0.5"),
    (b'{"a": "x", "b": "y", "label": 1}\n{"a": "x", \n', 'line 2: not JSON'),
    (b'["x", "y", 1]\n', 'line 1: not a JSON object'),
    (b'{"a": "x", "b": 5, "label": 1}\n', "line 1, column 'b' is int and not text"),
    (b'{"a": "\xff", "b": "y", "label": 1}\n', 'not UTF-8 at byte 7'),
])
def test_malformed_jsonl(tmp_path, data, words):
    for name, content in (('train.jsonl', data), ('train.jsonl.gz', gzip.compress(data))):
        (tmp_path / name).write_bytes(content)
        message = error(PAIRS, tmp_path)
        assert words in message and str(tmp_path) in message
        (tmp_path / name).unlink()


@pytest.mark.parametrize('name, data, words', [
    ('train.tsv', b'a\tb\tlabel\nx\ty\n', 'line 2: 2 cells, but the header names 3 (a, b, label)'),
    ('train.tsv', b'a\tb\n', 'has no rows'),
    ('train.tsv', b'a\tb\nx\ty\n', "line 2: there is no column 'label'"),
    ('train.tsv', b'a\ta\nx\ty\n', 'line 1: two columns have the same name'),
    ('train.csv', b'a,b,label\n"x"y,z,1\n', 'line 2: not CSV'),
    ('train.csv', b'a,b,label\nx,"y,1\n', 'not CSV'),
    ('train.csv.gz', b'no gzip', 'not a complete gzip file'),
    ('train.csv.gz', gzip.compress(b'a,b,label\nx,y,1\n' * 99)[:40], 'not a complete gzip file'),
])
def test_malformed_tables_and_gzip(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    message = error(PAIRS, tmp_path)
    assert words in message and str(tmp_path) in message


@pytest.mark.parametrize('endings, words', [
    (['a', 'b', 'c'], "line 1, column 'endings' has 3 choices, but the data set has 2"),
    ('a', "line 1, column 'endings' is not a list"),
    (['a', 5], "line 1, column 'endings' is int and not text"),
])
def test_wrong_choices(tmp_path, endings, words):
    write_rows(tmp_path / 'test.jsonl', [{'context': 'c', 'endings': endings, 'label': 1}])
    assert words in error(REGISTRY['story_cloze'], tmp_path, 'test')


def test_registry_and_custom_agree():
    for dataset in REGISTRY.values():
        names = inspect.signature(custom_dataset).parameters
        values = {name: getattr(dataset, name) for name in names if name != 'max_score'}
        values['splits'] = {key: name for key, name in dataset.splits.items() if '_' not in key}
        custom = custom_dataset(**values, max_score=(dataset.score_range or (0, 0))[1])
        for name, value in values.items():
            assert getattr(custom, name) == value
        assert custom.score_range == dataset.score_range


@pytest.mark.parametrize('change, words', [
    ({'kind': 'regression'}, 'is unknown; use one of classification, entailment'),
    ({'fields': ['a']}, 'takes 2 different fields'),
    ({'fields': ['a', 'a']}, 'takes 2 different fields'),
    ({'kind': 'multiple_choice', 'fields': ['a', 'b', 'c', 'd']}, 'takes 2 or 3 different fields'),
    ({'kind': 'multiple_choice', 'labels': None}, 'multiple choice needs labels'),
    ({'labels': ['x']}, 'two or more different names'),
    ({'labels': ['x', 'x']}, 'two or more different names'),
    ({'labels': None}, 'or data.max_score, a whole number'),
    ({'labels': None, 'max_score': 4.5}, 'or data.max_score, a whole number'),
    ({'max_score': 5}, 'has labels and a max_score'),
    ({'label_field': 'b'}, "'b' is the label and one of the fields"),
    ({'metrics': ['pearson']}, "metric 'pearson' does not fit"),
    ({'metrics': ['f1'], 'labels': ['x', 'y', 'z']}, "metric 'f1' does not fit"),
    ({'rule': 'shortest'}, "rule 'shortest'"),
    ({'splits': {'valid': 'validation'}}, "splits has ['valid']"),
])
def test_custom_data_sets_are_checked(change, words):
    with pytest.raises(UserError) as caught:
        custom_dataset(**{'kind': 'entailment', 'fields': ['a', 'b'], 'labels': ['x', 'y'], **change})
    assert words in str(caught.value)


@pytest.mark.parametrize('name', ['train.jsonl', 'train.tsv', 'train.csv'])
def test_mixed_line_endings(tmp_path, name):
    rows = [{'a': f'text {i}', 'b': 'x', 'label': i % 2} for i in range(3)]
    write_rows(tmp_path / name, rows)
    lines = (tmp_path / name).read_text().split('\n')  # as text: all ends are \n
    ends = ['\r\n', '\n', '\r', '\n'] if name != 'train.jsonl' else ['\r', '\r\n', '\n']
    data = ''.join(line + end for line, end in zip(lines, ends, strict=False))
    (tmp_path / name).write_bytes(data.encode())
    examples = load(PAIRS, tmp_path)
    assert examples.fields['a'] == ['text 0', 'text 1', 'text 2'] and examples.labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize('column', ['idx', 'id', 'index', 'story_id', 'InputStoryid'])
def test_duplicate_ids_are_refused(tmp_path, column):
    rows = [{'a': 'x', 'b': 'y', 'label': 1, column: id_} for id_ in (3, 4, 3)]
    write_rows(tmp_path / 'train.tsv', rows)
    assert "train.tsv, line 4 has the id '3' of line 2 too" in error(PAIRS, tmp_path)
    write_rows(tmp_path / 'train.tsv', rows[:2])
    assert load(PAIRS, tmp_path).ids == ['3', '4']


def test_empty_fields_are_text(tmp_path):
    write_rows(tmp_path / 'train.tsv', [{'a': '', 'b': '', 'label': 1}, {'a': 'x', 'b': '', 'label': 0}])
    assert load(PAIRS, tmp_path).fields == {'a': ['', 'x'], 'b': ['', '']}


def test_a_labelled_test_split_keeps_its_labels(tmp_path):
    write_rows(tmp_path / 'test.jsonl', [{'sentence': 'x', 'label': 1}, {'sentence': 'y', 'label': 'negative'}])
    assert load(REGISTRY['sst2'], tmp_path, 'test').labels.tolist() == [1, 0]


def test_a_score_of_json_that_is_no_number(tmp_path):
    (tmp_path / 'dev.jsonl').write_text('{"sentence1": "x", "sentence2": "y", "label": NaN}\n')
    assert 'dev.jsonl, line 1' in error(REGISTRY['stsb'], tmp_path, 'dev')


def test_available_splits(tmp_path):
    for name in ('train.jsonl', 'dev_matched.tsv', 'test_mismatched.csv.gz', 'dev.jsonl'):
        write_rows(tmp_path / name, ROWS)
    assert available_splits(REGISTRY['mnli'], f'files:{tmp_path}') == ['train', 'dev', 'test_mismatched']
    assert available_splits(REGISTRY['sst2'], f'files:{tmp_path}') == ['train', 'dev']
    assert available_splits(REGISTRY['story_cloze'], f'files:{tmp_path}') == ['train', 'dev']  # both of dev.jsonl
    assert available_splits(REGISTRY['docs_same'], '') == ['train', 'dev']
    with pytest.raises(UserError, match='nowhere is not a directory'):
        available_splits(REGISTRY['sst2'], f'files:{tmp_path}/nowhere')
