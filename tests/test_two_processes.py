"""Several processes that work together, as the hosts of a pod do: the same numbers as in one, each reads only its rows,
and they end together. tests/test_peers.py has the ways to end in small."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath

import runs
import several_processes
import zero_shot_sets
from configs import prepare as prepare_config
from gpt1_jax import peers
from gpt1_jax.tasks import evaluate, evaluate_text, finetune, generate, prepare, pretrain, zero_shot
from helpers import ROOT, command, free_port

pytestmark = pytest.mark.slow
WORDS = 'ship sail wave anchor harbour captain cow field plough barn harvest wheat the and'.split()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp('processes'), random.Random(0)
    words = lambda n: ' '.join(rng.choices(WORDS, k=n))
    (folder / 'text').mkdir()
    for number in range(4):
        (folder / 'text' / f'{number}.txt').write_text('\n'.join(words(rng.randint(1, 40)) for _ in range(60)))
    (folder / 'labelled').mkdir()
    for split, n in (('train', 41), ('dev', 23), ('test', 13)):
        rows = [{'a': words(rng.randint(1, 6)), 'b': words(5), 'label': rng.randint(0, 1)} for _ in range(n)]
        (folder / 'labelled' / f'{split}.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    zero_shot_sets.write_all(folder / 'sets', n=6)
    return folder


@pytest.fixture(scope='module')
def compared():
    """Place -> what tells the data there from any other, as a process compares them with process 0."""
    return {}


@pytest.fixture(scope='module')
def expected(folder, compared):
    """The results in this process, on one device."""
    with (
        runs.on_one_device(pretrain, finetune, evaluate, evaluate_text, zero_shot, generate),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(peers, 'check_same', lambda content, where: compared.setdefault(where, set()).add(content))
        return several_processes.run_all(folder, folder / 'one', {})


def start(commands, devices):
    flags = os.environ['XLA_FLAGS'].replace('device_count=8', f'device_count={devices}')
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    environment = os.environ | {'XLA_FLAGS': flags, 'PYTHONPATH': str(ROOT)}
    return [subprocess.Popen(one, cwd=ROOT, env=environment, **pipes) for one in commands]


def end(processes, seconds=300):
    """(status, standard output, standard error) of each."""
    try:
        ended = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, ended)]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_alike(one, other, name=''):
    """The same, but for rounding in numbers that are computed."""
    if isinstance(one, float):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6, err_msg=name)
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), name
        for key in one:
            assert_alike(one[key], other[key], f'{name} {key}')
    elif isinstance(one, list):
        assert len(one) == len(other), name
        for number, (mine, theirs) in enumerate(zip(one, other)):
            assert_alike(mine, theirs, f'{name} {number}')
    else:
        assert one == other, name


@pytest.mark.parametrize('processes', [2, pytest.param(4, marks=pytest.mark.rehearsal)])
def test_several_processes_are_one(folder, expected, processes):
    workdir, port = folder / str(processes), free_port()
    program = [sys.executable, str(ROOT / 'tests' / 'several_processes.py')]
    arguments = [json.dumps([process, processes, port, str(folder), str(workdir)]) for process in range(processes)]
    ended = end(start([[*program, one] for one in arguments], 8 // processes), 150 * processes)
    assert [status for status, *_ in ended] == [0] * processes, '\n'.join(errors for *_, errors in ended)
    found = [json.loads(output.splitlines()[-1]) for _, output, _ in ended]
    for of_process in found:
        for name in expected:
            assert_alike(of_process[name], expected[name], name)
    for run_name in ('pretrain', 'finetune'):
        assert runs.losses(workdir / run_name) == pytest.approx(runs.losses(folder / 'one' / run_name), rel=1e-4)
    scores, known = (
        [line['log_probability'] for line in lines(where / 'text' / 'sentences.jsonl')]
        for where in (workdir, folder / 'one')
    )
    np.testing.assert_allclose(scores, known, rtol=1e-3)
    for name in ('predictions', 'shards'):
        where = 'finetune' if name == 'predictions' else 'pretrain'
        mine, theirs = (
            {path.name: path.read_bytes() for path in (one / where / name).glob('*.*')}
            for one in (workdir, folder / 'one')
        )
        assert mine == theirs
    # Each reads the rows of its devices: of 4 shards of a batch, process 0 of two has 3, process 0 of four has 1.
    shards = {2: [3, 3], 4: [1, 2, 1, 2]}[processes]
    for name, number in (('windows', 8 * 6), ('examples', 8 * 5)):
        read = [set(of_process[name]) for of_process in found]
        assert [len(of_process) for of_process in read] == [number * n // 4 for n in shards]
        assert len(set().union(*read)) == number
    if processes == 4:  # the next test but one has it of two
        (workdir / 'pretrain' / 'results.json').unlink()
        shutil.rmtree(workdir / 'pretrain' / 'checkpoints' / '6')
        config = several_processes.pretraining(folder)
        config.mesh.update(strategy='fsdp+tp', shape=several_processes.SHAPE)
        with runs.on_one_device(pretrain):
            resumed = pretrain.run(config, epath.Path(workdir / 'pretrain'))
        assert [one.value for one in resumed.scores] == pytest.approx(list(expected['scores'][0].values()), rel=1e-3)
        assert runs.losses(workdir / 'pretrain') == pytest.approx(runs.losses(folder / 'one' / 'pretrain'), rel=1e-4)


def test_all_that_is_read_is_compared(folder, expected, compared):
    labelled, places = f'files:{folder}/labelled', {place: len(contents) for place, contents in compared.items()}
    of_texts = f'text:{folder}/text/0.txt', f'files:{folder}/sets', 'prompt'
    assert places == {f'{folder}/one/pretrain/shards': 1, labelled: 2, **dict.fromkeys(of_texts, 1)}


def test_processes_with_other_configs_or_data_end_with_a_sentence(folder, tmp_path):
    for name in '01':
        config = prepare_config.get_config()
        config.data.update(source=f'text:{folder}/text/{name}.txt', vocab_size=290, held_out=0.25, workers=1)
        prepare.run(config, epath.Path(tmp_path / name))

    def say(*flags):
        common = ['--config.optimizer.warmup_steps=2', f'--workdir={tmp_path}/run']
        port, flags = free_port(), [[*common, *of_process] for of_process in flags]
        common = f'--coordinator=127.0.0.1:{port}', '--processes=2'
        programs = [command('pretrain.py:tiny', *one, *common, f'--process_id={i}') for i, one in enumerate(flags)]
        ended = end(start(programs, 1))
        assert [status for status, *_ in ended] == [2, 2]
        return [errors.splitlines()[-1] for *_, errors in ended]

    shards = [f'--config.data.source=shards:{tmp_path}/{name}/shards' for name in '01']
    for flags, words in (
        ([shards[0], '--config.seed=3'], 'processes: Process 0 was given another config (seed: 0 there, 3 here). '),
        ([shards[0], f'--workdir={tmp_path}/other'], f'{tmp_path}/other: What process 0 writes there is not seen here'),
        ([shards[1]], f'{tmp_path}/1/shards: What is here is not what process 0 reads there. '),
    ):
        by_first, by_second = say([shards[0]], flags)
        assert by_second.startswith(f'error: {words}') and by_first.endswith(f'): {by_second}')


def start_pretraining(folder, workdir, processes, steps, every, found=False):
    """The program itself. found: JAX finds the processes, as on TPU VMs: here in the variables of Open MPI."""
    config, flags = several_processes.pretraining(folder), []
    for part, key in (('model', key) for key in several_processes.TINY):
        flags.append(f'--config.{part}.{key}={config[part][key]}')
    for key in (
        *('data.source', 'data.vocab_size', 'data.held_out', 'data.workers', 'data.batch_size', 'log.every'),
        *('optimizer.warmup_steps', 'optimizer.learning_rate', 'optimizer.accumulation'),
    ):
        part, _, name = key.partition('.')
        flags.append(f'--config.{key}={config[part][name]}')
    flags += [f'--config.data.tokens={8 * 32 * steps}', '--config.log.eval_every=60', f'--workdir={workdir}']
    flags, port = [*flags, f'--config.checkpoint.every={every}'], free_port()

    def one(process):
        if not found:
            address = f'--coordinator=127.0.0.1:{port}', f'--processes={processes}', f'--process_id={process}'
            return command('pretrain.py:tiny', *flags, *address)
        variables = dict(OMPI_MCA_orte_hnp_uri='0.0;tcp://127.0.0.1:0', JAX_COORDINATOR_PORT=port)
        variables |= dict(OMPI_COMM_WORLD_SIZE=processes, OMPI_COMM_WORLD_RANK=process, OMPI_COMM_WORLD_LOCAL_RANK=0)
        assignments = [f'{name}={value}' for name, value in variables.items()]
        return ['env', *assignments, *command('pretrain.py:tiny', *flags, '--distributed')]

    return start([one(process) for process in range(processes)], devices=1)


def wait_for(path, processes):
    for _ in range(6000):
        if path.exists():
            return
        assert all(process.poll() is None for process in processes), end(processes)
        time.sleep(0.05)
    raise AssertionError(f'{path} did not appear')


def test_ctrl_c_to_one_stops_both_and_one_process_goes_on(folder):
    workdir = folder / 'interrupted'
    processes = start_pretraining(folder, workdir, 2, steps=120, every=10)
    wait_for(workdir / 'checkpoints' / '10', processes)
    processes[1].send_signal(signal.SIGINT)
    ended = end(processes)
    step = max(int(path.name) for path in (workdir / 'checkpoints').iterdir())
    assert step < 120
    for process, (status, _, errors) in enumerate(ended):
        assert status == 75 and errors.endswith(f'Stopped at step {step}. Run the same command again to resume.\n'), (
            errors
        )
        assert f'distributed: process {process} of 2' in errors and 'Traceback' not in errors
    config = several_processes.pretraining(folder)
    config.data.tokens, config.log.eval_every, config.checkpoint.every = 8 * 32 * 120, 60, 10
    with runs.on_one_device(pretrain):
        resumed, whole = (pretrain.run(config, epath.Path(folder / name)) for name in ('interrupted', 'uninterrupted'))
    assert runs.losses(workdir) == pytest.approx(runs.losses(folder / 'uninterrupted'), rel=1e-3)
    assert [one.value for one in resumed.scores] == pytest.approx([one.value for one in whole.scores], rel=1e-3)


def test_process_0_prepares_and_the_others_wait(folder, tmp_path):
    def prepare(source):
        flags = [f'--config.data.source=text:{folder / source}', '--config.data.vocab_size=300', '--processes=2']
        flags += [f'--workdir={tmp_path}', f'--coordinator=127.0.0.1:{free_port()}', '--config.data.workers=1']
        processes = start([command('prepare.py', *flags, f'--process_id={process}') for process in range(2)], 1)
        statuses, _, errors = zip(*end(processes))
        return statuses, [error.splitlines()[-1] for error in errors]

    statuses, last_lines = prepare('nowhere')
    message = f'error: text:{folder}/nowhere'
    assert statuses == (2, 2) and last_lines[0].startswith(message)
    assert last_lines[1] == f'process 0 ({socket.gethostname()}): {last_lines[0]}'
    statuses, last_lines = prepare('text')
    assert statuses == (0, 0) and last_lines[1].endswith('prepare: Process 0 does it, and this one waits.')
    assert (tmp_path / 'shards' / 'index.json').exists()


WORKS_SLOWLY = """
import sys, time
import numpy as np
from gpt1_jax import distributed
from gpt1_jax.training.partitioning import Partitioner

process, address = int(sys.argv[1]), sys.argv[2]
distributed.start(distributed.explicit(address, process, 2))
partitioner = Partitioner('fsdp', (1, 4, 1))
time.sleep(40 * process)
batch = partitioner.put_batch({'x': np.full((1, 2, 3), process + 1.0)})
print(float(partitioner.jit(lambda batch: batch['x'].sum())(batch)))
distributed.finish()
"""


@pytest.mark.rehearsal
def test_one_may_come_long_after_the_other_to_what_they_compute_together():
    """As where it compiles for longer; gloo alone would wait for 30 s."""
    address = f'127.0.0.1:{free_port()}'
    ended = end(start([[sys.executable, '-c', WORKS_SLOWLY, str(process), address] for process in range(2)], 2))
    assert [(status, output.splitlines()[-1]) for status, output, _ in ended] == [(0, '18.0')] * 2, ended


LOST = {  # signal: what the others say, and the seconds in which they end
    signal.SIGKILL: ('It was killed, or its host is gone.', 30),
    signal.SIGSTOP: ('It has not answered for 30 s.', 100),
}


@pytest.mark.rehearsal
@pytest.mark.parametrize(
    ('processes', 'lost', 'number', 'found'),
    [
        (2, 0, signal.SIGKILL, False),
        (2, 1, signal.SIGKILL, False),
        (4, 0, signal.SIGKILL, False),
        (4, 2, signal.SIGKILL, False),
        (2, 0, signal.SIGSTOP, False),
        (4, 3, signal.SIGSTOP, False),
        (2, 0, signal.SIGKILL, True),
        (4, 0, signal.SIGSTOP, True),
    ],
)
def test_where_one_is_lost_the_others_end_with_a_sentence(folder, tmp_path, processes, lost, number, found):
    words, seconds = LOST[number]
    started = start_pretraining(folder, tmp_path, processes, steps=100_000, every=10, found=found)
    wait_for(tmp_path / 'checkpoints' / '20', started)
    started[lost].send_signal(number)
    begun = time.monotonic()
    others = end([one for process, one in enumerate(started) if process != lost], seconds)
    print(f'{number.name} to process {lost} of {processes}: {time.monotonic() - begun:.1f} s')
    started[lost].kill()
    started[lost].communicate()
    checkpoint = max(int(path.name) for path in (tmp_path / 'checkpoints').iterdir() if path.name.isdigit())
    for status, _, errors in others:
        *_, last = errors.splitlines()
        assert status == 75 and last.startswith(f'process {lost} (') and f'): {words} ' in last, errors
        assert f'The last checkpoint is {tmp_path}/checkpoints/{checkpoint}. Run the same command again' in last
        assert 'Traceback' not in errors and '***' not in errors
