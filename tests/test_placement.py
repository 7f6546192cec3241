"""Which rows of a batch a process reads, against a plain loop."""

import numpy as np
import pytest

from gpt1_jax.data.placement import Placement


@pytest.mark.parametrize('local', [[0, 1, 2, 3], [2], [3, 0], range(1, 4)])
def test_rows_are_those_of_the_local_shards(local):
    rows = np.arange(12 * 5).reshape(12, 5)
    taken = Placement(4, local).take(rows)
    assert taken.shape == (1, len(local), 3, 5)
    for place, shard in enumerate(local):
        for row in range(3):
            assert taken[0, place, row].tolist() == rows[3 * shard + row].tolist()
    assert Placement(4, local).take(rows[:, 0]).tolist() == taken[..., 0].tolist()


def test_one_process_with_one_shard_reads_all():
    assert Placement().take(np.arange(6)).tolist() == [[[0, 1, 2, 3, 4, 5]]]
