"""Token sequences, and how they are cut, against sequences written out by hand."""

import numpy as np
import pytest

from gpt1_jax.data.labelled.encoding import encode
from gpt1_jax.data.labelled.examples import Examples
from gpt1_jax.data.labelled.registry import REGISTRY, custom_dataset
from gpt1_jax.errors import UserError

START, DELIMITER, EXTRACT = 100, 101, 102


class Tokenizer:
    """One token a word: the word's number."""

    vocab_size, start_id, delimiter_id, extract_id = 100, START, DELIMITER, EXTRACT

    def __init__(self):
        self.texts = []

    def encode_batch(self, texts):
        self.texts += texts
        return [np.array([int(word) for word in text.split()], np.int32) for text in texts]


def numbers(first, count):
    return ' '.join(str(i) for i in range(first, first + count))


def encoded(dataset, fields, max_length=64, rule=None, labels=None):
    n = len(next(iter(fields.values())))
    labels = np.zeros(n, np.int32) if labels is None else labels
    examples = Examples(fields, labels, [str(i) for i in range(n)])
    result = encode(dataset, examples, Tokenizer(), max_length, rule)
    return result, [[sequence.tolist() for sequence in example] for example in result.sequences]


def test_sequences_of_every_kind():
    _, sequences = encoded(REGISTRY['sst2'], {'sentence': ['1 2 3', '']})
    assert sequences == [[[START, 1, 2, 3, EXTRACT]], [[START, EXTRACT]]]

    pair = {'sentence1': ['1 2 3'], 'sentence2': ['4 5']}
    _, sequences = encoded(REGISTRY['rte'], pair)
    assert sequences == [[[START, 1, 2, 3, DELIMITER, 4, 5, EXTRACT]]]
    _, sequences = encoded(REGISTRY['mrpc'], pair)
    assert sequences == [[[START, 1, 2, 3, DELIMITER, 4, 5, EXTRACT], [START, 4, 5, DELIMITER, 1, 2, 3, EXTRACT]]]

    stories = {'context': ['1 2', '3'], 'endings': [['4', '5 6'], ['7', '8']]}
    _, sequences = encoded(REGISTRY['story_cloze'], stories)
    assert sequences == [
        [[START, 1, 2, DELIMITER, 4, EXTRACT], [START, 1, 2, DELIMITER, 5, 6, EXTRACT]],
        [[START, 3, DELIMITER, 7, EXTRACT], [START, 3, DELIMITER, 8, EXTRACT]],
    ]
    race = custom_dataset(kind='multiple_choice', fields=['a', 'q', 'o'], labels=['A', 'B'])
    _, sequences = encoded(race, {'a': ['1 2'], 'q': ['3'], 'o': [['4', '5 6']]})
    assert sequences == [[[START, 1, 2, 3, DELIMITER, 4, EXTRACT], [START, 1, 2, 3, DELIMITER, 5, 6, EXTRACT]]]


def test_arrays_labels_and_each_text_once():
    tokenizer, labels = Tokenizer(), np.array([1, 0, 1], np.int32)
    examples = Examples({'context': ['1', '2', '3'], 'endings': [['1', '2']] * 3}, labels, ['a', 'b', 'c'], ['x'] * 3)
    result = encode(REGISTRY['story_cloze'], examples, tokenizer, 32)
    assert tokenizer.texts == ['1', '2', '3']
    assert {sequence.dtype for example in result.sequences for sequence in example} == {np.dtype(np.int32)}
    assert result.sequences.tokens.dtype == np.uint16 and result.sequences.tokens.size == 3 * 2 * 5
    assert result.labels is labels and result.ids == ['a', 'b', 'c'] and result.subsets == ['x'] * 3
    assert (result.cut_sequences, result.cut_tokens) == (0, 0)


def test_ids_that_need_more_than_16_bits():
    tokenizer = Tokenizer()
    tokenizer.start_id, tokenizer.delimiter_id, tokenizer.extract_id = 70000, 70001, 70002
    examples = Examples({'sentence': ['69999 1']}, None, ['0'])
    result = encode(REGISTRY['sst2'], examples, tokenizer, 32)
    assert [sequence.tolist() for sequence in result.sequences[0]] == [[70000, 69999, 1, 70002]]


def test_many_examples_equal_each_alone(monkeypatch):
    rng = np.random.default_rng(0)
    text = lambda: numbers(0, rng.integers(0, 9))
    fields = {
        'article': [text() for _ in range(23)],
        'question': [text() for _ in range(23)],
        'options': [[text() for _ in range(4)] for _ in range(23)],
    }
    monkeypatch.setattr('gpt1_jax.data.labelled.encoding._TEXTS_AT_ONCE', 7)
    monkeypatch.setattr('gpt1_jax.data.labelled.encoding._EXAMPLES_AT_ONCE', 5)
    result, sequences = encoded(REGISTRY['race'], fields, max_length=14)
    alone = [
        encoded(REGISTRY['race'], {name: [column[i]] for name, column in fields.items()}, max_length=14)
        for i in range(23)
    ]
    assert sequences == [one for _, [one] in alone]
    assert result.cut_tokens == sum(one.cut_tokens for one, _ in alone) > 0


def test_one_text_is_cut_at_its_end():
    result, sequences = encoded(REGISTRY['sst2'], {'sentence': ['1 2 3 4', '1 2 3 4 5 6', '1']}, max_length=6)
    assert sequences == [[[START, 1, 2, 3, 4, EXTRACT]]] * 2 + [[[START, 1, EXTRACT]]]
    assert (result.cut_sequences, result.cut_tokens) == (1, 2)


def test_pair_cuts_the_longer_text_first():
    def brute_force(first, second, budget):
        first, second = list(first), list(second)
        while len(first) + len(second) > budget:
            (first if len(first) > len(second) else second).pop()
        return first, second

    for length1 in range(9):
        for length2 in range(9):
            for max_length in range(4, 20):
                first, second = range(length1), range(50, 50 + length2)
                fields = {'sentence1': [numbers(0, length1)], 'sentence2': [numbers(50, length2)]}
                result, [[sequence]] = encoded(REGISTRY['rte'], fields, max_length)
                a, b = brute_force(first, second, max_length - 3)
                assert sequence == [START, *a, DELIMITER, *b, EXTRACT]
                lost = length1 + length2 - len(a) - len(b)
                assert (result.cut_sequences, result.cut_tokens) == (lost > 0, lost)

                result, [[one, other]] = encoded(REGISTRY['mrpc'], fields, max_length)
                assert one == sequence and other == [START, *b, DELIMITER, *a, EXTRACT]
                assert (result.cut_sequences, result.cut_tokens) == (2 * (lost > 0), 2 * lost)


def test_race_cuts_the_end_of_the_article_and_no_question_or_answer_that_fits():
    race = custom_dataset(kind='multiple_choice', fields=['a', 'q', 'o'], labels=['A', 'B', 'C', 'D'])
    fields = {'a': ['1 2 3 4'], 'q': ['5 6'], 'o': [['7', '7 8 9', '7 8 9 10 11', '10 11 12 13 14 15 16']]}
    result, [sequences] = encoded(race, fields, max_length=9)
    assert sequences == [
        [START, 1, 2, 3, 5, 6, DELIMITER, 7, EXTRACT],
        [START, 1, 5, 6, DELIMITER, 7, 8, 9, EXTRACT],
        [START, 6, DELIMITER, 7, 8, 9, 10, 11, EXTRACT],  # too long together, without the article
        [START, DELIMITER, 10, 11, 12, 13, 14, 15, EXTRACT],  # too long even alone
    ]
    assert (result.cut_sequences, result.cut_tokens) == (4, 1 + 3 + 5 + 7)


def test_a_context_that_goes_on_into_the_choices_is_cut_at_its_front():
    fields = {'context': ['1 2 3 4'], 'endings': [['7', '7 8 9 10 11 12 13']]}
    result, [sequences] = encoded(REGISTRY['dpr'], fields, max_length=7)
    assert sequences == [[START, 2, 3, 4, DELIMITER, 7, EXTRACT], [START, DELIMITER, 7, 8, 9, 10, EXTRACT]]
    assert (result.cut_sequences, result.cut_tokens) == (2, 1 + 7)


def test_rule_of_the_release():
    fields = {'context': [numbers(0, 10), '1 2'], 'endings': [[numbers(20, 10), '3'], ['4', numbers(30, 7)]]}
    result, sequences = encoded(REGISTRY['story_cloze'], fields, max_length=16)  # 16 // 2 - 2 = 6 of each
    a, b = list(range(6)), list(range(20, 26))
    assert sequences == [
        [[START, *a, DELIMITER, *b, EXTRACT], [START, *a, DELIMITER, 3, EXTRACT]],
        [[START, 1, 2, DELIMITER, 4, EXTRACT], [START, 1, 2, DELIMITER, *range(30, 36), EXTRACT]],
    ]
    assert (result.cut_sequences, result.cut_tokens) == (3, 8 + 4 + 1)
    longest, _ = encoded(REGISTRY['story_cloze'], fields, max_length=16, rule='longest')
    assert longest.cut_tokens == 7  # 23 of 16, and none of the others: 14, 6 and 12


@pytest.mark.parametrize('name', ['sst2', 'rte', 'mrpc', 'story_cloze'])
def test_no_sequence_is_longer_than_max_length(name):
    rng = np.random.default_rng(0)
    text = lambda: numbers(0, rng.integers(0, 40))
    dataset = REGISTRY[name]
    fields = {field: [text() for _ in range(50)] for field in dataset.fields}
    if dataset.kind == 'multiple_choice':
        fields['endings'] = [[text(), text()] for _ in range(50)]
    for max_length in (4, 5, 17, 32):
        result, sequences = encoded(dataset, fields, max_length)
        whole, _ = encoded(dataset, fields, 1000)
        total = lambda r: sum(len(sequence) for example in r.sequences for sequence in example)
        assert max(len(sequence) for example in sequences for sequence in example) <= max_length
        assert result.cut_tokens == total(whole) - total(result)
        assert all(sequence[0] == START and sequence[-1] == EXTRACT for [*e] in sequences for sequence in e)


def test_max_length_too_small():
    with pytest.raises(UserError, match='data.max_length: The length 3 is too small'):
        encoded(REGISTRY['sst2'], {'sentence': ['1']}, max_length=3)


@pytest.mark.parametrize('name, rule', [('sst2', 'release'), ('race', 'release'), ('rte', 'shortest')])
def test_rules_that_do_not_fit(name, rule):
    fields = {field: ['1'] for field in REGISTRY[name].fields}
    with pytest.raises(UserError, match=f"data.rule: The rule '{rule}' does not fit"):
        encoded(REGISTRY[name], fields, rule=rule)
