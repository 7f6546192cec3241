"""The machine, and the two ceilings of a device: those of a large matrix product and of a large copy."""

import os
import platform
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gpt1_jax.files import package_version
from gpt1_jax.meter.timing import rates, rounds
from gpt1_jax.training.throughput import peak_flops

_CALLS = 10  # dispatched before the last is waited for


def machine() -> dict:
    """Device and versions."""
    device = jax.devices()[0]
    packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'ml-collections', 'torch')
    versions = {'python': platform.python_version()} | {name: package_version(name) or None for name in packages}
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


def product(dtype: str, seconds: float) -> dict:
    """{'n', 'tflops'} of n x n matrix products on the first device, measured for `seconds`."""
    n = 1024 if jax.default_backend() == 'cpu' else 8192
    a, b = (jax.random.normal(key, (n, n), dtype) for key in jax.random.split(jax.random.key(0)))
    times = rounds(_repeated(jax.jit(lambda a, b: (a @ b) * jnp.asarray(n**-0.5, a.dtype)), a, b), seconds=seconds)
    return {'n': n, 'tflops': rates(2 * n**3 * _CALLS / 1e12, times)}


def copy(seconds: float) -> dict:
    """{'bytes_read_and_written', 'gb_per_s'} of a copy on the first device, measured for `seconds`."""
    size = 2**26 if jax.default_backend() == 'cpu' else 2**30  # bytes, more than any cache holds
    x = jax.random.normal(jax.random.key(1), (size // 4,), jnp.float32)
    times = rounds(_repeated(jax.jit(lambda x, _: x + 1), x, None), seconds=seconds)
    return {'bytes_read_and_written': 2 * size, 'gb_per_s': rates(2 * size * _CALLS / 1e9, times)}


def _repeated(function: Callable, x, y) -> Callable:
    function(x, y).block_until_ready()

    def run():
        result = x
        for _ in range(_CALLS):
            result = function(result, y)
        result.block_until_ready()

    return run
