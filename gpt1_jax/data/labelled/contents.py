"""The contents of a file of labelled data as UTF-8, whatever wrote it, and its lines."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator

from absl import logging

from gpt1_jax.encodings import conversion
from gpt1_jax.errors import UserError

_UNPACKED = 2**28  # bytes that any gzip file may hold, and a larger one
_RATIO = 100  # times its size
_MARKS = {  # the longer first: UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: 'UTF-32',
    codecs.BOM_UTF32_BE: 'UTF-32',
    codecs.BOM_UTF16_LE: 'UTF-16',
    codecs.BOM_UTF16_BE: 'UTF-16',
}


def read(path) -> bytes:
    """The file's bytes, unpacked where they are gzip's. UTF-16 and UTF-32 with a byte order mark become UTF-8.

    Raises:
      UserError: it cannot be read, is damaged, or is a zip file or UTF-16 without a mark.
    """
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
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            logging.info('%s: The file is %s, as its byte order mark says.', path, encoding)
            try:
                return data.decode(encoding).encode()
            except UnicodeDecodeError as error:
                raise UserError(
                    f'{path}: The file is not {encoding} at byte {error.start}, though it begins like it. Copy it '
                    'again.'
                ) from error
    zeros = [data[first:4096:2].count(0) for first in (0, 1)]
    if sum(zeros) > 200 / 4096 * len(data[:4096]) and min(zeros) < 0.1 * max(zeros):
        encoding = 'UTF-16BE' if zeros[0] > zeros[1] else 'UTF-16LE'
        command = conversion(path, encoding)
        raise UserError(f'{path}: The file looks like {encoding}. Convert it with  {command}  and start again.')
    return data


def _unpacked(path, data: bytes) -> bytes:
    """What a gzip file holds. Raises UserError if that is far more than of any text: it could fill the memory."""
    most = max(_UNPACKED, _RATIO * len(data))
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        unpacked = file.read(most + 1)
    if len(unpacked) > most:
        raise UserError(
            f'{path}: The {len(data):,} bytes unpack to more than {most:,}, as no text does. Unpack the file yourself.'
        )
    return unpacked


def lines(path, data: bytes) -> Iterator[str]:
    """The lines with their ends, which may be \\n, \\r\\n and \\r in one file, without a byte order mark. `data` are
    the contents of `path`. Raises UserError where they are not UTF-8."""
    try:
        yield from io.TextIOWrapper(io.BytesIO(data), encoding='utf-8-sig', newline='')  # decodes piece by piece
    except UnicodeDecodeError as error:
        raise _not_utf8(path, data) from error


def decode(path, data: bytes) -> str:
    """All of them as one text. Raises UserError where it is not UTF-8."""
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
    try:
        data.decode('cp1252')
        encoding = 'WINDOWS-1252'
    except UnicodeDecodeError:
        encoding = 'ISO-8859-1'
    command = conversion(path, encoding)
    return UserError(f'{what}. If it is Western European text, convert it with  {command}  and start again.')
