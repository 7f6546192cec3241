"""Several processes that train together: whether this is one of them, a roll call before JAX waits for them, and the
end.

By itself JAX ends all processes with a page of C++ stack if one of them does not come, or dies.
"""

import contextlib
import importlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from absl import logging

from gpt1_jax import peers
from gpt1_jax.errors import UserError

SECONDS = 300  # that processes wait for each other
_JAX_SECONDS = 600  # of silence until JAX gives up: `peers` is to be faster
_TPU_PORT = 8482  # as JAX has it


class Cluster(NamedTuple):
    """The processes, and which one this is.

    Attributes:
      coordinator: 'HOST:PORT' of process 0, on which JAX listens; the roll call is one port above.
      processes: their number.
      process_id: of this one, from 0.
      hosts: of the processes, by id, as far as known.
    """

    coordinator: str
    processes: int
    process_id: int
    hosts: Sequence[str] = ()

    def name(self, process: int) -> str:
        """'process 1 (host-b)'"""
        return f'process {process}' + (f' ({self.hosts[process]})' if process < len(self.hosts) else '')


def explicit(coordinator: str | None, process_id: int | None, processes: int | None) -> Cluster | None:
    """The cluster of the flags, or None if none is given. Raises UserError if some are missing or wrong."""
    given = {'--coordinator': coordinator, '--process_id': process_id, '--processes': processes}
    if all(value is None for value in given.values()):
        return None
    if missing := [flag for flag, value in given.items() if value is None]:
        raise UserError(
            f'{missing[0]}: It is missing. Give {", ".join(given)}, the first and the last the same in every process.'
        )
    if not re.fullmatch(r'[^:/\s]+:\d{1,5}', coordinator) or not 0 < int(coordinator.rpartition(':')[2]) < 65535:
        raise UserError(f'--coordinator: {coordinator!r} is not an address. Write HOST:PORT of process 0.')
    if not 0 <= process_id < processes:
        raise UserError(f'--process_id: {process_id} is not valid. It must be from 0 to {processes - 1}.')
    return Cluster(coordinator, processes, process_id)


def detected(environment: Mapping[str, str] = os.environ) -> Cluster | None:
    """The cluster that the environment describes: the tasks of an `srun`, or the hosts of a TPU slice on GKE; None if
    there is none, or only one process. For other environments see `found_by_jax`.
    """
    if {'SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID'} <= environment.keys():
        processes = int(environment['SLURM_NTASKS'])
        first = re.match(r'([^,\[]*)(?:\[(\d+))?', environment['SLURM_STEP_NODELIST'])
        port = 2**16 - 2**12 + int(environment['SLURM_JOB_ID']) % 2**11 * 2 - 2  # two of its own: others may run here
        one = Cluster(f'{first[1]}{first[2] or ""}:{port}', processes, int(environment['SLURM_PROCID']))
        return one if processes > 1 else None
    hosts = [name for name in environment.get('TPU_WORKER_HOSTNAMES', '').split(',') if name]
    if len(hosts) > 1 and environment.get('TPU_WORKER_ID', '').isdigit() and 'MEGASCALE_NUM_SLICES' not in environment:
        return Cluster(f'{hosts[0]}:{_TPU_PORT}', len(hosts), int(environment['TPU_WORKER_ID']), hosts)
    return None


def found_by_jax(seconds: float = SECONDS) -> Cluster:
    """The cluster that JAX finds: TPU VMs, several slices, Kubernetes, Open MPI.

    Only asks: `start` calls the roll before JAX waits, and hides from JAX the death of process 0.

    Raises:
      UserError: JAX finds none, or does not learn all about it within `seconds`.
    """
    clusters = importlib.import_module('jax._src.clusters')
    given = os.environ.get('JAX_COORDINATOR_ADDRESS'), None, None, None, None
    try:
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(*given, int(seconds))[:3]
    except Exception as error:  # of many types: no answer from the metadata, a host that is not known yet
        raise UserError(
            f'--distributed: JAX does not find the other processes ({type(error).__name__}: {error}). Start it again, '
            'or give --coordinator, --process_id and --processes.'
        ) from error
    if None in found:
        raise UserError(
            '--distributed: The environment describes no other processes. Leave this flag out, or give --coordinator, '
            '--process_id and --processes.'
        )
    return Cluster(*found)


def start(cluster: Cluster, seconds: float = SECONDS, *, alone: bool = False) -> None:
    """Makes this process one of the cluster: they compute together, and end together (`peers.current`). Call `finish`
    at the end. Does nothing if it is the only one.

    Args:
      alone: only process 0 works, without the others' devices.
    Raises:
      UserError: some processes do not come.
    """
    if cluster.processes == 1:
        return
    hosts, connections = call_roll(cluster, seconds)
    names = [cluster._replace(hosts=hosts).name(process) for process in range(cluster.processes)]
    peers.current = peers.Peers(names, cluster.process_id, connections)
    if alone:
        return
    jax = importlib.import_module('jax')  # not at the top, because it reads environment variables that main sets
    jax.config.update('jax_enable_preemption_service', False)  # it would take SIGTERM, which gpt1_jax/stopping.py has
    logging.info('distributed: process %d of %d', cluster.process_id, cluster.processes)
    local = os.environ.get('SLURM_LOCALID')  # a task for each GPU of a node
    jax.distributed.initialize(
        _passage(cluster.coordinator) if cluster.process_id else cluster.coordinator,
        cluster.processes,
        cluster.process_id,
        local_device_ids=None if local is None else [int(local)],
        initialization_timeout=int(seconds),
        heartbeat_timeout_seconds=_JAX_SECONDS,
    )


def finish() -> None:
    """Returns once all processes have done their work. Does nothing if there is only one."""
    if peers.current:
        peers.current.agree()
        if jax := sys.modules.get('jax'):
            jax.distributed.shutdown()
        peers.current.leave()
        peers.current = None


def _passage(coordinator):
    """The address of a port of this process that leads to JAX's service in process 0.

    It stays open if process 0 dies: otherwise JAX would abort this process before it could say why.
    """
    server = socket.create_server(('127.0.0.1', 0))
    host, _, port = coordinator.rpartition(':')
    for name in ('no_grpc_proxy', 'no_proxy'):
        if name in os.environ:
            os.environ[name] += ',127.0.0.1'

    def pump(source, target, last):
        with contextlib.suppress(OSError):
            while data := source.recv(2**16):
                target.sendall(data)
            last()

    def serve():
        while True:
            inner = server.accept()[0]
            try:
                outer = socket.create_connection((host, int(port)), timeout=10)
                outer.settimeout(None)
            except OSError:  # not there yet: JAX tries again
                inner.close()
                continue
            for pair in ((inner, outer, outer.close), (outer, inner, lambda: None)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return f'127.0.0.1:{server.getsockname()[1]}'


def call_roll(cluster: Cluster, seconds: float) -> tuple[list[str], dict[int, socket.socket]]:
    """Returns when all processes are there: the hosts of all, and the connections for `peers.Peers`.

    Raises UserError, which names those that are not, in each process that is there.
    """
    host, _, port = cluster.coordinator.rpartition(':')
    end = time.monotonic() + seconds
    answer = _gather if cluster.process_id == 0 else _report
    absent, hosts, connections = answer(cluster, (host, int(port) + 1), end)
    if absent:
        named = ', '.join(cluster.name(process) for process in absent[:10])
        raise UserError(
            f'--distributed: {len(absent)} of {cluster.processes} processes did not come within {seconds:.0f} s: '
            f'{named}{", ..." * (len(absent) > 10)}. See why they did not start, then run the command again on all.'
        )
    return hosts, connections


def _gather(cluster, address, end):
    """Process 0: waits for a line from each of the others, and answers all with the ids of those that did not come, and
    the hosts of all. Returns both and the connections."""
    came, hosts = {}, {0: socket.gethostname()}
    try:
        server = socket.create_server(('', address[1]))
    except OSError as error:
        raise UserError(
            f'--coordinator: Port {address[1]} of this host cannot be used ({error.strerror}). Choose another with '
            '--coordinator, --processes and --process_id.'
        ) from error
    with server:
        while len(came) < cluster.processes - 1 and (left := end - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # not one of ours, or too late
                connection = server.accept()[0]
                connection.settimeout(5)
                line = json.loads(connection.makefile('r').readline())
                process = line['process']
                if 0 < process < cluster.processes:
                    came[process], hosts[process] = connection, str(line['host'])
    absent = [process for process in range(1, cluster.processes) if process not in came]
    hosts = [hosts.get(process, '') for process in range(cluster.processes)]
    for connection in came.values():
        with contextlib.suppress(OSError):
            connection.sendall(f'{json.dumps({"absent": absent, "hosts": hosts})}\n'.encode())
    return absent, hosts, came


def _report(cluster, address, end):
    """Any other process: tells process 0 that it is there; returns its answer and the connection."""
    reason = 'it does not answer'
    while (left := end - time.monotonic()) > 0:
        try:
            connection = socket.create_connection(address, timeout=min(left, 10))
            line = {'process': cluster.process_id, 'host': socket.gethostname()}
            connection.sendall(f'{json.dumps(line)}\n'.encode())
            connection.settimeout(max(1, end + 5 - time.monotonic()))
            # Unbuffered: what follows this line is for another reader.
            if line := connection.makefile('rb', buffering=0).readline():
                answer = json.loads(line)
                return answer['absent'], answer['hosts'], {0: connection}
        except (OSError, ValueError) as error:
            reason = getattr(error, 'strerror', None) or str(error)
        time.sleep(0.5)
    raise UserError(
        f'--distributed: {cluster.name(0)} cannot be reached at {cluster.coordinator} ({reason}). See that it runs '
        'there, and that the hosts reach each other.'
    )
