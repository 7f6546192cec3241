"""The predictions of a classifier for all examples of a split, on any mesh; and the files that keep them."""

import dataclasses
import io
import json
from collections.abc import Callable

import numpy as np
from etils import epath

from gpt1_jax.data.labelled.examples import Examples
from gpt1_jax.data.labelled.packing import EvaluationBatches
from gpt1_jax.data.labelled.registry import Dataset
from gpt1_jax.data.labelled.sequences import Encoded
from gpt1_jax.data.prefetch import prefetch
from gpt1_jax.evaluation import metrics
from gpt1_jax.evaluation.journal import Watch
from gpt1_jax.files import write_atomically
from gpt1_jax.model.classifier import Classifier
from gpt1_jax.report.results import Score
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.program import prediction

_MOST_ERRORS, _MOST_CHARACTERS = 100, 400


def make_predictor(
    classifier: Classifier, abstract_params: dict, partitioner: Partitioner, batch_size: int
) -> Callable:
    """A function (params, encoded, watch=Watch()) -> logits float32 [n, classes], or scores [n, choices], in the
    examples' order. `watch` sees every batch, and counts examples.

    Every example counts once, whatever the batch size and the number of devices.

    Args:
      abstract_params: shapes and shardings of the parameters, or these themselves.
      batch_size: examples.
    """
    step = prediction(classifier, abstract_params, partitioner)
    can_share = 'share_context' not in classifier.model.CANNOT

    def predict(params, encoded: Encoded, watch: Watch | None = None) -> np.ndarray:
        batches = EvaluationBatches(
            encoded,
            batch_size=batch_size,
            placement=partitioner.placement,
            share_context=classifier.head.kind == 'multiple_choice' and can_share,
        )
        results = (watch or Watch()).each(
            lambda batch: step(params, partitioner.put_batch(batch)),
            lambda start: prefetch(batches, start, batches.steps),
            keep=lambda number, output: _in_order(output),
            size=lambda number: min(batch_size, len(encoded.ids) - number * batch_size),
            content=lambda: [b'%d examples a batch' % batch_size, *encoded.sequences.content()],
        )
        return np.concatenate(list(results))

    return predict


def _in_order(output):
    """The logits of a batch in the order of its examples, without those of padding: [n, classes or choices]."""
    ids = output['ids'].reshape(-1)
    logits = output['logits'].reshape(len(output['ids'][0]), -1)
    return logits[ids >= 0][np.argsort(ids[ids >= 0])]


def score_split(dataset: Dataset, loss_kind: str, split: str, encoded: Encoded, logits: np.ndarray) -> list[Score]:
    """The metrics of the data set on a labelled split: first those of all examples, in the data set's order, then those
    of each subset.

    Args:
      loss_kind: see metrics.predictions.
      encoded: has labels.
      logits: [n, classes], of a predictor.
    """
    scores = metrics.score(dataset.metrics, loss_kind, encoded.labels, logits, encoded.subsets)
    return [Score(dataset.name, split, metric, value, examples, subset) for metric, subset, value, examples in scores]


def flat_metrics(scores: list[Score]) -> dict[str, float]:
    """Flat names of the scores of one split: {'dev_score': the first, 'dev_accuracy', 'dev_accuracy_middle', ...}."""
    return {f'{scores[0].split}_score': scores[0].value} | {_flat_name(score): score.value for score in scores}


def named_scores(dataset: Dataset, split: str, encoded: Encoded, values: dict[str, float]) -> list[Score]:
    """The scores of a split from their values under flat names, the inverse of `flat_metrics`. A run that an earlier
    version began may lack values of subsets: it did not find them in all forms of files."""
    scores = []
    for subset in ('', *sorted({*(encoded.subsets or ())} - {''})):
        examples = encoded.subsets.count(subset) if subset else len(encoded.ids)
        for metric in dataset.metrics:
            score = Score(dataset.name, split, metric, 0.0, examples, subset)
            if (name := _flat_name(score)) in values:
                scores.append(dataclasses.replace(score, value=values[name]))
    return scores


def _flat_name(score):
    return '_'.join(filter(None, (score.split, score.metric, score.subset)))


def spread(number: int, most: int) -> np.ndarray:
    """At most `most` of the indices 0 to number - 1, evenly spread: int [min(number, most)]."""
    return np.arange(min(number, most)) * number // max(1, min(number, most))


def write_logits(path: epath.Path, encoded: Encoded, logits: np.ndarray) -> None:
    """Writes `labels` [n], `logits` float32 [n, classes] and, if there are any, `subsets` (str [n]) into an .npz."""
    arrays = {'labels': encoded.labels, 'logits': logits}
    if encoded.subsets is not None:
        arrays['subsets'] = np.array(encoded.subsets, str)
    data = io.BytesIO()
    np.savez_compressed(data, allow_pickle=False, **arrays)
    write_atomically(path, [data.getvalue()])


def write_errors(
    path: epath.Path, dataset: Dataset, examples: Examples | None, labels: np.ndarray, predicted: np.ndarray
) -> None:
    """Writes at most 100 wrong predictions as JSON lines {'index', 'texts', 'label', 'prediction'}, in the order of the
    examples: evenly spread over all wrong ones; of scores, those with the largest errors.

    texts: each field, and each choice as a text of its own, of at most 400 characters. label, prediction: names, or
    scores.

    Args:
      examples: their texts; None leaves `texts` empty.
      labels, predicted: [n] label ids or scores.
    """
    if dataset.labels is None:
        name = float
        chosen = np.sort(np.argsort(-np.abs(predicted - labels), kind='stable')[:_MOST_ERRORS])
    else:
        name = dataset.labels.__getitem__
        wrong = np.flatnonzero(predicted != labels)
        chosen = wrong[spread(len(wrong), _MOST_ERRORS)]
    lines = [
        {'index': i, 'texts': _texts(examples, i), 'label': name(labels[i]), 'prediction': name(predicted[i])}
        for i in chosen.tolist()
    ]
    write_atomically(path, [json.dumps(line).encode() + b'\n' for line in lines])


def _texts(examples, index):
    values = [] if examples is None else [column[index] for column in examples.fields.values()]
    texts = [text for value in values for text in ([value] if isinstance(value, str) else value)]
    return [text[:_MOST_CHARACTERS] for text in texts]
