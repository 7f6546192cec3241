"""The heuristics on a model whose probabilities are a table, by hand; vocabularies; sources. (Another file: scores of a
decoder against one sequence at a time; the task.)"""

import functools
import json
import math
import random
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef

import zero_shot_sets
from gpt1_jax.data.labelled import origins
from gpt1_jax.data.labelled.registry import REGISTRY
from gpt1_jax.data.tokenizers.loading import load_tokenizer
from gpt1_jax.errors import UserError
from gpt1_jax.evaluation import paper, zero_shot
from gpt1_jax.evaluation.perplexity import make_scorer
from gpt1_jax.evaluation.zero_shot import Variant, best_threshold
from gpt1_jax.model.classifier import Classifier
from gpt1_jax.model.transformer import Output
from helpers import assert_well_put, write_lines
from zero_shot_sets import N_POSITIONS, load, one_device

log = math.log


class Words:
    """A tokenizer whose pieces are the words that it is given, and for some words several pieces of their own."""

    end_id = 1

    def __init__(self, words, pieces=None):
        self.pieces = {word: [word] for word in words.split()} | (pieces or {})
        names = dict.fromkeys(piece for of_word in self.pieces.values() for piece in of_word)
        self.ids = {'<unk>': 0, '<end>': 1} | {name: 2 + i for i, name in enumerate(names)}
        self.names = list(self.ids)

    def encode_batch(self, texts):
        pieces = lambda text: [
            piece for word in re.findall(r"[\w']+|[^\w\s]", text) for piece in self.pieces.get(word, [word])
        ]
        return [np.array([self.ids.get(piece, 0) for piece in pieces(text)], np.int32) for text in texts]


class Bigrams(nn.Module):
    """The next token's probabilities are a row of a table."""

    vocab_size: int
    n_positions: int = N_POSITIONS
    n_special: int = 0
    layers: int = 1
    dtype: jnp.dtype = jnp.float32

    @property
    def width(self):
        return self.vocab_size

    @nn.compact
    def __call__(self, tokens, positions=None, segment_ids=None, context_ids=None, *, train=False):
        shape = (self.vocab_size, self.vocab_size)
        table = self.param('table', nn.with_logical_partitioning(nn.initializers.zeros, (None, None)), shape)
        return Output(table[tokens], jnp.eye(self.vocab_size))


def bigrams(tokenizer, probabilities):
    """windows -> their log-probabilities. probabilities: 'previous next' -> value; 'next' alone: after all others; the
    rest of the tokens share what is left."""
    names, rows = tokenizer.names, []
    for previous in names:
        known = [probabilities.get(f'{previous} {name}', probabilities.get(name)) for name in names]
        share = (1 - sum(filter(None, known))) / known.count(None)
        rows.append([share if value is None else value for value in known])
    table = np.log(np.array(rows, np.float32))
    params = {'decoder': {'table': jax.device_put(table, one_device().sharding())}}
    return functools.partial(make_scorer(Classifier(Bigrams(len(names))), params, one_device(), 4), params)


def spoken(questions, tokenizer):
    """Each sequence as words, with | before the first that is scored."""
    names = [[tokenizer.names[i] for i in window.tokens] for window in questions.windows]
    return [
        ' '.join([*words[: window.first], '|', *words[window.first :]])
        for words, window in zip(names, questions.windows)
    ]


# ----------------------------------------------------------------- by hand


def test_cola(tmp_path):
    """Means of 'a b', 'a c', 'a b c', 'a d': log .5, log .25, (log .5 + log .1) / 2, log .05."""
    tokenizer = Words('a b c d')
    score = bigrams(tokenizer, {'a b': 0.5, 'a c': 0.25, 'a d': 0.05, 'b c': 0.1})
    entry = lambda sentence, label: {'sentence': sentence, 'label': label}
    zero_shot_sets.write(
        tmp_path, 'cola', [entry('a b', 1), entry('a b c', 0), entry('a c', 1), entry('a d', 0)], 'train'
    )
    zero_shot_sets.write(
        tmp_path, 'cola', [entry('a b c', 1), entry('a c', 1), entry('a b', 1), entry('a d', 0), entry('a', 0)]
    )
    questions = load(tmp_path, 'cola', tokenizer)
    assert spoken(questions, tokenizer) == ['a | b c', 'a | c', 'a | b', 'a | d', 'a |']
    expected = [(log(0.5) + log(0.1)) / 2, log(0.25), log(0.5), log(0.05), -math.inf]
    np.testing.assert_allclose(zero_shot.candidate_scores(questions, score, True)[:, 0], expected, rtol=1e-5)
    # On train log .25 divides exactly. On dev two of three acceptable ones are found, and nothing else.
    finding = zero_shot.answer(questions, score, True)
    assert finding.threshold == pytest.approx(log(0.25), rel=1e-5) and finding.ties == 0
    assert finding.value == pytest.approx((2 * 2 - 0 * 1) / math.sqrt(2 * 3 * 2 * 3))


@pytest.mark.filterwarnings('ignore:A single label')
def test_the_threshold_of_cola_is_the_best_of_all_and_the_lowest_of_equal_ones():
    rng = np.random.default_rng(0)
    for n in [1, 2, 3] + 60 * [12]:
        scores, labels = rng.integers(-5, 0, n) / 2, rng.integers(0, 2, n)
        by_hand = {t: matthews_corrcoef(labels, scores >= t) for t in sorted(set(scores))}
        best = max(by_hand.values())
        assert best_threshold(scores, labels) == next(t for t, value in by_hand.items() if value > best - 1e-9)
    scores = np.array([-math.inf, -3.0, -2.0, -math.inf])
    assert best_threshold(scores, np.array([1, 0, 1, 0])) == -2
    assert best_threshold(scores, np.array([0, 1, 1, 0])) == -3  # finite: -inf is never acceptable
    assert best_threshold(scores, np.array([1, 0, 0, 1])) == -2  # both are bad, -1 and -.58
    assert best_threshold(scores[:1], np.array([1])) == 0


def test_sst2_compares_whole_words(tmp_path):
    """After 'very': positive .25, of two pieces .5 * .5, and negative .3. The mean of its pieces would choose positive,
    its first piece too."""
    tokenizer = Words('good bad negative', {'very': ['ve', 'ry'], 'positive': ['posi', 'tive']})
    zero_shot_sets.write(tmp_path, 'sst2', [{'sentence': 'good ', 'label': 1}, {'sentence': 'good bad', 'label': 0}])
    questions = load(tmp_path, 'sst2', tokenizer)
    assert spoken(questions, tokenizer) == [
        'good ve ry | negative',
        'good ve ry | posi tive',
        'good bad ve ry | negative',
        'good bad ve ry | posi tive',
    ]
    for after_very, value in ((0.5, 0.5), (0.7, 0.5)):  # all negative, then (.7 * .5 = .35) all positive
        score = bigrams(
            tokenizer, {'ry posi': after_very, 'posi tive': 0.5, 'ry negative': 0.3 - (after_very > 0.6) * 0.01}
        )
        scores = zero_shot.candidate_scores(questions, score, True)
        assert (scores[:, 0] > scores[:, 1]).tolist() == [after_very < 0.6] * 2
        np.testing.assert_allclose(scores[:, 1], log(after_very * 0.5), rtol=1e-5)
        assert zero_shot.answer(questions, score, True).value == value


def race(tmp_path, label):
    question = {'article': 'x\ny z', 'question': 'why?', 'options': ['a', 'b c d', 'b a', 'd'], 'answer': label}
    zero_shot_sets.write(tmp_path, 'race', [question])


def test_race_and_the_length_of_answers(tmp_path):
    """Given '?': a .2; b c d .1 * .9 * .9; b a .1 * .3; d .1. By mean b c d, by sum a."""
    tokenizer = Words('x y z why ? a b c d')
    score = bigrams(tokenizer, {'? a': 0.2, '? b': 0.1, 'b c': 0.9, 'c d': 0.9, 'b a': 0.03, '? d': 0.1})
    race(tmp_path, 'B')
    questions = load(tmp_path, 'race', tokenizer)
    assert spoken(questions, tokenizer) == [f'x y z why ? | {words}' for words in ('a', 'b c d', 'b a', 'd')]
    sums = [log(0.2), log(0.1 * 0.81), log(0.003), log(0.1)]
    np.testing.assert_allclose(zero_shot.candidate_scores(questions, score, False), [sums], rtol=1e-5)
    means = [sums[0], sums[1] / 3, sums[2] / 2, sums[3]]
    np.testing.assert_allclose(zero_shot.candidate_scores(questions, score, True), [means], rtol=1e-5)
    assert [zero_shot.answer(questions, score, normalised).value for normalised in (True, False)] == [1.0, 0.0]


def test_variants(tmp_path):
    tokenizer = Words('x y z why ? a b c d')
    race(tmp_path, 'A')
    said = lambda **changes: spoken(load(tmp_path, 'race', tokenizer, Variant(**changes)), tokenizer)
    answers = ('a', 'b c d', 'b a', 'd')
    assert said(start_token=True) == [f'<end> x y z why ? | {words}' for words in answers]
    assert said(start_token=True, condition='alone') == [f'<end> | {words}' for words in answers]
    assert said(condition='alone') == ['a |', 'b | c d', 'b | a', 'd |']
    alone = load(tmp_path, 'race', tokenizer, Variant(condition='alone'))
    scores = zero_shot.candidate_scores(alone, bigrams(tokenizer, {'b c': 0.9, 'c d': 0.9}), True)
    assert scores[0, 0] == scores[0, 3] == -math.inf and scores[0, 1] == pytest.approx(log(0.9), rel=1e-5)


def test_dpr_scores_only_what_follows_the_pronoun(tmp_path):
    """The pronoun in the middle, first, and with white space of its own; candidates of unequal length. That 'dog' is
    likely where the pronoun is does not count."""
    tokenizer = Words('the dog cat saw ran slept . big because')
    score = bigrams(
        tokenizer, {'the dog': 0.8, 'cat ran': 0.5, 'dog ran': 0.2, 'cat slept': 0.1, 'dog slept': 0.6, 'ran .': 0.5}
    )
    sentences = ('dog saw cat because it ran.', 'it slept because it ran', 'because it slept it ran.')
    entries = [
        {'sentence': sentence, 'pronoun': ' it', 'candidates': ['the dog ', 'the big cat'], 'label': label}
        for sentence, label in zip(sentences, (1, 0, 0))
    ]
    zero_shot_sets.write(tmp_path, 'dpr', entries)
    questions = load(tmp_path, 'dpr', tokenizer)
    assert spoken(questions, tokenizer) == [
        'dog saw cat because the dog | ran .',
        'dog saw cat because the big cat | ran .',
        'the dog | slept because <unk> ran',
        'the big cat | slept because <unk> ran',
        'because the dog | slept <unk> ran .',
        'because the big cat | slept <unk> ran .',
    ]
    scores = zero_shot.candidate_scores(questions, score, True)
    np.testing.assert_allclose(scores[0], [log(0.2 * 0.5) / 2, log(0.5 * 0.5) / 2], rtol=1e-5)
    assert zero_shot.answer(questions, score, True).value == 1.0 and questions.split == 'dev'


def test_a_word_that_the_rest_changes_is_scored(tmp_path):
    """'dog' and "dog's" are other pieces: the score begins with the first that differs."""
    tokenizer = Words("the dog cat ran , dog's cat's hat is")
    entries = [
        {'sentence': f'he{rest}', 'pronoun': 'he', 'candidates': ['the dog', 'cat'], 'label': 0}
        for rest in ("'s hat", ', ran')
    ]
    zero_shot_sets.write(tmp_path, 'dpr', entries)
    assert spoken(load(tmp_path, 'dpr', tokenizer), tokenizer) == [
        "the | dog's hat",
        "cat's | hat",  # nothing before it: the first token has no probability
        'the dog | , ran',
        'cat | , ran',
    ]


def test_stories_and_alternatives(tmp_path):
    tokenizer = Words('a b c d e . x What was the cause of this ? happened as result', {'as': ['as'], 'a': ['a']})
    story = {'context': 'a b. c', 'endings': ['d e', 'e'], 'label': 1}
    zero_shot_sets.write(tmp_path, 'story_cloze', [story])
    questions = load(tmp_path, 'story_cloze', tokenizer)
    assert spoken(questions, tokenizer) == ['a b . c | d e', 'a b . c | e']
    score = bigrams(tokenizer, {'c d': 0.2, 'd e': 0.7, 'c e': 0.3})
    expected = [[log(0.2 * 0.7) / 2, log(0.3)]]
    np.testing.assert_allclose(zero_shot.candidate_scores(questions, score, True), expected, rtol=1e-5)
    assert [zero_shot.answer(questions, score, normalised).value for normalised in (True, False)] == [1.0, 0.0]

    alternative = {'premise': 'x', 'choice1': 'b c', 'choice2': 'c', 'label': 1}
    zero_shot_sets.write(tmp_path, 'copa', [alternative | {'question': question} for question in ('cause', 'effect')])
    assert spoken(load(tmp_path, 'copa', tokenizer), tokenizer) == [
        'x What was the cause of this ? | b c',
        'x What was the cause of this ? | c',
        'x What happened as a result ? | b c',
        'x What happened as a result ? | c',
    ]


def test_the_first_of_equal_candidates_is_the_answer_and_ties_are_counted(tmp_path):
    tokenizer = Words('a b c d')
    story = lambda label, *endings: {'context': 'a', 'endings': endings, 'label': label}
    zero_shot_sets.write(
        tmp_path, 'story_cloze', [story(1, 'b', 'c'), story(2, 'b', 'c'), story(2, 'b', 'd'), story(2, '', ' ')]
    )
    finding = zero_shot.answer(load(tmp_path, 'story_cloze', tokenizer), bigrams(tokenizer, {'a d': 0.9}), True)
    assert (finding.value, finding.ties, finding.threshold) == (0.5, 3, None)


def test_long_texts_lose_their_beginning_the_same_for_all_candidates(tmp_path):
    words = [f'w{i}' for i in range(12)]
    tokenizer = Words(' '.join(words) + ' a b c d e f g h i j')
    story = lambda *endings: {'context': ' '.join(words), 'endings': endings, 'label': 1}
    stories = [
        story('a b c', 'd'),
        story('a b c d e f g h i j', 'e'),
        {'context': 'a', 'endings': ['b', 'c'], 'label': 1},
    ]
    zero_shot_sets.write(tmp_path, 'story_cloze', stories)
    questions = load(tmp_path, 'story_cloze', tokenizer, n_positions=7)  # eight tokens: the last is only predicted
    assert spoken(questions, tokenizer) == [
        'w7 w8 w9 w10 w11 | a b c',
        'w7 w8 w9 w10 w11 | d',
        'w11 | a b c d e f g',
        'w11 | e',
        'a | b',
        'a | c',
    ]
    assert questions.cut == 2
    questions = load(tmp_path, 'story_cloze', tokenizer, Variant(start_token=True), n_positions=7)
    assert spoken(questions, tokenizer)[:3] == [
        '<end> w8 w9 w10 w11 | a b c',
        '<end> w8 w9 w10 w11 | d',
        '<end> w11 | a b c d e f',
    ]


# ----------------------------------------------------------------- real vocabularies


def released(folder):
    """A vocabulary in the release's format without merges: every letter is a piece."""
    letters = 'abcdefghijklmnopqrstuvwxyz.'
    tokens = ['<unk>', *letters, *(f'{letter}</w>' for letter in letters), '\n</w>']
    folder.mkdir()
    (folder / 'vocab.json').write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / 'merges.txt').write_text('#version: 0.2\n')
    return load_tokenizer(folder)


@pytest.mark.parametrize('kind', ['sentencepiece', 'released'])
def test_very_is_exactly_one_word_more(tmp_path, kind, sentencepiece):
    tokenizer = released(tmp_path / 'bpe') if kind == 'released' else sentencepiece
    sentences = ['Ship sail', 'ship sail. ', 'a']
    zero_shot_sets.write(tmp_path, 'sst2', [{'sentence': text, 'label': 0} for text in sentences])
    windows = iter(load(tmp_path, 'sst2', tokenizer).windows)
    for text in sentences:
        before, very, *words = tokenizer.encode_batch([text, 'very', 'negative', 'positive'])
        assert len(very) > 1
        for word in words:
            window = next(windows)
            assert window.tokens.tolist() == [*before, *very, *word] and window.first == len(before) + len(very)
            assert tokenizer.decode(window.tokens[: window.first]) == tokenizer.decode(before) + ' very'


# ----------------------------------------------------------------- sources


def test_which_split_is_used(tmp_path, sentencepiece):
    """Nothing is held out of the one file of Story Cloze and DPR; DPR's test split is used if it has labels."""
    rng = random.Random(0)
    entries = {name: [zero_shot_sets.entry(name, rng, i) for i in range(9)] for name in ('dpr', 'story_cloze')}
    for name, given in entries.items():
        zero_shot_sets.write(tmp_path, name, given)
    read = lambda name, **changes: load(tmp_path, name, sentencepiece, **changes)
    for name, lowest in (('dpr', 0), ('story_cloze', 1)):
        labels = [entry['label'] - lowest for entry in entries[name]]
        assert read(name).split == 'dev' and read(name).labels.tolist() == labels
        chosen = [len(labels) * i // 4 for i in range(4)]
        assert read(name, limit=4).labels.tolist() == [labels[i] for i in chosen]
    unlabelled, labelled = ([entry | {'label': label} for entry in entries['dpr'][:2]] for label in (-1, 1))
    zero_shot_sets.write(tmp_path, 'dpr', unlabelled, 'test')
    assert (read('dpr').split, len(read('dpr').labels)) == ('dev', 9)
    zero_shot_sets.write(tmp_path, 'dpr', labelled, 'test')
    assert (read('dpr').split, read('dpr').labels.tolist()) == ('test', [1, 1])
    with pytest.MonkeyPatch.context() as patch:  # a server that fails once
        patch.setattr(zero_shot, 'available_splits', lambda *_: [])
        assert read('dpr').split == 'test'
    (tmp_path / 'dpr' / 'test.jsonl').unlink()
    write_lines(tmp_path / 'dpr' / 'dev.jsonl', entries['dpr'][:3])  # a user's own
    write_lines(tmp_path / 'story_cloze' / 'train.jsonl', entries['story_cloze'][:3])
    assert len(read('dpr').labels) == 3 and len(read('story_cloze').labels) == 9


def test_what_cannot_be_used_is_named(tmp_path, sentencepiece):
    zero_shot_sets.write_all(tmp_path)
    (tmp_path / 'cola' / 'train.jsonl').unlink()
    (tmp_path / 'copa' / 'dev.jsonl').unlink()
    (tmp_path / 'copa').rmdir()
    tokenizer = Words('very negative ' + ' '.join(zero_shot_sets.NAMES))
    found, left_out = zero_shot.load(zero_shot_sets.NAMES, f'files:{tmp_path}', None, tokenizer, 32, Variant())
    assert [one.name for one in found] == ['race', 'dpr', 'story_cloze']
    assert list(left_out) == ['cola', 'sst2', 'copa']
    assert 'no train.jsonl' in left_out['cola'] and "cannot write 'positive'" in left_out['sst2']
    assert left_out['copa'].startswith(f'files:{tmp_path}: There is no folder for it.')
    with pytest.raises(
        UserError, match=r'^datasets: None of them can be used \(cola: .*; copa: .*\)\. Set --config.data.source'
    ):
        zero_shot.load(('cola', 'copa'), f'files:{tmp_path}', None, sentencepiece, 32, Variant())
    with pytest.raises(UserError, match="^datasets: 'mnli' is unknown. Choose one of cola"):
        zero_shot.load(('cola', 'mnli'), f'files:{tmp_path}', None, sentencepiece, 32, Variant())


@pytest.mark.parametrize('key, source', [('', 'data.source'), ('log.zero_shot.', 'log.zero_shot.source')])
def test_the_keys_of_the_config_are_named(tmp_path, sentencepiece, monkeypatch, caplog, key, source):
    """Those of the task, and of pre-training, where data.source is the corpus."""

    def unreachable(*_):
        raise UserError('here: It cannot be fetched (no route). Wait.')

    monkeypatch.setattr(origins.tfds, 'open_builder', unreachable)
    monkeypatch.setattr(origins.hub_layout, 'open_layout', unreachable)

    def refusal(names, uri=''):
        with pytest.raises(UserError) as caught:
            zero_shot.load(names, uri, None, sentencepiece, 32, Variant(), key=key)
        assert_well_put(str(caught.value))
        return str(caught.value)

    message = refusal(('cola', 'story_cloze'))
    assert message.startswith(
        f'{key}datasets: None of them can be used (cola: {source} is empty, and the set cannot be'
    )
    assert f'; story_cloze: {source} is empty' in message and message.count('cola: ') == 1
    assert message.endswith(f'. Set --config.{source} to the folder that holds them.')
    assert f'cola is left out: {source} is empty' in caplog.text
    assert f'(cola: {source}: The source ' in refusal(('cola',), 'file:/x')
    assert f'Add one, or leave it out of {key}datasets' in refusal(('cola',), f'files:{tmp_path}')
    assert refusal(()) == f'{key}datasets: The list is empty. Name at least one data set.'
    with pytest.raises(UserError, match=f"^{key}datasets: 'mnli' is unknown."):
        zero_shot.load(('mnli',), '', None, sentencepiece, 32, Variant(), key=key)


def test_not_a_number_is_an_error(tmp_path, sentencepiece):
    zero_shot_sets.write_all(tmp_path)
    questions = load(tmp_path, 'dpr', sentencepiece)
    with pytest.raises(UserError, match='^dpr: A log-probability is not a number'):
        zero_shot.answer(questions, lambda windows: [(window, math.nan) for window in windows], True)


def test_the_scale():
    for name, (metric, chance, best) in paper.ZERO_SHOT.items():
        assert metric == REGISTRY[name].metrics[0] and paper.scaled(name, chance) == (None if best is None else 0.0)
        assert chance == (0.0 if metric == 'matthews' else 1 / len(REGISTRY[name].labels))
        if best is not None and name != 'dpr':  # the paper's tables
            assert best == pytest.approx(REGISTRY[name].paper[metric][1] / 100) and paper.scaled(name, best) == 1.0
    assert paper.scaled('race', 0.1) == pytest.approx(-0.15 / 0.283)
