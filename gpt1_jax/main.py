"""The one entry point: `python -m gpt1_jax.main --config=configs/TASK.py [--workdir=DIR] [--config.KEY=VALUE ...]`.

Exit status: 0 done; 2 user error (the message says how to fix it); 75 stopped by SIGTERM or a preemption notice, or in
training by Ctrl-C, after saving (run the same command again to resume); 130 stopped by Ctrl-C elsewhere.
"""

import difflib
import importlib.util
import itertools
import logging as standard_logging
import os
import re
import signal
import sys
from typing import Any

from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict, config_flags

from gpt1_jax.config import check
from gpt1_jax.errors import STOPPED_EXIT_STATUS, UserError
from gpt1_jax.processes import keep_compiled_steps, keep_freed_memory, use_huge_pages

_CONFIG = config_flags.DEFINE_config_file('config', help_string='configs/NAME.py or configs/NAME.py:ARGUMENT')
_WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the run; default runs/TASK')
_DISTRIBUTED = flags.DEFINE_bool(
    'distributed',
    False,
    'whether this is one of several processes that train together; on TPU pods, Slurm and GKE they find each other',
)


def main(argv: list[str]) -> None:
    """Runs the command line. Raises UserError."""
    if len(argv) > 1:
        raise UserError(f'{argv[1]}: This is not a flag. Write --config=FILE, --workdir=DIR, --config.KEY=VALUE.')
    if _CONFIG.value is None:
        raise UserError('--config: No config is given. Try --config=configs/quickstart.py.')
    if _DISTRIBUTED.value:
        jax = importlib.import_module('jax')  # not at the top, because it reads what `_set_up` sets
        jax.distributed.initialize()  # also handles SIGTERM
    else:
        signal.signal(signal.SIGTERM, _stop)
    run_task(_CONFIG.value, _WORKDIR.value or f'runs/{_CONFIG.value.task}')


def run_task(config: ConfigDict, workdir: str) -> Any:
    """Runs the task of a config in the folder `workdir` and returns its result. Raises UserError."""
    if importlib.util.find_spec(f'gpt1_jax.tasks.{config.task}') is None:
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
    standard_logging.getLogger('jax').setLevel(standard_logging.WARNING)


def _parse(argv):
    try:
        _check_keys(argv)
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        _fail(f'--{error.flagname}: There is no such flag. Keys of the config are set with --config.KEY=VALUE.')
    except (flags.Error, UserError, TypeError, ValueError) as error:
        _fail(error)


def _check_keys(argv):
    """Raises UserError if the config file cannot be read, or lacks a KEY of --config.KEY=VALUE.

    Runs before the flags are parsed, because ml_collections reports these errors as tracebacks.
    """
    argv = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
    paths = [
        argument.partition('=')[2] if '=' in argument else following
        for argument, following in zip(argv, [*argv[1:], ''])
        if re.match('--?config(=|$)', argument)
    ]
    if not paths:
        return
    try:
        config = flags.FLAGS['config'].parser.parse(paths[-1])
        if getattr(config, 'task', None) is None:
            raise UserError(f'{paths[-1]}: This is not a config with a task. Use one of configs/.')
    except UserError:
        raise
    except OSError as error:
        reason = str(error.__cause__ or error).splitlines()[-1].strip()
        raise UserError(f'{paths[-1]}: The config file cannot be read ({reason}). Use one of configs/.') from None
    except Exception as error:
        error = error.__context__ or error  # ml_collections puts the traceback into the message of some
        raise UserError(
            f'{paths[-1]}: The config file has an error ({type(error).__name__}: {error}). Correct it, or '
            'use one of configs/.'
        ) from None
    keys = list(_keys(config))
    for argument in argv:
        override = re.match('--?(?:no)?config[.]([^=]*)', argument)
        if override and override[1] not in keys:
            raise UserError(_unknown_key(override[1], keys))


def _keys(config, prefix=''):
    """The dotted keys of a config, including the names of its parts."""
    for name, value in config.items():
        yield prefix + name
        if isinstance(value, ConfigDict):
            yield from _keys(value, f'{prefix}{name}.')


def _unknown_key(key, keys):
    """The message for a key that is not one of `keys`; suggests the nearest of the same part, or else of any part."""
    wrong = next(start for start in itertools.accumulate(key.split('.'), '{}.{}'.format) if start not in keys)
    parent, _, name = wrong.rpartition('.')
    beside = {last: last for above, _, last in (k.rpartition('.') for k in keys) if above == parent}
    elsewhere = {k.rpartition('.')[2]: k for k in reversed(keys)}
    nearest = [
        names[match]
        for names, cutoff in ((beside, 0.6), (elsewhere, 0.8))
        for match in difflib.get_close_matches(name, names, 1, cutoff)
    ]
    return f'{wrong}: The config has no such key. ' + (
        f'Did you mean {nearest[0]}?' if nearest else 'The keys are in the config file.'
    )


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
