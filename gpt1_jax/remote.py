"""gs:// paths that behave like local ones: open files are Python's, errors are OSErrors that name the path.

epath reads gs:// through TensorFlow, whose errors are of its own kind, and whose files open only in a `with` statement.
Importing this module is what makes epath use the class below.
"""

import contextlib
import ctypes
import errno
import functools
import importlib.util
import io
import os
import re

from etils import epath
from etils.epath import backend, gpath

from gpt1_jax.errors import UserError

# Of TensorFlow, which reads them when it is loaded. It tries again after 1, 2, 4, 8, 16, 16 seconds, and a failed
# upload as a whole seven times: a fault of half a minute passes unnoticed, one of five minutes ends the run. A server
# that is silent is given up after 30 seconds. Its cache of what is there would still have what others delete.
for _name, _value in {
    'GCS_RETRY_CONFIG_MAX_RETRIES': 6,
    'GCS_RETRY_CONFIG_MAX_DELAY_TIME_US': 16_000_000,
    'GCS_REQUEST_CONNECTION_TIMEOUT_SECS': 20,
    'GCS_REQUEST_IDLE_TIMEOUT_SECS': 30,
    'GCS_STAT_CACHE_MAX_AGE': 0,
}.items():
    os.environ.setdefault(_name, str(_value))

_NUMBERS = {  # of the errors of TensorFlow and of epath
    **dict.fromkeys(('NotFoundError', 'FileNotFoundError'), errno.ENOENT),
    **dict.fromkeys(('PermissionDeniedError', 'UnauthenticatedError'), errno.EACCES),
    **dict.fromkeys(('AlreadyExistsError', 'FileExistsError'), errno.EEXIST),
    'NotADirectoryError': errno.ENOTDIR,
    'IsADirectoryError': errno.EISDIR,
}
_OTHER = errno.ENETRESET  # not one that `files.patiently` tries again: TensorFlow has done so
_BUFFER = 2**20  # bytes


def is_local(path: epath.PathLike) -> bool:
    """Whether a path is on this machine, not in a remote store such as gs://."""
    return '://' not in os.fspath(path)


@epath.register_path_cls('gs://')
class RemotePath(gpath.PosixGPath):
    """A path in Google Cloud Storage. Raises UserError where there is no package that can reach it."""

    @property
    def _backend(self):
        found = super()._backend
        if found is backend.fsspec_backend and not importlib.util.find_spec('gcsfs'):
            raise UserError(
                f'{self}: TensorFlow is not installed, and gs:// cannot be read without it. Install it with '
                'pip install -r requirements.txt, or copy the files here.'
            )
        return _BACKEND if found is backend.tf_backend else found


class _Backend(type(backend.tf_backend)):
    def open(self, path, mode):
        with _named_errors(path):
            raw = _File(self.gfile.GFile(path, mode.replace('b', '') + 'b'), os.fspath(path), mode)
        file = io.BufferedReader(raw, _BUFFER) if 'r' in mode else _Writer(raw, _BUFFER)
        return file if 'b' in mode else io.TextIOWrapper(file, 'utf-8')

    def makedirs(self, path, *, exist_ok=False, mode=None):
        """Not TensorFlow's own: that asks for the bucket itself, which needs another permission, and for ever where
        there is none. Folders above need no making."""
        if not exist_ok and self.exists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(path))
        if len(epath.Path(path).parts) > 3:  # else it is a bucket
            self.gfile.mkdir(path)

    mkdir = makedirs

    def rmtree(self, path):
        """Not TensorFlow's own: after an error in the midst of it, that may leave files without a word."""
        if not self.exists(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
        # From the top: what a kill leaves of a checkpoint then lacks the file that makes it one.
        for folder, _, names in self.walk(os.fspath(path)):
            for name in (*names, ''):  # '': the folder itself, which need not be an object
                with contextlib.suppress(self.tf.errors.NotFoundError):
                    self.gfile.remove(f'{folder.rstrip("/")}/{name}')
        if self.exists(path):
            raise OSError(_OTHER, 'it is not deleted whole', os.fspath(path))

    def isdir(self, path):
        """Not TensorFlow's own: that says no where it cannot know, and a run would begin again."""
        try:
            return self.gfile.stat(path).is_directory
        except self.tf.errors.NotFoundError:
            return False

    def listdir(self, path):
        try:
            return self.gfile.listdir(path)
        except self.tf.errors.NotFoundError:  # TensorFlow asks its own `isdir`
            if not self.isdir(path):
                raise
            return self.gfile.listdir(path)

    def walk(self, top, *, top_down=True, on_error=None):
        """Not TensorFlow's own: that takes for a file what it cannot know to be a folder."""
        try:
            names = self.listdir(top)
        except OSError as error:
            if on_error:
                on_error(error)
            elif error.errno != errno.ENOENT:
                raise
            return
        folders = [name.rstrip('/') for name in names if name.endswith('/')]
        here = top, folders, [name for name in names if not name.endswith('/')]
        if top_down:
            yield here
        for folder in filter(None, folders):
            yield from self.walk(f'{top}/{folder}', top_down=top_down, on_error=on_error)
        if not top_down:
            yield here


def _with_named_errors(method):
    @functools.wraps(method)
    def named(self, path, *args, **kwargs):
        with _named_errors(path):
            return method(self, path, *args, **kwargs)

    return named


for _name in 'exists isdir listdir glob makedirs mkdir rmtree remove rename replace copy stat'.split():
    setattr(_Backend, _name, _with_named_errors(getattr(_Backend, _name)))
_BACKEND = _Backend()


class _File(io.RawIOBase):
    def __init__(self, file, path, mode):
        self._file, self._path, self._reads = file, path, 'r' in mode

    def readable(self):
        return self._reads

    def seekable(self):
        return self._reads

    def writable(self):
        return not self._reads

    def readinto(self, buffer):
        with _named_errors(self._path):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def write(self, data):
        with _named_errors(self._path):
            self._file.write(bytes(data))
        return len(data)

    def seek(self, offset, whence=os.SEEK_SET):
        with _named_errors(self._path):
            self._file.seek(offset, whence)
            return self._file.tell()

    def tell(self):
        return self._file.tell()

    def upload(self):
        """Not `flush`, which `close` calls again: another attempt, where one has just failed, takes minutes."""
        with _named_errors(self._path):
            self._file.flush()

    def close(self):
        if not self.closed:
            try:
                with _named_errors(self._path):
                    self._file.close()
            except OSError:
                # Kept alive: its destructor would upload again, for minutes, while no other thread may run.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._file))
                raise
            finally:
                super().close()


class _Writer(io.BufferedWriter):
    def flush(self):
        """Uploads all that was written."""
        super().flush()
        self.raw.upload()


@contextlib.contextmanager
def _named_errors(path):
    try:
        yield
    except Exception as error:
        is_tensorflow = type(error).__module__.startswith('tensorflow.python.framework.errors')
        if not is_tensorflow and not (isinstance(error, OSError) and error.errno is None):
            raise
        raise OSError(_NUMBERS.get(type(error).__name__, _OTHER), _reason(str(error)), os.fspath(path)) from error


def _reason(message):
    """What is wrong, without the place, in one line."""
    message = ' '.join(message.split())
    if status := re.search(r'HTTP response code (\d+)', message):
        said = re.search(r'"message": *"([^"]*)', message)
        return f'HTTP status {status[1]}' + (f', {said[1].rstrip(".")}' if said else '')
    if curl := re.search(r"libcurl code \d+ meaning '(.*?)', error details: (.*?)(?: when .*)?$", message):
        return f'{curl[1]}: {curl[2]}' if curl[2] != '(none)' else curl[1]
    return message if len(message) < 160 else message[:160] + '...'
