"""Worker processes (test_preparation.py tests that they die with their parent)."""

import os
import platform
import signal
import subprocess
import sys
import textwrap

import pytest

from gpt1_jax.errors import UserError
from gpt1_jax.processes import cores, process_pool
from helpers import ROOT

KILL_ITSELF = f'__import__("os").kill(__import__("os").getpid(), {int(signal.SIGKILL)})'


def test_a_worker_does_not_import_the_main_module(tmp_path):
    (tmp_path / 'main.py').write_text("""
import numpy
from gpt1_jax.processes import process_pool
if __name__ == '__main__':
    with process_pool(1) as pool:
        print(pool.submit(eval, '"numpy" in __import__("sys").modules').result())
""")
    done = subprocess.run(
        [sys.executable, tmp_path / 'main.py'],
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == 'False\n'


@pytest.mark.parametrize(('workers', 'expected'), [(0, cores()), (3, 3)])
def test_all_cores_or_the_number_asked_for(workers, expected):
    with process_pool(workers) as pool:
        assert pool._max_workers == expected


def test_a_killed_worker_is_a_user_error():
    with pytest.raises(UserError, match='data.workers: A worker process was killed.* Use fewer workers'):
        with process_pool(2) as pool:
            pool.submit(eval, KILL_ITSELF).result()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_ends_workers_that_have_just_begun_and_those_at_work(number, tmp_path):
    """As Ctrl-C in a terminal: no worker says anything, and none is waited for."""
    (tmp_path / 'main.py').write_text("""
from gpt1_jax import stopping
stopping.watch()
stopping.unwind()
from gpt1_jax.processes import process_pool
try:
    with process_pool(3) as pool:
        tasks = [pool.submit(eval, '__import__("time").sleep(60)') for _ in range(6)]
        print('begun', flush=True)
        for task in tasks:
            task.result()
except BaseException:
    stopping.end_if_asked()
""")
    process = subprocess.Popen(
        [sys.executable, tmp_path / 'main.py'],
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == 'begun\n'
    os.killpg(process.pid, number)
    errors = process.communicate(timeout=30)[1]
    word, status = ('Interrupted', 130) if number == signal.SIGINT else ('Stopped', 75)
    assert (process.returncode, errors) == (status, f'{word}. Run the same command again to resume.\n')


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only glibc is changed')
def test_a_step_finds_the_memory_of_the_one_before():
    """Ten steps, each with a temporary array of 200 MB, more than glibc keeps by itself."""
    program = textwrap.dedent("""
        import resource, sys
        from gpt1_jax import main

        if 'keep' in sys.argv:
            main._set_up()
        import jax, jax.numpy as jnp

        if 'here' in sys.argv:
            main.compute_in_this_thread()
        step = jax.jit(lambda x: jnp.full((7000, 7000), x) @ jnp.full(7000, x))
        faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            step(1.0).block_until_ready()
        before = faults()
        for _ in range(10):
            result = step(1.0)
            ready = result.is_ready()
            result.block_until_ready()
        print(faults() - before, ready)
    """)
    environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}  # one device

    def faults(how):
        words = [sys.executable, '-c', program, *how.split()]
        done = subprocess.run(words, env=environment | {'PYTHONPATH': str(ROOT)}, capture_output=True, text=True)
        count, ready = done.stdout.split()
        assert ready == 'True' or 'here' not in how
        return int(count)

    few = faults('keep here')
    # Where the heap's blocks lie is chance, and once in a while right with one half alone.
    assert all(any(10 * few < faults(half) for _ in range(3)) for half in ('keep', 'here'))


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only glibc is changed')
def test_kept_memory_is_released_when_asked():
    """400 MB in pieces of 100 kB, below one that stays."""
    program = textwrap.dedent("""
        import resource
        import numpy as np
        from gpt1_jax.processes import keep_freed_memory, release_freed_memory

        def resident():
            return int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()

        keep_freed_memory()
        pieces, last = [np.ones(12_500) for _ in range(4000)], np.ones(12_500)
        held = resident()
        del pieces
        kept = resident()
        release_freed_memory()
        print(held - kept, held - resident())
    """)
    done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, check=True)
    at_once, when_asked = map(int, done.stdout.split())
    assert at_once < 40e6 < 350e6 < when_asked


@pytest.mark.parametrize('first', ['keep_compiled_steps()', 'import jax'])  # as a command does, and as a notebook
def test_compiled_steps_are_kept_in_the_users_cache(first, tmp_path):
    program = f'from gpt1_jax.processes import keep_compiled_steps\n{first}\nimport jax\nkeep_compiled_steps()\n' + (
        'print(jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs)'
    )
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'XDG_CACHE_HOME': str(tmp_path)}
    for name in ('JAX_COMPILATION_CACHE_DIR', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'):
        environment.pop(name, None)
    run = lambda more: (
        subprocess.run([sys.executable, '-c', program], env=environment | more, capture_output=True, text=True).stdout
    )
    assert run({}) == f'{tmp_path}/gpt1_jax/compiled 0.1\n'
    assert run({'JAX_COMPILATION_CACHE_DIR': '/mine'}).startswith('/mine ')


def test_what_a_stopped_program_leaves_to_pythons_tracker_is_not_told(tmp_path):
    program = """
import multiprocessing, os
from gpt1_jax.processes import process_pool
if __name__ == '__main__':
    with process_pool(2) as pool:
        print(pool.submit(abs, -3).result(), flush=True)
        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(75)
"""
    (tmp_path / 'stopped.py').write_text(program)
    words = [sys.executable, str(tmp_path / 'stopped.py')]
    done = subprocess.run(words, env=os.environ | {'PYTHONPATH': str(ROOT)}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (75, '3\n', '')
