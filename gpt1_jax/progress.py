"""How far a task is, for people. Imports no JAX: worker processes and `prepare` do without."""

import importlib.util
import sys
import time

_LINE_SECONDS = 10
_FORMATS = {'loss': 'loss {:.4f}', 'tokens_per_second': '{:,.0f} tokens/s', 'mfu': 'MFU {:.1%}'}


class Progress:
    """Shows how far a task is, on stderr: a bar on a terminal that has tqdm, else a line at most every 10 s.

    Args:
      total: where the task ends.
      start: where it begins; more than 0 if it resumes.
      description: a word or two to begin with.
      unit: 'step', or 'B' for bytes.
      show: whether this process shows anything.
    """

    def __init__(self, total: int, start: int, description: str, *, unit: str = 'step', show: bool = True):
        self._total, self._description, self._bytes, self._show = total, description, unit == 'B', show
        self._bar = self._shown = self._first = None
        if show and sys.stderr.isatty() and importlib.util.find_spec('tqdm'):
            import tqdm

            self._bar = tqdm.tqdm(
                total=total,
                initial=start,
                desc=description,
                unit=unit,
                unit_scale=self._bytes,
                file=sys.stderr,
                dynamic_ncols=True,
            )

    def update(self, done: int, **facts: float | None) -> None:
        """Shows that the task is at `done`; facts: `loss`, `tokens_per_second`, `mfu` (0 to 1), None if unknown."""
        facts = [_FORMATS[name].format(value) for name, value in facts.items() if value is not None]
        if self._bar is not None:
            self._bar.set_postfix_str(', '.join(facts), refresh=False)
            self._bar.update(done - self._bar.n)
        elif self._show:
            now = time.monotonic()
            self._first = self._first or (done, now)
            if self._shown is None or now - self._shown >= _LINE_SECONDS or done == self._total:
                self._shown = now
                print(', '.join([self._position(done), *facts, *self._pace(done, now)]), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def _position(self, done):
        if self._bytes:
            return f'{self._description}: {done / 1e6:.0f}/{self._total / 1e6:.0f} MB'
        return f'{self._description}: step {done}/{self._total}'

    def _pace(self, done, now):
        """Since the first update, so that compilation does not count."""
        first, then = self._first
        if done <= first or now < then + 1:
            return []
        rate = (done - first) / (now - then)
        left = f'{duration(max(0, self._total - done) / rate)} left'
        return [f'{rate / 1e6:.1f} MB/s', left] if self._bytes else [left]


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}'
