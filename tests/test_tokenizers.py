"""Tokenizers against ftfy itself, the release's rules spelled out, and SentencePiece's own decoding."""

import json
import random
import re

import ftfy
import numpy as np
import pytest

from gpt1_jax.data import tokenizers
from gpt1_jax.errors import UserError


def plain_standardise(text):
    """PAPER section 3's rules, one after the other, as literally as can be."""
    text = ftfy.fix_text(text)
    for character, replacement in {'—': '-', '–': '-', '―': '-', '…': '...', '´': "'"}.items():
        text = text.replace(character, replacement)
    text = re.sub(r'(-+|~+|!+|"+|;+|\?+|\++|,+|\)+|\(+|\\+|/+|\*+|\[+|\]+|\}+|\{+|\|+|_+)', r' \1 ', text)
    text = re.sub(r'\s*\n\s*', ' \n ', text)
    text = re.sub(r'[^\S\n]+', ' ', text)
    return text.strip()


def make_texts(n=40, seed=0):
    words = 'the Captain said naïve house again walking river ÆSOP don’t morning'.split()
    rng = random.Random(seed)
    return ['\n'.join(' '.join(rng.choices(words, k=rng.randint(3, 12))) + '.' for _ in range(30))
            for _ in range(n)]


@pytest.fixture(scope='module')
def tokenizer():
    return tokenizers.train_sentencepiece(map(tokenizers.standardise, make_texts()), 320)


@pytest.mark.parametrize('text, expected', [
    ('', ''),
    (' \n\t\n ', ''),
    ('a--b\u2014c', 'a -- b - c'),
    ('wait\u2026 what?!', 'wait... what ? !'),
    ('l\u00b4homme', "l'homme"),
    ('\u201cIt\u2019s me,\u201d he said.', '" It\'s me , " he said.'),
    ('one  \r\n\r\n two\u00a0three', 'one \n two three'),
    ('sch\u00c3\u00b6n', 'schön'),  # UTF-8 that was read as Latin-1
    ('a_b [c] {d} \\ / * ~', 'a _ b [ c ] { d } \\ / * ~'),
])
def test_standardise_by_hand(text, expected):
    assert tokenizers.standardise(text) == expected


def test_standardise_equals_the_plain_path():
    parts = [
        'word', 'Two', ' ', '  ', '\n', '\r\n', '\r', '\t', '\x0b', '\x0c', '\x1b[1m', '\x00', '\x7f', '\x85',
        '\u2028', '&amp;', '&eacute;', '&#39;', '& ', '&nosuch;', '<', '<b>', '--', '!!', '...', '"', "'",
        '\u2018', '\u2019', '\u201c', '\u201d', '\u2014', '\u2013', '\u2026', '\u2015', '\u00b4', '\u00a0',
        '\ufeff', '\ud83d', 'e\u0301', 'é', 'â€™', 'Ã©', 'Ã ', 'Â\u201d', 'œ', 'ﬁ', 'Ａ', '日本', '😀', '½', '$',
        '£', '°', 'à la']
    rng = random.Random(1)
    for trial in range(3000):
        text = ''.join(rng.choices(parts, k=rng.randint(1, 40)))
        assert tokenizers.standardise(text) == plain_standardise(text), repr(text)
    # With typographic characters only, the lines never go through ftfy.
    characters = [chr(i) for i in range(32, 127) if chr(i) != '&']
    characters += list('\n\t\u2013\u2014\u2018\u2019\u201c\u201d\u2026')
    text = ''.join(rng.choices(characters, k=20000))
    assert tokenizers.standardise(text) == plain_standardise(text)


def test_round_trip_and_empty_texts(tokenizer):
    texts = ['The Captain said: don’t!\n\nNaïve river', '', ' \n ', 'unseen 日本 €', '\u200b',
             'one\n\u200b\ntwo']
    batch = tokenizer.encode_batch(texts)
    assert [ids.dtype for ids in batch] == [np.int32] * len(texts)
    assert tokenizer.decode(batch[0]) == "the captain said: don't !\nnaïve river"
    assert [len(batch[i]) for i in (1, 2, 4)] == [0, 0, 0]
    assert tokenizer.decode(batch[3]) == 'unseen 日本 €'
    assert tokenizer.decode(batch[5]) == 'one\ntwo'
    assert tokenizer.decode(np.array([], np.int32)) == ''


def test_batch_equals_one_by_one_and_any_number_of_threads(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    one_thread = tokenizers.load_tokenizer(tmp_path, threads=1)
    texts = make_texts(5, seed=3)
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        np.testing.assert_array_equal(ids, one_thread.encode_batch([text])[0])
        by_line = [one_thread.encode_batch([line])[0] for line in text.split('\n')]
        np.testing.assert_array_equal(np.concatenate(by_line), ids[ids != tokenizer.newline_id])
        assert (ids == tokenizer.newline_id).sum() == len(by_line) - 1


def test_special_ids(tokenizer):
    assert tokenizer.vocab_size == 320
    assert [tokenizer.start_id, tokenizer.delimiter_id, tokenizer.extract_id] == [320, 321, 322]
    assert tokenizer.newline_id != tokenizer.end_id and max(tokenizer.newline_id, tokenizer.end_id) < 320
    # The names of the control pieces in a text are text.
    ids, = tokenizer.encode_batch(['<nl> <end>'])
    assert not {tokenizer.newline_id, tokenizer.end_id} & set(ids.tolist())
    word = tokenizer.encode_batch(['river'])[0].tolist()
    ids = [tokenizer.start_id, *word, tokenizer.newline_id, *word, tokenizer.end_id, tokenizer.extract_id]
    assert tokenizer.decode(ids) == 'river\nriver'


def test_training_is_deterministic_and_quiet(tokenizer, capfd):
    again = tokenizers.train_sentencepiece(map(tokenizers.standardise, make_texts()), 320)
    assert again.fingerprint == tokenizer.fingerprint
    assert capfd.readouterr() == ('', '')


def test_training_errors_name_the_bounds():
    texts = [tokenizers.standardise(text) for text in make_texts(2)]
    with pytest.raises(UserError, match='set vocab_size to') as error:
        tokenizers.train_sentencepiece(texts, 40000)
    largest = int(re.search(r'vocab_size to ([\d,]+)', str(error.value))[1].replace(',', ''))
    assert tokenizers.train_sentencepiece(texts, largest).vocab_size == largest
    with pytest.raises(UserError, match='cannot hold the characters'):
        tokenizers.train_sentencepiece(texts, 100)
    with pytest.raises(UserError, match='no text'):
        tokenizers.train_sentencepiece(['', ''], 300)


def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path / 'a')
    loaded = tokenizers.load_tokenizer(tmp_path / 'a')
    assert (loaded.fingerprint, loaded.vocab_size) == (tokenizer.fingerprint, tokenizer.vocab_size)
    with pytest.raises(UserError, match='No tokenizer in'):
        tokenizers.load_tokenizer(tmp_path / 'b')
    model = bytearray((tmp_path / 'a' / 'tokenizer.model').read_bytes())
    model[len(model) // 2] ^= 1
    (tmp_path / 'a' / 'tokenizer.model').write_bytes(model)
    with pytest.raises(UserError, match='does not match the fingerprint'):
        tokenizers.load_tokenizer(tmp_path / 'a')
    (tmp_path / 'a' / 'tokenizer.json').write_text(json.dumps({'kind': 'other', 'fingerprint': 'x'}))
    with pytest.raises(UserError, match="unknown kind, 'other'"):
        tokenizers.load_tokenizer(tmp_path / 'a')
    (tmp_path / 'a' / 'tokenizer.json').write_text('{')
    with pytest.raises(UserError, match='is damaged'):
        tokenizers.load_tokenizer(tmp_path / 'a')


def test_not_a_model():
    with pytest.raises(UserError, match='not a SentencePiece model'):
        tokenizers.SentencePieceTokenizer(b'nothing')
