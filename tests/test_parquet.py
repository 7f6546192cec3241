"""Parquet files: rows, label names, and what is none."""

import datetime
import json

import pytest
from etils import epath

from gpt1_jax.data import parquet
from gpt1_jax.errors import UserError

arrow = pytest.importorskip('pyarrow')
pytest.importorskip('pyarrow.parquet')


def write(path, columns, features=None, rows_per_group=None):
    """Writes columns as `datasets` does, with its features where they are given: column -> names of ids."""
    table = arrow.table(columns)
    if features is not None:
        described = {
            name: {'names': list(features[name]), '_type': 'ClassLabel'}
            if name in features
            else {'dtype': 'string', '_type': 'Value'}
            for name in columns
        }
        table = table.replace_schema_metadata({'huggingface': json.dumps({'info': {'features': described}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    arrow.parquet.write_table(table, path, row_group_size=rows_per_group)
    return epath.Path(path)


def test_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, '_ROWS', 2)
    columns = {
        'text': ['a', 'é', None],
        'label': arrow.array([0, 1, None], arrow.int8()),
        'choices': [['x', 'y'], [], None],
        'score': [1.5, None, 2.0],
        'day': [datetime.date(2020, 1, 1)] * 3,
    }
    path = write(tmp_path / 'a.parquet', columns, rows_per_group=2)
    assert list(parquet.rows(path)) == [
        {
            name: list(column.to_pylist() if hasattr(column, 'to_pylist') else column)[i]
            for name, column in columns.items()
        }
        for i in range(3)
    ]


def test_class_names(tmp_path):
    columns = {'text': ['a'], 'label': [1], 'other': [0]}
    path = write(tmp_path / 'a.parquet', columns, {'label': ('no', 'yes')})
    assert parquet.class_names(parquet.open_file(path).schema_arrow) == {'label': ('no', 'yes')}
    assert parquet.class_names(arrow.table(columns).schema) == {}
    for metadata in ('{', '[]', '{"info": null}', '{"info": {"features": ["a"]}}', '{"info": {"features": {"a": 3}}}'):
        table = arrow.table(columns).replace_schema_metadata({'huggingface': metadata})
        assert parquet.class_names(table.schema) == {}


@pytest.mark.parametrize('keep', [0, 3, 100, -4, -200])
def test_a_damaged_file_is_named(tmp_path, keep):
    path = write(tmp_path / 'a.parquet', {'text': [f'text {i}' for i in range(1000)]})
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    with pytest.raises(UserError, match=r'a.parquet: This is no whole parquet file \(.+\). Get it again'):
        list(parquet.rows(path))


def test_flipped_bytes_are_rows_or_named(tmp_path):
    path = write(tmp_path / 'a.parquet', {'text': [f'text {i}' for i in range(50)]})
    data = bytearray(path.read_bytes())
    for position in range(0, len(data), 2):
        changed = bytearray(data)
        changed[position] ^= 0x55
        path.write_bytes(bytes(changed))
        try:
            assert len(list(parquet.rows(path))) == 50
        except UserError as error:
            assert str(error).startswith(str(path))
