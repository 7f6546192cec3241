"""Rounds of repeated work, and summaries of their times."""

import statistics
import time
from collections.abc import Callable, Sequence

STEPS = 5  # dispatched before the last is waited for


def rounds(run: Callable, *, seconds: float, most: int = 100) -> list[float]:
    """Seconds of each call of `run`, which must block until it is done: 3 calls, then more for `seconds` in all."""
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < end and len(times) < most):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return times


def spread(values: Sequence[float]) -> dict:
    """{'median', 'min', 'max', 'n'}"""
    return {'median': statistics.median(values), 'min': min(values), 'max': max(values), 'n': len(values)}


def rates(amount: float, times: Sequence[float]) -> dict:
    """`spread` of amount / time."""
    return spread([amount / t for t in times])
