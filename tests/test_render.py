"""Blocks as HTML and Markdown: every text as it is, every cell in its place, nothing fetched, nothing run."""

import html.parser
import re

import pytest

from gpt1_jax.report import render
from gpt1_jax.report.blocks import Figure, Gap, Heading, Paper, Quote, Shaded, Table, Text

HOSTILE = '<script>alert("1")</script> & &lt; `x` | **b** _i_ [a](javascript:b) ~c~ #d \\ <!-- '
TABLE = Table(
    f'Caption {HOSTILE}',
    ('name', f'text {HOSTILE}', 'number', 'paper', 'share'),
    [
        (f'row {HOSTILE}', 'a', '1,234.5', Paper('45.4'), Shaded('3', 0.25)),
        ('second', None, '\N{MINUS SIGN}1.0 to 2.0', '', Shaded('7', 1)),
        ('third', 'b', None, Paper('1.0'), Shaded('0', 0)),
    ],
    (f'Note {HOSTILE}', 'Another.'),
)
BLOCKS = [
    Heading('First part'),
    Text(f'Text {HOSTILE}'),
    Gap(f'Nothing {HOSTILE}'),
    TABLE,
    Heading('First part', 3),
    Heading('First part'),
    Figure(f'Figure {HOSTILE}', ['<svg id="a"></svg>', '<svg id="b"></svg>'], Table('', ('x', 'y'), [('1', '2.5')])),
    Quote(f'Example {HOSTILE}', [f'one {HOSTILE}\n  two', '```\nend']),
]


class Page(html.parser.HTMLParser):
    """Elements with their attributes, in order; the text of each element of some kinds, with what is inside."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], {}
        self.feed(text)
        assert self.open == [], 'every element ends'

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ('meta', 'link', 'img', 'br', 'wbr'):
            self.open.append((tag, []))

    def handle_data(self, data):
        for _, parts in self.open:
            parts.append(data)

    def handle_endtag(self, tag):
        name, parts = self.open.pop()
        assert name == tag
        self.texts.setdefault(tag, []).append(''.join(parts))


@pytest.fixture(scope='module')
def page():
    return Page(render.to_html(f'Title {HOSTILE}', f'Introduction {HOSTILE}', BLOCKS))


def test_texts_come_back_as_they_were(page):
    assert page.texts['h1'] == [f'Title {HOSTILE}'] == page.texts['title']
    assert page.texts['h2'] == ['First part', 'First part'] and page.texts['h3'] == ['First part']
    assert page.texts['p'][:3] == [f'Introduction {HOSTILE}', f'Text {HOSTILE}', f'Gap: Nothing {HOSTILE}']
    assert page.texts['p'][3:] == [f'Note {HOSTILE}', 'Another.']
    assert page.texts['caption'] == [f'Caption {HOSTILE}']
    assert page.texts['figcaption'] == [f'Figure {HOSTILE}', f'Example {HOSTILE}']
    assert page.texts['blockquote'] == [f'one {HOSTILE}\n  two', '```\nend']


def test_cells_are_in_their_places(page):
    cells = [text for tag in ('th', 'td') for text in page.texts[tag]]
    assert page.texts['th'][:6] == ['name', f'text {HOSTILE}', 'number', 'paper', 'share', f'row {HOSTILE}']
    assert page.texts['td'] == [
        *('a', '1,234.5', '45.4', '3', '\N{EM DASH}', '\N{MINUS SIGN}1.0 to 2.0', '', '7'),
        *('b', '\N{EM DASH}', '1.0', '0', '2.5'),
    ]
    assert len(cells) == 5 + 3 * 5 + 2 + 2
    cells = [attributes for tag, attributes in page.elements if tag == 'td']
    assert [one.get('class') for one in cells[:8]] == [
        *(None, 'number', 'number paper', 'number', 'gap', 'number', 'number', 'number')
    ]
    assert cells[3]['style'] == '--share:0.25' and cells[9]['class'] == 'number gap'
    headings = [attributes for tag, attributes in page.elements if tag == 'th']
    assert [one['scope'] for one in headings[:6]] == ['col'] * 5 + ['row']
    assert [one.get('class') for one in headings[:5]] == [None, None, 'number', 'number', 'number']


def test_contents_lead_to_the_parts(page):
    ids = [attributes['id'] for tag, attributes in page.elements if tag in ('h2', 'h3')]
    assert len(set(ids)) == 3
    assert [attributes['href'] for tag, attributes in page.elements if tag == 'a'] == [f'#{ids[0]}', f'#{ids[2]}']
    assert page.texts['nav'][0].split('\n').count('First part') == 2
    assert [tag for tag, _ in page.elements if tag in ('header', 'nav', 'main')] == ['header', 'nav', 'main']


def test_nothing_runs_and_nothing_is_fetched(page):
    tags = [tag for tag, _ in page.elements]
    assert not {'script', 'link', 'img', 'iframe', 'object', 'form'} & set(tags)
    names = {name for _, attributes in page.elements for name in attributes}
    assert not {name for name in names if name.startswith('on')} and 'src' not in names
    assert not re.search(r'url\(|@import|http', page.texts['style'][0])
    policy = [attributes['content'] for _, attributes in page.elements if 'http-equiv' in attributes]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_figures_stand_with_their_numbers(page):
    assert [attributes['id'] for tag, attributes in page.elements if tag == 'svg'] == ['a', 'b']
    assert '2.5' in page.texts['details'][0]


def test_tables_scroll_in_a_box_that_the_keyboard_reaches(page):
    assert page.elements.count(('div', {'class': 'scroll', 'tabindex': '0'})) == len(page.texts['table']) == 2


@pytest.fixture(scope='module')
def markdown():
    return render.to_markdown(f'Title {HOSTILE}', f'Introduction {HOSTILE}', BLOCKS)


def shown(text):
    """What GitHub shows of a line without markup: entities and escapes resolved."""
    text = re.sub(r'\\([\\`*_\[\]|~#])', r'\1', text)
    return text.replace('&lt;', '<').replace('&gt;', '>').replace('&amp;', '&')


def test_markdown_tables(markdown):
    lines = [line for line in markdown.split('\n') if line.startswith('| ')]
    cells = [[shown(cell) for cell in re.split(r'(?<!\\) \| |^\| | \|$', line)[1:-1]] for line in lines]
    hostile = HOSTILE.strip()
    assert cells[0] == ['name', f'text {hostile}', 'number', 'paper', 'share']
    assert cells[1] == ['---', '---', '---:', '---:', '---:']
    assert cells[2] == [f'row {hostile}', 'a', '1,234.5', '*45.4*', '3']
    assert cells[3] == ['second', '\N{EM DASH}', '\N{MINUS SIGN}1.0 to 2.0', '', '7']
    assert cells[-1] == ['1', '2.5']


def test_markdown_leaves_no_markup_of_others(markdown):
    outside = re.sub(r'^(`{3,})text\n.*?^\1$', '', markdown, flags=re.DOTALL | re.MULTILINE)
    assert '<' not in outside.replace('&lt;', '')
    for mark in ('`', '_', '~', '['):
        assert not re.search(rf'(?<!\\){re.escape(mark)}', outside), mark
    assert f'**Gap:** {render._escape("Nothing " + HOSTILE)}' in markdown


def test_a_text_cannot_end_its_fence(markdown):
    fences = re.findall(r'^(`{3,})text\n(.*?)\n\1$', markdown, flags=re.DOTALL | re.MULTILINE)
    assert fences == [('````', f'one {HOSTILE}\n  two'), ('````', '```\nend')]


@pytest.mark.parametrize(
    ('cells', 'number'),
    [
        (['1', '2,000.5', None], True),
        (['84.0 (78.0 to 92.0)', ''], True),
        (['+1.2*', '\N{MINUS SIGN}3.0'], True),
        (['0:01:30', '640 \N{DAGGER}'], True),
        (['3', '1 of 2'], False),
        (['8 GPUs'], False),
        ([None, ''], False),
        (['1.2e-05'], True),
    ],
)
def test_columns_of_numbers(cells, number):
    table = Table('', ('name', 'column'), [('1', cell) for cell in cells])
    assert render._number_columns(table) == [False, number]
