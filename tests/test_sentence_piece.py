"""SentencePiece vocabularies: encoding line by line, decoding, training and files."""

import json
import random
import re

import numpy as np
import pytest

from gpt1_jax.data.tokenizers.loading import load_tokenizer
from gpt1_jax.data.tokenizers.sentence_piece import SentencePieceTokenizer, train_sentencepiece
from gpt1_jax.data.tokenizers.standardise import standardise
from gpt1_jax.errors import UserError


def make_texts(n=40, seed=0):
    words = 'the Captain said naïve house again walking river ÆSOP don’t morning'.split()
    rng = random.Random(seed)
    return ['\n'.join(' '.join(rng.choices(words, k=rng.randint(3, 12))) + '.' for _ in range(30)) for _ in range(n)]


@pytest.fixture(scope='module')
def tokenizer():
    return train_sentencepiece(map(standardise, make_texts()), 320)


def test_round_trip_and_empty_texts(tokenizer):
    texts = ['The Captain said: don’t!\n\nNaïve river', '', ' \n ', 'unseen 日本 €', '\u200b', 'one\n\u200b\ntwo']
    batch = tokenizer.encode_batch(texts)
    assert [ids.dtype for ids in batch] == [np.int32] * len(texts)
    assert tokenizer.decode(batch[0]) == "the captain said: don't !\nnaïve river"
    assert [len(batch[i]) for i in (1, 2, 4)] == [0, 0, 0]
    assert tokenizer.decode(batch[3]) == 'unseen 日本 €'
    assert tokenizer.decode(batch[5]) == 'one\ntwo'
    assert tokenizer.decode(np.array([], np.int32)) == ''


def test_batch_equals_one_by_one_and_any_number_of_threads(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    one_thread = load_tokenizer(tmp_path, threads=1)
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
    (ids,) = tokenizer.encode_batch(['<nl> <end>'])
    assert not {tokenizer.newline_id, tokenizer.end_id} & set(ids.tolist())
    word = tokenizer.encode_batch(['river'])[0].tolist()
    ids = [tokenizer.start_id, *word, tokenizer.newline_id, *word, tokenizer.end_id, tokenizer.extract_id]
    assert tokenizer.decode(ids) == 'river\nriver'


def test_training_is_deterministic_and_quiet(tokenizer, capfd):
    again = train_sentencepiece(map(standardise, make_texts()), 320)
    assert again.fingerprint == tokenizer.fingerprint
    assert capfd.readouterr() == ('', '')


def test_training_errors_name_the_bounds():
    texts = [standardise(text) for text in make_texts(2)]
    with pytest.raises(UserError, match='vocab_size: .* Set it to') as error:
        train_sentencepiece(texts, 40000)
    largest = int(re.search(r'Set it to ([\d,]+)', str(error.value))[1].replace(',', ''))
    assert train_sentencepiece(texts, largest).vocab_size == largest
    with pytest.raises(UserError, match='cannot hold the characters'):
        train_sentencepiece(texts, 100)
    with pytest.raises(UserError, match='no text'):
        train_sentencepiece(['', ''], 300)


def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path / 'a')
    loaded = load_tokenizer(tmp_path / 'a')
    assert (loaded.fingerprint, loaded.vocab_size) == (tokenizer.fingerprint, tokenizer.vocab_size)
    with pytest.raises(UserError, match='holds no tokenizer'):
        load_tokenizer(tmp_path / 'b')
    model = bytearray((tmp_path / 'a' / 'tokenizer.model').read_bytes())
    model[len(model) // 2] ^= 1
    (tmp_path / 'a' / 'tokenizer.model').write_bytes(model)
    with pytest.raises(UserError, match='does not match the fingerprint'):
        load_tokenizer(tmp_path / 'a')
    (tmp_path / 'a' / 'tokenizer.json').write_text(json.dumps({'kind': 'other', 'fingerprint': 'x'}))
    with pytest.raises(UserError, match="unknown kind, 'other'"):
        load_tokenizer(tmp_path / 'a')
    (tmp_path / 'a' / 'tokenizer.json').write_text('{')
    with pytest.raises(UserError, match='tokenizer.json: The file is damaged'):
        load_tokenizer(tmp_path / 'a')


def test_not_a_model():
    with pytest.raises(UserError, match='not a SentencePiece model'):
        SentencePieceTokenizer(b'nothing')
