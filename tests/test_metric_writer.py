"""Metric files against what other readers make of them."""

import contextlib
import gc
import json
import os
import resource
import shutil
import sys
import threading
import time
import types

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from gpt1_jax.errors import UserError
from gpt1_jax.training import metric_writer
from gpt1_jax.training.metric_writer import MetricWriter, median_speed, read_metrics


def reject(constant):
    raise ValueError(f'{constant} is not JSON')


def read_lines(workdir):
    text = (workdir / 'metrics.jsonl').read_text()
    return [json.loads(line, parse_constant=reject) for line in text.splitlines()]


def read_events(workdir):
    """The records of the event files in order of writing: length, its CRC, the protobuf, its CRC."""
    for path in sorted((workdir / 'tensorboard').iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], 'little')
            body = data[at + 12 : at + 12 + size]
            crc = int.from_bytes(data[at + 12 + size : at + 16 + size], 'little')
            assert crc == masked_crc32c(body)
            at += 16 + size
            yield Event.FromString(body)


def scalars(workdir):
    return [
        (event.step, value.tag, value.simple_value) for event in read_events(workdir) for value in event.summary.value
    ]


def test_lines_are_json_and_flushed(tmp_path):
    writer = MetricWriter(tmp_path / 'new' / 'run')
    writer.write(1, {'loss': 2.5, 'lr': np.float32(0.25)})
    writer.write(np.int64(2), {'loss': float('nan'), 'up': float('inf'), 'down': -np.inf})
    lines = read_lines(tmp_path / 'new' / 'run')  # before close
    writer.close()
    assert [list(line) for line in lines] == [['step', 'time', 'loss', 'lr'], ['step', 'time', 'loss', 'up', 'down']]
    assert lines[0]['step'] == 1 and lines[0]['loss'] == 2.5 and lines[0]['lr'] == 0.25
    assert lines[1]['step'] == 2 and 1.6e9 < lines[0]['time'] <= lines[1]['time']
    assert [lines[1][name] for name in ('loss', 'up', 'down')] == ['nan', 'inf', '-inf']


def test_an_evaluation_that_will_be_done_again_is_not_kept(tmp_path):
    writer = MetricWriter(tmp_path)
    for step in (1, 2):
        writer.write(step, {'loss': 1.0})
        writer.write(step, {'valid_loss': 2.0})
    writer.close()
    MetricWriter(tmp_path).truncate_after(2, unevaluated=True)
    names = [(line['step'], list(line)[-1]) for line in read_lines(tmp_path)]
    assert names == [(1, 'loss'), (1, 'valid_loss'), (2, 'loss')]


def test_lines_are_read_back(tmp_path):
    """Numbers that JSON lacks too; not a line that a kill has cut."""
    assert read_metrics(tmp_path) == []
    writer = MetricWriter(tmp_path)
    writer.write(1, {'loss': 2.5})
    writer.write(2, {'loss': float('inf'), 'down': -np.inf})
    writer.close()
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 3, "lo')
    lines = [{name: value for name, value in line.items() if name != 'time'} for line in read_metrics(tmp_path)]
    assert median_speed(lines) is None and median_speed([{'tokens_per_second': x} for x in (1, 5, 3)] + lines) == 3
    assert lines == [{'step': 1, 'loss': 2.5}, {'step': 2, 'loss': np.inf, 'down': -np.inf}]


def test_tensorboard_reads_back(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(3, {'train/loss': 2.5, 'lr': 0.125})
    writer.write(7, {'train/loss': 1.5})
    writer.close()
    assert scalars(tmp_path) == [(3, 'train/loss', 2.5), (3, 'lr', 0.125), (7, 'train/loss', 1.5)]


def test_numbers_that_are_not_finite_are_written_without_a_word(tmp_path, caplog):
    writer = MetricWriter(tmp_path)
    writer.write(1, {'loss': float('nan'), 'norm': float('inf')})
    writer.close()
    (first, norm), not_finite = scalars(tmp_path), {'loss': 'nan', 'norm': 'inf'}
    assert np.isnan(first[2]) and norm == (1, 'norm', np.inf) and not caplog.records
    assert not_finite.items() <= read_lines(tmp_path)[0].items()


def test_a_resumed_run_writes_what_an_uninterrupted_one_does(tmp_path):
    def run(workdir, start, stop):
        writer = MetricWriter(workdir)
        writer.truncate_after(start)
        for step in range(start + 1, stop + 1):
            writer.write(step, {'loss': 1 / step})
        writer.close()

    run(tmp_path / 'whole', 0, 9)
    run(tmp_path / 'cut', 0, 7)  # its last checkpoint was at step 4
    with (tmp_path / 'cut' / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 3, "lo')  # killed while writing
    run(tmp_path / 'cut', 4, 4)
    os.truncate(tmp_path / 'cut' / 'metrics.jsonl', os.path.getsize(tmp_path / 'cut' / 'metrics.jsonl') - 1)
    run(tmp_path / 'cut', 4, 9)

    def timeless(workdir):
        return [{name: line[name] for name in line if name != 'time'} for line in read_lines(workdir)]

    assert timeless(tmp_path / 'cut') == timeless(tmp_path / 'whole')
    assert [line['step'] for line in timeless(tmp_path / 'cut')] == list(range(1, 10))
    # TensorBoard drops what it read before a START event, of that step and later.
    kept = []
    for event in read_events(tmp_path / 'cut'):
        if event.HasField('session_log'):
            kept = [step for step in kept if step < event.step]
        kept += [event.step for _ in event.summary.value]
    assert kept == list(range(1, 10))


def test_a_workdir_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=f'{tmp_path}/file/run: Metrics cannot be written .*write permission'):
        MetricWriter(tmp_path / 'file' / 'run')


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    writer = MetricWriter(tmp_path / 'run', use_wandb=True)
    writer.truncate_after(1)
    writer.write(2, {'loss': 1.0})
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_weights_and_biases(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, 'wandb', None)  # as if not installed
    with pytest.raises(UserError, match='The package wandb is not installed. Install it with pip install wandb.'):
        MetricWriter(tmp_path, use_wandb=True)
    calls = []
    run = types.SimpleNamespace(
        log=lambda metrics, step: calls.append((step, metrics)), finish=lambda: calls.append('finish')
    )
    fake = types.SimpleNamespace(init=lambda **options: calls.append(options) or run)
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    for _ in range(2):
        writer = MetricWriter(tmp_path, use_wandb=True, config={'seed': 3})
        writer.write(5, {'loss': 2.0})
        writer.close()
    assert calls[1:3] == [(5, {'loss': 2.0}), 'finish']
    assert calls[0] == calls[3] and len(calls[0]['id']) == 32 and calls[0]['config'] == {'seed': 3}
    fake.teardown = lambda: calls.append('torn down') or {}['its process is lost']
    run.log = lambda metrics, step: {}['it was killed']
    caplog.clear()
    writer = MetricWriter(tmp_path, use_wandb=True)
    writer.write(6, {'loss': 1.0})
    writer.close()
    assert calls[-1] == 'torn down' and ['it was killed' in record.message for record in caplog.records] == [True]


def test_a_sink_that_fails_is_told_once_and_the_run_goes_on(tmp_path, caplog, capfd):
    (tmp_path / 'tensorboard').write_text('a file')
    writer = MetricWriter(tmp_path)
    for step in range(3):
        writer.write(step, {'loss': 1.0})
        time.sleep(0.05)
    writer.close()
    assert len(read_lines(tmp_path)) == 3 and capfd.readouterr() == ('', '')
    (record,) = caplog.records
    assert f'{tmp_path}/tensorboard: Not all metrics are written there (' in record.message


class Hanging:
    """Weights & Biases that never answer, as its tests need it."""

    def __init__(self, hang):
        self.hang = hang

    def init(self, **options):
        log = lambda metrics, step: self.hang.wait(60)
        return types.SimpleNamespace(log=log, finish=lambda: self.hang.wait(60))


def test_a_sink_that_hangs_does_not_hold_the_run_up(tmp_path, monkeypatch, caplog):
    hang = threading.Event()
    monkeypatch.setitem(sys.modules, 'wandb', Hanging(hang))
    monkeypatch.setattr(metric_writer, '_WAITING', 5)
    monkeypatch.setattr(metric_writer, '_CLOSING_SECONDS', 0.1)
    for lines, reason in ((20, 'it is 5 lines behind'), (2, 'it takes longer than 0.1 s')):
        writer = MetricWriter(tmp_path / str(lines), use_wandb=True)
        for step in range(lines):
            writer.write(step, {'loss': 1.0})
        writer.close()
        assert len(read_lines(tmp_path / str(lines))) == lines
        told = [record.message for record in caplog.records if 'Weights & Biases' in record.message]
        assert len(told) == 1 and reason in told[0]
        caplog.clear()
    hang.set()


def test_a_full_disk_is_one_sentence_and_nothing_else(tmp_path, caplog, capfd):
    """As good as full: no file may be longer. TensorBoard's has its fault at the same time."""
    writer = MetricWriter(tmp_path)
    writer.write(1, {'loss': 1.0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        for end in (lambda: writer.write(2, {'loss': 1.0}), writer.close):
            with pytest.raises(UserError, match=f'^{tmp_path}: Metrics cannot be written .*Make room'):
                end()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    gc.collect()
    assert not caplog.records and capfd.readouterr() == ('', '')


def test_a_folder_that_is_removed_is_noticed_at_the_next_line(tmp_path):
    for change in (shutil.rmtree, lambda run: (run / 'metrics.jsonl').rename(run / 'other')):
        writer = MetricWriter(tmp_path / 'run')
        writer.write(1, {'loss': 1.0})
        change(tmp_path / 'run')
        with pytest.raises(UserError, match='run/metrics.jsonl: The file was removed or replaced'):
            writer.write(2, {'loss': 1.0})
        with contextlib.suppress(UserError):
            writer.close()
        assert not (tmp_path / 'run' / 'metrics.jsonl').exists()
