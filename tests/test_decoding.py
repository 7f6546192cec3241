"""Decoding with the cache of each kind of model against the float64 reference without one; batches against their
members; sampling."""

import functools

import jax
import numpy as np
import pytest

import models
import reference
from gpt1_jax.model import decoding
from gpt1_jax.model.classifier import Classifier
from gpt1_jax.model.decoding import Sampling
from gpt1_jax.tasks.generate import jit_steps
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.state import abstract_params

REFERENCE = models.random_params()
PARAMS = models.from_reference(REFERENCE)['decoder']
MODEL = models.decoder()
LSTM_REFERENCE = models.random_lstm_params()
KINDS = {  # model, parameters, the reference's table and states
    'transformer': (
        MODEL,
        PARAMS,
        REFERENCE['table'],
        lambda tokens: reference.forward(REFERENCE, tokens, models.SIZES['heads'], n_positions=POSITIONS),
    ),
    'lstm': (
        models.lstm(),
        jax.tree.map(np.float32, LSTM_REFERENCE),
        LSTM_REFERENCE['table'],
        lambda tokens: reference.lstm_forward(LSTM_REFERENCE, tokens),
    ),
}
each_kind = pytest.mark.parametrize('kind', KINDS)
VOCAB, POSITIONS = models.SIZES['vocab'], models.SIZES['n_positions']
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, VOCAB, n) for n in range(1, POSITIONS)]  # of every length


def state_of(prompts, limits, samples=None, model=MODEL, params=PARAMS, places=None):
    padded = np.zeros((len(prompts), decoding.bucket(max(map(len, prompts)), model.n_positions)), np.int32)
    for row, prompt in zip(padded, prompts):
        row[: len(prompt)] = prompt
    columns = [len(prompt) for prompt in prompts], limits, samples or [0] * len(prompts)
    return jit_prefill(model, places or model.n_positions)(
        decoding.unstack_layers(params), padded, *(np.array(column, np.int32) for column in columns)
    )


@functools.cache
def jit_prefill(model, places):
    return jax.jit(functools.partial(decoding.prefill, model, places=places))


@functools.cache
def jit_decode(model, greedy, truncated):
    return jax.jit(functools.partial(decoding.decode, model, greedy=greedy, truncated=truncated), donate_argnums=1)


def decode_for(sampling, model=MODEL):
    return jit_decode(model, sampling.temperature == 0, sampling.top_k > 0 or sampling.top_p < 1)


@functools.cache
def jit_draw(truncated):
    return jax.jit(jax.vmap(functools.partial(decoding.draw, truncated=truncated), (0, None, None)))


def generate(prompts, limits, sampling=Sampling(), stop=-1, model=MODEL, params=PARAMS, **settings):
    """The rows' tokens, prompt included."""
    state = state_of(prompts, limits, model=model, params=params, **settings)
    state = decode_for(sampling, model)(decoding.unstack_layers(params), state, sampling, stop, 1000)
    return [row[:length].tolist() for row, length in zip(np.asarray(state.tokens), state.lengths)]


def of_kind(kind):
    return dict(zip(('model', 'params'), KINDS[kind]))


def greedy_reference(kind, prompt, limit):
    """No cache, float64: the whole sequence again for each token."""
    table, states = KINDS[kind][2:]
    tokens = list(prompt)
    while len(tokens) < limit:
        logits = table[:VOCAB] @ states(tokens)[-1]
        logits[decoding.UNKNOWN_ID] = -np.inf
        tokens.append(int(logits.argmax()))
    return tokens


@each_kind
def test_greedy_equals_the_reference_without_a_cache_for_every_prompt_length(kind):
    expected = [greedy_reference(kind, prompt, POSITIONS) for prompt in PROMPTS]
    assert generate(PROMPTS, [POSITIONS] * len(PROMPTS), **of_kind(kind)) == expected
    assert len({tuple(row[-3:]) for row in expected}) > 3


@pytest.mark.slow
def test_greedy_equals_no_cache_up_to_511_tokens():
    model = models.decoder(n_positions=512)
    params = jax.device_put(models.from_reference(models.random_params(n_positions=512))['decoder'])
    lengths = [1, 2, 31, 32, 33, 100, 255, 256, 257, 490, 510, 511]
    prompts = [RNG.integers(0, VOCAB, n) for n in lengths]
    limits = np.minimum(np.array(lengths) + 12, 512)
    tokens = np.zeros((len(prompts), 512), np.int64)
    for row, prompt in zip(tokens, prompts):
        row[: len(prompt)] = prompt

    @jax.jit
    def following(tokens):
        output = model.apply({'params': params}, tokens)
        return jax.numpy.argmax(output.hidden @ output.embedding[1:VOCAB].T, axis=-1) + 1  # without the unknown piece

    for step in range(12):
        predicted = np.asarray(following(tokens))
        for row, prompt, limit, token in zip(tokens, prompts, limits, predicted):
            if len(prompt) + step < limit:
                row[len(prompt) + step] = token[len(prompt) + step - 1]
    expected = [row[:limit].tolist() for row, limit in zip(tokens, limits)]
    assert generate(prompts, limits, model=model, params=params) == expected
    for i in (0, 4, 11):  # alone, and with a cache as short as may be
        places = decoding.bucket(limits[i], 512)
        assert generate(prompts[i : i + 1], limits[i : i + 1], model=model, params=params, places=places) == [
            expected[i]
        ]


@each_kind
@pytest.mark.parametrize('sampling', [Sampling(), Sampling(1.0), Sampling(0.8, top_k=9, top_p=0.7)])
def test_a_batch_equals_its_members_one_by_one(kind, sampling):
    samples, made = [i % 3 for i in range(len(PROMPTS))], of_kind(kind)
    together = generate(PROMPTS, [POSITIONS] * len(PROMPTS), sampling._replace(seed=5), samples=samples, **made)
    for prompt, sample, row in zip(PROMPTS, samples, together):
        assert generate([prompt], [POSITIONS], sampling._replace(seed=5), samples=[sample], **made) == [row]


def test_seeds_and_sample_numbers_give_other_texts():
    prompt = PROMPTS[0]
    rows = generate([prompt] * 6, [POSITIONS] * 6, Sampling(1.0, seed=1), samples=list(range(6)))
    assert len(set(map(tuple, rows))) == 6
    assert generate([prompt], [POSITIONS], Sampling(1.0, seed=2)) != rows[:1]
    assert rows[0][2:] != rows[0][1:-1]  # nor is a position's draw the next one's


@each_kind
def test_stop_token_and_limits_end_rows_alone(kind):
    whole = generate(PROMPTS[:4], [POSITIONS] * 4, **of_kind(kind))
    stop = whole[0][3]
    limits = [POSITIONS, 2, 7, POSITIONS]  # the second is at its limit from the start
    rows = generate(PROMPTS[:4], limits, stop=stop, **of_kind(kind))
    for prompt, row, limit, full in zip(PROMPTS, rows, limits, whole):
        at = next((i for i in range(len(prompt), len(full)) if full[i] == stop), len(full))
        assert row == full[: min(at + 1, limit)]
    assert rows[1] == PROMPTS[1].tolist() and rows[0][-1] == stop


@each_kind
def test_pieces_of_any_size_equal_one_go_and_compile_once(kind):
    jit_decode.cache_clear()
    made = of_kind(kind)
    whole = generate(PROMPTS, [POSITIONS] * len(PROMPTS), Sampling(1.0), **made)
    decode, params = decode_for(Sampling(1.0), made['model']), decoding.unstack_layers(made['params'])
    state = state_of(PROMPTS, [POSITIONS] * len(PROMPTS), **made)
    compiled = decode._cache_size()
    for n in (1, 2, 4, 0, 8, 3):
        state = decode(params, state, Sampling(1.0), -1, n)
    assert [row[:n].tolist() for row, n in zip(np.asarray(state.tokens), state.lengths)] == whole
    np.testing.assert_array_equal(state.cache.lengths, state.lengths - 1)  # of finished rows too
    decode(params, state, Sampling(0.5, seed=9), 3, 1)
    assert decode._cache_size() == compiled == 1


@pytest.mark.slow
@each_kind
@pytest.mark.parametrize('mesh', [('dp', ()), ('fsdp', ()), ('tp', (2, 1, 4)), ('fsdp+tp', (2, 2, 2))])
def test_any_mesh_makes_the_same_text(kind, mesh, caplog):
    partitioner, (model, params) = Partitioner(*mesh), KINDS[kind][:2]
    abstract = abstract_params(Classifier(model), partitioner)['decoder']
    params = jax.device_put(params, jax.tree.map(lambda leaf: leaf.sharding, abstract))
    prompts = (PROMPTS + PROMPTS[:1])[:16]
    settings = dict(sampling=Sampling(1.0, top_p=0.9), samples=list(range(16)))
    expected = generate(prompts, [POSITIONS] * 16, **settings, **of_kind(kind))
    padded, lengths = np.zeros((16, POSITIONS), np.int32), np.array([len(prompt) for prompt in prompts], np.int32)
    for row, prompt in zip(padded, prompts):
        row[: len(prompt)] = prompt
    batch = dict(
        prompts=padded, lengths=lengths, limits=np.full(16, POSITIONS, np.int32), samples=np.arange(16, dtype=np.int32)
    )
    batch = {name: partitioner.placement.take(array) for name, array in batch.items()}
    prefill, decode = jit_steps(model, partitioner, POSITIONS, settings['sampling'])
    params = partitioner.jit(decoding.unstack_layers)(params)
    state = prefill(params, partitioner.put_batch(batch))
    with jax.log_compiles():
        for _ in range(3):
            state = decode(params, state, settings['sampling'], -1, 6)
    assert [row[:n].tolist() for row, n in zip(np.asarray(state.tokens), state.lengths)] == expected
    assert caplog.text.count('Finished XLA compilation of jit(decode)') == 1, caplog.text


def test_only_text_has_logits():
    hidden, table = RNG.normal(size=(3, 16)).astype(np.float32), RNG.normal(size=(59, 16)).astype(np.float32)
    logits = np.asarray(decoding.token_logits(MODEL, hidden, table))
    allowed = [i for i in range(59) if i < VOCAB and i != decoding.UNKNOWN_ID]
    np.testing.assert_allclose(logits[:, allowed], hidden @ table[allowed].T, rtol=1e-5, atol=1e-5)
    assert np.all(np.delete(logits, allowed, axis=1) == -np.inf)


def test_special_and_position_rows_never_come_out():
    """Not even where they have the largest logits by far, at a temperature that makes all tokens alike."""
    table = PARAMS['table'].copy()
    table[VOCAB:] *= 30
    rows = generate(
        PROMPTS,
        [POSITIONS] * len(PROMPTS),
        Sampling(1e6),
        params=PARAMS | {'table': table},
        samples=list(range(len(PROMPTS))),
    )
    made = np.concatenate([row[len(prompt) :] for prompt, row in zip(PROMPTS, rows)])
    assert made.max() < VOCAB and made.min() > decoding.UNKNOWN_ID and len(set(made.tolist())) > 25


def kept(logits, top_k, top_p):
    """By sorting, in float64."""
    order = np.argsort(-logits, kind='stable')[: top_k or None]
    probabilities = np.exp(logits[order] - logits.max())
    probabilities /= probabilities.sum()
    before = np.cumsum(probabilities) - probabilities
    return set(order[before < top_p].tolist()) if top_p < 1 else set(order.tolist())


@pytest.mark.parametrize(
    ('temperature', 'top_k', 'top_p'),
    [
        (1.0, 0, 1.0),
        (0.5, 0, 1.0),
        (1.0, 4, 1.0),
        (1.0, 0, 0.6),
        (2.0, 6, 0.8),
        (1.0, 1, 1.0),
        (1.0, 0, 1e-6),
        (1.0, 100, 0.999),
    ],
)
def test_draws_have_the_probabilities_of_the_kept_tokens(temperature, top_k, top_p):
    logits = np.append(RNG.normal(0, 1.5, 11), [-np.inf, -30.0]).astype(np.float32)
    n = 20_000
    draw = jit_draw(top_k > 0 or top_p < 1)
    tokens = np.asarray(draw(jax.random.split(jax.random.key(3), n), logits, Sampling(temperature, top_k, top_p)))
    support = sorted(kept(logits.astype(np.float64)[:-2] / temperature, top_k, top_p))
    expected = np.zeros(13)
    expected[support] = np.exp(logits[support].astype(np.float64) / temperature)
    expected /= expected.sum()
    counts = np.bincount(tokens, minlength=13)
    assert np.all(counts[expected == 0] == 0)
    np.testing.assert_array_less(np.abs(counts - n * expected), 5 * np.sqrt(n * expected * (1 - expected)) + 1e-9 + 1)


@pytest.mark.parametrize('top_p', [0.01, 0.3, 0.9, 0.99])
@pytest.mark.parametrize('top_k', [0, 1, 50, 3000])
def test_kept_tokens_of_a_large_vocabulary(top_k, top_p):
    logits = RNG.normal(0, 3, 5000).astype(np.float32)
    cut = decoding.truncate(logits, Sampling(1.0, top_k, top_p))
    assert set(np.flatnonzero(np.isfinite(cut)).tolist()) == kept(logits.astype(np.float64), top_k, top_p)
    tokens = jit_draw(True)(jax.random.split(jax.random.key(0), 50), logits, Sampling(1.0, top_k, top_p))
    assert set(np.asarray(tokens).tolist()) <= kept(logits.astype(np.float64), top_k, top_p)


@pytest.mark.parametrize('largest', [2.0, -2.0])
def test_logits_that_differ_in_the_last_bit_are_told_apart(largest):
    logits = np.full(3, largest, np.float32)
    logits[1] = np.nextafter(logits[0], np.float32(9))
    cut = decoding.truncate(logits, Sampling(1.0, top_k=1))
    assert np.isfinite(cut).tolist() == [False, True, False]


def test_the_most_probable_token_is_kept_in_any_case():
    logits = RNG.normal(0, 3, 500).astype(np.float32)
    cut = decoding.truncate(logits, Sampling(1.0, 0, 1e-39))  # 0 in float32
    assert np.flatnonzero(np.isfinite(cut)).tolist() == [logits.argmax()]


def test_a_minute_temperature_is_greedy():
    logits = RNG.normal(0, 3, (20, 500)).astype(np.float32)
    draw = jax.vmap(functools.partial(decoding.draw, truncated=True), (0, 0, None))
    tokens = draw(jax.random.split(jax.random.key(0), 20), logits, Sampling(1e-30, 0, 0.9))
    np.testing.assert_array_equal(tokens, logits.argmax(axis=1))


@pytest.mark.parametrize(
    ('length', 'longest', 'expected'),
    [(1, 512, 32), (32, 512, 32), (33, 512, 64), (511, 512, 512), (512, 512, 512), (5, 16, 16), (300, 400, 400)],
)
def test_buckets(length, longest, expected):
    assert decoding.bucket(length, longest) == expected
