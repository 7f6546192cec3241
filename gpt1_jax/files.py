"""Helpers for files: atomic writes, JSON, and packages that only some runs need."""

import contextlib
import importlib
import importlib.metadata
import json
import os
import types
from collections.abc import Iterable

from etils import epath

from gpt1_jax.errors import UserError


def is_local(path: epath.Path | str) -> bool:
    """Whether a path is on this machine, not in a remote store such as gs://."""
    return '://' not in os.fspath(path)


def import_package(name: str, impossible: str) -> types.ModuleType:
    """Imports a package that only some runs need. `impossible`: what they cannot do without it, as a clause.

    Raises UserError, which names the package, if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f'{error.name or name}: This package is not installed, and {impossible} without it. Install it '
            'with pip install -r requirements.txt.'
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


def write_atomically(path: epath.Path, parts: Iterable) -> None:
    """Writes the parts (bytes or arrays) such that `path` never holds only some of them.

    Raises:
      UserError: the disk is full, or the path cannot be written to.
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
        raise UserError(
            f'{path}: The file cannot be written ({error.strerror or error}). Make room or choose another '
            'path; what is finished is kept.'
        ) from error


def make_directory(path: epath.Path) -> None:
    """Makes a folder and those above it; raises UserError where that is impossible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f'{path}: The folder cannot be made ({reason}). Choose another path.') from error


def write_json(path: epath.Path, value) -> None:
    """Writes JSON whole or not at all. Raises UserError where that is impossible."""
    write_atomically(path, [json.dumps(value, indent=2).encode() + b'\n'])


def read_json(path: epath.Path) -> object:
    """Raises UserError where the file is no JSON."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f'{path}: The file is damaged ({error}). Put a copy back, or name another --workdir.'
        ) from error
