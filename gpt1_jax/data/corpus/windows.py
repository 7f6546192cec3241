"""Pre-training batches as a function of (seed, step), and held-out batches in order.

Nothing is shuffled in memory and no state is kept: batch k of any run is computed directly, so a resumed
run, or one on another number of hosts, reads the same windows.
"""

import numpy as np
from absl import logging

from gpt1_jax.data.corpus.shards import Split
from gpt1_jax.data.placement import Placement
from gpt1_jax.errors import UserError

_ROUNDS = 12  # with 4, orders of a few windows are visibly not uniform
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit words with output bits that look random (the finaliser of SplitMix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _keys(seed: int, epoch: np.ndarray) -> np.ndarray:
    """One 64-bit key per epoch."""
    seed = _mix(np.array([seed % 2**64], np.uint64) + _GOLDEN)
    return _mix(seed + (epoch.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def permute(index: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """A pseudo-random permutation of 0..n-1, evaluated at `index` in O(1) time and memory per element.

    A Feistel network over pairs (a, b) that number at least n; a value outside 0..n-1 is permuted again until it is
    inside (cycle-walking), which keeps it a permutation (Black and Rogaway 2002, "Ciphers with arbitrary finite
    domains").

    Args:
      index: int64 [...], each in 0..n-1.
      keys: uint64 [...], the permutation that each element uses.
    """
    width = np.uint64(np.ceil(np.sqrt(n)))
    height = np.uint64(-(-n // int(width)))

    def encipher(x, keys):
        a, b = x // height, x % height
        for i in range(_ROUNDS):
            key = _mix(keys + np.uint64(i + 1))
            if i % 2:
                b = (b + _mix(key ^ _mix(a + _GOLDEN)) % height) % height
            else:
                a = (a + _mix(key ^ _mix(b + _GOLDEN)) % width) % width
        return a * height + b

    x = encipher(index.astype(np.uint64), keys)
    while (outside := x >= n).any():
        x[outside] = encipher(x[outside], keys[outside])
    return x.astype(np.int64)


class PretrainingBatches:
    """Windows of `length` tokens and their next tokens, in pseudo-random order, epoch after epoch.

    In every epoch each window of a grid is read once; the grid's phase differs from epoch to epoch, so that
    the cuts fall elsewhere ("randomly sampled, contiguous sequences of 512 tokens", Radford et al. 2018,
    section 4.1).

    Attributes:
      windows_per_epoch: (tokens - length) // length.
    """

    from_shards = True

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        length: int,
        seed: int,
        accumulation: int = 1,
        placement: Placement = Placement(),
    ):
        """If the shards do not divide a micro-batch, its last places stay empty. Raises UserError if the split is too
        short or the micro-batches do not divide the batch."""
        self.windows_per_epoch = (split.tokens - length) // length
        if self.windows_per_epoch < 1:
            raise UserError(
                f'data.source: The training split has {split.tokens:,} tokens, too few for windows of '
                f'{length}. Prepare at least {2 * length:,} tokens, or shorten the windows.'
            )
        if batch_size < 1 or batch_size % accumulation:
            raise UserError(
                f'data.batch_size: {batch_size} does not divide into {accumulation} micro-batches. Make it a multiple '
                f'of {accumulation}.'
            )
        self._windows = batch_size // accumulation  # in a micro-batch
        self._rows = -(-self._windows // placement.shards)
        if empty := self._rows * placement.shards - self._windows:
            logging.warning(
                'data.batch_size: %d windows do not divide among %d groups of devices, so %d of %d places stay empty.',
                self._windows,
                placement.shards,
                empty,
                self._rows * placement.shards,
            )
        self._split = split
        self._batch_size = batch_size
        self._length = length
        self._seed = seed
        self._accumulation = accumulation
        self._placement = placement

    def window_starts(self, step: int) -> np.ndarray:
        """Token offsets of the windows of the global batch: int64 [batch_size]."""
        sample = step * self._batch_size + np.arange(self._batch_size, dtype=np.int64)
        epoch, index = np.divmod(sample, self.windows_per_epoch)
        keys = _keys(self._seed, epoch)
        phase = (_mix(keys) % np.uint64(self._length)).astype(np.int64)
        return phase + self._length * permute(index, self.windows_per_epoch, keys)

    def batch_at(self, step: int) -> dict[str, np.ndarray]:
        """The local shards of one batch, k = accumulation micro-batches of them.

        Returns:
          'tokens': unsigned [k, shards, rows, length + 1]; inputs are [..., :-1], targets [..., 1:].
          'weights': float32 [k, shards, rows, length] of the targets, 0 in empty places; over the whole batch they sum
            to 1.
        """
        shards = self._placement.shards
        starts = self.window_starts(step).reshape(self._accumulation, -1)
        places = np.minimum(np.arange(shards * self._rows), self._windows - 1).reshape(shards, -1)
        starts = starts[:, places[list(self._placement.local)]]
        tokens = self._split.read(starts.reshape(-1), self._length + 1).reshape(*starts.shape, -1)
        weights = np.full((*starts.shape, self._length), 1 / (self._batch_size * self._length), np.float32)
        empty = np.arange(shards * self._rows).reshape(shards, -1)[list(self._placement.local)] >= self._windows
        weights[:, empty] = 0
        return {'tokens': tokens, 'weights': weights}

    def count_tokens(self, batch: dict[str, np.ndarray]) -> int:
        """Tokens that the whole batch trains on."""
        del batch
        return self._batch_size * self._length

    def describe(self, step: int) -> str:
        """Names the batch of a step, for an error message."""
        return f'windows at tokens {self.window_starts(step).tolist()}'


class HeldOutBatches:
    """Consecutive windows that hold every target token of a split once; the last are padded.

    Attributes:
      steps: number of batches.
      targets: number of target tokens in all of them.
    """

    from_shards = True

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        length: int,
        placement: Placement = Placement(),
        limit: int | None = None,
    ):
        """batch_size: a multiple of the shards; limit: read at most this many windows, evenly spread over the split.

        Raises UserError if the split has no target.
        """
        if split.tokens < 2:
            raise UserError(
                f'data.held_out: The held-out split has {split.tokens} tokens, too few to predict one. '
                'Hold out more text.'
            )
        self._windows = np.arange(-(-(split.tokens - 1) // length), dtype=np.int64)
        if limit is not None and limit < len(self._windows):
            self._windows = np.arange(limit, dtype=np.int64) * len(self._windows) // limit
        self.steps = -(-len(self._windows) // batch_size)
        self.targets = int(np.minimum(length, split.tokens - 1 - self._windows * length).sum())
        self._split = split
        self._batch_size = batch_size
        self._length = length
        self._rows = placement.take(np.arange(batch_size))

    def batch_at(self, i: int) -> dict[str, np.ndarray]:
        """The local shards of batch i, 0 <= i < steps.

        Returns:
          'tokens': unsigned [1, shards, rows, length + 1], 0 where the split has ended.
          'weights': float32 [1, shards, rows, length], 1 for a real target, 0 for padding.
        """
        rows = i * self._batch_size + self._rows.reshape(-1)
        rows = rows[rows < len(self._windows)]
        starts = self._windows[rows] * self._length
        targets = np.zeros(self._rows.size, np.int64)
        targets[: len(starts)] = np.minimum(self._length, self._split.tokens - 1 - starts)
        whole = targets == self._length
        windows = self._split.read(starts[whole[: len(starts)]], self._length + 1)
        tokens = np.zeros((self._rows.size, self._length + 1), windows.dtype)
        tokens[whole] = windows
        for row in np.flatnonzero((targets > 0) & ~whole):  # the split's last window, if it is short
            tokens[row, : targets[row] + 1] = self._split.read(starts[row : row + 1], int(targets[row]) + 1)[0]
        weights = (np.arange(self._length) < targets[:, None]).astype(np.float32)
        return {'tokens': tokens.reshape(*self._rows.shape, -1), 'weights': weights.reshape(*self._rows.shape, -1)}
