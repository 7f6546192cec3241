"""The release's Adam in optax (Radford et al., 2018, section 4.1; `opt.py` of the release for the details)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from gpt1_jax.config import check_choice
from gpt1_jax.errors import UserError

_TINY = 1e-30  # in place of 0 where a quotient is not used


def linear_schedule(progress: jax.typing.ArrayLike, warmup: jax.typing.ArrayLike) -> jax.Array:
    """Factor of the peak rate: a ramp from 0 to 1 over the fraction `warmup`, times 1 - progress (0 to 1)."""
    return _ramp(progress, warmup) * (1.0 - progress)


def cosine_schedule(progress: jax.typing.ArrayLike, warmup: jax.typing.ArrayLike) -> jax.Array:
    """Factor of the peak rate: a line up to 1 at `warmup`, then 0.5 * (1 + cos(pi * progress))."""
    cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return jnp.where(progress <= warmup, _ramp(progress, warmup), cosine)


def constant_schedule(progress: jax.typing.ArrayLike, warmup: jax.typing.ArrayLike) -> jax.Array:
    """Factor of the peak rate: a ramp from 0 to 1 over the fraction `warmup`, then 1. The length of a run changes
    nothing, so it can end early."""
    return _ramp(progress, warmup)


def _ramp(progress, warmup):
    """Grows from 0 to 1 at `warmup` and stays 1; always 1 if `warmup` is 0."""
    return jnp.where(progress < warmup, progress / jnp.maximum(warmup, _TINY), 1.0)


SCHEDULES = {'linear': linear_schedule, 'cosine': cosine_schedule, 'constant': constant_schedule}


class Rate(NamedTuple):
    """The learning rate as a function of the number of earlier steps.

    Attributes:
      schedule: (progress, warm-up) -> factor of the peak.
      numbers: float32 [3]: the peak, the steps of the run, and the fraction of them that is warm-up. They are an
        argument of a compiled step, so that runs which differ in nothing else share it.
    """

    schedule: Callable
    numbers: np.ndarray

    def __call__(self, step: jax.typing.ArrayLike, numbers: jax.Array | None = None) -> jax.Array:
        """The rate after `step` steps. numbers: to use instead of its own."""
        peak, total, warmup = self.numbers if numbers is None else numbers
        return peak * self.schedule(step / total, warmup)


class MomentsState(NamedTuple):
    """First and second moments of the gradients."""

    mu: optax.Updates
    nu: optax.Updates


def scale_by_moments(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """mu / (sqrt(nu) + eps), without bias correction: the release applies that to the rate, not to epsilon."""

    def init(params):
        return MomentsState(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None):
        del params
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda n, g: b2 * n + (1 - b2) * g * g, state.nu, updates)
        return jax.tree.map(lambda m, n: m / (jnp.sqrt(n) + eps), mu, nu), MomentsState(mu, nu)

    return optax.GradientTransformation(init, update)


def scale_by_rate(rate: Rate, correction: Callable) -> optax.GradientTransformationExtraArgs:
    """Scales by -rate(step) * correction(count), where count is the number of earlier updates.

    Arguments of `update`: `step`, int32 [], the number of earlier steps, by default the count; `numbers` of the rate,
    by default its own. The state is that of `optax.scale_by_schedule`.
    """

    def init(params):
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, *, step=None, numbers=None, **unused):
        del params, unused
        factor = -rate(state.count if step is None else step, numbers) * correction(state.count)
        updates = jax.tree.map(lambda u: jnp.asarray(factor, u.dtype) * u, updates)
        return updates, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def decayed(params: dict) -> dict:
    """True for the parameters that decay: the table and every kernel, not biases and gains (section 4.1).

    Chosen by name, not by number of axes, because biases are stacked over layers.
    """
    # The last dictionary key: while parameters are created they are boxed with their logical axes.
    name = lambda path: [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)][-1]
    return jax.tree_util.tree_map_with_path(
        lambda path, _: name(path) == 'table' or name(path).endswith('kernel'), params
    )


def make_optimizer(config: ConfigDict, total_steps: int) -> tuple[optax.GradientTransformationExtraArgs, Rate]:
    """The optimizer of `config.optimizer`, and its learning rate.

    An update is scaled by peak * schedule(steps / total) * bias correction(updates). With a warm-up the first has
    rate 0, because the schedule sees the number of steps before it (release). A step that is skipped because it is not
    finite counts as a step, not as an update. The schedule follows the position in the data,
    `optimizer.update(..., step=state.step)`, so that every run ends with rate 0; the bias correction follows the
    updates in the moments.

    Raises UserError for an unknown schedule, or a warm-up that is too long or given twice.
    """
    check_choice('optimizer.schedule', config.schedule, SCHEDULES)
    if config.warmup_steps >= total_steps:
        raise UserError(
            f'optimizer.warmup_steps: {config.warmup_steps} is too many for a run of {total_steps} steps. '
            'Lower it or train for longer.'
        )
    if config.warmup_steps and config.warmup_fraction:
        raise UserError(
            f'optimizer.warmup_steps: It is {config.warmup_steps}, but optimizer.warmup_fraction is '
            f'{config.warmup_fraction}. Set one of them to 0.'
        )
    warmup = config.warmup_steps / total_steps if config.warmup_steps else config.warmup_fraction
    rate = Rate(SCHEDULES[config.schedule], np.array([config.learning_rate, total_steps, warmup], np.float32))

    def correction(count):
        t = count + 1.0
        return jnp.sqrt(1.0 - config.b2**t) / (1.0 - config.b1**t)

    clip = optax.clip_by_global_norm(config.max_grad_norm) if config.max_grad_norm else optax.identity()
    return optax.chain(
        clip,
        scale_by_moments(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay, decayed),
        scale_by_rate(rate, correction),
    ), rate
