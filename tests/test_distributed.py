"""Who trains together, and the roll call: real sockets, several processes as threads."""

import concurrent.futures
import socket
import time

import pytest

from gpt1_jax import distributed, peers
from gpt1_jax.distributed import Cluster, detected, explicit, found_by_jax
from gpt1_jax.errors import UserError
from helpers import free_port
from servers import Server, running


def test_flags():
    assert explicit(None, None, None) is None
    assert explicit('host-a:1234', 1, 4) == Cluster('host-a:1234', 4, 1)


def test_a_process_alone_waits_for_nobody():
    distributed.start(Cluster('host-a:1234', 1, 0))
    assert peers.current is None


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        (('host:1', None, 2), r'--process_id: It is missing\. Give --coordinator, --process_id, --processes, the'),
        ((None, 0, None), '--coordinator: It is missing'),
        (('host', 0, 2), "--coordinator: 'host' is not an address"),
        (('http://host:1', 0, 2), 'is not an address'),
        (('host:65535', 0, 2), 'is not an address'),
        (('host:1', 2, 2), '--process_id: 2 is not valid. It must be from 0 to 1'),
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
        ({'TPU_WORKER_HOSTNAMES': 'a,', 'TPU_WORKER_ID': '0'}, None),
        ({'TPU_WORKER_HOSTNAMES': 'a,b', 'TPU_WORKER_ID': '1'}, ('a', 2, 1)),
        ({'TPU_WORKER_HOSTNAMES': 'a,b'}, None),
        ({'TPU_WORKER_HOSTNAMES': 'a,b', 'TPU_WORKER_ID': '1', 'MEGASCALE_NUM_SLICES': '2'}, None),
    ],
)
def test_what_the_environment_says(environment, expected):
    found = detected(environment)
    assert (found and (found.coordinator.partition(':')[0], found.processes, found.process_id)) == expected


def test_jobs_that_share_a_node_have_two_ports_each():
    steps = [SRUN | {'SLURM_STEP_NODELIST': 'a,b', 'SLURM_JOB_ID': str(job)} for job in range(9_000, 9_000 + 2**11)]
    ports = [int(detected(step).coordinator.rpartition(':')[2]) for step in steps]
    assert len({port + i for port in ports for i in (0, 1)}) == 2 * len(ports)
    assert 49_152 <= min(ports) and max(ports) + 1 < 2**16  # those that no service has


OPEN_MPI = {
    'OMPI_MCA_orte_hnp_uri': f'{7 * 4096}.0;tcp://10.0.0.7,10.1.0.7:34911',
    'OMPI_COMM_WORLD_SIZE': '4',
    'OMPI_COMM_WORLD_RANK': '3',
    'OMPI_COMM_WORLD_LOCAL_RANK': '1',
}


@pytest.fixture
def set_variables(monkeypatch):
    """Sets variables, where no cluster is."""
    for name in ('KUBERNETES_SERVICE_HOST', 'TPU_WORKER_HOSTNAMES', 'TPU_SKIP_MDS_QUERY'):
        monkeypatch.delenv(name, raising=False)
    return lambda variables: [monkeypatch.setenv(*variable) for variable in variables.items()]


@pytest.mark.parametrize(
    ('variables', 'expected'),
    [({}, Cluster('10.0.0.7:61447', 4, 3)), ({'JAX_COORDINATOR_PORT': '1234'}, Cluster('10.0.0.7:1234', 4, 3))],
)
def test_what_jax_finds(set_variables, variables, expected):
    set_variables(OPEN_MPI | variables)
    assert found_by_jax() == expected


def test_where_jax_finds_none(set_variables):
    with pytest.raises(UserError, match='--distributed: The environment describes no other processes'):
        found_by_jax()
    set_variables(OPEN_MPI | {'OMPI_COMM_WORLD_SIZE': 'many'})
    with pytest.raises(UserError, match=r'does not find the other processes \(ValueError: .*many.* Start it again'):
        found_by_jax()


def test_a_host_of_tpu_vms_in_two_slices(set_variables, monkeypatch):
    """What the metadata server of a VM says: the coordinator is of the first slice."""
    pytest.importorskip('requests')
    monkeypatch.setattr('jax._src.clusters.cloud_tpu_cluster.running_in_cloud_tpu_vm', True)
    attributes = {
        'agent-worker-number': '1',
        'worker-network-endpoints': 'unknown:unknown:10.0.0.3,unknown:unknown:10.0.0.4',
        'tpu-env': "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\nMEGASCALE_COORDINATOR_ADDRESS: '10.0.0.1:80'",
    }
    with running(Server()) as server:
        for name, value in attributes.items():
            server.files[f'/computeMetadata/v1/instance/attributes/{name}'] = value.encode()
        set_variables({'GCE_METADATA_IP': f'127.0.0.1:{server.server_port}'})
        assert found_by_jax() == Cluster('10.0.0.1:8482', 4, 3)


def test_the_passage_to_process_0_stays_open_when_that_dies():
    with socket.create_server(('127.0.0.1', 0)) as service:
        service.settimeout(5)
        host, port = distributed._passage(f'127.0.0.1:{service.getsockname()[1]}').split(':')
        with socket.create_connection((host, int(port)), timeout=5) as client:
            there = service.accept()[0]
            client.sendall(b'question')
            assert there.recv(100) == b'question'
            there.sendall(b'answer')
            assert client.recv(100) == b'answer'
            there.close()
            client.settimeout(0.3)
            with pytest.raises(TimeoutError):  # not its end
                client.recv(100)


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
    with (
        socket.create_server(('', port + 1)),
        pytest.raises(UserError, match=f'Port {port + 1} .* Choose another with'),
    ):
        distributed.call_roll(Cluster(f'127.0.0.1:{port}', 2, 0), 1)
