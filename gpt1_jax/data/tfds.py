"""Data sets of TensorFlow Datasets; one that is not prepared is downloaded and prepared first."""

import contextlib
import fcntl
import functools
import importlib
import itertools
import os
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from gpt1_jax import network
from gpt1_jax.errors import UserError
from gpt1_jax.files import import_package, import_tensorflow, is_local
from gpt1_jax.progress import waiting

_RETRIES = 2
# The server of sets that do not say which files they download (pg19).
_USUAL_SERVER = 'https://storage.googleapis.com'


def open_builder(name: str, download: bool = True) -> Any:
    """The builder of a prepared set; one that is not prepared is prepared first, if `download` allows it.

    Raises:
      UserError: no such set; it is not prepared and cannot be downloaded, which is found out in about 20 seconds.
    """
    tfds = _import_tfds()
    builder = _builder(tfds, name)
    if builder.info.splits:
        return builder
    if not download:
        raise UserError(f'tfds:{name}: The set is not in {builder.data_dir}, and data.download is False. {_fix(name)}')
    with _one_process(epath.Path(builder.data_dir_root)):
        builder = _builder(tfds, name)  # another process may have prepared it meanwhile
        if not builder.info.splits:
            _prepare(name, builder)
    return builder


def entries(names: str, split: str, download: bool = True) -> Iterator[tuple[str, dict]]:
    """(where, entry) of one split of some sets, one set after the other. names: separated by commas.

    Raises UserError as `open_builder` does, or if a set has no such split.
    """
    tfds, tf = _import_tfds(), import_tensorflow()
    for name in names.split(','):
        builder = open_builder(name, download)
        try:
            found = tfds.as_numpy(builder.as_dataset(split=split))
        except (AssertionError, ValueError) as error:  # no such split, or its files are not there
            raise UserError(
                f'tfds:{name}, split {split!r}: It cannot be read ({_reason(error)}). {_fix(name)}'
            ) from error
        try:
            for number, entry in enumerate(found):
                where = f'tfds:{name}, split {split!r}, row {number}'
                yield where, {key: _plain(value, where) for key, value in entry.items()}
        except tf.errors.OpError as error:
            raise damaged(name, builder) from error


def splits(names: str, download: bool = True) -> set[str]:
    """The splits that all of these sets have. Raises UserError as `open_builder` does."""
    return set.intersection(*(set(open_builder(name, download).info.splits) for name in names.split(',')))


def count(names: str, split: str, download: bool = True) -> int:
    """How many entries a split of these sets has, without reading them. Raises UserError as `entries` does."""
    number = 0
    for name in names.split(','):
        there = open_builder(name, download).info.splits
        if split not in there:
            raise UserError(f'tfds:{name}: There is no split {split!r}, only {", ".join(there)}. {_fix(name)}')
        number += there[split].num_examples
    return number


def _import_tfds():
    tfds = import_package('tensorflow_datasets', 'tfds: sources cannot be read')
    tfds.core.features.feature.importlib = types.SimpleNamespace(import_module=_import_feature)
    return tfds


def _import_feature(name):
    """Replaces TFDS's import, which would import any module that a prepared set's features.json names."""
    if not name.startswith('tensorflow_datasets.'):
        raise ImportError(f'{name} is not of TensorFlow Datasets')
    return importlib.import_module(name)


def _builder(tfds, name):
    try:
        # Read here: TFDS itself reads the variable once, when it is first imported.
        return tfds.builder(name, data_dir=os.environ.get('TFDS_DATA_DIR'))
    except (ValueError, ImportError) as error:  # not found, or an unknown config
        raise UserError(
            f'tfds:{name}: TensorFlow Datasets has no such set. Correct the name if it is wrong. {_fix(name)}'
        ) from error


def _fix(name):
    return (
        f'Prepare it once where there is a network (tfds build {name}), and set TFDS_DATA_DIR to its folder; or give '
        'files:/dir, text:/dir or hf:OWNER/NAME.'
    )


def _prepare(name, builder):
    urls = [url for url in builder.url_infos or () if url.startswith('http')] or [_USUAL_SERVER]
    by_hand = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    faults = [] if by_hand else list(itertools.takewhile(bool, map(network.unreachable, urls)))
    if len(faults) == len(urls):  # of glue, only some are of the config that is wanted
        raise UserError(
            f'tfds:{name}: The set is not in {builder.data_dir}, and cannot be downloaded ({faults[0]}). {_fix(name)}'
        )
    logging.info('tfds:%s: downloading and preparing it in %s (%s)', name, builder.data_dir, builder.info.download_size)
    import_tensorflow()
    downloader = import_package('tensorflow_datasets.core.download.downloader', 'tfds: sources cannot be prepared')
    try:
        with _impatient(downloader):
            builder.download_and_prepare()
    except Exception as error:  # of many types, for the many faults of networks, servers and disks
        if by_hand and isinstance(error, (AssertionError, FileNotFoundError)):
            raise UserError(
                f'tfds:{name}: The set must be downloaded by hand. {" ".join(by_hand.split())} The manual directory is '
                f'{epath.Path(builder.data_dir_root) / "downloads" / "manual"}.'
            ) from error
        raise UserError(
            f'tfds:{name}: The set cannot be downloaded and prepared ({_reason(error)}). Run the command again, which '
            f'keeps the files that are whole. {_fix(name)}'
        ) from error
    logging.info('tfds:%s: prepared in %s', name, builder.data_dir)


@contextlib.contextmanager
def _impatient(downloader):
    """Without it TFDS waits for ever for a server that falls silent, and asks one that refuses for minutes."""
    patient = downloader._open_url, downloader.MAX_RETRIES
    downloader._open_url = functools.partial(patient[0], timeout=network.SECONDS)
    downloader.MAX_RETRIES = _RETRIES
    try:
        yield
    finally:
        downloader._open_url, downloader.MAX_RETRIES = patient


@contextlib.contextmanager
def _one_process(folder: epath.Path):
    """Lets one process on this machine prepare sets in a folder at a time."""
    if not is_local(folder):
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / '.gpt1_jax.lock').open('w')
    except OSError as error:
        raise UserError(
            f'{folder}: The folder cannot be written ({error.strerror}). Set TFDS_DATA_DIR to another one.'
        ) from error
    with lock:
        with waiting(f'waiting for the process that prepares a set in {folder}'):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _plain(value, where: str):
    """NumPy values, bytes and ragged tensors of TFDS -> what json would give."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f'{where}: The text is not UTF-8 at byte {error.start}. Prepare the data set again.'
            ) from error
    if hasattr(value, 'to_list'):  # a ragged tensor
        value = value.to_list()
    elif isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(element, where) for element in value]
    return value.item() if isinstance(value, np.generic) else value


def damaged(name: str, builder: Any) -> UserError:
    """The error for files of a prepared set that TensorFlow cannot read."""
    return UserError(
        f'tfds:{name}: The files in {builder.data_dir} are damaged. Delete that folder, and prepare the set again.'
    )


def _reason(error):
    text = str(error).partition('\n')[0].partition('. ')[0].rstrip('.')[:300]
    return text or type(error).__name__
