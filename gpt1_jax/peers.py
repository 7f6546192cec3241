"""The processes of a run, joined to end together: each is connected to process 0, which passes on what it hears.

The kernel closes the connection of a process that is killed, so that the others know at once; one that says nothing for
`SILENCE` seconds (stopped, cut off) is lost too. All then end with one sentence. JAX would notice after its own time,
and end with a page of C++ stack.
"""

import contextlib
import json
import re
import selectors
import socket
import threading
import time
from collections.abc import Mapping, Sequence

from etils import epath

from gpt1_jax import stopping
from gpt1_jax.errors import STOPPED_EXIT_STATUS, UserError

SILENCE = 30.0  # seconds
_PULSE = 1.0  # seconds between signs of life
_APART = re.compile('Gloo|NCCL|DEADLINE_EXCEEDED|UNAVAILABLE')

current: 'Peers | None' = None  # of this process
checkpoints: epath.Path | None = None  # the folder of those that a run resumes from


def meet() -> None:
    """Returns once all processes of the run have come here, however long one works before; alone, at once."""
    agree(None)


def agree(value: object) -> list:
    """`Peers.agree`; alone, only the own value."""
    return current.agree(value) if current else [value]


def check_same(content: str, where: str) -> None:
    """Raises UserError if this process reads something else than process 0. content: tells it from anything else."""
    if agree(content)[0] != content:
        raise UserError(
            f'{where}: What is here is not what process 0 reads there. Copy the same to every host, or name a place '
            'that all see.'
        )


def explain(error: BaseException) -> str:
    """The message for an error of JAX that means that the processes live, but do not reach each other; '' for other
    errors."""
    if not current or type(error).__name__ != 'JaxRuntimeError' or not _APART.search(str(error)):
        return ''
    reason = ' '.join(str(error).split())[:200].rstrip('.')
    return f'processes: They have lost touch with each other ({reason}).{_how_to_resume()}'


class Peers:
    """The connections of this process, watched by a thread.

    Args:
      names: of all processes, for messages.
      process: the id of this one, from 0.
      connections: process -> socket. Process 0 is connected to all others, each of them to process 0.
    """

    def __init__(self, names: Sequence[str], process: int, connections: Mapping[int, socket.socket]):
        self.process = process
        self._names, self._sockets = names, connections
        self._begun = dict.fromkeys(connections, b'')  # incomplete lines
        self._silent = dict.fromkeys(connections, 0.0)  # seconds
        self._others_silent = 0.0  # seconds, as process 0 says
        self._left = set()
        self._sending = threading.RLock()
        self._changed = threading.Condition()
        self._round, self._values, self._answers = 0, {}, {}  # of `agree`
        self._asked = self._frozen = self._ended = False
        self._asks, self._asks_of, self._last = 0, {}, None  # of `should_stop`
        for connection in connections.values():
            connection.settimeout(5)
        stopping.last_words.append(self._say_end)
        threading.Thread(target=self._watch, daemon=True).start()

    def agree(self, value: object = None) -> list:
        """The values of all processes, in their order, once each has given one; JSON types."""
        with self._changed:
            self._round += 1
            number = self._round
            if self.process:
                self._send(0, round=number, value=value)
            else:
                self._collect(0, number, value)
            self._changed.wait_for(lambda: number in self._answers)
            return self._answers.pop(number)

    def ask_to_stop(self) -> None:
        """Asks all processes to stop at the same point. A handler of signals may call it."""
        self._asked = True

    def is_asked_to_stop(self) -> bool:
        """Whether any process asked."""
        return self._asked or self._frozen

    def should_stop(self) -> bool:
        """Whether all stop here. Every process must ask as often as the others, at the same points of its work."""
        with self._changed:
            self._changed.wait_for(lambda: not self._frozen or self._last is not None)
            self._asks += 1
            return self._last is not None and self._asks >= self._last

    def wait_until_all_are_heard(self) -> None:
        """Returns once it is certain that the others live. If they do not, the process ends meanwhile."""
        end = time.monotonic() + 3 * _PULSE
        while time.monotonic() < end or max(self._others_silent, *self._silent.values()) > 3 * _PULSE:
            if self._ended:
                return
            time.sleep(_PULSE / 5)

    def leave(self) -> None:
        """Takes leave: the others may end earlier or later."""
        self._ended = True
        stopping.last_words.remove(self._say_end)
        self._send_all(left=True)

    # ----------------------------------------------------------------- the thread

    def _watch(self):
        with selectors.DefaultSelector() as selector:
            for peer, connection in self._sockets.items():
                selector.register(connection, selectors.EVENT_READ, peer)
            before = time.monotonic()
            while not self._ended:
                for key, _ in selector.select(_PULSE / 2):
                    if not self._hear(key.data):
                        selector.unregister(key.fileobj)
                now = time.monotonic()
                if now - before >= _PULSE:
                    self._beat(min(now - before, 2 * _PULSE))  # while this one was stopped, it heard nobody
                    before = now

    def _beat(self, seconds):
        for peer in self._sockets:
            if peer not in self._left:
                self._silent[peer] += seconds
                if self._silent[peer] > SILENCE:
                    self._lose(peer, f'It has not answered for {SILENCE:.0f} s')
        self._send_all(silent=max(self._silent.values()))
        if self._asked and not self._frozen:
            if self.process:
                self._send(0, stop=True)
            else:
                self._freeze()

    def _hear(self, peer):
        """Takes the messages of a peer; returns whether there may be more."""
        try:
            received = self._sockets[peer].recv(2**16)
        except OSError:
            received = b''
        self._silent[peer] = 0.0
        *lines, self._begun[peer] = (self._begun[peer] + received).split(b'\n')
        for line in lines:
            self._take(peer, json.loads(line))
        if not received and peer not in self._left and not self._ended:
            self._lose(peer, 'It was killed, or its host is gone')
        return bool(received)

    def _take(self, peer, message):
        if 'ended' in message:
            self._end(**message)
        if 'left' in message:
            self._left.add(peer)
        if 'silent' in message and self.process:
            self._others_silent = message['silent']
        if 'value' in message:
            self._collect(peer, message['round'], message['value'])
        if 'values' in message:
            self._answer(message['round'], message['values'])
        if 'stop' in message:
            self._asked = True
        if 'freeze' in message:
            self._freeze()
        if 'asks' in message:
            self._asks_of[peer] = message['asks']
            if len(self._asks_of) == len(self._sockets):
                self._stop_at(max(self._asks, *self._asks_of.values()) + 1)
        if 'last' in message:
            self._stop_at(message['last'])

    def _collect(self, peer, number, value):
        """Process 0: keeps a value, and answers when all are there."""
        with self._changed:
            values = self._values.setdefault(number, {})
            values[peer] = value
            if len(values) == len(self._names):
                del self._values[number]
                values = [values[process] for process in range(len(values))]
                self._send_all(round=number, values=values)
                self._answer(number, values)

    def _answer(self, number, values):
        with self._changed:
            self._answers[number] = values
            self._changed.notify_all()

    def _freeze(self):
        """`should_stop` now waits until it is known at which call all can stop: the next one of the process ahead."""
        with self._changed:
            self._frozen = True
        if self.process:
            self._send(0, asks=self._asks)
        else:
            self._send_all(freeze=True)

    def _stop_at(self, last):
        if not self.process:
            self._send_all(last=last)
        with self._changed:
            self._last = last
            self._changed.notify_all()

    # ----------------------------------------------------------------- the end

    def _lose(self, peer, what):
        self._end(peer, STOPPED_EXIT_STATUS, f'{what}.{_how_to_resume()}')

    def _end(self, ended, status, message):
        self._ended = True
        self._send_all(ended=ended, status=status, message=message)
        stopping.end(status, f'{self._names[ended]}: {message}')

    def _say_end(self, status, message):
        if not self._ended:
            self._send_all(ended=self.process, status=status, message=message)

    def _send_all(self, **message):
        for peer in self._sockets:
            self._send(peer, **message)

    def _send(self, peer, **message):
        with self._sending, contextlib.suppress(OSError):  # one that is lost is noticed by the thread
            self._sockets[peer].sendall(json.dumps(message).encode() + b'\n')


def _how_to_resume() -> str:
    where = f' The last checkpoint is {step}.' if (step := _last_checkpoint()) else ''
    return f'{where} Run the same command again on all hosts to resume.'


def _last_checkpoint() -> str:
    """'DIR/checkpoints/300', or '' if there is none or it is not found within some seconds."""
    found = []

    def look():
        with contextlib.suppress(Exception):  # of many types for gs://
            found.append(
                max((path for path in checkpoints.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
            )

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(3)
    return str(found[0]) if found else ''
