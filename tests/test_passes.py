"""The passes over a corpus: what does not depend on how its text is cut and put together."""

import os
import random

import numpy as np
import pytest

from gpt1_jax.data.corpus import documents, passes
from gpt1_jax.errors import UserError


def encode_words(text):
    """A toy tokenizer: a number a word, 0 between lines that have words."""
    lines = [[len(word) for word in line.split()] for line in text.split('\n')]
    return np.array(sum(([0, *line] for line in lines if line), [])[1:], np.int32)


def test_joined_blocks_have_the_tokens_of_the_whole_text():
    rng = random.Random(0)
    for _ in range(300):
        blocks = [
            rng.choice(('a bb', ' ', '', '\n', 'ccc\n', ' \n\n', 'dddd\ne ', '\nff ')) for _ in range(rng.randint(1, 6))
        ]
        # A block ends at the end of a line, or at a space of a long one.
        blocks = [block if block.endswith('\n') else block + ' ' for block in blocks]
        joint, parts = passes.Joint(), []
        for block in blocks:
            ids, joint = passes.join(joint, block, encode_words(block), newline_id=0)
            parts.append(ids)
        assert np.concatenate(parts).tolist() == encode_words(''.join(blocks)).tolist(), blocks


def test_sample_is_bounded_and_spread():
    blocks = [documents.Block(d, f'book{d}', d == 7, f'{d} ' + 'line\n' * 200000, 0, 1, 1) for d in range(20)]
    ranked = list(passes.excerpts(blocks))
    assert ''.join(text for _, text in ranked) == ''.join(block.text for block in blocks if not block.held_out)
    assert 2**60 < max(rank for rank, _ in ranked) < 2**64
    sample = passes.lowest(ranked, 600_000)
    assert 600_000 <= sum(len(text) for _, text in sample) < 650_000
    # What is taken does not depend on the order, nor on what is looked at together.
    assert sample == passes.lowest(reversed(ranked), 600_000)
    parts = [passes.lowest(ranked[i::7], 600_000) for i in range(7)]
    assert sample == passes.lowest(sum(parts, []), 600_000)
    assert sample == sorted(ranked)[: len(sample)]
    assert passes.lowest(ranked, 10**9) == sorted(ranked)


def test_the_blocks_of_a_document_are_drawn_one_by_one():
    blocks = [documents.Block(0, 'book', False, 'line\n' * 5, offset, offset + 25, 1) for offset in range(0, 100, 25)]
    assert len({rank for rank, _ in passes.excerpts(blocks)}) == 4


def test_a_sample_has_as_few_texts_as_have_that_many_characters():
    ranked = [(2, 'bb'), (3, 'c'), (1, 'aa')]
    assert passes.lowest(ranked, 4) == [(1, 'aa'), (2, 'bb')]
    assert passes.lowest(ranked, 5) == [(1, 'aa'), (2, 'bb'), (3, 'c')]
    assert passes.lowest(ranked, 1) == [(1, 'aa')]


def test_a_split_without_tokens_is_refused_where_it_is_wanted():
    corpus = documents.Corpus('text:x', 1, 1, '', lambda: iter(()), lambda first: iter(()))
    passes.check_tokens(corpus, 0.1, {'train': 1, 'valid': 1})
    passes.check_tokens(corpus, 0.0, {'train': 1, 'valid': 0})
    with pytest.raises(UserError, match='no text to train on'):
        passes.check_tokens(corpus, 0.0, {'train': 0, 'valid': 1})
    with pytest.raises(UserError, match='too short to hold out 0.1 of it'):
        passes.check_tokens(corpus, 0.1, {'train': 1, 'valid': 0})


def _hold(size):
    return len(bytearray(size))


@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='elsewhere the memory of workers is not known')
def test_the_memory_of_a_worker_is_not_that_of_its_parent():
    kept = np.ones(75_000_000)  # 600 MB
    with passes.worker_pool(1) as pool:
        assert pool.submit(_hold, 10**8).result() == 10**8 == len(kept) + 25_000_000
    assert 100 < passes.largest_worker() < 400
    assert passes.largest_worker() == 0
