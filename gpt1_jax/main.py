"""The one entry point: `python -m gpt1_jax.main --config=configs/TASK.py [--workdir=DIR] [--config.KEY=VALUE ...]`.

Exit status: 0 done; 2 a mistake that the message says how to mend; 75 stopped by SIGTERM or a preemption notice, or in
training by Ctrl-C, after saving (the same command goes on); 130 stopped by Ctrl-C elsewhere.
"""

import importlib.util
import logging as standard_logging
import os
import re
import signal
import sys

from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

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
    try:
        task = _CONFIG.value.task
    except (OSError, SyntaxError) as error:  # raised by the first use of a config whose file could not be read
        reason = str(error).strip().splitlines()[-1].strip(' )')
        raise UserError(f'the config file cannot be read ({reason}): configs/ has one per task') from None
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
        return flags.FLAGS(argv)
    except AttributeError as error:  # ml_collections: no such key; it names the nearest, if one is near
        unknown, *nearest = re.findall(r"""['"]([\w.]+)['"]""", str(error).replace('\\', ''))
        hint = f'did you mean {nearest[0]!r}?' if nearest else 'the keys are in the config file'
        _fail(f'the config has no key {unknown!r}: {hint}')
    except flags.UnrecognizedFlagError as error:
        _fail(f'{error} (keys of the config are set by --config.KEY=VALUE)')
    except (flags.Error, UserError, KeyError, TypeError, ValueError) as error:
        _fail(error)


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
    print(f'error: {message}', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
    _set_up()
    app.run(_run, flags_parser=_parse)
