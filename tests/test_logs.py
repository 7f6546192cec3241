"""The form of log lines; tests/test_main.py has that a warning is said once."""

import re

import pytest
from absl import logging

from gpt1_jax import logs


@pytest.mark.parametrize(('name', 'before'), [('', ''), ('cola/100%/seed0', 'cola/100%/seed0: ')])
def test_lines_have_the_time_and_a_name(capfd, name, before):
    logs.set_up(name)
    logging.info('12 of %d', 13)
    logs.set_up()
    line = capfd.readouterr().err.splitlines()[-1]  # the first one of a process comes after a note of absl's
    assert re.fullmatch(rf'\d\d:\d\d:\d\d {before}12 of 13', line)
