"""Whether servers answer, found out in seconds: without a network, libraries wait and retry for minutes."""

import http.client
import queue
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import TypeVar

SECONDS = 10.0  # that a server may be silent
_AFTER_FAULTS = 3.0  # after others, if none has answered yet

T = TypeVar('T')
_faults: dict[str, str] = {}  # server -> why it cannot be reached, or ''


def unreachable(url: str) -> str:
    """Why the server of a URL cannot be reached; '' if it answers. Asks once per process, for at most SECONDS.

    Less if none of the servers asked before could be reached: several may have the same data.
    """
    server = '{0.scheme}://{0.netloc}'.format(urllib.parse.urlsplit(url))
    if server not in _faults:
        seconds = min(SECONDS, _AFTER_FAULTS) if _faults and all(_faults.values()) else SECONDS
        try:
            _faults[server] = within(seconds, lambda: _ask(server, seconds))
        except TimeoutError:
            _faults[server] = f'{server} does not answer in {seconds:g} s'
    return _faults[server]


def within(seconds: float, function: Callable[[], T]) -> T:
    """What `function` returns or raises; TimeoutError if it takes longer, and its thread is then left alone.

    Timeouts of sockets do not cover the search for an address, nor an answer that comes byte by byte.
    """
    outcome = queue.SimpleQueue()

    def run():
        try:
            outcome.put((function(), None))
        except BaseException as error:  # raised below, in the caller's thread
            outcome.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f'no answer in {seconds:g} s') from None
    if error is not None:
        raise error
    return result


def _ask(server: str, seconds: float) -> str:
    try:
        urllib.request.urlopen(urllib.request.Request(server, method='HEAD'), timeout=seconds).close()
    except (urllib.error.HTTPError, http.client.HTTPException):  # an answer
        return ''
    except (OSError, ValueError) as error:  # ValueError: not a URL
        reason = getattr(error, 'reason', error)
        if isinstance(reason, ssl.SSLError):  # an answer: the library that asks next has its own certificates
            return ''
        return f'{server} cannot be reached: {getattr(reason, "strerror", None) or reason}'
    return ''
