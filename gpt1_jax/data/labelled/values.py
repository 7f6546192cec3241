"""Checks of entries: that they have certain columns, and that values are texts or lists."""

import itertools
from collections.abc import Iterable, Sequence

from gpt1_jax.errors import UserError
from gpt1_jax.files import parse_json

_LONGEST, _MOST = 40, 20  # characters of a name, and names, in a message


def require(where: str, entry: dict, names: Sequence[str]) -> None:
    """Raises UserError if the entry lacks one of these columns."""
    if missing := [name for name in names if name not in entry]:
        plain = lambda name: str(name).strip().lower()
        like = next((name for name in entry if plain(name) == plain(missing[0])), None)
        there = shown(entry) if like is None else f'{like!r}, and upper and lower case and spaces count'
        raise UserError(
            f'{where}: There is no column {missing[0]!r}, only {there}. '
            f'Rename a column, or name the right one in the config.'
        )


def shown(names: Iterable) -> str:
    """Names of columns, which may be anything if there is no header, for a message of one line."""
    short = [' '.join(str(name).split())[:_LONGEST] for name in itertools.islice(names, _MOST + 1)]
    return ', '.join(short[:_MOST]) + (' and more' if len(short) > _MOST else '') or 'nothing'


def to_text(value: object, where: str) -> str:
    """The value, if it is text; else raises UserError. where: entry and column."""
    if not isinstance(value, str):
        kind = 'null' if value is None else type(value).__name__
        raise UserError(f'{where}: The value is {kind}, not text. Write it as a string.')
    return value


def to_list(value: object, where: str) -> list:
    """The value, if it is a list or the JSON of one, as in .tsv and .csv; else raises UserError."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError:
            if value.lstrip()[:1] == '[':
                raise UserError(
                    f'{where}: The value is a list, but not in JSON: {value[:40]!r}. Write ["first", "second"], as '
                    'json.dumps and to_json do.'
                ) from None
    if not isinstance(value, list):
        raise UserError(f'{where}: The value is not a list. Write ["first", "second"].')
    return value
