"""Parquet files, read batch by batch: memory does not grow with the size of a file."""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from etils import epath

from gpt1_jax.errors import UserError
from gpt1_jax.files import check_file, import_package, is_local, parse_json, size_of

_ROWS = 200  # at once, at most
_AT_ONCE = 2**28  # bytes that these may take, if each row were as large as the whole group: encoding may hide that
_ANY_ROWS = 2**20  # that any file may have
_ROWS_PER_BYTE = 64  # of its size, if that is more
_UNPACKED = 2**28  # bytes that any file may unpack to
_RATIO = 200  # or this many times its size, if that is more
_TEXT = ('string', 'large_string', 'string_view')
_BUFFER = 2**20  # bytes read at once: otherwise all of a column in a group of rows
_NO_UNICODE = re.compile('[\ud800-\udfff]')  # bytes of a file name, which Arrow refuses
_IMPOSSIBLE = 'parquet files cannot be read'


def open_file(path: epath.Path) -> Any:
    """The file as a pyarrow.parquet.ParquetFile. Raises UserError if it is not one, or is damaged."""
    parquet = import_package('pyarrow.parquet', _IMPOSSIBLE)
    check_file(path)
    with named_errors(path):
        arrow_opens = is_local(path) and not _NO_UNICODE.search(os.fspath(path))
        source = path if arrow_opens else path.open('rb')
        file = parquet.ParquetFile(source, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True)
    size, groups = size_of(path), _groups(file)
    if (count := file.metadata.num_rows) > max(_ANY_ROWS, _ROWS_PER_BYTE * size):
        raise UserError(f'{path}: The file says that it has {count:,} rows, more than fit into it. Get it again.')
    if (unpacked := sum(groups)) > max(_UNPACKED, _RATIO * size):
        raise UserError(
            f'{path}: The {size:,} bytes would unpack to {unpacked:,}, as no text does. Get it again, or as text.'
        )
    return file


def batches(file: Any, most: int = _ROWS, **options: Any) -> Iterator:
    """`file.iter_batches`, with at most `most` rows in a batch."""
    return file.iter_batches(max(1, min(most, _AT_ONCE // max(_groups(file), default=1))), **options)


def _groups(file):
    """Bytes of each group of rows, unpacked."""
    return [max(1, file.metadata.row_group(group).total_byte_size) for group in range(file.metadata.num_row_groups)]


def rows(path: epath.Path) -> Iterator[dict]:
    """The rows as dicts: column -> str, number, bool, None, bytes, list, dict or date. Raises UserError if damaged."""
    file = open_file(path)
    with named_errors(path):
        all_rows = (row for batch in batches(file) for row in entries(batch))
        yield from whole(path, all_rows, file.metadata.num_rows)


def entries(batch: Any) -> list[dict]:
    """The rows of an Arrow batch; if Python's types cannot hold one of its times, all its times are text."""
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):
        arrow = import_package('pyarrow', _IMPOSSIBLE)
        columns = [one.cast('string') if arrow.types.is_temporal(one.type) else one for one in batch.columns]
        return arrow.RecordBatch.from_arrays(columns, batch.schema.names).to_pylist()


def whole(path: epath.Path, read: Iterable, number: int) -> Iterator:
    """Passes on what is read of a file. Raises UserError if it is not `number` rows: pyarrow does not notice."""
    count = 0
    for row in read:
        count += 1
        yield row
    if count != number:
        raise UserError(f'{path}: This is not a whole parquet file ({count} of {number} rows). Get it again.')


def text_columns(schema: Any) -> list[str]:
    """The columns of an Arrow schema that hold text."""
    return [field.name for field in schema if str(field.type) in _TEXT]


def text_column(schema: Any, names: Sequence[str]) -> str | None:
    """The first of these columns that holds text, or else one that holds it as a dictionary (pandas' categories)."""
    packed = [
        field.name
        for field in schema
        if str(field.type).startswith(tuple(f'dictionary<values={one},' for one in _TEXT))
    ]
    return next((name for columns in (text_columns(schema), packed) for name in names if name in columns), None)


def other_type(schema: Any, names: Sequence[str]) -> str:
    """`column NAME is of type TYPE` for the first column with one of these names; '' if there is none."""
    return next((f'column {field.name} is of type {field.type}' for field in schema if field.name in names), '')


def class_names(schema: Any) -> dict[str, tuple[str, ...]]:
    """column -> the names of its ids 0, 1, ..., if `datasets` has written them into the Arrow schema."""
    try:
        features = parse_json((schema.metadata or {})[b'huggingface'])['info']['features']
        return {
            column: tuple(map(str, feature['names']))
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get('_type') == 'ClassLabel' and feature.get('names')
        }
    except (KeyError, ValueError, TypeError, AttributeError):  # none, or in another form
        return {}


@contextlib.contextmanager
def named_errors(path: epath.Path) -> Iterator[None]:
    """Turns the errors of reading a parquet file into a UserError that names it; those of gs:// name it already."""
    arrow = import_package('pyarrow', _IMPOSSIBLE)
    try:
        yield
    except (arrow.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno and not is_local(path)):
            raise
        reason = str(error).partition('\n')[0].rstrip('.')
        raise UserError(f'{path}: This is not a whole parquet file ({reason}). Get it again.') from error
