"""Parquet files, read batch by batch: memory does not grow with a file."""

import contextlib
from collections.abc import Iterable, Iterator

from etils import epath

from gpt1_jax.errors import UserError
from gpt1_jax.files import import_package, parse_json, size_of

_ROWS = 200  # at once
_ANY_ROWS = 2**20  # that any file may have, and a larger one
_ROWS_PER_BYTE = 64  # of its size
_BUFFER = 2**20  # bytes read at once: otherwise all of a column in a group of rows
_IMPOSSIBLE = 'parquet files cannot be read'


def open_file(path: epath.Path):
    """The pyarrow.parquet.ParquetFile. Raises UserError if it is none, or damaged."""
    parquet = import_package('pyarrow.parquet', _IMPOSSIBLE)
    with named_errors(path):
        file = parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True)
    if (count := file.metadata.num_rows) > max(_ANY_ROWS, _ROWS_PER_BYTE * size_of(path)):
        raise UserError(f'{path}: The file says that it has {count:,} rows, more than fit into it. Get it again.')
    return file


def rows(path: epath.Path) -> Iterator[dict]:
    """The rows as dicts: column -> str, number, bool, None, bytes, list, dict or date. Raises UserError as above."""
    file = open_file(path)
    with named_errors(path):
        all_rows = (row for batch in file.iter_batches(_ROWS) for row in batch.to_pylist())
        yield from whole(path, all_rows, file.metadata.num_rows)


def whole(path: epath.Path, read: Iterable, number: int) -> Iterator:
    """What is read of a file. Raises UserError if it is not as many rows as the file says: pyarrow does not notice."""
    count = 0
    for row in read:
        count += 1
        yield row
    if count != number:
        raise UserError(f'{path}: This is no whole parquet file ({count} of {number} rows). Get it again.')


def class_names(schema) -> dict[str, tuple[str, ...]]:
    """column -> the names of its ids 0, 1, ..., where an Arrow schema says them, as `datasets` writes it."""
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
def named_errors(path: epath.Path):
    """Turns what can go wrong with a parquet file into a UserError that names it."""
    arrow = import_package('pyarrow', _IMPOSSIBLE)
    try:
        yield
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).partition('\n')[0].rstrip('.')
        raise UserError(f'{path}: This is no whole parquet file ({reason}). Get it again.') from error
