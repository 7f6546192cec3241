"""The release's Adam in optax (Radford et al., 2018, section 4.1; `opt.py` of the release for the details)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from gpt1_jax.config import check_choice
from gpt1_jax.errors import UserError


def linear_schedule(progress: jax.typing.ArrayLike, warmup: float) -> jax.Array:
    """Factor of the peak rate: a ramp from 0 to 1 over the fraction `warmup`, times 1 - progress (0 to 1)."""
    ramp = jnp.minimum(progress / warmup, 1.0) if warmup > 0 else 1.0
    return ramp * (1.0 - progress)


def cosine_schedule(progress: jax.typing.ArrayLike, warmup: float) -> jax.Array:
    """Factor of the peak rate: a line up to 1 at `warmup`, then 0.5 * (1 + cos(pi * progress))."""
    cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return jnp.where(progress <= warmup, progress / warmup, cosine) if warmup > 0 else cosine


def constant_schedule(progress: jax.typing.ArrayLike, warmup: float) -> jax.Array:
    """Factor of the peak rate: a ramp from 0 to 1 over the fraction `warmup`, then 1. The length of a run changes
    nothing, so it can end early."""
    return jnp.minimum(progress / warmup, 1.0) if warmup > 0 else jnp.ones_like(progress, jnp.float32)


SCHEDULES = {'linear': linear_schedule, 'cosine': cosine_schedule, 'constant': constant_schedule}


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


def scale_by_rate(rate: Callable) -> optax.GradientTransformationExtraArgs:
    """Scales by -rate(step, count), where count is the number of earlier updates.

    `step`, int32 [], is an argument of `update`: the number of earlier steps; by default the count. The state is that
    of `optax.scale_by_schedule`.
    """

    def init(params):
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, *, step=None, **unused):
        del params, unused
        factor = -rate(state.count if step is None else step, state.count)
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


def make_optimizer(config: ConfigDict, total_steps: int) -> tuple[optax.GradientTransformationExtraArgs, Callable]:
    """The optimizer of `config.optimizer`, and its rate as a function of the number of earlier steps.

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
    schedule = SCHEDULES[config.schedule]

    def learning_rate(step):
        return config.learning_rate * schedule(step / total_steps, warmup)

    def corrected_rate(step, count):
        t = count + 1.0
        return learning_rate(step) * jnp.sqrt(1.0 - config.b2**t) / (1.0 - config.b1**t)

    clip = optax.clip_by_global_norm(config.max_grad_norm) if config.max_grad_norm else optax.identity()
    return optax.chain(
        clip,
        scale_by_moments(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay, decayed),
        scale_by_rate(corrected_rate),
    ), learning_rate
