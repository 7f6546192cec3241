"""Files of labelled data: their forms, their names, and one message for each mistake."""

import dataclasses
import gzip
import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from gpt1_jax.data.labelled.loading import available_splits
from gpt1_jax.data.labelled.registry import custom_dataset
from helpers import load_files, refusal, write_lines

PAIRS = custom_dataset(kind='entailment', fields=['a', 'b'], labels=['no', 'yes'])
ENTRIES = [
    {'a': 'one "quoted" text', 'b': 'x, y', 'label': 'yes', 'idx': 7},
    {'a': 'caf\u00e9 \u2028 separator', 'b': '', 'label': 'no', 'idx': 9},
]


@pytest.mark.parametrize('suffix', ['jsonl', 'jsonl.gz', 'tsv', 'tsv.gz', 'csv', 'csv.gz'])
def test_formats(tmp_path, suffix):
    write_lines(tmp_path / f'train.{suffix}', ENTRIES)
    examples = load_files(PAIRS, tmp_path)
    assert examples.fields == {'a': [entry['a'] for entry in ENTRIES], 'b': [entry['b'] for entry in ENTRIES]}
    assert list(examples.fields) == ['a', 'b']
    assert examples.labels.tolist() == [1, 0] and examples.labels.dtype == np.int32
    assert examples.ids == ['7', '9'] and len(examples) == 2


def test_csv_with_line_breaks_and_byte_order_mark(tmp_path):
    (tmp_path / 'train.csv').write_bytes('\ufeffa,b,label\r\n"two\nlines, ""q""",x,no\r\n'.encode())
    examples = load_files(PAIRS, tmp_path)
    assert examples.fields['a'] == ['two\nlines, "q"'] and examples.ids == ['0']


@pytest.mark.parametrize('name', ['train.jsonl', 'train.tsv', 'train.csv'])
def test_mixed_line_endings(tmp_path, name):
    entries = [{'a': f'text {i}', 'b': 'x', 'label': i % 2} for i in range(3)]
    write_lines(tmp_path / name, entries)
    lines = (tmp_path / name).read_text().split('\n')  # as text: all ends are \n
    ends = ['\r\n', '\n', '\r', '\n'] if name != 'train.jsonl' else ['\r', '\r\n', '\n']
    data = ''.join(line + end for line, end in zip(lines, ends, strict=False))
    (tmp_path / name).write_bytes(data.encode())
    examples = load_files(PAIRS, tmp_path)
    assert examples.fields['a'] == ['text 0', 'text 1', 'text 2'] and examples.labels.tolist() == [0, 1, 0]


def test_file_names_of_splits(tmp_path):
    mnli = dataclasses.replace(PAIRS, splits={'dev': 'validation_mismatched', 'train': 'train'})
    write_lines(tmp_path / 'dev_mismatched.tsv', ENTRIES)
    assert len(load_files(mnli, tmp_path, 'dev')) == 2
    write_lines(tmp_path / 'validation_mismatched.tsv', ENTRIES)
    assert 'validation_mismatched.tsv and dev_mismatched.tsv' in refusal(mnli, tmp_path, 'dev')


def test_missing_files(tmp_path):
    assert 'nowhere: This is not a directory' in refusal(PAIRS, tmp_path / 'nowhere')
    assert 'no train.jsonl' in refusal(PAIRS, tmp_path) and 'only nothing' in refusal(PAIRS, tmp_path)
    write_lines(tmp_path / 'training.csv', ENTRIES)
    assert 'only training.csv' in refusal(PAIRS, tmp_path)


@pytest.mark.parametrize(
    'data, words',
    [
        (b'', 'The train split is empty'),
        (b'\n\n', 'The train split is empty'),
        (b'{"a": "x", "c": "y", "label": 1}\n', "line 1: There is no column 'b', only a, c, label"),
        (b'{"a": "x", "b": "y"}\n', "line 1: There is no column 'label', only a, b"),
        (
            b'{"a": "x", "b": "y", "label": "yes"}\n\n{"a": "x", "b": "y", "label": "maybe"}\n',
            "line 3, column 'label': The label 'maybe' is unknown. Use no, yes, or their ids 0 to 1.",
        ),
        (b'{"a": "x", "b": "y", "label": 2}\n', 'The label 2 is unknown'),
        (b'{"a": "x", "b": "y", "label": 0.5}\n', 'The label 0.5 is unknown'),
        (b'{"a": "x", "b": "y", "label": 1}\n{"a": "x", \n', 'line 2: This is not JSON'),
        (b'["x", "y", 1]\n', 'line 1: This is not a JSON object'),
        (b'{"a": "x", "b": 5, "label": 1}\n', "line 1, column 'b': The value is int, not text"),
        (b'{"a": "\xff", "b": "y", "label": 1}\n', 'not UTF-8 at byte 7'),
    ],
)
def test_malformed_jsonl(tmp_path, data, words):
    for name, content in (('train.jsonl', data), ('train.jsonl.gz', gzip.compress(data))):
        (tmp_path / name).write_bytes(content)
        message = refusal(PAIRS, tmp_path)
        assert words in message and str(tmp_path) in message
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    'name, data, words',
    [
        ('train.tsv', b'a\tb\tlabel\nx\ty\n', 'line 2: There are 2 cells, but the header names 3 (a, b, label)'),
        ('train.tsv', b'a\tb\n', 'The train split is empty'),
        ('train.tsv', b'a\tb\nx\ty\n', "line 2: There is no column 'label'"),
        ('train.tsv', b'a\ta\nx\ty\n', 'line 1: Two columns have the same name'),
        ('train.csv', b'a,b,label\n"x"y,z,1\n', 'line 2: This is not CSV'),
        ('train.csv', b'a,b,label\nx,"y,1\n', 'not CSV'),
        ('train.csv.gz', b'no gzip', 'not a complete gzip file'),
        ('train.csv.gz', gzip.compress(b'a,b,label\nx,y,1\n' * 99, mtime=0)[:40], 'not a complete gzip file'),
    ],
)
def test_malformed_tables_and_gzip(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    message = refusal(PAIRS, tmp_path)
    assert words in message and str(tmp_path) in message


def test_headerless_lines_of_another_length(tmp_path):
    write_lines(tmp_path / 'train.tsv', 'gj04\t1\t\tOne.\ngj04\t1\tTwo.\n')
    message = refusal('cola', tmp_path)
    assert 'line 2: There are 3 cells, but a file without a header needs 4 (source, label, star' in message


@pytest.mark.parametrize('name', ['train.json', 'TRAIN.JSON', 'train.json.gz'])
@pytest.mark.parametrize('form', ['array', 'pretty', 'lines', 'one'])
def test_json(tmp_path, name, form):
    entries = ENTRIES[:1] if form == 'one' else ENTRIES
    text = {
        'array': json.dumps(entries),
        'pretty': json.dumps(entries, indent=2),
        'lines': '\n'.join(map(json.dumps, entries)),
        'one': json.dumps(entries[0], indent=2),
    }[form]
    data = text.encode('utf-8-sig')
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith('.gz') else data)
    examples = load_files(PAIRS, tmp_path)
    assert examples.fields['a'] == [entry['a'] for entry in entries]
    assert examples.labels.tolist() == [1, 0][: len(entries)]


@pytest.mark.parametrize(
    'name, text, words',
    [
        ('train.json', '[{"a": "x", "b": "y", "label": 1}, 5]', 'entry 2: This is not a JSON object. Write an array'),
        ('train.json', '[{"a": "x"}', 'train.json: This is not JSON ('),
        ('train.json', '"a"', 'train.json, entry 1: This is not a JSON object'),
        ('train.json', '{"a": "x",\n "b": ', 'train.json, line 1: This is not JSON ('),
        ('train.json', '{"a": {"0": "x"}, "b": {"0": "y"}}', "one object of columns. Write one object a line"),
        ('train.json', '{"a": ["x"], "b": ["y"], "label": [1]}', "one object of columns. Write one object a line"),
        ('train.json', '[' * 100_000, 'train.json: This is not JSON (it is nested too deeply)'),
        ('train.jsonl', '[' * 100_000, 'train.jsonl, line 1: This is not JSON (it is nested too deeply)'),
        ('train.jsonl', '{"a": ' * 100_000, 'line 1: This is not JSON (it is nested too deeply)'),
        ('train.jsonl', '[{"a": "x"}]', 'line 1: This is not a JSON object. Write one object a line, or name the file'),
        ('train.jsonl', '[\n', 'or name the file .json, as it is one array.'),
        ('train.jsonl', '{"a": NaN, "b": "y", "label": 1}', "column 'a': The value is float, not text"),
        ('train.jsonl', '{"a": "x", "b": "y", "label": Infinity}', 'The label inf is unknown'),
        ('train.jsonl', '{"a": "x", "b": "y", "label": 1%s}' % ('0' * 4000), 'is unknown'),
        ('train.jsonl', '{"a": "x", "b": "y", "label": 1%s}' % ('0' * 5000), 'line 1: This is not JSON (Exceeds'),
        ('train.jsonl', '{"a": "x", "b": "y", "label": NaN}', 'There is no label'),
        ('train.jsonl', '{"a": "x", "b": "y", "label": [[1]]}', 'The label [[1]] is unknown'),
    ],
)  # fmt: skip
def test_malformed_json(tmp_path, name, text, words):
    write_lines(tmp_path / name, text)
    assert words in refusal(PAIRS, tmp_path)


def test_half_a_character(tmp_path):
    write_lines(tmp_path / 'train.jsonl', '{"a": "so \\ud83d", "b": "\\ud83d\\ude00", "label": "no"}\n')
    assert load_files(PAIRS, tmp_path).fields == {'a': ['so \ufffd'], 'b': ['\U0001f600']}


def parquet(path, rows, names=()):
    """As `datasets` writes it, with the names of labels in the schema."""
    info = {'info': {'features': {'label': {'names': names, '_type': 'ClassLabel'}}}} if names else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows).replace_schema_metadata({'huggingface': json.dumps(info)})
    pq.write_table(table, path)


def test_parquet(tmp_path):
    """A repository of the hub as it lies on a disk; labels are compared by name."""
    rows = [{'a': f'{i}', 'b': 'x', 'label': i % 2} for i in range(6)]
    for i in range(2):
        parquet(tmp_path / 'data' / f'train-0000{i}-of-00002.parquet', rows[3 * i : 3 * i + 3], ['yes', 'no'])
    parquet(tmp_path / 'data' / 'validation-00000-of-00001.parquet', rows[:1])
    examples = load_files(PAIRS, tmp_path)
    assert examples.fields['a'] == list('012345') and examples.labels.tolist() == [1, 0, 1, 0, 1, 0]
    assert load_files(PAIRS, tmp_path, 'dev').labels.tolist() == [0]
    assert available_splits(PAIRS, f'files:{tmp_path}') == ['train', 'dev']
    assert 'There is no test.jsonl' in refusal(PAIRS, tmp_path, 'test')
    (tmp_path / 'data' / 'train-00000-of-00002.parquet').unlink()
    assert 'Of the 2 files of the train split, number 0 is missing' in refusal(PAIRS, tmp_path)
    write_lines(tmp_path / 'train.csv', ENTRIES)  # beside the folder: the file of this name is the split
    assert load_files(PAIRS, tmp_path).ids == ['7', '9']


def test_parquet_of_a_folder_below_is_no_split_that_is_missing(tmp_path):
    """It is a backup, or another set."""
    write_lines(tmp_path / 'train.csv', ENTRIES)
    row = {'a': 'old', 'b': 'x', 'label': 0}
    parquet(tmp_path / 'backup' / 'old' / 'dev.parquet', [row])
    parquet(tmp_path / '.dev.parquet', [row])
    assert available_splits(PAIRS, f'files:{tmp_path}') == ['train']
    assert refusal(PAIRS, tmp_path, 'dev').endswith(
        'only backup, train.csv. Add the file, or name the folder that holds it; if a parquet file of a folder below '
        'is it, move it here as dev.parquet.'
    )
    write_lines(tmp_path / 'train.csv.gz', ENTRIES)  # two that may be meant are a split too
    assert 'There is no dev.jsonl' in refusal(PAIRS, tmp_path, 'dev')
    (tmp_path / 'train.csv.gz').unlink()
    for split in ('test', 'validation'):
        parquet(tmp_path / 'custom' / f'{split}-00000-of-00001.parquet', [row])  # a config of the set's name
    parquet(tmp_path / 'data' / 'test.parquet', [row | {'a': 'tested'}])
    parquet(tmp_path / 'validation.parquet', [row | {'a': 'new'}])
    assert available_splits(PAIRS, f'files:{tmp_path}') == ['train', 'dev', 'test']
    assert load_files(PAIRS, tmp_path, 'dev').fields['a'] == ['new']
    assert load_files(PAIRS, tmp_path, 'test').fields['a'] == ['tested']
    (tmp_path / 'validation.parquet').unlink()
    assert refusal(PAIRS, tmp_path, 'dev').endswith(
        'only backup, custom, data, train.csv. Add the file, or name the folder that holds it.'
    )


def test_parquet_of_hidden_folders_is_not_read(tmp_path):
    for name in ('.ipynb_checkpoints/train', '.train', 'data/.old/train'):
        parquet(tmp_path / f'{name}.parquet', [{'a': 'x', 'b': 'y', 'label': 0}])
    assert available_splits(PAIRS, f'files:{tmp_path}') == []


def test_where_parquet_is_read_from_is_told(tmp_path, caplog):
    for split, rows in (('train', 2), ('validation', 1)):
        for i in range(rows):
            parquet(tmp_path / 'all' / split / f'000{i}.parquet', [{'a': f'{i}', 'b': 'x', 'label': 0}])
    with caplog.at_level('INFO', logger='absl'):
        assert load_files(PAIRS, tmp_path).fields['a'] == ['0', '1']
        assert load_files(PAIRS, tmp_path, 'dev').fields['a'] == ['0']
    assert f'{tmp_path}: its train split is all/train/0000.parquet and 1 more' in caplog.messages
    assert f'{tmp_path}: its validation split is all/validation/0000.parquet' in caplog.messages


def test_parquet_of_folders_that_are_splits(tmp_path):
    for split, texts in (('train', 'ab'), ('dev', 'c')):
        for i, text in enumerate(texts):
            parquet(tmp_path / split / f'part-{i}.parquet', [{'a': text, 'b': 'x', 'label': 0}])
    assert available_splits(PAIRS, f'files:{tmp_path}') == ['train', 'dev']
    assert load_files(PAIRS, tmp_path).fields['a'] == ['a', 'b'] and load_files(PAIRS, tmp_path, 'dev').ids == ['0']


def test_parquet_with_lists(tmp_path):
    passage = {
        'article': 'x',
        'questions': ['q', 'r'],
        'options': [list('abcd')] * 2,
        'answers': ['A', 'D'],
        'id': 'high1',
    }
    parquet(tmp_path / 'train.parquet', [passage])
    race = load_files('race', tmp_path)
    assert race.fields['options'] == [list('abcd')] * 2 and race.subsets == ['high'] * 2
    question = {'questions': {'id': [1, 2], 'text': ['a', 'b']}, 'is_duplicate': True}
    parquet(tmp_path / 'validation.parquet', [question])
    assert load_files('qqp', tmp_path, 'dev').fields == {'question1': ['a'], 'question2': ['b']}


def test_many_files_of_one_split(tmp_path):
    for level, number in (('middle', 2), ('high', 10), ('high', 9)):
        (tmp_path / 'train' / level).mkdir(parents=True, exist_ok=True)
        passage = {'article': f'{level} {number}', 'questions': ['q'], 'options': [list('abcd')], 'answers': ['C']}
        write_lines(tmp_path / 'train' / level / f'{number}.txt', json.dumps(passage))
    examples = load_files('race', tmp_path)
    assert examples.fields['article'] == ['high 9', 'high 10', 'middle 2'] and examples.subsets == [
        'high',
        'high',
        'middle',
    ]
    write_lines(tmp_path / 'train' / 'high' / '11.txt', '{"article": ')
    assert 'high/11.txt, line 1: This is not JSON' in refusal('race', tmp_path)
