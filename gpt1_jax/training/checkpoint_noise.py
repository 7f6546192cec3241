"""Hides what Orbax and TensorStore print: errors reach the user as one sentence."""

import logging as standard_logging
import sys
import warnings

from absl import logging

from gpt1_jax import stopping


def hide() -> None:
    """Hides them in this process from now on; it may be called again."""
    logging.get_absl_logger().addFilter(_without_orbax)
    standard_logging.getLogger('asyncio').addFilter(_without_tasks)
    warnings.filterwarnings('ignore', "coroutine 'async_.*' was never awaited", RuntimeWarning)  # after a full disk
    sys.unraisablehook = _unraisablehook


def _without_orbax(record):
    """Log filter. Orbax writes dozens of lines for each save."""
    return '/orbax/checkpoint/' not in record.pathname


def _without_tasks(record):
    """Log filter. If several arrays cannot be read or written, Orbax raises the first error; each of the others would
    be logged as the traceback of a task or future."""
    return 'exception was never retrieved' not in record.getMessage()


def _unraisablehook(unraisable):
    """Hides tracebacks of TensorStore and Orbax. When one array cannot be read, nobody waits for the others, and each
    of them would print a traceback."""
    if not str(unraisable.exc_value).startswith(('Event loop is closed', 'Encountered error while reading array')):
        stopping.unraisablehook(unraisable)
