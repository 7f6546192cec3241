"""What may be taken out of a text when asked for: Project Gutenberg's licence, and line ends within paragraphs.

Both work on lines as a stream. What comes out does not depend on how the text is cut into blocks: it is cut afterwards.
"""

import functools
import io
import re
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

_PIECE = 2**16  # characters: a longer line comes in pieces
_HEADER = 2**16  # characters in which a header ends, at most
_PARAGRAPH = 2**15  # characters: a longer paragraph is not prose
_TITLE_LINES = 3  # that a title may take in a marker, after its first
_PROSE_LINE = range(50, 121)  # characters that a line of prose may have, except for a paragraph's last

_OF_THE_BOOK = r'OF\s+(?:THE\s+|THIS\s+)?(?:COPYRIGHTED\s+)?PROJECT\s+GUTENBERG'
_START = re.compile(rf'\W{{0,40}}\*\s*START\s+{_OF_THE_BOOK}|\W{{0,40}}\*END\W+THE SMALL PRINT', re.IGNORECASE)
_END = re.compile(rf'\W{{0,40}}END\s+{_OF_THE_BOOK}|\W{{0,40}}ENDE DIESES PROJE[CK]T GUTENBERG', re.IGNORECASE)


def strip_gutenberg(lines: Iterable[str], mark: Callable[[], None] = lambda: None) -> Iterator[str]:
    """A text without the header and the licence of Project Gutenberg; one without their markers stays as it is.

    A header ends with the last line in the first 64 KB that says `*** START OF THE PROJECT GUTENBERG EBOOK` (or THIS,
    ETEXT, ...), or, before 2003, `*END*THE SMALL PRINT!`. The licence begins with the first that says
    `*** END OF THE PROJECT GUTENBERG EBOOK`, or `End of Project Gutenberg's ...`, and ends where another header does.

    Args:
      lines: with their ends.
      mark: called for each marker.
    """
    in_header, in_licence, in_title = True, False, False
    held, size = [], 0  # lines that are the header if a marker follows
    for line in lines:
        if _START.match(line) and (in_header or in_licence):
            mark()
            held, size = [], 0
            in_header, in_licence, in_title = True, False, not line.rstrip().endswith('*')
        elif _END.match(line):
            mark()
            yield from held
            held, in_header, in_licence = [], False, True
        elif in_header:
            held.append(line)
            size += len(line)
            if in_title and line.rstrip().endswith('***'):
                held.clear()
            in_title = in_title and bool(held) and not line.isspace() and len(held) < _TITLE_LINES
            if size > _HEADER:
                yield from held
                held, in_header = [], False
        elif not in_licence:
            yield line
    yield from held


def unwrap(lines: Iterable[str]) -> Iterator[str]:
    """A text with each paragraph of running prose on one line. Paragraphs stand between blank lines.

    One of two or more lines is prose if
    - each line but the last has 50 to 120 characters (verse, lists, headings and addresses have shorter ones, and where
      a line is a paragraph already they are longer),
    - no line after the first is indented by more than a space (tables, verse, quotations), and
    - if it has three or more, one after the first begins with a small letter (in verse and lists they begin with
      capitals or figures).
    All other paragraphs stay as they are, and so do those of more than 32,768 characters.

    Args:
      lines: with their ends.
    """
    paragraph, size = [], 0
    for line in lines:
        if not line.isspace() and size <= _PARAGRAPH:
            paragraph.append(line)
            size += len(line)
            continue
        yield from _join(paragraph) if size <= _PARAGRAPH else paragraph
        paragraph = []
        if line.isspace():
            size = 0
        yield line
    yield from _join(paragraph) if size <= _PARAGRAPH else paragraph


def _join(paragraph):
    others = paragraph[1:]
    if not others or any(len(line.rstrip()) not in _PROSE_LINE for line in paragraph[:-1]):
        return paragraph
    if any(line[:2].isspace() or line[0] == '\t' for line in others):
        return paragraph
    if len(others) > 1 and not any(_begins_small(line) for line in others):
        return paragraph
    end = '\n' if others[-1].endswith('\n') else ''
    return [' '.join([paragraph[0].rstrip(), *map(str.strip, others)]) + end]


def _begins_small(line):
    return line.lstrip(' \'"“‘_([-—')[:1].islower()


def cleaned(file: BinaryIO, strip: bool, join_lines: bool) -> BinaryIO:
    """An open text, cleaned as asked; every line ends with a newline character alone.

    Returns:
      A file that can be read, and sought forwards; its `marked` says whether `strip_gutenberg` has found a
      marker so far, its `fileobj` is the file given.
    """
    return _Reader(_Lines(file, strip, join_lines))


class _Reader(io.BufferedReader):
    @property
    def marked(self):
        return self.raw.marked

    @property
    def fileobj(self):
        return self.raw.fileobj


class _Lines(io.RawIOBase):
    def __init__(self, file, strip, join_lines):
        self.fileobj, self.marked = file, False
        # What is not UTF-8 goes through as it is, for the reader to find.
        self._text = io.TextIOWrapper(file, 'utf-8', 'surrogateescape')
        lines = iter(functools.partial(self._text.readline, _PIECE), '')
        if strip:
            lines = strip_gutenberg(lines, self._mark)
        self._lines = unwrap(lines) if join_lines else lines
        self._rest, self._position = b'', 0

    def _mark(self):
        self.marked = True

    def readable(self):
        return True

    def seekable(self):
        return True

    def readinto(self, buffer):
        parts, size = [self._rest], len(self._rest)
        while size < len(buffer) and (line := next(self._lines, None)) is not None:
            parts.append(line.encode('utf-8', 'surrogateescape'))
            size += len(parts[-1])
        data = b''.join(parts)
        read, self._rest = data[: len(buffer)], data[len(buffer) :]
        buffer[: len(read)] = read
        self._position += len(read)
        return len(read)

    def seek(self, offset, whence=io.SEEK_SET):
        if whence == io.SEEK_CUR:
            offset += self._position
        while self._position < offset and self.read(min(offset - self._position, 2**20)):
            pass
        return self._position

    def close(self):
        self._text.close()
        super().close()
