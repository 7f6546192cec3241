"""How certain a score is, or the difference of two: spreads over seeds, the bootstrap over the dev examples.

A resample draws as many dev examples as there are, with replacement (Efron & Tibshirani 1993, An Introduction to the
Bootstrap). Comparisons are paired: both sides are scored on the same resamples. Intervals are percentiles.
"""

import dataclasses
import functools
import statistics
from collections.abc import Sequence

import numpy as np

from gpt1_jax.evaluation.metrics import METRICS

RESAMPLES = 1000
FEWEST_SEEDS = 3  # for a judgement: resamples of one seed are all the same, those of two hardly differ
_SEED = 0
_AT_ONCE = 4_000_000  # counts in memory as float64


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of the values of several seeds, and their number."""

    median: float
    low: float
    high: float
    runs: int


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of two rows' medians over seeds, the first less the second.

    Attributes:
      medians: of the two rows, on the examples as they are.
      examples: the difference on each resample of the examples, [RESAMPLES].
      both: the same, with the seeds resampled too.
      seeds: how many.
    """

    medians: tuple[float, float]
    examples: np.ndarray
    both: np.ndarray
    seeds: int

    @property
    def value(self) -> float:
        """The difference on the examples as they are."""
        return self.medians[0] - self.medians[1]

    def interval(self, seeds: bool) -> tuple[float, float]:
        """The middle 95 % of the values on the resamples. seeds: whether the seeds are resampled too."""
        low, high = np.percentile(self.both if seeds else self.examples, [2.5, 97.5])
        return float(low), float(high)

    @property
    def significant(self) -> bool:
        """Whether the interval over examples and seeds excludes 0, and there are enough seeds."""
        low, high = self.interval(seeds=True)
        return self.seeds >= FEWEST_SEEDS and (low > 0 or high < 0)


def spread(values: Sequence[float]) -> Spread:
    """Median, lowest and highest of at least one value."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


def on_resamples(metric: str, labels: np.ndarray, predicted: np.ndarray, resamples: int = RESAMPLES) -> np.ndarray:
    """A metric of k predictions on resamples of the n examples: [k, resamples], equal for equal n and seed.

    Args:
      metric: of evaluation.metrics.METRICS.
      labels: [n], label ids or scores.
      predicted: [k, n].
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    if metric in ('pearson', 'spearman'):
        of = _correlations
    else:
        of = _class_metrics(metric, labels, predicted)
    counts = _counts(len(labels), resamples)
    parts = np.array_split(counts, -(-counts.size // _AT_ONCE))
    return np.concatenate([of(metric, labels, predicted, part.astype(np.float64)) for part in parts], axis=1)


def accuracy_error(value: float, examples: int) -> float:
    """The standard error of an accuracy over this many examples, by the formula."""
    return (value * (1 - value) / examples) ** 0.5


def standard_error(metric: str, labels: np.ndarray, predicted: np.ndarray) -> float:
    """The standard error of a metric: its standard deviation over the resamples. labels, predicted: [n]."""
    return float(np.std(on_resamples(metric, labels, np.asarray(predicted)[None]), ddof=1))


def difference(metrics: Sequence[str], labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> Difference:
    """The difference of two rows, paired by example and seed.

    Args:
      metrics: names; their mean is compared.
      labels: [n].
      first, second: [seeds, n], predictions of the two rows for the same seeds.
    """
    predicted = np.concatenate([first, second])
    whole = np.mean([[METRICS[name](labels, row) for row in predicted] for name in metrics], axis=0)
    drawn = np.mean([on_resamples(name, labels, predicted) for name in metrics], axis=0)
    seeds = len(first)
    chosen = np.random.default_rng(_SEED + 1).integers(seeds, size=(seeds, drawn.shape[1]))
    median = lambda values, rows: np.median(np.take_along_axis(values, rows, axis=0), axis=0)
    medians = lambda values: (np.median(values[:seeds], axis=0), np.median(values[seeds:], axis=0))
    both = median(drawn[:seeds], chosen) - median(drawn[seeds:], chosen)
    return Difference(tuple(map(float, medians(whole))), np.subtract(*medians(drawn)), both, seeds)


def mean_difference(differences: Sequence[Difference]) -> Difference:
    """The mean over data sets, whose examples are resampled independently of each other."""
    # Sets of the same size have the same resamples: shifted against each other, they are independent.
    mean = lambda of: np.mean([np.roll(values, shift) for shift, values in enumerate(of)], axis=0)
    return Difference(
        tuple(statistics.mean(row) for row in zip(*(one.medians for one in differences))),
        mean([one.examples for one in differences]),
        mean([one.both for one in differences]),
        min(one.seeds for one in differences),
    )


@functools.lru_cache(maxsize=4)  # the sets of a report come one after the other, and each has several rows
def _counts(n, resamples) -> np.ndarray:
    """How often each example is in each resample, uint8 [resamples, n]."""
    rng = np.random.default_rng(_SEED)
    draw = lambda: np.bincount(rng.integers(n, size=n), minlength=n).astype(np.uint8)
    return np.stack([draw() for _ in range(resamples)])


def _class_metrics(metric, labels, predicted):
    """A function like `_correlations`; what does not depend on the resample is done once."""
    classes = np.arange(int(max(labels.max(), predicted.max(), 1)) + 1)
    true = labels[:, None] == classes  # [n, c]
    said = predicted.T[..., None] == classes  # [n, k, c]
    of_examples = [one.astype(np.float64) for one in (said & true[:, None], true[:, None], said)]

    def of(metric, labels, predicted, counts):
        return _OF_COUNTS[metric](*(np.tensordot(counts, one, axes=1) for one in of_examples)).T

    return of


# Functions of how many examples of each label are right, have the label, and are predicted to have it: [r, k, c],
# [r, 1, c], [r, k, c].


def _accuracy(right, true, said):
    return right.sum(-1) / said.sum(-1)


def _f1(right, true, said):
    """F1 of label 1, as in metrics.METRICS."""
    return _ratio(2 * right[..., 1], true[..., 1] + said[..., 1])


def _matthews(right, true, said):
    """Gorodkin 2004, for any number of classes."""
    total = said.sum(-1)
    covariance = right.sum(-1) * total - (true * said).sum(-1)
    variances = (total**2 - (true**2).sum(-1)) * (total**2 - (said**2).sum(-1))
    return _ratio(covariance, np.sqrt(variances))


_OF_COUNTS = {'accuracy': _accuracy, 'f1': _f1, 'matthews': _matthews}


def _correlations(metric, labels, predicted, counts):
    """[k, r]; counts: [r, n]."""
    ranks = _ranks if metric == 'spearman' else lambda values, counts: values[None] - values.mean()
    x, total = ranks(labels, counts), counts.sum(1)
    centre = lambda values: values - (counts * values).sum(1, keepdims=True) / total[:, None]
    x, values = centre(x), []
    for row in predicted:
        y = centre(ranks(row, counts))
        values.append(_ratio((counts * x * y).sum(1), np.sqrt((counts * x**2).sum(1) * (counts * y**2).sum(1))))
    return np.stack(values)


def _ranks(values, counts):
    """The mean rank of each example in each resample, [r, n]."""
    _, group = np.unique(values, return_inverse=True)
    sizes = np.zeros((group.max() + 1, len(counts)))
    np.add.at(sizes, group, counts.T)
    return ((np.cumsum(sizes, axis=0) - (sizes - 1) / 2).T)[:, group]


def _ratio(above, below):
    """0 where it is undefined, as in evaluation.metrics."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 1e-9)
