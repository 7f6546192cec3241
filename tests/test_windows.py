"""Windows against brute force over the whole token array."""

import itertools

import numpy as np
import pytest
import scipy.stats

from gpt1_jax.data.corpus import shards, windows
from gpt1_jax.data.placement import Placement
from gpt1_jax.errors import UserError


def make_split(directory, tokens, per_shard=1000):
    ids = np.arange(tokens) % 60000
    shards.start_journal(directory, {})
    writer = shards.ShardWriter(directory, 60000, per_shard)
    writer.start_document('train')
    writer.append('train', ids)
    writer.commit(None)
    writer.finish('')
    return ids, shards.load_shards(directory).splits['train']


@pytest.mark.parametrize('n', [1, 2, 3, 4, 5, 16, 17, 1000, 12345])
def test_permute_is_a_permutation(n):
    for epoch in range(5):
        keys = windows._keys(3, np.full(n, epoch))
        assert sorted(windows.permute(np.arange(n), n, keys).tolist()) == list(range(n))


@pytest.mark.parametrize('n', [3, 5, 7, 10, 17])
def test_orders_are_close_to_uniform(n):
    """Over many seeds: where each index goes, and which index follows which, against equal chances."""
    seeds = 4000
    keys = np.repeat(np.concatenate([windows._keys(seed, np.arange(1)) for seed in range(seeds)]), n)
    orders = windows.permute(np.tile(np.arange(n), seeds), n, keys).reshape(seeds, n)
    for index in range(n):
        assert scipy.stats.chisquare(np.bincount(orders[:, index], minlength=n)).pvalue > 1e-5
    pairs = np.bincount(orders[:, 0] * n + orders[:, 1], minlength=n * n).reshape(n, n)
    assert scipy.stats.chisquare(pairs[~np.eye(n, dtype=bool)]).pvalue > 1e-5
    assert pairs.diagonal().sum() == 0
    if n == 3:  # all orders occur
        assert {tuple(order) for order in orders.tolist()} == set(itertools.permutations(range(3)))


def test_each_window_once_an_epoch_then_other_phases(tmp_path):
    ids, split = make_split(tmp_path, 4321)
    batches = windows.PretrainingBatches(split, batch_size=4, length=16, seed=1)
    n = batches.windows_per_epoch
    assert n == (4321 - 16) // 16
    samples = np.concatenate([batches.window_starts(step) for step in range(-(-3 * n // 4))])[: 3 * n]
    epochs = samples.reshape(3, n)
    phases = set()
    for epoch in epochs:
        ordered = np.sort(epoch)
        assert (np.diff(ordered) == 16).all() and 0 <= ordered[0] < 16 and ordered[-1] + 17 <= 4321
        assert (epoch != ordered).any()
        phases.add(int(ordered[0]))
    assert len(phases) > 1
    assert (np.argsort(epochs[0]) != np.argsort(epochs[1])).any()
    other = windows.PretrainingBatches(split, batch_size=4, length=16, seed=2)
    assert (other.window_starts(0) != batches.window_starts(0)).any()


def test_phases_fill_the_window(tmp_path):
    _, split = make_split(tmp_path, 8 * 16)
    batches = windows.PretrainingBatches(split, batch_size=7, length=16, seed=0)
    assert batches.windows_per_epoch == 7
    phases = [int(batches.window_starts(epoch).min()) for epoch in range(1600)]
    assert scipy.stats.chisquare(np.bincount(phases, minlength=16)).pvalue > 1e-5


def test_batches_hold_the_tokens_of_their_windows(tmp_path):
    ids, split = make_split(tmp_path, 5000)
    batches = windows.PretrainingBatches(split, batch_size=12, length=31, seed=5, accumulation=3)
    for step in (0, 7, 100000):
        batch = batches.batch_at(step)
        tokens, weights = batch['tokens'], batch['weights']
        assert tokens.shape == (3, 1, 4, 32) and tokens.dtype == np.uint16
        assert weights.shape == (3, 1, 4, 31) and weights.dtype == np.float32
        assert np.all(weights == np.float32(1 / (12 * 31)))
        expected = [ids[start : start + 32] for start in batches.window_starts(step)]
        np.testing.assert_array_equal(tokens.reshape(12, 32), expected)
        assert batches.count_tokens(batch) == weights.size


# The shards of each host: in order, in turn, and some on two hosts.
HOSTS = [[[0, 1], [2, 3]], [[0], [1], [2], [3]], [[0, 2], [1, 3]], [[3, 1], [0, 1, 2]]]


@pytest.mark.parametrize('hosts', HOSTS)
def test_hosts_together_read_the_global_batch(tmp_path, hosts):
    _, split = make_split(tmp_path, 5000)
    options = dict(batch_size=16, length=31, seed=5, accumulation=2)
    whole = windows.PretrainingBatches(split, **options)
    for local in hosts:
        part = windows.PretrainingBatches(split, **options, placement=Placement(4, local))
        for step in (0, 3, 41):
            expected, batch = whole.batch_at(step), part.batch_at(step)
            np.testing.assert_array_equal(batch['tokens'], expected['tokens'].reshape(2, 4, 2, 32)[:, local])
            np.testing.assert_array_equal(batch['weights'], expected['weights'].reshape(2, 4, 2, 31)[:, local])
            np.testing.assert_array_equal(part.window_starts(step), whole.window_starts(step))


@pytest.mark.parametrize(('accumulation', 'shards'), [(1, 3), (2, 3), (1, 5), (1, 6), (2, 7), (1, 24), (2, 16)])
def test_shards_that_do_not_divide_a_batch_have_empty_places(tmp_path, accumulation, shards):
    """The windows that count are those of one device, in order, each micro-batch its own, with the same weights."""
    _, split = make_split(tmp_path, 5000)
    options = dict(batch_size=16, length=31, seed=5, accumulation=accumulation)
    for step in (0, 41):
        whole = windows.PretrainingBatches(split, **options).batch_at(step)
        halves = [
            windows.PretrainingBatches(split, **options, placement=Placement(shards, local)).batch_at(step)
            for local in (range(shards // 2), range(shards // 2, shards))
        ]
        joined = {name: np.concatenate([half[name] for half in halves], axis=1) for name in whole}
        rows = joined['tokens'].shape[2]
        assert 0 <= shards * rows - 16 // accumulation < shards
        for micro in range(accumulation):
            weights = joined['weights'][micro].reshape(-1, 31)
            assert (weights[16 // accumulation :] == 0).all()
            for name in whole:
                counted = joined[name][micro].reshape(shards * rows, -1)[: 16 // accumulation]
                np.testing.assert_array_equal(counted, whole[name][micro, 0])


def test_empty_places_are_told_of_once(tmp_path, caplog):
    """Of 8 windows, 3 groups of devices have 3 places each."""
    _, split = make_split(tmp_path, 5000)
    for number in (4, 3):
        options = dict(batch_size=16, length=31, seed=5, accumulation=2, placement=Placement(number, [0]))
        windows.PretrainingBatches(split, **options)
    (line,) = caplog.messages
    assert line == ('data.batch_size: 8 windows do not divide among 3 groups of devices, so 1 of 9 places stay empty.')


def test_a_resumed_run_reads_on(tmp_path):
    _, split = make_split(tmp_path, 3000)
    options = dict(batch_size=8, length=10, seed=0)
    first = windows.PretrainingBatches(split, **options)
    uninterrupted = [first.batch_at(step)['tokens'] for step in range(80)]  # more than two epochs
    again = windows.PretrainingBatches(split, **options)
    for step in (79, 37, 36, 0):
        np.testing.assert_array_equal(again.batch_at(step)['tokens'], uninterrupted[step])


def test_order_is_pinned(tmp_path):
    """The order must not change between versions: a run resumed later would read other windows."""
    _, split = make_split(tmp_path, 3000)
    batches = windows.PretrainingBatches(split, batch_size=6, length=10, seed=0)
    assert batches.window_starts(0).tolist() == [858, 38, 2208, 578, 1878, 718]
    assert batches.window_starts(49).tolist() == [48, 2388, 888, 1278, 2828, 1252]


def test_errors(tmp_path):
    _, split = make_split(tmp_path, 63)
    with pytest.raises(UserError, match='63 tokens, too few for windows of 32'):
        windows.PretrainingBatches(split, batch_size=1, length=32, seed=0)
    with pytest.raises(UserError, match='multiple of 3'):
        windows.PretrainingBatches(split, batch_size=8, length=8, seed=0, accumulation=3, placement=Placement(2))
    with pytest.raises(UserError, match='data.batch_size: 0 '):
        windows.PretrainingBatches(split, batch_size=0, length=8, seed=0)
    _, empty = make_split(tmp_path / 'one', 1)
    with pytest.raises(UserError, match='1 tokens, too few'):
        windows.HeldOutBatches(empty, batch_size=1, length=8)


@pytest.mark.parametrize('tokens', [2, 10, 11, 12, 161, 500])
@pytest.mark.parametrize('hosts', [1, 2])
def test_held_out_targets_once_each(tmp_path, tokens, hosts):
    ids, split = make_split(tmp_path, tokens)
    parts = [
        windows.HeldOutBatches(split, batch_size=4, length=10, placement=Placement(hosts, [i])) for i in range(hosts)
    ]
    assert parts[0].targets == tokens - 1
    inputs, targets = [], []
    for i in range(parts[0].steps):
        for part in parts:
            batch = part.batch_at(i)
            assert batch['tokens'].shape == (1, 1, 4 // hosts, 11) and batch['weights'].dtype == np.float32
            real = batch['weights'] == 1
            assert (batch['weights'][~real] == 0).all()
            inputs += batch['tokens'][..., :-1][real].tolist()
            targets += batch['tokens'][..., 1:][real].tolist()
    assert targets == ids[1:].tolist() and inputs == ids[:-1].tolist()


def test_held_out_limit_is_spread(tmp_path):
    _, split = make_split(tmp_path, 1001)
    batches = windows.HeldOutBatches(split, batch_size=4, length=10, limit=10)
    assert batches.steps == 3
    batch = [batches.batch_at(i) for i in range(3)]
    assert sum(b['weights'].sum() for b in batch) == 100
    first = np.concatenate([b['tokens'][b['weights'][..., 0] == 1, 0] for b in batch])
    assert first.tolist() == list(range(0, 1000, 100))
    assert windows.HeldOutBatches(split, batch_size=4, length=10, limit=1000).steps == 25
