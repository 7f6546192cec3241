"""The whole paper in miniature, run: a printed command alone, and a run that is killed and resumed."""

import contextlib
import io
import json
import pathlib
import random
import re
import subprocess
import sys
import types

import pytest
from etils import epath

import runs
from gpt1_jax import files, main
from gpt1_jax.report import results
from gpt1_jax.tasks import finetune, generate, paper, pretrain, zero_shot
from gpt1_jax.training.checkpoint import Checkpointer
from gpt1_jax.training.metric_writer import MetricWriter
from helpers import ENVIRONMENT, ROOT
from miniature_paper import PARTS, commands, miniature, write_books_and_sets


@pytest.fixture(scope='module', autouse=True)
def _one_device():
    with runs.on_one_device(pretrain, zero_shot, generate, finetune):
        yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = epath.Path(tmp_path_factory.mktemp('paper'))
    write_books_and_sets(folder)
    return folder


@pytest.fixture(scope='module')
def begun(folder):
    """The workdir in which the first parts have run, and what was printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main.run_task(miniature(folder, parts='prepare, pretrain'), str(folder / 'begun'))
    return folder / 'begun', printed.getvalue()


def test_two_parts_run_once(folder, begun):
    workdir, printed = begun
    in_plan_and_before_each = [line for line in printed.splitlines() if line.startswith('  python')]
    assert len(in_plan_and_before_each) == 4 and in_plan_and_before_each[:2] == in_plan_and_before_each[2:]
    stored = results.read(workdir)
    assert {name for name, part in stored.facts['parts'].items() if part['state'] == 'done'} == {'prepare', 'pretrain'}
    assert stored.facts['parts']['pretrain']['seconds'] > 0 and stored.config['parts'] == 'prepare, pretrain'
    times = lambda: {path: path.stat().mtime for path in workdir.glob('pr*/results.json')}
    before = times()
    main.run_task(miniature(folder, parts='prepare,pretrain'), str(workdir))
    assert len(before) == 2 and times() == before


@pytest.mark.slow
def test_a_printed_command_does_the_same(begun, tmp_path):
    workdir, printed = begun
    ((python, *argv),) = commands(printed)['pretrain']
    assert argv[-1] == f'--workdir={workdir}/pretrain'
    environment = ENVIRONMENT | {'XLA_FLAGS': ENVIRONMENT['XLA_FLAGS'].replace('device_count=2', 'device_count=1')}
    argv[-1] = f'--workdir={tmp_path}'
    done = subprocess.run([sys.executable, *argv], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    alone, part = (results.read(epath.Path(path)) for path in (tmp_path, workdir / 'pretrain'))
    assert alone.config == part.config and alone.facts['steps'] == part.facts['steps'] == 10
    assert [score.value for score in alone.scores] == pytest.approx([score.value for score in part.scores], rel=1e-5)
    assert runs.losses(tmp_path) == pytest.approx(runs.losses(workdir / 'pretrain'), rel=1e-5)


class Killed(BaseException):
    """Nothing catches it."""


@pytest.fixture
def kill(monkeypatch):
    """`points` counts the writes: of files that are whole or not there, of metrics, of checkpoints. The one with the
    number `at` kills."""
    kill = types.SimpleNamespace(points=0, at=None)

    def watched(write):
        def counted(*args, **kwargs):
            kill.points += 1
            if kill.points == kill.at:
                raise Killed
            return write(*args, **kwargs)

        return counted

    for owner, name in ((files, 'write_atomically'), (MetricWriter, 'write'), (Checkpointer, 'save')):
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    return kill


def found(workdir):
    """What all runs in a workdir found, by file, without times and speeds."""
    result, folder = {}, pathlib.Path(workdir)
    for path in folder.glob('**/results.json'):
        stored = json.loads(path.read_text())
        del stored['seconds'], stored['sha256']
        stored['facts'].pop('parts', None)  # with seconds
        result[str(path.relative_to(folder))] = stored
    for pattern in ('samples/*/generations.jsonl', '*/zero_shot.json', '*/table.txt'):
        result |= {str(path.relative_to(folder)): path.read_text() for path in folder.glob(pattern)}
    report = folder / 'report' / 'report'
    result['figures'] = re.findall('<svg.*?</svg>', report.with_suffix('.html').read_text(), re.DOTALL)
    return result | {'report': without_times(report.with_suffix('.md').read_text())}


def without_times(page):
    """The lines of a page in Markdown, without the cells of a table's columns `time` and `tokens/s`."""
    lines, timed = [], ()
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.split('|')]
        if {'time', 'tokens/s'} & set(cells):
            timed = [i for i, cell in enumerate(cells) if cell in ('time', 'tokens/s')]
        if len(cells) < 2:
            timed = ()
        lines.append([cell for i, cell in enumerate(cells) if i not in timed])
    return lines


@pytest.mark.rehearsal
def test_a_run_that_is_killed_three_times_ends_with_the_same_report(folder, kill):
    workdir = epath.Path(folder / 'killed')
    config = miniature(folder)
    assert {*paper.run(config, workdir).facts['left_out']} == {'finetune/qqp'}
    whole, points = found(workdir), kill.points
    assert {name.partition('/')[0] for name in whole} == {*PARTS, 'results.json', 'figures'}
    assert points > 100 and whole['figures']
    workdir.rename(folder / 'whole')
    rng = random.Random(1)
    for _ in range(3):
        kill.points, kill.at = 0, rng.randrange(1, points // 3)
        with pytest.raises(Killed):
            paper.run(config, workdir)
    kill.at = None
    paper.run(config, workdir)
    assert found(workdir) == whole
