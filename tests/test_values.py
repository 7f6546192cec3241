"""What an entry must have: its columns, texts, lists, and JSON of bounded depth."""

import pytest

from gpt1_jax.data.labelled.values import parse_json, require, to_list, to_text
from gpt1_jax.errors import UserError


def message(function, *args):
    with pytest.raises(UserError) as caught:
        function(*args)
    return str(caught.value)


@pytest.mark.parametrize(
    'entry, words',
    [
        (
            {'Text': 'a', 'label': 1},
            "There is no column 'text', only 'Text', and upper and lower case and spaces count.",
        ),
        ({' text ': 'a'}, "There is no column 'text', only ' text '"),
        ({'a\nb' * 30: 1} | dict.fromkeys(range(30)), 'only a ba ba ba ba ba ba ba ba ba ba ba ba ba, 0, 1, 2'),
        (dict.fromkeys(range(30)), '17, 18, 19 and more. Rename'),
        ({}, 'only nothing. Rename'),
        ({'sentence': 'a', 'label': 1}, "There is no column 'text', only sentence, label. Rename a column, or name"),
    ],
)
def test_columns(entry, words):
    told = message(require, 'file, line 3', entry, ('text', 'label'))
    assert told.startswith('file, line 3: There is no column ') and words in told and '\n' not in told
    require('file', {'text': 'a', 'label': None}, ('text', 'label'))


def test_texts():
    assert to_text('', 'file') == ''
    assert message(to_text, None, 'file') == 'file: The value is null, not text. Write it as a string.'


def test_lists():
    assert to_list('["a", "\\u00e9"]', 'file') == to_list(['a', 'é'], 'file') == ['a', 'é']
    for python in ("['it is', \"he's\"]", "['a' 'b']"):  # of pandas, of NumPy
        assert 'The value is a list, but not in JSON' in message(to_list, python, 'file')
    for other in ('a, b', '{"a": 1}', None, 5):
        assert message(to_list, other, 'file') == 'file: The value is not a list. Write ["first", "second"].'


@pytest.mark.parametrize('depth', [101, 900, 100_000])
def test_json_that_nests_deeply(depth):
    for text in ('[' * depth + ']' * depth, '{"a":' * depth + '1' + '}' * depth, '[' * depth):
        with pytest.raises(ValueError):
            parse_json(text)


def test_json():
    assert parse_json('[' * 99 + ']' * 99)
    assert parse_json('{"a": [1, {"b": null}], "c": "\\ud83d"}') == {'a': [1, {'b': None}], 'c': '\ud83d'}
    with pytest.raises(ValueError):
        parse_json('1' * 10_000)  # more digits than Python converts


def test_one_key_with_two_values():
    """Where two lines have run into one another, one of the texts would be lost."""
    assert parse_json('{"a": 1, "b": {"c": 2}, "a": 1}') == {'a': 1, 'b': {'c': 2}}
    for text in ('{"a": 1, "a": 2}', '[{"b": {"a": "x", "a": "y"}}]'):
        with pytest.raises(ValueError, match='two values of one key'):
            parse_json(text)
