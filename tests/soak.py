"""What becomes of a run when a machine or a user does its worst: kills, signals, damaged files, full disks, two runs in
one workdir, processes that are lost.

    python tests/soak.py --kills=100 --signals=40 --tasks=2 --removals=10 --damages=1 --disk=24 --pairs=20 \
        --processes=15 --lanes=3 --out=/dev/shm/soak

Prints each run that does not survive, and at the end a table. All is drawn from --seed. What is finished is kept in
OUT/trials.jsonl and not tried again; OUT/failed has the workdirs and logs of what did not survive. About half an hour
on 2 cores, and a few hundred MB; some faults need root (disks and hosts of their own), and are left out without.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import queue
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable

if __name__ == '__main__':
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
    os.environ.setdefault('XLA_FLAGS', '')
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # what it starts would ignore it too, as under nohup

import soak_cases
import soak_damages
import soak_trials
from fork_server import Server
from soak_trials import Lane, Problem

LOST = {  # row of the table: what is lost by those that survive
    'kill': 'the work since the last save, which is done again',
    'stop': 'nothing',
    'task': 'nothing that takes long',
    'remove': 'what was deleted: the run says so, and begins again',
    'fill': 'nothing: the run says so, and continues when there is room',
    'pair': 'nothing: the second run names the first',
    'lose': 'the work since the last save, which is done again',
}


@dataclasses.dataclass(frozen=True)
class Trial:
    """name: what it is drawn from, with the seed. row: of the table. run: (lane, rng) -> words, or (words, outcome)."""

    name: str
    row: str
    run: Callable


def trials(arguments: argparse.Namespace, lane: Lane) -> list[Trial]:
    """All that is asked for."""
    found, root = [], os.geteuid() == 0
    cases = [case for case in lane.cases.values() if ' ' in case.name]

    def add(name, row, function, values):
        found.append(Trial(name, row.format(*values), lambda lane, rng: function(lane, rng, *values)))

    def add_in_turn(kind, number, row, function, choices):
        for i in range(number if choices else 0):
            add(f'{kind} {i}', row, function, choices[i % len(choices)])

    each = [(case,) for case in cases]
    add_in_turn('kill', arguments.kills, 'kill -9, {0.task}', soak_trials.kill, each)
    signals = [signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1]
    rng, phases = random.Random(arguments.seed), ['as it works'] * 3 + ['as it starts']
    stops = [(cases[i % len(cases)], rng.choice(signals), rng.choice(phases)) for i in range(arguments.signals)]
    add_in_turn('stop', len(stops), 'SIGTERM, SIGINT, SIGHUP or SIGUSR1, {2}', soak_trials.stop, stops)
    for case in lane.cases.values():
        for i in range(arguments.tasks):
            words = case, rng.choice(signals), 'as it works'
            add(f'task {case.name} {i}', 'SIGTERM, SIGINT, SIGHUP or SIGUSR1, in each task', soak_trials.stop, words)
    add_in_turn('remove', arguments.removals, 'workdir deleted or renamed', soak_trials.remove, each)
    add_in_turn('fill', arguments.disk * root, 'disk full, {0.task}', soak_trials.fill, each)
    pairs = [(case, f'{case.task} twice in one workdir') for case in cases]
    pairs += [(case, 'prepare twice for one data.output') for case in cases if case.task == 'prepare']
    add_in_turn('pair', arguments.pairs, '{1}', soak_trials.pair, pairs)
    losses = [
        (case, processes, fault, victim)
        for processes, victim in ((2, 1), (2, 0), (4, 2))
        for fault in ('killed', 'stopped', 'cut off', 'SIGTERM', 'SIGINT')
        for case in cases
        if case.task == 'pretrain' and (root or fault != 'cut off')
    ]
    add_in_turn(
        'lose', arguments.processes, 'one of 2 or 4 processes: {2}', soak_trials.lose, losses[::2] + losses[1::2]
    )
    for target in soak_damages.targets(lane) if arguments.damages else ():
        for file in target.names():
            for how in soak_damages.HOW:
                many = target.in_process and how in ('truncated', 'one bit flipped')
                for i in range(arguments.damages if many else 1):
                    add(
                        f'damage {target.name} {file} {how} {i}',
                        '{0.group}: a file truncated, emptied, deleted, or one bit flipped',
                        soak_damages.spoil,
                        (target, file, how),
                    )
    return found


def set_up(arguments: argparse.Namespace, rounds: int = 2) -> Lane:
    """The first lane, with the uninterrupted runs, which are made if they are not there yet.

    rounds: how often each is run; the second time it has its compiled steps, and its time is that of the trials.
    """
    out = arguments.out.resolve()
    data, reference = out / 'data', out / 'reference'
    environment = os.environ | soak_cases.SERVER | {'JAX_COMPILATION_CACHE_DIR': str(out / 'compiled')}
    known = json.loads((out / 'known.json').read_text()) if (out / 'known.json').exists() else {}
    if not known:
        shutil.rmtree(data, ignore_errors=True)
        soak_cases.write_data(data)
        known = {'seconds': {}, 'operations': {}}
    cases = soak_cases.cases(data) | (soak_cases.others(data) if arguments.tasks else {})
    cases = {name: case for name, case in cases.items() if arguments.cases in name}
    lane = Lane(Server(environment), environment, reference, cases, {}, **known, bound=arguments.bound)
    for name, case in cases.items():
        lane.folder = reference / name
        if name not in known['seconds']:
            for _ in range(rounds):
                shutil.rmtree(lane.folder, ignore_errors=True)
                lane.folder.mkdir(parents=True)
                started, begun = lane.start(case, folder=str(lane.folder / 'run'), number=0), time.monotonic()
                status = soak_trials.ended(started, soak_trials.LIMIT, name)
                soak_trials.require(status == 0, f'{name}: {started.printed()[1][-500:]}')
                known['seconds'][name] = round(time.monotonic() - begun, 2)
            known['operations'][name] = int((lane.folder / 'log.count').read_text())
            if model := {'pretrain': 'lm', 'finetune': 'tuned'}.get(case.task):
                shutil.copytree(lane.folder / 'run', data / f'{model}-{name.split()[1]}', dirs_exist_ok=True)
            print(f'{name}: {known["seconds"][name]} s, {known["operations"][name]} file operations', flush=True)
        lane.expected[name] = soak_cases.contents(lane.folder / 'run')
    for name, case in cases.items():
        for processes in (2, 4) if arguments.processes and case.task == 'pretrain' else ():
            full = f'{name} with {processes} processes'
            lane.folder = reference / full
            if full not in known['seconds']:
                shutil.rmtree(lane.folder, ignore_errors=True)
                lane.folder.mkdir(parents=True)
                begun = time.monotonic()
                started = soak_trials.start_all(lane, case, processes, None)
                for one in started:
                    status = soak_trials.ended(one, soak_trials.LIMIT, full)
                    soak_trials.require(status == 0, f'{full}: {one.printed()[1][-500:]}')
                known['seconds'][full] = round(time.monotonic() - begun, 2)
                print(f'{full}: {known["seconds"][full]} s', flush=True)
            lane.expected[full] = soak_cases.contents(lane.folder / 'run')
    (out / 'known.json').write_text(json.dumps(known))
    return lane


def tried(trial: Trial, lane: Lane, out: pathlib.Path, seed: int) -> dict:
    """Runs a trial in a folder of its own, and returns its record."""
    rng, begun = random.Random(f'{seed} {trial.name}'), time.monotonic()
    folder = lane.folder = out / 'trials' / trial.name.replace('/', '_').replace(' ', '_')
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    record = {'name': trial.name, 'row': trial.row, 'words': '', 'outcome': '', 'problem': ''}
    try:
        told = trial.run(lane, rng)
        record['words'], record['outcome'] = (told, 'survived') if isinstance(told, str) else told
    except Problem as problem:
        record['problem'] = str(problem)
    except Exception:  # of the trial itself
        record['problem'] = traceback.format_exc()
    if record['problem']:
        (out / 'failed').mkdir(exist_ok=True)
        shutil.rmtree(out / 'failed' / folder.name, ignore_errors=True)
        folder.rename(out / 'failed' / folder.name)
    shutil.rmtree(folder, ignore_errors=True)
    return record | {'seconds': round(time.monotonic() - begun, 2), 'longest': round(lane.longest, 2)}


def table(records: list[dict]) -> str:
    """In Markdown: fault, times tried, times survived, what was lost."""
    rows = collections.defaultdict(list)
    for record in records:
        rows[record['row']].append(record)
    lines = ['| fault | tried | survived | what was lost |', '|---|---|---|---|']
    for row, of in rows.items():
        outcomes = collections.Counter(record['outcome'] for record in of if not record['problem'])
        lost = LOST.get(of[0]['name'].split()[0], '')
        if not lost:
            lost = ', '.join(f'{outcome} {count}' for outcome, count in outcomes.most_common())
        lines.append(f'| {row} | {len(of)} | {outcomes.total()} | {lost} |')
    return '\n'.join(lines)


def soak(arguments: argparse.Namespace) -> list[dict]:
    """The records of all trials, also of an earlier run in the same folder."""
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    path = out / 'trials.jsonl'
    first = set_up(arguments)
    wanted = trials(arguments, first)
    if arguments.only:
        wanted = [trial for trial in wanted if arguments.only in trial.name]
    print(f'{len(wanted)} trials: {dict(collections.Counter(trial.name.split()[0] for trial in wanted))}', flush=True)
    names = {trial.name for trial in wanted}
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    records = [record for record in records if record['name'] in names]
    done = {record['name'] for record in records}
    todo = queue.SimpleQueue()
    left = [trial for trial in wanted if trial.name not in done]
    random.Random(arguments.seed).shuffle(left)  # so that what is dear is spread
    for trial in left:
        todo.put(trial)
    lock, begun = threading.Lock(), time.monotonic()

    def work(lane):
        while True:
            try:
                trial = todo.get_nowait()
            except queue.Empty:
                return
            record = tried(trial, lane, out, arguments.seed)
            with lock, path.open('a') as file:
                file.write(json.dumps(record) + '\n')
                records.append(record)
                failed = sum(bool(one['problem']) for one in records)
                if record['problem']:
                    print(f'NOT SURVIVED {record["name"]}: {record["problem"]}', flush=True)
                if record['problem'] or len(records) % 20 == 0:
                    print(
                        f'{len(records)}/{len(wanted)} tried, {failed} not survived, {time.monotonic() - begun:.0f} s',
                        flush=True,
                    )

    lanes = [first] + [dataclasses.replace(first, server=Server(first.environment)) for _ in range(arguments.lanes - 1)]
    threads = [threading.Thread(target=work, args=[lane]) for lane in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for lane in lanes:
        lane.server.close()
    return records


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n\n')[0])
    for name, words in (
        ('kills', 'kill -9 at a random moment'),
        ('signals', 'SIGTERM, SIGINT, SIGHUP or SIGUSR1 at a random moment, from the start of the program on'),
        ('tasks', 'the same, in a run of every task'),
        ('removals', 'the workdir is deleted or renamed'),
        ('damages', 'of each file: how many random bits and lengths where a file is read in this process'),
        ('disk', 'the disk is full at a random moment, or too small'),
        ('pairs', 'two at once'),
        ('processes', 'one of several processes is lost'),
    ):
        parser.add_argument(f'--{name}', type=int, default=0, metavar='N', help=words)
    parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()) / 'soak')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--lanes', type=int, default=2, help='trials at a time')
    parser.add_argument('--bound', type=float, default=30.0, help='seconds in which a run must end when it is told to')
    parser.add_argument('--cases', default='', help='only runs with this in their names, such as lstm')
    parser.add_argument('--only', default='', help='only trials with this in their names')
    return parser.parse_args(argv)


if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _records = soak(parse(sys.argv[1:]))
    print(table(sorted(_records, key=lambda record: record['name'])))
    sys.exit(any(record['problem'] for record in _records))
