"""Sources of labelled data -> entries, each with where it stands, for error messages."""

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from absl import logging
from etils import epath

from gpt1_jax.errors import UserError
from gpt1_jax.files import import_package, import_tensorflow

_SUFFIXES = ('.jsonl', '.jsonl.gz', '.tsv', '.tsv.gz', '.csv', '.csv.gz')


# ----------------------------------------------------------------- TensorFlow Datasets


def tfds_entries(names: str, split: str) -> Iterator[tuple[str, dict]]:
    """The entries of one split of prepared data sets, one set after the other; `names` has commas between them.

    Raises:
      UserError: a data set is not prepared, or there is none of this name.
    """
    import_tensorflow()
    tfds = _import_tfds()
    names = names.split(',')
    fix = (
        'Prepare it once, with a network, by  python -c "import tensorflow_datasets as tfds; '
        + '; '.join(f"tfds.load('{name}')" for name in names)
        + '"  and set TFDS_DATA_DIR to its folder, or use files:/dir instead.'
    )
    for name in names:
        try:
            entries = tfds.as_numpy(tfds.load(name, split=split, data_dir=_tfds_dir(), download=False))
        except (AssertionError, ValueError) as error:  # not prepared; no such data set, config or split
            reason = str(error).partition('\n')[0].partition('. ')[0].rstrip('.')
            raise UserError(f'tfds:{name}, split {split!r}: It cannot be read ({reason}). {fix}') from error
        for number, entry in enumerate(entries):
            where = f'tfds:{name}, split {split!r}, row {number}'
            yield where, {key: _plain(value, where) for key, value in entry.items()}


def tfds_splits(names: str) -> set[str]:
    """The splits that all of these data sets have (names with commas between); none if one of them is not prepared."""
    tfds = _import_tfds()
    try:
        return set.intersection(
            *(set(tfds.builder(name, data_dir=_tfds_dir()).info.splits) for name in names.split(','))
        )
    except ValueError:  # no such data set or config
        return set()


def _import_tfds():
    return import_package('tensorflow_datasets', 'tfds: sources cannot be read')


def _tfds_dir() -> str | None:
    return os.environ.get('TFDS_DATA_DIR')  # read here: TFDS itself reads it once, when it is first imported


def _plain(value, where: str):
    """NumPy values, bytes and ragged tensors of TFDS -> what json would give."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f'{where}: The text is not UTF-8 at byte {error.start}. Prepare the data set again.'
            ) from error
    if hasattr(value, 'to_list'):  # a ragged tensor
        value = value.to_list()
    elif isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(element, where) for element in value]
    return value.item() if isinstance(value, np.generic) else value


# ----------------------------------------------------------------- files


def file_entries(
    directory: str, split: str, columns: Sequence[str] = (), names: Collection[str] = (), drop_broken: bool = False
) -> Iterator[tuple[str, dict]]:
    """The entries of a split's file. Blank lines are skipped; quotes mean nothing in .tsv.

    Args:
      columns: of a .tsv or .csv without a header; the first line is a header if one of its cells is in `columns` or
        `names`.
      drop_broken: leave out lines of a .tsv that have the wrong number of cells, and log how many, instead of refusing
        them.

    Raises:
      UserError: there is no file, or two, or it is malformed.
    """
    path, others = _find_file(epath.Path(directory).expanduser(), split)
    if path is None:
        stem = [*_stems(split)][-1]
        raise UserError(
            f'{directory}: There is no {stem}.jsonl (or .tsv, .csv, or one of these .gz), '
            f'only {", ".join(others) or "nothing"}. Add the file.'
        )
    name = path.name.removesuffix('.gz')
    if name.endswith('.jsonl'):
        yield from _jsonl_entries(path)
        return
    tsv = name.endswith('.tsv')
    header, broken = None, 0
    for number, cells in _tsv_lines(path) if tsv else _csv_lines(path):
        if cells in ([], ['']):
            continue
        if header is None:
            if columns and not {*columns, *names} & set(cells):
                header, described = list(columns), f'a file without a header needs {len(columns)}'
            else:
                header, described = cells, f'the header names {len(cells)}'
                if len(set(header)) < len(header):
                    raise UserError(f'{path}, line {number}: Two columns have the same name. Rename one of them.')
                continue
        if len(cells) == len(header):
            yield f'{path}, line {number}', dict(zip(header, cells))
        elif tsv and drop_broken:
            broken += 1
        else:
            raise UserError(
                f'{path}, line {number}: There are {len(cells)} cells, but {described} '
                f'({", ".join(header)}). Correct the line.'
            )
    if broken:
        logging.warning('%s: %d lines have too few or too many cells and are left out.', path, broken)


def has_file(directory: str, split: str) -> bool:
    """Whether file_entries finds a file for this split. Raises UserError if there are two, or no directory."""
    return _find_file(epath.Path(directory).expanduser(), split)[0] is not None


def _stems(split: str) -> dict[str, None]:
    return dict.fromkeys((split, split.replace('validation', 'val'), split.replace('validation', 'dev')))


def _find_file(directory, split: str):
    """(path or None, the names of all files)."""
    stems = _stems(split)
    if not directory.is_dir():
        raise UserError(f'{directory}: This is not a directory. Name the folder that holds {[*stems][-1]}.jsonl.')
    names = sorted(path.name for path in directory.iterdir())
    found = [stem + suffix for stem in stems for suffix in _SUFFIXES if stem + suffix in names]
    if len(found) > 1:
        raise UserError(f'{directory}: There are both {found[0]} and {found[1]}. Keep one of them.')
    return (directory / found[0] if found else None), names


def _jsonl_entries(path) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise UserError(f'{path}, line {number}: This is not JSON ({error}). Write one object a line.') from error
        if not isinstance(entry, dict):
            raise UserError(f'{path}, line {number}: This is not a JSON object. Write one object a line.')
        yield f'{path}, line {number}', entry


def _tsv_lines(path) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(_lines(path), 1):
        yield number, line.rstrip('\r\n').split('\t')


def _csv_lines(path) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(2**31 - 1)  # a cell may be a whole article
    reader = csv.reader(_lines(path), strict=True)
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as error:
        raise UserError(f'{path}, line {reader.line_num}: This is not CSV ({error}). Correct the quotes.') from error


def _lines(path) -> Iterator[str]:
    """The lines with their ends, which may be \\n, \\r\\n and \\r in one file, without a byte order mark."""
    try:
        data = path.read_bytes()
        if path.name.endswith('.gz'):
            data = gzip.decompress(data)
        yield from io.TextIOWrapper(io.BytesIO(data), encoding='utf-8-sig', newline='')  # decodes piece by piece
    except UnicodeDecodeError:
        try:
            data.decode()  # for the position in the file
        except UnicodeDecodeError as error:
            raise UserError(
                f'{path}: The file is not UTF-8 at byte {error.start}. Convert it, for example with iconv -t UTF-8.'
            ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f'{path}: This is not a complete gzip file ({error}). Make or copy it again.') from error
    except OSError as error:
        raise UserError(f'{path}: The file cannot be read ({error.strerror}). Check its permissions.') from error


# ----------------------------------------------------------------- what an entry must have


def require(where: str, entry: dict, names: Sequence[str]) -> None:
    """Raises UserError if the entry lacks one of these columns."""
    if missing := [name for name in names if name not in entry]:
        raise UserError(
            f'{where}: There is no column {missing[0]!r}, only {", ".join(map(str, entry))}. '
            f'Rename a column, or name the right one in the config.'
        )


def to_text(value, where: str) -> str:
    """The value, if it is text; `where` names entry and column. Raises UserError."""
    if not isinstance(value, str):
        raise UserError(f'{where}: The value is {type(value).__name__}, not text. Write it as a string.')
    return value


def to_list(value, where: str) -> list:
    """The value, if it is a list, or the JSON of one: .tsv and .csv have no lists of their own. Raises UserError."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            pass
    if not isinstance(value, list):
        raise UserError(f'{where}: The value is not a list. Write ["first", "second"].')
    return value
