"""The runs below a folder, with all that the report reads of them; damaged files are named and left out."""

import collections
import dataclasses
import functools
import os
import pathlib
import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from gpt1_jax.errors import UserError
from gpt1_jax.files import is_local, read_json
from gpt1_jax.report import reading
from gpt1_jax.report.results import Result

# Folders of a workdir that hold no runs and may hold very many files; and tasks that only start or show other runs.
_NO_RUNS = ('checkpoints', 'compiled', 'tensorboard')
_NOT_SHOWN = ('paper', 'report')
_SWEEPS = ('sweep', 'ablation', 'layer_transfer', 'quickstart')  # tasks that consist of runs in their folders

_VALUE = r'\d+(\.\d+)?(e[+-]\d+)?'
_VARIED = {'lambda': f'lambda{_VALUE}', 'share': f'share{_VALUE}(_scratch)?'}  # studies of a value -> variants' names


@dataclasses.dataclass(frozen=True)
class Run:
    """One workdir.

    Attributes:
      name: its path from the folder of all runs; '.' for that folder.
      folder: its path.
      config: of the run, as JSON types; that of its result if it has one; {} if it is damaged.
      result: of the run; None before it has ended.
      versions, device: of results.json; {} before it has ended.
      plan: of a sweep, runs.json: the runs that it is made of, finished or not, [{'dataset', 'variant', 'seed',
        'path'}]; else ().
      metrics: the lines of metrics.jsonl.
      dev: 'labels' [n], 'logits' [n, c], perhaps 'subsets' [n], of the best checkpoint; {} if it has none.
      errors: the lines of dev_errors.jsonl.
      generations: the lines of generations.jsonl.
      vocabulary: the fingerprint of its tokenizer; '' if unknown.
      damage: a sentence for each file that cannot be read.
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
        """`real_path` of its folder. Cached, because it takes a system call for each folder above."""
        return real_path(self.folder)

    @property
    def label(self) -> str:
        """Its name for readers."""
        return posixpath.basename(self.real) if self.name == '.' else self.name

    @property
    def task(self) -> str:
        """Its task; '' if the config is damaged."""
        return self.config.get('task', '')

    @property
    def state(self) -> str:
        """'finished', 'unfinished' or 'damaged'."""
        return 'damaged' if self.damage else 'finished' if self.result else 'unfinished'

    @property
    def facts(self) -> dict:
        """The facts of the result; {} before it has ended."""
        return self.result.facts if self.result else {}

    @property
    def model(self) -> dict:
        """The model of the result; {} if there is none."""
        return (self.result.model if self.result else None) or {}

    @property
    def device_words(self) -> str:
        """What it ran on; '' if unknown."""
        return f'{self.device["count"]} x {self.device["kind"]}' if self.device else ''

    @property
    def model_words(self) -> str:
        """Kind, sizes and parameters of its model, from the result or else from the config; '' for none."""
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
        """The value of a dotted key of its config; `default` if it has none."""
        value = reading.setting(self.config, key)
        return default if value is None else value


@dataclasses.dataclass(frozen=True)
class Line:
    """The fine-tuning runs of one data set and variant of a sweep, one per seed; or one run outside of any sweep.

    Attributes:
      owner: the sweep, or the run.
      runs: those that are there, finished or not.
      planned: how many there will be.
    """

    owner: Run
    dataset: str
    variant: str
    runs: tuple[Run, ...]
    planned: int

    @property
    def finished(self) -> tuple[Run, ...]:
        """The runs that have a result."""
        return tuple(run for run in self.runs if run.result)

    @property
    def label(self) -> str:
        """Its name for readers, without the data set."""
        return f'{self.owner.label}: {self.variant}' if self.variant else self.owner.label

    @property
    def study(self) -> str:
        """'lambda', 'share' or 'table5' for an ablation, by its variant: a folder may have runs of several studies, and
        its config is of the last one. '' for other tasks."""
        if self.owner.task != 'ablation':
            return ''
        return next((name for name, form in _VARIED.items() if re.fullmatch(form, self.variant)), 'table5')


def collect(folder: epath.Path) -> list[Run]:
    """All runs in a folder and below, by name. Raises UserError if there is none."""
    if not folder.is_dir():
        raise UserError(f'runs: {folder} is not a folder. Name the one that holds the workdirs, --config.runs=DIR.')
    runs = [
        Run(str(path.relative_to(folder)), path, **({'config': {}, 'damage': (why,)} if why else reading.read(path)))
        for path, why in _workdirs(folder)
    ]
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
    """The fine-tuning runs, joined over seeds: those of each sweep in the order of its plan, then the others.

    A run in the folder of a sweep that does not list it, as after a command with fewer seeds, belongs to it if its path
    is NAME[/VARIANT]/seedN; else it is in no line.
    """
    sweeps = {run.name: run for run in runs if run.plan or run.task in _SWEEPS}
    places, alone = {}, []  # (name of the sweep, data set, variant) -> places, as keys
    for sweep in sweeps.values():
        for entry in sweep.plan:
            of = places.setdefault((sweep.name, entry['dataset'], entry['variant']), {})
            of[real_path(sweep.folder / entry['path'])] = None
    listed = {place for of in places.values() for place in of}
    for run in runs:
        if run.task != 'finetune' or run.real in listed:
            continue
        dataset = run.setting('data.dataset', '')
        path = pathlib.PurePosixPath(run.name)
        above = next((above for above in path.parents if str(above) in sweeps), None)
        if above is None:
            alone.append(Line(run, dataset, '', (run,), 1))
        elif match := re.fullmatch(rf'{re.escape(dataset)}(?:/([^/]+))?/seed\d+', str(path.relative_to(above))):
            places.setdefault((str(above), dataset, match[1] or ''), {})[run.real] = None
    by_place = {run.real: run for run in runs}
    return [
        Line(sweeps[name], dataset, variant, tuple(by_place[place] for place in of if place in by_place), len(of))
        for (name, dataset, variant), of in places.items()
    ] + alone


def real_path(path: epath.Path) -> str:
    """The absolute path; without links if it is on this machine (epath's `resolve` keeps them)."""
    return os.path.realpath(path) if is_local(path) and '\0' not in str(path) else str(path)


def split_step(init_from: str) -> tuple[str, str]:
    """'RUN@10' -> ('RUN', '10'); 'RUN@all' -> ('RUN', 'all'); 'RUN' -> ('RUN', '')."""
    match = re.fullmatch(r'(.*?)(?:@(\d+|all))?', init_from)
    return match[1].rstrip('/'), match[2] or ''


def origin(run: Run, runs: list[Run]) -> Run | None:
    """The run of `runs` whose model a run starts from (`init_from`), or None; also if all were moved together."""
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
    """The name, for readers, of the model that a run starts from, without the folders above it; '' for none."""
    found = origin(run, runs)
    return found.label if found else split_step(run.setting('init_from', ''))[0].rpartition('/')[2]


def _workdirs(folder: epath.Path) -> Iterator[tuple[epath.Path, str]]:
    """(folder, '') of folders with a run's config.json or results.json, and (folder, why) of those that cannot be read;
    each once: links are followed last, and not to a folder that was seen."""
    waiting, seen = collections.deque([folder]), set()
    while waiting:
        path = waiting.popleft()
        if (real := real_path(path)) in seen:
            continue
        seen.add(real)
        try:
            children = sorted(path.iterdir())
            names = {child.name for child in children}
            is_run = 'results.json' in names or ('config.json' in names and not _is_export(path))
            folders = [child for child in children if not (is_run and child.name in _NO_RUNS) and child.is_dir()]
        except OSError as error:
            yield path, f'The folder cannot be read ({error.strerror}).'
            continue
        if is_run:
            yield path, ''
        for child in folders:
            linked = is_local(child) and os.path.islink(child)
            waiting.append(child) if linked else waiting.appendleft(child)


def _is_export(path):
    """Whether the config.json of a folder is that of a Hugging Face model, as the task `convert` writes it."""
    try:
        return 'model_type' in read_json(path / 'config.json', dict)
    except (UserError, OSError):  # which is said where the run is read
        return False


def other_vocabularies(vocabularies: Sequence[str]) -> str:
    """A sentence if the models do not share a vocabulary, or are not known to; '' if they do.

    vocabularies: of each model; '' if unknown.
    """
    if len(vocabularies) < 2 or (len(set(vocabularies)) == 1 and vocabularies[0]):
        return ''
    if len(set(vocabularies) - {''}) > 1:
        return ' The vocabularies differ: these models differ by that too.'
    return ' Not all vocabularies are known to be the same: these models may differ by that too.'
