"""SVG that can stand in a page: the points where they belong, the page's colours, names of its own."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest

from gpt1_jax.errors import UserError
from gpt1_jax.report import figures
from gpt1_jax.report.figures import Axes, Curve, panel
from helpers import ENVIRONMENT, ROOT

CURVES = [
    Curve('one', [1, 10, 100], [0.0, 0.5, 1.0], 0, [0, 0.4, 0.9], [0.1, 0.6, 1.0]),
    Curve('two', [1, 100], [1.0, 0.0], 1, dashed=True),
]


def drawn(axes, curves):
    return panel('name', axes, curves)


def lines(svg):
    """The points of each curve, in the order drawn; found by colour."""
    found = []
    for path, style in re.findall(r'<path d="([^"]*)"[^>]*style="(fill: none;[^"]* stroke: #[^"]*)"', svg):
        found.append((np.array(re.findall(r'[ML] ([-\d.]+) ([-\d.]+)', path), float), style))
    return found


def test_the_points_are_in_proportion():
    (one, style), (two, dashed) = lines(drawn(Axes('', 'x', 'y'), [Curve('', [0, 1, 4], [0, 2, 1], 0), CURVES[1]]))
    x, y = one.T
    assert (x[2] - x[0]) / (x[1] - x[0]) == pytest.approx(4, rel=1e-3)
    assert (y[1] - y[0]) / (y[2] - y[0]) == pytest.approx(2, rel=1e-3) and y[1] < y[0]  # y grows upwards
    assert figures._COLOURS[0].lower() in style.lower() and 'dasharray' not in style
    assert figures._COLOURS[1].lower() in dashed.lower() and 'dasharray' in dashed


def test_a_log_axis_has_equal_steps_for_equal_factors():
    (one, _), *_ = lines(drawn(Axes('', 'x', 'y', log=True), CURVES))
    x = one[:, 0]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], rel=1e-3)


def test_the_ticks_of_a_log_axis_do_not_crowd():
    words = lambda svg: [text for text in ElementTree.fromstring(svg).itertext() if text.strip()]
    far = words(drawn(Axes('', 'x', 'y', log=True), [Curve('', [1, 2e6], [0, 1], 0)]))
    assert far[:7] == ['1', '10', '100', '1 k', '10 k', '100 k', '1 M']
    near = words(drawn(Axes('', 'x', 'y', log=True), [Curve('', [3e5, 4e6], [0, 1], 0)]))
    assert near[:4] == ['500 k', '1 M', '2 M', 'x']
    share = words(drawn(Axes('', 'x', 'y', log=True), [Curve('', [0.1, 100], [0, 1], 0)]))
    assert share[:4] == ['0.1', '1', '10', '100']


def test_a_single_point_is_marked():
    marks = lambda x: len(re.findall('<use[^>]*#0072b2', drawn(Axes('', 'x', 'y'), [Curve('', x, x, 0, points=False)])))
    assert marks([5]) == 1 and marks([1, 2]) == 2 and marks([1, 2, 3]) == 0


def test_it_is_xml_with_names_of_its_own():
    svgs = [panel(name, Axes('t', 'x', 'y'), CURVES) for name in ('first', 'second')]
    names = [re.findall(r'\bid="([^"]*)"', svg) for svg in svgs]
    assert names[0] and not set(names[0]) & set(names[1])
    for svg, of in zip(svgs, names):
        ElementTree.fromstring(svg)
        referred = re.findall(r'(?:url\(#|href="#)([^")]*)', svg)
        assert referred and set(referred) <= set(of)


def test_it_takes_the_colours_of_the_page_and_nothing_from_elsewhere():
    svg = drawn(Axes('t', 'x', 'y', levels=((0, 'chance'),)), CURVES)
    colours = set(re.findall(r'#[0-9a-f]{6}', svg.lower()))
    assert colours == {figures._COLOURS[0].lower(), figures._COLOURS[1].lower()}
    assert svg.count('currentColor') > 10
    assert 'http' not in svg and '<style' not in svg and '<!--' not in svg and 'metadata' not in svg
    assert 'chance' in svg


def test_words_are_text_and_escaped():
    svg = drawn(Axes('a <b> & "c" $x$', 'x', 'y'), [Curve('<script>$', [1], [1], 0), Curve('b', [1], [2], 1)])
    root = ElementTree.fromstring(svg)
    words = ''.join(root.itertext())
    assert 'a <b> & "c" $x$' in words and '<script>$' in words
    assert root.attrib['role'] == 'img' and root.attrib['aria-label'] == 'a <b> & "c" $x$: y over x'


def test_the_same_bytes_each_time_whatever_the_user_has_set(monkeypatch):
    first = drawn(Axes('t', 'x', 'y'), CURVES)
    before = dict(matplotlib.rcParams)
    monkeypatch.setitem(matplotlib.rcParams, 'lines.linewidth', 9.0)
    monkeypatch.setitem(matplotlib.rcParams, 'axes.facecolor', 'red')
    assert drawn(Axes('t', 'x', 'y'), CURVES) == first
    monkeypatch.undo()
    assert dict(matplotlib.rcParams) == before


def test_it_needs_no_display_and_no_pyplot():
    code = (
        'import sys; from gpt1_jax.report.figures import *; '
        'panel("n", Axes("", "x", "y"), [Curve("", [1], [1], 0)]); print("matplotlib.pyplot" in sys.modules)'
    )
    environment = {name: text for name, text in ENVIRONMENT.items() if name != 'DISPLAY'} | {'MPLBACKEND': 'qtagg'}
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == 'False\n', done.stderr


def test_without_matplotlib_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    with pytest.raises(UserError, match=r'^matplotlib: This package is not installed, and a report cannot be drawn'):
        drawn(Axes('t', 'x', 'y'), CURVES)


def test_thin_keeps_means():
    x, y = figures.thin(range(1, 101), range(100), 10)
    assert x.tolist() == [5.5 + 10 * i for i in range(10)] and y.tolist() == [4.5 + 10 * i for i in range(10)]
    x, y = figures.thin([3, 5], [1.0, 2.0], 10)
    assert x.tolist() == [3, 5] and y.tolist() == [1, 2]
    assert len(figures.thin(range(61), range(61), 60)[0]) <= 60


def test_thin_means_equal_stretches_of_a_logarithmic_axis():
    """A curve that is straight there stays on its line; its beginning is not averaged away."""
    steps = np.arange(1, 10_001)
    x, y = figures.thin(steps, np.log(steps), 40, log=True)
    np.testing.assert_allclose(np.log(x), y)
    assert 30 < len(x) <= 40 and x[0] == 1 and x[1] == 2 and x[-1] > 7000
    assert np.ptp(np.diff(y)[-20:]) < 0.02


def test_more_curves_than_colours_can_be_told_apart():
    curves = [Curve(f'c{look}', range(96), range(96), look, points=False) for look in (0, len(figures._COLOURS))]
    first, second = (drawn(Axes('', 'x', 'y'), [curve]) for curve in curves)
    assert figures._COLOURS[0].lower() in first and figures._COLOURS[0].lower() in second
    assert '<use' not in first.split('axes_1')[1].split('matplotlib.axis')[0]
    assert len(re.findall('<use[^>]*#0072b2', second)) == 8


def test_colours_can_be_told_apart_on_both_pages():
    """3 : 1 against white or against dark for all, and another marker for each."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return np.dot(
            [0.2126, 0.7152, 0.0722], [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        )

    contrast = lambda a, b: (max(a, b) + 0.05) / (min(a, b) + 0.05)
    for colour in figures._COLOURS:
        assert contrast(luminance(colour), luminance('#0d1117')) > 3
        assert contrast(luminance(colour), 1) > 2
    assert len(set(figures._MARKERS)) > len(figures._COLOURS)


def test_a_backslash_in_a_name_is_a_backslash():
    svg = drawn(Axes(r'a\d \1 \g<0>', 'x', 'y'), [Curve(r'b\d', [1], [1], 0), Curve(r'c\q', [1], [2], 1)])
    root = ElementTree.fromstring(svg)
    assert root.attrib['aria-label'] == r'a\d \1 \g<0>: y over x'
    assert {r'b\d', r'c\q'} <= set(root.itertext())


def test_a_name_with_an_underscore_in_front_is_in_the_legend():
    svg = drawn(Axes('t', 'x', 'y'), [Curve('_one', [1], [1], 0), Curve('two', [1], [2], 1)])
    assert {'_one', 'two'} <= {text.strip() for text in ElementTree.fromstring(svg).itertext()}
