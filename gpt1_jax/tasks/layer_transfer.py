"""Fine-tuning with 0, 1, ... layers transferred (Radford et al. 2018, section 5 and figure 2, left)."""

import statistics
from collections.abc import Sequence

from etils import epath
from ml_collections import ConfigDict

from gpt1_jax.config import check_choice
from gpt1_jax.data.labelled.registry import REGISTRY
from gpt1_jax.errors import UserError
from gpt1_jax.report.results import Result, first_metric, of_mnli, of_runs
from gpt1_jax.report.tables import format_table
from gpt1_jax.saved_models import layers, store
from gpt1_jax.tasks import sweep

_PAPER = 'The paper (section 5, figure 2): more layers are better, up to all 12; on mnli these give about 9 points.'


def run(config: ConfigDict, workdir: epath.Path) -> Result:
    """Fine-tunes on `config.data.dataset` with each of `config.layers` layers transferred; prints a table.

    Scores, facts and files are those of `sweep.fine_tune_all`, with the variants 'layersN'; WORKDIR/table.txt is the
    table.
    """
    saved = store.open_model(config.init_from)
    runs = _runs(config, saved.architecture.sizes['layers'])
    for of_variant in runs.variants.values():
        layers.architecture(saved, of_variant.n_transfer, config.rest)
    result = sweep.fine_tune_all(runs, workdir, config)
    return sweep.finish(config, workdir, result, format_scores(result))


def check(config: ConfigDict, names: Sequence[str], workdir: epath.Path, most: int) -> None:
    """See sweep.check_runs. most: the layers of the model."""
    sweep.check_runs(_runs(config, most), names, workdir)


def _runs(config, most):
    """The config for `sweep.fine_tune_all`, with the numbers of layers ascending. most: the layers of the model."""
    check_choice('data.dataset', config.data.dataset, REGISTRY)
    numbers = sorted(set(config.layers or range(most + 1)))
    for n in numbers:
        if n not in range(most + 1):
            raise UserError(
                f'layers: {n} layers cannot be transferred from {config.init_from}, which has {most}. Give numbers '
                f'from 0 to {most}.'
            )
    variants = {f'layers{n}': {'n_transfer': n} for n in numbers}
    return sweep.with_variants(config, variants, without=('layers',), n_transfer=None, datasets=(config.data.dataset,))


def format_scores(result: Result) -> str:
    """The table over the number of layers, scores in per cent, and what they change, beside the paper's words."""
    ((name, by_variant),) = result.facts['train_examples'].items()
    metric, runs, entries = REGISTRY[name].metrics[0], of_runs(result.scores), []
    for variant in sorted(by_variant, key=_number):
        of = [scores for (_, one, _), scores in runs.items() if one == variant]
        train, dev = ([first_metric(scores, metric, split) for scores in of] for split in ('train', 'dev'))
        entries.append((_number(variant), len(of), *_cells(train), *_cells(dev)))
    columns = [('layers', 8, 'd'), ('runs', 6, 'd'), *((which, 8, '.1f') for which in 2 * ('median', 'best', 'worst'))]
    change = entries[-1][5] - entries[0][5]
    return '\n'.join(
        [
            f'{f"{name}, {metric}":<14}{"train":^24}{"dev":^24}',
            format_table(columns, entries),
            f'From {entries[0][0]} to {entries[-1][0]} layers the median on dev changes by {change:+.1f} points'
            f'{of_mnli(runs.values())}.',
            _PAPER,
            *(f'{path}: left out: {reason}' for path, reason in result.facts['left_out'].items()),
        ]
    )


def _cells(values):
    """Median, best and worst, in per cent; empty if a run has no value."""
    return (None,) * 3 if None in values else [100 * of(values) for of in (statistics.median, max, min)]


def _number(variant):
    return int(variant.removeprefix('layers'))
