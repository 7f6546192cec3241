"""A server of this machine that stands in for Google Cloud Storage, faults included: slow, 503, cut, no permission.

It speaks what TensorFlow (epath's gs://) and TensorStore (Orbax's) ask of the service. TensorFlow knows no other
address than the real one: for it the server is an HTTPS proxy, with a certificate of its own.
"""

import collections
import contextlib
import http.server
import json
import re
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse

from servers import running

BUCKET = 'bucket'
_HOSTS = 'subjectAltName=DNS:www.googleapis.com,DNS:storage.googleapis.com'


class Bucket(http.server.ThreadingHTTPServer):
    """Holds objects.

    Attributes:
      objects: (bucket, name) -> bytes. generations: the same -> int. buckets: those that exist.
      token: that every request must bear.
      fault: (method, path, number of the request) -> '', 'slow', 'cut' (half of what is sent to the client, or
        by it, then the connection is closed), 'lost' (done, but no answer), or a status.
      asked: (method, path, fault) of every request.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder):
        """folder: for the certificate."""
        super().__init__(('127.0.0.1', 0), _Handler)
        self.objects, self.generations, self.buckets = {}, collections.Counter(), {BUCKET}
        self.token, self.fault, self.asked = 'token', lambda method, path, number: '', []
        self.sessions, self.lock, self.seconds = [], threading.RLock(), 2.0
        self.certificate, key = folder / 'certificate.pem', folder / 'key.pem'
        subprocess.run(
            ['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes']
            + ['-days', '2', '-subj', '/CN=stand-in', '-addext', _HOSTS, '-keyout', key, '-out', self.certificate],
            check=True,
            capture_output=True,
        )
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(self.certificate, key)

    @property
    def environment(self):
        """What makes a program use this server for gs://."""
        url = f'http://127.0.0.1:{self.server_port}'
        return {
            'https_proxy': url,
            'CURL_CA_BUNDLE': str(self.certificate),
            'TENSORSTORE_GCS_HTTP_URL': url,
            'GOOGLE_AUTH_TOKEN_FOR_TESTING': self.token,
        }

    def names(self, prefix=''):
        """The names of the objects in BUCKET."""
        with self.lock:
            return sorted(name for bucket, name in self.objects if bucket == BUCKET and name.startswith(prefix))

    def put(self, key, data):
        self.objects[key] = data
        self.generations[key] += 1

    def described(self, key):
        return {
            'kind': 'storage#object',
            'bucket': key[0],
            'name': key[1],
            'size': str(len(self.objects[key])),
            'generation': str(self.generations[key]),
            'updated': '2020-01-01T00:00:00.000Z',
        }

    def handle_error(self, request, client_address):
        """Clients close connections as they like."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the client's acknowledgement

    def log_message(self, *_):
        pass

    def do_CONNECT(self):
        self.send_response(200)
        self.end_headers()
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile('rb'), self.connection.makefile('wb', 0)

    def do_GET(self):
        server, url = self.server, urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(url.query))
        with server.lock:
            fault = server.fault(self.command, self.path, len(server.asked))
            server.asked.append((self.command, self.path, fault))
        if fault == 'slow':
            time.sleep(server.seconds)
        self.body = b''
        for size in self._sizes():
            if fault == 'cut':
                self.rfile.read(size // 2)
                return self._hang_up()
            self.body += self.rfile.read(size)
        if isinstance(fault, int):
            return self._answer(fault, {'error': {'code': fault, 'message': 'as the test wants it'}})
        if server.token and self.headers.get('Authorization') != f'Bearer {server.token}':
            return self._answer(401, {'error': {'code': 401, 'message': 'Anonymous caller does not have access.'}})
        with server.lock:
            status, answer, headers = self._do(url.path)
        if fault == 'lost':
            return self._hang_up()
        return self._answer(status, answer, headers, cut=fault == 'cut')

    do_POST = do_PUT = do_DELETE = do_GET

    def _sizes(self):
        """The sizes of the pieces of the request's body, each to be read before the next."""
        if self.headers.get('Transfer-Encoding') != 'chunked':
            if length := int(self.headers.get('Content-Length') or 0):
                yield length
            return
        while size := int(self.rfile.readline(), 16):
            yield size
            self.rfile.readline()
        self.rfile.readline()

    def _hang_up(self):
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, status, answer=b'', headers=(), cut=False):
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {'Content-Length': len(data), **dict(headers)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self._hang_up()

    def _do(self, path):
        """(status, bytes or JSON, headers)"""
        api = re.fullmatch(
            r'(/upload)?/storage/v1/b/([^/]+)(/o)?(?:/([^/]+))?(?:/rewriteTo/b/([^/]+)/o/([^/]+))?', path
        )
        # The other form is the older interface, with which TensorFlow reads.
        parts = api.groups() if api else (None, path.split('/')[1], '/o', path.split('/', 2)[2], None, None)
        upload, bucket, objects, name, *target = (part and urllib.parse.unquote(part) for part in parts)
        if bucket not in self.server.buckets:
            return 404, {'error': {'code': 404, 'message': 'The specified bucket does not exist.'}}, {}
        if upload:
            return self._upload(bucket)
        if not objects:
            return 200, {'name': bucket, 'location': 'LOOPBACK'}, {}
        if not name:
            return 200, self._listing(bucket), {}
        key = bucket, name
        wanted = self.query.get('ifGenerationMatch')
        if wanted is not None and int(wanted) != (self.server.generations[key] if key in self.server.objects else 0):
            return 412, {'error': {'code': 412, 'message': 'conditionNotMet'}}, {}
        if key not in self.server.objects:
            return 404, {'error': {'code': 404, 'message': f'No such object: {bucket}/{name}'}}, {}
        if self.command == 'DELETE':
            del self.server.objects[key]
            return 204, b'', {}
        if target[0]:
            self.server.put(tuple(target), self.server.objects[key])
            return 200, {'done': True, 'resource': self.server.described(tuple(target))}, {}
        if api and self.query.get('alt') != 'media':
            return 200, self.server.described(key), {}
        return self._content(key)

    def _content(self, key):
        data, generation = self.server.objects[key], self.server.generations[key]
        headers = {'x-goog-generation': generation}
        if self.query.get('ifGenerationNotMatch') == str(generation):
            return 304, b'', headers
        if not (span := self.headers.get('Range', '').removeprefix('bytes=')):
            return 200, data, headers
        first, last = span.split('-')
        first, last = (int(first), int(last or len(data))) if first else (len(data) - int(last), len(data))
        if first >= len(data):
            return 416, b'', headers
        part = data[first : last + 1]
        return 206, part, headers | {'Content-Range': f'bytes {first}-{first + len(part) - 1}/{len(data)}'}

    def _listing(self, bucket):
        query, items, prefixes = self.query, [], []
        prefix, delimiter = query.get('prefix', ''), query.get('delimiter')
        start, end = query.get('pageToken', query.get('startOffset', '')), query.get('endOffset')
        most, answer = int(query.get('maxResults', 1000)), {'kind': 'storage#objects'}
        for name in sorted(name for one, name in self.server.objects if one == bucket and name.startswith(prefix)):
            if name < start or (end and name >= end):
                continue
            if len(items) + len(prefixes) == most:
                answer['nextPageToken'] = name
                break
            inner, slash, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, '', '')
            if not slash:
                items.append(self.server.described((bucket, name)))
            elif prefix + inner + slash not in prefixes:
                prefixes.append(prefix + inner + slash)
        return answer | ({'items': items} if items else {}) | ({'prefixes': prefixes} if prefixes else {})

    def _upload(self, bucket):
        server, query = self.server, self.query
        if 'upload_id' in query:
            return self._continue(int(query['upload_id']))
        key = bucket, query['name']
        wanted = query.get('ifGenerationMatch')
        if wanted is not None and int(wanted) != (server.generations[key] if key in server.objects else 0):
            return 412, {'error': {'code': 412, 'message': 'conditionNotMet'}}, {}
        if query['uploadType'] == 'media':
            server.put(key, self.body)
            return 200, server.described(key), {}
        server.sessions.append([key, b''])
        path = f'/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={len(server.sessions) - 1}'
        return 200, b'', {'Location': f'https://www.googleapis.com{path}'}

    def _continue(self, number):
        """A resumable upload: 'bytes FIRST-LAST/TOTAL' brings content, 'bytes */TOTAL' asks how much is there."""
        session = self.server.sessions[number]
        key, data = session
        first, last, total = re.fullmatch(
            r'bytes (?:(\d+)-(\d+)|\*)/(\d+)', self.headers.get('Content-Range', 'bytes 0-0/0')
        ).groups()
        if first is not None:
            data = session[1] = data[: int(first)] + self.body
        if len(data) == int(total):
            if self.server.objects.get(key) is not data:
                self.server.put(key, data)
            return 200, self.server.described(key), {}
        return 308, b'', {'Range': f'bytes=0-{len(data) - 1}'} if data else {}


@contextlib.contextmanager
def bucket(folder):
    """A running Bucket."""
    with running(Bucket(folder)) as server:
        yield server
