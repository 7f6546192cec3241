"""The printer of tables, against lines written by hand."""

import pytest

from gpt1_jax.report.tables import format_table


def test_text_stands_left_and_numbers_right():
    table = format_table(
        [('name', 8, ''), ('kind', 6, ''), ('score', 9, '.2f'), ('rows', 5, 'd')],
        [('a', 'text', 0.125, 7), ('b', None, -12.3456, 120), ('c', 'x', None, None)],
    )
    assert table.split('\n') == [
        'name    kind      score rows',
        'a       text       0.12    7',
        'b                -12.35  120',
        'c       x                   ',
    ]


def test_a_long_cell_widens_its_column():
    assert format_table([('n', 3, ''), ('m', 4, '.1f')], [('abcde', 1.0), ('f', 12345.0)]) == '\n'.join(
        ['n            m', 'abcde      1.0', 'f      12345.0']
    )


def test_an_entry_that_lacks_a_column_is_refused():
    with pytest.raises(ValueError, match='longer'):
        format_table([('n', 3, ''), ('m', 4, '.1f')], [('a',)])
