"""The form of log lines; tests/test_main.py has that a warning is said once."""

import logging as standard_logging
import re
import subprocess
import sys

import pytest
from absl import logging

from gpt1_jax import logs
from helpers import ROOT


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


@pytest.mark.parametrize(
    ('chosen', 'pattern'),
    [
        ('', r'\d\d:\d\d:\d\d told\n\d\d:\d\d:\d\d warned\n'),
        ('standard.basicConfig()', 'INFO:absl:told\nWARNING:absl:warned\n'),  # by any library too
        ('standard.basicConfig(level=standard.INFO)', 'INFO:absl:told\nWARNING:absl:warned\n'),
        ('standard.basicConfig(level=standard.ERROR)', ''),
        ('logging.set_verbosity(logging.WARNING)', 'WARNING:absl:warned\n'),
        ('logging.set_verbosity(logging.ERROR)', ''),
    ],
)
def test_a_caller_in_python_sees_each_line_once_unless_he_has_chosen(chosen, pattern):
    code = f"""
import logging as standard
from absl import logging
from gpt1_jax import logs
{chosen}
for _ in range(2):
    logs.show()
logging.info('told')
logging.warning('warned')
"""
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert re.fullmatch(pattern, done.stderr) and not done.stdout, done.stderr
