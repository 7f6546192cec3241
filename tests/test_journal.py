"""Evaluations that are stopped, killed or changed on the way, against those that are not; batches are counted."""

import re

import jax
import numpy as np
import pytest
from etils import epath

import helpers
from gpt1_jax.errors import STOPPED_EXIT_STATUS, Stopped
from gpt1_jax.evaluation import journal
from gpt1_jax.training.partitioning import Partitioner
from models import load, save_run

BATCHES = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
BATCHES[3, 2], BATCHES[5, 0], BATCHES[5, 1] = np.nan, np.inf, -0.0


def evaluate(path, computed, stop_after=None, kill_after=None, model='m', content=b'c'):
    """What `each` gives for BATCHES, twice its numbers; `computed` gets the number of each batch that is computed."""

    def batches(start):
        for number in range(start, len(BATCHES)):
            if number == kill_after:
                raise KeyboardInterrupt
            computed.append(number)
            yield BATCHES[number]

    watch = journal.Watch(
        should_stop=lambda: stop_after is not None and computed[-1] >= stop_after,
        journal=journal.Journal(path),
        model=model,
    )
    double = jax.jit(lambda batch: 2 * batch)
    return list(watch.each(double, batches, lambda number, output: output, content=lambda: [content]))


def assert_doubled(results):
    assert np.array(results).tobytes() == (2 * BATCHES).tobytes()


@pytest.fixture
def path(tmp_path):
    return epath.Path(tmp_path) / 'evaluation.journal'


def test_a_stopped_evaluation_goes_on_with_the_same_bits(path):
    computed = []
    with pytest.raises(Stopped):
        evaluate(path, computed, stop_after=4)
    with pytest.raises(Stopped):
        evaluate(path, computed, stop_after=6)
    assert_doubled(evaluate(path, computed))
    # A batch that was made when the stop was noticed is not computed: the next time begins with it.
    assert computed == [0, 1, 2, 3, 4, 4, 5, 6, 6, 7, 8]


def test_a_killed_evaluation_loses_what_was_not_written_yet(path, monkeypatch):
    for seconds, again in ((0, 3), (3600, 0)):
        path.unlink(missing_ok=True)
        monkeypatch.setattr(journal, '_SECONDS', seconds)
        monkeypatch.setattr(journal, '_TIMES', 0)
        computed = []
        with pytest.raises(KeyboardInterrupt):
            evaluate(path, computed, kill_after=4)  # the fourth is on the devices
        assert_doubled(evaluate(path, computed))
        assert computed == [*range(4), *range(again, 9)]


@pytest.mark.parametrize('change', [{'model': 'other'}, {'content': b'other'}])
def test_what_belongs_to_something_else_is_not_believed(path, change):
    computed = []
    with pytest.raises(Stopped):
        evaluate(path, computed, stop_after=6)
    evaluate(path, computed := [], **change)
    assert computed == list(range(9))


def test_a_damaged_journal_counts_for_nothing(path, monkeypatch):
    with pytest.raises(Stopped):
        evaluate(path, [], stop_after=6)
    whole, warnings = path.read_bytes(), []
    monkeypatch.setattr(journal.logging, 'warning', lambda message, *values: warnings.append(message % values))
    bit = whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]
    for data in (whole[:-1], whole[: len(whole) // 2], b'\n', b'x', bit):
        path.write_bytes(data)
        assert_doubled(evaluate(path, computed := []))
        assert computed == list(range(9))
    assert len(warnings) == 5
    for warning in warnings:
        helpers.assert_well_put(warning)
    path.write_bytes(whole)
    evaluate(path, computed := [])
    assert computed[0] == 6 and len(warnings) == 5


def test_parts_do_not_run_into_one_another():
    assert journal.digest([b'ab', b'c']) != journal.digest([b'a', b'bc']) != journal.digest([b'abc'])


def test_resumable_ends_the_program_or_removes_the_journal(tmp_path, monkeypatch):
    workdir, closed = epath.Path(tmp_path), []
    monkeypatch.setattr(journal.PreemptionGuard, 'close', lambda self: closed.append(self))
    monkeypatch.setattr(journal.PreemptionGuard, 'should_stop', lambda self, step: True)
    with pytest.raises(SystemExit) as caught:
        with journal.resumable(workdir) as watch:
            list(watch().each(lambda batch: batch, lambda start: BATCHES, lambda number, output: output))
    assert caught.value.code == STOPPED_EXIT_STATUS and (workdir / 'evaluation.journal').exists()
    with journal.resumable(workdir) as watch:
        assert (workdir / 'evaluation.journal').exists()
    assert not (workdir / 'evaluation.journal').exists() and len(closed) == 2


def test_the_fingerprint_of_a_model(tmp_path):
    """It changes with one bit of a parameter and with the computation; not with the place on disk."""
    save_run(tmp_path / 'a')
    _, classifier, params = load(str(tmp_path / 'a'))
    partitioner = Partitioner('dp', (1, 1, 1), jax.devices()[:1])
    first = journal.fingerprint(classifier, params, partitioner)
    (tmp_path / 'a').rename(tmp_path / 'b')
    _, classifier, params = load(str(tmp_path / 'b'))
    assert journal.fingerprint(classifier, params, partitioner) == first and re.fullmatch('[0-9a-f]{64}', first)
    bits = jax.tree.map(lambda leaf: np.array(leaf).view(np.uint32), params)
    bits['decoder']['table'][3, 5] ^= 1
    changed = jax.tree.map(lambda leaf, old: jax.device_put(leaf.view(np.float32), old.sharding), bits, params)
    assert journal.fingerprint(classifier, changed, partitioner) != first
    other = classifier.__class__(classifier.model.clone(dtype='bfloat16'))
    assert journal.fingerprint(other, params, partitioner) != first


def lines_of(path, key='k'):
    lines = journal.Lines(path, key)
    lines.close()
    return lines.finished


def test_lines_go_on_behind_those_that_are_whole(tmp_path):
    path, written = epath.Path(tmp_path) / 'lines.jsonl', [b'{"text": "one\xe2\x80\xa8"}\n', b'{}\n', b'{"n": 3}\n']

    def write(key='k'):
        lines = journal.Lines(path, key)
        lines.add(written[:2])
        lines.add(written[2:])
        lines.close()

    write()
    path.write_bytes(path.read_bytes() + b'{"text": "cut')
    assert lines_of(path) == written and path.read_bytes() == b''.join(written)
    lines = journal.Lines(path, 'k')
    lines.add([b'4\n'])
    lines.close()
    assert lines_of(path) == [*written, b'4\n']
    for spoil in (
        lambda: path.write_bytes(path.read_bytes().replace(b'one', b'two')),
        lambda: path.write_bytes(path.read_bytes()[:-1]),
        lambda: path.unlink(),
        lambda: (tmp_path / 'lines.journal').write_bytes(b'\xff'),
        lambda: (tmp_path / 'lines.journal').unlink(),
        lambda: lines_of(path, 'other'),
    ):
        write()
        spoil()
        assert lines_of(path) == [] and path.read_bytes() == b''
    lines.forget()
    write(key='')
    assert [one.name for one in tmp_path.iterdir()] == ['lines.jsonl'] and lines_of(path, '') == []
