"""The one record of a result: every task writes it to WORKDIR/results.json. The report takes its scores from there, and
curves, intervals and examples from the files beside it (report/reading.py)."""

import dataclasses
import hashlib
import json
import os
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence

import jax
from etils import epath
from ml_collections import ConfigDict

import gpt1_jax
from gpt1_jax import lock
from gpt1_jax.config import as_json
from gpt1_jax.files import (
    check_form,
    check_seal,
    exists,
    make_directory,
    package_version,
    read_json,
    sealed,
    write_json,
)
from gpt1_jax.training.partitioning import is_writer

FORMAT_VERSION = 1
RUN = {'dataset': str, 'variant': str, 'seed': int, 'path': os.PathLike}  # the form of an entry of a sweep's runs.json
_SCORE = {
    **dict.fromkeys(('dataset', 'split', 'metric', 'subset', 'checkpoint', 'variant'), str),
    **{'value': float, 'examples': int, 'step': (int, type(None)), 'seed': int},
}
_FORM = {
    **{'task': str, 'scores': [_SCORE], 'facts': dict, 'model': (dict, type(None))},
    **{'config': dict, 'seconds': float},
}
_FIX = 'Put a copy back, or name another --workdir.'
_PACKAGES = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


@dataclasses.dataclass(frozen=True)
class Score:
    """One number: a metric of a model on a split.

    Attributes:
      dataset: a labelled set's name, or the URI of a text.
      split: 'train', 'dev', 'test', ...; 'valid' for the held-out part of a corpus, 'text' for all of one.
      metric: its name.
      value: in the metric's own unit (0 to 1 for an accuracy, nats per token for 'loss').
      examples: how many labelled examples, or tokens, it is over.
      subset: the part of the split, such as RACE's 'middle'; '' for all of it.
      checkpoint: 'best' or 'last' of a run that trains, '' otherwise.
      step: of that checkpoint.
      variant, seed: which run of a sweep it is from.
    """

    dataset: str
    split: str
    metric: str
    value: float
    examples: int
    subset: str = ''
    checkpoint: str = ''
    step: int | None = None
    variant: str = ''
    seed: int = 0


@dataclasses.dataclass
class Result:
    """The result of a task.

    Attributes:
      task: its name.
      scores: see Score.
      facts: name -> any other number or text of the task, as JSON types.
      model: {'kind', 'sizes', 'parameters', 'tokens_seen'}; None for a task without a model. tokens_seen: in
        pre-training; None if unknown.
      config: of the run, as JSON types.
      seconds: that the process which ended the run spent on it.
    """

    task: str
    scores: list[Score]
    facts: dict
    model: dict | None
    config: dict
    seconds: float

    def select(self, **wanted: object) -> Iterator[Score]:
        """The scores whose attributes have these values."""
        return (score for score in self.scores if all(getattr(score, name) == v for name, v in wanted.items()))

    def value(self, **wanted: object) -> float:
        """The value of the only score that `select` gives. Raises ValueError if there is not exactly one."""
        (score,) = self.select(**wanted)
        return score.value

    def write(self, workdir: epath.Path) -> None:
        """Writes WORKDIR/results.json, in one process. Raises UserError if that is impossible."""
        device = None
        if self.model is not None:  # a task without one leaves the devices alone: another program may hold them
            if not is_writer():
                return
            first = jax.devices()[0]
            device = {
                'kind': first.device_kind,
                'platform': first.platform,
                'count': jax.device_count(),
                'processes': jax.process_count(),
            }
        lock.check(workdir)  # else a folder that was removed would be made anew, with this file alone
        make_directory(workdir)
        stored = {
            'format_version': FORMAT_VERSION,
            **dataclasses.asdict(self),
            'config_fingerprint': fingerprint(self.config),
            'versions': {'gpt1_jax': gpt1_jax.__version__} | {name: package_version(name) for name in _PACKAGES},
            'device': device,
        }
        write_json(workdir / 'results.json', sealed(stored))


def record(
    config: ConfigDict,
    workdir: epath.Path,
    started: float,
    *,
    scores: Sequence[Score] = (),
    facts: dict | None = None,
    model: dict | None = None,
) -> Result:
    """Makes the result of a task that began at `started` (time.monotonic()), writes it and returns it."""
    result = Result(config.task, list(scores), facts or {}, model, as_json(config), time.monotonic() - started)
    result.write(workdir)
    return result


def read(workdir: epath.Path) -> Result | None:
    """The record of a finished run; None if there is none, or it is of a version before 0.2.

    Raises UserError if results.json is damaged.
    """
    path = workdir / 'results.json'
    return from_json(path, read_json(path)) if exists(path) else None


def from_json(path: epath.Path, stored: dict) -> Result | None:
    """The record in a results.json; None if it is of a version before 0.2. Raises UserError if it is damaged."""
    if stored.get('format_version') != FORMAT_VERSION:
        return None
    check_form(path, stored, _FORM, _FIX)
    check_seal(path, stored, _FIX)
    scores = [Score(**{name: score[name] for name in _SCORE}) for score in stored['scores']]
    return Result(**{name: stored[name] for name in _FORM} | {'scores': scores})


def of_runs(scores: Iterable[Score]) -> dict[tuple[str, str, int], list[Score]]:
    """The scores of a sweep by run: (data set, variant, seed) -> scores."""
    found = {}
    for score in scores:
        found.setdefault((score.dataset, score.variant, score.seed), []).append(score)
    return found


def first_metric(scores: Iterable[Score], metric: str, split: str = 'dev') -> float | None:
    """The number by which a run is compared with others, at its best checkpoint; None if it has none. For MNLI it is
    the mean of the two dev sets, matched and mismatched, as in table 5 of the paper.

    Args:
      scores: of one run.
      metric: the first one of its data set.
      split: beginning of the names of the splits.
    """
    wanted = dict(metric=metric, subset='', checkpoint='best')
    of_splits = [
        score.value
        for score in scores
        if score.split.startswith(split) and all(getattr(score, name) == value for name, value in wanted.items())
    ]
    return statistics.mean(of_splits) if of_splits else None


def of_mnli(runs: Iterable[Sequence[Score]]) -> str:
    """The end of a sentence on `first_metric`: what it is for those of these runs that are of MNLI; '' if none is.

    runs: the scores of each.
    """
    both = {
        any(score.split == 'dev_mismatched' for score in scores)
        for scores in runs
        if any(score.dataset == 'mnli' for score in scores)
    }
    mean = 'the mean of matched and mismatched'
    words = {(True,): mean, (False,): 'matched', (False, True): f'{mean} where a run has both, else matched'}
    return f'; of MNLI {words[tuple(sorted(both))]}' if both else ''


def paper_key(split: str, metric: str, subset: str) -> str:
    """The key of a score in Dataset.paper: 'accuracy', 'mismatched_accuracy', 'accuracy_middle'."""
    return '_'.join(filter(None, (split.removeprefix('dev').strip('_'), metric, subset)))


def fingerprint(config: dict) -> str:
    """16 hex characters of a config as JSON types."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
