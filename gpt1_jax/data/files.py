"""What all that reads and writes files shares."""

import contextlib
import importlib
import os
from collections.abc import Iterable

from etils import epath

from gpt1_jax.errors import UserError


def is_local(path: epath.Path) -> bool:
    return '://' not in os.fspath(path)


def import_package(name: str, purpose: str):
    """Imports a package that is needed for some purposes only. `purpose`: what is impossible without it, as a clause.

    Raises UserError, which names the package, if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f'The package {error.name or name} is not installed, and {purpose} without it: '
                        'pip install -r requirements.txt.') from error


def import_tensorflow():
    """TensorFlow, kept off the accelerator, whose memory is JAX's. Raises UserError if it is not installed."""
    tf = import_package('tensorflow', 'TensorFlow Datasets cannot be read')
    with contextlib.suppress(RuntimeError):  # already in use: then it is too late, and harmless
        tf.config.set_visible_devices([], 'GPU')
    return tf


def write_atomically(path: epath.Path, parts: Iterable) -> None:
    """Writes the parts (bytes or arrays) such that `path` never holds only some of them.

    Raises:
        UserError: the disk is full, or the place cannot be written to.
    """
    temporary = path.with_name(path.name + '.tmp')
    try:
        with temporary.open('wb') as file:
            for part in parts:
                file.write(part if is_local(path) else bytes(part))
            file.flush()
            if is_local(path):
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f'Cannot write {path} ({error.strerror or error}): make room or choose another '
                        'place; what is finished is kept.') from error


def make_directory(path: epath.Path) -> None:
    """Makes a directory and those above it; raises UserError where that is impossible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'Cannot make the directory {path} ({error.strerror or error}): choose another '
                        'place.') from error
