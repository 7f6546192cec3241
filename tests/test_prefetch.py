"""Batches read ahead, by tf.data and by threads: all, in order, with the errors of the reader."""

import threading
import time

import numpy as np
import pytest

from gpt1_jax.data import prefetch
from gpt1_jax.errors import UserError


class Batches:
    """Even steps are slow, so that readers finish out of order."""

    def __init__(self, failing=None, from_shards=True):
        self.failing, self.read, self.from_shards = failing, [], from_shards

    def batch_at(self, step):
        self.read.append(step)
        if step == self.failing:
            raise UserError(f'step {step} cannot be read')
        time.sleep(0.02 * (step % 2 == 0))
        return {'tokens': np.full((2, 3), step, np.uint16), 'weights': np.ones(2, np.float32) * step}


@pytest.fixture(params=['tf_data', 'threads'])
def by(request, monkeypatch):
    find_spec = prefetch.importlib.util.find_spec
    if request.param == 'threads':
        monkeypatch.setattr(
            prefetch.importlib.util, 'find_spec', lambda name: None if name == 'tensorflow' else find_spec(name)
        )
    else:
        pytest.importorskip('tensorflow')
    return request.param


def test_what_reading_needs_can_be_imported_before(by, monkeypatch):
    imported = []
    monkeypatch.setattr(prefetch, 'import_tensorflow', lambda: imported.append('tensorflow'))
    prefetch.warm_up(Batches(from_shards=False))
    assert not imported
    prefetch.warm_up(Batches())
    assert imported == ['tensorflow'] * (by == 'tf_data')


@pytest.mark.parametrize(('start', 'stop'), [(0, 9), (3, 5), (7, 8), (4, 4)])
def test_every_batch_once_in_order(by, start, stop):
    batches = list(prefetch.prefetch(Batches(), start, stop))
    assert [int(batch['tokens'][0, 0]) for batch in batches] == list(range(start, stop))
    assert all(batch['tokens'].dtype == np.uint16 and batch['weights'].dtype == np.float32 for batch in batches)


def test_batches_are_read_ahead_but_not_without_bound(by):
    source, before = Batches(), threading.enumerate()  # other tests may have left some
    stream = prefetch.prefetch(source, 0, 100)
    next(stream), next(stream), next(stream)
    for _ in range(200):  # as long as a loaded machine may need
        if len(set(source.read)) >= 4:
            break
        time.sleep(0.05)
    time.sleep(0.3)
    assert 4 <= len(set(source.read)) <= 10
    stream.close()
    threads = [thread for thread in threading.enumerate() if thread.name.startswith('ThreadPoolExecutor')]
    assert by == 'tf_data' or not set(threads) - set(before)


def test_a_reader_s_error_comes_after_the_batches_before_it(by):
    stream = prefetch.prefetch(Batches(failing=3), 0, 9)
    assert [int(next(stream)['tokens'][0, 0]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match='step 3 cannot be read'):
        next(stream)


def test_tensorflow_is_imported_after_the_first_step(monkeypatch):
    """A loop asks for the third batch when it has read what the first step has given."""
    pytest.importorskip('tensorflow')
    imported, original = [], prefetch.import_tensorflow
    monkeypatch.setattr(prefetch, 'import_tensorflow', lambda: imported.append(1) or original())
    stream = prefetch.prefetch(Batches(), 0, 9)
    next(stream), next(stream)
    assert not imported
    next(stream)
    assert imported


def test_examples_in_memory_need_no_tensorflow(monkeypatch):
    monkeypatch.setattr(prefetch, 'import_tensorflow', lambda: pytest.fail('imported'))
    batches = prefetch.prefetch(Batches(from_shards=False), 2, 9)
    assert [int(batch['tokens'][0, 0]) for batch in batches] == list(range(2, 9))
