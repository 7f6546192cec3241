"""The NumPy reference against Hugging Face transformers' float64 numbers (tests/golden), and by hand."""

import numpy as np
import pytest

import reference
from helpers import golden_tree

HEADS = 4
TINY = {'vocab': 9, 'n_special': 3, 'n_positions': 8, 'width': 4, 'layers': 1, 'heads': 2, 'mlp': 8}


def setting(golden):
    """(params, n_positions, sequences [N, T])"""
    return (
        golden_tree(golden, 'weights'),
        len(golden['weights/positions_embed.weight']),
        golden['tokens'].reshape(-1, golden['tokens'].shape[-1]),
    )


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-11)


def test_hidden_states_of_every_layer(golden):
    params, n_positions, sequences = setting(golden)
    for depth, expected in enumerate(golden['hidden_states']):
        shallow = params | {'layers': params['layers'][:depth]}
        hidden = [reference.forward(shallow, s, HEADS, n_positions=n_positions) for s in sequences]
        assert_close(hidden, expected)


def test_given_positions(golden):
    params, n_positions, sequences = setting(golden)
    positions = np.arange(3, 3 + sequences.shape[1])
    hidden = [reference.forward(params, s, HEADS, positions, n_positions=n_positions) for s in sequences]
    assert_close(hidden, golden['shifted_hidden'])


def test_lm_nll_is_the_log_softmax_of_the_ports_logits(golden):
    params, n_positions, sequences = setting(golden)
    for tokens, logits in zip(sequences, golden['logits'], strict=True):
        hidden = reference.forward(params, tokens, HEADS, n_positions=n_positions)
        nll = reference.lm_nll(params, hidden[:-1], tokens[1:], 'tokens', n_positions=n_positions)
        chosen = np.take_along_axis(logits[:-1], tokens[1:, None], axis=-1)[:, 0]
        assert_close(nll, np.log(np.exp(logits[:-1]).sum(axis=-1)) - chosen)


def test_losses_and_heads(golden):
    params, n_positions, sequences = setting(golden)
    lm = [reference.sequence_lm_loss(params, s, HEADS, 'tokens', n_positions=n_positions) for s in sequences]
    assert_close(np.mean(lm), golden['lm_loss'])
    logits = reference.finetune_logits(params, golden['tokens'], HEADS, kind='multiple_choice', n_positions=n_positions)
    assert_close(logits, golden['choice_logits'])
    assert_close(finetune_loss(golden, n_positions)(params), golden['choice_loss'] + 0.5 * golden['lm_loss'])
    logits = reference.finetune_logits(
        golden_tree(golden, 'weights', classifier=True), [[s] for s in sequences], HEADS, kind='classification',
        n_positions=n_positions,
    )  # fmt: skip
    assert_close(logits, golden['class_logits'])


def lm_loss(golden, n_positions):
    sequences = golden['tokens'].reshape(-1, golden['tokens'].shape[-1])
    return lambda params: np.mean(
        [reference.sequence_lm_loss(params, s, HEADS, 'tokens', n_positions=n_positions) for s in sequences]
    )


def finetune_loss(golden, n_positions):
    return lambda params: reference.finetune_loss(
        params, golden['tokens'], golden['labels'], HEADS, kind='multiple_choice', loss='multiple_choice',
        lam=0.5, rows='tokens', n_positions=n_positions,
    )  # fmt: skip


@pytest.mark.parametrize('loss', [lm_loss, finetune_loss])
def test_gradients(golden, loss):
    """Three entries of every parameter, by a complex step here and by back-propagation there."""
    params, n_positions, _ = setting(golden)
    expected = golden_tree(golden, loss.__name__.replace('loss', 'gradients'))
    f = loss(golden, n_positions)
    rng = np.random.default_rng(0)
    for path in reference.paths(params):
        array = reference.get(expected, path)
        for flat in rng.integers(array.size, size=3):
            index = np.unravel_index(flat, array.shape)
            assert_close(reference.numerical_gradient(f, params, path, index), array[index])


def test_adam(golden):
    """Against torch's AdamW set by hand to the release's rule: warm-up, clip or none, decay of matrices."""
    params, gradients, updated = (golden_tree(golden, name) for name in ('weights', 'finetune_gradients', 'updated'))
    state = reference.adam_init(params)
    for t, scale in enumerate(golden['gradient_scales'], 1):
        scaled = gradients
        for path in reference.paths(gradients):
            scaled = reference.replace(scaled, path, scale * reference.get(gradients, path))
        params, state = reference.adam_update(
            params, scaled, state, t, lr=0.01, schedule=reference.linear_schedule, total=10, warmup=0.2,
            l2=0.01, clip=1.0,
        )  # fmt: skip
    for path in reference.paths(params):
        assert_close(reference.get(params, path), reference.get(updated, path))


def test_all_rows_add_the_positions_to_the_denominator():
    """The release's softmax, which the port does not have, written out for one target."""
    rng = np.random.default_rng(0)
    params = reference.init_params(rng, classes=2, **TINY)
    hidden = rng.normal(size=(1, TINY['width']))
    scores = np.exp(params['table'] @ hidden[0])
    assert len(scores) == 9 + 3 + 8
    for rows, count in (('all', 20), ('tokens', 12)):
        nll = reference.lm_nll(params, hidden, [11], rows, n_positions=8)
        assert_close(nll, [-np.log(scores[11] / scores[:count].sum())])


def test_ordinal_loss():
    """STS-B's soft target by hand: 3.8 lies between the classes 3 and 4."""
    assert_close(reference.ordinal_target(3.8), [0, 0, 0, 0.2, 0.8, 0])
    assert_close(reference.ordinal_target(0.0), [1, 0, 0, 0, 0, 0])
    assert_close(reference.ordinal_target(5.0), [0, 0, 0, 0, 0, 1])
    logits = np.log([0.1, 0.1, 0.1, 0.2, 0.4, 0.1])
    assert_close(reference.ordinal_loss(logits, 3.8), -0.2 * np.log(0.2) - 0.8 * np.log(0.4))
    assert_close(reference.ordinal_prediction(logits), 0.1 + 0.2 + 0.6 + 1.6 + 0.5)


def test_similarity_adds_the_states_before_one_linear_layer():
    rng = np.random.default_rng(0)
    params = reference.init_params(rng, classes=3, **TINY)
    states = rng.normal(size=(2, TINY['width']))
    by_hand = [
        sum((a + b) * w for a, b, w in zip(*states, params['head_w'][:, c], strict=True)) + bias
        for c, bias in enumerate(params['head_b'])
    ]
    assert_close(reference.task_logits(params, states, 'similarity'), by_hand)
    assert_close(reference.task_logits(params, states[::-1], 'similarity'), by_hand)


def test_finetune_loss_weighs_sequences_equally():
    """The LM part is a mean of means: a short sequence counts as much as a long one."""
    rng = np.random.default_rng(0)
    params = reference.init_params(rng, classes=2, **TINY)
    examples = [[rng.integers(12, size=n)] for n in (3, 8)]
    settings = {'kind': 'classification', 'loss': 'classification', 'n_positions': 8}
    task, both = (reference.finetune_loss(params, examples, [0, 1], 2, lam=lam, **settings) for lam in (0.0, 2.0))
    short, long = (reference.sequence_lm_loss(params, s, 2, n_positions=8) for (s,) in examples)
    assert abs(short - long) > 0.1
    assert_close(both, task + short + long)


def test_complex_step_equals_central_differences_everywhere():
    rng = np.random.default_rng(0)
    params = reference.init_params(rng, classes=6, **TINY)
    examples = [[rng.integers(12, size=n) for n in (5, 6)], [rng.integers(12, size=n) for n in (4, 3)]]

    def f(params):
        return reference.finetune_loss(
            params, examples, [1.3, 4.0], 2, kind='similarity', loss='ordinal', lam=0.5, n_positions=8
        )

    exact = reference.gradients(f, params)
    for path in reference.paths(params):
        array = reference.get(params, path)
        index = tuple(rng.integers(array.shape))
        step = np.zeros_like(array)
        step[index] = 1e-5
        above, below = (f(reference.replace(params, path, array + sign * step)) for sign in (1, -1))
        np.testing.assert_allclose((above - below) / 2e-5, reference.get(exact, path)[index], atol=1e-8)


@pytest.mark.parametrize(
    ('schedule', 'x', 'expected'),
    [
        (reference.linear_schedule, 0.0, 0.0),
        (reference.linear_schedule, 0.1, 0.45),  # half of the warm-up, times 1 - 0.1
        (reference.linear_schedule, 0.6, 0.4),
        (reference.cosine_schedule, 0.0, 0.0),
        (reference.cosine_schedule, 0.1, 0.5),
        (reference.cosine_schedule, 0.2, 1.0),
        (reference.cosine_schedule, 0.5, 0.5),
        (reference.cosine_schedule, 1.0, 0.0),
    ],
)
def test_schedules(schedule, x, expected):
    assert schedule(x, warmup=0.2) == pytest.approx(expected)
