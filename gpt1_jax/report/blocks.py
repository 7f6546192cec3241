"""What a report is made of, before it is HTML or Markdown; and how it writes numbers."""

import dataclasses
import math
from collections.abc import Iterable, Sequence


@dataclasses.dataclass(frozen=True)
class Paper:
    """A cell with a number of the paper's."""

    text: str


@dataclasses.dataclass(frozen=True)
class Shaded:
    """A cell with a background, from none (share 0) to full (1)."""

    text: str
    share: float


Cell = str | Paper | Shaded | None  # None: a gap; '': nothing belongs there


@dataclasses.dataclass(frozen=True)
class Heading:
    """The heading of a section (level 2) or a part of one (3)."""

    text: str
    level: int = 2


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclasses.dataclass(frozen=True)
class Gap:
    """A sentence that says what is not there."""

    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    """A table. Columns of numbers are aligned on the right; the first column names the entry.

    Attributes:
      caption: what it shows; '' if the heading says so.
      notes: sentences below it.
    """

    caption: str
    columns: Sequence[str]
    entries: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Figure:
    """One or more panels, each an SVG, and the numbers that they show."""

    caption: str
    panels: Sequence[str]
    numbers: Table


@dataclasses.dataclass(frozen=True)
class Quote:
    """Texts as they are: examples, samples."""

    caption: str
    texts: Sequence[str]


Block = Heading | Text | Gap | Table | Figure | Quote


def fixed(value: float | None, digits: int) -> str | None:
    """A number with this many digits after the point; None, a gap, for None."""
    if value is None:
        return None
    if not math.isfinite(value):
        return str(float(value))
    text = f'{value:,.{digits}f}'
    return text.lstrip('-') if float(text.replace(',', '')) == 0 else text.replace('-', '\N{MINUS SIGN}')


def percent(value: float | None) -> str | None:
    """0.7031 -> '70.3'."""
    return None if value is None else fixed(100 * value, 1)


def signed(value: float) -> str:
    """0.0123 -> '+1.2', in per cent."""
    text = percent(value)
    return text if value < 0 or float(text) == 0 else f'+{text}'


def span(low: float, high: float) -> str:
    """Two numbers in per cent, as '69.1 to 71.0'."""
    return f'{percent(low)} to {percent(high)}'


def whole(value: int | None) -> str | None:
    """1234567 -> '1,234,567'."""
    return None if value is None else f'{value:,.0f}'


def whole_span(values: Iterable[int]) -> str | None:
    """The smallest to the largest, as '635 to 1,000'; the number alone if all are the same; None for none."""
    values = sorted(set(values))
    return ' to '.join(map(whole, values[:1] + values[1:][-1:])) or None


def significant(value: float | None) -> str | None:
    """Three digits, as 0.000123, 1.23 or 12,300,000."""
    if value is None or not value or not math.isfinite(value):
        return fixed(value, 0)
    return (
        fixed(value, max(0, 2 - math.floor(math.log10(abs(value)))))
        if abs(value) < 1000
        else whole(float(f'{value:.3g}'))
    )
