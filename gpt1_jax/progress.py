"""A progress bar for people, nothing for files. Imports no JAX: worker processes and `prepare` do without."""

import importlib.util
import sys


def progress_bar(**options):
    """A tqdm bar on stderr; None where that is no terminal, or tqdm is not installed."""
    if not sys.stderr.isatty() or not importlib.util.find_spec('tqdm'):
        return None
    import tqdm
    return tqdm.tqdm(**options, file=sys.stderr, dynamic_ncols=True)
