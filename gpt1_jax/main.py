"""The one entry point: `python -m gpt1_jax.main --config=configs/TASK.py [--workdir=DIR] [--config.KEY=VALUE ...]`.

Exit status: 0 done; 2 user error (the message says how to fix it); 75 stopped by SIGTERM, SIGHUP or SIGUSR1, or in
training by Ctrl-C, after saving, or because another process of the run is lost (run the same command again to resume);
130 stopped by Ctrl-C elsewhere.
"""

from gpt1_jax import stopping

if __name__ == '__main__':  # before the imports below, which take long
    stopping.watch()

import contextlib
import importlib
import os
import pkgutil
import re
import sys
import traceback
from typing import Any

from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict, config_flags

from gpt1_jax import command_line, distributed, lock, logs, peers, tasks
from gpt1_jax.config import check, check_place, check_same
from gpt1_jax.errors import STOPPED_EXIT_STATUS, UserError
from gpt1_jax.files import explain
from gpt1_jax.processes import compute_in_this_thread, keep_compiled_steps, keep_freed_memory

_CONFIG = config_flags.DEFINE_config_file(
    'config', help_string='configs/NAME.py or configs/NAME.py:ARGUMENT', sys_argv=command_line.ARGUMENTS
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the run; default runs/TASK')
_DISTRIBUTED = flags.DEFINE_bool(
    'distributed',
    None,
    'whether this is one of several processes that train together; by default in the tasks of an srun and on the hosts '
    'of a TPU slice on GKE',
)
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0, if nothing else tells it')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'with --coordinator: the number of this process, from 0')
_PROCESSES = flags.DEFINE_integer('processes', None, 'with --coordinator: how many processes there are')

_ALONE = ('prepare', 'convert', 'compile', 'report')  # tasks of process 0, for which the others wait


def main(argv: list[str]) -> None:
    """Runs the command line. Raises UserError."""
    if len(argv) > 1:
        raise UserError(f'{argv[1]}: This is not a flag. Write --config=FILE, --workdir=DIR, --config.KEY=VALUE.')
    if _CONFIG.value is None:
        raise UserError('--config: No config is given. Try --config=configs/quickstart.py.')
    cluster = distributed.explicit(_COORDINATOR.value, _PROCESS_ID.value, _PROCESSES.value)
    if cluster is None and _DISTRIBUTED.value is not False:
        cluster = distributed.detected()
    if cluster is None and _DISTRIBUTED.value:
        cluster = distributed.found_by_jax()
    alone = _CONFIG.value.task in _ALONE
    if cluster:
        distributed.start(cluster, alone=alone)
    if alone and peers.current and peers.current.process:
        logging.info('%s: Process 0 does it, and this one waits.', _CONFIG.value.task)
    else:
        if not alone:
            check(_CONFIG.value)  # before, because NaN is not even the same as itself
            check_same(_CONFIG.value)
        run_task(_CONFIG.value, _WORKDIR.value or f'runs/{_CONFIG.value.task}')


def run_task(config: ConfigDict, workdir: str) -> Any:
    """Runs the task of a config in the folder `workdir` and returns its result.

    For notebooks and other sessions of Python, which Ctrl-C does not end: a run that it stops is saved, and the same
    call resumes it. Call it in the main thread. Log lines are shown, unless the verbosity of absl or the level
    of Python's root logger was chosen before.

    Raises:
      UserError: the message says how to fix it.
      KeyboardInterrupt: it was stopped by Ctrl-C; after SIGTERM, SIGHUP or SIGUSR1 it is SystemExit, with status 75.
    """
    if config.task not in [module.name for module in pkgutil.iter_modules(tasks.__path__)]:
        raise UserError(f'task: There is no task {config.task!r}. Use the config file of the task that you want.')
    logs.show()
    check(config)
    check_place('--workdir', str(workdir))
    keep_compiled_steps()
    with stopping.postponed():
        task = importlib.import_module(f'gpt1_jax.tasks.{config.task}')  # only this one, because tasks import much
    compute_in_this_thread()
    folder = epath.Path(workdir).expanduser()
    with lock.hold(folder, write=not (peers.current and peers.current.process)), logs.each_warning_once():
        if config.task not in _ALONE:
            lock.check_shared(folder)
        try:
            return task.run(config, folder)
        except SystemExit:  # saved
            if not stopping.is_for_caller():
                raise
            raise KeyboardInterrupt('Stopped. Run the same command again to resume.') from None


def _set_up():
    """Must run before JAX and TensorFlow are imported."""
    keep_freed_memory()
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # silences a note about oneDNN
    os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')  # TensorFlow then loads without Keras, a third faster
    # A notebook names its own, which may be missing here: matplotlib then fails. Figures are only SVG files.
    os.environ.pop('MPLBACKEND', None)
    if 'host_platform_device_count' in os.environ.get('XLA_FLAGS', ''):
        os.environ.setdefault('NPROC', '32')  # XLA's threads; with too few, collectives between host devices deadlock
    logs.set_up()


def _parse(argv):
    try:
        return command_line.parse(argv)
    except UserError as error:
        _fail(error)


def _run(argv):
    stopping.unwind()
    try:
        main(argv)
        distributed.finish()
    except BaseException as error:
        stopping.end_if_asked()
        if isinstance(error, SystemExit):  # saved, in all processes
            distributed.finish()
            raise
        if peers.current:  # the reason may be that another process is lost
            peers.current.wait_until_all_are_heard()
        _fail(error)


def _fail(error):
    message, status = str(error), 2
    if sentence := explain(error):
        message = sentence
    elif sentence := peers.explain(error):
        message, status = sentence, STOPPED_EXIT_STATUS
    elif not isinstance(error, UserError):
        if not peers.current:
            raise error
        traceback.print_exception(error)
        reason = f'{type(error).__name__}: {error}'[:300].rstrip('.')
        message, status = f'{reason}. Its traceback is in the output of that process.', 1
    message = 'error: ' + re.sub(r'\s*\n\s*', ' ', message)
    if peers.current:
        stopping.end(status, message)
    with contextlib.suppress(OSError):  # nobody reads it any more
        print(message, file=sys.stderr)
    sys.exit(status)


if __name__ == '__main__':
    _set_up()
    try:
        app.run(_run, flags_parser=_parse)
    except (SystemExit, KeyboardInterrupt) as ended:
        stopping.end_if_asked()  # by a signal that came when the task was done
        stopping.end_soon(getattr(ended, 'code', 130) or 0)
        raise
    except BaseException:  # as Python does, but without waiting for threads
        traceback.print_exc()
        stopping.end_soon(1)
        sys.exit(1)
