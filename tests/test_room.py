"""The memory of a device, and that only what is larger than it is refused."""

import types

import jax
import numpy as np
import pytest

from gpt1_jax.errors import UserError
from gpt1_jax.training import room
from gpt1_jax.training.partitioning import Partitioner
from helpers import assert_well_put


def test_memory_is_what_the_device_says_or_a_share_of_the_host_s(tmp_path, monkeypatch):
    device = lambda platform, **stats: types.SimpleNamespace(memory_stats=lambda: stats or None, platform=platform)
    (tmp_path / 'meminfo').write_text(
        'MemTotal:       1000 kB\nMemFree:  1 kB\nHugePages_Total:   3\nSwapTotal: 24 kB\n'
    )
    monkeypatch.setattr(room, '_HOST', tmp_path / 'meminfo')
    assert room.memory([device('gpu', bytes_limit=5, bytes_in_use=3)] * 2, 'MemTotal') == 5
    assert room.memory([device('cpu')] * 2, 'MemTotal', 'SwapTotal') == 2**19
    assert room.memory([device('tpu')], 'MemTotal') is None
    (tmp_path / 'meminfo').unlink()
    assert room.memory([device('cpu')], 'MemTotal') is None
    monkeypatch.undo()
    assert room.memory(jax.devices()[:1], 'MemTotal', 'SwapTotal') >= room.memory(jax.devices()[:1], 'MemAvailable') > 0


def test_room_for_copies_is_what_no_device_has_ever_needed(monkeypatch):
    partitioner = Partitioner('fsdp', (1, 8, 1))
    arrays = {'w': jax.ShapeDtypeStruct((8, 16), np.float32, sharding=partitioner.sharding('embed'))}
    size = 4 * 16
    device = lambda **stats: types.SimpleNamespace(memory_stats=lambda: stats or None)
    of = lambda limit: device(bytes_limit=limit, peak_bytes_in_use=1000, bytes_in_use=10)
    for devices, spare in (
        ([of(1000 + 2 * size)], True),
        ([of(1000 + 2 * size - 1)], False),
        ([of(10_000), of(1000 + size)], False),
        ([device(bytes_limit=10_000, bytes_in_use=10)], False),
        ([of(10_000), device()], False),
    ):
        monkeypatch.setattr(jax, 'local_devices', lambda devices=devices: devices)
        assert room.is_spare(arrays) == spare
    monkeypatch.undo()
    assert not room.is_spare(arrays)  # a CPU


ALL = 'MemTotal', 'SwapTotal'  # of a host: what others use of it may become free


def test_what_one_device_holds_decides(monkeypatch):
    partitioner = Partitioner('fsdp', (2, 4, 1))
    shape = lambda dtype, *roles: jax.ShapeDtypeStruct((8, 16), dtype, sharding=partitioner.sharding(*roles))
    arrays = shape(np.float32, None, 'embed'), {'whole': shape(np.int8)}
    held = 4 * 8 * 16 // 4 + 8 * 16
    for limit in (held, None):
        monkeypatch.setattr(room, 'memory', lambda devices, *names: limit if names == ALL else 0)
        room.check_room('model', 'parameters', *arrays)
    monkeypatch.setattr(room, 'memory', lambda devices, *names: held - 1 if names == ALL else None)
    with pytest.raises(
        UserError, match='^model: The parameters take 0.0 GB on each device, which has 0.0 GB.'
    ) as caught:
        room.check_room('model', 'parameters', *arrays)
    assert_well_put(str(caught.value))
