"""When a loss has diverged, and which batches a run leaves out after it went back to a checkpoint.

A step is bad if its loss or gradient is not finite (it then changes nothing, see `steps.train_step`), or if its loss
is a spike: more than 7 standard deviations above the mean of the last 1,000 or so, about what OLMo 2 counts in its
spike score (OLMo team 2025, arXiv 2501.00656). A loss has diverged after `optimizer.max_skipped` bad steps in a row.
With `optimizer.on_divergence` 'stop', where only non-finite steps count as bad, the run then ends. With 'rollback' it
goes back to the newest checkpoint before the bad steps and leaves out the batches from there to the last bad step, as
was done for PaLM (Chowdhery et al. 2022, section 5.1): the later batches move up, the number of updates stays.

All of it depends on the losses only, which are the same in every process and in a resumed run.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from gpt1_jax.errors import DivergedError

MOST = 3  # times that a run goes back to one checkpoint
_DEVIATIONS = 7.0
_RECENT, _FEWEST = 1000, 100  # losses in the mean, and the fewest from which a spike can be told


class Trend(NamedTuple):
    """Running mean, variance and number of the losses, without bad steps; and the bad steps in a row up to now."""

    mean: float = 0.0
    variance: float = 0.0
    number: int = 0
    bad: int = 0

    def observe(self, loss: float, finite: bool) -> 'Trend':
        """After one more step. finite: whether its loss and gradient are."""
        change = loss - self.mean
        spike = self.number >= _FEWEST and change > _DEVIATIONS * math.sqrt(self.variance)
        if spike or not finite:
            return self._replace(bad=self.bad + 1)
        weight = 1 / min(self.number + 1, _RECENT)
        variance = (1 - weight) * (self.variance + weight * change**2)
        return Trend(self.mean + weight * change, variance, self.number + 1)


class Diverged(Exception):
    """The loss has diverged, and the run may go back.

    Attributes:
      step: the last of the bad steps.
      bad: their number.
      rollbacks: those that the run had made before.
    """

    def __init__(self, message: str, step: int, bad: int, rollbacks: Sequence[dict]):
        super().__init__(message)
        self.step, self.bad, self.rollbacks = step, bad, rollbacks


def position(step: int, rollbacks: Sequence[dict]) -> int:
    """Which batch an update reads, given the number of updates before it."""
    for first, end in sorted(one['batches'] for one in rollbacks):
        if step >= first:
            step += end - first
    return step


def go_back(diverged: Diverged, step: int, rollbacks: Sequence[dict]) -> list[dict]:
    """The rollbacks of a run that is back at the checkpoint of a step.

    Args:
      rollbacks: as that checkpoint has them: {'step': of the checkpoint, 'times': that the run went back to it,
        'batches': [first, end] of those that are left out, before `end`}.

    Raises DivergedError if the run has gone back to that checkpoint MOST times before.
    """
    times = 1 + sum(one['times'] for one in diverged.rollbacks if one['step'] == step)
    if times > MOST:
        raise DivergedError(
            f'{diverged} It also diverged after going back to step {step} {MOST} times. Lower optimizer.learning_rate '
            'or check the data; the earlier checkpoints are kept.'
        )
    batches = [position(step, rollbacks), position(diverged.step - 1, diverged.rollbacks) + 1]
    return [*rollbacks, {'step': step, 'times': times, 'batches': batches}]


@dataclasses.dataclass(frozen=True)
class Remaining:
    """The batches of a run (see `Job`) without those that its rollbacks leave out."""

    batches: object
    rollbacks: Sequence[dict]

    @property
    def from_shards(self) -> bool:
        return self.batches.from_shards

    def batch_at(self, step: int) -> dict:
        return self.batches.batch_at(position(step, self.rollbacks))

    def count_tokens(self, batch: dict) -> int:
        return self.batches.count_tokens(batch)

    def describe(self, step: int) -> str:
        return self.batches.describe(position(step, self.rollbacks))


def verdict(workdir: epath.Path, step: int, bad: int, batches: Remaining, may_go_back: bool) -> Exception:
    """What to raise when the loss has diverged: Diverged if the run may go back, else DivergedError.

    Args:
      step: the last of the bad steps.
      bad: their number.
    """
    what = 'loss was not finite or a spike' if may_go_back else 'loss or its gradient was not finite'
    message = f'{workdir}: The {what} for {bad} steps in a row, up to step {step} ({batches.describe(step - 1)}).'
    if may_go_back:
        return Diverged(message, step, bad, batches.rollbacks)
    return DivergedError(
        f'{message} Lower optimizer.learning_rate, check these data, or set optimizer.on_divergence=rollback; '
        'the earlier checkpoints are kept.'
    )
