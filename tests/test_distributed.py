"""Who trains together, and the roll call: real sockets, several processes as threads."""

import concurrent.futures
import socket
import time

import pytest

from gpt1_jax import distributed
from gpt1_jax.distributed import Cluster, detected, explicit
from gpt1_jax.errors import UserError


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
    """What each process of `ids` says: the hosts and the processes that it is connected to, or the message."""
    coordinator = f'127.0.0.1:{free_port()}'

    def one(process):
        try:
            found, connections = distributed.call_roll(Cluster(coordinator, processes, process, hosts), seconds)
        except UserError as error:
            return str(error)
        for connection in connections.values():
            connection.close()
        return found, list(connections)

    with concurrent.futures.ThreadPoolExecutor(len(ids)) as pool:
        return list(pool.map(one, ids))


def test_all_are_there():
    hosts = [socket.gethostname()] * 5
    first, *others = call(5, [0, 1, 2, 3, 4], 30)
    assert (first[0], sorted(first[1])) == (hosts, [1, 2, 3, 4])
    assert others == [(hosts, [0])] * 4


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
