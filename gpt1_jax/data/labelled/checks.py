"""What is logged about labelled data at the start of a run: how often each label occurs, and what looks wrong."""

from collections.abc import Iterator

import numpy as np
from absl import logging

from gpt1_jax.data.labelled.registry import Dataset
from gpt1_jax.data.labelled.sequences import Encoded

_SHARED = 0.05  # share of the dev examples that may also be in train without a warning


def log_labels(dataset: Dataset, split: str, labels: np.ndarray | None, number: int) -> None:
    """Logs how often each label occurs, in one line; warns of labels that never occur, and of scores on another scale.

    Args:
      labels: [n] label ids or scores, or None.
      number: of examples.
    """
    if labels is None:
        counts = 'without labels'
    elif dataset.labels is None:
        counts = f'scores from {labels.min():g} to {labels.max():g}, {labels.mean():.3g} on average'
    else:
        numbers = np.bincount(labels, minlength=len(dataset.labels))
        counts = ', '.join(f'{name} {count}' for name, count in zip(dataset.labels, numbers))
    logging.info('%s, %s split: %d examples: %s', dataset.name, split, number, counts)
    if labels is None or split.startswith('test'):
        return
    if dataset.labels is None:
        highest = dataset.score_range[1]
        if labels.max() <= 1 < highest:
            logging.warning(
                '%s: No score of the %s split is above 1, but they go up to %g. If they are from 0 to 1, multiply them '
                'by %g.',
                dataset.name,
                split,
                highest,
                highest,
            )
        return
    if missing := [name for name, count in zip(dataset.labels, numbers) if not count]:
        logging.warning(
            '%s: The %s split has no example of %d of the %d labels: %s. Check that it is whole, and how its labels '
            'are named.',
            dataset.name,
            split,
            len(missing),
            len(dataset.labels),
            ', '.join(missing[:10]),
        )


def log_shared(dataset: Dataset, train: Encoded, dev: Encoded) -> None:
    """Logs how many dev examples have the same tokens as a training example, if any; warns if they are many."""
    held_out = list(map(hash, _tokens(dev)))
    both = set(held_out).intersection(map(hash, _tokens(train)))
    if number := sum(example in both for example in held_out):
        level = logging.WARNING if number > _SHARED * len(held_out) else logging.INFO
        logging.log(
            level,
            '%s: %d of the %d dev examples are training examples too, whatever their labels. A score on these says '
            'nothing about others.',
            dataset.name,
            number,
            len(held_out),
        )


def log_subsets(dataset: Dataset, train: Encoded, dev: Encoded) -> None:
    """Warns of subsets of dev (RACE's levels) without training examples, as where `data.limit` takes the first ones."""
    if missing := sorted(set(dev.subsets or ()) - set(train.subsets or dev.subsets or ())):
        logging.warning(
            '%s: No training example is of %s, but dev examples are. If data.limit is set, it takes the first ones.',
            dataset.name,
            ', '.join(missing),
        )


def _tokens(encoded: Encoded) -> Iterator[bytes]:
    """The tokens of each example, whose sequences are end to end."""
    sequences = encoded.sequences
    ends = sequences.starts[:, -1] + sequences.lengths[:, -1]
    for start, end in zip(sequences.starts[:, 0], ends):
        yield sequences.tokens[start:end].tobytes()
