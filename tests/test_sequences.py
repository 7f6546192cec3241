"""Token sequences in one array, and their copies on disk."""

import hashlib
import logging
import multiprocessing

import numpy as np
import pytest

from gpt1_jax.data.labelled import encoding, sequences as disk
from gpt1_jax.data.labelled.examples import Examples
from gpt1_jax.data.labelled.registry import REGISTRY
from gpt1_jax.data.labelled.sequences import Encoded, Sequences
from gpt1_jax.data.tokenizers.standardise import standardise
from gpt1_jax.errors import UserError

NESTED = [[[1, 2, 3], [4]], [[5, 6], [7, 8, 9, 10]]]


class Tokenizer:
    """One token a letter; counts the texts that it is given."""

    start_id, delimiter_id, extract_id = 200, 201, 202

    def __init__(self, fingerprint='letters'):
        self.fingerprint, self.texts = fingerprint, 0

    def encode_batch(self, texts):
        self.texts += len(texts)
        return [np.array([ord(letter) for letter in text], np.int32) for text in texts]


def examples(last='fine', label=1):
    return Examples(
        {'premise': ['a text', 'another'], 'hypothesis': ['x' * 20, last]},
        np.array([0, label], np.int32),
        ['3', '5'],
        ['low', 'high'],
    )


def encode(cache, tokenizer, data=None, dataset='snli', max_length=16, rule=None):
    result = encoding.encode(REGISTRY[dataset], data or examples(), tokenizer, max_length, rule, cache=str(cache))
    return result, [[sequence.tolist() for sequence in example] for example in result.sequences]


def test_sequences():
    sequences = Sequences.of(NESTED)
    assert sequences.tokens.tolist() == list(range(1, 11)) and len(sequences) == 2
    assert sequences.starts.tolist() == [[0, 3], [4, 6]] and sequences.lengths.tolist() == [[3, 1], [2, 4]]
    assert [[sequence.tolist() for sequence in example] for example in sequences] == NESTED
    assert Encoded(NESTED, None, ['0', '1'], 0, 0).sequences.lengths.tolist() == sequences.lengths.tolist()


def test_examples_are_taken_whole():
    encoded = Encoded(NESTED + [[[11], [12, 13]]], np.array([7, 8, 9]), ['a', 'b', 'c'], 1, 2, ['low', 'high', 'low'])
    taken = encoded.take(np.array([2, 0]))
    assert [[one.tolist() for one in example] for example in taken.sequences] == [[[11], [12, 13]], NESTED[0]]
    assert (taken.labels.tolist(), taken.ids, taken.subsets) == ([9, 7], ['c', 'a'], ['low', 'low'])


def test_other_tokens_lengths_or_labels_are_another_content():
    labels, moved = np.array([0, 1]), [[[1, 2], [3, 4]], *NESTED[1:]]
    of = lambda nested, labels: b''.join(map(bytes, Encoded(nested, labels, ['', ''], 0, 0).content()))
    contents = [
        of(NESTED, labels),
        of(NESTED, 1 - labels),
        of(NESTED, None),
        of(NESTED[::-1], labels),
        of(moved, labels),
    ]
    assert len({*contents}) == 5 and of(NESTED, labels.copy()) == contents[0]


def test_the_second_time_nothing_is_tokenised(tmp_path):
    first, second = Tokenizer(), Tokenizer()
    made, expected = encode(tmp_path, first)
    found, sequences = encode(tmp_path, second)
    assert first.texts == 4 and second.texts == 0 and sequences == expected
    assert isinstance(found.sequences.tokens, np.memmap)
    assert (found.cut_sequences, found.cut_tokens) == (made.cut_sequences, made.cut_tokens) == (1, 13)
    assert found.labels.tolist() == [0, 1] and found.ids == ['3', '5'] and found.subsets == ['low', 'high']
    # Labels are the examples' own: they are not kept, so they cannot be old ones.
    assert encode(tmp_path, second, examples(label=2))[0].labels.tolist() == [0, 2]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    'change',
    [
        {'data': examples('nice')},
        {'tokenizer': Tokenizer('other')},
        {'max_length': 17},
        {'rule': 'release'},
        {'data': Examples({'premise': ['a text', 'anothe'], 'hypothesis': ['x' * 20, 'rfine']}, None, ['3', '5'])},
        {'data': Examples({'premise': ['another', 'a text'], 'hypothesis': ['x' * 20, 'fine']}, None, ['3', '5'])},
    ],
)
def test_anything_else_is_another_copy(tmp_path, change):
    encode(tmp_path, Tokenizer())
    values = {'tokenizer': Tokenizer()} | change
    sequences = encode(tmp_path, **values)[1]
    assert values['tokenizer'].texts == 4 and len(list(tmp_path.iterdir())) == 2
    assert sequences == encode('off', **values)[1]


def test_another_version_of_the_encoding_is_another_copy(tmp_path, monkeypatch):
    encode(tmp_path, Tokenizer())
    monkeypatch.setattr(encoding, 'ENCODING_VERSION', encoding.ENCODING_VERSION + 1)
    tokenizer = Tokenizer()
    encode(tmp_path, tokenizer)
    assert tokenizer.texts == 4 and len(list(tmp_path.iterdir())) == 2


def test_the_encoding_is_that_of_its_version():
    """Where this fails, old caches would be read as if they were new: raise ENCODING_VERSION, and put the new digest
    here."""
    texts = ['A  long\u2014dash, "quotes" & 2*3...', 'caf\u00e9 \u2026 \u00b4 &amp;\n\n\tnext  line ', "don't!?"]
    cases = [
        ('snli', dict(premise=texts, hypothesis=texts[::-1])),
        ('cola', dict(sentence=texts)),
        ('mrpc', dict(sentence1=texts, sentence2=texts[1:] + texts[:1])),
        ('race', dict(article=texts, question=texts, options=[texts[:1] * 2 + texts[1:]] * 3)),
    ]
    made = [standardise(text) for text in texts]
    for dataset, fields in cases:
        for max_length in (12, 40):
            made += encode('off', Tokenizer(), Examples(fields, None, ['0', '1', '2']), dataset, max_length)[1]
    digest = hashlib.sha256(repr(made).encode()).hexdigest()[:16]
    assert (encoding.ENCODING_VERSION, digest) == (1, '04c030cf8dfa75b2')


def test_kinds_are_told_apart(tmp_path):
    pair = Examples({'sentence1': ['a'], 'sentence2': ['b']}, None, ['0'])
    counts = [len(encode(tmp_path, Tokenizer(), pair, name)[1][0]) for name in ('rte', 'mrpc', 'rte', 'mrpc')]
    assert counts == [1, 2, 1, 2]


@pytest.mark.parametrize(
    'damage',
    [
        lambda copy: (copy / 'tokens.npy').write_bytes((copy / 'tokens.npy').read_bytes()[:-1] + b'\xff'),
        lambda copy: (copy / 'tokens.npy').write_bytes((copy / 'tokens.npy').read_bytes()[:-4]),
        lambda copy: (copy / 'lengths.npy').write_bytes(b''),
        lambda copy: (copy / 'lost.npy').unlink(),
        lambda copy: (copy / 'checksums.json').write_text('{"tokens": '),
        lambda copy: (copy / 'checksums.json').write_text('[]'),
    ],
)
def test_a_damaged_copy_is_made_again(tmp_path, damage, caplog):
    expected = encode(tmp_path, Tokenizer())[1]
    [copy] = tmp_path.iterdir()
    damage(copy)
    with caplog.at_level(logging.WARNING, logger='absl'):
        for texts in (4, 0):
            tokenizer = Tokenizer()
            assert encode(tmp_path, tokenizer)[1] == expected and tokenizer.texts == texts
    assert f'{copy}: This copy is damaged' in caplog.text
    assert list(tmp_path.iterdir()) == [copy]


def test_the_same_texts_in_other_fields_are_another_copy(tmp_path):
    for hypotheses in (['a', 'b'], ['b', 'a'], ['b', 'b']):
        data = Examples({'premise': ['a', 'b'], 'hypothesis': hypotheses}, None, ['0', '1'])
        assert encode(tmp_path, Tokenizer(), data)[1] == encode('off', Tokenizer(), data)[1]


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    (tmp_path / 'file').write_text('')
    with caplog.at_level(logging.WARNING, logger='absl'):
        assert encode(tmp_path / 'file' / 'cache', Tokenizer())[1] == encode('off', Tokenizer())[1]
    assert 'cannot be kept here' in caplog.text and 'set data.cache' in caplog.text


def save_often(folder, value):
    sequences = Sequences.of([[np.full(1000, value)]])
    for _ in range(20):
        disk.save_copy(folder, 'same', sequences, np.zeros((1, 1), np.int32))
        found, _ = disk.load_copy(folder, 'same')
        assert found.tokens.sum() == 1000 * value


def test_two_processes_may_write_one_copy(tmp_path):
    writers = [multiprocessing.get_context('spawn').Process(target=save_often, args=(tmp_path, 7)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0] and [path.name for path in tmp_path.iterdir()] == ['same']


def test_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    assert disk.cache_folder('') == tmp_path / 'home' / '.cache' / 'gpt1_jax'
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    assert disk.cache_folder('') == tmp_path / 'xdg' / 'gpt1_jax'
    assert disk.cache_folder('~/mine') == tmp_path / 'home' / 'mine' and disk.cache_folder('off') is None
    with pytest.raises(UserError, match='is not on this machine. Use a local folder'):
        disk.cache_folder('gs://bucket/cache')
