"""Project Gutenberg's licence and line ends in paragraphs, against functions of the whole text."""

import gzip
import io
import random
import re

import pytest

from gpt1_jax.data.corpus import cleaning, documents
from gpt1_jax.data.corpus.sources import open_corpus

PROSE = (
    'It was a bright morning in the harbour, and the captain, who had not\n'
    'slept, walked along the quay until the bell of the chapel rang; then\n'
    'he turned back.\n'
)
VERSE = 'The ship is out, the ship is gone,\nThe morning light is grey,\nAnd all the gulls that followed on\n'
LIST = ''.join(f'{n}. A long entry of a table of contents with a page number at its end ... {n}\n' for n in range(4))
INDENTED = PROSE.replace('\n', '\n    ', 2)
CAPITALS = ''.join(
    f'{word} lines of blank verse are longer than fifty characters, mostly\n' for word in ('All', 'My', 'No')
)
LONG = 'a line that is a paragraph already, ' * 4 + '\n' + 'and another one of the same kind, ' * 4 + '\n'


def stripped(text):
    return ''.join(cleaning.strip_gutenberg(text.splitlines(keepends=True)))


def unwrapped(text):
    return ''.join(cleaning.unwrap(text.splitlines(keepends=True)))


@pytest.mark.parametrize(
    'start',
    [
        '*** START OF THE PROJECT GUTENBERG EBOOK A SAILOR ***',
        '*** START OF THIS PROJECT GUTENBERG EBOOK A SAILOR ***',
        '***START OF THE PROJECT GUTENBERG EBOOK A SAILOR***',
        '*** START OF THE PROJECT GUTENBERG ETEXT, A SAILOR ***',
        '*** START OF THE COPYRIGHTED PROJECT GUTENBERG EBOOK A SAILOR ***',
        '*** START OF THE PROJECT GUTENBERG EBOOK A SAILOR WHO WAS NEVER\nTO BE SEEN AGAIN ***',
        '*** Start of the Project Gutenberg eBook of A Sailor',
        '*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*',
        '*END THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.10.04.01*END*',
        '*** START OF THE PROJECT GUTENBERG EBOOK A SAILOR ***\n\nWhy this small print?\n*END*THE SMALL PRINT! *END*',
    ],
)
@pytest.mark.parametrize(
    'end',
    [
        '*** END OF THE PROJECT GUTENBERG EBOOK A SAILOR ***',
        '*** END OF THIS PROJECT GUTENBERG EBOOK A SAILOR ***',
        '***END OF THE PROJECT GUTENBERG EBOOK A SAILOR***',
        "End of Project Gutenberg's A Sailor, by Nobody\n\n*** END OF THIS PROJECT GUTENBERG EBOOK A SAILOR ***",
        'End of the Project Gutenberg EBook of A Sailor',
        'End of The Project Gutenberg Etext of A Sailor',
        'Ende dieses Projekt Gutenberg Etextes',
    ],
)
def test_markers_of_all_times(start, end):
    licence = '\n*** START: FULL LICENSE ***\n\nPlease read this before you distribute it.\n' + 'Section 1.\n' * 999
    body = f'\n\n{PROSE}\n\n* * *\n\nThe end.\n\n'
    text = f'\ufeffThe Project Gutenberg EBook of A Sailor\n\nTitle: A Sailor\n\n{start}\n{body}{end}\n{licence}'
    assert stripped(text) == body
    assert stripped(text + text) == body + body  # several in one file
    assert stripped(text.replace('\n', '\r\n')) == body.replace('\n', '\r\n')


def test_a_title_ends_with_its_marker():
    """Stars after it are of the book."""
    text = 'The sea was calm.\n* ***\nSo was he.\n'
    assert stripped(f'*** START OF THE PROJECT GUTENBERG EBOOK A SAILOR ***\n{text}') == text
    for text in (
        '\nThe sea was calm.\n***\n',
        'The\nsea\nwas\ncalm.\n***\n',
    ):  # nor do a blank line and a fourth belong
        assert stripped(f'*** START OF THE PROJECT GUTENBERG EBOOK A SAILOR\n{text}') == text


def test_a_text_without_markers_stays_as_it_is():
    marks = []
    text = f'{PROSE}\nThe beginning of the Project Gutenberg was in 1971.\n*** The end of it\n' * 3
    assert ''.join(cleaning.strip_gutenberg(text.splitlines(keepends=True), lambda: marks.append(1))) == text
    assert not marks
    only_end = f'{PROSE}*** END OF THE PROJECT GUTENBERG EBOOK A SAILOR ***\nlicence\n'
    assert ''.join(cleaning.strip_gutenberg(only_end.splitlines(keepends=True), lambda: marks.append(1))) == PROSE
    assert marks == [1]
    late = PROSE * 500 + '*** START OF THE PROJECT GUTENBERG EBOOK A SAILOR ***\n'  # after 64 KB it is no header
    assert stripped(late) == late


def test_prose_is_joined_and_nothing_else():
    one_line = PROSE.replace('\n', ' ').strip() + '\n'
    assert unwrapped(PROSE) == one_line
    assert unwrapped(PROSE.removesuffix('\n')) == one_line.removesuffix('\n')
    assert unwrapped(f'{PROSE}\n \n{PROSE}') == f'{one_line}\n \n{one_line}'
    assert unwrapped(f'  {PROSE}') == f'  {one_line}'  # the first line of a paragraph may be indented
    two = CAPITALS[: CAPITALS.index('\n', 80) + 1]
    assert unwrapped(two) == two.replace('\n', ' ', 1)
    assert unwrapped(PROSE.replace('\n', '\n ', 2)) == one_line  # by one space only
    named = PROSE.replace('slept', 'slept in London').replace('he turned', 'He turned')
    assert unwrapped(named) == named[:-1].replace('\n', ' ') + '\n'  # of a line the first letter counts alone
    for kept in (
        LONG,
        VERSE,
        LIST,
        INDENTED,
        PROSE.replace('\n', '\n\t', 1),
        CAPITALS,
        'CHAPTER I\n',
        'To Mr. Smith,\nof London\n',
        '今天天气很好，\n我们去海边。\n',
    ):
        assert unwrapped(f'{kept}\n{PROSE}\n{kept}') == f'{kept}\n{one_line}\n{kept}'


@pytest.mark.parametrize(('length', 'joined'), [(49, False), (50, True), (120, True), (121, False)])
def test_how_long_a_line_of_prose_is(length, joined):
    text = f'{"x" * length}\nand so on.\n'
    assert unwrapped(text) == (text.replace('\n', ' ', 1) if joined else text)


def whole_unwrap(text):
    """The rule once more, on the whole text."""
    result = []
    for paragraph in re.split(r'((?:^[^\S\n]*\n)+)', text, flags=re.MULTILINE):
        lines = re.findall(r'[^\n]*\n|[^\n]+$', paragraph)
        prose = (
            len(lines) > 1
            and len(paragraph) <= 2**15
            and all(50 <= len(line.rstrip()) <= 120 for line in lines[:-1])
            and not any(re.match(r'\s\s|\t', line) for line in lines[1:])
            and (len(lines) == 2 or any(re.match('[ \'"“‘_([\\-—]*[a-zà-ÿ]', line) for line in lines[1:]))
        )
        if prose:
            ending = '\n' if paragraph.endswith('\n') else ''
            paragraph = lines[0].rstrip() + ' ' + ' '.join(line.strip() for line in lines[1:]) + ending
        result.append(paragraph)
    return ''.join(result)


def whole_strip(text):
    """For texts with one header and one licence at most."""
    starts = [m.end() for m in re.finditer(r'^\*\*\* START OF THE PROJECT GUTENBERG.*\n', text, re.MULTILINE)]
    end = re.search(r'^(\*\*\* )?End of the Project Gutenberg.*\n', text, re.MULTILINE | re.IGNORECASE)
    return text[starts[-1] if starts else 0 : end.start() if end else len(text)]


@pytest.mark.parametrize('seed', range(30))
def test_blocks_and_resuming_change_nothing(tmp_path, monkeypatch, seed):
    """A file of random paragraphs, through blocks of several sizes, from any block on."""
    rng = random.Random(seed)
    pieces = [
        PROSE,
        VERSE,
        LIST,
        INDENTED,
        CAPITALS,
        LONG,
        CAPITALS.replace('My', 'my').replace('\nNo', '\n No'),
        '',
        ' \n',
        'é' * 60 + '\nday' * 9,
        'word ' * rng.randint(1, 2000) + '\n',
    ]
    if seed % 5 == 0:
        pieces += ['x' * 70000 + '\n', PROSE * 300]  # longer than a line, and a paragraph, of prose may be
    middle = '\n'.join(rng.choices(pieces, k=rng.randint(1, 25)))
    header, licence = (
        f'{PROSE}*** START OF THE PROJECT GUTENBERG EBOOK A ***\n',
        f'\nEnd of the Project Gutenberg A\n{PROSE}',
    )
    text = (header if rng.random() < 0.7 else '') + middle + (licence if rng.random() < 0.7 else '')
    path = tmp_path / ('a.txt.gz' if seed % 2 else 'a.txt')
    written = text.replace('\n', rng.choice(['\n', '\r\n', '\r'])).encode()
    path.write_bytes(gzip.compress(written) if seed % 2 else written)
    for strip, join in ((True, False), (False, True), (True, True)):
        expected = whole_strip(text) if strip else text
        expected = whole_unwrap(expected) if join else expected
        corpus = open_corpus(f'text:{path}', strip_gutenberg=strip, unwrap=join)
        for size in (300, 5000, 2**20):
            monkeypatch.setattr(documents, 'BLOCK_BYTES', size)
            blocks = list(corpus.blocks())
            assert ''.join(block.text for block in blocks) == expected
            assert sum(block.size for block in blocks) <= corpus.size
            for block in rng.sample(blocks, min(3, len(blocks))):
                rest = ''.join(b.text for b in corpus.blocks(start=(0, block.end)))
                assert rest == expected.encode()[block.end :].decode()


def test_a_long_paragraph_is_not_kept_in_memory():
    lines = iter(['A line of prose that is long enough for all the rules, and wrapped\n'] * 10**5)
    assert next(cleaning.unwrap(lines))
    assert sum(1 for _ in lines) > 10**5 - 1000


def test_the_fingerprint_knows_what_is_cleaned(tmp_path):
    (tmp_path / 'a.txt').write_text(PROSE)
    options = [{}, {'strip_gutenberg': True}, {'unwrap': True}, {'strip_gutenberg': True, 'unwrap': True}]
    assert len({open_corpus(f'text:{tmp_path}', **one).fingerprint for one in options}) == 4


def test_bad_files_are_still_found(tmp_path):
    (tmp_path / 'a.txt').write_bytes(PROSE.encode() + b'caf\xe9\n')
    (tmp_path / 'b.txt.gz').write_text(PROSE)
    (tmp_path / 'c.txt').write_text(PROSE)
    found = documents.Findings()
    assert [b.name for b in open_corpus(f'text:{tmp_path}', unwrap=True).blocks(found=found)] == ['c.txt']
    not_utf8, not_gzip = found.problems
    assert 'is not UTF-8' in not_utf8 and 'is not gzip' in not_gzip


def test_a_cleaned_file_closes_its_own():
    file = io.BytesIO(PROSE.encode())
    with cleaning.cleaned(file, True, True) as text:
        assert text.read(10) == b'It was a b'
        assert not text.marked
    assert file.closed
