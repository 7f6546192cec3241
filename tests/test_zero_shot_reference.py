"""Zero-shot scores of a decoder against a slow reference: one sequence, one token at a time."""

import functools
import json
import math
import random
import re

import jax
import numpy as np
import pytest

import reference
import zero_shot_sets
from gpt1_jax.data.tokenizers.sentence_piece import train_sentencepiece
from gpt1_jax.evaluation import zero_shot
from gpt1_jax.evaluation.perplexity import make_scorer
from gpt1_jax.evaluation.zero_shot import Variant
from gpt1_jax.model.classifier import Classifier
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.state import abstract_params
from helpers import some_words
from models import SIZES_32, decoder, from_reference, random_params
from zero_shot_sets import N_POSITIONS, load, one_device


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    """(folder, tokenizer, the reference's parameters)"""
    folder, rng = tmp_path_factory.mktemp('sets'), random.Random(0)
    zero_shot_sets.write_all(folder)
    tokenizer = train_sentencepiece([some_words(rng, 12) for _ in range(300)], 320)
    return folder, tokenizer, random_params(sizes=SIZES_32 | dict(vocab=tokenizer.vocab_size))


def slow_scores(sets, name, start, normalised, alone):
    """One candidate after the other, from the files as they are written."""
    folder, tokenizer, params = sets
    encode = lambda text: tokenizer.encode_batch([text])[0].tolist()
    split = zero_shot_sets.FILES[name]['dev']
    for line in (folder / name / f'{split}.jsonl').read_text().splitlines():
        entry = json.loads(line)
        if name == 'cola':
            texts = [('', entry['sentence'])]
        elif name == 'sst2':
            texts = [(entry['sentence'] + ' very', word) for word in ('negative', 'positive')]
        elif name == 'dpr':
            head, tail = re.split(r'\bit\b', entry['sentence'], maxsplit=1)
            texts = [(head + candidate, tail) for candidate in entry['candidates']]
        elif name == 'race':
            texts = [(entry['article'] + ' ' + entry['question'], option) for option in entry['options']]
        elif name == 'story_cloze':
            texts = [(entry['context'], ending) for ending in entry['endings']]
        else:
            question = {'cause': 'What was the cause of this?', 'effect': 'What happened as a result?'}[
                entry['question']
            ]
            texts = [(entry['premise'] + ' ' + question, entry[f'choice{i}']) for i in (1, 2)]
        if alone and name in ('race', 'story_cloze', 'copa'):
            texts = [('', scored) for _, scored in texts]
        pairs = [(encode(before), encode(scored)) for before, scored in texts]
        first = [tokenizer.end_id] if start else []
        room = N_POSITIONS + 1 - len(first) - max(len(scored) for _, scored in pairs)
        scores = []
        for before, scored in pairs:
            if before:
                assert room > 0
                before = before[max(0, len(before) - room) :]
            else:
                scored = scored[: N_POSITIONS + 1 - len(first)]
            before = first + before
            if not before:
                before, scored = scored[:1], scored[1:]
            value = 0.0
            for token in scored:
                hidden = reference.forward(params, before, SIZES_32['heads'], n_positions=N_POSITIONS)[-1]
                value += reference.log_softmax(params['table'][: tokenizer.vocab_size] @ hidden)[token]
                before = [*before, token]
            if not scored:
                scores.append(-math.inf)
            else:
                scores.append(value / (len(scored) if normalised and name != 'sst2' else 1))
        yield scores


def fast_scores(sets, name, variant, partitioner, batch_size=8):
    folder, tokenizer, params = sets
    classifier = Classifier(decoder(SIZES_32 | dict(vocab=tokenizer.vocab_size)))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_params(classifier, partitioner))
    params = jax.device_put({'decoder': from_reference(params)['decoder']}, shardings)
    score = functools.partial(make_scorer(classifier, params, partitioner, batch_size), params)
    questions = load(folder, name, tokenizer, variant)
    return zero_shot.candidate_scores(questions, score, variant.length_normalised)


@pytest.mark.parametrize('name', zero_shot_sets.NAMES)
@pytest.mark.parametrize('variant', [Variant(), Variant(True, False, 'alone')])
def test_scores_equal_one_sequence_at_a_time(sets, name, variant):
    expected = list(slow_scores(sets, name, *variant[:2], variant.condition == 'alone'))
    np.testing.assert_allclose(fast_scores(sets, name, variant, one_device()), expected, rtol=1e-4)


@pytest.mark.parametrize('name', ['cola', 'race'])
def test_batches_and_devices_change_nothing(sets, name):
    expected = fast_scores(sets, name, Variant(), one_device())
    for partitioner, batch_size in (
        (one_device(), 1),
        (Partitioner('dp', (8, 1, 1)), 3),
        (Partitioner('fsdp+tp', (2, 2, 2)), 16),
    ):
        np.testing.assert_allclose(fast_scores(sets, name, Variant(), partitioner, batch_size), expected, rtol=1e-5)
