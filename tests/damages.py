"""Small labelled files and corpora in every form, random damages of them, as disks, editors and mail make them, and
bounds of what reading one may take.

Each entry or line of text has marks, words that are nowhere else: what is left of them in a damaged file must be read,
or a warning must count it, or the file must be refused.
"""

import contextlib
import csv
import gzip
import io
import json
import random
import re
import resource
import signal
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import pyarrow
from pyarrow import parquet

SECONDS = 5  # of the processor for one input; ten times as many on the clock of a busy machine
MEMORY = 2**30  # bytes that all of them may add to the most that the process has held
ENTRIES = 8
MARK = re.compile('mark[0-9]{2}x')
_BREAKS = ('a "quoted" word', 'a comma, and a; semicolon', "it's", 'caf\u00e9 \u2014 na\u00efve', '', 'two  spaces')


def mark(number: int) -> str:
    return f'mark{number:02d}x'


def entries(rng: random.Random) -> list[dict[str, str]]:
    """Of a labelled set with the column `text` and the labels yes and no."""
    return [
        {'idx': f'id-{i}', 'text': f'{mark(i)} {rng.choice(_BREAKS)}'.strip(), 'label': ('yes', 'no')[i % 2]}
        for i in range(ENTRIES)
    ]


def _jsonl(rng):
    return ''.join(json.dumps(entry, ensure_ascii=rng.random() < 0.5) + '\n' for entry in entries(rng)).encode()


def _json(rng):
    return json.dumps(entries(rng), indent=rng.choice([None, 1])).encode()


def _table(separator, quoting):
    def make(rng):
        file = io.StringIO(newline='')
        writer = csv.DictWriter(
            file, ['idx', 'text', 'label'], delimiter=separator, quoting=quoting, quotechar='"', lineterminator='\n'
        )
        writer.writeheader()
        writer.writerows(entries(rng))
        return file.getvalue().encode()

    return make


def _plain_tsv(rng):
    """As GLUE writes them: quotes mean nothing."""
    return ''.join(
        '\t'.join(row) + '\n' for row in (('idx', 'text', 'label'), *(e.values() for e in entries(rng)))
    ).encode()


def _text(rng):
    return ''.join(
        f'{mark(i)} {rng.choice(_BREAKS)} of a book\n' + '\n' * (i % 3 == 2) for i in range(ENTRIES)
    ).encode()


def _text_jsonl(rng):
    return ''.join(json.dumps({'text': f'{mark(i)} {rng.choice(_BREAKS)}'}) + '\n' for i in range(ENTRIES)).encode()


def _zip(rng):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        archive.writestr('book.txt', _text(rng))
    return file.getvalue()


def _zipped(make):
    return lambda rng: gzip.compress(make(rng), mtime=0)


def _pronouns(rng):
    """The text form of definite pronoun resolution, an item each."""
    items = ((f'{mark(i)} saw Bo and he ran {rng.choice(_BREAKS)}', 'he', f'Ada {i},Bo', 'Bo') for i in range(ENTRIES))
    return ''.join('\n'.join(item) + '\n\n' for item in items).encode()


def _xml(rng):
    items = (
        f'<item id="{i}" asks-for="cause" most-plausible-alternative="{1 + i % 2}">\n<p>{mark(i)} {rng.choice(_BREAKS)}'
        '</p>\n<a1>one</a1>\n<a2>two</a2>\n</item>\n'
        for i in range(ENTRIES)
    )
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<copa-corpus version="1.0">\n{"".join(items)}</copa-corpus>'.encode()
    )


def _parquet(rng):
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(entries(rng)), file, compression=rng.choice(['none', 'snappy']))
    return file.getvalue()


class Form(NamedTuple):
    """A kind of file: its name, what makes one, and of labelled data the set and the split."""

    file: str
    make: Callable[[random.Random], bytes]
    dataset: str = 'custom'
    split: str = 'train'


LABELLED = [
    Form('train.jsonl', _jsonl),
    Form('train.json', _json),
    Form('train.tsv', _plain_tsv),
    Form('train.tsv', _table('\t', csv.QUOTE_MINIMAL)),
    Form('train.csv', _table(',', csv.QUOTE_MINIMAL)),
    Form('train.csv', _table(',', csv.QUOTE_ALL)),
    Form('train.jsonl.gz', _zipped(_jsonl)),
    Form('train.tsv.gz', _zipped(_plain_tsv)),
    Form('train.csv.gz', _zipped(_table(',', csv.QUOTE_MINIMAL))),
    Form('train.parquet', _parquet),
    Form('test.c.txt', _pronouns, 'dpr', 'test'),
    Form('copa-dev.xml', _xml, 'copa', 'dev'),
]
CORPORA = [
    Form('book.txt', _text),
    Form('book.txt.gz', _zipped(_text)),
    Form('books.zip', _zip),
    Form('books.jsonl', _text_jsonl),
]


# ----------------------------------------------------------------- bounds


class Hang(BaseException):
    """No Exception, which the program may handle."""


@contextlib.contextmanager
def in_time():
    """Raises Hang after SECONDS."""

    def stop(signum, frame):
        raise Hang(f'it took {SECONDS} seconds')

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, SECONDS), signal.SIGALRM: (signal.ITIMER_REAL, 10 * SECONDS)}
    former = {number: signal.signal(number, stop) for number in timers}
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, former[number])


@contextlib.contextmanager
def in_memory():
    """Fails if the most that this process has held grows by more than MEMORY."""
    most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    before = most()
    yield
    assert most() - before < MEMORY


# ----------------------------------------------------------------- damages


def _span(data, rng, most=40):
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.randint(1, most))


def _flip(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _overwrite(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice([1, 3])):
        if data:
            data[rng.randrange(len(data))] = rng.choice(b'\0\t\n\r",;\'{}[]<&\\\xff\xc3 ')
    return bytes(data)


def _remove(data, rng):
    a, b = _span(data, rng)
    return data[:a] + data[b:]


def _repeat(data, rng):
    a, b = _span(data, rng)
    return data[:b] + data[a:]


def _cut(data, rng):
    return data[: rng.randrange(len(data) + 1)]


def _cut_start(data, rng):
    return data[rng.randrange(len(data) + 1) :]


def _zeros(data, rng):
    """A block that the disk did not write."""
    a, b = _span(data, rng, 100)
    return data[:a] + bytes(b - a) + data[b:]


def _on_lines(change):
    def damage(data, rng):
        lines = data.splitlines(keepends=True)
        if len(lines) > 1:
            change(lines, rng)
        return b''.join(lines)

    return damage


def _swap_lines(lines, rng):
    a, b = rng.sample(range(len(lines)), 2)
    lines[a], lines[b] = lines[b], lines[a]


def _double_line(lines, rng):
    number = rng.randrange(len(lines))
    lines.insert(number, lines[number])


def _drop_line(lines, rng):
    del lines[rng.randrange(len(lines))]


def _join_lines(lines, rng):
    number = rng.randrange(len(lines))
    lines[number] = lines[number].rstrip(b'\r\n')


def _blank_lines(lines, rng):
    lines.insert(rng.randrange(len(lines) + 1), rng.choice([b'\n', b' \n', b'\r\n\r\n', b',,\n', b'\t\t\n']))


def _swap_cells(lines, rng):
    """In one line, or in all of them."""
    separator = max((b'\t', b','), key=lines[0].count)
    for number in range(len(lines)) if rng.random() < 0.5 else [rng.randrange(len(lines))]:
        cells = lines[number].rstrip(b'\r\n').split(separator)
        cells = cells[1:] + cells[:1]
        lines[number] = separator.join(cells) + b'\n'


def _separators(data, rng):
    old, new = rng.sample([b'\t', b',', b';', b'|', b' '], 2)
    return data.replace(old, new)


def _line_ends(data, rng):
    return data.replace(b'\n', rng.choice([b'\r\n', b'\r', b'\n\r', b'\n\n', b'']))


def _encoding(data, rng):
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return data
    return text.encode(rng.choice(['utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32', 'cp1252']), 'replace')


def _twice(data, rng):
    """Pasted behind itself, with its header."""
    return data + data


def _noise(data, rng):
    return rng.randbytes(rng.randint(0, 300))


DAMAGES = {
    'bytes flipped': _flip,
    'bytes overwritten': _overwrite,
    'bytes removed': _remove,
    'bytes repeated': _repeat,
    'end cut': _cut,
    'start cut': _cut_start,
    'zeros': _zeros,
    'lines swapped': _on_lines(_swap_lines),
    'line doubled': _on_lines(_double_line),
    'line dropped': _on_lines(_drop_line),
    'lines joined': _on_lines(_join_lines),
    'blank line': _on_lines(_blank_lines),
    'columns swapped': _on_lines(_swap_cells),
    'separators': _separators,
    'line ends': _line_ends,
    'encoding': _encoding,
    'twice': _twice,
    'noise': _noise,
}


def damaged(form: Form, rng: random.Random) -> tuple[str, bytes]:
    """(what was done, the content of a damaged file); a .gz file is damaged before it is compressed, or after that."""
    data = form.make(rng)
    done = rng.choices(list(DAMAGES), k=rng.choice([1, 1, 1, 2]))
    inside = form.file.endswith('.gz') and rng.random() < 0.5
    if inside:
        data = gzip.decompress(data)
    for name in done:
        data = DAMAGES[name](data, rng)
    return ' and '.join(done), gzip.compress(data, mtime=0) if inside else data


def marks_of(data: bytes, file: str) -> list[str]:
    """The marks that are left in the content of a file, read without the program; none if it cannot be unpacked."""
    try:
        if file.endswith('.gz') or data.startswith(b'\x1f\x8b'):
            data = gzip.decompress(data)
        elif file.endswith('.zip'):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                data = b'\n'.join(archive.read(name) for name in archive.namelist() if name.endswith('.txt'))
    except Exception:  # whatever: the program may refuse it too
        return []
    if file.endswith('.parquet'):  # its statistics repeat values
        return []
    if '.json' in file:  # one key may be there twice with one value; a key of another name is another column
        return sorted(set(re.findall(f'"text": "({MARK.pattern})', data.decode('latin-1'))))
    for encoding in ('utf-16-le', 'utf-16-be', 'utf-32-le', 'utf-32-be'):
        if 'mark'.encode(encoding) in data:
            return MARK.findall(data.decode(encoding, 'ignore'))
    return MARK.findall(data.decode('latin-1'))


# ----------------------------------------------------------------- damages of what the program wrote itself

_DEEP, _TWICE = '@deep@', '@twice@'
VALUES = [
    *(None, True, False, 0, -1, 1, 3, 0.5, -1e308, float('nan'), float('inf'), 2**31, 2**63, -(2**63), 10**400),
    *('', 'x', '1', 'train', '../../x', '/dev/zero', 'a/b', 'x' * 300, 'a\0b', '\ud800', '\u0660', 'nan'),
    *([], {}, [[]], [1, 'x', None], {'': 0}, {'x': {}}, _DEEP, _TWICE),
]


def _places(value):
    """(container, key) of everything in a JSON value."""
    for key, inner in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def json_damaged(data: bytes, rng: random.Random) -> bytes:
    """The JSON with another value, number, name or order in one place; or nested deeply; or with one key twice."""
    try:
        root = [json.loads(data)]
    except ValueError:
        return data
    container, key = rng.choice([*_places(root)])
    what = rng.choice(('value', 'value', 'value', 'number', 'delete', 'rename', 'swap'))
    if what == 'number' and isinstance(container[key], int | float):
        container[key] = rng.choice((container[key] + 1, container[key] * 10**6, -container[key], container[key] // 2))
    elif what == 'delete':
        del container[key]
    elif what == 'rename' and isinstance(container, dict):
        container[rng.choice([key + 'x', '', *container])] = container.pop(key)
    elif what == 'swap':
        other, place = rng.choice([*_places(root)])
        value = json.loads(json.dumps(other[place]))
        other[place], container[key] = json.loads(json.dumps(container[key])), value
    else:
        container[key] = rng.choice(VALUES)
    text = json.dumps(root[0] if root else None, ensure_ascii=rng.random() < 0.5)
    text = text.replace(f'"{_DEEP}"', '[' * 100_000).replace(f'"{_TWICE}"', '{"a": 1, "a": 2}')
    return text.encode(errors='surrogatepass')


def _line_damaged(data, rng):
    lines = data.split(b'\n')
    number = rng.randrange(len(lines))
    lines[number] = json_damaged(lines[number], rng)
    return b'\n'.join(lines)


def _safetensors_damaged(data, rng):
    """In its header, or in what says how long that is."""
    size = int.from_bytes(data[:8], 'little')
    header = json_damaged(data[8 : 8 + size], rng)
    length = rng.choice([len(header)] * 6 + [0, len(header) - 1, 2**31, 2**63, 2**64 - 1])
    return length.to_bytes(8, 'little') + header + data[8 + size :]


_LITERALS = (
    *('|O', 'O', '<f8', '>f4', '<U99999999', '<i2', '', 'x', [('a', '<f4')], [('a', '|O')], {'names': ['a']}, None, 3),
    *((-1,), (10**12,), (2**63,), (2**64, 2**64), (), (0,), ('x',), (1.5,), [5], True, 10**400),
)


def _npy_damaged(data, rng):
    """In its header, which is a Python literal, or in what says how long that is and of which version."""
    start = 10 if data[6] == 1 else 12
    size = int.from_bytes(data[8:start], 'little')
    header = data[start : start + size].decode('latin-1')
    entry = {'descr': '<f4', 'fortran_order': False, 'shape': (5,)}
    what = rng.randrange(6)
    if what == 0:
        header = _overwrite(_flip(header.encode('latin-1'), rng), rng).decode('latin-1')
    elif what == 1:
        entry[rng.choice([*entry, 'x'])] = rng.choice(_LITERALS)
        header = repr(entry)
    elif what == 2:
        header = rng.choice(
            ['(' * 9000, "{'descr': " * 500, '[' * 300 + ']' * 300, '__import__("os")', '0' * 5000, '{}']
        )
    header = header.encode('latin-1').ljust(size)
    length = len(header) if what < 5 else rng.choice([0, 1, 2**16 - 1])
    return (
        data[:6]
        + bytes([data[6] if what != 4 else rng.randrange(256), 0])
        + length.to_bytes(start - 8, 'little', signed=False)
        + header
        + data[start + size :]
    )


def stored_damaged(file: str, data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """(what was done, the content of a damaged file) of a file that the program wrote."""
    special = {
        '.json': json_damaged,
        '.jsonl': _line_damaged,
        '.safetensors': _safetensors_damaged,
        '.npy': _npy_damaged,
    }.get('.' + file.rpartition('.')[2])
    if special and rng.random() < 0.7:
        return 'content changed', special(data, rng)
    name = rng.choice([name for name in DAMAGES if name != 'columns swapped'])
    return name, DAMAGES[name](data, rng)
