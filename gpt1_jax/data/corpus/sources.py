"""Sources of running text, read as a stream of blocks: memory does not grow with a file or a corpus."""

import codecs
import contextlib
import dataclasses
import gzip
import hashlib
import io
import itertools
import os
import re
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from etils import epath

from gpt1_jax.data.corpus.docstrings import read_docstrings
from gpt1_jax.data.corpus.held_out import HELD_OUT, held_out_rule
from gpt1_jax.errors import UserError
from gpt1_jax.files import import_package, import_tensorflow, is_local

BLOCK_BYTES = 2**20


class Block(NamedTuple):
    """A piece of one document; `(document, end)` is where the next begins."""

    document: int  # index
    name: str
    held_out: bool
    text: str  # about 1 MB, cut at a line end where the text has one
    offset: int  # in the document, bytes
    end: int
    size: int  # bytes of the source that were read for it; compressed ones in a .gz file


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order."""

    uri: str
    documents: int  # their number
    size: int  # of the source in bytes, what the blocks' sizes sum to (tfds: about)
    fingerprint: str  # changes with the documents' names and sizes
    names: Callable[[], Iterator[str]]  # in order
    files: Callable[[int], Iterator[BinaryIO]]  # the contents, from the document of this index on
    own_held_out: str | None = None  # prefix of the names that the source itself holds out

    def blocks(self, held_out: float = HELD_OUT, start: tuple[int, int] = (0, 0)) -> Iterator[Block]:
        """Streams the text from `start` on: (0, 0) or the (document, end) of an earlier block.

        The source's own validation split is held out, if it has one; otherwise whole documents, the fraction
        `held_out` of them chosen by a hash of the name, at least one; of a single document, its end.

        Raises:
          UserError: a document that cannot be read, is damaged or is not UTF-8.
        """
        first, offset = start
        from_end = self.documents == 1 and not self.own_held_out
        rule = None if from_end or self.own_held_out else held_out_rule(self.names, held_out)
        names = itertools.islice(self.names(), first, None)
        for index, (name, file) in enumerate(zip(names, self.files(first), strict=True), first):
            with file, _named_errors(f'{name} of {self.uri}'):
                boundary = int(file.seek(0, os.SEEK_END) * (1 - held_out)) if from_end and held_out else None
                held = rule(name) if rule else bool(self.own_held_out) and name.startswith(self.own_held_out)
                for text, begin, end, size in _cut(file, offset, boundary):
                    at_end = boundary is not None and begin >= boundary
                    yield Block(index, name, held or at_end, text, begin, end, size)
            offset = 0


def open_corpus(uri: str) -> Corpus:
    """Opens a source of running text.

    Args:
      uri: `text:PATH`, a folder, a glob or a file of .txt or .txt.gz, one document a file; `tfds:NAME`, a
        TensorFlow Datasets set with a feature `text` or `book_text`, prepared before; `docs:` or
        `docs:a,b`, documentation strings of installed Python packages, see `read_docstrings`.
    Raises:
      UserError: an unknown kind, nothing there, or nothing in it.
    """
    kind, _, rest = str(uri).partition(':')
    openers = {'text': _open_text, 'tfds': _open_tfds, 'docs': _open_docs}
    if kind not in openers:
        raise UserError(f'data.source: {uri!r} is no running text. Give text:/folder-glob-or-file, tfds:name or docs:.')
    corpus = openers[kind](rest)
    if not corpus.documents or not corpus.size:
        raise UserError(f'{uri}: The source holds no text. Name another one.')
    return corpus


def _cut(file: BinaryIO, offset: int, boundary: int | None) -> Iterator[tuple[str, int, int, int]]:
    """Blocks (text, begin, end, size read) of an open document from `offset` on.

    Where a block ends depends on where it begins and on nothing else, so a resumed read cuts in the same places. One
    block ends at the first line end at or after `boundary`.
    """
    raw = getattr(file, 'fileobj', None) or file  # of a .gz file, to count the compressed bytes
    file.seek(offset)
    position = raw.tell()
    rest = b''
    while True:
        ahead = BLOCK_BYTES if boundary is None or offset >= boundary else boundary - offset
        ahead = min(BLOCK_BYTES, max(ahead, 256))
        data = rest + file.read(ahead - len(rest))
        if not data:
            return
        line = b'' if data.endswith(b'\n') else file.readline(BLOCK_BYTES)
        data += line
        cut = len(data)
        if len(line) == BLOCK_BYTES and not line.endswith(b'\n'):  # a very long line: cut at a space
            cut = data.rfind(b' ', cut - 256) + 1 or _character_start(data)
        data, rest = data[:cut], data[cut:]
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            error.start += offset
            raise
        yield text, offset, offset + cut, raw.tell() - position
        offset, position = offset + cut, raw.tell()


def _character_start(data: bytes) -> int:
    """Where the last UTF-8 character of data starts."""
    for cut in range(len(data) - 1, len(data) - 4, -1):
        if data[cut] & 0xC0 != 0x80:
            return cut
    return len(data)


@contextlib.contextmanager
def _named_errors(name: str):
    """Turns what can go wrong with a document into a UserError that names it."""
    try:
        yield
    except UnicodeDecodeError as error:
        encoding = 'UTF-16' if error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else 'WINDOWS-1252'
        raise UserError(
            f'{name}: The text is not UTF-8 at byte {error.start:,}. Convert it, for example with iconv -f '
            f'{encoding} -t UTF-8.'
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f'{name}: The .gz file is damaged ({error}). Copy it again.') from error
    except OSError as error:
        raise UserError(f'{name}: The file cannot be read ({error.strerror or error}). Fix or remove it.') from error


def _fingerprint(*parts) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


# Text files.


def _open_text(location: str) -> Corpus:
    path = epath.Path(location).expanduser()
    parts = path.parts
    magic = next((i for i, part in enumerate(parts) if re.search(r'[*?[]', part)), None)
    if '**' in parts:
        raise UserError(f"text:{location}: '**' is not supported. Name the folder, which is read whole.")
    if magic is not None and not path.exists():
        root = epath.Path(*parts[:magic])
        paths = [p for p in root.glob('/'.join(parts[magic:])) if not p.is_dir()] if root.is_dir() else []
    elif location and path.is_dir():
        root = path
        paths = [
            folder / file for folder, _, files in root.walk() for file in files if file.endswith(('.txt', '.txt.gz'))
        ]
    else:
        root, paths = path.parent, [path] if location and path.exists() else []
    if not paths:
        raise UserError(
            f'text:{location}: There is no text. Name a folder with files *.txt or *.txt.gz, a glob or a file.'
        )
    paths = {p.relative_to(root).as_posix(): p for p in paths}
    paths = dict(sorted(paths.items()))
    sizes = []
    for path in paths.values():
        with _named_errors(str(path)):  # a link that leads nowhere
            sizes.append(path.stat().length)

    def files(first):
        for name, path in itertools.islice(paths.items(), first, None):
            with _named_errors(str(path)), _open_binary(path) as file:
                yield gzip.GzipFile(fileobj=file) if name.endswith('.gz') else file

    return Corpus(
        f'text:{location}', len(paths), sum(sizes), _fingerprint(list(paths), sizes), lambda: iter(paths), files
    )


def _open_binary(path: epath.Path) -> BinaryIO:
    file = path.open('rb')
    return file if is_local(path) else io.BufferedReader(_RemoteFile(file))


class _RemoteFile(io.RawIOBase):
    """What epath opens on `gs://` with the methods of a binary file."""

    def __init__(self, file):
        self._file = file

    def readable(self):
        return True

    def seekable(self):
        return True

    def readinto(self, buffer):
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset, whence=os.SEEK_SET):
        self._file.seek(offset, whence)
        return self._file.tell()

    def tell(self):
        return self._file.tell()

    def close(self):
        self._file.close()
        super().close()


# TensorFlow Datasets.


def _open_tfds(name: str) -> Corpus:
    tfds = import_package('tensorflow_datasets', 'tfds: sources cannot be read')
    fix = f'Prepare it once where there is a network (tfds build {name}), and set TFDS_DATA_DIR to its folder.'
    try:
        builder = tfds.builder(name)
    except (ValueError, ImportError) as error:  # not found, or an unknown config
        raise UserError(
            f'tfds:{name}: TensorFlow Datasets has no such set. Correct the name if it is wrong. {fix}'
        ) from error
    splits = [split for split in ('train', 'validation') if split in builder.info.splits]
    if 'train' not in splits:
        raise UserError(f'tfds:{name}: The set is not in {builder.data_dir}. {fix}')
    feature = next((f for f in ('book_text', 'text') if f in builder.info.features), None)
    if feature is None:
        raise UserError(
            f'tfds:{name}: The set has no feature book_text or text, only '
            f'{", ".join(builder.info.features)}. Use another set.'
        )
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f'tfds:{name}: The set in {builder.data_dir} is in array_record files. Build it again with '
            '--file_format=tfrecord.'
        )
    counts = {split: builder.info.splits[split].num_examples for split in splits}

    def names():
        return (f'{split}/{i}' for split in splits for i in range(counts[split]))

    def files(first):
        tf = import_tensorflow()
        in_order = tfds.ReadConfig(interleave_cycle_length=1)
        for split in splits:
            skipped = min(first, counts[split])
            first -= skipped
            if skipped < counts[split]:
                examples = builder.as_dataset(
                    split=f'{split}[{skipped}:]',
                    read_config=in_order,
                    shuffle_files=False,
                    decoders=tfds.decode.PartialDecoding({feature: True}),
                )
                try:
                    for example in examples.as_numpy_iterator():
                        yield io.BytesIO(example[feature])
                except tf.errors.OpError as error:
                    raise UserError(f'tfds:{name}: The files in {builder.data_dir} are damaged. {fix}') from error

    return Corpus(
        f'tfds:{name}',
        sum(counts.values()),
        sum(builder.info.splits[s].num_bytes for s in splits),
        _fingerprint(builder.info.full_name, counts),
        names,
        files,
        'validation/' if 'validation' in splits else None,
    )


# Documentation strings.


def _open_docs(packages: str) -> Corpus:
    docs = read_docstrings(tuple(filter(None, packages.split(','))))
    texts = {doc.path: '\n\n'.join(doc.docstrings).encode(errors='replace') for doc in docs}

    def files(first):
        return (io.BytesIO(text) for text in itertools.islice(texts.values(), first, None))

    return Corpus(
        f'docs:{packages}',
        len(texts),
        sum(map(len, texts.values())),
        _fingerprint([(path, _fingerprint(text)) for path, text in texts.items()]),
        lambda: iter(texts),
        files,
    )
