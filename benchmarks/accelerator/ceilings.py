"""Part 1: the machine and its two ceilings, those of a large matrix product and of a large copy."""

import importlib.metadata
import os
import platform
import time

import jax
import jax.numpy as jnp

from benchmarks.accelerator.measure import Context, rates, rounds
from gpt1_jax.training.throughput import peak_flops

_CALLS = 10  # dispatched before the last is waited for


def run(context: Context) -> None:
    context.report |= machine()
    context.save()
    on_cpu = jax.default_backend() == 'cpu'
    seconds = min(10.0, context.left() / 6)

    for dtype in ('bfloat16', 'float32'):
        with context.attempt(f'product_{dtype}') as piece:
            context.need(5)
            n = 1024 if on_cpu else 8192
            a, b = (jax.random.normal(key, (n, n), dtype) for key in jax.random.split(jax.random.key(0)))
            product = jax.jit(lambda a, b: (a @ b) * jnp.asarray(n**-0.5, a.dtype))
            times = rounds(_repeated(product, a, b), seconds=seconds)
            piece |= {'n': n, 'tflops': rates(2 * n**3 * _CALLS / 1e12, times)}
    with context.attempt('copy') as piece:
        context.need(5)
        size = 2**26 if on_cpu else 2**30  # bytes, more than any cache holds
        x = jax.random.normal(jax.random.key(1), (size // 4,), jnp.float32)
        shift = jax.jit(lambda x, _: x + 1)
        times = rounds(_repeated(shift, x, None), seconds=seconds)
        piece |= {'bytes_read_and_written': 2 * size, 'gb_per_s': rates(2 * size * _CALLS / 1e9, times)}


def machine() -> dict:
    """Device and versions."""
    device = jax.devices()[0]
    versions = {'python': platform.python_version()}
    for name in ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'ml-collections', 'torch'):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        'device': device.device_kind,
        'platform': device.platform,
        'devices': jax.device_count(),
        'cores': os.cpu_count(),
        'machine': platform.machine(),
        'versions': versions,
        'peak_bfloat16_flops': peak_flops(device.device_kind, 'bfloat16'),
        'when': time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime()),
    }


def _repeated(function, x, y):
    function(x, y).block_until_ready()

    def run():
        result = x
        for _ in range(_CALLS):
            result = function(result, y)
        result.block_until_ready()

    return run
