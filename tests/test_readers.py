"""Files of labelled data: their forms, their names, and one message for each mistake."""

import dataclasses
import gzip

import numpy as np
import pytest

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
