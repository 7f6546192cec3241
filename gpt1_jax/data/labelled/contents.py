"""The contents of a file of labelled data as UTF-8, whatever wrote it, and its lines."""

import gzip
import io
import zlib
from collections.abc import Iterator

from absl import logging
from etils import epath

from gpt1_jax.encodings import conversion, marked_encoding, source_encoding, wide_encoding
from gpt1_jax.errors import UserError
from gpt1_jax.files import check_file

_UNPACKED = 2**28  # bytes that any gzip file may unpack to
_RATIO = 100  # or this many times its size, if that is more


def read(path: epath.Path) -> bytes:
    """The file's bytes, unpacked if they are gzip. UTF-16 and UTF-32 with a byte order mark become UTF-8.

    Raises:
      UserError: it cannot be read, is damaged, or is a zip file or UTF-16 without a mark.
    """
    check_file(path)
    try:
        data = path.read_bytes()
        if path.name.lower().endswith('.gz') or data.startswith(b'\x1f\x8b'):
            data = _unpacked(path, data)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f'{path}: This is not a complete gzip file ({error}). Make or copy it again.') from error
    except OSError as error:
        raise UserError(f'{path}: The file cannot be read ({error.strerror}). Check its permissions.') from error
    if data.startswith(b'PK\x03\x04'):
        raise UserError(
            f'{path}: This is a zip file or an Excel workbook, not text. Unpack it, or save it in Excel as CSV UTF-8.'
        )
    if encoding := marked_encoding(data):
        logging.info('%s: The file is %s, as its byte order mark says.', path, encoding)
        try:
            return data.decode(encoding).encode()
        except UnicodeDecodeError as error:
            raise UserError(
                f'{path}: The file is not {encoding} at byte {error.start}, though it begins like it. Copy it again.'
            ) from error
    if encoding := wide_encoding(data[:4096], 0.1):
        command = conversion(path, encoding)
        raise UserError(f'{path}: The file looks like {encoding}. Convert it with  {command}  and start again.')
    return data


def _unpacked(path, data: bytes) -> bytes:
    """The content of a gzip file. Raises UserError if it is larger than any text would be: it could fill the memory."""
    most = max(_UNPACKED, _RATIO * len(data))
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        unpacked = file.read(most + 1)
    if len(unpacked) > most:
        raise UserError(
            f'{path}: The {len(data):,} bytes unpack to more than {most:,}, as no text does. Unpack the file yourself.'
        )
    return unpacked


def lines(path: epath.Path, data: bytes) -> Iterator[str]:
    """The lines with their ends, which may be \\n, \\r\\n and \\r in one file, without a byte order mark. `data` are
    the contents of `path`. Raises UserError if they are not UTF-8."""
    try:
        yield from io.TextIOWrapper(io.BytesIO(data), encoding='utf-8-sig', newline='')  # decodes piece by piece
    except UnicodeDecodeError as error:
        raise _not_utf8(path, data) from error


def decode(path: epath.Path, data: bytes) -> str:
    """All contents as one text. Raises UserError if they are not UTF-8."""
    try:
        return data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise _not_utf8(path, data) from error


def _not_utf8(path, data: bytes) -> UserError:
    try:
        data.decode()  # for the position in the file
    except UnicodeDecodeError as error:
        start = error.start
    what = f'{path}: The file is not UTF-8 at byte {start}'
    if not data[:start].isascii():
        return UserError(
            f'{what}, but it is before: it may be damaged. Copy it again, or leave out what is wrong '
            f'with  {conversion(path, "UTF-8", drop=True)}  and start again.'
        )
    command = conversion(path, source_encoding(data) or 'ISO-8859-1')
    return UserError(f'{what}. If it is Western European text, convert it with  {command}  and start again.')
