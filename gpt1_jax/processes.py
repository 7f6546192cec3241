"""Worker processes that start quickly, stay small, and end with their parent; and the memory of this process."""

import concurrent.futures
import contextlib
import ctypes
import multiprocessing.context
import os
import platform
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

from gpt1_jax.errors import UserError

_QUIET = 'ignore::UserWarning:multiprocessing.resource_tracker'
_KEPT_FROM = 0.1  # least seconds of compiling that make a program worth keeping for later runs


@contextlib.contextmanager
def process_pool(workers: int) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """A pool of processes that import only what their functions need; 0 workers: all cores.

    Raises UserError if a worker is killed.
    """
    # Python's resource tracker, which starts with these filters, would warn of what a stopped program leaves to it.
    if _QUIET not in sys.warnoptions:
        sys.warnoptions.append(_QUIET)
    pool = concurrent.futures.ProcessPoolExecutor(
        workers or cores(), mp_context=_LightContext(), initializer=_start_worker
    )
    try:
        yield pool
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            'data.workers: A worker process was killed, probably for lack of memory. Use fewer workers.'
        ) from error
    except (KeyboardInterrupt, SystemExit):
        for worker in multiprocessing.active_children():  # `shutdown` would wait for what they are doing
            worker.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def start_process(target: Callable, *arguments: Any) -> multiprocessing.process.BaseProcess:
    """A process that imports only what its function needs, leaves Ctrl-C to this one, and ends with it."""
    process = _LightContext().Process(target=_run_worker, args=(target, arguments))
    process.start()
    return process


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def keep_freed_memory() -> None:
    """Makes glibc keep the memory that is freed, for whoever asks next.

    XLA's buffers are new in each step. On a CPU Linux would clear all of their pages, for a tenth of a step or more, if
    the memory had gone back to it before. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == 'glibc':
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: no limit to what may lie free at the end of the heap
        mallopt(-4, 0)  # M_MMAP_MAX: large blocks are of the heap too, not mappings that go when they are freed


def release_freed_memory() -> None:
    """Gives the memory that is free now back to Linux in spite of `keep_freed_memory`.

    Call it after work that is done once, such as compiling: that leaves many small pieces, between which the large
    blocks of steps find no room.
    """
    if platform.libc_ver()[0] == 'glibc':
        ctypes.CDLL(None).malloc_trim(0)


def compute_in_this_thread() -> None:
    """Makes JAX compute in the calling thread on a CPU with one device: only the first thread has a heap that takes
    large blocks, which `keep_freed_memory` needs. Call it when JAX is imported but not in use yet.

    A step then ends before its call returns. Little could be done meanwhile: it uses all cores.
    """
    if jax := sys.modules.get('jax'):  # not every task needs it
        jax.config.update('jax_cpu_enable_async_dispatch', False)


def keep_compiled_steps() -> None:
    """Makes JAX keep compiled steps for later runs with the same shapes: in the user's cache folder, unless JAX has
    another (JAX_COMPILATION_CACHE_DIR)."""
    cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', os.path.join(cache, 'gpt1_jax', 'compiled'))
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', str(_KEPT_FROM))
    jax = sys.modules.get('jax')
    if jax and not jax.config.jax_compilation_cache_dir:  # a notebook's JAX has read the environment before
        jax.config.update('jax_compilation_cache_dir', os.environ['JAX_COMPILATION_CACHE_DIR'])
        jax.config.update('jax_persistent_cache_min_compile_time_secs', _KEPT_FROM)


class _LightProcess(multiprocessing.context.SpawnProcess):
    """A spawned process that does not import the parent's main module, nor what that imports."""

    def start(self) -> None:
        main = sys.modules['__main__']
        sys.modules['__main__'] = types.ModuleType('__main__')
        former = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # until `_start_worker`
        try:
            super().start()
        finally:
            sys.modules['__main__'] = main
            signal.pthread_sigmask(signal.SIG_SETMASK, former)


class _LightContext(multiprocessing.context.SpawnContext):
    Process = _LightProcess


def _run_worker(target, arguments):
    _start_worker()
    target(*arguments)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the workers
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])

    def follow_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()
