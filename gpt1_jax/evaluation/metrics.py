"""Metrics of labelled data sets (Radford et al. 2018, section 4.2), and predictions from logits."""

from collections.abc import Sequence

import numpy as np
import scipy  # loads its parts when they are used

from gpt1_jax.errors import DivergedError
from gpt1_jax.files import import_package


def predictions(loss_kind: str, logits: np.ndarray) -> np.ndarray:
    """Logits [n, classes] (or the scores [n, choices]) -> label ids int32 [n]; 'ordinal', 'mse': scores float32 [n].

    An ordinal score is the expected class, as the release does for STS-B; one of 'mse' is the output itself.

    Raises:
      DivergedError: a logit is not finite.
    """
    logits = np.asarray(logits, np.float64)
    if not np.isfinite(logits).all():
        raise DivergedError(
            'Evaluation: The logits are not finite, so the model has diverged. Lower the learning rate.'
        )
    if loss_kind == 'ordinal':
        return (scipy.special.softmax(logits, axis=-1) @ np.arange(logits.shape[-1])).astype(np.float32)
    if loss_kind == 'mse':
        return logits[:, 0].astype(np.float32)
    return logits.argmax(axis=-1).astype(np.int32)


def _sklearn():
    # Its import takes a second, which a run that scores no labels saves.
    return import_package('sklearn.metrics', 'predictions cannot be scored')


def _constant(labels, predicted):
    """Whether a correlation is undefined: a constant correlates with nothing."""
    return np.ptp(labels) == 0 or np.ptp(predicted) == 0


def _matthews(labels, predicted):
    # scikit-learn gives 0 too, but warns if all labels and predictions are the same.
    return 0.0 if _constant(labels, predicted) else _sklearn().matthews_corrcoef(labels, predicted)


def _correlation(name):
    def metric(labels, predicted):
        if _constant(labels, predicted):
            return 0.0
        # Nearly constant values may still round to an undefined result.
        return np.nan_to_num(getattr(scipy.stats, name)(labels, predicted).statistic)

    return metric


METRICS = {
    'accuracy': lambda labels, predicted: _sklearn().accuracy_score(labels, predicted),
    'matthews': _matthews,
    'f1': lambda labels, predicted: _sklearn().f1_score(labels, predicted, zero_division=0.0),  # of label 1
    'pearson': _correlation('pearsonr'),
    'spearman': _correlation('spearmanr'),
}


def per_class(labels: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Label name -> {'precision', 'recall', 'f1', 'examples'}; an undefined value (never predicted) is 0.

    Args:
      labels, predicted: [n] label ids.
      names: of the labels, in the order of their ids.
    """
    columns = _sklearn().precision_recall_fscore_support(labels, predicted, labels=range(len(names)), zero_division=0.0)
    return {
        name: dict(zip(('precision', 'recall', 'f1', 'examples'), map(float, values)))
        for name, *values in zip(names, *columns)
    }


def compute(names: Sequence[str], labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Name in METRICS -> value, in 0..1 or -1..1; a metric that is undefined (constant predictions) is 0.

    Args:
      labels, predicted: [n] label ids or scores.

    Raises:
      DivergedError: a prediction is NaN.
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    if np.isnan(predicted).any():
        raise DivergedError(
            f'Evaluation: {np.isnan(predicted).sum()} of {len(predicted)} predictions are NaN, so the '
            'model has diverged. Lower the learning rate.'
        )
    return {name: float(METRICS[name](labels, predicted)) for name in names}


def constant(name: str, labels: np.ndarray) -> float:
    """The value of a metric of METRICS if all predictions are the label that gives the highest value; 0 for scores.

    labels: [n] label ids or scores.
    """
    values, counts = np.unique(labels, return_counts=True)
    answers = values if len(values) == 2 else values[[counts.argmax()]]  # F1 may be higher for the rarer one
    return max(compute([name], labels, np.full_like(labels, answer))[name] for answer in answers)


def score(
    names: Sequence[str], loss_kind: str, labels: np.ndarray, logits: np.ndarray, subsets: Sequence[str] | None = None
) -> list[tuple[str, str, float, int]]:
    """Logits against labels: (metric, subset, value, examples), first each metric of all ('') in the order of `names`.

    Args:
      names: of METRICS.
      loss_kind: see `predictions`.
      labels: [n].
      logits: [n, classes].
      subsets: the name of each example's subset (RACE's level), '' if it has none: n strings; or None.
    """
    labels, predicted = np.asarray(labels), predictions(loss_kind, logits)
    scores = [(name, '', value, len(labels)) for name, value in compute(names, labels, predicted).items()]
    for subset in sorted({*(subsets or ())} - {''}):
        members = np.array([name == subset for name in subsets])
        part = compute(names, labels[members], predicted[members])
        scores += [(name, subset, value, int(members.sum())) for name, value in part.items()]
    return scores
