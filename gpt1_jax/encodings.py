"""Text that is not UTF-8: which encoding it is probably in, and the command that converts it."""

import codecs
import os
import re
import shlex
import unicodedata
from collections.abc import Iterable

_MARKS = (  # UTF-32's first: it begins as UTF-16's does
    (codecs.BOM_UTF32_LE, 'UTF-32'),
    (codecs.BOM_UTF32_BE, 'UTF-32'),
    (codecs.BOM_UTF16_LE, 'UTF-16'),
    (codecs.BOM_UTF16_BE, 'UTF-16'),
)
_FORMATS = {b'PK\x03\x04': 'a zip archive', b'%PDF': 'a PDF file', b'\xd0\xcf\x11\xe0': 'a Word or Excel file'}
_CONTROLS = bytes({*range(32)} - {*b'\t\n\v\f\r\x1b'})
_ENOUGH = 2**16  # bytes, to tell an encoding
_NOT_IN_1252 = re.compile(rb'[\x81\x8d\x8f\x90\x9d]')


def file_format(beginning: bytes) -> str:
    """The kind of a file that is not text, by its first bytes; '' if they do not tell."""
    return next((name for magic, name in _FORMATS.items() if beginning.startswith(magic)), '')


def marked_encoding(data: bytes) -> str:
    """The encoding that a byte order mark other than UTF-8's names; '' if there is none."""
    return next((name for mark, name in _MARKS if data.startswith(mark)), '')


def wide_encoding(data: bytes, share: float) -> str:
    """UTF-16LE or UTF-16BE if at least `share` of every second byte is NUL, and hardly any of the others; else ''."""
    first, second = data[::2].count(0), data[1::2].count(0)
    if max(first, second) < max(4, share * len(data) / 2) or min(first, second) > max(first, second) / 20:
        return ''
    return 'UTF-16BE' if first > second else 'UTF-16LE'


def hidden_encoding(data: bytes) -> str:
    """UTF-16LE or UTF-16BE if `data` is probably that, though it is valid UTF-8; else ''.

    Latin letters have a NUL beside them. Others, such as Cyrillic ones, have a control character, and only spaces and
    line ends a NUL.
    """
    controls = len(data) - len(data.translate(None, _CONTROLS))
    return wide_encoding(data, 0 if controls > len(data) / 8 else 0.25)


def source_encoding(data: bytes, rest: Iterable[bytes] = ()) -> str:
    """iconv's name of the encoding of text that is not UTF-8, probably; '' if it is not text.

    Args:
      data: bytes of the text, its first ones if these may be a byte order mark.
      rest: what comes after `data`, in parts: iconv must know all its bytes.
    """
    if name := marked_encoding(data) or wide_encoding(data, 0.01) or hidden_encoding(data):
        return name
    if data.count(0) > len(data) / 100:
        return next((name for name in ('UTF-16LE', 'UTF-16BE') if _reads_as(data, name)), '')
    return 'ISO-8859-1' if any(map(_NOT_IN_1252.search, [data, *rest])) else 'WINDOWS-1252'


def _reads_as(data, encoding):
    """Whether hardly any character is a control character, unassigned or private. For letters without NUL bytes."""
    characters = data[: min(len(data) // 2 * 2, _ENOUGH)].decode(encoding, 'replace')
    wrong = sum(one == '\ufffd' or (unicodedata.category(one)[0] == 'C' and one not in '\t\r\n') for one in characters)
    return wrong <= len(characters) / 100


def conversion(path: os.PathLike | str, encoding: str, *, drop: bool = False) -> str:
    """The shell command that converts a file, or the text in a .gz file, to UTF-8, in its place.

    The original stays as PATH.bak, because the encoding is a guess. drop: leave out bytes that are not in the encoding.
    """
    file, converted, kept = (shlex.quote(f'{os.fspath(path)}{suffix}') for suffix in ('', '.utf8', '.bak'))
    iconv = f'iconv {"-c " * drop}-f {encoding} -t UTF-8'
    if os.fspath(path).lower().endswith('.gz'):  # iconv stands last in the pipe, whose status is its own
        pack = f'gzip -c {converted} > {file} && rm {converted}'
        return f'gzip -dc {file} | {iconv} > {converted} && mv {file} {kept} && {pack}'
    return f'{iconv} {file} > {converted} && mv {file} {kept} && mv {converted} {file}'
