"""Who trains together, and the roll call: real sockets, several processes as threads; and two real processes."""

import concurrent.futures
import json
import socket
import subprocess
import sys
import time

import pytest

from gpt1_jax import distributed
from gpt1_jax.distributed import Cluster, detected, explicit
from gpt1_jax.errors import UserError
from helpers import ENVIRONMENT, ROOT


def free_port():
    """Two in a row that nothing listens on."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(('127.0.0.1', 0))
            port = first.getsockname()[1]
            try:
                second.bind(('127.0.0.1', port + 1))
            except (OSError, OverflowError):
                continue
            return port


def test_flags():
    assert explicit(None, None, None) is None
    assert explicit('host-a:1234', 1, 4) == Cluster('host-a:1234', 4, 1)


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        (('host:1', None, 2), r'--process_id: It is missing\. Give --coordinator, --process_id, --processes together'),
        ((None, 0, None), '--coordinator: It is missing'),
        (('host', 0, 2), "--coordinator: 'host' is no address"),
        (('http://host:1', 0, 2), 'is no address'),
        (('host:65535', 0, 2), 'is no address'),
        (('host:1', 2, 2), '--process_id: 2 is not possible. It must be from 0 to 1'),
        (('host:1', -1, 2), 'from 0 to 1'),
    ],
)
def test_wrong_flags(flags, words):
    with pytest.raises(UserError, match=words):
        explicit(*flags)


SRUN = {'SLURM_JOB_ID': '5000', 'SLURM_NTASKS': '16', 'SLURM_PROCID': '9', 'SLURM_LOCALID': '1'}


@pytest.mark.parametrize(
    ('environment', 'expected'),
    [
        ({}, None),
        (SRUN, None),  # as in a shell of salloc: no step
        (SRUN | {'SLURM_STEP_NODELIST': 'node[003-004,9]', 'SLURM_NTASKS': '1'}, None),
        (SRUN | {'SLURM_STEP_NODELIST': 'node[003-004,9]'}, ('node003', 16, 9)),
        (SRUN | {'SLURM_STEP_NODELIST': 'alpha,beta'}, ('alpha', 16, 9)),
        (SRUN | {'SLURM_STEP_NODELIST': 'gpu-[1,3]'}, ('gpu-1', 16, 9)),
        ({'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_WORKER_ID': '0'}, None),
        ({'TPU_WORKER_HOSTNAMES': 'a,b', 'TPU_WORKER_ID': '1'}, ('a', 2, 1)),
        ({'TPU_WORKER_HOSTNAMES': 'a,b'}, None),
        ({'TPU_WORKER_HOSTNAMES': 'a,b', 'TPU_WORKER_ID': '1', 'MEGASCALE_NUM_SLICES': '2'}, None),
    ],
)
def test_what_the_environment_says(environment, expected):
    found = detected(environment)
    assert (found and (found.coordinator.partition(':')[0], found.processes, found.process_id)) == expected


def call(processes, ids, seconds, hosts=()):
    """What each process of `ids` says: None, or the message."""
    coordinator = f'127.0.0.1:{free_port()}'

    def one(process):
        try:
            distributed.call_roll(Cluster(coordinator, processes, process, hosts), seconds)
        except UserError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(len(ids)) as pool:
        return list(pool.map(one, ids))


def test_all_are_there():
    assert call(5, [0, 1, 2, 3, 4], 30) == [None] * 5


def test_who_is_absent_is_named_by_all_who_are_there():
    started = time.monotonic()
    answers = call(4, [0, 2], 3, hosts=['a', 'b', 'c', 'd'])
    words = '2 of 4 processes did not come within 3 s: process 1 (b), process 3 (d)'
    assert all(words in answer for answer in answers) and len(answers) == 2
    assert time.monotonic() - started < 20


def test_without_the_first():
    [answer] = call(2, [1], 2)
    assert 'process 0 cannot be reached at 127.0.0.1:' in answer


def test_strangers_do_not_count():
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(distributed.call_roll, Cluster(f'127.0.0.1:{port}', 2, 0), 4)
        for words in (b'GET / HTTP/1.1\r\n\r\n', b'{"process": 7}\n', b'[1]\n', b'{"process": "x"}\n'):
            while True:
                try:
                    with socket.create_connection(('127.0.0.1', port + 1), timeout=5) as connection:
                        connection.sendall(words)
                    break
                except ConnectionRefusedError:
                    time.sleep(0.1)
        with pytest.raises(UserError, match='1 of 2 processes'):
            first.result()


def test_a_port_in_use():
    port = free_port()
    with socket.create_server(('', port + 1)), pytest.raises(UserError, match=f'Port {port + 1} .* Choose another'):
        distributed.call_roll(Cluster(f'127.0.0.1:{port}', 2, 0), 1)


SCRIPT = """
import json, sys
from gpt1_jax import distributed
from gpt1_jax.errors import UserError
cluster = distributed.explicit(sys.argv[1], int(sys.argv[2]), 2)
try:
    distributed.start(cluster, 60)
except UserError as error:
    sys.exit(str(error))
import jax
print(json.dumps([jax.process_index(), jax.process_count()]))
"""


def test_two_real_processes():
    coordinator = f'127.0.0.1:{free_port()}'
    started = [
        subprocess.Popen(
            [sys.executable, '-c', SCRIPT, coordinator, str(process)],
            cwd=ROOT,
            env=ENVIRONMENT | {'JAX_PLATFORMS': 'cpu'},
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    assert [json.loads(process.communicate(timeout=120)[0]) for process in started] == [[0, 2], [1, 2]]


@pytest.mark.slow
def test_a_command_in_two_processes(tmp_path):
    """The same result as in one."""
    program = [sys.executable, '-m', 'gpt1_jax.main']
    options = dict(cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    prepare = [*program, '--config=configs/prepare.py', '--config.data.source=docs:numpy', f'--workdir={tmp_path}/text']
    subprocess.run([*prepare, '--config.data.vocab_size=400'], **options, check=True)
    values = 'model.width=16 model.heads=2 model.mlp_width=16 model.layers=1 model.n_positions=16 data.tokens=3000 '
    values += f'optimizer.warmup_steps=2 log.eval_windows=100 data.source=shards:{tmp_path}/text/shards'
    pretrain = [*program, '--config=configs/pretrain.py:tiny', *(f'--config.{value}' for value in values.split())]
    subprocess.run([*pretrain, f'--workdir={tmp_path}/one'], **options, check=True)
    flags = [f'--workdir={tmp_path}/two', f'--coordinator=127.0.0.1:{free_port()}', '--processes=2']
    both = [subprocess.Popen([*pretrain, *flags, f'--process_id={process}'], **options) for process in range(2)]
    errors = [process.communicate(timeout=240)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert 'distributed: process 1 of 2' in errors[1]
    one, two = (json.loads((tmp_path / name / 'results.json').read_text())['scores'] for name in ('one', 'two'))
    assert [score['value'] for score in two] == pytest.approx([score['value'] for score in one], rel=1e-4)
