"""Batches read ahead of the step that takes them: from shards by tf.data, or by threads if TensorFlow is not installed;
from examples in memory by threads, which need no import and wait less for each other."""

import collections
import concurrent.futures
import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging

from gpt1_jax.files import import_tensorflow

_AHEAD = 4  # batches
_READERS = 2
_WITHOUT = 2  # batches read without TensorFlow


def prefetch(batches: Any, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
    """`batches.batch_at(step)` for step in [start, stop), read ahead, in order.

    A batch is a function of its step, so there is no state to save: to resume is to start later.

    Args:
      batches: has `batch_at(step) -> dict of arrays`, with the same names and types for every step, and `from_shards`,
        whether they come from files.
    Raises: what `batch_at` raises.
    """
    if start >= stop:
        return iter(())
    if batches.from_shards:
        if _has_tensorflow():
            return _by_tf_data(batches, start, stop)
        logging.log_first_n(logging.INFO, 'TensorFlow is not installed: threads read the batches ahead in its place', 1)
    return _by_threads(batches, start, stop)


def warm_up(batches: Any) -> None:
    """Imports what `prefetch` would import after the first batches, so that measured reading does not include it."""
    if batches.from_shards and _has_tensorflow():
        import_tensorflow()


def _has_tensorflow():
    return importlib.util.find_spec('tensorflow') is not None


def _by_threads(batches, start, stop):
    steps, reading = iter(range(start, stop)), collections.deque()
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        try:
            for step in steps:
                reading.append(pool.submit(batches.batch_at, step))
                if len(reading) == _AHEAD:
                    yield reading.popleft().result()
            while reading:
                yield reading.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _by_tf_data(batches, start, stop):
    # TensorFlow takes seconds to import, which would delay the first step. The training loop asks for the third batch
    # when it has read the first step's metrics.
    begin = min(start + _WITHOUT, stop)
    for step in range(start, begin):
        first = batches.batch_at(step)
        yield first
    if begin == stop:
        return
    tf = import_tensorflow()
    failures = []

    def read(step):
        try:
            batch = batches.batch_at(int(step))
            return [batch[name] for name in first]
        except Exception as error:  # tf.data would turn it into a text with a traceback of its own
            failures.append(error)
            raise

    types = [value.dtype for value in first.values()]
    dataset = (
        tf.data.Dataset.range(begin, stop)
        .map(lambda step: tf.numpy_function(read, [step], types), num_parallel_calls=_READERS, deterministic=True)
        .prefetch(_AHEAD - _READERS)
    )
    # There is nothing to tune, and at the end a run would wait for the tuning thread, which sleeps up to a minute.
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = dataset.with_options(options)
    try:
        for values in dataset.as_numpy_iterator():
            yield dict(zip(first, values, strict=True))
    except tf.errors.OpError:
        if failures:
            raise failures[0] from None
        raise
