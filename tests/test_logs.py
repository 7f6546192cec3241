"""The form of log lines; tests/test_main.py has that a warning is said once."""

import logging as standard_logging
import re

import pytest
from absl import logging

from gpt1_jax import logs


@pytest.mark.parametrize(('name', 'before'), [('', ''), ('cola/100%/seed0', 'cola/100%/seed0: ')])
def test_lines_have_the_time_and_a_name(name, before):
    logs.set_up(name)
    record = standard_logging.LogRecord('absl', logging.INFO, __file__, 1, '12 of %d', (13,), None)
    line = logging.get_absl_handler().format(record)
    assert re.fullmatch(rf'\d\d:\d\d:\d\d {before}12 of 13', line)


def test_what_libraries_tell_is_hidden():
    logs.set_up()
    said = lambda name, level: standard_logging.getLogger(name).isEnabledFor(level)
    for name in ('jax._src.dispatch', 'httpx2', 'matplotlib.font_manager'):
        assert not said(name, standard_logging.INFO) and said(name, standard_logging.WARNING)
