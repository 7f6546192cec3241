"""Sources of labelled data -> rows, each with the words that tell a user where it stands."""

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

from gpt1_jax.data.files import import_package, import_tensorflow
from gpt1_jax.errors import UserError

_SUFFIXES = ('.jsonl', '.jsonl.gz', '.tsv', '.tsv.gz', '.csv', '.csv.gz')


# ----------------------------------------------------------------- TensorFlow Datasets


def tfds_rows(names: str, split: str) -> Iterator[tuple[str, dict]]:
    """The rows of one split of prepared data sets, names with commas between, one after the other."""
    import_tensorflow()
    tfds = _import_tfds()
    names = names.split(',')
    fix = ('prepare it once, with network, by  python -c "import tensorflow_datasets as tfds; '
           + '; '.join(f"tfds.load('{name}')" for name in names)
           + '"  and set TFDS_DATA_DIR to where it lies, or use files:/dir instead.')
    for name in names:
        try:
            rows = tfds.as_numpy(tfds.load(name, split=split, data_dir=_tfds_dir(), download=False))
        except (AssertionError, ValueError) as error:  # not prepared; no such data set, config or split
            reason = str(error).partition('\n')[0].partition('. ')[0].rstrip('.')
            raise UserError(f'tfds:{name} split {split!r} cannot be read ({reason}); {fix}') from error
        for number, row in enumerate(rows):
            where = f'tfds:{name} split {split!r}, row {number}'
            yield where, {key: _plain(value, where) for key, value in row.items()}


def tfds_splits(names: str) -> set[str]:
    """The splits that all of these prepared data sets have; none where one of them is not prepared."""
    tfds = _import_tfds()
    try:
        return set.intersection(*(set(tfds.builder(name, data_dir=_tfds_dir()).info.splits)
                                  for name in names.split(',')))
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
            raise UserError(f'{where}: not UTF-8 at byte {error.start}; prepare it again.') from error
    if hasattr(value, 'to_list'):  # a ragged tensor
        value = value.to_list()
    elif isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(element, where) for element in value]
    return value.item() if isinstance(value, np.generic) else value


# ----------------------------------------------------------------- files


def file_rows(directory: str, split: str, columns: Sequence[str] = (), names: Collection[str] = (),
              drop_broken: bool = False) -> Iterator[tuple[str, dict]]:
    """The rows of a split's file. Blank lines are skipped; quotes mean nothing in .tsv.

    Args:
      columns: of a .tsv or .csv without a header; the first line is a header if one of its cells is in `columns` or
        `names`.
      drop_broken: leave out, and count, lines of a .tsv whose number of cells is wrong, instead of refusing them.
    """
    path, others = _find_file(epath.Path(directory).expanduser(), split)
    if path is None:
        stem = [*_stems(split)][-1]
        raise UserError(f'{directory} has no {stem}.jsonl (or .tsv, .csv, or one of these .gz), '
                        f'only {", ".join(others) or "nothing"}; add the file.')
    name = path.name.removesuffix('.gz')
    if name.endswith('.jsonl'):
        yield from _jsonl_rows(path)
        return
    tsv = name.endswith('.tsv')
    header, broken = None, 0
    for number, cells in _tsv_lines(path) if tsv else _csv_lines(path):
        if cells in ([], ['']):
            continue
        if header is None:
            if columns and not {*columns, *names} & set(cells):
                header, described = list(columns), f'there is no header, so there must be {len(columns)}'
            else:
                header, described = cells, f'the header names {len(cells)}'
                if len(set(header)) < len(header):
                    raise UserError(f'{path}, line {number}: two columns have the same name; rename one of them.')
                continue
        if len(cells) == len(header):
            yield f'{path}, line {number}', dict(zip(header, cells))
        elif tsv and drop_broken:
            broken += 1
        else:
            raise UserError(f'{path}, line {number}: {len(cells)} cells, but {described} '
                            f'({", ".join(header)}); correct the line.')
    if broken:
        logging.warning('%s: %d lines are broken, with too few or too many cells, and are left out', path, broken)


def has_file(directory: str, split: str) -> bool:
    """Whether file_rows finds a file for this split."""
    return _find_file(epath.Path(directory).expanduser(), split)[0] is not None


def _stems(split: str) -> dict[str, None]:
    return dict.fromkeys((split, split.replace('validation', 'val'), split.replace('validation', 'dev')))


def _find_file(directory, split: str):
    """(path or None, the names of all files)."""
    stems = _stems(split)
    if not directory.is_dir():
        raise UserError(f'{directory} is not a directory; name the folder that holds {[*stems][-1]}.jsonl.')
    names = sorted(path.name for path in directory.iterdir())
    found = [stem + suffix for stem in stems for suffix in _SUFFIXES if stem + suffix in names]
    if len(found) > 1:
        raise UserError(f'{directory} has both {found[0]} and {found[1]}; keep one of them.')
    return (directory / found[0] if found else None), names


def _jsonl_rows(path) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f'{path}, line {number}: not JSON ({error}); write one object a line.') from error
        if not isinstance(row, dict):
            raise UserError(f'{path}, line {number}: not a JSON object; write one object a line.')
        yield f'{path}, line {number}', row


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
        raise UserError(f'{path}, line {reader.line_num}: not CSV ({error}); correct the quotes.') from error


def _lines(path) -> Iterator[str]:
    """The lines with their ends, which may be \\n, \\r\\n and \\r in one file, without a byte order mark."""
    try:
        data = path.read_bytes()
        if path.name.endswith('.gz'):
            data = gzip.decompress(data)
        yield from io.TextIOWrapper(io.BytesIO(data), encoding='utf-8-sig', newline='')  # decodes piece by piece
    except UnicodeDecodeError:
        try:
            data.decode()  # for the place in the file
        except UnicodeDecodeError as error:
            raise UserError(f'{path} is not UTF-8 at byte {error.start}; convert it, for example with '
                            'iconv -t UTF-8.') from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f'{path} is not a complete gzip file ({error}); make or copy it again.') from error
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror}); check its permissions.') from error


# ----------------------------------------------------------------- what a row must have


def require(where: str, row: dict, names: Sequence[str]) -> None:
    """Raises UserError if the row lacks one of these columns."""
    if missing := [name for name in names if name not in row]:
        raise UserError(f'{where}: there is no column {missing[0]!r}, only {", ".join(map(str, row))}; '
                        f'rename a column, or name the right one in the config.')


def to_text(value, where: str) -> str:
    """The value, if it is text; `where` names row and column."""
    if not isinstance(value, str):
        raise UserError(f'{where} is {type(value).__name__} and not text; write it as a string.')
    return value


def to_list(value, where: str) -> list:
    """The value, if it is a list, or the JSON of one: .tsv and .csv have no lists of their own."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            pass
    if not isinstance(value, list):
        raise UserError(f'{where} is not a list of choices; write ["first", "second"].')
    return value
