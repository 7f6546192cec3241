"""Signals end the program: at once, in order, or where nothing of Python runs. Small programs, and the real one."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from helpers import ENVIRONMENT, ROOT, command

SENTENCE = {75: 'Stopped. Run the same command again to resume.\n'}
SENTENCE[130] = SENTENCE[75].replace('Stopped', 'Interrupted')
PROGRAM = """
import hashlib, sys, time
from gpt1_jax import stopping

stopping.GRACE = 0.2
stopping.watch()

class Discards:
    def __del__(self):
        print('ready', flush=True)
        time.sleep(60)

def compute():
    print('ready', flush=True)
    hashlib.pbkdf2_hmac('sha256', b'', b'', 2**28)  # like a compilation: minutes without a step of Python's

def wait(text='ready'):
    print(text, flush=True)
    time.sleep(60)

"""


def start(program, **options):
    body = textwrap.indent(textwrap.dedent(program), '    ')
    return subprocess.Popen(
        [sys.executable, '-c', f'{PROGRAM}try:\n{body}\nexcept BaseException:\n    stopping.end_if_asked()\n'],
        cwd=ROOT,
        env=os.environ | {'PYTHONUNBUFFERED': ''},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def end(process):
    try:
        output, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    return process.returncode, output, errors


@pytest.mark.parametrize(
    ('program', 'number', 'expected', 'output'),
    [
        ('compute()', signal.SIGTERM, 75, ''),  # while the program is imported
        ('wait()', signal.SIGINT, 130, ''),
        ('stopping.unwind()\ncompute()', signal.SIGHUP, 75, ''),
        ('stopping.unwind()\ncompute()', signal.SIGINT, 130, ''),
        ('stopping.unwind()\nDiscards()\nwait("goes on")', signal.SIGTERM, 75, 'goes on\n'),
        (
            """
            stopping.unwind()
            try:
                wait()
            finally:
                print('closed')
            """,
            signal.SIGUSR1,
            75,
            'closed\n',
        ),
    ],
)
def test_a_signal_ends_the_program(program, number, expected, output):
    process = start(program)
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(number)
    assert end(process) == (expected, output, SENTENCE[expected])


def test_a_second_signal_does_not_wait():
    process = start("""
        stopping.GRACE = 60
        stopping.unwind()
        try:
            wait()
        finally:
            wait('closing')
    """)
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == 'closing\n'
    process.send_signal(signal.SIGTERM)
    assert end(process) == (130, '', SENTENCE[130])


def test_a_second_signal_does_not_wait_for_what_takes_no_notice_of_the_first():
    process = start("""
        stopping.GRACE = 60
        stopping.unwind()
        while True:
            try:
                wait()
            except BaseException:
                pass
    """)
    for number in (signal.SIGINT, signal.SIGTERM):
        assert process.stdout.readline() == 'ready\n'
        process.send_signal(number)
    assert end(process) == (130, '', SENTENCE[130])


def test_a_process_whose_parent_speaks_for_it_says_nothing():
    process = start('from gpt1_jax import progress\nprogress.quiet = True\nwait()')
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGTERM)
    assert end(process) == (75, '', '')


def test_ctrl_c_in_training_is_a_request_and_ends_the_program_the_second_time():
    """However long it goes on after the first."""
    process = start("""
        from gpt1_jax.training.preemption import PreemptionGuard
        stopping.unwind()
        guard = PreemptionGuard()
        guard.should_stop(1)
        print('begun', flush=True)
        while not guard.should_stop(2):
            pass
        compute()
    """)
    assert process.stdout.readline() == 'begun\n'
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == 'ready\n'
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert end(process) == (130, '', SENTENCE[130])


def test_a_signal_when_all_is_done_changes_nothing():
    """While the interpreter takes itself apart, which takes seconds after JAX and TensorFlow were loaded."""
    process = start("""
        import os, signal

        class Last:
            def __del__(self, kill=os.kill, process=os.getpid(), signals=stopping.SIGNALS):
                for number in signals:
                    kill(process, number)

        last = Last()
    """)
    assert end(process) == (0, '', '')


def test_what_nohup_ignores_stays_ignored():
    process = start('wait()', preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 75


@pytest.mark.skipif(not pathlib.Path('/proc/self/status').exists(), reason='/proc tells what is blocked')
def test_the_program_itself_from_its_first_lines_on():
    """It imports for seconds."""
    process = subprocess.Popen(command('prepare.py'), cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while True:
        status = pathlib.Path(f'/proc/{process.pid}/status').read_text()
        blocked, caught = (int(status.partition(f'{name}:')[2].split()[0], 16) for name in ('SigBlk', 'SigCgt'))
        if (blocked | caught) >> (signal.SIGTERM - 1) & 1:
            break
    os.kill(process.pid, signal.SIGTERM)
    assert process.communicate(timeout=60)[1] == SENTENCE[75] and process.returncode == 75


@pytest.mark.parametrize(('number', 'expected'), [(signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_signal_when_the_task_is_done_and_the_program_is_not(number, expected):
    code = f"""
        import os, runpy, time
        from absl import app
        from gpt1_jax import stopping

        def run(task, flags_parser):
            stopping.unwind()
            os.kill(os.getpid(), {int(number)})
            time.sleep(60)

        app.run = run
        runpy.run_module('gpt1_jax.main', run_name='__main__')
    """
    command = [sys.executable, '-c', textwrap.dedent(code)]
    ended = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (expected, SENTENCE[expected])


def test_a_thread_that_does_what_is_of_no_use_any_more_is_not_waited_for():
    code = """
    import sys, threading, time
    from gpt1_jax import stopping
    stopping.dispensable.append(threading.Thread(target=time.sleep, args=(100,)))
    stopping.dispensable[0].start()
    print('result')
    stopping.end_soon(2)
    """
    command, environment = [sys.executable, '-c', textwrap.dedent(code)], os.environ | {'PYTHONUNBUFFERED': ''}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, 'result\n', '')


def test_a_thread_of_a_library_does_not_keep_the_process():
    """One that writes to a disk that hangs, for example."""
    code = """
    import sys, threading, time
    from gpt1_jax import stopping
    stopping.LINGER = 0.2
    threading.Thread(target=time.sleep, args=(100,)).start()
    stopping.end_soon(2)
    sys.exit(2)
    """
    ended = subprocess.run([sys.executable, '-c', textwrap.dedent(code)], cwd=ROOT, timeout=60)
    assert ended.returncode == 2
