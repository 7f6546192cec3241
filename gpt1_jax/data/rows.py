"""Sources of labelled data -> rows, each with the words that tell a user where it stands."""

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator

import numpy as np
from etils import epath

from gpt1_jax.errors import UserError

_SUFFIXES = ('.jsonl', '.jsonl.gz', '.tsv', '.tsv.gz', '.csv', '.csv.gz')


def tfds_rows(name: str, split: str) -> Iterator[tuple[str, dict]]:
    import tensorflow_datasets as tfds
    # Read here: TFDS itself reads the variable once, when it is first imported.
    data_dir = os.environ.get('TFDS_DATA_DIR')
    mend = ('prepare it once, with network, by  python -c "import tensorflow_datasets as tfds; '
            f"tfds.load('{name}')\"  and set TFDS_DATA_DIR to where it lies, or use files:/dir instead.")
    try:
        rows = tfds.as_numpy(tfds.load(name, split=split, data_dir=data_dir, download=False))
    except (AssertionError, ValueError) as error:  # not prepared; no such data set, config or split
        reason = str(error).partition('\n')[0].partition('. ')[0].rstrip('.')
        raise UserError(f'tfds:{name} split {split!r} cannot be read ({reason}); {mend}') from error
    for number, row in enumerate(rows):
        where = f'tfds:{name} split {split!r}, row {number}'
        yield where, {key: _plain(value, where) for key, value in row.items()}


def _plain(value, where: str):
    """NumPy values and bytes of TFDS -> what json would give."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise UserError(f'{where}: not UTF-8 at byte {error.start}; prepare it again.') from error
    if isinstance(value, np.ndarray):
        return [_plain(element, where) for element in value.tolist()]
    return value.item() if isinstance(value, np.generic) else value


def file_rows(directory: str, split: str) -> Iterator[tuple[str, dict]]:
    path = _find_file(epath.Path(directory), split)
    text = _read_text(path)
    name = path.name.removesuffix('.gz')
    if name.endswith('.jsonl'):
        yield from _jsonl_rows(path, text)
        return
    if name.endswith('.tsv'):
        lines = ((i, line.removesuffix('\r').split('\t')) for i, line in enumerate(text.split('\n'), 1))
    else:
        lines = _csv_lines(path, text)
    header = None
    for number, cells in lines:
        if cells in ([], ['']):
            continue
        if header is None:
            header = cells
            if len(set(header)) < len(header):
                raise UserError(f'{path}, line {number}: two columns have the same name; rename one of them.')
        elif len(cells) != len(header):
            raise UserError(f'{path}, line {number}: {len(cells)} cells, but the header names {len(header)} '
                            f'({", ".join(header)}); correct the line.')
        else:
            yield f'{path}, line {number}', dict(zip(header, cells))


def _jsonl_rows(path, text: str) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(text.split('\n'), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f'{path}, line {number}: not JSON ({error}); write one object a line.') from error
        if not isinstance(row, dict):
            raise UserError(f'{path}, line {number}: not a JSON object; write one object a line.')
        yield f'{path}, line {number}', row


def _csv_lines(path, text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=''), strict=True)
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as error:
        raise UserError(f'{path}, line {reader.line_num}: not CSV ({error}); correct the quotes.') from error


def _find_file(directory, split: str):
    stems = dict.fromkeys((split, split.replace('validation', 'dev')))
    if not directory.is_dir():
        raise UserError(f'{directory} is not a directory; name the folder that holds {[*stems][-1]}.jsonl.')
    names = {path.name for path in directory.iterdir()}
    found = [stem + suffix for stem in stems for suffix in _SUFFIXES if stem + suffix in names]
    if len(found) > 1:
        raise UserError(f'{directory} has both {found[0]} and {found[1]}; keep one of them.')
    if not found:
        raise UserError(f'{directory} has no {[*stems][-1]}.jsonl (or .tsv, .csv, or one of these .gz), '
                        f'only {", ".join(sorted(names)) or "nothing"}; add the file.')
    return directory / found[0]


def _read_text(path) -> str:
    try:
        data = path.read_bytes()
        if path.name.endswith('.gz'):
            data = gzip.decompress(data)
        return data.decode().removeprefix('\ufeff')
    except UnicodeDecodeError as error:
        raise UserError(f'{path} is not UTF-8 at byte {error.start}; convert it, for example with '
                        'iconv -t UTF-8.') from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f'{path} is not a complete gzip file ({error}); make or copy it again.') from error
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror}); check its permissions.') from error
