"""The one entry point: `python -m gpt1_jax.main --config=configs/TASK.py [--workdir=DIR] [--config.KEY=VALUE ...]`.

Exit status: 0 done; 2 a mistake (the message says how to fix it); 75 stopped by SIGTERM or a preemption notice, or in
training by Ctrl-C, after saving (the same command goes on); 130 stopped by Ctrl-C elsewhere.
"""

import difflib
import importlib.util
import itertools
import logging as standard_logging
import os
import re
import signal
import sys

from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict, config_flags

from gpt1_jax import config as common
from gpt1_jax.errors import STOPPED_EXIT_STATUS, UserError

_CONFIG = config_flags.DEFINE_config_file('config', help_string='configs/NAME.py or configs/NAME.py:ARGUMENT')
_WORKDIR = flags.DEFINE_string('workdir', None, 'folder of the run; default runs/TASK')
_DISTRIBUTED = flags.DEFINE_bool(
    'distributed', False, 'this is one of several processes that train together (on TPU pods, Slurm and GKE they find '
    'each other)')


def main(argv: list[str]) -> None:
    """Runs the task that the config names. Raises UserError."""
    if len(argv) > 1:
        raise UserError(f'{argv[1]!r} is not a flag: write --config=FILE, --workdir=DIR, --config.KEY=VALUE')
    if _CONFIG.value is None:
        raise UserError('no --config is given: try --config=configs/quickstart.py')
    task = _CONFIG.value.task
    if importlib.util.find_spec(f'gpt1_jax.tasks.{task}') is None:
        raise UserError(f'there is no task {task!r}: use the config file of the task that you want')
    common.check(_CONFIG.value)
    workdir = epath.Path(_WORKDIR.value or f'runs/{task}').expanduser()
    # JAX and the task are imported here: worker processes import this module again and need neither.
    if _DISTRIBUTED.value:
        import jax

        jax.distributed.initialize()  # and has SIGTERM handled
    else:
        signal.signal(signal.SIGTERM, _stop)
    importlib.import_module(f'gpt1_jax.tasks.{task}').run(_CONFIG.value, workdir)


def _stop(signum, frame):
    """Outside the training loop, which saves first, nothing is lost by ending at once."""
    del signum, frame
    print('stopped: the same command goes on', file=sys.stderr)
    sys.exit(STOPPED_EXIT_STATUS)


def _set_up():
    """Must come before JAX and TensorFlow are imported."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # only its note about itself
    if 'host_platform_device_count' in os.environ.get('XLA_FLAGS', ''):
        os.environ.setdefault('NPROC', '32')  # XLA's thread pool; too small a one deadlocks host-device collectives
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().setFormatter(standard_logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
    standard_logging.getLogger('jax').setLevel(standard_logging.WARNING)


def _parse(argv):
    try:
        _check_keys(argv)
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        _fail(f'{error} (keys of the config are set by --config.KEY=VALUE)')
    except (flags.Error, UserError, TypeError, ValueError) as error:
        _fail(error)


def _check_keys(argv):
    """Raises UserError if the config file cannot be read, or lacks a KEY of --config.KEY=VALUE.

    Comes before the flags are parsed, because ml_collections does not say these things in a sentence.
    """
    argv = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
    paths = [argument.partition('=')[2] if '=' in argument else following
             for argument, following in zip(argv, [*argv[1:], '']) if re.match('--?config(=|$)', argument)]
    if not paths:
        return
    try:
        config = flags.FLAGS['config'].parser.parse(paths[-1])
        if getattr(config, 'task', None) is None:
            raise UserError(f'{paths[-1]} is no config with a task: configs/ has one per task')
    except UserError:
        raise
    except OSError as error:
        reason = str(error.__cause__ or error).splitlines()[-1].strip()
        raise UserError(f'the config file cannot be read ({reason}): configs/ has one per task') from None
    except Exception as error:
        error = error.__context__ or error  # ml_collections puts the traceback into the message of some
        raise UserError(f'the config file {paths[-1]} has a mistake ({type(error).__name__}: {error}): correct it, or '
                        'use one of configs/') from None
    keys = list(_keys(config))
    for argument in argv:
        override = re.match('--?(?:no)?config[.]([^=]*)', argument)
        if override and override[1] not in keys:
            raise UserError(_unknown_key(override[1], keys))


def _keys(config, prefix=''):
    """The dotted keys of a config, its parts' names among them."""
    for name, value in config.items():
        yield prefix + name
        if isinstance(value, ConfigDict):
            yield from _keys(value, f'{prefix}{name}.')


def _unknown_key(key, keys):
    """The sentence for a key that is not one of `keys`, with the nearest beside it, or else the nearest elsewhere."""
    wrong = next(start for start in itertools.accumulate(key.split('.'), '{}.{}'.format) if start not in keys)
    parent, _, name = wrong.rpartition('.')
    beside = {last: last for above, _, last in (k.rpartition('.') for k in keys) if above == parent}
    elsewhere = {k.rpartition('.')[2]: k for k in reversed(keys)}
    nearest = [names[match] for names, cutoff in ((beside, 0.6), (elsewhere, 0.8))
               for match in difflib.get_close_matches(name, names, 1, cutoff)]
    return f'the config has no key {wrong!r}: ' + (
        f'did you mean {nearest[0]!r}?' if nearest else 'the keys are in the config file')


def _run(argv):
    try:
        main(argv)
    except UserError as error:
        _fail(error)
    except Exception as error:
        # What epath raises for gs://; TensorFlow may not be installed.
        if not type(error).__module__.startswith('tensorflow.python.framework.errors'):
            raise
        reason = ' '.join(str(error).split())
        _fail(f'a remote file cannot be reached ({reason}): check its path, the network and your permissions')
    except KeyboardInterrupt:
        print('interrupted: the same command goes on', file=sys.stderr)
        sys.exit(130)


def _fail(message):
    print('error:', re.sub(r'\s*\n\s*', ' ', str(message)), file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
    _set_up()
    app.run(_run, flags_parser=_parse)
