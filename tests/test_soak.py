"""Faults in small; `python tests/soak.py` is the long run, with the table that the README has."""

import collections
import pathlib
import random
import shutil
import signal

import pytest

import soak
import soak_cases
import soak_damages
import soak_trials


@pytest.fixture(scope='module')
def lane(tmp_path_factory):
    """An uninterrupted run, and a server that starts others."""
    out = tmp_path_factory.mktemp('soak')
    lane = soak.set_up(soak.parse([f'--out={out}', '--cases=pretrain lstm', '--bound=100']), rounds=1)
    yield lane
    lane.server.close()


@pytest.fixture
def folder(lane, tmp_path):
    lane.folder = tmp_path
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize('trial', ['kill', 'stop'])
def test_an_interrupted_run_ends_with_the_bits_of_one_that_was_not(lane, folder, trial):
    rng, case = random.Random(2), lane.cases['pretrain lstm']
    if trial == 'kill':
        soak_trials.kill(lane, rng, case)
    else:
        soak_trials.stop(lane, rng, case, signal.SIGTERM, 'as it works')


@pytest.mark.slow
def test_damaged_files_are_noticed(lane, folder):
    """Some of those that are read in this process, and one bit in each file of arrays."""
    rng, outcomes = random.Random(3), collections.Counter()
    damages = [
        (target, file, how)
        for target in soak_damages.targets(lane)
        for file in (target.names() if target.in_process else ())
        for how in soak_damages.HOW
    ]
    lane.folder = folder
    flips = [one for one in damages if '/d/' in one[1] and one[2] == 'one bit flipped']
    for target, file, how in flips + rng.sample(damages, 20):
        _, outcome = soak_damages.spoil(lane, rng, target, file, how)
        outcomes[outcome] += 1
        shutil.rmtree(folder / target.place)
    assert len(flips) > 10 and min(outcomes[what] for what in ('right', 'an older checkpoint', 'refused')) > 0


def test_a_changed_result_is_noticed(tmp_path):
    """The trials can fail."""
    (tmp_path / 'run').mkdir()
    result = tmp_path / 'run' / 'results.json'
    result.write_text('{"facts": {}, "scores": [0.5], "seconds": 1}')
    expected = soak_cases.contents(tmp_path / 'run')
    result.write_text('{"facts": {}, "scores": [0.5], "seconds": 2}')
    assert soak_cases.differences(tmp_path / 'run', expected) == []
    result.write_text('{"facts": {}, "scores": [0.25], "seconds": 1}')
    (tmp_path / 'run' / 'results.json.tmp').write_text('')
    left, changed = soak_cases.differences(tmp_path / 'run', expected)
    assert left == 'results.json.tmp is left over' and changed.startswith('results.json differs')


def test_the_table():
    records = [
        dict(name='kill 0', row='kill -9, pretrain', outcome='survived', problem=''),
        dict(name='kill 1', row='kill -9, pretrain', outcome='', problem='status 1'),
        dict(name='damage x 0', row='checkpoint: a file emptied', outcome='refused', problem=''),
        dict(name='damage x 1', row='checkpoint: a file emptied', outcome='right', problem=''),
    ]
    assert soak.table(records).splitlines()[2:] == [
        f'| kill -9, pretrain | 2 | 1 | {soak.LOST["kill"]} |',
        '| checkpoint: a file emptied | 2 | 2 | refused 1, right 1 |',
    ]


@pytest.mark.rehearsal
def test_every_fault(tmp_path: pathlib.Path):
    flags = '--kills=8 --signals=8 --removals=4 --damages=1 --disk=8 --pairs=10 --processes=5 --bound=100'
    records = soak.soak(soak.parse([*flags.split(), f'--out={tmp_path}']))
    print(soak.table(records))
    assert [record for record in records if record['problem']] == []
