r"""Checks and measures everything on a machine with an accelerator, in a given time; packs and unpacks its input.

    python -m benchmarks.accelerator --minutes=15 --out=DIR [--data=DATA] [--parts=ceilings,right,...]
    python -m benchmarks.accelerator --pack=DIR --source=text:/books --data=/tasks
    python -m benchmarks.accelerator --unpack=DIR --out=DATA

Each part has its own process and time limit, so a crash or a lack of memory in one does not end the others.
OUT/PART.json is updated while the part runs; OUT/results.json, with all parts, and OUT/table.md come last; OUT/log.txt
has the output of the parts. A signal ends the running part, and what is finished is written. This file imports only the
standard library, because the accelerator belongs to the running part.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

from benchmarks.accelerator import pack, table

# Shares of the time; time that a part leaves goes to later parts.
PARTS = {'ceilings': 4, 'right': 16, 'step': 15, 'profile': 9, 'peer': 13, 'use': 12, 'paper': 31}
_RESERVE = 10  # seconds for the table and for processes that end slowly
_GRACE = 5  # seconds between SIGTERM and SIGKILL
_NEEDED = ('jax', 'flax', 'optax', 'orbax', 'numpy', 'ml_collections')  # by all parts but the first


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=15, help='time for all parts together')
    parser.add_argument('--out', type=pathlib.Path, help='folder of the results; with --unpack: of the data')
    parser.add_argument('--parts', default=','.join(PARTS), help='parts to run, separated by commas')
    parser.add_argument('--size', default='gpt1', choices=('gpt1', 'small', 'tiny'), help='of the model')
    parser.add_argument(
        '--data', type=pathlib.Path, help='folder that --unpack made; with --pack: one folder per data set'
    )
    parser.add_argument('--pack', type=pathlib.Path, help='make folders to copy, in this folder')
    parser.add_argument('--source', default='', help='with --pack: a corpus, text:/books or shards:/dir')
    parser.add_argument('--sets', default=','.join(pack.SETS), help='with --pack: data sets, separated by commas')
    parser.add_argument('--mib', type=float, default=60, help='with --pack: maximum size of a folder')
    parser.add_argument('--max_length', type=int, default=512, help='with --pack: tokens of the longest sequence')
    parser.add_argument('--vocab_size', type=int, default=40000, help='with --pack: pieces of the vocabulary')
    parser.add_argument('--unpack', type=pathlib.Path, help='unpack the folders that --pack made, in this folder')
    parser.add_argument('--run_part', help=argparse.SUPPRESS)
    parser.add_argument('--deadline', type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pack:
        from gpt1_jax.config import check_choice
        from gpt1_jax.data.labelled.registry import REGISTRY
        from gpt1_jax.errors import UserError

        try:
            for name in options.sets.split(','):
                check_choice('--sets', name, REGISTRY)
            pack.pack(options)
        except UserError as error:
            raise SystemExit(f'error: {error}') from None
    elif not options.out:
        parser.error('--out: It is missing. Name a folder for the results with --out=DIR.')
    elif options.unpack:
        pack.unpack(options.unpack, options.out)
    elif options.run_part:
        run_part(options)
    else:
        unknown = sorted(set(options.parts.split(',')) - PARTS.keys())
        if unknown:
            parser.error(f'--parts: There is no part {", ".join(map(repr, unknown))}. Choose from {", ".join(PARTS)}.')
        if options.parts != 'ceilings' and (missing := [name for name in _NEEDED if not _is_there(name, options)]):
            names = ' '.join(missing).replace('_', '-')
            parser.error(f'{names}: Not installed. Install it with pip install {names}, or carry it with --pack.')
        run_parts(options)


def run_part(options):
    """Runs one part in its own process."""
    from benchmarks.accelerator.measure import Context

    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    module = importlib.import_module(f'benchmarks.accelerator.{options.run_part}')
    module.run(Context(options.run_part, options.size, options.out, options.data, options.deadline))


def _end_with(parent):
    """Ends this part, and what it started, when the process that started it is gone: it would hold the device."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def run_parts(options):
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f'error: {options.out}: The folder cannot be made ({error.strerror}). Name another.') from None
    former = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        _run_parts(options)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        reports = {name: _read(options.out / f'{name}.json') for name in PARTS}
        reports = {name: report for name, report in reports.items() if report}
        (options.out / 'results.json').write_text(json.dumps(reports, indent=1) + '\n')
        text = table.table(reports)
        (options.out / 'table.md').write_text(text)
        print(text)


def _interrupt(number, frame):
    raise SystemExit(f'error: {signal.Signals(number).name}: Stopped. What is finished is in results.json.')


def _run_parts(options):
    end = time.time() + 60 * options.minutes - _RESERVE
    names = [name for name in PARTS if name in options.parts.split(',')]
    weights = [PARTS[name] for name in names]
    with (options.out / 'log.txt').open('a') as log:
        for i, name in enumerate(names):
            left = end - time.time()
            limit = left * weights[i] / sum(weights[i:])
            print(f'{name}: {limit:.0f} s of {left:.0f} s', flush=True)
            (options.out / f'{name}.json').unlink(missing_ok=True)  # from an earlier call
            started = time.time()
            status = _run(name, limit, options, log)
            seconds = time.time() - started
            _add(options.out / f'{name}.json', seconds=round(seconds, 1), limit_s=round(limit, 1), status=status)
            print(f'{name}: {status}, {seconds:.0f} s', flush=True)


def _run(name, limit, options, log):
    """Starts a part and waits for it; returns how it ended, in a few words."""
    # An absolute deadline, so that the part, which stops by itself, and the limit here mean the same moment.
    flags = {'run_part': name, 'deadline': time.time() + limit - _GRACE, 'size': options.size, 'out': options.out}
    flags |= {'data': options.data} if options.data else {}
    print(f'==== {name}', file=log, flush=True)
    process = subprocess.Popen(
        [sys.executable, '-m', 'benchmarks.accelerator', *(f'--{key}={value}' for key, value in flags.items())],
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment(name, options),
        start_new_session=True,
    )
    try:
        status = process.wait(timeout=max(limit, 1))
    except subprocess.TimeoutExpired:
        return 'out of time'
    finally:
        if process.returncode is None:
            _end(process)
    return 'done' if status == 0 else f'failed with status {status}, see log.txt'


def _end(process):
    """Ends a part and all processes that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=_GRACE)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def environment(name, options):
    """Environment variables of a part: keep compiled steps in OUT/compiled; use packed packages if they are missing."""
    variables = dict(
        os.environ,
        JAX_COMPILATION_CACHE_DIR=str((options.out / 'compiled').absolute()),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0.5',
        PYTHONUNBUFFERED='1',
    )
    if name == 'peer':  # two programs share the card, so neither may take all of its memory at the start
        variables['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'
    if name == 'profile':  # kernels launched as a CUDA graph do not name their instructions
        variables['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_gpu_enable_command_buffer='.lstrip()
    if name == 'right':  # it compiles much and times nothing, and choosing the fastest product takes most of the time
        variables['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_gpu_autotune_level=0'.lstrip()
    if any(not importlib.util.find_spec(package) for package in _carried(options)):
        carried = str((options.data / pack.PACKAGES).absolute())
        variables['PYTHONPATH'] = os.pathsep.join(filter(None, (carried, os.environ.get('PYTHONPATH'))))
    return variables


def _carried(options) -> list[str]:
    """The names of the packages that came with the data."""
    folder = options.data and options.data / pack.PACKAGES
    return [path.parent.name for path in folder.glob('*/__init__.py')] if folder else []


def _is_there(package, options):
    return importlib.util.find_spec(package) or package in _carried(options)


def _add(path, **facts):
    """Adds facts to a part's JSON."""
    path.write_text(json.dumps(facts | _read(path) | facts, indent=1) + '\n')


def _read(path):
    """A part's JSON, or {} if it wrote none."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


if __name__ == '__main__':
    main()
