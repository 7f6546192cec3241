"""GLUE's average, table 5, and the scale of zero-shot scores. Dataset.paper has the paper's scores of each data set."""

import statistics
from collections.abc import Collection, Mapping

from gpt1_jax.data.labelled.registry import SUITES

GLUE_AVERAGE = (72.8, 68.9)  # the paper's and the best before it, in per cent (Radford et al. 2018, table 4)
_GLUE_METRICS = {  # gluebenchmark.com; of the other tasks accuracy
    'cola': ('matthews',),
    'mrpc': ('f1', 'accuracy'),
    'stsb': ('pearson', 'spearman'),
    'qqp': ('f1', 'accuracy'),
    'mnli': ('accuracy', 'mismatched_accuracy'),
}
_TABLE_5_SETS = ('cola', 'sst2', 'mrpc', 'stsb', 'qqp', 'mnli', 'qnli', 'rte')
# Table 5, test sets in per cent: row -> data set -> its first metric, of MNLI the mean of matched and mismatched.
TABLE_5 = {
    row: dict(zip(_TABLE_5_SETS, values, strict=True))
    for row, values in {
        'full': (45.4, 91.3, 82.3, 82.0, 70.3, 81.8, 88.1, 56.0),
        'no_pretraining': (18.9, 84.0, 79.4, 30.9, 65.5, 75.7, 71.2, 53.8),
        'no_auxiliary': (47.9, 92.0, 84.9, 83.2, 69.8, 81.1, 86.9, 54.4),
        'lstm': (30.3, 90.5, 83.2, 71.8, 68.1, 73.7, 81.1, 54.6),
    }.items()
}
# As printed; the LSTM's row itself gives 69.2.
TABLE_5_AVERAGE = {'full': 74.7, 'no_pretraining': 59.9, 'no_auxiliary': 75.0, 'lstm': 69.1}
# Zero-shot (figure 2, right): metric, chance, and the best supervised result of the time: tables 3 and 4, and for the
# Winograd schemas Peng et al. (2015), "Solving Hard Coreference Problems". None: no figure in these.
ZERO_SHOT = {
    'cola': ('matthews', 0.0, 0.350),
    'sst2': ('accuracy', 0.5, 0.932),
    'race': ('accuracy', 0.25, 0.533),
    'dpr': ('accuracy', 0.5, 0.764),
    'story_cloze': ('accuracy', 0.5, 0.776),
    'copa': ('accuracy', 0.5, None),
}


def glue_average(scores: Mapping[str, Mapping[str, float]]) -> float | None:
    """The mean over GLUE's nine tasks, each the mean of GLUE's own metrics for it. None if one of these is missing.

    Args:
      scores: data set -> metric, named as in Dataset.paper -> its value. Metrics that GLUE does not count, such as
        CoLA's accuracy, are ignored.
    """
    wanted = {task: _GLUE_METRICS.get(task, ('accuracy',)) for task in SUITES['glue']}
    if any(metric not in scores.get(task, ()) for task, metrics in wanted.items() for metric in metrics):
        return None
    return statistics.mean(
        statistics.mean(scores[task][metric] for metric in metrics) for task, metrics in wanted.items()
    )


def in_every_row(rows: Mapping[str, Mapping[str, object]]) -> list[str]:
    """The data sets that every row has, in the order of the first row. rows: row -> data set -> anything."""
    first, *others = rows.values()
    return [name for name in first if all(name in of for of in others)]


def table_5_average(row: str, names: Collection[str]) -> float | None:
    """The average of a row of TABLE_5 over some data sets, each counted once, in per cent; if these are all of them, as
    it is printed. None if the row lacks one, or there are no sets."""
    published = TABLE_5.get(row, {})
    if not names or not set(names) <= set(published):
        return None
    return TABLE_5_AVERAGE[row] if set(names) == set(published) else statistics.mean(map(published.get, names))


def scaled(dataset: str, value: float) -> float | None:
    """A zero-shot score on the scale of figure 2: 0 is chance, 1 the best supervised result of the time; None if that
    is unknown."""
    _, chance, best = ZERO_SHOT[dataset]
    return None if best is None else (value - chance) / (best - chance)
