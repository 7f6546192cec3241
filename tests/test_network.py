"""Servers that answer, refuse and are silent."""

import socket
import threading
import time

import pytest

from gpt1_jax import network
from servers import Server, running


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(network, '_faults', {})
    monkeypatch.setattr(network, 'SECONDS', 0.5)
    for name in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY', 'all_proxy'):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def silent():
    """The URL of a server that takes a connection and says nothing."""
    with socket.create_server(('127.0.0.1', 0)) as listener:
        yield f'http://127.0.0.1:{listener.getsockname()[1]}/file'


def closed():
    """The URL of a port that refuses."""
    with socket.create_server(('127.0.0.1', 0)) as listener:
        return f'http://127.0.0.1:{listener.getsockname()[1]}/file'


def test_a_server_that_answers_is_asked_once():
    with running(Server()) as server:
        assert network.unreachable(f'{server.url}/a/file') == network.unreachable(server.url) == ''
        assert server.asked == [('HEAD', '/')]
    assert network.unreachable(server.url) == ''


def test_any_status_is_an_answer():
    with running(Server()) as server:
        server.root = 503
        assert network.unreachable(server.url) == ''


def test_what_is_no_http_is_an_answer_too():
    """A library that asks next may understand it: it has proxies and certificates of its own."""
    with running(Server()) as server:
        assert network.unreachable(server.url.replace('http', 'https')) == ''
    with socket.create_server(('127.0.0.1', 0)) as listener:

        def answer():
            with listener.accept()[0] as connection:
                connection.recv(2**16)
                connection.sendall(b'220 ready\r\n')

        thread = threading.Thread(target=answer)
        thread.start()
        assert network.unreachable(f'http://127.0.0.1:{listener.getsockname()[1]}') == ''
        thread.join()


def test_one_that_refuses_or_is_silent(silent):
    refused, late = network.unreachable(closed()), network.unreachable(silent)
    assert 'http://127.0.0.1:' in refused and 'Connection refused' in refused
    assert 'http://127.0.0.1:' in late and ('timed out' in late or 'does not answer' in late)


def test_patience_ends_where_nobody_answers(monkeypatch):
    given = []
    monkeypatch.setattr(network, '_AFTER_FAULTS', 0.2)
    monkeypatch.setattr(network, '_ask', lambda server, seconds: given.append(seconds) or 'silent')
    for number in range(4):
        assert network.unreachable(f'http://{number}') == 'silent'
    assert given == [0.5, 0.2, 0.2, 0.2]
    network._faults['http://0'] = ''  # there is a network
    network.unreachable('http://5')
    assert given[-1] == 0.5


def test_a_name_that_nobody_knows():
    assert 'cannot be reached' in network.unreachable('http://no.such.host.invalid/') or network._faults


def test_within():
    assert network.within(5, lambda: 3) == 3
    assert network.within(5, lambda: threading.current_thread().daemon)  # else the program would wait for it
    with pytest.raises(KeyError, match='a'):
        network.within(5, lambda: {}['a'])
    release = threading.Event()
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        network.within(0.05, release.wait)
    assert time.monotonic() - began < 4  # not until the function ends
    release.set()


def test_what_is_no_url():
    for url in ('', 'localhost', '://', 'http://'):
        assert 'cannot be reached' in network.unreachable(url) and 'None' not in network.unreachable(url)
