"""The one entry point: `python -m gpt1_jax.main --config=configs/TASK.py [--workdir=DIR] [--config.KEY=VALUE ...]`.

Exit status: 0 done; 2 user error (the message says how to fix it); 75 stopped by SIGTERM or a preemption notice, or in
training by Ctrl-C, after saving (run the same command again to resume); 130 stopped by Ctrl-C elsewhere.
"""

import importlib
import logging as standard_logging
import os
import pkgutil
import re
import signal
import sys
from typing import Any

from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict, config_flags

from gpt1_jax import command_line, distributed, tasks
from gpt1_jax.config import check
from gpt1_jax.errors import STOPPED_EXIT_STATUS, UserError
from gpt1_jax.processes import keep_compiled_steps, keep_freed_memory, use_huge_pages

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
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0, where nothing else tells it')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'with --coordinator: of this process, from 0')
_PROCESSES = flags.DEFINE_integer('processes', None, 'with --coordinator: their number')


def main(argv: list[str]) -> None:
    """Runs the command line. Raises UserError."""
    if len(argv) > 1:
        raise UserError(f'{argv[1]}: This is not a flag. Write --config=FILE, --workdir=DIR, --config.KEY=VALUE.')
    if _CONFIG.value is None:
        raise UserError('--config: No config is given. Try --config=configs/quickstart.py.')
    cluster = distributed.explicit(_COORDINATOR.value, _PROCESS_ID.value, _PROCESSES.value)
    if cluster is None and _DISTRIBUTED.value is not False:
        cluster = distributed.detected()
    if cluster or _DISTRIBUTED.value:
        distributed.start(cluster)  # JAX then handles SIGTERM
    else:
        signal.signal(signal.SIGTERM, _stop)
    run_task(_CONFIG.value, _WORKDIR.value or f'runs/{_CONFIG.value.task}')


def run_task(config: ConfigDict, workdir: str) -> Any:
    """Runs the task of a config in the folder `workdir` and returns its result. Raises UserError."""
    if config.task not in [module.name for module in pkgutil.iter_modules(tasks.__path__)]:
        raise UserError(f'task: There is no task {config.task!r}. Use the config file of the task that you want.')
    check(config)
    keep_compiled_steps()
    task = importlib.import_module(f'gpt1_jax.tasks.{config.task}')  # only this one, because tasks import much
    return task.run(config, epath.Path(workdir).expanduser())


def _stop(signum, frame):
    """Ends at once. The training loop, which must save first, has its own handler."""
    del signum, frame
    print('Stopped. Run the same command again to resume.', file=sys.stderr)
    sys.exit(STOPPED_EXIT_STATUS)


def _set_up():
    """Must run before JAX and TensorFlow are imported."""
    keep_freed_memory()
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # silences a note about oneDNN
    os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')  # TensorFlow then loads without Keras, a third faster
    if 'host_platform_device_count' in os.environ.get('XLA_FLAGS', ''):
        os.environ.setdefault('NPROC', '32')  # XLA's threads; with too few, collectives between host devices deadlock
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().setFormatter(standard_logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
    for library in ('jax', 'httpx2'):
        standard_logging.getLogger(library).setLevel(standard_logging.WARNING)


def _parse(argv):
    try:
        return command_line.parse(argv)
    except UserError as error:
        _fail(error)


def _run(argv):
    try:
        main(argv)
    except UserError as error:
        _fail(error)
    except Exception as error:
        # What epath raises for gs://. Compared by name, because TensorFlow may not be installed.
        if not type(error).__module__.startswith('tensorflow.python.framework.errors'):
            raise
        reason = ' '.join(str(error).split())
        _fail(f'A remote file cannot be reached ({reason}). Check its path, the network and your permissions.')
    except KeyboardInterrupt:
        print('Interrupted. Run the same command again to resume.', file=sys.stderr)
        sys.exit(130)


def _fail(message):
    print('error:', re.sub(r'\s*\n\s*', ' ', str(message)), file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
    use_huge_pages()
    _set_up()
    app.run(_run, flags_parser=_parse)
