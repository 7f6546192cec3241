"""How log lines look, and that each warning is logged once."""

import contextlib
import logging as standard_logging
from collections.abc import Iterator

from absl import flags, logging


def set_up(name: str = '') -> None:
    """Gives log lines the time and, if several processes write them, a name; hides the notes of libraries."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    name = name.replace('%', '%%') + ': ' if name else ''
    logging.get_absl_handler().setFormatter(standard_logging.Formatter(f'%(asctime)s {name}%(message)s', '%H:%M:%S'))
    for library in ('jax', 'httpx2', 'matplotlib'):
        standard_logging.getLogger(library).setLevel(standard_logging.WARNING)


def show() -> None:
    """Shows a run's log lines to a caller in Python who has not chosen how much is logged, by absl's verbosity or the
    level of the root logger. If there are handlers already, only they show them."""
    chosen = not flags.FLAGS['verbosity'].using_default_value
    if chosen or logging.get_absl_logger().getEffectiveLevel() != standard_logging.WARNING:
        return
    if standard_logging.getLogger().handlers:
        logging.set_verbosity(logging.INFO)
    else:
        flags.FLAGS.mark_as_parsed()  # else absl would log that they are not
        set_up()


@contextlib.contextmanager
def each_warning_once() -> Iterator[None]:
    """Drops repeated warnings in the block: a run reads the same data several times, to count, encode and show them."""
    said = set()

    def is_new(record):
        if record.levelno != standard_logging.WARNING:
            return True
        message = record.getMessage()
        return message not in said and not said.add(message)

    logging.get_absl_logger().addFilter(is_new)
    try:
        yield
    finally:
        logging.get_absl_logger().removeFilter(is_new)
