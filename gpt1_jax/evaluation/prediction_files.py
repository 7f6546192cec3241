"""Files of predictions, in the form that benchmarks accept."""

import numpy as np
from etils import epath

from gpt1_jax.data.labelled.registry import Dataset
from gpt1_jax.files import make_directory, write_atomically


def write_predictions(
    directory: epath.Path, dataset: Dataset, split: str, predicted: np.ndarray, ids: list[str]
) -> epath.Path:
    """Writes `index` and `prediction` of every example into a file of its own, by index; returns its path.

    File name and label words are those of a submission to GLUE (gluebenchmark.com) if the data set has them, see
    Dataset.submission_names; scores have three decimals.

    Args:
      predicted: [n] label ids or scores, of `metrics.predictions`.
      ids: n strings, the examples' own.

    Raises:
      UserError: the file cannot be written.
    """
    number = len(ids)
    are_numbers = all(one.isdecimal() and len(one) < 20 for one in ids)
    order = sorted(range(number), key=lambda i: int(ids[i])) if are_numbers else range(number)
    if dataset.labels is None:
        low, high = dataset.score_range
        words = [f'{min(max(float(value), low), high):.3f}' for value in predicted]
    else:
        words = [(dataset.submission_labels or dataset.labels)[value] for value in predicted]
    separator = {'tsv': '\t', 'csv': ','}[dataset.submission_suffix]
    lines = [f'index{separator}prediction', *(f'{ids[i]}{separator}{words[i]}' for i in order)]
    make_directory(directory)
    stem = dataset.submission_names.get(split, f'{dataset.name}_{split}')
    path = directory / f'{stem}.{dataset.submission_suffix}'
    write_atomically(path, ['\n'.join(lines).encode() + b'\n'])
    return path
