"""What a token may see, and attention to it, against plain loops."""

import jax.numpy as jnp
import numpy as np
import pytest

import reference
from gpt1_jax.model.attention import Visible, attend, attend_to_cache

RNG = np.random.default_rng(0)
# Rows with padding (0), and with a context that two of three choices see; a segment's own number: no context.
SEGMENTS = np.array([[1, 1, 1, 2, 2, 3, 3, 0], [1, 1, 2, 2, 3, 3, 4, 4]])
CONTEXTS = np.array([[1, 1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 4, 4]])
ORDER = np.broadcast_to(np.arange(8), (2, 8))
CASES = {'whole rows': (None, None), 'segments': (SEGMENTS, None), 'contexts': (SEGMENTS, CONTEXTS)}


def seen_by(segments, contexts, row, query):
    """The places that a query sees."""
    places = []
    for key in range(query + 1):
        own = segments is None or segments[row, key] == segments[row, query]
        shared = contexts is not None and segments[row, key] == contexts[row, query]
        if own or shared:
            places.append(key)
    return places


@pytest.mark.parametrize('case', CASES)
def test_a_token_sees_its_segment_and_its_context_up_to_itself(case):
    mask = np.asarray(Visible(ORDER, ORDER, *CASES[case]).mask())
    assert mask.shape == (2, 1, 8, 8) and mask.dtype == bool
    for row in range(2):
        for query in range(8):
            assert np.flatnonzero(mask[row, 0, query]).tolist() == seen_by(*CASES[case], row, query), (row, query)


def test_contexts_by_hand():
    """The second choice of the second row sees the context and itself, the last segment only itself."""
    mask = np.asarray(Visible(ORDER, ORDER, SEGMENTS, CONTEXTS).mask())
    assert mask[1, 0, 5].tolist() == [True, True, False, False, True, True, False, False]
    assert mask[1, 0, 7].tolist() == [False] * 6 + [True] * 2


def test_queries_that_continue_a_cache_see_what_is_before_them():
    lengths = np.array([3, 0])
    mask = np.asarray(Visible(lengths[:, None] + np.arange(2), np.arange(6)[None]).mask())
    for row, query in np.ndindex(2, 2):
        assert mask[row, 0, query].tolist() == [key <= lengths[row] + query for key in range(6)]


def attended(query, key, value, places_of):
    """[B, Q, H, D] by softmax over the places that each query sees, float64."""
    out = np.zeros_like(query)
    for row, place, head in np.ndindex(*query.shape[:3]):
        places = places_of(row, place)
        scores = key[row, places, head] @ query[row, place, head] / np.sqrt(query.shape[-1])
        out[row, place, head] = np.exp(reference.log_softmax(scores)) @ value[row, places, head]
    return out


@pytest.mark.parametrize('case', CASES)
def test_attention_is_a_softmax_over_what_is_seen(case):
    query, key, value = RNG.normal(size=(3, 2, 8, 3, 4))
    out = attend(*jnp.float32([query, key, value]), Visible(ORDER, ORDER, *CASES[case]))
    expected = attended(query, key, value, lambda row, place: seen_by(*CASES[case], row, place))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_attention_to_a_cache():
    query, lengths = RNG.normal(size=(2, 2, 3, 4)), np.array([3, 0])
    key, value = RNG.normal(size=(2, 2, 6, 3, 4))
    visible = Visible(lengths[:, None] + np.arange(2), np.arange(6)[None])
    out = attend_to_cache(jnp.float32(query), *jnp.float32([key, value]).swapaxes(2, 3), visible)
    expected = attended(query, key, value, lambda row, place: list(range(lengths[row] + place + 1)))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
