"""Rows of fine-tuning scores: their values over seeds, how certain these are, and the difference of two rows."""

from collections.abc import Iterable, Sequence

import numpy as np
from ml_collections import ConfigDict

from gpt1_jax.data.labelled.registry import Dataset, dataset_of
from gpt1_jax.errors import UserError
from gpt1_jax.evaluation import metrics
from gpt1_jax.report import results, statistics
from gpt1_jax.report.blocks import Gap, Table, percent, signed, span, whole
from gpt1_jax.report.collect import Line, Run
from gpt1_jax.report.results import Score

HOW = (
    'Differences are of the medians over seeds, in points, with 95 % intervals from a paired bootstrap: '
    f'{statistics.RESAMPLES:,} resamples of the dev examples, the same for both rows; and the same with the seeds '
    f'resampled too. * marks a difference over at least {statistics.FEWEST_SEEDS} seeds whose second interval excludes '
    '0. Medians: those that are subtracted, over the seeds that both rows have; for MNLI they are of matched alone, '
    'because single predictions are kept only for it.'
)

COLUMNS = ('medians', 'difference', '95 %, examples', '95 %, examples and seeds', 'seeds')


def dataset_of_run(run: Run) -> Dataset | None:
    """The data set of a fine-tuning run; None if its config does not say."""
    try:
        return dataset_of(ConfigDict(run.config['data']))
    except (UserError, KeyError, AttributeError, TypeError, ValueError):
        return None


def best_scores(line: Line, split: str = 'dev') -> dict[tuple[str, str, str], list[Score]]:
    """The scores of the best checkpoints on the splits whose names begin with `split`: (split, metric, subset) -> one
    for each finished run."""
    found = {}
    for run in line.finished:
        for score in run.result.select(checkpoint='best'):
            if score.split.startswith(split):
                found.setdefault((score.split, score.metric, score.subset), []).append(score)
    return found


def first_metric(line: Line, split: str = 'dev') -> statistics.Spread | None:
    """The spread of `first_metric_of` over the seeds; None if no run has it."""
    values = [value for run in line.finished if (value := first_metric_of(run, split)) is not None]
    return statistics.spread(values) if values else None


def first_metric_of(run: Run, split: str = 'dev') -> float | None:
    """`results.first_metric` of a finished run."""
    dataset = dataset_of_run(run)
    return results.first_metric(run.result.scores, dataset.metrics[0], split) if dataset else None


def of_mnli(lines: Iterable[Line]) -> str:
    """`results.of_mnli` of the finished runs."""
    return results.of_mnli(run.result.scores for line in lines for run in line.finished)


def predictions(run: Run) -> tuple[np.ndarray, np.ndarray] | None:
    """(labels, predicted), each [n], of a run's best checkpoint on dev; None if they were not kept."""
    dataset = dataset_of_run(run)
    if not run.dev or dataset is None:
        return None
    loss = 'mse' if dataset.loss == 'ordinal' and run.dev['logits'].shape[1] == 1 else dataset.loss
    return run.dev['labels'], metrics.predictions(loss, run.dev['logits'])


def standard_error(line: Line, scores: Sequence[Score]) -> float | None:
    """The standard error of one run's score if the examples were drawn anew: by the formula for an accuracy, else by
    the bootstrap on the run whose score is the median; None if its predictions were not kept."""
    middle = sorted(scores, key=lambda score: score.value)[(len(scores) - 1) // 2]
    if middle.metric == 'accuracy':
        return statistics.accuracy_error(middle.value, middle.examples)
    run = next(run for run in line.finished if middle in run.result.scores)
    if middle.split != 'dev' or middle.subset or (found := predictions(run)) is None:
        return None
    return statistics.standard_error(middle.metric, *found)


def compare(first: Line, second: Line) -> statistics.Difference | str:
    """The first metric of one row less that of another, over the seeds that both have; or why it cannot be told."""
    rows = [{run.setting('seed', 0): run for run in line.finished} for line in (first, second)]
    seeds = sorted(set(rows[0]) & set(rows[1]))
    if not seeds:
        return 'no seed is finished in both rows'
    found = [[predictions(row[seed]) for seed in seeds] for row in rows]
    if any(one is None for row in found for one in row):
        return 'predictions were not kept'
    labels = found[0][0][0]
    if not all(np.array_equal(labels, one[0]) for row in found for one in row):
        return 'the dev sets differ'
    metric = dataset_of_run(rows[0][seeds[0]]).metrics[0]
    return statistics.difference([metric], labels, *(np.stack([one[1] for one in row]) for row in found))


def comparisons(caption: str, pairs: Iterable[tuple[Line, Line]]) -> list[Table | Gap]:
    """A table of differences, for pairs of rows of the same set; and a gap for each pair that cannot be compared."""
    entries, gaps = [], []
    for first, second in pairs:
        names = f'{first.variant or first.label} less {second.variant or second.label}'
        found = compare(first, second)
        if isinstance(found, str):
            gaps.append(Gap(f'{first.owner.label}, {first.dataset}: no difference of {names}: {found}.'))
            continue
        entries.append((first.owner.label, compared_set(first.dataset), names, *cells(found)))
    return [Table(caption, ('run', 'set', 'rows', *COLUMNS), entries, (HOW,))] * bool(entries) + gaps


def compared_set(dataset: str) -> str:
    """The name of the dev set on which `compare` compares."""
    return dataset + ', matched' * (dataset == 'mnli')


def cells(difference: statistics.Difference) -> tuple[str, ...]:
    """Cells for COLUMNS; the interval over examples and seeds is empty for one seed."""
    return (
        ' less '.join(map(percent, difference.medians)),
        signed(difference.value) + '*' * difference.significant,
        span(*difference.interval(seeds=False)),
        span(*difference.interval(seeds=True)) if difference.seeds > 1 else '',
        whole(difference.seeds),
    )


def spread_cells(one: statistics.Spread | None) -> tuple[str | None, str | None]:
    """The median, and the lowest to the highest, which is empty for one run."""
    if one is None:
        return None, None
    return percent(one.median), span(one.low, one.high) if one.runs > 1 else ''


def constant(line: Line) -> float | None:
    """The score, by the first metric, of the same answer to all dev examples; None if no run has it."""
    return next((run.facts['dev_constant'] for run in line.finished if 'dev_constant' in run.facts), None)
