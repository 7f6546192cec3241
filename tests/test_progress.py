"""What people see of a task, against lines written by hand."""

import io
import sys
import time
import types

import pytest

from gpt1_jax import progress as progress_module
from gpt1_jax.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when told."""
    clock = types.SimpleNamespace(now=100.0)
    fake = types.SimpleNamespace(monotonic=lambda: clock.now, perf_counter=lambda: clock.now)
    monkeypatch.setattr(progress_module, 'time', fake)
    return clock


def test_progress_off_a_terminal_is_plain_lines(clock, capsys):
    progress = Progress(1000, 200, 'pretrain')
    for step, loss in zip(range(201, 210), range(9)):
        speed = dict(tokens_per_second=123456.7, mfu=0.3456) if step > 201 else dict(tokens_per_second=None, mfu=None)
        progress.update(step, loss=loss, **speed)
        clock.now += 4
    clock.now += 4 * 790
    progress.update(1000, loss=2.34567, tokens_per_second=1e6, mfu=None)
    progress.close()
    assert capsys.readouterr().err.splitlines() == [
        'pretrain: step 201/1000, loss 0.0000',
        'pretrain: step 204/1000, loss 3.0000, 123,457 tokens/s, MFU 34.6%, 0:53:04 left',
        'pretrain: step 207/1000, loss 6.0000, 123,457 tokens/s, MFU 34.6%, 0:52:52 left',
        'pretrain: step 1000/1000, loss 2.3457, 1,000,000 tokens/s, 0:00:00 left',
    ]


def test_progress_on_a_terminal_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    progress = Progress(1000, 200, 'finetune')
    for step in (400, 1000):
        progress.update(step, loss=1.25, tokens_per_second=1234.5, mfu=0.5)
    progress.close()
    shown = capsys.readouterr().err
    assert '200/1000' in shown and '1000/1000' in shown and 'finetune: 100%' in shown and '\r' in shown
    assert 'loss 1.2500, 1,234 tokens/s, MFU 50.0%' in shown


def test_a_pace_that_is_not_known_yet_is_not_told(clock, capsys):
    progress = Progress(3, 0, 'pretrain')
    for step in (1, 1, 2, 3):  # it waits long for the second step, and no time goes by between the last two
        progress.update(step)
        clock.now += 20 * (step == 1)
    quick = Progress(2, 0, 'quick')
    for step in (1, 2):
        quick.update(step)
    assert capsys.readouterr().err.splitlines() == [
        'pretrain: step 1/3',
        'pretrain: step 1/3',
        'pretrain: step 2/3, 0:00:40 left',
        'pretrain: step 3/3, 0:00:00 left',
        'quick: step 1/2',
        'quick: step 2/2',
    ]


def test_progress_in_bytes(clock, capsys):
    progress = Progress(40_000_000, 10_000_000, 'encoding', unit='B')
    for done in (12_000_000, 14_000_000, 36_000_000, 38_000_000, 44_000_000):  # the size was only about right
        progress.update(done)
        clock.now += 8
    assert capsys.readouterr().err.splitlines() == [
        'encoding: 12/40 MB',
        'encoding: 36/40 MB, 1.5 MB/s, 0:00:03 left',
        'encoding: 44/40 MB, 1.0 MB/s, 0:00:00 left',
    ]


def test_progress_of_bytes_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    progress = Progress(40_000_000, 10_000_000, 'encoding', unit='B')
    progress.update(40_000_000)
    progress.close()
    shown = capsys.readouterr().err
    assert '10.0M/40.0M' in shown and '40.0M/40.0M' in shown and 'encoding: 100%' in shown


def test_a_part_says_nothing_in_its_first_10_seconds(clock, capsys):
    for steps in (3, 5):
        progress = Progress(steps, 0, 'evaluating', unit='batch', part=True)
        for done in range(1, steps + 1):
            clock.now += 3
            progress.update(done)
        progress.close()
    assert capsys.readouterr().err.splitlines() == [
        'evaluating: batch 4/5, 0:00:03 left',
        'evaluating: batch 5/5, 0:00:00 left',
    ]


def test_what_was_finished_before_says_nothing_about_the_pace(clock, capsys):
    progress = Progress(100, 0, 'evaluating', unit='example')
    progress.update(10)
    progress.resume(60)
    clock.now += 20
    progress.update(70)
    assert capsys.readouterr().err.splitlines() == [
        'evaluating: example 10/100',
        'evaluating: example 70/100, 0:01:00 left',
    ]


def test_that_what_was_finished_before_is_read_again_is_shown(clock, capsys):
    progress = Progress(100, 0, 'evaluating', unit='example', part=True)
    for done in (20, 40, 60):
        clock.now += 6
        progress.resume(done)
    assert capsys.readouterr().err == 'evaluating: example 40/100\n'


def test_a_part_that_resumes_on_a_terminal_vanishes_at_its_end(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    progress = Progress(100, 0, 'evaluating', unit='example', part=True)
    progress.resume(60)
    assert progress._bar.format_dict['initial'] == 60  # from where it counts the pace
    progress.update(100)
    progress.close()
    shown = capsys.readouterr().err
    assert 'evaluating' in shown and shown.endswith('\r') and '\n' not in shown


def test_waiting_says_how_long_it_has_been(monkeypatch, capsys):
    monkeypatch.setattr(progress_module, '_LINE_SECONDS', 0.01)
    for show in (True, False):
        with progress_module.waiting('compiling the step', show=show):
            time.sleep(0.1 * show)
    lines = capsys.readouterr().err.splitlines()
    assert lines and set(lines) == {'compiling the step: 0:00:00 so far'}
    time.sleep(0.2)
    assert len(capsys.readouterr().err.splitlines()) <= 1  # no more, when it is over, than was under way


def test_that_nobody_reads_it_any_more_does_not_end_the_work(clock, monkeypatch):
    tried = []

    class Nobody(io.StringIO):
        def write(self, text):
            tried.append(text)
            raise BrokenPipeError

    monkeypatch.setattr(sys, 'stderr', Nobody())
    Progress(10, 0, 'pretrain').update(1)
    assert tried == ['pretrain: step 1/10']


@pytest.mark.parametrize('terminal', [False, True])
@pytest.mark.parametrize('quiet', [False, True])
def test_other_processes_show_nothing(monkeypatch, capsys, terminal, quiet):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: terminal, raising=False)
    monkeypatch.setattr(progress_module, 'quiet', quiet)
    monkeypatch.setattr(progress_module, '_LINE_SECONDS', 0.01)
    progress = Progress(10, 0, 'pretrain', show=quiet)
    progress.update(1, loss=1.0)
    progress.close()
    with progress_module.waiting('compiling the step', show=quiet):
        time.sleep(0.05)
    assert capsys.readouterr().err == ''
