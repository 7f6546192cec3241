"""The bag of words on sets that words decide, or only the ends of texts, or only pairs; and against scikit-learn."""

import collections

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from gpt1_jax.data.labelled.examples import Examples
from gpt1_jax.evaluation import bag_of_words

FILLER = 'red green blue white black'.split()


def examples(labels, **fields):
    return Examples(fields, np.array(labels, np.int32), [str(i) for i in range(len(labels))])


def splits_of(make, sizes=(120, 60, 60), seed=0):
    """make(rng) -> (fields of one example, label)"""
    rng, splits = np.random.default_rng(seed), {}
    for split, size in zip(('train', 'dev', 'test'), sizes):
        rows = [make(rng, i) for i in range(size)]
        fields = {field: [row[field] for row, _ in rows] for field in rows[0][0]}
        splits[split] = examples([label for _, label in rows], **fields)
    return splits


def fit_only(monkeypatch, kind, splits, **kwargs):
    """With one kind of features."""
    with monkeypatch.context() as patch:
        patch.setattr(bag_of_words, 'FEATURES', (kind,))
        return bag_of_words.fit(splits, **kwargs)


def test_features_by_hand():
    def counts(kind, *texts):
        return collections.Counter(bag_of_words.features(texts, kind))

    words = {'0:the': 2, '0:cat_1': 1, "0:isn't": 1}
    ends = {'0:first:the': 1, '0:last:the': 1}
    pairs = {'0:the cat_1': 1, "0:cat_1 isn't": 1, "0:isn't the": 1}
    text = "The cat_1 isn't -- the!"
    assert counts('words', text) == words
    assert counts('ends', text) == words | ends
    assert counts('pairs', text) == words | ends | pairs
    words, ends = {'0:a': 1, '0:b': 1, '1:b': 1, '2:c': 2}, {'0:first:a', '0:last:b', '1:first:b', '1:last:b'}
    ends = dict.fromkeys(ends | {'2:first:c', '2:last:c'}, 1)
    assert counts('words', 'a b', 'B', 'c c') == words
    assert counts('ends', 'a b', 'B', 'c c') == words | ends
    # The words of the first text with those of the last: not of the one between.
    assert counts('pairs', 'a b', 'B', 'c c') == words | ends | {'0:a b': 1, '2:c c': 1, 'a|c': 2, 'b|c': 2}
    assert counts('pairs', '', '...') == {}


def words_decide(rng, i):
    words = [*rng.choice(FILLER, 5), ('good', 'bad')[i % 2]]
    return {'text': ' '.join(rng.permutation(words))}, i % 2


def one_end_decides(end):
    """Both words are in every text; where does not matter to a bag."""

    def make(rng, i):
        a, b = ('good', 'bad')[:: 1 if i % 2 else -1]
        middle = rng.choice(FILLER, 3)
        words = [a, *middle, b, *rng.choice(FILLER, 1)] if end == 'first' else [*rng.choice(FILLER, 1), a, *middle, b]
        return {'text': ' '.join(words)}, i % 2

    return make


def neighbours_decide(rng, i):
    """The two words are side by side in one order or the other."""
    words = rng.choice(FILLER, 4).tolist()
    return {'text': ' '.join([*words[:2], *(('good', 'bad') if i % 2 else ('bad', 'good')), *words[2:]])}, i % 2


def two_texts_decide(rng, i):
    """Label 1 if both texts have the same one of two words, which is as often in each."""
    first, second = i % 2, i // 2 % 2
    filled = lambda word: ' '.join(rng.permutation([rng.choice(FILLER), word]))
    return {'a': filled(('good', 'bad')[first]), 'b': filled(('good', 'bad')[second])}, int(first == second)


@pytest.mark.parametrize(
    'make, kind',
    [
        (words_decide, 'words'),
        (one_end_decides('first'), 'ends'),
        (one_end_decides('last'), 'ends'),
        (neighbours_decide, 'pairs'),
        (two_texts_decide, 'pairs'),
    ],
)
def test_the_kind_that_decides_is_chosen(monkeypatch, make, kind):
    splits = splits_of(make)
    found = bag_of_words.fit(splits)
    assert (found.features, found.dev, found.test) == (kind, 1.0, 1.0)
    assert found.strength == fit_only(monkeypatch, kind, splits).strength
    for weaker in bag_of_words.FEATURES[: bag_of_words.FEATURES.index(kind)]:
        assert fit_only(monkeypatch, weaker, splits).test < 0.7


def test_fields_restrict(monkeypatch):
    def make(rng, i):
        return {'a': words_decide(rng, i)[0]['text'], 'b': ' '.join(rng.choice(FILLER, 5))}, i % 2

    splits = splits_of(make)
    assert bag_of_words.fit(splits).test == bag_of_words.fit(splits, ['a']).test == 1.0
    assert bag_of_words.fit(splits, ['b']).test < 0.7
    alone = {split: examples(part.labels, b=part.fields['b']) for split, part in splits.items()}
    assert bag_of_words.fit(splits, ('b',)) == bag_of_words.fit(alone)


def test_the_setting_is_chosen_on_dev_the_first_of_equal_ones():
    splits = splits_of(words_decide)
    found = bag_of_words.fit(splits)
    assert (found.features, found.strength) == ('words', bag_of_words.STRENGTHS[0])  # all are right
    flipped = examples(1 - splits['test'].labels, **splits['test'].fields)
    assert bag_of_words.fit(splits | {'test': flipped}) == bag_of_words.Baseline(1.0, 0.0, 'words', 0.1)
    # Dev and test want opposite settings.
    ends = splits_of(one_end_decides('last'))
    wrong = examples(1 - ends['dev'].labels, **ends['dev'].fields)
    on_dev, on_test = bag_of_words.fit(ends | {'dev': wrong}), bag_of_words.fit(ends)
    assert on_test.features == 'ends' and on_dev.features == 'words' and on_dev.test < 1.0 == on_test.test


def test_noise_against_scikit_learn():
    """Every setting written out, on a set where they differ."""

    def make(rng, i):
        mood = rng.choice(['good', 'bad', 'fine', 'poor'], 2)
        label = int(mood[0] in ('good', 'fine')) if rng.random() < 0.8 else i % 2
        return {
            'a': f'{rng.choice(FILLER)} {mood[0]} {rng.choice(FILLER)}',
            'b': f'{mood[1]} {rng.choice(FILLER)}',
        }, label

    splits = splits_of(make, (80, 50, 50), seed=3)
    found, scores = bag_of_words.fit(splits), {}
    for kind in ('words', 'ends', 'pairs'):
        documents = {}
        for split, part in splits.items():
            rows = [bag_of_words.features(texts, kind) for texts in zip(part.fields['a'], part.fields['b'])]
            documents[split] = ['\t'.join(row) for row in rows]
        vectors = TfidfVectorizer(tokenizer=lambda text: text.split('\t'), lowercase=False, token_pattern=None)
        vectors.fit(documents['train'])
        for strength in (0.1, 1.0, 10.0, 100.0, 1000.0):
            model = LogisticRegression(C=strength, max_iter=1000)
            model.fit(vectors.transform(documents['train']), splits['train'].labels)
            scores[kind, strength] = [
                model.score(vectors.transform(documents[split]), splits[split].labels) for split in ('dev', 'test')
            ]
    best = max(scores, key=lambda setting: scores[setting][0])  # the first of equal ones
    assert len({dev for dev, _ in scores.values()}) >= 3
    assert (found.features, found.strength) == best and [found.dev, found.test] == pytest.approx(scores[best])


def test_three_classes():
    def make(rng, i):
        words = [*rng.choice(FILLER, 3), ('good', 'bad', 'fine')[i % 3]]
        return {'text': ' '.join(rng.permutation(words))}, i % 3

    assert bag_of_words.fit(splits_of(make)).test == 1.0


def choices_of(right):
    """right(question) -> the word that is right among three, in random order."""

    def make(rng, i):
        question = ('north', 'south', 'west')[i % 3]
        words = rng.permutation(['good', 'bad', 'fine']).tolist()
        return {'question': question, 'choices': words}, words.index(right(question))

    return make


def test_multiple_choice(monkeypatch):
    always = splits_of(choices_of(lambda _: 'fine'))
    assert bag_of_words.fit(always) == bag_of_words.Baseline(1.0, 1.0, 'words', 0.1)
    assert bag_of_words.fit(always, ['choices']).test == 1.0
    right = {'north': 'good', 'south': 'bad', 'west': 'fine'}
    by_question = splits_of(choices_of(right.get))
    found = bag_of_words.fit(by_question)
    assert (found.features, found.dev, found.test) == ('pairs', 1.0, 1.0)
    assert fit_only(monkeypatch, 'ends', by_question).test < 0.6
    assert bag_of_words.fit(by_question, ['choices']).test < 0.6


def test_multiple_choice_against_scikit_learn(monkeypatch):
    """The choice that is most likely right, of choices that are judged one by one."""
    monkeypatch.setattr(bag_of_words, 'FEATURES', ('words',))
    monkeypatch.setattr(bag_of_words, 'STRENGTHS', (1.0,))

    def make(rng, i):
        words = [' '.join(rng.choice(['good', 'bad', 'fine', 'poor'], 3)) for _ in range(3)]
        points = [text.count('good') + 2 * text.count('fine') + rng.random() for text in words]
        return {'choices': words}, int(np.argmax(points))

    splits = splits_of(make)
    flat = {split: [choice for row in part.fields['choices'] for choice in row] for split, part in splits.items()}
    vectors = TfidfVectorizer().fit(flat['train'])
    targets = [int(i == label) for label in splits['train'].labels for i in range(3)]
    model = LogisticRegression(C=1.0, max_iter=1000).fit(vectors.transform(flat['train']), targets)
    expected = {}
    for split in ('dev', 'test'):
        right = [model.predict_proba(vectors.transform(row))[:, 1].argmax() for row in splits[split].fields['choices']]
        expected[split] = np.mean(right == splits[split].labels)
    found = bag_of_words.fit(splits)
    assert 0.5 < expected['test'] < 1.0
    assert (found.dev, found.test) == (expected['dev'], expected['test'])
