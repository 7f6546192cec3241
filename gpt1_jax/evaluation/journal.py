"""Long evaluations, batch by batch: with progress, an end at the next batch when told to stop, and a journal.

The result of a batch depends on the model, the computation and the batch. So the journal keeps it under a checksum of
all three, and an evaluation that was stopped or killed goes on with the same bits, whatever has changed since.
"""

import collections
import contextlib
import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

import gpt1_jax
from gpt1_jax import progress
from gpt1_jax.errors import STOPPED_EXIT_STATUS, Stopped
from gpt1_jax.files import exists, is_local, patiently, write_atomically
from gpt1_jax.model.classifier import Classifier
from gpt1_jax.progress import Progress, waiting
from gpt1_jax.training import checksums
from gpt1_jax.training.partitioning import Partitioner, is_writer
from gpt1_jax.training.preemption import PreemptionGuard

_SECONDS = 10  # between two writes of a journal,
_TIMES = 20  # or this many times as long as the last one took, if that is more


class Journal:
    """The results of an evaluation's finished batches, float32 arrays by the key of a series of batches, in one file.

    The file begins with the SHA-256 of its content; a damaged one is ignored. Process 0 reads it for all processes, and
    writes it.
    """

    def __init__(self, path: epath.Path):
        self._path, self._written, self._took = path, time.monotonic(), 0.0
        self._series = self._parse(_from_writer(self._read))

    def finished(self, key: str) -> list[np.ndarray]:
        """The results of the first batches of a series, in order."""
        return [np.array(result, np.float32) for result in self._series.get(key, ())]

    def add(self, key: str, result: np.ndarray) -> None:
        """Adds the result of the next batch of a series; writes now and then."""
        self._series.setdefault(key, []).append(result.tolist())
        if time.monotonic() - self._written > max(_SECONDS, _TIMES * self._took):
            self.write()

    def write(self) -> None:
        """Writes the file. Raises UserError if that is impossible."""
        began = time.monotonic()
        if is_writer():
            content = json.dumps(self._series).encode()
            write_atomically(self._path, [f'{hashlib.sha256(content).hexdigest()}\n'.encode(), content])
        self._written = time.monotonic()
        self._took = self._written - began

    def remove(self) -> None:
        """Forgets all, and deletes the file, if there is one."""
        self._series = {}
        if is_writer():
            self._path.unlink(missing_ok=True)

    def _read(self):
        return patiently(self._path.read_bytes) if exists(self._path) else b''

    def _parse(self, data):
        checksum, _, content = data.partition(b'\n')
        if not data:
            return {}
        if hashlib.sha256(content).hexdigest().encode() != checksum:
            logging.warning('%s: The file is damaged. The evaluation begins again.', self._path)
            return {}
        return json.loads(content)


def _from_writer(read: Callable[[], bytes]) -> bytes:
    """What process 0 reads, in every process."""
    data = read() if is_writer() else b''
    if jax.process_count() == 1:
        return data
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(data), np.int32)))
    own = np.frombuffer(data, np.uint8) if is_writer() else np.zeros(size, np.uint8)
    return multihost_utils.broadcast_one_to_all(own).tobytes()


class Lines:
    """A file of lines, each safe once it is added; a run that was stopped goes on after them.

    Beside it, until `forget`, FILE.journal has a checksum of the lines and of `key`. Process 0 reads and writes.

    Args:
      key: identifies the run; '': the lines are never continued.
    Attributes:
      finished: the lines of this run that are there.
    """

    def __init__(self, path: epath.Path, key: str):
        self._path, self._key, self._checksum = path, key, hashlib.sha256(key.encode())
        self._journal = path.with_suffix('.journal')
        self.finished = _from_writer(self._read).splitlines(keepends=True)
        if is_writer():
            write_atomically(path, self.finished)
        self._checksum.update(b''.join(self.finished))
        self._file = epath.Path(path if is_writer() else os.devnull).open('ab')

    def add(self, lines: Iterable[bytes]) -> None:
        """Adds lines. Raises OSError or UserError if that is impossible."""
        for line in lines:
            self._file.write(line)
            self._checksum.update(line)
        self._file.flush()
        if self._key and is_writer():
            if is_local(self._path):
                os.fsync(self._file.fileno())  # before its checksum
            write_atomically(self._journal, [self._checksum.hexdigest().encode()])

    def close(self) -> None:
        self._file.close()

    def forget(self) -> None:
        """Deletes the journal: all lines are there, and the run is finished."""
        if is_writer():
            self._journal.unlink(missing_ok=True)

    def _read(self):
        if not (self._key and exists(self._journal) and exists(self._path)):
            return b''
        wanted, found = patiently(self._journal.read_bytes).decode(errors='replace'), self._checksum.copy()
        size, finished = 0, b''
        data = patiently(self._path.read_bytes)
        for line in data.splitlines(keepends=True):
            found.update(line)
            size += len(line)
            if found.hexdigest() == wanted:
                finished = data[:size]
        return finished


class Watch:
    """What a long evaluation reports and asks at each batch.

    Args:
      description, total, unit: of its progress, see Progress; without a total none is shown.
      should_stop: whether to end before the next batch, asked from the second one on. In a run of many processes all
        ask at the same batches, and all must get the same answer.
      journal: keeps the results; None: they are not kept.
      model: `fingerprint` of the model and its computation, for the journal.
    """

    def __init__(
        self,
        description: str = '',
        total: int = 0,
        unit: str = 'example',
        *,
        should_stop: Callable[[], bool] = lambda: False,
        journal: Journal | None = None,
        model: str = '',
    ):
        self.journal, self.model = journal, model
        self._should_stop, self._done, self._begun = should_stop, 0, False
        self._progress = Progress(total, 0, description, unit=unit, part=True, show=is_writer() and total > 0)
        self._total = total

    def each(
        self,
        step: Callable,
        batches: Callable[[int], Iterable],
        keep: Callable[[int, object], np.ndarray],
        size: Callable[[int], int] = lambda number: 1,
        content: Callable[[], Iterable[bytes]] = tuple,
    ) -> Iterator[np.ndarray]:
        """The result of each batch, in order: float32 arrays. One batch is computed while the one before is fetched.

        Args:
          step: batch -> output on the devices.
          batches: start -> the batches from that one on.
          keep: number of a batch and its output on the host -> its result.
          size: number of a batch -> its share of the total.
          content: all that the batches are made from; called only if there is a journal.

        Raises Stopped, before the next batch, if `should_stop` says so; the finished results are then in the journal.
        """
        key, finished = '', []
        if self.journal:
            key = digest([self.model.encode(), *content()])
            finished = self.journal.finished(key)
        for number, result in enumerate(finished):
            self._done += size(number)
            yield result
        if finished:
            self._progress.resume(self._done)
        computing = collections.deque()

        def fetch():
            number, output = computing.popleft()
            result = keep(number, jax.device_get(output))
            if self.journal:
                self.journal.add(key, result)
            self._done += size(number)
            self._progress.update(self._done)
            if self._done >= self._total:
                self._progress.close()
            return result

        for number, batch in enumerate(batches(len(finished)), len(finished)):
            if self._begun and self._should_stop():  # before, a signal ends the program at once: nothing is lost
                self._stop(computing, fetch)
            with contextlib.nullcontext() if self._begun else waiting('compiling the evaluation', show=is_writer()):
                computing.append((number, step(batch)))
            self._begun = True
            if len(computing) > 1:
                yield fetch()
        while computing:
            yield fetch()

    def _stop(self, computing, fetch):
        while computing:
            fetch()
        if self.journal:
            self.journal.write()
        self._progress.close()
        raise Stopped


def digest(parts: Iterable[bytes]) -> str:
    """The SHA-256 of byte strings, in hex; where one ends and the next begins counts too."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, 'little'))
        found.update(part)
    return found.hexdigest()


def fingerprint(classifier: Classifier, params: dict, partitioner: Partitioner) -> str:
    """64 hex characters that identify a model and how it computes."""
    devices = partitioner.mesh.devices
    computation = (
        *(gpt1_jax.__version__, jax.__version__, devices.flat[0].device_kind, devices.shape, partitioner.rules),
        str(classifier),
    )
    return digest([repr(computation).encode(), repr(checksums.compute(params)).encode()])


@contextlib.contextmanager
def resumable(workdir: epath.Path) -> Iterator[Callable[..., Watch]]:
    """`Watch` with `should_stop` and a journal, for a task that ends with its evaluation.

    The journal is WORKDIR/evaluation.journal, and is deleted at the end. If the task is told to stop, the program ends
    with STOPPED_EXIT_STATUS, and the same command resumes it.
    """
    guard, journal = PreemptionGuard(), Journal(workdir / 'evaluation.journal')
    try:
        yield functools.partial(Watch, should_stop=lambda: guard.should_stop(0), journal=journal)
        journal.remove()
    except Stopped:
        if not progress.quiet:
            logging.info('Stopped. Run the same command again to resume.')
        sys.exit(STOPPED_EXIT_STATUS)
    finally:
        guard.close()
