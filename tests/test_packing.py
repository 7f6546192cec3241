"""Packed fine-tuning batches against the sequences they are made of."""

import collections
import functools

import numpy as np
import pytest

from gpt1_jax.data.labelled import packing
from gpt1_jax.data.labelled.packing import EvaluationBatches, FinetuningBatches, Rows, rows_for
from gpt1_jax.data.labelled.sequences import Encoded
from gpt1_jax.data.placement import Placement
from gpt1_jax.errors import UserError


def make(n=50, sequences=1, longest=30, seed=0, scores=False):
    rng = np.random.default_rng(seed)
    sequence = lambda: rng.integers(1, 1000, rng.integers(2, longest + 1)).astype(np.int32)
    examples = [[sequence() for _ in range(sequences)] for _ in range(n)]
    labels = rng.uniform(0, 5, n).astype(np.float32) if scores else rng.integers(0, 3, n).astype(np.int32)
    return Encoded(examples, labels, [str(i) for i in range(n)], 0, 0)


def all_local(shards):
    """The placement where one process reads all shards."""
    return Placement(shards, range(shards))


def members(batch):
    return sorted(batch['example_ids'][batch['example_ids'] >= 0].tolist())


def segments(rows):
    """{(row, segment): its columns} of one shard, rows = segment_ids [R, T]."""
    return {(r, s): np.flatnonzero(row == s) for r, row in enumerate(rows) for s in range(1, row.max() + 1)}


def check_shard(encoded, shard, sequence_weight, example_weight):
    """One shard's arrays (no axes k, G) hold exactly the sequences of its examples, wherever they stand."""
    length = shard['tokens'].shape[-1]
    found = segments(shard['segment_ids'])
    by_end = {row * length + columns[-1]: (row, columns) for (row, _), columns in found.items()}
    real = [place for place, i in enumerate(shard['example_ids']) if i >= 0]
    count = len(encoded.sequences[0])
    assert len(found) == len(real) * count == len({*shard['extract'][real].ravel().tolist()})
    for place in real:
        example = shard['example_ids'][place]
        assert shard['labels'][place] == encoded.labels[example]
        assert shard['example_weights'][place] == np.float32(example_weight)
        for s, sequence in enumerate(encoded.sequences[example]):
            row, columns = by_end[shard['extract'][place, s]]
            assert columns.tolist() == list(range(columns[0], columns[0] + len(sequence)))
            one = {
                name: shard[name][row, columns].tolist() for name in ('tokens', 'positions', 'lm_targets', 'lm_weights')
            }
            assert one['tokens'] == sequence.tolist()
            assert one['positions'] == list(range(len(sequence)))
            assert one['lm_targets'] == [*sequence[1:].tolist(), 0]
            weight = sequence_weight / (len(sequence) - 1)
            np.testing.assert_allclose(one['lm_weights'], [weight] * (len(sequence) - 1) + [0.0], rtol=1e-6)
    empty = shard['segment_ids'] == 0
    for name in ('tokens', 'positions', 'lm_targets', 'lm_weights'):
        assert not shard[name][empty].any()
    padding = shard['example_ids'] < 0
    for name in ('example_weights', 'labels', 'extract'):
        assert not shard[name][padding].any()


@pytest.mark.parametrize('packing', [True, False])
@pytest.mark.parametrize(
    'sequences, shards, accumulation, batch_size',
    [(1, 1, 1, 8), (2, 4, 1, 8), (4, 2, 2, 8), (1, 4, 2, 12), (2, 3, 1, 7), (1, 8, 1, 4)],
)
def test_training_arrays(sequences, shards, accumulation, batch_size, packing):
    encoded = make(sequences=sequences, scores=sequences == 2)
    batches = FinetuningBatches(
        encoded,
        batch_size=batch_size,
        rows=Rows(64),
        placement=all_local(shards),
        accumulation=accumulation,
        packing=packing,
    )
    places = int(np.ceil(batch_size / accumulation / shards))
    for step in range(3):
        batch = batches.batch_at(step)
        k, g, rows, length = batch['tokens'].shape
        assert (k, g, length) == (accumulation, shards, 64)
        for name in ('segment_ids', 'positions', 'lm_targets', 'lm_weights'):
            assert batch[name].shape == batch['tokens'].shape
        for name in ('labels', 'example_weights', 'example_ids'):
            assert batch[name].shape == (k, g, places)
        assert batch['extract'].shape == (k, g, places, sequences)
        assert packing or rows == places * sequences
        assert {name: array.dtype for name, array in batch.items()} == dict(
            dict.fromkeys(batch, np.dtype(np.int32)),
            lm_weights=np.float32,
            example_weights=np.float32,
            labels=encoded.labels.dtype,
        )
        assert len(set(members(batch))) == len(members(batch)) == batch_size
        assert batch['lm_weights'].sum() == pytest.approx(1, abs=1e-5)
        assert batch['example_weights'].sum() == pytest.approx(1, abs=1e-5)
        for a in range(k):
            for b in range(g):
                check_shard(
                    encoded,
                    {name: array[a, b] for name, array in batch.items()},
                    1 / batch_size / sequences,
                    1 / batch_size,
                )


def test_lm_weights_give_the_mean_of_means():
    """sum(weight * nll) with an nll that depends on (token, target) alone equals the loss of the release."""
    encoded = make(n=8, sequences=2)
    nll = np.random.default_rng(1).uniform(1, 9, (1000, 1000))
    batch = FinetuningBatches(encoded, batch_size=8, rows=Rows(40), placement=all_local(2), accumulation=2).batch_at(0)
    packed = (batch['lm_weights'] * nll[batch['tokens'], batch['lm_targets']]).sum()
    means = [
        np.mean([nll[a, b] for a, b in zip(sequence, sequence[1:])])
        for example in encoded.sequences
        for sequence in example
    ]
    assert packed == pytest.approx(np.mean(means), rel=1e-6)


def test_an_epoch_holds_no_example_twice_and_epochs_differ():
    batches = FinetuningBatches(make(n=50), batch_size=8, seed=3)
    assert batches.steps_per_epoch == 6
    epochs = [[members(batches.batch_at(epoch * 6 + i)) for i in range(6)] for epoch in range(3)]
    for epoch in epochs:
        flat = [i for batch in epoch for i in batch]
        assert len(flat) == len(set(flat)) == 48
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    # What is dropped changes: over some epochs every example is seen.
    seen = {i for step in range(120) for i in members(batches.batch_at(step))}
    assert seen == set(range(50))
    other = FinetuningBatches(make(n=50), batch_size=8, seed=4)
    assert members(other.batch_at(0)) != epochs[0][0]


def test_a_batch_is_a_function_of_seed_and_step():
    def new():
        return FinetuningBatches(make(), batch_size=8, placement=all_local(2), seed=5)

    running = new()
    expected = [running.batch_at(step) for step in range(14)]
    for step in (13, 2, 7):
        for name, array in new().batch_at(step).items():
            np.testing.assert_array_equal(array, expected[step][name])
    layouts = [(1, 1, True), (4, 1, True), (1, 4, True), (2, 2, False), (8, 3, True)]
    for shards, accumulation, packed in layouts:
        batches = FinetuningBatches(
            make(), batch_size=8, placement=all_local(shards), packing=packed, accumulation=accumulation, seed=5
        )
        for step in (0, 9):
            assert members(batches.batch_at(step)) == members(expected[step])


def test_the_order_of_examples_is_pinned():
    """It must not change between versions, or machines: a run resumed later would train on other examples."""
    batches = FinetuningBatches(make(n=12), batch_size=4, seed=5)
    assert [batches.members(step).tolist() for step in (0, 2, 3)] == [[5, 3, 9, 7], [10, 11, 2, 0], [6, 0, 8, 11]]


def test_examples_of_one_length_are_dealt_in_their_order():
    """However NumPy sorts equal lengths: the longer ones first, to and fro between the shards, as they come."""
    encoded = Encoded([[np.ones(5 + i % 2, np.int32)] for i in range(40)], None, [''] * 40, 0, 0)
    order = [*range(1, 40, 2), *range(0, 40, 2)]
    dealt = [[order[i] for i in range(40) if i % 4 in turns] for turns in ((0, 3), (1, 2))]
    batch = EvaluationBatches(encoded, batch_size=40, placement=all_local(2)).batch_at(0)
    assert batch['example_ids'][0].tolist() == dealt


@pytest.mark.parametrize('local', [[0, 1], [3], [2, 0]])
def test_local_shards_are_those_of_the_whole(local):
    encoded = make(sequences=2)
    kwargs = dict(batch_size=10, rows=Rows(48))
    for step in (0, 4):
        for batches in (functools.partial(FinetuningBatches, accumulation=2), EvaluationBatches):
            whole, part = (
                batches(encoded, placement=placement, **kwargs).batch_at(step)
                for placement in (all_local(4), Placement(4, local))
            )
            for name in whole:
                np.testing.assert_array_equal(part[name], whole[name][:, local])


@pytest.mark.parametrize('n', [16, 19, 3])
def test_evaluation_visits_every_example_once_in_order(n):
    encoded = make(n=n, sequences=2)
    batches = EvaluationBatches(encoded, batch_size=8, placement=all_local(4))
    assert batches.steps == -(-n // 8)
    for i in range(batches.steps):
        batch = batches.batch_at(i)
        assert batch['example_ids'].shape == (1, 4, 2) and batch['extract'].shape == (1, 4, 2, 2)
        assert members(batch) == list(range(8 * i, min(8 * i + 8, n)))
        for g in range(4):
            check_shard(encoded, {name: array[0, g] for name, array in batch.items()}, 1.0, 1.0)


@pytest.mark.parametrize('processes', [1, 2, 4])
@pytest.mark.parametrize('n', [13, 29])
def test_a_prime_number_of_examples_on_eight_shards_counts_each_once(n, processes):
    encoded = make(n=n, sequences=2)
    seen, weight = [], 0.0
    for i in range(processes):
        batches = EvaluationBatches(encoded, batch_size=12, placement=Placement(8, range(i, 8, processes)))
        for index in range(batches.steps):
            batch = batches.batch_at(index)
            assert batch['example_ids'].shape[:2] == (1, 8 // processes)
            seen += members(batch)
            weight += batch['example_weights'].sum()
            for g in range(8 // processes):
                check_shard(encoded, {name: array[0, g] for name, array in batch.items()}, 1.0, 1.0)
    assert sorted(seen) == list(range(n)) and weight == n


def test_evaluation_without_labels():
    encoded = make(n=5)
    encoded.labels = None
    batch = EvaluationBatches(encoded, batch_size=8).batch_at(0)
    assert members(batch) == list(range(5)) and not batch['labels'].any()


@pytest.mark.parametrize('look_ahead, worth', [(1, 50), (3, 50), (60, 50), (60, 4.2), (60, 4.1)])
def test_rows_are_few_and_of_few_numbers(monkeypatch, look_ahead, worth):
    monkeypatch.setattr(packing, '_LOOK_AHEAD', look_ahead)
    encoded = make(n=640, longest=60)
    batches = FinetuningBatches(encoded, batch_size=32, rows=Rows(64, worth), seed=1)
    rows, needed = [], []
    for step in range(60):  # 3 epochs
        batch = batches.batch_at(step)
        rows.append(batch['tokens'].shape[2])
        bins = []  # first-fit-decreasing, written out
        for length in sorted((len(encoded.sequences[i][0]) for i in members(batch)), reverse=True):
            fits = [b for b in bins if sum(b) + length <= 64]
            (fits[0] if fits else bins.append([]) or bins[-1]).append(length)
        needed.append(len(bins))
    usual, ladder = max(needed[:look_ahead]), [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    one_number = [usual if n <= usual else min(x for x in ladder if x >= n) for n in needed]
    two_numbers = min(sum(fewer if n <= fewer else usual for n in needed) for fewer in needed)
    if look_ahead < 60 or (60 - two_numbers / usual) / 3 < worth:
        assert rows == one_number and (len(set(rows)) == 1 or look_ahead < 60)
    else:  # two numbers, the ones that make the least rows together
        assert worth == 4.1 and sum(rows) == two_numbers < sum(one_number)
        assert len(set(rows)) == 2 and np.all(np.array(rows) >= needed)


def test_shards_hold_like_numbers_of_tokens():
    batch = FinetuningBatches(make(n=64, longest=60), batch_size=64, placement=all_local(8)).batch_at(0)
    tokens = (batch['segment_ids'] > 0).sum(axis=(0, 2, 3))
    assert tokens.max() < 1.04 * tokens.mean()
    assert collections.Counter((batch['example_ids'] >= 0).sum(axis=(0, 2)).tolist()) == {8: 8}


def test_rows_are_as_long_as_the_batch_needs():
    encoded = make(n=100, longest=60)
    examples = [list(example) for example in encoded.sequences]
    for i, length in ((0, 65), (40, 300), (80, 64)):
        examples[i] = [np.ones(length, np.int32)]
    encoded = Encoded(examples, encoded.labels, encoded.ids, 0, 0)
    batches = EvaluationBatches(encoded, batch_size=20, rows=Rows(64))
    assert [batches.batch_at(i)['tokens'].shape[-1] for i in range(5)] == [128, 64, 512, 64, 64]


def with_context(n=40, choices=4, seed=0):
    """Examples of `choices` sequences: a context of 20 to 40 tokens, then up to 8 of each one's own; the first ones of
    contexts of every length, and one whose choices are all the same."""
    rng = np.random.default_rng(seed)
    some = lambda low, high: rng.integers(1, 1000, rng.integers(low, high + 1)).tolist()
    examples = []
    for i in range(n):
        context = some(i, i) if i < 20 else some(20, 40)
        examples.append([context + some(2, 8) for _ in range(choices)])
    examples[-1] = [examples[-1][0]] * choices
    labels = rng.integers(0, choices, n).astype(np.int32)
    return Encoded(
        [[np.array(s, np.int32) for s in example] for example in examples], labels, list(map(str, range(n))), 0, 0
    )


@pytest.mark.parametrize('shards, accumulation', [(1, 1), (2, 1), (2, 2)])
def test_choices_share_their_context(shards, accumulation):
    """What the <extract> of a choice sees is that choice, token by token; every target's weight is the same in sum."""
    encoded = with_context()
    kwargs = dict(batch_size=10, placement=all_local(shards), accumulation=accumulation)
    shared, apart = (FinetuningBatches(encoded, share_context=share, **kwargs) for share in (True, False))
    contexts = 0
    for step in range(4):
        batch, expected = shared.batch_at(step), apart.batch_at(step)
        assert 'context_ids' not in expected
        assert (batch['segment_ids'] > 0).sum() < 0.8 * (expected['segment_ids'] > 0).sum()
        for name in ('labels', 'example_weights', 'example_ids'):
            assert sorted(batch[name].ravel().tolist()) == sorted(expected[name].ravel().tolist())

        def weights(batch):
            total = collections.Counter()
            names = 'tokens', 'positions', 'lm_targets', 'lm_weights'
            for token, position, target, weight in zip(*(batch[name].ravel().tolist() for name in names)):
                total[token, position, target] += weight
            return {key: pytest.approx(weight, abs=1e-7) for key, weight in total.items() if weight}

        assert weights(batch) == weights(expected)
        for a, g in np.ndindex(accumulation, shards):
            one = {name: array[a, g] for name, array in batch.items()}
            for example, ends in zip(one['example_ids'], one['extract']):
                for s, end in enumerate(ends if example >= 0 else ()):
                    row, column = divmod(int(end), one['tokens'].shape[-1])
                    ids, context = one['segment_ids'][row], one['context_ids'][row]
                    seen = np.flatnonzero((ids == ids[column]) | (ids == context[column]))
                    seen = seen[seen <= column]
                    sequence = encoded.sequences[example][s]
                    assert one['tokens'][row, seen].tolist() == sequence.tolist()
                    assert one['positions'][row, seen].tolist() == list(range(len(sequence)))
                    # A token of the context sees what stands before it there, and nothing of a choice.
                    before = np.flatnonzero(ids == context[column])
                    assert np.all(context[before] == ids[before]) and np.all(np.diff(before) == 1)
                    contexts += ids[column] != context[column]
    assert contexts > 60


def test_mistakes_are_user_errors():
    encoded = make(n=6)
    with pytest.raises(UserError, match='6 training examples'):
        FinetuningBatches(encoded, batch_size=8)
    encoded.labels = None
    with pytest.raises(UserError, match='no labels'):
        FinetuningBatches(encoded, batch_size=2)


def test_the_shortest_row_by_platform():
    encoded = make(n=16, longest=30)
    row = lambda platform: FinetuningBatches(encoded, batch_size=8, rows=rows_for(platform)).batch_at(0)['tokens'][
        0, 0, 0
    ]
    assert {platform: len(row(platform)) for platform in ('cpu', 'gpu', 'tpu')} == {'cpu': 64, 'gpu': 128, 'tpu': 128}
