"""The documents in a file: the text itself, gzip or not, members of a zip archive, rows of a table."""

import contextlib
import gzip
import io
import itertools
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple

from etils import epath

from gpt1_jax.data import parquet
from gpt1_jax.data.corpus.documents import DAMAGED, DocumentError, Unreadable, named_errors
from gpt1_jax.errors import UserError
from gpt1_jax.files import is_local, parse_json, size_of

TEXT_COLUMNS = ('text', 'book_text', 'content')  # that may hold the text of a table
_PARQUET_ROWS = 16  # at once: a row may be a book
_LONGEST_LINE = 2**26  # bytes
_FIRST_ROWS = 100  # of JSON lines, in which a column is looked for: the first may be a header
_UNPACKED = 2**30  # bytes that the members of any archive may have together
_RATIO = 200  # or this many times its size, if that is more
_CHANGED = 'it has changed since the run began'
_ERRORS = (OSError, RuntimeError, *DAMAGED)


class Part(NamedTuple):
    """A file of a corpus: its documents, in order."""

    documents: int  # their number
    size: int  # bytes that are read of it in all; of a table's text, about
    names: Callable[[], Iterable[str]]
    read: Callable[[int], Iterator[BinaryIO]]  # the contents, from the document of this index on

    def files(self, first: int) -> Iterator[BinaryIO]:
        """`read`, with an `Unreadable` for each document that it cannot read."""
        missing = self.documents - first
        try:
            for file in self.read(first):
                missing -= 1
                yield file
            error = OSError(_CHANGED)
        except UserError as user_error:
            error = DocumentError(str(user_error))
        except _ERRORS as read_error:
            error = read_error
        yield from (Unreadable(error) for _ in range(missing))


def _unpacked(file, name):
    """The text in an open file. gzip and tar are recognised by their bytes, whatever the name."""
    beginning = text = file.peek(512)
    is_gzip = beginning.startswith(b'\x1f\x8b')
    if is_gzip:
        with contextlib.suppress(zlib.error):
            text = zlib.decompressobj(wbits=31).decompress(beginning, 512)
    if text[256:262] == b'\0ustar':
        return Unreadable(DocumentError(f'{name}: This is a tar archive, not text. Unpack it, and name its folder.'))
    if is_gzip:
        return gzip.GzipFile(fileobj=file)
    if beginning and str(name).lower().endswith('.gz'):
        return Unreadable(
            DocumentError(f'{name}: The file is not gzip, though its name ends in .gz. Rename it to {str(name)[:-3]}.')
        )
    return file


# Text files, and members of zip archives.


def text_part(name: str, path: epath.Path) -> Part:
    """A file that is one document. Raises DocumentError: it is not there."""
    with named_errors(path):
        size = size_of(path)
    return Part(1, size, lambda: (name,), lambda first: _open_text(path, size))


def _open_text(path, size):
    with path.open('rb') as file:
        if size_of(path) != size:
            raise OSError(_CHANGED)
        yield _unpacked(file, path)


def zip_part(name: str, path: epath.Path, wanted: Callable[[str], bool]) -> Part:
    """The members of a zip archive with names that are `wanted`. Raises DocumentError: it cannot be read."""
    with named_errors(path), path.open('rb') as file, zipfile.ZipFile(file) as archive:
        members = [
            member for member in archive.infolist() if not member.filename.endswith('/') and wanted(member.filename)
        ]
        packed = size_of(path)
    unpacked = sum(member.file_size for member in members)
    if unpacked > max(_UNPACKED, _RATIO * packed):
        raise DocumentError(
            f'{path}: The {packed:,} bytes would unpack to {unpacked:,}, as no text does. Remove the file, or unpack '
            'it yourself.'
        )
    return Part(
        len(members),
        unpacked,
        lambda: (f'{name}/{member.filename}' for member in members),
        lambda first: _open_members(path, members[first:]),
    )


def _open_members(path, members):
    with path.open('rb') as file, zipfile.ZipFile(file) as archive:
        for member in members:
            with contextlib.ExitStack() as stack:
                try:
                    text = _unpacked(stack.enter_context(archive.open(member)), member.filename)
                except _ERRORS as error:
                    text = Unreadable(error)
                yield text


# Tables: a row is a document.


def table_part(name: str, path: epath.Path, column: str) -> Part | str:
    """The rows of JSON lines or a .parquet file; if it has no such column with text, a str instead: `column NAME is of
    type TYPE`, or '' if no column has the name.

    column: the one with the text; '': the first of TEXT_COLUMNS that is there. Raises DocumentError: it cannot be read.
    """
    names = [column] if column else TEXT_COLUMNS
    open_table = _open_parquet if name.lower().endswith('.parquet') else _open_json
    with named_errors(path):
        size, documents, found, other = size_of(path), *open_table(path, names)
    if found is None:
        return other
    texts = parquet_texts if open_table is _open_parquet else _json_texts
    return Part(
        documents,
        size,
        lambda: (f'{name}:{number}' for number in range(1, documents + 1)),
        lambda first: texts(path, found, first),
    )


def _lines(file):
    """The lines of a table. Raises OSError for one that is longer than any book: it could fill the memory."""
    while line := file.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE and not line.endswith(b'\n'):
            raise OSError(f'a line has more than {_LONGEST_LINE:,} bytes')
        yield line


def has_json_rows(path: epath.Path) -> bool:
    """Whether the first line of a file is a JSON object; True also for a damaged .gz file."""
    if is_local(path) and not os.path.isfile(path):
        return False
    try:
        with path.open('rb') as file:
            return isinstance(next(map(_parse, _rows(_unpacked(file, path))), {}), dict)
    except (DocumentError, *DAMAGED):
        return True
    except (OSError, ValueError):
        return False


def _rows(text):
    return (line for line in _lines(text) if not line.isspace())


def _parse(line):
    return parse_json(line.decode('utf-8-sig'))


def _open_json(path, names):
    """(number of lines, the first of these columns that an early row has, or None, '': any column may hold text)"""
    found = None
    with path.open('rb') as file:
        text = _unpacked(file, path)
        for number, line in enumerate(itertools.islice(_rows(text), _FIRST_ROWS)):
            try:
                row = _parse(line)
            except ValueError as error:
                if not number:
                    problem = f'{path}: Its first line is not JSON ({error}). Remove the file, or fix it.'
                    raise DocumentError(problem) from error
                continue
            if found := next((name for name in names if isinstance(row, dict) and name in row), None):
                break
        text.seek(0)
        lines, end = 0, b'\n'
        while data := text.read(2**20):
            lines, end = lines + data.count(b'\n'), data[-1:]
    return lines + (end != b'\n'), found, ''


def _json_texts(path, column, first):
    with path.open('rb') as file:
        for number, line in enumerate(itertools.islice(_lines(_unpacked(file, path)), first, None), first + 1):
            text = None
            with contextlib.suppress(ValueError):
                row = {} if line.isspace() else _parse(line)
                text = (row.get(column) or '') if isinstance(row, dict) else None
                if text == '' and column not in row and row.keys() & set(TEXT_COLUMNS):
                    text = None  # files of two kinds that were joined: half of the text would be left out
            if isinstance(text, str):
                yield io.BytesIO(text.encode(errors='replace'))
            else:
                problem = f'{path}: Line {number:,} is not a JSON object with text as {column!r}. Fix or remove it.'
                yield Unreadable(DocumentError(problem))


def _open_parquet(path, names):
    """(number of rows, the first of these columns that holds text, or None, `parquet.other_type`)"""
    try:
        file = parquet.open_file(path)
    except UserError as error:
        raise DocumentError(str(error)) from error
    schema = file.schema_arrow
    return file.metadata.num_rows, parquet.text_column(schema, names), parquet.other_type(schema, names)


def parquet_texts(path: epath.Path, column: str, first: int) -> Iterator[BinaryIO]:
    """The texts of a parquet file, from the row `first` on; empty for a null. Raises UserError: it is damaged."""
    file = parquet.open_file(path)
    with parquet.named_errors(path):
        ends = itertools.accumulate(
            file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)
        )
        ends = [0, *ends]
        groups = [group for group, end in enumerate(ends[1:]) if end > first]
        batches = parquet.batches(file, _PARQUET_ROWS, row_groups=groups, columns=[column])
        texts = (text for batch in batches for text in batch.column(0).cast('large_binary').to_pylist())
        for text in itertools.islice(texts, first - ends[groups[0]] if groups else 0, None):
            yield io.BytesIO(text or b'')
