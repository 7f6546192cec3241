"""Batches through tf.data: reading and packing run beside the device's work."""

from collections.abc import Iterator

import numpy as np

from gpt1_jax.data.files import import_tensorflow


def stream(batches, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
    """`batches.batch_at(step)` for step in [start, stop), prefetched, in order.

    A batch is a function of its step, so a stream has no state to save: to resume is to start later.

    Args:
      batches: has `batch_at(step) -> dict of arrays`; names and types are the same for every step.
    Raises: what `batch_at` raises.
    """
    if start >= stop:
        return
    tf = import_tensorflow()
    first = batches.batch_at(start)
    failures = []

    def read(step):
        try:
            batch = batches.batch_at(int(step))
            return [batch[name] for name in first]
        except Exception as error:  # tf.data would turn it into a text with a traceback of its own
            failures.append(error)
            raise

    types = [value.dtype for value in first.values()]
    dataset = tf.data.Dataset.range(start, stop).map(
        lambda step: tf.numpy_function(read, [step], types), num_parallel_calls=2, deterministic=True).prefetch(2)
    try:
        for values in dataset.as_numpy_iterator():
            yield dict(zip(first, values, strict=True))
    except tf.errors.OpError:
        if failures:
            raise failures[0] from None
        raise
