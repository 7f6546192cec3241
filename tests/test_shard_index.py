"""The index of a shard folder against its files and its tokenizer, and the journal against its checksum."""

import json

import numpy as np
import pytest

from gpt1_jax.data.corpus import shard_index, shards
from gpt1_jax.data.tokenizers.sentence_piece import train_sentencepiece
from gpt1_jax.errors import UserError
from helpers import assert_well_put


@pytest.fixture
def folder(tmp_path, sentencepiece):
    sentencepiece.save(tmp_path / 'shards' / 'tokenizer')
    shards.start_journal(tmp_path / 'shards', {'source': 'text:/books'})
    writer = shards.ShardWriter(tmp_path / 'shards', sentencepiece.vocab_size, 100)
    for split in shards.SPLITS:
        writer.start_document(split)
        writer.append(split, np.arange(130) % sentencepiece.vocab_size)
    writer.finish(sentencepiece.fingerprint)
    return tmp_path / 'shards'


def change(folder, keys, value):
    """Sets a value of index.json."""
    index = json.loads((folder / 'index.json').read_text())
    index.pop('sha256', None)  # as an earlier version wrote it
    *parts, last = keys
    part = index
    for key in parts:
        part = part[key]
    part[last] = value
    (folder / 'index.json').write_text(json.dumps(index))


TRAIN = ('splits', 'train')


def test_ids_have_two_bytes_as_long_as_they_fit():
    """The highest id is one less than the size of the vocabulary."""
    assert [shard_index.dtype_of(size).str for size in (1, 2**16, 2**16 + 1)] == ['<u2', '<u2', '<u4']


@pytest.mark.parametrize(
    ('keys', 'value', 'words'),
    [
        (('vocab_size',), 100, 'This tokenizer has fingerprint'),  # the perplexity would be of 100 tokens
        (('vocab_size',), 70_000, '<u2 is not'),
        (('vocab_size',), 0, 'is not the type of 0 ids'),
        (('vocab_size',), '290', "vocab_size is '290'"),
        (('vocab_size',), 10**30, 'vocab_size is'),
        (('vocab_size',), True, "vocab_size is 'True'"),
        (('dtype',), '<u4', 'is not the type of 290 ids'),
        (('dtype',), 'O', 'is not the type of 290 ids'),
        (('tokenizer_fingerprint',), 'a' * 16, 'says aaaaaaaaaaaaaaaa and 290'),
        ((*TRAIN, 'tokens'), 130 * 10**6, 'the files of train do not have 130000000 tokens'),
        ((*TRAIN, 'tokens'), 129, 'the files of train do not have 129 tokens'),
        ((*TRAIN, 'documents'), 131, '131 documents in 130 tokens'),
        ((*TRAIN, 'documents'), -1, '-1 documents'),
        ((*TRAIN, 'shards', 1, 'tokens'), -1, 'with -1 tokens is not file 1 of train'),
        ((*TRAIN, 'shards', 1, 'file'), '../train-00001.bin', "'../train-00001.bin' with 30 tokens is not file 1"),
        ((*TRAIN, 'shards', 1, 'file'), 'train-00000.bin', "'train-00000.bin' with 30 tokens is not file 1 of train"),
        ((*TRAIN, 'shards'), [], 'the files of train do not have 130 tokens'),
        ((*TRAIN, 'shards'), {}, 'splits.train.shards is not a list'),
        (('splits', 'test'), {'tokens': 0, 'documents': 0, 'shards': []}, 'the splits are train, valid, test'),
        (('splits',), {}, 'the splits are none'),
        (('preparation',), [], 'preparation is'),
        (('characters',), 'many', "characters is 'many'"),
    ],
)
def test_an_index_is_not_believed(folder, keys, value, words):
    shards.load_shards(folder)
    change(folder, keys, value)
    with pytest.raises(UserError) as caught:
        shards.load_shards(folder)
    assert words.replace('<u2 is not', '<u2 is not') in str(caught.value)
    assert_well_put(str(caught.value))


def test_the_tokenizer_of_another_preparation_is_noticed(folder):
    train_sentencepiece(['another text of other words'] * 50, 290).save(folder / 'tokenizer')
    with pytest.raises(UserError, match='tokenizer: This tokenizer has fingerprint .* and 290 tokens, but index.json'):
        shards.load_shards(folder)


def test_a_token_beyond_the_vocabulary_never_reaches_the_model(folder):
    """Also where neither sizes nor checksums, nor a tokenizer, could tell."""
    (folder / 'tokenizer').rename(folder.parent / 'away')
    shards.load_shards(folder).verify()
    change(folder, ('vocab_size',), 130)
    shards.load_shards(folder).verify()
    change(folder, ('vocab_size',), 129)
    with pytest.raises(UserError, match='train-00001.bin: The file has the token 129, but index.json says .* only 129'):
        shards.load_shards(folder).verify()


def begun(directory):
    shards.start_journal(directory, {'source': 'text:/books'})
    writer = shards.ShardWriter(directory, 40, 100)
    writer.start_document('train')
    writer.append('train', np.arange(130) % 40)
    writer.commit({'start': [0, 7]})
    return directory / 'journal'


def test_a_changed_journal_is_refused_and_an_earlier_version_s_is_read(tmp_path):
    path = begun(tmp_path) / 'journal.json'
    journal = json.loads(path.read_text())
    assert shards.ShardWriter(tmp_path, 40, 100).position == {'start': [0, 7]}
    path.write_text(json.dumps(journal | {'position': {'start': [0, 8]}}))  # a letter would be left out
    with pytest.raises(UserError, match='journal.json: The file is damaged .it has another checksum.. Delete'):
        shards.ShardWriter(tmp_path, 40, 100)
    del journal['sha256']
    for changes in ({'position': {'start': [0, 8]}}, {'pending': 'x'}, {'pending': {'train': 3}}):
        path.write_text(json.dumps(journal | changes))
        with pytest.raises(UserError, match='journal.json: The file is damaged'):
            shards.ShardWriter(tmp_path, 40, 100)
    del journal['pending']
    path.write_text(json.dumps(journal))
    assert shards.ShardWriter(tmp_path, 40, 100).tokens == {'train': 130, 'valid': 0}
    path.write_text(json.dumps(journal | {'tokens': {'train': 10**9, 'valid': 0}}))
    with pytest.raises(UserError, match='train-pending-1.bin: The file is damaged'):
        shards.ShardWriter(tmp_path, 40, 100)
    path.write_text('{"preparation": {}}')
    with pytest.raises(UserError, match="journal.json: The file is damaged .it lacks 'generation'."):
        shard_index.read_journal(tmp_path)


@pytest.mark.parametrize('damage', [lambda data: data[:-1], lambda data: b'\x01' + data[1:], lambda data: b''])
def test_changed_tokens_of_a_journal_are_refused(tmp_path, damage):
    path = begun(tmp_path) / 'train-pending-1.bin'
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match='train-pending-1.bin: The file is damaged'):
        shards.ShardWriter(tmp_path, 40, 100)


def test_what_only_the_checksum_of_an_index_tells(folder):
    path = folder / 'index.json'
    index = json.loads(path.read_text())
    index['splits']['train']['documents'] += 1
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match='another checksum'):
        shards.load_shards(folder)
