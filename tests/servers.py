"""HTTP servers of this machine that stand in for the Hugging Face hub and for the hosts of TFDS, faults included."""

import contextlib
import hashlib
import http.server
import json
import threading
import time
import urllib.parse

MAIN = 'main'


class Server(http.server.ThreadingHTTPServer):
    """Serves files by path.

    Attributes:
      files: path -> bytes.
      faults: path -> how many times it is still wrong, and how: 'cut' (half of it, then the connection is closed),
        'dead' (closed at once), 'silent' (no answer), 'changed' (other bytes), or a status.
      asked: (method, path) of every request; `headers` of the last one; `ranges` that were asked for.
    """

    daemon_threads = True
    root = 200  # the status of /

    def __init__(self):
        super().__init__(('127.0.0.1', 0), _Handler)
        self.files, self.faults, self.asked, self.headers, self.ranges = {}, {}, [], {}, []

    @property
    def url(self):
        return f'http://127.0.0.1:{self.server_port}'

    def fetched(self):
        """The paths of files that were asked for, without those of the interface."""
        return [path for method, path in self.asked if method == 'GET' and not path.startswith('/api/')]

    def answer(self, path):
        """(status, headers, bytes)"""
        return (200, {}, self.files[path]) if path in self.files else (404, {}, b'')

    def fault(self, path):
        count, what = self.faults.get(path, (0, ''))
        self.faults[path] = (count - 1, what)
        return what if count > 0 else ''


class Hub(Server):
    """The hub's interface, as far as huggingface_hub asks for it.

    Attributes:
      refused: repository -> (status, value of X-Error-Code).
    """

    def __init__(self):
        super().__init__()
        self.refused, self._commits = {}, {}

    def add(self, name, files, kind='model', revision=MAIN):
        """Puts a revision of a repository there; returns its commit. files: name -> bytes."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self._commits[kind, name, revision] = self._commits[kind, name, commit] = commit
        siblings = []
        for file, data in files.items():
            blob = hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()
            sibling = {'rfilename': file, 'size': len(data), 'blobId': blob}
            if file.endswith(('.safetensors', '.parquet', '.bin')):  # stored apart from git, as on the hub
                sha256 = hashlib.sha256(data).hexdigest()
                sibling |= {'blobId': '0' * 40, 'lfs': {'size': len(data), 'sha256': sha256, 'pointerSize': 130}}
            siblings.append(sibling)
            prefix = '/datasets' if kind == 'dataset' else ''
            self.files[f'{prefix}/{name}/resolve/{commit}/{file}'] = data
        self.files[f'/api/{kind}s/{name}/revision/{commit}'] = json.dumps(
            {'id': name, 'sha': commit, 'siblings': siblings}
        ).encode()
        return commit

    def answer(self, path):
        parts = path.strip('/').split('/')
        for name, (status, code) in self.refused.items():
            if name in path:
                return status, {'X-Error-Code': code} if code else {}, b''
        if parts[0] == 'api':
            kind, name = parts[1].removesuffix('s'), '/'.join(parts[2:4])
            revision = '/'.join(parts[5:]) or MAIN
            if not any(known[:2] == (kind, name) for known in self._commits):
                return 401, {}, b''  # what the hub says of unknown and of private ones
            if (kind, name, revision) not in self._commits:
                return 404, {'X-Error-Code': 'RevisionNotFound'}, b''
            path = f'/api/{kind}s/{name}/revision/{self._commits[kind, name, revision]}'
        if f'/resolve/{MAIN}/' in path:
            kind = 'dataset' if parts[0] == 'datasets' else 'model'
            name = path.partition('/resolve/')[0].removeprefix('/datasets').strip('/')
            path = path.replace(MAIN, self._commits[kind, name, MAIN], 1)
        status, headers, data = super().answer(path)
        if '/resolve/' in path:
            commit = path.split('/resolve/')[1].split('/')[0]
            headers |= {'X-Repo-Commit': commit, 'ETag': f'"{hashlib.sha256(data).hexdigest()}"'}
            if status == 404:
                headers['X-Error-Code'] = 'EntryNotFound'
        return status, headers, data


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_HEAD(self):
        self._reply(False)

    def do_GET(self):
        self._reply(True)

    def log_message(self, *_):
        pass

    def _reply(self, with_body):
        path = urllib.parse.unquote(self.path.partition('?')[0])
        self.server.asked.append((self.command, path))
        self.server.headers = dict(self.headers)
        if path == '/':
            return self._send(self.server.root, {}, b'', True)
        fault = self.server.fault(path) if with_body else ''
        if fault == 'silent':
            time.sleep(5)
            return None
        if fault == 'dead':
            self.close_connection = True
            return None
        if isinstance(fault, int):
            return self._send(fault, {}, b'', True)
        status, headers, data = self.server.answer(path)
        if fault == 'changed':
            data = bytes(byte ^ 1 for byte in data)
        if with_body and status == 200 and (span := self.headers.get('Range', '')).startswith('bytes='):
            self.server.ranges.append(span)
            start = int(span.removeprefix('bytes=').split('-')[0])
            headers['Content-Range'] = f'bytes {start}-{len(data) - 1}/{len(data)}'
            status, data = 206, data[start:]
        return self._send(status, headers, data, with_body, cut=fault == 'cut')

    def _send(self, status, headers, data, with_body, cut=False):
        self.send_response(status)
        for name, value in {'Content-Length': len(data), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if with_body and self.command != 'HEAD':
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True


@contextlib.contextmanager
def running(server):
    """Serves until the end of the block, or until `server.shutdown()` and `server.server_close()`."""
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
