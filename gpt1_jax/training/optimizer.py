"""The release's Adam in optax (Radford et al., 2018, section 4.1; `opt.py` of the release for the details)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gpt1_jax.errors import UserError


def linear_schedule(progress, warmup):
    """Factor of the peak rate: up from 0 over the fraction `warmup`, times a line down to 0; `progress` in [0, 1]."""
    ramp = jnp.minimum(progress / warmup, 1.0) if warmup > 0 else 1.0
    return ramp * (1.0 - progress)


def cosine_schedule(progress, warmup):
    """Factor of the peak rate: a line up to 1 at `warmup`, after that 0.5 * (1 + cos(pi * progress))."""
    cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return jnp.where(progress <= warmup, progress / warmup, cosine) if warmup > 0 else cosine


SCHEDULES = {'linear': linear_schedule, 'cosine': cosine_schedule}


class MomentsState(NamedTuple):
    """First and second moments of the gradients."""

    mu: optax.Updates
    nu: optax.Updates


def scale_by_moments(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """mu / (sqrt(nu) + eps), without bias correction: the release puts that into the rate, epsilon outside it."""

    def init(params):
        return MomentsState(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None):
        del params
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda n, g: b2 * n + (1 - b2) * g * g, state.nu, updates)
        return jax.tree.map(lambda m, n: m / (jnp.sqrt(n) + eps), mu, nu), MomentsState(mu, nu)

    return optax.GradientTransformation(init, update)


def decayed(params) -> dict:
    """True for the parameters that decay: the table and every kernel, not biases and gains (section 4.1).

    By name, not by number of axes: biases are stacked over layers here.
    """
    # The last dictionary key: while parameters are created they are boxed with their logical axes.
    name = lambda path: [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)][-1]
    return jax.tree_util.tree_map_with_path(
        lambda path, _: name(path) == 'table' or name(path).endswith('kernel'), params)


def make_optimizer(config, total_steps: int) -> tuple[optax.GradientTransformation, callable]:
    """The optimizer of `config.optimizer`, and its rate as a function of the number of updates made before.

    The rate is peak * schedule(updates / total) * bias correction; the first update has rate 0 when there is a
    warm-up, because the schedule sees the count before it is incremented (release).

    Args:
      config: `schedule`, `learning_rate`, `warmup_steps` or `warmup_fraction`, `b1`, `b2`, `eps`, `weight_decay`,
        `max_grad_norm` (0: no clipping).
      total_steps: updates in the whole run.
    """
    if config.schedule not in SCHEDULES:
        raise UserError(f'optimizer.schedule={config.schedule!r} is unknown; choose one of {", ".join(SCHEDULES)}')
    if config.warmup_steps >= total_steps:
        raise UserError(f'optimizer.warmup_steps={config.warmup_steps} is not less than the {total_steps} updates of '
                        'the run; lower it or train for longer')
    if config.warmup_steps and config.warmup_fraction:
        raise UserError(f'optimizer.warmup_steps={config.warmup_steps} and optimizer.warmup_fraction='
                        f'{config.warmup_fraction} say the same: set one of them to 0')
    warmup = config.warmup_steps / total_steps if config.warmup_steps else config.warmup_fraction
    schedule = SCHEDULES[config.schedule]

    def learning_rate(count):
        return config.learning_rate * schedule(count / total_steps, warmup)

    def corrected_rate(count):
        t = count + 1.0
        return learning_rate(count) * jnp.sqrt(1.0 - config.b2**t) / (1.0 - config.b1**t)

    clip = optax.clip_by_global_norm(config.max_grad_norm) if config.max_grad_norm else optax.identity()
    return optax.chain(
        clip,
        scale_by_moments(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay, decayed),
        optax.scale_by_learning_rate(corrected_rate),
    ), learning_rate
