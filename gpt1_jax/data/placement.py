"""The form that all batches have: arrays [micro-batches, shards, rows, tokens], their weights among them.

A shard is what one data-parallel group of devices holds. Arrays without tokens, such as labels, have an axis of
examples after the shards.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Placement(NamedTuple):
    """Which part of every batch a process reads.

    Attributes:
      shards: of the whole batch.
      local: the shards to be read here, in any order.
    """

    shards: int = 1
    local: Sequence[int] = (0,)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """[rows, ...] of a whole batch -> [1, local shards, rows / shards, ...]."""
        return rows.reshape(1, self.shards, -1, *rows.shape[1:])[:, list(self.local)]
