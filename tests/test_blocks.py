"""How numbers are written."""

import pytest

from gpt1_jax.report import blocks


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        (blocks.fixed(1234.567, 1), '1,234.6'),
        (blocks.fixed(-0.5, 2), '\N{MINUS SIGN}0.50'),
        (blocks.fixed(-0.0004, 2), '0.00'),
        (blocks.fixed(None, 2), None),
        (blocks.fixed(float('nan'), 2), 'nan'),
        (blocks.percent(0.7031), '70.3'),
        (blocks.percent(None), None),
        (blocks.signed(0.0123), '+1.2'),
        (blocks.signed(-0.0123), '\N{MINUS SIGN}1.2'),
        (blocks.signed(0.0001), '0.0'),
        (blocks.span(-0.01, 0.7), '\N{MINUS SIGN}1.0 to 70.0'),
        (blocks.whole(1234567), '1,234,567'),
        (blocks.whole(None), None),
        (blocks.whole_span([1000, 635, 700]), '635 to 1,000'),
        (blocks.whole_span([640, 640]), '640'),
        (blocks.whole_span([]), None),
        (blocks.significant(0.0000142857), '0.0000143'),
        (blocks.significant(0.96), '0.960'),
        (blocks.significant(12_345_678), '12,300,000'),
        (blocks.significant(0), '0'),
    ],
)
def test_numbers(text, expected):
    assert text == expected
