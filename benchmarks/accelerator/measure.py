"""Shared by the parts: their report and their clock."""

import contextlib
import json
import math
import os
import pathlib
import time
import traceback

USUAL = 'unrolled'  # form of pre-training's step, in step.FORMS
BATCH_SIZES = {'gpt1': 64, 'small': 16, 'tiny': 8}  # rows of a pre-training step; the paper's at its size


class Context:
    """The input of a part, and its report.

    Attributes:
      size: of the model, 'gpt1', 'small' or 'tiny'.
      out: folder of the results.
      data: folder of the data, or None.
      report: dict, written to OUT/PART.json by `save`.
    """

    def __init__(self, name: str, size: str, out: pathlib.Path, data: pathlib.Path | None, deadline: float):
        self.size, self.out, self.data, self.report = size, out, data, {}
        self._path, self._deadline = out / f'{name}.json', deadline

    def left(self) -> float:
        """Seconds until this part must end."""
        return self._deadline - time.time()

    def save(self) -> None:
        """Writes the report atomically, because the part may be ended at any time."""
        temporary = self._path.with_suffix('.tmp')
        temporary.write_text(json.dumps(_plain(self.report), indent=1) + '\n')
        os.replace(temporary, self._path)

    def earlier(self, part: str) -> dict:
        """The report of an earlier part, or {} if there is none."""
        try:
            return json.loads((self.out / f'{part}.json').read_text())
        except (OSError, ValueError):
            return {}

    def need(self, seconds: float) -> None:
        """Skips the piece if it has too little time. seconds: what it takes, about, with the size gpt1."""
        seconds *= {'gpt1': 1, 'small': 0.5, 'tiny': 0.25}[self.size]
        if self.left() < seconds:
            raise TimeoutError(f'skipped: needs about {seconds:.0f} s, but only {max(self.left(), 0):.0f} s are left')

    @contextlib.contextmanager
    def attempt(self, name: str):
        """A piece of a part, which fills the dict report[name]. An error in it, even too little memory, is recorded
        there and ends only this piece."""
        piece = self.report[name] = {'error': 'it did not finish'}  # stays if the process is killed
        self.save()
        started = time.time()
        print(f'-- {name}', flush=True)
        try:
            yield piece
            if piece['error'] == 'it did not finish':
                del piece['error']
        except TimeoutError as error:
            del piece['error']
            piece['skipped'] = str(error)
        except Exception as error:  # of any type: the other pieces go on
            traceback.print_exc()
            piece['error'] = f'{type(error).__name__}: {str(error).strip().splitlines()[0][:300] if str(error) else ""}'
        piece['piece_s'] = round(time.time() - started, 2)
        self.save()


def relative_error(tree, reference) -> dict:
    """||tree - reference|| / ||reference|| of all leaves together and of the worst leaf; in float64 on the host."""
    import jax
    import numpy as np

    total, scale, worst = 0.0, 0.0, (0.0, '')
    expected = jax.tree.leaves(reference)
    for (path, leaf), other in zip(jax.tree_util.tree_leaves_with_path(tree), expected, strict=True):
        leaf, other = (np.asarray(jax.device_get(x), np.float64) for x in (leaf, other))
        difference, size = np.sum((leaf - other) ** 2), np.sum(other**2)
        total, scale = total + difference, scale + size
        # A leaf that is zero in the reference has no relative error.
        if size > 0 and math.sqrt(difference / size) > worst[0]:
            worst = math.sqrt(difference / size), jax.tree_util.keystr(path, simple=True, separator='/')
    return {'relative': math.sqrt(total / scale), 'worst_leaf': worst[0], 'worst_leaf_name': worst[1]}


def _plain(value):
    """`value` with numbers that JSON lacks as strings."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
