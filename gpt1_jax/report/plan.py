"""Several runs as one plan: the command of each, how far it is, and how long the rest may take."""

import dataclasses
import importlib
import shlex
from collections.abc import Iterator, Sequence

from etils import epath
from ml_collections import ConfigDict

from gpt1_jax.config import as_json, compare
from gpt1_jax.files import read_json
from gpt1_jax.progress import duration
from gpt1_jax.report import results
from gpt1_jax.report.results import Result
from gpt1_jax.report.tables import format_table
from gpt1_jax.training.metric_writer import median_speed, read_metrics


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
        """The command line that does the same: the config file, what is changed in it, the workdir."""
        name, _, argument = self.file.partition(':')
        default = importlib.import_module(f'configs.{name}').get_config(argument)
        file = f'configs/{name}.py' + (f':{argument}' if argument else '')
        changes = [f'--config.{key}={value}' for key, value in _changes(default, self.config)]
        return shlex.join(['python', '-m', 'gpt1_jax.main', f'--config={file}', *changes, f'--workdir={self.workdir}'])

    def result(self) -> Result | None:
        """What it found, if it is finished and was a run of the same config."""
        result = results.read(self.workdir)
        return result if result and not compare(result.config, as_json(self.config)) else None


def _changes(default, config, prefix='') -> Iterator[tuple[str, object]]:
    """Dotted key, value: where a config differs from the default of its file. Tuples as text that a shell likes."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _changes(default[name], value, f'{prefix}{name}.')
        elif value != default[name]:
            yield prefix + name, str(value).replace("'", '"') if isinstance(value, tuple) else value


@dataclasses.dataclass(frozen=True)
class Part:
    """Runs that belong together, mostly one.

    Attributes:
      name: of the part.
      runs: those of it.
      seconds: that all of it takes, estimated from the speed of the machine. work: parts with the same word are
        estimated alike, and so corrected alike by what has run.
      units: into how many pieces its progress is counted, see `progress`: steps of pre-training, checkpoints.
      together: how many runs of a sweep there are at a time.
      lacks: data sets that it will leave out, each with why.
      left_out: why it cannot be run; '' if it can.
    """

    name: str
    runs: tuple[PlannedRun, ...]
    seconds: float = 0.0
    work: str = ''
    units: int = 1
    together: int = 1
    lacks: tuple[str, ...] = ()
    left_out: str = ''

    def is_done(self) -> bool:
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
        """(share of the work that is done, the seconds that this took, or None if that is unknown)

        Of pre-training it is the share of the steps, of zero-shot scores that of the checkpoints, of a sweep that of
        its runs.
        """
        first, done = self.runs[0], self.is_done()
        if first.config.task == 'pretrain':
            return _steps_done(first, self.units)
        if (first.workdir / 'zero_shot.json').exists() and not done:
            return min(1.0, len(read_json(first.workdir / 'zero_shot.json', list)) / self.units), None
        if (first.workdir / 'runs.json').exists():
            entries = read_json(first.workdir / 'runs.json', [{'path': str}])
            found = [result for entry in entries if (result := results.read(first.workdir / entry['path']))]
            return 1.0 if done else len(found) / len(entries), sum(result.seconds for result in found) / self.together
        return (1.0, sum(run.result().seconds for run in self.runs)) if done else (0.0, None)


def _steps_done(run, steps):
    """Of pre-training: (their share, the seconds that they took at the speed that is logged)."""
    lines = read_metrics(run.workdir)
    done = max((line['step'] for line in lines), default=0.0)
    speed = median_speed(lines)
    tokens = done * run.config.data.batch_size * run.config.model.n_positions
    return min(1.0, done / steps), tokens / speed if speed else None


def seconds_left(parts: Sequence[Part]) -> dict[str, float]:
    """Part -> seconds that its rest may take: its estimate, times how wrong that was for like work that is done."""
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
    for part in parts:
        if states[part.name] != 'left out':
            lines += ['', f'{part.name}:', *(f'  {run.command()}' for run in part.runs)]
    return '\n'.join(lines)
