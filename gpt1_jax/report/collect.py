"""The runs below a folder, with all that the report reads of them; what is damaged is named and left out."""

import dataclasses
import functools
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from etils import epath

from gpt1_jax.array_files import load_npz
from gpt1_jax.errors import UserError
from gpt1_jax.files import check_form, is_local, parse_json, read_json
from gpt1_jax.report import results
from gpt1_jax.report.results import Result
from gpt1_jax.training.metric_writer import read_metrics

# Folders of a workdir that hold no runs and may hold very many files; and tasks that only start or show other runs.
_NO_RUNS = ('checkpoints', 'compiled', 'tensorboard')
_NOT_SHOWN = ('paper', 'report')
_COPY = 'Put a copy back.'
_NUMBER = (int, type(None))
_RUN = {'dataset': str, 'variant': str, 'seed': int, 'path': str}
_RESULT = {
    'model': (
        {'kind': str, 'sizes': {'layers': int, 'width': int}, 'parameters': int, 'tokens_seen': _NUMBER},
        type(None),
    ),
    'versions': dict,
    'device': ({'kind': str, 'count': int}, type(None)),
}
_COUNTS = ({str: int}, type(None))
_SETBACKS = {'skipped_steps': _NUMBER, 'rollbacks': ([{'step': int, 'batches': [int]}], type(None))}
# Of the facts of a task, where it has them.
_FACTS = {
    'finetune': {
        **dict.fromkeys(('train_examples', 'dev_examples', 'cut_sequences'), _NUMBER),
        **{'dev_constant': (float, type(None)), **_SETBACKS},
    },
    'pretrain': {'tokens': _NUMBER, 'flops': (float, type(None)), **_SETBACKS},
    'prepare': {'documents': _COUNTS, 'tokens': _COUNTS, 'vocab_size': _NUMBER},
    'zero_shot': {'checkpoints': ([{'step': _NUMBER, 'tokens_seen': _NUMBER}], type(None)), 'cut': _COUNTS},
}
# Of a config, where it has them.
_SETTINGS = {
    **dict.fromkeys(('seed', 'n_transfer', 'data.batch_size', 'data.limit', 'model.n_positions'), _NUMBER),
    **dict.fromkeys(('model.layers', 'model.width', 'model.units'), _NUMBER),
    **dict.fromkeys(('init_from', 'data.source', 'data.dataset', 'model.kind', 'study', 'rest'), (str, type(None))),
    'data.share': (float, type(None)),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One workdir.

    Attributes:
      name: its path from the folder of all runs; '.' for that folder.
      folder: its path.
      config: of the run, as JSON types; {} if it is damaged.
      result: what it found; None before it has ended.
      versions, device: of results.json; {} before.
      plan: of a sweep, runs.json: the runs that it is made of, finished or not, [{'dataset', 'variant', 'seed',
        'path'}]; else ().
      metrics: the lines of metrics.jsonl.
      dev: 'labels' [n], 'logits' [n, c], perhaps 'subsets' [n], of the best checkpoint; {} where it has none.
      errors: the lines of dev_errors.jsonl. generations: those of generations.jsonl.
      vocabulary: the fingerprint of its tokenizer; '' where unknown.
      damage: what of it cannot be read, one sentence each.
    """

    name: str
    folder: epath.Path
    config: dict
    result: Result | None = None
    versions: dict = dataclasses.field(default_factory=dict)
    device: dict = dataclasses.field(default_factory=dict)
    plan: tuple[dict, ...] = ()
    metrics: tuple[dict, ...] = ()
    dev: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    errors: tuple[dict, ...] = ()
    generations: tuple[dict, ...] = ()
    vocabulary: str = ''
    damage: tuple[str, ...] = ()

    @functools.cached_property
    def real(self) -> str:
        """`real_path` of its folder, which takes a call of the system for each folder above."""
        return real_path(self.folder)

    @property
    def label(self) -> str:
        """Its name for readers."""
        return posixpath.basename(self.real) if self.name == '.' else self.name

    @property
    def task(self) -> str:
        """Its task; '' where the config is damaged."""
        return self.config.get('task', '')

    @property
    def state(self) -> str:
        """'finished', 'unfinished' or 'damaged'."""
        return 'damaged' if self.damage else 'finished' if self.result else 'unfinished'

    @property
    def facts(self) -> dict:
        """Of the result; {} before it has ended."""
        return self.result.facts if self.result else {}

    @property
    def model(self) -> dict:
        """Of the result; {} where there is none."""
        return (self.result.model if self.result else None) or {}

    @property
    def device_words(self) -> str:
        """What it ran on; '' where unknown."""
        return f'{self.device["count"]} x {self.device["kind"]}' if self.device else ''

    @property
    def model_words(self) -> str:
        """Kind, sizes and parameters of its model: of the result, or else as the config says; '' for none."""
        sizes = self.model.get('sizes') or {
            name: value for name in ('layers', 'width', 'units') if (value := self.setting(f'model.{name}'))
        }
        kind = self.model.get('kind') or self.setting('model.kind')
        if not kind or not sizes:
            return ''
        words = [kind, f'{sizes["layers"]} layer{"s" * (sizes["layers"] != 1)}', f'{sizes["width"]} wide']
        if 'units' in sizes:
            words.append(f'{sizes["units"]} units')
        if 'parameters' in self.model:
            words.append(f'{self.model["parameters"] / 1e6:.3g} M parameters')
        return ', '.join(words)

    def setting(self, key: str, default: Any = None) -> Any:
        """The value of a dotted key of its config; `default` where it has none."""
        value = _setting(self.config, key)
        return default if value is None else value


@dataclasses.dataclass(frozen=True)
class Line:
    """The fine-tuning runs of one data set and variant of a sweep, one a seed; or one run that is of no sweep.

    Attributes:
      owner: the sweep, or the run.
      runs: that are there, finished or not. planned: how many there are to be.
    """

    owner: Run
    dataset: str
    variant: str
    runs: tuple[Run, ...]
    planned: int

    @property
    def finished(self) -> tuple[Run, ...]:
        """Those that have a result."""
        return tuple(run for run in self.runs if run.result)

    @property
    def label(self) -> str:
        """Its name for readers, without the data set."""
        return f'{self.owner.label}: {self.variant}' if self.variant else self.owner.label


def collect(folder: epath.Path) -> list[Run]:
    """All runs in a folder and below, by name. Raises UserError if there is none."""
    if not folder.is_dir():
        raise UserError(f'runs: {folder} is no folder. Name the one that holds the workdirs, --config.runs=DIR.')
    runs = [_read_run(path, str(path.relative_to(folder))) for path in _workdirs(folder, set())]
    runs = [run for run in runs if run.task not in _NOT_SHOWN]
    if not runs:
        raise UserError(
            f'runs: {folder} holds no runs, because no folder there has a config.json. Name the one that holds the '
            'workdirs, --config.runs=DIR.'
        )
    return sorted(runs, key=lambda run: natural(run.name))


def natural(text: str) -> list:
    """A key that sorts numbers in texts by value: layers2 before layers10, lambda0.25 before lambda0.5."""
    parts = re.split(r'(\d+(?:\.\d+)?)', text)
    return [(float(part), '') if i % 2 else (-1.0, part) for i, part in enumerate(parts)]


def lines(runs: list[Run]) -> list[Line]:
    """The fine-tuning runs, joined over seeds: those of each sweep in the order of its plan, then the others."""
    by_name, found, owned = {run.name: run for run in runs}, [], set()
    for sweep in runs:
        paths = {}
        for entry in sweep.plan:
            paths.setdefault((entry['dataset'], entry['variant']), []).append(
                posixpath.normpath(f'{sweep.name}/{entry["path"]}')
            )
        for (dataset, variant), names in paths.items():
            owned.update(names)
            there = tuple(by_name[name] for name in names if name in by_name)
            found.append(Line(sweep, dataset, variant, there, len(names)))
    alone = [run for run in runs if run.task == 'finetune' and run.name not in owned]
    return found + [Line(run, run.setting('data.dataset', ''), '', (run,), 1) for run in alone]


def real_path(path: epath.Path) -> str:
    """The whole path without links, where it is on this machine; epath's `resolve` keeps them."""
    return os.path.realpath(path) if is_local(path) else str(path)


def split_step(init_from: str) -> tuple[str, str]:
    """'RUN@10' -> ('RUN', '10'); 'RUN@all' -> ('RUN', 'all'); 'RUN' -> ('RUN', '')."""
    match = re.fullmatch(r'(.*?)(?:@(\d+|all))?', init_from)
    return match[1].rstrip('/'), match[2] or ''


def origin(run: Run, runs: list[Run]) -> Run | None:
    """The run whose model another one reads, `init_from`, if it is one of `runs`; also when all were moved together."""
    path, _ = split_step(run.setting('init_from', ''))
    if not path or '\0' in path:
        return None
    there = epath.Path(re.sub('^(openai|hf):(?=gs://)', '', path)).expanduser()  # else epath takes it for a store
    real = real_path(there)
    found = [other for other in runs if other.real == real]
    if not found and not there.exists():
        found = [other for other in runs if f'/{path}'.endswith(f'/{other.name}')]
    return max(found, key=lambda other: len(other.name), default=None)


def model_name(run: Run, runs: list[Run]) -> str:
    """The name for readers of what a run's `init_from` names, without the folders above it; '' for nothing."""
    found = origin(run, runs)
    return found.label if found else split_step(run.setting('init_from', ''))[0].rpartition('/')[2]


def _workdirs(folder: epath.Path, above: set) -> Iterator[epath.Path]:
    """Folders with a config.json or results.json. above: the real paths of those above, so that no link runs round."""
    real = real_path(folder)
    if real in above:
        return
    children = sorted(folder.iterdir())
    if {'config.json', 'results.json'} & {child.name for child in children}:
        yield folder
    for child in children:
        if child.name not in _NO_RUNS and child.is_dir():
            yield from _workdirs(child, above | {real})


def _read_run(folder, name) -> Run:
    damage = []

    def attempt(file: str, read: Callable, empty):
        """What `read` makes of a file, `empty` where the file is missing or damaged."""
        try:
            return read(folder / file) if (folder / file).exists() else empty
        except (UserError, OSError, ValueError, KeyError, TypeError) as error:
            known = isinstance(error, UserError)
            reason = str(error).removeprefix(f'{folder / file}: ') if known else f'The file is damaged ({error!r}).'
            damage.append(f'{file}: {reason}')
            return empty

    result, versions, device = attempt('results.json', _read_result, (None, {}, {}))
    return Run(
        name,
        folder,
        attempt('config.json', _read_config, {}) or (result.config if result else {}),
        result,
        versions,
        device,
        attempt('runs.json', _read_plan, ()),
        attempt('metrics.jsonl', _read_metrics, ()),
        attempt('dev.npz', _read_dev, {}),
        attempt('dev_errors.jsonl', lambda path: _read_lines(path, {'index': int, 'texts': list}), ()),
        attempt('generations.jsonl', lambda path: _read_lines(path, {'prompt': str, 'text': str}), ()),
        attempt('tokenizer/tokenizer.json', lambda path: str(read_json(path, dict, _COPY).get('fingerprint', '')), ''),
        tuple(damage),
    )


def _setting(config, key):
    for name in key.split('.'):
        config = config.get(name) if isinstance(config, dict) else None
    return config


def _read_config(path):
    config = read_json(path, dict, _COPY)
    if not isinstance(config.get('task'), str):
        raise UserError(f'{path}: It names no task.')
    check_form(path, {key: _setting(config, key) for key in _SETTINGS}, _SETTINGS, _COPY)
    return config


def _read_result(path):
    stored = read_json(path)
    result = results.from_json(path, stored)
    if result is None:
        raise UserError(f'{path}: It is of another version of the program.')
    check_form(path, stored, _RESULT, _COPY)
    for score in result.scores:
        if score.examples < 1 or (score.metric == 'accuracy' and not 0 <= score.value <= 1):
            raise UserError(f'{path}: A score of {score.dataset} is not possible.')
    if result.task == 'zero_shot' and not result.scores:
        raise UserError(f'{path}: It has no scores.')
    facts = {'left_out': ({str: str}, type(None)), **_FACTS.get(result.task, {})}
    check_form(path, {name: result.facts.get(name) for name in facts}, facts, _COPY)
    if 'rollbacks' in facts and any(len(one['batches']) != 2 for one in result.facts.get('rollbacks') or ()):
        raise UserError(f'{path}: The batches of a rollback are not possible.')
    return result, stored['versions'], stored['device'] or {}


def _read_plan(path):
    return tuple({key: entry[key] for key in _RUN} for entry in read_json(path, [_RUN], _COPY))


def _read_metrics(path):
    lines = tuple(read_metrics(path.parent))
    if not all('step' in line for line in lines):
        raise UserError(f'{path}: A line has no step.')
    return lines


def _read_lines(path, form):
    """The objects of a .jsonl file. The last line may be cut short: the run was killed, or goes on."""
    texts, objects = path.read_text().split('\n'), []
    for number, text in enumerate(texts, 1):
        if not text:
            continue
        try:
            line = parse_json(text)
            check_form(path, line, form, _COPY)
        except (ValueError, UserError):
            if number == len(texts):
                break
            raise UserError(f'{path}: Line {number} is damaged.') from None
        objects.append(line)
    return tuple(objects)


def _read_dev(path):
    dev = load_npz(path.read_bytes())
    if dev['labels'].ndim != 1 or dev['logits'].ndim != 2 or len(dev['labels']) != len(dev['logits']):
        raise UserError(f'{path}: Labels and logits do not fit each other.')
    if not np.isfinite(dev['logits']).all():
        raise UserError(f'{path}: The logits are not finite.')
    return dev
