"""How far a task is, for people. Imports no JAX: worker processes and `prepare` do without."""

import contextlib
import importlib.util
import sys
import threading
import time
from collections.abc import Iterator

quiet = False  # True in a process whose parent shows how far it is, and that it stops
_LINE_SECONDS = 10
_FORMATS = {'loss': 'loss {:.4f}', 'tokens_per_second': '{:,.0f} tokens/s', 'mfu': 'MFU {:.1%}'}


class Progress:
    """Shows how far a task is, on stderr: a bar on a terminal that has tqdm, else a line at most every 10 s.

    Args:
      total: where the task ends.
      start: where it begins; more than 0 if it resumes.
      description: a word or two to begin with.
      unit: of what is counted, such as 'step'; 'B' for bytes.
      show: whether this process shows anything.
      part: whether it is a part of a task, such as an evaluation: one that takes less than 10 s writes no line.
    """

    def __init__(
        self, total: int, start: int, description: str, *, unit: str = 'step', show: bool = True, part: bool = False
    ):
        self._total, self._description, self._unit, self._bytes = total, description, unit, unit == 'B'
        show = show and not quiet
        self._show, self._part, self._said = show, part, False
        self._bar = self._first = None
        self._shown = time.monotonic() if part else None
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
                leave=not part,
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
            at_end = done == self._total and (self._said or not self._part)
            if self._shown is None or now - self._shown >= _LINE_SECONDS or at_end:
                self._shown, self._said = now, True
                _say(', '.join([self._position(done), *facts, *self._pace(done, now)]))

    def resume(self, done: int) -> None:
        """Goes on from `done`, which was finished before: it says nothing about the pace."""
        self._first = (done, time.monotonic())
        if self._bar is not None:
            self._bar.initial = self._bar.n = self._bar.last_print_n = done
        self.update(done)

    def close(self) -> None:
        """Leaves the bar as it is; that of a part vanishes."""
        if self._bar is not None:
            self._bar.close()

    def _position(self, done):
        if self._bytes:
            unit, size = self._scale()
            return f'{self._description}: {done / size:.0f}/{self._total / size:.0f} {unit}'
        return f'{self._description}: {self._unit} {done}/{self._total}'

    def _pace(self, done, now):
        """Since the first update, so that compilation does not count."""
        first, then = self._first
        if done <= first or now < then + 1:
            return []
        rate = (done - first) / (now - then)
        left = f'{duration(max(0, self._total - done) / rate)} left'
        unit, size = self._scale()
        return [f'{rate / size:.1f} {unit}/s', left] if self._bytes else [left]

    def _scale(self):
        return ('MB', 1e6) if self._total >= 1e7 else ('kB', 1e3)


def _say(line):
    with contextlib.suppress(OSError):  # nobody reads it any more, which must not end the work
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def waiting(what: str, *, show: bool = True) -> Iterator[None]:
    """Says on stderr, every 10 s, how long the block has taken, which does not tell how far it is. what: its name, such
    as 'compiling the step'."""
    began, ended = time.monotonic(), threading.Event()

    def tell():
        while not ended.wait(_LINE_SECONDS):
            _say(f'{what}: {duration(time.monotonic() - began)} so far')

    if show and not quiet:
        threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}'
