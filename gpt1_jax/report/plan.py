"""A plan of several runs: the command of each, how far it is, and how long the rest may take."""

import dataclasses
import importlib
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence

from etils import epath
from ml_collections import ConfigDict

from gpt1_jax.config import as_json, compare, is_place
from gpt1_jax.files import exists, read_json
from gpt1_jax.progress import duration
from gpt1_jax.report import results
from gpt1_jax.report.results import Result
from gpt1_jax.report.tables import format_table
from gpt1_jax.training import cost, side_by_side
from gpt1_jax.training.cost import LabelledSet
from gpt1_jax.training.metric_writer import median_speed, read_metrics

# Seconds, measured on CPU cores; a run also compiles its steps, unless another with the same shapes has.
_START, _SAMPLES, _REPORT = 10, 15, 20  # to start a run; for the texts from one checkpoint; for the report
_ONE_CORE = 1.6  # how many times as long a run takes on one core as on two; measured with the quickstart
STEP = 'STEP'  # stands for the checkpoints that do not exist yet


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """An ordinary run of the program.

    Attributes:
      file: the config file that it starts from, with its argument, such as 'pretrain:tiny'.
      config: all of its config.
      workdir: its folder.
    """

    file: str
    config: ConfigDict
    workdir: epath.Path

    def command(self) -> str:
        """The command line that does the same: the config file, the changed keys, the workdir."""
        name, _, argument = self.file.partition(':')
        default = importlib.import_module(f'configs.{name}').get_config(argument)
        file = f'configs/{name}.py' + (f':{argument}' if argument else '')
        changes = [f'--config.{key}={value}' for key, value in _changes(default, self.config)]
        return shlex.join(['python', '-m', 'gpt1_jax.main', f'--config={file}', *changes, f'--workdir={self.workdir}'])

    def result(self) -> Result | None:
        """Its result, if it is finished and was a run of the same config."""
        result = results.read(self.workdir)
        return result if result and not compare(result.config, as_json(self.config)) else None

    def content(self) -> str:
        """A string that identifies its result, wherever it lies; '' if it is not finished."""
        if not (result := self.result()):
            return ''
        scores = [(score.split, score.metric, score.value, score.checkpoint, score.step) for score in result.scores]
        return results.fingerprint({'scores': scores})


def _changes(default, config, prefix='') -> Iterator[tuple[str, object]]:
    """(dotted key, value) where a config differs from the default of its file; tuples as text without single quotes."""
    for name, value in config.items():
        if name not in default:  # no flag can set it
            yield prefix + name, value.to_json() if isinstance(value, ConfigDict) else value
        elif isinstance(value, ConfigDict):
            yield from _changes(default[name], value, f'{prefix}{name}.')
        elif value != default[name]:
            yield prefix + name, str(value).replace("'", '"') if isinstance(value, tuple) else value


@dataclasses.dataclass(frozen=True)
class Part:
    """Runs that belong together, mostly one.

    Attributes:
      name: of the part.
      runs: of the part.
      seconds: estimated time of all of it, from the speed of the machine.
      work: parts with the same word are estimated in the same way, so what has run corrects the estimates of all.
      units: total of its progress, see `progress`: steps of pre-training, checkpoints, or runs.
      together: how many runs of a sweep go on at a time.
      lacks: data sets that it will leave out, each with the reason.
      left_out: why it cannot be run; '' if it can.
      waits_for: a part that will be made again: only its result tells whether the runs that are there still belong to
        it; '' for none.
    """

    name: str
    runs: tuple[PlannedRun, ...]
    seconds: float = 0.0
    work: str = ''
    units: int = 1
    together: int = 1
    lacks: tuple[str, ...] = ()
    left_out: str = ''
    waits_for: str = ''

    def is_done(self) -> bool:
        """Whether all of its runs are finished, and made from the parts that it needs as they are."""
        return not self.waits_for and self.is_there()

    def is_there(self) -> bool:
        """Whether all of its runs are finished."""
        return all(run.result() for run in self.runs)

    def state(self) -> str:
        """'done', 'begun', 'to do' or 'left out'."""
        if self.is_done():
            return 'done'
        if self.left_out:
            return 'left out'
        return 'begun' if any((run.workdir / 'config.json').exists() for run in self.runs) else 'to do'

    def progress(self) -> tuple[float, float | None]:
        """(share of the work that is done; the seconds that this took, None if unknown)

        The share is one of steps in pre-training, of checkpoints in zero-shot scores, of runs in a sweep.
        """
        first, done = self.runs[0], self.is_done()
        if first.config.task == 'pretrain':
            return _steps_done(first, self.units)
        if (first.workdir / 'zero_shot.json').exists() and not done:
            return min(1.0, len(read_json(first.workdir / 'zero_shot.json', list)) / self.units), None
        if (first.workdir / 'runs.json').exists():
            found = _runs_done(first)
            return 1.0 if done else min(1.0, len(found) / self.units), sum(found) / self.together
        return (1.0, sum(run.result().seconds for run in self.runs)) if done else (0.0, None)


def _steps_done(run, steps):
    """Pre-training: (share of the steps that is done; their seconds at the logged speed, None if unknown)."""
    lines = read_metrics(run.workdir)
    done = max((line['step'] for line in lines), default=0.0)
    speed = median_speed(lines)
    tokens = done * run.config.data.batch_size * run.config.model.n_positions
    return min(1.0, done / steps), tokens / speed if speed else None


def _runs_done(run) -> list[float]:
    """Of a sweep: the seconds that each of its finished runs took; not those that an earlier command asked for."""
    entries = read_json(run.workdir / 'runs.json', [results.RUN])
    sets, seeds = datasets(run.config), range(run.config.seed, run.config.seed + run.config.seeds)
    asked_for = [entry['path'] for entry in entries if entry['dataset'] in sets and entry['seed'] in seeds]
    return [result.seconds for path in asked_for if (result := results.read(run.workdir / path))]


def seconds_left(parts: Sequence[Part]) -> dict[str, float]:
    """Part -> seconds that its rest may take: its estimate, corrected by how wrong it was for such work so far."""
    progress = {part.name: part.progress() for part in parts}
    estimated, took = {}, {}
    for part in parts:
        share, seconds = progress[part.name]
        if share and seconds:
            estimated[part.work] = estimated.get(part.work, 0.0) + share * part.seconds
            took[part.work] = took.get(part.work, 0.0) + seconds
    wrong = {work: took[work] / seconds for work, seconds in estimated.items() if seconds}
    return {
        part.name: 0.0 if part.left_out else (1 - progress[part.name][0]) * part.seconds * wrong.get(part.work, 1.0)
        for part in parts
    }


def datasets(config: ConfigDict) -> tuple[str, ...]:
    """The labelled sets that a run asks for."""
    return (config.data.dataset,) if config.task == 'layer_transfer' else config.get('datasets', ())


def estimated(part: Part, pretraining: ConfigDict, steps: int, sets: Mapping[str, LabelledSet], speed: float) -> Part:
    """A part with `seconds`, `work`, `units`, `together`, `lacks` and `left_out`.

    Args:
      pretraining: the config of pre-training the model that it trains, or starts from.
      steps: of that.
      sets: data set -> its sizes.
      speed: of training, FLOP/s.
    """
    one = part.runs[0].config
    if one.task == 'report':
        return dataclasses.replace(part, seconds=_REPORT, work=part.name)
    a_token = cost.flops_per_token(pretraining) / speed
    if one.task == 'pretrain':
        tokens = steps * one.data.batch_size * one.model.n_positions
        return dataclasses.replace(part, seconds=_START + tokens * a_token, work=part.name, units=steps)
    if one.task == 'generate':
        count = len(part.runs) if part.runs[0].workdir.name != STEP else 2 + int(math.log10(steps))
        return dataclasses.replace(part, seconds=_SAMPLES * count, work=part.name)
    layers = pretraining.model.layers
    problems = {name: problem for name in datasets(one) if (problem := _problem(one, name, sets[name], layers))}
    names = [name for name in datasets(one) if name not in problems]
    lacks = tuple(f'{name}: {problem.rstrip(".")}.' for name, problem in problems.items())
    part = dataclasses.replace(part, lacks=lacks, left_out='' if names else ' '.join(lacks))
    if one.task == 'zero_shot':
        count = cost.checkpoints(pretraining.checkpoint, steps)
        tokens = count * sum(cost.zero_shot_tokens(name, sets[name], one.data.limit) for name in names)
        return dataclasses.replace(part, seconds=2 * count + tokens * a_token, work=one.task, units=count)
    shares = _shares(one, layers)
    runs = [(name, share) for name in names for share in shares if not _too_few(one, sets[name], share)]
    tokens = sum(cost.finetuning_tokens(sets[name], one.data, share) for name, share in runs)
    if one.task == 'layer_transfer' and one.rest == 'absent':  # smaller models: in the mean, of so many layers
        small = pretraining.copy_and_resolve_references()
        numbers = sorted(set(one.layers)) or range(layers + 1)
        small.model.layers = max(1, round(sum(numbers) / len(numbers)))
        tokens *= cost.flops_per_token(small) / cost.flops_per_token(pretraining)
    together = side_by_side.number(one.workers, one.seeds * len(runs), lambda: pretraining.model.width)
    seconds = one.seeds * (_START * len(runs) + tokens * a_token) * (_ONE_CORE / together if together > 1 else 1)
    units = max(1, one.seeds * len(runs))
    return dataclasses.replace(part, seconds=seconds, work='fine-tuning', units=units, together=together)


def _problem(part, name, of_set, layers) -> str:
    """Why a part cannot use a data set; '' if it can, as far as is known before it begins."""
    if part.task == 'zero_shot':
        there = 'dev' in of_set.examples and (name != 'cola' or 'train' in of_set.examples)
        return '' if there else of_set.problem
    return of_set.problem or min((_too_few(part, of_set, share) for share in _shares(part, layers)), key=len)


def _too_few(part, of_set, share) -> str:
    data = part.data.copy_and_resolve_references()
    data.share = float(share)
    return cost.too_few(data, of_set.examples['train'])


def _shares(part, layers) -> list[float]:
    """The share of the training examples that each variant of a sweep uses."""
    if part.task == 'layer_transfer':
        return [1.0] * (len(set(part.layers)) or layers + 1)
    studies = {
        'table5': [1.0] * 4,
        'lambda': [1.0] * len(part.get('coefficients', ())),
        'share': 2 * [*part.get('shares', ())],
    }
    return studies[part.study] if part.task == 'ablation' else [1.0]


def format_plan(parts: Sequence[Part], left: dict[str, float]) -> str:
    """A table of the parts, then their commands."""
    states = {part.name: part.state() for part in parts}
    entries = [
        (part.name, states[part.name], duration(left[part.name]) if states[part.name] in ('begun', 'to do') else None)
        for part in parts
    ]
    entries.append(('all', None, duration(sum(left.values()))))
    lines = [format_table([('part', 22, ''), ('state', 10, ''), ('time left, about', 0, '>')], entries)]
    for part in parts:
        if states[part.name] == 'left out':
            lines.append(f'{part.name} is left out: {part.left_out}')
        elif states[part.name] != 'done':
            lines += [f'{part.name} will leave out {of_set}' for of_set in part.lacks]
            if part.waits_for and part.is_there():
                lines.append(f'{part.name} is there, and stays if {part.waits_for} comes out as it was before.')
    for part in parts:
        if states[part.name] != 'left out':
            lines += ['', f'{part.name}:', *(f'  {run.command()}' for run in part.runs)]
    return '\n'.join(lines)


def made_from(folder: epath.Path) -> dict[str, dict[str, dict]]:
    """What the parts were made from, by FOLDER/parts.json: part -> each part that it needs -> {'config': of that one,
    'result': a string that identifies its result, '' if unknown}. {} in a folder of an earlier version."""
    path = folder / 'parts.json'
    form = {str: {str: {'config': dict, 'result': str}}}
    return read_json(path, form, 'Delete it: then the parts count as made from what is there.') if exists(path) else {}


def difference(before: dict, now: dict) -> str | None:
    """How a part that another one needs (as in `made_from`) has changed: the keys that differ, in words; '' if only the
    result differs; None if it is the same, as far as is known. Its place does not matter."""
    pairs = compare(before['config'], now['config']) if before['config'] and now['config'] else {}
    words = '; '.join(f'{key}: {old!r} there, {new!r} now' for key, (old, new) in pairs.items() if not is_place(key))
    is_other = before['result'] and now['result'] and before['result'] != now['result']
    return f' ({words})' if words else '' if is_other else None
