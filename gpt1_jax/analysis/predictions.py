"""Files of predictions, in the form in which a benchmark takes them."""

import numpy as np
from etils import epath

from gpt1_jax.data.files import make_directory, write_atomically
from gpt1_jax.data.registry import Dataset

# GLUE's submission (gluebenchmark.com): file name by data set and split, and the label words of those that do not
# take the numbers of the labels.
_GLUE_FILES = {
    ('cola', 'test'): 'CoLA', ('sst2', 'test'): 'SST-2', ('mrpc', 'test'): 'MRPC', ('stsb', 'test'): 'STS-B',
    ('qqp', 'test'): 'QQP', ('mnli', 'test'): 'MNLI-m', ('mnli', 'test_mismatched'): 'MNLI-mm',
    ('qnli', 'test'): 'QNLI', ('rte', 'test'): 'RTE', ('wnli', 'test'): 'WNLI'}
_NUMBERS = ('cola', 'sst2', 'mrpc', 'qqp', 'wnli')
_COMMAS = ('race', 'story_cloze')  # `index,prediction`, with the label's name: a letter, 1 or 2


def write_predictions(directory: epath.Path, dataset: Dataset, split: str, predicted: np.ndarray,
                      ids: list[str]) -> epath.Path:
    """Writes `index` and `prediction` of every example into a file of its own, by index; returns its path.

    GLUE's test splits are named and worded as its submission wants them (STS-B: a score from 0 to 5 with three
    decimals); others hold label names, or scores.

    Args:
      predicted: [n] label ids or scores, of `metrics.predictions`; ids: n strings, the examples' own.
    """
    number = len(ids)
    order = sorted(range(number), key=lambda i: int(ids[i])) if all(map(str.isdecimal, ids)) else range(number)
    if dataset.labels is None:
        low, high = dataset.score_range
        words = [f'{min(max(float(value), low), high):.3f}' for value in predicted]
    elif dataset.name in _NUMBERS:
        words = [str(int(value)) for value in predicted]
    else:
        words = [dataset.labels[value] for value in predicted]
    comma = dataset.name in _COMMAS
    separator = ',' if comma else '\t'
    lines = [f'index{separator}prediction', *(f'{ids[i]}{separator}{words[i]}' for i in order)]
    make_directory(directory)
    stem = _GLUE_FILES.get((dataset.name, split), f'{dataset.name}_{split}')
    path = directory / f'{stem}.{"csv" if comma else "tsv"}'
    write_atomically(path, ['\n'.join(lines).encode() + b'\n'])
    return path
