"""A report's blocks as one self-contained HTML page, and as Markdown."""

import html
import re
from collections.abc import Sequence

from gpt1_jax.report.blocks import Block, Cell, Figure, Gap, Heading, Paper, Quote, Shaded, Table, Text

_GAP = '\N{EM DASH}'
_NUMBER = re.compile(r'[+\N{MINUS SIGN}]?\d[^a-zA-Z]*( to [^a-zA-Z]*)?(?:e[+-]\d+)?\*?$')
# Colours: 4.5 : 1 or more against their background. 'screen': paper is always light.
_STYLE = """
:root{--ink:#1b1f24;--soft:#57606a;--page:#fff;--line:#d0d7de;--box:#f6f8fa;--paper:#7a3e00;--gap:#a40e26;
--shade:0,114,178;color-scheme:light}
@media screen and (prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9aa5b1;--page:#0d1117;--line:#30363d;
--box:#161b22;--paper:#f0b070;--gap:#ff8f98;--shade:86,180,233;color-scheme:dark}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0 auto;padding:1.5rem 1rem 4rem;max-width:68rem;color:var(--ink);background:var(--page);
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .5rem}
h2{font-size:1.35rem;margin:2.75rem 0 .75rem;padding-bottom:.25rem;border-bottom:1px solid var(--line)}
h3{font-size:1.08rem;margin:1.75rem 0 .5rem}
p{margin:.5rem 0;max-width:46rem}
a{color:inherit}
nav ol{margin:.25rem 0;padding-left:1.5rem;columns:2 16rem}
td.gap,th.gap,p.gap b{color:var(--gap)}
p.gap{margin:.2rem 0}
.paper{color:var(--paper);font-style:italic}
.note{color:var(--soft);font-size:.875rem}
.scroll{overflow-x:auto;margin:.75rem 0 .25rem;max-width:100%}
table{border-collapse:collapse;min-width:min(100%,24rem);font-size:.9rem;font-variant-numeric:tabular-nums;line-height:1.35}
caption{text-align:left;color:var(--soft);padding-bottom:.35rem;caption-side:top}
th,td{padding:.3rem .7rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top;
overflow-wrap:normal;max-width:24rem}
thead th{border-bottom:2px solid var(--line);vertical-align:bottom;font-weight:600}
tbody th{font-weight:400;white-space:nowrap}
th.number,td.number{text-align:right;white-space:nowrap}
td[style]{background:rgba(var(--shade),calc(var(--share)*.55))}
figure{margin:1rem 0}
figcaption{color:var(--soft);font-size:.9rem;max-width:46rem}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1rem}
.panels svg{display:block;width:100%;height:auto;max-width:33rem}
.panels *{stroke-linejoin:round;stroke-linecap:butt}
.panels text{font-family:inherit!important}
details{margin:.25rem 0}
summary{cursor:pointer;color:var(--soft);font-size:.9rem}
blockquote{margin:.4rem 0;padding:.4rem .8rem;border-left:3px solid var(--line);background:var(--box);
white-space:pre-wrap;font-size:.92rem}
@media screen and (max-width:60rem){table{width:max-content}th,td{max-width:18rem}}
@media print{body{max-width:none;padding:0;font-size:10pt}h2,h3,figcaption,caption{break-after:avoid}
tr,blockquote,.panels svg{break-inside:avoid}.scroll{overflow:visible}table{font-size:8pt}th,td{padding:.15rem .4rem}
.panels{grid-template-columns:repeat(2,1fr)}nav,details{display:none}}
"""


def to_html(title: str, introduction: str, blocks: Sequence[Block]) -> str:
    """One page, without scripts or anything that it would fetch."""
    anchors = _anchors(blocks)
    contents = ''.join(
        f'<li><a href="#{anchors[i]}">{html.escape(block.text)}</a></li>\n'
        for i, block in enumerate(blocks)
        if isinstance(block, Heading) and block.level == 2
    )
    body = '\n'.join(_html(block, anchors.get(i)) for i, block in enumerate(blocks))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'unsafe-inline\'">\n'
        f'<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<header>\n'
        f'<h1>{html.escape(title)}</h1>\n<p>{html.escape(introduction)}</p>\n</header>\n'
        f'<nav aria-label="Contents">\n<ol>\n{contents}</ol>\n</nav>\n<main>\n{body}\n</main>\n</body>\n</html>\n'
    )


def to_markdown(title: str, introduction: str, blocks: Sequence[Block]) -> str:
    """The same for GitHub, with the numbers in place of the figures."""
    parts = [f'# {_escape(title)}', _escape(introduction), *map(_markdown, blocks)]
    return '\n\n'.join(parts) + '\n'


def _anchors(blocks) -> dict[int, str]:
    """Index of each heading -> its id."""
    found, taken = {}, set()
    for i, block in enumerate(blocks):
        if isinstance(block, Heading):
            name = slug = re.sub(r'[^a-z0-9]+', '-', block.text.lower()).strip('-') or 'part'
            while name in taken:
                name = f'{slug}-{i}'
            taken.add(name)
            found[i] = name
    return found


def _html(block, anchor) -> str:
    match block:
        case Heading():
            return f'<h{block.level} id="{anchor}">{html.escape(block.text)}</h{block.level}>'
        case Text():
            return f'<p>{html.escape(block.text)}</p>'
        case Gap():
            return f'<p class="gap"><b>Gap:</b> {html.escape(block.text)}</p>'
        case Table():
            return _html_table(block)
        case Figure():
            return (
                f'<figure>\n<div class="panels">\n{"".join(block.panels)}</div>\n'
                f'<figcaption>{html.escape(block.caption)}</figcaption>\n'
                f'<details><summary>The numbers of this figure</summary>\n{_html_table(block.numbers)}\n</details>\n'
                '</figure>'
            )
        case Quote():
            texts = ''.join(f'<blockquote>{html.escape(text)}</blockquote>\n' for text in block.texts)
            return f'<figure>\n<figcaption>{html.escape(block.caption)}</figcaption>\n{texts}</figure>'


def _html_table(table) -> str:
    numbers = _number_columns(table)
    name = lambda i: ' class="number"' if numbers[i] else ''
    head = ''.join(f'<th scope="col"{name(i)}>{html.escape(text)}</th>' for i, text in enumerate(table.columns))
    body = ''.join(
        '<tr>' + ''.join(_html_cell(i, cell, numbers[i]) for i, cell in enumerate(entry)) + '</tr>\n'
        for entry in table.entries
    )
    caption = f'<caption>{html.escape(table.caption)}</caption>\n' if table.caption else ''
    notes = ''.join(f'\n<p class="note">{html.escape(note)}</p>' for note in table.notes)
    # tabindex: the keyboard can scroll it too.
    return (
        f'<div class="scroll" tabindex="0">\n<table>\n{caption}<thead><tr>{head}</tr></thead>\n'
        f'<tbody>\n{body}</tbody>\n</table>\n</div>{notes}'
    )


def _html_cell(i, cell, number) -> str:
    classes = ['number'] * number + ['gap'] * (cell is None) + ['paper'] * isinstance(cell, Paper)
    attributes = f' class="{" ".join(classes)}"' if classes else ''
    if isinstance(cell, Shaded):
        attributes += f' style="--share:{cell.share:.2f}"'
    text = html.escape(_text(cell)).replace('/', '/<wbr>')  # long paths may break there
    return f'<th scope="row"{attributes}>{text}</th>' if i == 0 else f'<td{attributes}>{text}</td>'


def _text(cell: Cell) -> str:
    return _GAP if cell is None else cell if isinstance(cell, str) else cell.text


def _number_columns(table) -> list[bool]:
    """Whether a column holds nothing but numbers; the first never does."""
    columns = [[_text(entry[i]) for entry in table.entries if entry[i]] for i in range(len(table.columns))]
    return [bool(i and column) and all(map(_NUMBER.match, column)) for i, column in enumerate(columns)]


def _markdown(block) -> str:
    match block:
        case Heading():
            return f'{"#" * block.level} {_escape(block.text)}'
        case Text():
            return _escape(block.text)
        case Gap():
            return f'**Gap:** {_escape(block.text)}'
        case Table():
            return _markdown_table(block)
        case Figure():
            return f'{_escape(block.caption)}\n\n{_markdown_table(block.numbers)}'
        case Quote():
            longest = max((len(run) for text in block.texts for run in re.findall('`+', text)), default=0)
            fence = '`' * max(3, longest + 1)  # so that no text can end it
            texts = ''.join(f'\n\n{fence}text\n{text}\n{fence}' for text in block.texts)
            return f'{_escape(block.caption)}{texts}'


def _markdown_table(table) -> str:
    numbers = _number_columns(table)
    line = lambda cells: f'| {" | ".join(cells)} |'
    text = lambda cell: f'*{_escape(cell.text)}*' if isinstance(cell, Paper) else _escape(_text(cell))
    parts = [f'{_escape(table.caption)}\n'] if table.caption else []
    parts += [line(map(_escape, table.columns)), line('---:' if number else '---' for number in numbers)]
    parts += [line(map(text, entry)) for entry in table.entries]
    parts += [f'\n{_escape(note)}' for note in table.notes]
    return '\n'.join(parts)


def _escape(text: str) -> str:
    """The text on one line, escaped for Markdown and HTML."""
    text = re.sub(r'([\\`*_\[\]|~#])', r'\\\1', ' '.join(text.split()))
    return text.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')
