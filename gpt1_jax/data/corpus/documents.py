"""A corpus as documents, read as a stream of blocks: memory does not grow with a file or a corpus."""

import collections
import contextlib
import dataclasses
import gzip
import hashlib
import io
import itertools
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from typing import BinaryIO, NamedTuple

from gpt1_jax.data.corpus.cleaning import cleaned
from gpt1_jax.encodings import file_format, hidden_encoding, source_encoding
from gpt1_jax.errors import UserError

BLOCK_BYTES = 2**20
_AFTER_BOUNDARY = 2**12  # bytes in which a line end is looked for
# Of a compressed file. Some builds of Python cannot unpack LZMA.
DAMAGED = (
    EOFError,
    gzip.BadGzipFile,
    zipfile.BadZipFile,
    zlib.error,
    *([zipfile.lzma.LZMAError] if zipfile.lzma else []),
)
_GROUP = 2**19  # characters, at least, that a worker is given at once


class DocumentError(UserError):
    """One document cannot be read; the others may be fine."""


class Block(NamedTuple):
    """A piece of one document; `(document, end)` is where the next begins."""

    document: int  # index
    name: str
    held_out: bool
    text: str  # about 1 MB, cut at a line end where the text has one
    offset: int  # in the document, bytes
    end: int
    size: int  # bytes of the source that were read for it; compressed ones in a .gz file


@dataclasses.dataclass
class Findings:
    """What is collected by a reader that does not stop at the first bad document."""

    problems: dict[str, None] = dataclasses.field(default_factory=dict)  # sentences, in order
    unmarked: int = 0  # documents that `strip_gutenberg` left as they are


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order."""

    uri: str
    documents: int  # their number
    size: int  # of the source in bytes, what the blocks' sizes sum to (tfds and rows of tables: about)
    fingerprint: str  # changes with the documents' names and sizes
    names: Callable[[], Iterator[str]]  # in order
    files: Callable[[int], Iterator[BinaryIO]]  # the contents, from the document of this index on
    own_held_out: str | None = None  # prefix of the names of documents that the source itself holds out
    by_name: bool = False  # whether a hash of the name alone says which documents are held out
    left_out: str = ''  # which files of the source are not read, in words
    problems: tuple[str, ...] = ()  # a sentence for each file of the source that cannot be read
    is_row: Callable[[int], bool] = lambda document: True  # of a table: an empty row is a line, an empty file is not
    convert: Callable[[str, str], str] | None = None  # (name, encoding) -> the command that makes a document UTF-8
    strip_gutenberg: bool = False  # see cleaning.py
    unwrap: bool = False
    parts: Callable[[], Iterator[Mapping]] | None = None  # what another process needs to open each of its files

    def part(self, first: int, documents: int) -> 'Corpus':
        """Some documents in a row, as a corpus of their own."""
        return dataclasses.replace(
            self,
            documents=documents,
            names=lambda: itertools.islice(self.names(), first, first + documents),
            files=lambda start: itertools.islice(self.files(first + start), documents - start),
        )

    def blocks(
        self, held_out: Mapping[int, int] | None = None, start: tuple[int, int] = (0, 0), found: Findings | None = None
    ) -> Iterator[Block]:
        """Streams the text from `start` on: (0, 0) or the (document, end) of an earlier block.

        Args:
          held_out: index of a document -> the byte from which on it is held out, beside what the source holds out.
          found: collects what is wrong with documents, which then does not end the stream.

        Raises:
          UserError: a document that cannot be read, is damaged or is not UTF-8.
        """
        if self.problems and found is None:
            raise UserError(self.problems[0])
        first, offset = start
        names = itertools.islice(self.names(), first, None)
        for index, (name, file) in enumerate(zip(names, self.files(first), strict=True), first):
            own = bool(self.own_held_out) and name.startswith(self.own_held_out)
            boundary = 0 if own else (held_out or {}).get(index)
            try:
                with named_errors(f'{name} of {self.uri}', self.convert and (lambda code: self.convert(name, code))):
                    with self._clean(file) as text_file:
                        try:
                            for text, begin, end, size in _cut(text_file, offset, boundary):
                                at_end = boundary is not None and begin >= boundary
                                yield Block(index, name, at_end, text, begin, end, size)
                        except UnicodeDecodeError:
                            if text_file is not file:  # read the file itself: its offsets differ
                                files = self.files(index)
                                collections.deque(_cut(next(files), 0, None), maxlen=0)
                            raise
                        if found and self.strip_gutenberg:
                            found.unmarked += not text_file.marked
            except DocumentError as error:
                if found is None:
                    raise
                found.problems[str(error)] = None
            offset = 0

    def _clean(self, file):
        return cleaned(file, self.strip_gutenberg, self.unwrap) if self.strip_gutenberg or self.unwrap else file


def _cut(file: BinaryIO, offset: int, boundary: int | None) -> Iterator[tuple[str, int, int, int]]:
    """Blocks (text, begin, end, size read) of an open document from `offset` on.

    A block's end depends on its beginning and nothing else, so a resumed read cuts in the same places. One block ends
    at the first line end at or after `boundary`, or, in a long line, at a space soon after it.
    """
    raw = file
    while inner := getattr(raw, 'fileobj', None):  # of a .gz file, to count the compressed bytes
        raw = inner
    file.seek(offset)
    position = raw.tell()
    rest = b''
    while True:
        ahead = BLOCK_BYTES if boundary is None or offset >= boundary else boundary - offset
        ahead = min(BLOCK_BYTES, max(ahead, 256))
        data = rest + file.read(ahead - len(rest))
        if not data:
            return
        is_near = boundary is not None and offset < boundary <= offset + 2 * BLOCK_BYTES
        most = _AFTER_BOUNDARY if is_near else BLOCK_BYTES
        line = b'' if data.endswith(b'\n') else file.readline(most)
        data += line
        cut = len(data)
        if len(line) == most and not line.endswith(b'\n'):  # a very long line: cut at a space
            cut = data.rfind(b' ', cut - 256) + 1 or _character_start(data)
        data, rest = data[:cut], data[cut:]
        try:
            text = data.decode()
            if '\0' in text and hidden_encoding(data):
                raise UnicodeDecodeError('utf-8', data, data.index(0), len(data), 'it is UTF-16')
        except UnicodeDecodeError as error:
            error.start += offset
            error.encoding = source_encoding(data, iter(lambda: file.read(BLOCK_BYTES), b''))
            raise
        yield text, offset, offset + cut, raw.tell() - position
        offset, position = offset + cut, raw.tell()


def _character_start(data: bytes) -> int:
    """Where the last UTF-8 character of data starts."""
    for cut in range(len(data) - 1, len(data) - 4, -1):
        if data[cut] & 0xC0 != 0x80:
            return cut
    return len(data)


class Unreadable(io.RawIOBase):
    """Stands for a document that cannot be opened: raises the error when it is read."""

    def __init__(self, error: Exception):
        self._error = error

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        raise self._error

    def readinto(self, buffer: bytearray) -> int:
        raise self._error


@contextlib.contextmanager
def named_errors(name: str, convert: Callable[[str], str] | None = None) -> Iterator[None]:
    """Turns what can go wrong with a document into a DocumentError that names it.

    convert: from the encoding that the text is in to the command that makes it UTF-8.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        encoding = error.encoding if error.encoding != 'utf-8' else source_encoding(error.object)
        what = file_format(error.object)
        if what or not encoding:
            problem = f'The file is not text{f" but {what}" if what else ""}. Remove it, or take the text out of it.'
        else:
            command = (convert and convert(encoding)) or f'iconv -f {encoding} -t UTF-8'
            problem = (
                f'The text is not UTF-8 at byte {error.start:,}, but probably {encoding}. Convert it with `{command}`.'
            )
        raise DocumentError(f'{name}: {problem}') from error
    except DAMAGED as error:
        raise DocumentError(f'{name}: The compressed file is damaged ({error}). Copy it again.') from error
    except RuntimeError as error:  # of an archive: a password is needed, or another program
        if not isinstance(error, NotImplementedError) and 'password' not in str(error):
            raise
        raise DocumentError(f'{name}: The archive cannot be unpacked here ({error}). Unpack it yourself.') from error
    except OSError as error:
        raise DocumentError(
            f'{name}: The file cannot be read ({error.strerror or error}). Fix or remove it.'
        ) from error


def fingerprint(*parts: object) -> str:
    """16 hex characters that change with the parts."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def map_blocks(
    pool: Executor, function: Callable[[list[str]], list], blocks: Iterable[Block], in_flight: int
) -> Iterator[list[tuple[Block, object]]]:
    """Groups of blocks, in order, each block with what `function` makes of its text.

    Args:
      pool: runs the function for a group at a time.
      in_flight: groups that are in memory at most.
    """
    queue = collections.deque()
    for group in _groups(blocks):
        queue.append((group, pool.submit(function, [block.text for block in group])))
        if len(queue) == in_flight:
            group, future = queue.popleft()
            yield list(zip(group, future.result(), strict=True))
    for group, future in queue:
        yield list(zip(group, future.result(), strict=True))


def _groups(blocks):
    group, size = [], 0
    for block in blocks:
        group.append(block)
        size += len(block.text)
        if size >= _GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group
