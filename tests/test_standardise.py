"""Standardisation against ftfy itself and the release's rules spelled out."""

import random

import pytest

from gpt1_jax.data.tokenizers.standardise import standardise
from helpers import plain_standardise


@pytest.mark.parametrize(
    'text, expected',
    [
        ('', ''),
        (' \n\t\n ', ''),
        ('a--b\u2014c', 'a -- b - c'),
        ('wait\u2026 what?!', 'wait... what ? !'),
        ('l\u00b4homme', "l'homme"),
        ('\u201cIt\u2019s me,\u201d he said.', '" It\'s me , " he said.'),
        ('one  \r\n\r\n two\u00a0three', 'one \n two three'),
        ('sch\u00c3\u00b6n', 'schön'),  # UTF-8 that was read as Latin-1
        ('a_b [c] {d} \\ / * ~', 'a _ b [ c ] { d } \\ / * ~'),
    ],
)
def test_standardise_by_hand(text, expected):
    assert standardise(text) == expected


def test_standardise_equals_the_plain_path():
    parts = [
        'word',
        'Two',
        ' ',
        '  ',
        '\n',
        '\r\n',
        '\r',
        '\t',
        '\x0b',
        '\x0c',
        '\x1b[1m',
        '\x00',
        '\x7f',
        '\x85',
        '\u2028',
        '&amp;',
        '&eacute;',
        '&#39;',
        '& ',
        '&nosuch;',
        '<',
        '<b>',
        '--',
        '!!',
        '...',
        '"',
        "'",
        '\u2018',
        '\u2019',
        '\u201c',
        '\u201d',
        '\u2014',
        '\u2013',
        '\u2026',
        '\u2015',
        '\u00b4',
        '\u00a0',
        '\ufeff',
        '\ud83d',
        'e\u0301',
        'é',
        'â€™',
        'Ã©',
        'Ã ',
        'Â\u201d',
        'œ',
        'ﬁ',
        'Ａ',
        '日本',
        '😀',
        '½',
        '$',
        '£',
        '°',
        'à la',
    ]
    rng = random.Random(1)
    for _ in range(3000):
        text = ''.join(rng.choices(parts, k=rng.randint(1, 40)))
        assert standardise(text) == plain_standardise(text), repr(text)
    # With typographic characters only, the lines never go through ftfy.
    characters = [chr(i) for i in range(32, 127) if chr(i) != '&']
    characters += list('\n\t\u2013\u2014\u2018\u2019\u201c\u201d\u2026')
    text = ''.join(rng.choices(characters, k=20000))
    assert standardise(text) == plain_standardise(text)
