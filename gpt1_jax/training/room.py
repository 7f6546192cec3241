"""Whether arrays fit into the memory of the devices, known before any of them is made."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from gpt1_jax.errors import UserError

_HOST = pathlib.Path('/proc/meminfo')


def memory(devices: Sequence[jax.Device], *of_host: str) -> float | None:
    """Bytes of memory of each of these devices, which belong to this process; None if unknown.

    of_host: names in /proc/meminfo; CPU devices share their sum.
    """
    limit = (devices[0].memory_stats() or {}).get('bytes_limit')
    if limit is None and devices[0].platform == 'cpu' and _HOST.exists():
        amounts = dict(line.split(':') for line in _HOST.read_text().splitlines())
        limit = sum(int(amounts[name].split()[0]) for name in of_host) * 1024 / len(devices)
    return limit


def is_spare(arrays: Any) -> bool:
    """Whether each accelerator of this process, at its fullest so far, had room for two more copies of its parts of
    these arrays: one, and as much again for what has not run yet. False if that is unknown, as on a CPU."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    if not all('bytes_limit' in one and 'peak_bytes_in_use' in one for one in stats):
        return False
    return 2 * _size(arrays) <= min(one['bytes_limit'] - one['peak_bytes_in_use'] for one in stats)


def _size(arrays):
    """Bytes of the parts that one device has."""
    leaves = jax.tree.leaves(arrays)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def check_room(where: str, what: str, *arrays: Any) -> None:
    """Raises UserError if the parts of `what` on a device are larger than all of its memory.

    arrays: trees of ShapeDtypeStructs with shardings over the same devices.
    """
    size = _size(arrays)
    one, *_ = jax.tree.leaves(arrays)[0].sharding.addressable_devices  # alone: those of a host may share an array
    limit = memory([one], 'MemTotal', 'SwapTotal')
    if limit is not None and size > limit:
        raise UserError(
            f'{where}: The {what} take {size / 1e9:,.1f} GB on each device, which has {limit / 1e9:,.1f} GB. Make the '
            'model smaller, or use more devices.'
        )
