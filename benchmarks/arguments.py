"""Types of arguments for argparse, which reports what they raise in one sentence.

An interpreter that has PyTorch alone imports this file too.
"""

import argparse
import subprocess
from collections.abc import Callable, Collection


def count(text: str) -> int:
    """A whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'It is {number}, but must be at least 1.')
    return number


def names(choices: Collection[str]) -> Callable[[str], list[str]]:
    """Some of the choices, separated by commas."""

    def parse(text):
        listed = text.split(',')
        if unknown := sorted(set(listed) - set(choices)):
            raise argparse.ArgumentTypeError(
                f'There is no {", ".join(map(repr, unknown))}. Choose from {", ".join(choices)}.'
            )
        return listed

    return parse


def interpreter(*packages: str) -> Callable[[str], str]:
    """A command that runs a Python which has these packages."""
    program = 'import importlib.util as u, sys; print(*(name for name in sys.argv[1:] if not u.find_spec(name)))'

    def parse(text):
        try:
            found = subprocess.run([text, '-c', program, *packages], check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise argparse.ArgumentTypeError(f'{text}: This is no Python interpreter ({error}).') from None
        if missing := ', '.join(found.stdout.split()):
            raise argparse.ArgumentTypeError(
                f'{text}: It lacks {missing}. Run {text} -m pip install -r benchmarks/requirements.txt, or name an '
                'interpreter that has it.'
            )
        return text

    return parse
