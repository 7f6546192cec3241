"""The report of all runs in a folder: one page, and the same as Markdown."""

import posixpath

from etils import epath

from gpt1_jax.files import make_directory, write_atomically
from gpt1_jax.report import analyses, behaviour, curves, overview, render, scores
from gpt1_jax.report.blocks import Block
from gpt1_jax.report.collect import Run, collect, lines, real_path

_INTRODUCTION = (
    'Made by gpt1_jax, a reproduction of Radford et al. (2018), "Improving Language Understanding by Generative '
    'Pre-Training".'
)


def write(folder: epath.Path, out: epath.Path) -> list[Run]:
    """Writes OUT/report.html and OUT/report.md of all runs in and below a folder; the same runs give the same bytes.

    Returns the runs. Raises UserError if there are none, or matplotlib is not installed.
    """
    folder, out = epath.Path(folder).expanduser(), epath.Path(out).expanduser()
    runs = collect(folder)
    write_blocks(f'Report of {posixpath.basename(real_path(folder))}', sections(runs), out)
    return runs


def write_blocks(title: str, blocks: list[Block], out: epath.Path) -> None:
    """Writes OUT/report.html and OUT/report.md with these blocks."""
    make_directory(out)
    for name, text_of in (('report.html', render.to_html), ('report.md', render.to_markdown)):
        write_atomically(out / name, [text_of(title, _INTRODUCTION, blocks).encode(errors='replace')])


def sections(runs: list[Run]) -> list[Block]:
    """What the report shows of the runs; a section without any runs is left out."""
    tuned = lines(runs)
    return [
        *overview.summary(runs, tuned),
        *scores.fine_tuning(runs, tuned),
        *scores.table_5(tuned),
        *analyses.layer_transfer(tuned),
        *analyses.zero_shot(runs),
        *analyses.studies(tuned),
        *curves.pretraining(runs),
        *curves.fine_tuning(tuned),
        *overview.cost(runs, tuned),
        *behaviour.mistakes(tuned),
        *behaviour.samples(runs),
    ]
