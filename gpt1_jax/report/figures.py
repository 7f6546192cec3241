"""Figures as SVG for a page: text and axes in the page's own colour, so that they can be read in light and dark."""

import dataclasses
import io
import re
from collections.abc import Sequence

import numpy as np

from gpt1_jax.files import import_package

# Okabe & Ito (2008), told apart with any kind of colour vision; without yellow, which is faint on white.
_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
_MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X', '<', '>')
_INK = '#123456'  # stands for the page's own colour until the SVG is finished
_STYLE = {
    'svg.fonttype': 'none',  # text stays text
    'font.family': 'sans-serif',
    'font.size': 9.0,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.linewidth': 0.8,
    'axes.grid': True,
    'grid.alpha': 0.2,
    'grid.linewidth': 0.6,
    'legend.frameon': False,
    'lines.linewidth': 1.6,
    'lines.markersize': 4.5,
} | dict.fromkeys(('text.color', 'axes.edgecolor', 'axes.labelcolor', 'xtick.color', 'ytick.color', 'grid.color'), _INK)


@dataclasses.dataclass(frozen=True)
class Curve:
    """One line of a panel.

    Attributes:
      label: in the legend; '' for none.
      x, y: of its points; a NaN is left out.
      look: a number, for colour and marker.
      low, high: of the band around it, if it has one.
      dashed: solid otherwise.
      points: whether they are marked.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    look: int
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dashed: bool = False
    points: bool = True


@dataclasses.dataclass(frozen=True)
class Axes:
    """How a panel is drawn. log: whether x is logarithmic. levels: (height, words) of horizontal lines."""

    title: str
    x: str
    y: str
    log: bool = False
    levels: tuple[tuple[float, str], ...] = ()


def panel(name: str, axes: Axes, curves: Sequence[Curve]) -> str:
    """One <svg>, the same bytes for the same arguments.

    Args:
      name: unique among the panels of the page.

    Raises:
      UserError: matplotlib is not installed.
    """
    matplotlib = import_package('matplotlib', 'a report cannot be drawn')
    import_package('matplotlib.figure', 'a report cannot be drawn')
    labelled = [curve.label for curve in curves if curve.label]
    columns = 1 if max(map(len, labelled), default=0) > 28 else 2
    rows = -(-len(labelled) // columns)
    # The defaults first: a user's own settings would change the page.
    with matplotlib.rc_context({**_without_backend(matplotlib.rcParamsDefault), **_STYLE, 'svg.hashsalt': name}):
        figure = matplotlib.figure.Figure(figsize=(4.4, 2.9 + 0.19 * rows), layout='constrained')
        _draw(figure.add_subplot(), axes, curves, len(labelled))
        if len(labelled) > 1:
            figure.legend(loc='outside lower center', ncols=columns, fontsize=8.5, handlelength=2.6)
        file = io.StringIO()
        figure.savefig(
            file, format='svg', transparent=True, metadata=dict.fromkeys(('Date', 'Creator', 'Format', 'Type'))
        )
    return _for_page(file.getvalue(), name, f'{axes.title}: {axes.y} over {axes.x}')


def _without_backend(settings):
    """The defaults without what chooses a window system."""
    return {key: value for key, value in settings.items() if not key.startswith(('backend', 'interactive', 'toolbar'))}


def _draw(plot, axes, curves, labelled):
    for curve in curves:
        colour = _COLOURS[curve.look % len(_COLOURS)]
        # Without markers, a line of one point would be invisible, and two lines of one colour would look the same.
        marked = curve.points or len(curve.x) < 3 or curve.look >= len(_COLOURS)
        marker = _MARKERS[curve.look % len(_MARKERS)] if marked else None
        each = 1 if curve.points else max(1, len(curve.x) // 8)
        line = '--' if curve.dashed else '-'
        label = _plain(curve.label) if labelled > 1 else ''
        label = ' ' * label.startswith('_') + label  # else matplotlib leaves it out
        plot.plot(curve.x, curve.y, color=colour, marker=marker, markevery=each, linestyle=line, label=label or '_')
        if len(curve.low):
            plot.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
    for height, words in axes.levels:
        plot.axhline(height, color=_INK, linewidth=0.8, linestyle=':')
        place = dict(xycoords=('axes fraction', 'data'), ha='left', va='center')  # beside the axes: no curve is there
        plot.annotate(words.replace(' ', '\n'), (1.01, height), fontsize=8, color=_INK, **place)
    if axes.log:
        _set_log_axis(plot)
    elif all(float(x).is_integer() for curve in curves for x in curve.x):
        plot.xaxis.get_major_locator().set_params(integer=True)
    plot.set_title(_plain(axes.title), fontsize=10, loc='left')
    plot.set_xlabel(_plain(axes.x))
    plot.set_ylabel(_plain(axes.y))


def _set_log_axis(plot):
    """Ticks at powers of ten, and at 2 and 5 times these if there would be few."""
    ticker = import_package('matplotlib.ticker', 'a report cannot be drawn')
    plot.set_xscale('log')
    low, high = plot.get_xlim()
    plot.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,), numticks=12))
    plot.xaxis.set_major_formatter(ticker.FuncFormatter(_short))
    plot.xaxis.set_minor_formatter(ticker.NullFormatter())


def _short(value, _):
    unit, word = next((one for one in ((1e9, ' G'), (1e6, ' M'), (1e3, ' k')) if value >= one[0]), (1, ''))
    return f'{value / unit:g}{word}'


def _plain(text):
    """Text that matplotlib does not take for a formula."""
    return text.replace('$', r'\$')


def _for_page(svg, name, words):
    """Inline form: names of its own, the page's colour, words for those who cannot see it."""
    svg = svg[svg.index('<svg') :]
    svg = re.sub(r'<metadata>.*?</metadata>\s*|<!--.*?-->\s*|<style.*?</style>\s*', '', svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf'\g<1>{name}-', svg)
    words = words.replace('&', '&amp;').replace('<', '&lt;').replace('"', '&quot;')
    head = lambda match: f'<svg {match[1]} role="img" aria-label="{words}">'
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', head, svg, count=1)
    return svg.replace('xlink:href', 'href').replace(_INK, 'currentColor')


def thin(x: Sequence[float], y: Sequence[float], most: int, log: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` points: means of neighbours, of equally many each or, for a logarithmic x, in equal intervals of
    log x.

    x: ascending; above 0 if `log` is set.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) <= most:
        return x, y
    places = np.log(x) if log else np.arange(len(x))
    ends = np.linspace(places[0], places[-1], most + 1)[1:-1]
    _, stretch = np.unique(np.digitize(places, ends), return_inverse=True)
    means = lambda values: np.bincount(stretch, values) / np.bincount(stretch)
    return np.exp(means(places)) if log else means(x), means(y)
