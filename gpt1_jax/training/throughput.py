"""Tokens per second, and the share of the devices' peak that they use (MFU)."""

import contextlib
import re
import time
from collections.abc import Iterator


class Throughput:
    """Tokens per second between two readings, without the first step (it compiles) and without pauses.

    Call `step` when the result of a step is known: steps are dispatched long before they end.
    """

    def __init__(self):
        self._since = None
        self._tokens = 0

    def step(self, tokens: float) -> None:
        """Counts a finished step. tokens: over all devices."""
        if self._since is None:
            self._since = time.perf_counter()
        else:
            self._tokens += tokens

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves out the time spent inside: an evaluation, a checkpoint."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            if self._since is not None:
                self._since += time.perf_counter() - begin

    def read(self) -> float | None:
        """Tokens/s since the last reading, or None if no step was counted; starts over."""
        if not self._tokens:
            return None
        now = time.perf_counter()
        rate = self._tokens / (now - self._since)
        self._since, self._tokens = now, 0
        return rate


def mfu(tokens_per_s: float | None, flops_per_token: float, peak_flops: float | None, devices: int) -> float | None:
    """Model FLOPs utilisation, 0 to 1; None if the rate (of all devices) or the peak (of one) is unknown.

    Source: Chowdhery et al. 2022 (PaLM), appendix B, but with causal attention counted half.
    """
    if tokens_per_s is None or peak_flops is None:
        return None
    return tokens_per_s * flops_per_token / (peak_flops * devices)


# Dense peaks in TFLOP/s of one JAX device for bfloat16, by jax.Device.device_kind.
# TPU: cloud.google.com/tpu/docs, the page of each version, per chip. In JAX each of the two cores of a v2 or v3
# chip (46 and 123 TFLOP/s) is a device; a chip of v4 and later is one device.
# NVIDIA: the data sheets; half of a figure with sparsity.
_PEAKS = (
    (r'TPU v2', 23),
    (r'TPU v3', 61.5),
    (r'TPU v4', 275),
    (r'TPU v5( lite|e)', 197),
    (r'TPU v5p?', 459),
    (r'TPU v6( lite|e)', 918),
    (r'A100.*', 312),
    (r'L4', 121),
    (r'H100 PCIe', 756),
    (r'H100 NVL', 835),
    (r'H100.*', 989),
    (r'H200 NVL', 835),
    (r'H200.*', 989),
)


def peak_flops(device_kind: str, dtype: object) -> float | None:
    """Peak of one device in FLOP/s for matrix products, or None if it is unknown.

    Args:
      device_kind: `jax.Device.device_kind`; unknown for a part of a GPU (MIG).
      dtype: of the products; unknown for all but bfloat16.
    """
    if str(dtype) == 'bfloat16' and 'MIG' not in device_kind:
        for pattern, peak in _PEAKS:
            if re.fullmatch(pattern, device_kind.removeprefix('NVIDIA ')):
                return peak * 1e12
    return None
