"""Which documents are held out."""

from gpt1_jax.data.corpus import held_out


def test_held_out_fraction_is_met():
    rule = held_out.held_out_rule(lambda: (f'book{i}' for i in range(20000)), 0.01)
    assert 140 <= sum(rule(f'book{i}') for i in range(20000)) <= 260


def test_at_least_one_is_held_out_and_never_all():
    names = [f'book{i}' for i in range(5)]
    for fraction, count in ((0, 0), (1e-9, 1), (1 - 1e-9, 4)):
        rule = held_out.held_out_rule(lambda: iter(names), fraction)
        assert sum(map(rule, names)) == count
