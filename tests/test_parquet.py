"""Parquet files: rows, label names, and what is none."""

import datetime
import os

import pytest
from etils import epath

from gpt1_jax.data import parquet
from gpt1_jax.errors import UserError
from helpers import write_parquet

arrow = pytest.importorskip('pyarrow')
pytest.importorskip('pyarrow.parquet')


def test_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, '_ROWS', 2)
    columns = {
        'text': ['a', 'é', None],
        'label': arrow.array([0, 1, None], arrow.int8()),
        'choices': [['x', 'y'], [], None],
        'score': [1.5, None, 2.0],
        'day': [datetime.date(2020, 1, 1)] * 3,
    }
    path = write_parquet(tmp_path / 'a.parquet', columns, rows_per_group=2)
    assert list(parquet.rows(path)) == [
        {
            name: list(column.to_pylist() if hasattr(column, 'to_pylist') else column)[i]
            for name, column in columns.items()
        }
        for i in range(3)
    ]


def test_times_that_python_cannot_hold_are_text(tmp_path):
    columns = {'text': ['a', 'b'], 'at': arrow.array([1, 10**18], arrow.timestamp('ns'))}
    columns |= {'day': arrow.array([0, 2**30], arrow.date32()), 'for': arrow.array([1, 2**62], arrow.duration('s'))}
    first, second = parquet.rows(write_parquet(tmp_path / 'a.parquet', columns))
    assert (first['text'], first['at'], first['day']) == ('a', '1970-01-01 00:00:00.000000001', '1970-01-01')
    assert second['text'] == 'b' and all(isinstance(value, str) for value in second.values())


def test_what_python_cannot_hold_in_a_list_is_named(tmp_path):
    columns = {'text': ['a'], 'at': arrow.array([[1]], arrow.list_(arrow.timestamp('ns')))}
    with pytest.raises(UserError, match='a.parquet: This is not a whole parquet file .Nanosecond'):
        list(parquet.rows(write_parquet(tmp_path / 'a.parquet', columns)))


def test_one_value_that_stands_for_many_is_not_held_for_all_of_them(tmp_path, monkeypatch):
    """A dictionary has it once."""
    values = arrow.DictionaryArray.from_arrays(arrow.array([0] * 100, arrow.int32()), ['x' * 10**4])
    path, counts = write_parquet(tmp_path / 'a.parquet', {'text': values}), []
    entries = parquet.entries
    monkeypatch.setattr(parquet, 'entries', lambda batch: counts.append(len(batch)) or entries(batch))
    for at_once, most in ((2**29, 100), (10**5, 9), (1, 1)):
        monkeypatch.setattr(parquet, '_AT_ONCE', at_once)
        counts.clear()
        assert [len(row['text']) for row in parquet.rows(path)] == [10**4] * 100
        assert max(counts) == most and sum(counts) == 100


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, '_UNPACKED', 10**5)
    path = tmp_path / 'a.parquet'
    arrow.parquet.write_table(arrow.table({'text': ['x' * 10**6]}), path, compression='zstd', write_statistics=False)
    with pytest.raises(UserError, match='a.parquet: The [0-9,]+ bytes would unpack to 1,000,[0-9]+, as no text does'):
        parquet.open_file(path)


def test_columns_of_text():
    columns = {'a': ['x'], 'b': arrow.array(['x'], arrow.large_string()), 'c': [1], 'd': [['x']], 'e': [b'x']}
    columns |= {'f': arrow.array(['x']).dictionary_encode(), 'g': arrow.array([1]).dictionary_encode()}
    schema = arrow.table(columns).schema
    assert parquet.text_columns(schema) == ['a', 'b']
    assert parquet.text_column(schema, ['c', 'f', 'b', 'a']) == 'b'
    assert parquet.text_column(schema, ['c', 'f', 'e']) == 'f'
    assert parquet.text_column(schema, ['c', 'g', 'e']) is None
    assert parquet.other_type(schema, ['e', 'c']) == 'column c is of type int64'
    assert parquet.other_type(schema, ['x']) == ''


def test_class_names(tmp_path):
    columns = {'text': ['a'], 'label': [1], 'other': [0]}
    path = write_parquet(tmp_path / 'a.parquet', columns, {'label': ('no', 'yes')})
    assert parquet.class_names(parquet.open_file(path).schema_arrow) == {'label': ('no', 'yes')}
    assert parquet.class_names(arrow.table(columns).schema) == {}
    for metadata in ('{', '[]', '{"info": null}', '{"info": {"features": ["a"]}}', '{"info": {"features": {"a": 3}}}'):
        table = arrow.table(columns).replace_schema_metadata({'huggingface': metadata})
        assert parquet.class_names(table.schema) == {}


@pytest.mark.parametrize('keep', [0, 3, 100, -4, -200])
def test_a_damaged_file_is_named(tmp_path, keep):
    path = write_parquet(tmp_path / 'a.parquet', {'text': [f'text {i}' for i in range(1000)]})
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    with pytest.raises(UserError, match=r'a.parquet: This is not a whole parquet file \(.+\). Get it again'):
        list(parquet.rows(path))


def test_a_name_that_is_no_unicode(tmp_path):
    path = write_parquet(tmp_path / 'a.parquet', {'text': ['a', 'b']})
    path = path.rename(tmp_path / os.fsdecode(b'caf\xe9.parquet'))
    assert [row['text'] for row in parquet.rows(epath.Path(path))] == ['a', 'b']


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'a.parquet')
    with pytest.raises(UserError, match='a.parquet: This is not an ordinary file'):
        parquet.open_file(tmp_path / 'a.parquet')


def test_flipped_bytes_are_rows_or_named(tmp_path):
    path = write_parquet(tmp_path / 'a.parquet', {'text': [f'text {i}' for i in range(50)]})
    data = bytearray(path.read_bytes())
    for position in range(0, len(data), 2):
        changed = bytearray(data)
        changed[position] ^= 0x55
        path.write_bytes(bytes(changed))
        try:
            assert len(list(parquet.rows(path))) == 50
        except UserError as error:
            assert str(error).startswith(str(path))
