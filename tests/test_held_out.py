"""Which documents are held out."""

import random

import numpy as np
import pytest

from gpt1_jax.data.corpus import held_out


def test_held_out_fraction_is_met():
    rule = held_out.held_out_rule(lambda: (f'book{i}' for i in range(20000)), 0.01)
    assert 140 <= sum(rule(f'book{i}') for i in range(20000)) <= 260


def test_at_least_one_is_held_out_and_never_all():
    names = [f'book{i}' for i in range(5)]
    for fraction, count in ((0, 0), (1e-9, 1), (1 - 1e-9, 4)):
        rule = held_out.held_out_rule(lambda: iter(names), fraction)
        assert sum(map(rule, names)) == count


def test_the_choice_is_pinned():
    """It must not change between versions: of a corpus prepared anew, what a model has seen would be held out."""
    names = [f'book{i}' for i in range(20)]
    rule = held_out.held_out_rule(lambda: iter(names), 0.15)
    assert [i for i, name in enumerate(names) if rule(name)] == [11, 13, 18]
    assert held_out.hold_out(iter(names), np.full(20, 7), np.arange(20), 0.15) == {11: 0, 13: 0, 18: 0}
    alone = held_out.held_out_rule(lambda: iter(names), 1e-9)
    assert [i for i, name in enumerate(names) if alone(name)] == [11]


@pytest.mark.parametrize(('fraction', 'count'), [(0.17, 3), (0.18, 4)])
def test_the_number_that_comes_nearest_to_the_fraction_is_held_out(fraction, count):
    """Of 20 documents of one size, 3.4 and 3.6."""
    held = held_out.hold_out(map(str, range(20)), np.full(20, 1000), np.arange(20), fraction)
    assert list(held.values()) == [0] * count


@pytest.mark.parametrize('fraction', [1e-9, 0.01, 0.1, 0.3, 0.5, 0.9, 1 - 1e-9])
@pytest.mark.parametrize('seed', range(10))
def test_the_share_is_met_to_within_one_document(fraction, seed):
    rng = random.Random(seed)
    sizes = np.array([rng.choice([0, 1, 10, 1000, 5000]) * rng.randint(1, 9) for _ in range(rng.randint(4, 200))])
    sizes[:2] = 100, 300
    names = [f'{seed}/{i}' for i in range(len(sizes))]
    held = held_out.hold_out(iter(names), sizes, np.arange(len(sizes)), fraction)
    assert all(0 <= begin < sizes[i] for i, begin in held.items())
    assert 1 <= len(held) <= np.count_nonzero(sizes)
    taken = sum(sizes[i] - begin for i, begin in held.items())
    assert 0 < taken < sizes.sum() and abs(taken - fraction * sizes.sum()) <= sizes.max()
    if fraction <= 0.01:
        assert taken < 2 * fraction * sizes.sum() + 1
    if 0.1 <= fraction <= 0.5 and len(sizes) > 50:
        assert abs(taken - fraction * sizes.sum()) <= 0.1 * sizes.sum()


def test_a_group_stands_on_one_side():
    sizes = np.full(100, 50)
    groups = np.arange(100) // 4 * 4
    held = held_out.hold_out(map(str, range(100)), sizes, groups, 0.2)
    assert len(held) == 20
    assert {i // 4 for i in held}.isdisjoint({i // 4 for i in range(100) if i not in held})


def test_documents_keep_their_sides_when_others_are_added():
    names, sizes = [f'book{i}' for i in range(300)], np.full(300, 7)
    before = held_out.hold_out(iter(names[:250]), sizes[:250], np.arange(250), 0.2)
    after = held_out.hold_out(iter(names), sizes, np.arange(300), 0.2)
    assert len(before) == 50 and len(after) == 60
    assert len(before.keys() - after.keys()) <= 5


def test_a_huge_document_is_not_what_one_percent_means():
    names = [f'book{i}' for i in range(50)]
    for huge in range(50):
        sizes = np.full(50, 10)
        sizes[huge] = 500
        assert huge not in held_out.hold_out(iter(names), sizes, np.arange(50), 0.1)


def test_one_document_with_text_holds_out_its_end():
    sizes = np.array([0, 0, 1000])
    assert held_out.hold_out(iter('abc'), sizes, np.zeros(3, int), 0.1) == {2: 900}
    assert held_out.hold_out(iter('abc'), sizes, np.zeros(3, int), 0.95) == {2: pytest.approx(100, abs=1)}  # never all


def test_of_nothing_but_copies_the_ends_are_held_out():
    groups = np.array([0, 1, 0, 0])
    assert held_out.hold_out(iter('abcd'), np.array([55, 0, 60, 55]), groups, 0.1) == {0: 49, 2: 54, 3: 49}


def test_what_is_contained_in_another_document_is_trained_on():
    """Its end stands in the middle of the other, whose end alone is held out."""
    assert held_out.hold_out(iter('ab'), np.array([300, 100]), np.zeros(2, int), 0.1) == {0: 260}


@pytest.mark.parametrize('names', [('train.txt', 'valid.txt'), ('corpus.txt', 'extra.txt'), ('a', 'b'), ('b', 'a')])
def test_of_a_few_large_documents_no_more_than_the_fraction_is_held_out(names):
    """Each is larger than the fraction: taken whole, the largest could be held out and the rest trained on."""
    held = held_out.hold_out(iter(names), np.array([9000, 1000]), np.arange(2), 0.01)
    assert held == {0: pytest.approx(8900, abs=1)}
    held = held_out.hold_out(iter(names), np.array([1000, 9000]), np.arange(2), 0.01)
    assert held == {1: pytest.approx(8900, abs=1)}
    held = held_out.hold_out(iter([*names, 'readme']), np.array([9000, 1000, 10]), np.arange(3), 0.01)
    assert held == {2: 0, 0: pytest.approx(8910, abs=1)}


def test_names_that_are_no_unicode():
    assert held_out.hold_out(iter(['caf\udce9', 'b']), np.array([5, 5]), np.arange(2), 0.5)


def test_the_end_of_what_is_held_out_already_is_not_held_out_again():
    """The longest document is within the fraction; the others, copies of one another, are together far above it."""
    sizes, groups = np.array([4900] + [4000] * 24), np.array([0] + [1] * 24)
    held = held_out.hold_out((f'd{i}' for i in range(25)), sizes, groups, 0.1)
    assert held.pop(0) == 0 and len(held) == 24
    assert set(held.values()) == {int(4000 * (1 - (0.1 * 100_900 - 4900) / 96_000))}
