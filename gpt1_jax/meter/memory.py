"""How much memory of a device a program needs, and how much there is."""

import contextlib
from collections.abc import Iterator, Sequence

import jax

from gpt1_jax.files import is_out_of_memory
from gpt1_jax.training.room import memory


class NoRoomError(Exception):
    """The memory is too small; the message says for what."""


@contextlib.contextmanager
def in_memory() -> Iterator[None]:
    """Raises NoRoomError if the block needs more memory than there is."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise NoRoomError(' '.join(str(error).split())[:200]) from None


def planned(compiled: jax.stages.Compiled) -> dict:
    """GB on one device, as planned by the compiler: in all, and for arrays that live only inside the program."""
    analysis = compiled.memory_analysis()
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    temporary = analysis.temp_size_in_bytes
    return {'memory_gb': (held + temporary) / 1e9, 'temporary_gb': temporary / 1e9}


def check_room(planned_gb: float, devices: Sequence[jax.Device]) -> None:
    """Raises NoRoomError if a device of this process has less memory than a program was planned to need."""
    limit = memory(devices, 'MemAvailable')  # too large a program would be killed on a CPU
    if limit is not None and planned_gb > limit / 1e9:
        raise NoRoomError(f'{planned_gb:.2f} GB are needed, {limit / 1e9:.2f} GB are there')


def peak_bytes(devices: Sequence[jax.Device]) -> int:
    """The most bytes that a device has held since the process began; 0 if it does not count them."""
    return max((device.memory_stats() or {}).get('peak_bytes_in_use', 0) for device in devices)


def peak(devices: Sequence[jax.Device], before: int, planned_gb: float) -> dict:
    """{'peak_gb', 'peak_from'}: counted by the device, or planned by the compiler if the device does not count, or had
    held as much before. before: `peak_bytes` at that time."""
    counted = peak_bytes(devices)
    if counted > before:
        return {'peak_gb': counted / 1e9, 'peak_from': 'the device'}
    return {'peak_gb': planned_gb, 'peak_from': 'the compiler'}
