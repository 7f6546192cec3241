"""Helpers for files: atomic writes, JSON, errors of the file system in words, and packages that only some runs need."""

import contextlib
import errno
import hashlib
import importlib
import importlib.metadata
import json
import os
import re
import shutil
import tempfile
import time
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from absl import logging
from etils import epath

from gpt1_jax import stopping
from gpt1_jax.errors import UserError
from gpt1_jax.remote import is_local

# Errors of a disk or a network file system that may be gone a moment later.
_PASSING = {
    *(errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT, errno.EBUSY, errno.ENOTCONN),
    *(errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN),
}
_WAITS = (0.1, 0.5, 2.0)  # seconds before each further attempt

_MOST_JSON = 2**26  # bytes of a JSON file; its value takes up to 40 times as much memory
_DEEPEST_JSON = 100  # lists in lists; the functions that take the value call themselves for each

T = TypeVar('T')


def patiently(operation: Callable[[], T]) -> T:
    """What `operation`, which must only read, returns. After an error of the disk or network that may pass, it is
    called again, up to three times within three seconds. Raises the last OSError."""
    for seconds in _WAITS:
        try:
            return operation()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
            logging.warning('%s: %s. Tried again in %g s.', error.filename or 'file', error.strerror, seconds)
        time.sleep(seconds)
    return operation()


def exists(path: epath.Path) -> bool:
    """Whether there is something at a path. Raises OSError if that cannot be known: `path.exists()` would say no, and
    its caller would make anew what is there."""
    if not is_local(path):
        return path.exists()
    try:
        patiently(lambda: os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def size_of(path: epath.Path) -> int:
    """Bytes of a file. Not `path.stat()`: it fails where the owner of a local file has no name."""
    return patiently(lambda: os.stat(path).st_size) if is_local(path) else path.stat().length


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that Python or XLA, which has several messages for it, is out of memory."""
    return isinstance(error, MemoryError) or bool(re.search('RESOURCE_EXHAUSTED|INTERNAL: .*Out of memory', str(error)))


def explain(error: BaseException) -> str:
    """The message for an unhandled error of the file system or gs://, or for lack of memory; '' for other errors."""
    if is_out_of_memory(error):
        reason = ' '.join(str(error).split())[:200].rstrip('.') or 'MemoryError'
        return f'memory: There is not enough ({reason}). Make the batch or the model smaller, or use more devices.'
    if not isinstance(error, OSError) or not error.errno:
        return ''
    advice = {
        errno.ENOENT: 'Put it back, or name another.',
        errno.EACCES: 'Give this user permission, or name another.',
        errno.EPERM: 'Give this user permission, or name another.',
        errno.EROFS: 'Name another, which can be written.',
        errno.ENOSPC: 'Make room, or name another.',
        errno.EDQUOT: 'Make room, or name another.',
    }
    where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else 'file'
    fix = _fix(where, advice.get(error.errno, 'Check the path and its disk.'))
    return f'{where}: It cannot be read or written ({error.strerror or error}). {fix}'


def _fix(path, of_disk):
    """What to do about an error at a path: `of_disk` if it is on this machine."""
    of_store = 'Check the path, the network, and what your account may do (gcloud auth application-default login).'
    return of_disk if is_local(path) else of_store


def import_package(name: str, impossible: str, install: str = 'pip install -r requirements.txt') -> types.ModuleType:
    """Imports a package that only some runs need. `impossible`: what they cannot do without it, as a clause.

    Raises UserError, which names the package, if it is not installed.
    """
    try:
        with stopping.postponed():
            return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f'{error.name or name}: This package is not installed, and {impossible} without it. Install it '
            f'with {install}.'
        ) from error


def package_version(name: str) -> str:
    """The version of an installed package; '' if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ''


def import_tensorflow() -> types.ModuleType:
    """TensorFlow, kept off the accelerator: its memory is JAX's. Raises UserError if it is not installed."""
    tf = import_package('tensorflow', 'TensorFlow Datasets cannot be read')
    with contextlib.suppress(RuntimeError):  # already in use: then it is too late, and harmless
        tf.config.set_visible_devices([], 'GPU')
    return tf


@contextlib.contextmanager
def local_copy(path: epath.Path) -> Iterator[os.PathLike | str]:
    """For libraries that read only local files: the path itself, or, if it is in a remote store, a copy that is there
    for the length of the block. What was opened or mapped in the block stays readable after it."""
    if is_local(path):
        yield path
        return
    with path.open('rb') as file, tempfile.NamedTemporaryFile() as copy:
        shutil.copyfileobj(file, copy, 2**20)
        copy.flush()
        yield copy.name


def write_atomically(path: epath.Path, parts: Iterable, suffix: str = '.tmp') -> None:
    """Writes the parts (bytes or arrays) so that `path` never holds only some of them.

    Args:
      suffix: of the temporary file's name; no other process may use the same one at that time.
    Raises:
      UserError: the disk is full, or the path cannot be written to.
    """
    temporary = path.with_name(path.name + suffix)
    try:
        with temporary.open('wb') as file:
            for part in parts:
                file.write(part)
            file.flush()
            if is_local(path):
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        fix = _fix(path, 'Make room or choose another path; what is finished is kept.')
        raise UserError(f'{path}: The file cannot be written ({error.strerror or error}). {fix}') from error


def make_directory(path: epath.Path) -> None:
    """Makes a folder and those above it; raises UserError if that is impossible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fix = _fix(path, 'Choose another path.')
        raise UserError(f'{path}: The folder cannot be made ({error.strerror or error}). {fix}') from error


def check_renaming(directory: epath.Path) -> None:
    """Makes the folder, and raises UserError if folders in it cannot be renamed, as in a mounted bucket: a local
    checkpoint becomes valid by a renaming. In a remote store it needs none."""
    make_directory(directory)
    if not is_local(directory):
        return
    try:
        probe = tempfile.mkdtemp(prefix='.probe-', dir=directory)
        try:
            os.mkdir(f'{probe}/before')
            with open(f'{probe}/before/file', 'wb'):
                pass
            os.rename(f'{probe}/before', f'{probe}/after')
        finally:
            shutil.rmtree(probe, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f'{directory}: Checkpoints cannot be saved there, because folders cannot be made and renamed '
            f'({error.strerror or error}). Name another --workdir; of a mounted bucket, its gs:// path.'
        ) from error


def write_json(path: epath.Path, value: object) -> None:
    """Writes JSON whole or not at all. Raises UserError if that is impossible."""
    write_atomically(path, [json.dumps(value, indent=2).encode() + b'\n'])


def sealed(value: dict) -> dict:
    """`value` (JSON types) with the key sha256, a checksum of the others: for files where nothing else would show that
    a bit has changed."""
    content = json.loads(json.dumps({name: of_name for name, of_name in value.items() if name != 'sha256'}))
    checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {**value, 'sha256': checksum}


def check_seal(path: epath.Path, value: dict, fix: str) -> None:
    """Raises UserError, which names the file, if its value is not as it was `sealed`; one without a checksum, of an
    earlier version, passes."""
    if 'sha256' in value and value['sha256'] != sealed(value)['sha256']:
        raise UserError(f'{path}: The file is damaged (it has another checksum). {fix}')


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError if it is not JSON, if one key has two values, or if it nests deeper
    than anything here does."""
    try:
        text = text if isinstance(text, str) else text.decode(json.detect_encoding(text))
        value = _DECODER.decode(text)
    except RecursionError:
        raise ValueError('it is nested too deeply') from None
    if text.count('[') + text.count('{') < _DEEPEST_JSON:
        return value
    level = [value]
    for _ in range(_DEEPEST_JSON):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return value
    raise ValueError('it is nested too deeply')


def _with_keys_once(pairs: list[tuple]) -> dict:
    value = dict(pairs)
    if len(value) < len(pairs) and any(value[key] != one for key, one in pairs):  # two entries ran into one another
        raise ValueError('an object has two values of one key')
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_with_keys_once)


def read_json(path: epath.Path, form: Any = dict, fix: str = 'Put a copy back, or name another --workdir.') -> Any:
    """The value of a JSON file.

    Args:
      form: of the value. A type, of which `float` takes whole numbers too, `object` all, and `os.PathLike` strings
        that can be a path; a tuple, any of its forms; [form], a list of values of this form; {name: form, ...}, an
        object with at least these keys; {str: form}, one with any keys. Whole numbers have 64 bits.
      fix: what to do where it has another one.
    Raises:
      UserError: it is not JSON of this form. OSError: it is not there, or cannot be read.
    """
    try:
        value = parse_json(patiently(lambda: _read_start(path)))
    except ValueError as error:
        raise UserError(f'{path}: The file is damaged ({error}). {fix}') from error
    check_form(path, value, form, fix)
    return value


def check_file(path: os.PathLike) -> None:
    """Raises UserError for a folder, a pipe or a device in the place of a file: reading some would never end."""
    if is_local(path) and os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f'{path}: This is not an ordinary file. Put the file there, or name another.')


def check_form(path: epath.Path, value: object, form: Any, fix: str) -> None:
    """Raises UserError, which names the file, if its value does not have the form; see `read_json`."""
    if fault := _misfit(value, form, ''):
        raise UserError(f'{path}: The file is damaged ({fault}). {fix}')


def _read_start(path):
    check_file(path)
    with path.open('rb') as file:
        data = file.read(_MOST_JSON + 1)
    if len(data) > _MOST_JSON:
        raise ValueError(f'it has more than {_MOST_JSON:,} bytes')
    return data


def _misfit(value, form, name: str) -> str:
    """Which part of a value does not have the form, in words; '' if all do. name: of the value."""
    what = name.removeprefix('.') or 'it'
    if isinstance(form, tuple):
        faults = [_misfit(value, one, name) for one in form]
        return faults[0] if all(faults) else ''
    if isinstance(form, list | dict):
        if not isinstance(value, type(form)):
            return f'{what} is not {"a list" if isinstance(form, list) else "an object"}'
        if isinstance(form, list):
            parts = ((f'{name}[{i}]', one, form[0]) for i, one in enumerate(value))
        elif str in form:
            parts = ((f'{name}.{key}', one, form[str]) for key, one in value.items())
        else:
            if missing := [key for key in form if key not in value]:
                return f'{what} lacks {missing[0]!r}'
            parts = ((f'{name}.{key}', value[key], of_key) for key, of_key in form.items())
        return next(filter(None, (_misfit(one, of_one, of_name) for of_name, one, of_one in parts)), '')
    if form is object or (type(value) is form and form is not int):
        return ''
    if type(value) is int and form in (int, float) and -(2**63) <= value < 2**63:
        return ''
    if form is os.PathLike and isinstance(value, str) and _can_be_path(value):
        return ''
    return f'{what} is {str(value)[:40]!r}'


def _can_be_path(text):
    try:
        return b'\0' not in os.fsencode(text)
    except UnicodeEncodeError:  # half a character
        return False
