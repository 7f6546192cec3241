"""Shards against the array that they were written from."""

import contextlib
import errno
import json
import os

import numpy as np
import pytest
from etils import epath

from gpt1_jax import files
from gpt1_jax.data.corpus import shards
from gpt1_jax.errors import UserError


def write(directory, train, valid=(), per_shard=100, vocab_size=40000, documents=((0, 30, 250), (0,))):
    shards.start_journal(directory, {'source': 'test'})
    writer = shards.ShardWriter(directory, vocab_size, per_shard)
    for split, ids, starts in zip(shards.SPLITS, (train, valid), documents, strict=True):
        ids = np.asarray(ids)
        for start, end in zip(starts, (*starts[1:], len(ids)), strict=True):
            if end > start:
                writer.start_document(split)
                writer.append(split, ids[start:end])
    writer.commit('end')
    writer.finish('fingerprint')


@pytest.fixture
def ids():
    return np.random.default_rng(0).integers(0, 40000, 1037)


def test_files(tmp_path, ids):
    write(tmp_path, ids, ids[:50])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ['index.json', *(f'train-{i:05d}.bin' for i in range(11)), 'valid-00000.bin']
    assert (tmp_path / 'train-00000.bin').read_bytes() == ids[:100].astype('<u2').tobytes()
    assert (tmp_path / 'train-00010.bin').read_bytes() == ids[1000:].astype('<u2').tobytes()
    loaded = shards.load_shards(tmp_path)
    loaded.verify()
    assert (loaded.tokenizer_fingerprint, loaded.vocab_size) == ('fingerprint', 40000)
    assert {name: (split.tokens, split.documents) for name, split in loaded.splits.items()} == {
        'train': (1037, 3),
        'valid': (50, 1),
    }
    for name in ('train', 'valid'):  # an earlier version wrote these too
        np.save(tmp_path / f'{name}-starts.npy', np.array([0], '<i8'))
    shards.load_shards(tmp_path).verify()


@pytest.mark.parametrize('per_shard', [7, 100, 5000])
@pytest.mark.parametrize('vocab_size', [40000, 70000])
def test_read(tmp_path, ids, per_shard, vocab_size):
    write(tmp_path, ids, per_shard=per_shard, vocab_size=vocab_size)
    split = shards.load_shards(tmp_path).splits['train']
    assert set(shards.load_shards(tmp_path).splits) == {'train'}
    for length in (1, 2, 33, 513):
        starts = np.random.default_rng(length).integers(0, len(ids) - length + 1, 40)
        starts[:3] = 0, len(ids) - length, len(ids) - length
        windows = split.read(starts, length)
        assert windows.dtype == (np.uint16 if vocab_size == 40000 else np.uint32)
        np.testing.assert_array_equal(windows, np.stack([ids[s : s + length] for s in starts]))
    assert split.read(np.array([], np.int64), 5).shape == (0, 5)
    for start in (-1, len(ids) - 4):
        with pytest.raises(IndexError):
            split.read(np.array([0, start]), 5)


def test_an_error_of_the_disk_is_waited_for_then_named(tmp_path, ids, monkeypatch):
    write(tmp_path, ids)
    split, pread, faults = shards.load_shards(tmp_path).splits['train'], os.pread, []
    monkeypatch.setattr(files.time, 'sleep', lambda seconds: None)

    def with_faults(*arguments):
        if faults and faults.pop():
            raise OSError(errno.EIO, 'Input/output error')
        return pread(*arguments)

    monkeypatch.setattr(os, 'pread', with_faults)
    faults[:] = [False, True, True, False]  # from the end
    np.testing.assert_array_equal(split.read([95, 5], 10), [ids[95:105], ids[5:15]])
    assert not faults
    faults[:] = [True] * 9
    with pytest.raises(OSError) as caught:
        split.read([5], 10)
    assert caught.value.filename == str(tmp_path / 'train-00000.bin')
    faults.clear()
    for size in (21, 20):  # half a token too
        os.truncate(tmp_path / 'train-00000.bin', size)
        with pytest.raises(UserError, match='train-00000.bin: The file has become shorter since the run began'):
            split.read([5], 10)


def test_a_file_that_another_thread_closes_is_read_to_the_end(tmp_path, ids, monkeypatch):
    write(tmp_path, ids)
    split, pread = shards.load_shards(tmp_path).splits['train'], os.pread

    def after_the_other_thread(*arguments):
        split._open.cache_clear()
        return pread(*arguments)

    monkeypatch.setattr(os, 'pread', after_the_other_thread)
    np.testing.assert_array_equal(split.read(np.arange(0, 250, 50), 50).reshape(-1), ids[:250])


def test_the_files_of_a_remote_store_are_read_whole_and_once(tmp_path, ids, monkeypatch):
    write(tmp_path, ids)
    split, kind, read = shards.load_shards(tmp_path).splits['train'], type(epath.Path(tmp_path)), []
    whole = kind.read_bytes
    monkeypatch.setattr(shards, 'is_local', lambda path: False)
    monkeypatch.setattr(kind, 'read_bytes', lambda path: [read.append(path.name), whole(path)][1])
    for _ in range(2):
        np.testing.assert_array_equal(split.read([250, 195, 203], 10), [ids[i : i + 10] for i in (250, 195, 203)])
    assert read == ['train-00002.bin', 'train-00001.bin']


def test_the_fingerprint_tells_the_content_and_not_the_place(tmp_path, ids):
    for name, of, per_shard in (('a', ids, 100), ('b', ids, 100), ('c', ids[::-1], 100), ('d', ids, 200)):
        write(tmp_path / name, of, per_shard=per_shard)
    a, b, c, d = (shards.shards_fingerprint(f'shards:{tmp_path}/{name}') for name in 'abcd')
    assert a == b and len({a, c, d}) == 3 and len(a) == 16
    (tmp_path / 'd' / 'index.json').write_text('[]')
    for uri in (f'text:{tmp_path}/a', f'shards:{tmp_path}/none', f'shards:{tmp_path}/d', ''):
        assert shards.shards_fingerprint(uri) == ''


def test_writing_goes_on_from_the_last_commit(tmp_path, ids):
    """Every interruption point gives the same bytes as none."""
    write(tmp_path / 'whole', ids, ids[:150], documents=((0, 30, 250), (0, 140)))
    expected = {path.name: path.read_bytes() for path in (tmp_path / 'whole').iterdir()}
    # One list of operations: the splits take turns.
    operations = []
    for i in range(0, len(ids), 37):
        operations.append(('train', ids[i : i + 37], [s for s in (0, 30, 250) if i <= s < i + 37], i))
        if i < 150:
            part = ids[i : min(150, i + 37)]
            operations.append(('valid', part, [s for s in (0, 140) if i <= s < i + 37], i))

    def apply(writer, operation):
        split, part, starts, offset = operation
        cuts = sorted({0, len(part), *(s - offset for s in starts)})
        for a, b in zip(cuts, cuts[1:]):
            if a + offset in starts:
                writer.start_document(split)
            writer.append(split, part[a:b])

    for died_at in range(0, len(operations), 3):
        directory = tmp_path / f'died_at_{died_at}'
        shards.start_journal(str(directory), {'source': 'test'})
        writer = shards.ShardWriter(directory, 40000, 100)
        for i, operation in enumerate(operations[:died_at]):
            apply(writer, operation)
            if i % 4 == 1:
                writer.commit(i + 1)
        writer = shards.ShardWriter(directory, 40000, 100)  # the first one is dead
        for operation in operations[writer.position or 0 :]:
            apply(writer, operation)
        with pytest.raises(UserError, match='no index.json'):
            shards.load_shards(directory)
        writer.commit(None)
        writer.finish('fingerprint')
        assert {path.name: path.read_bytes() for path in directory.iterdir()} == expected


def test_tokens_of_a_journal_that_are_not_those_of_the_commit_are_damaged(tmp_path, ids):
    shards.start_journal(tmp_path, {})
    writer = shards.ShardWriter(tmp_path, 40000, 100)
    writer.append('train', ids[:30])
    writer.commit('end')
    pending = tmp_path / 'journal' / 'train-pending-1.bin'
    whole = pending.read_bytes()
    assert shards.ShardWriter(tmp_path, 40000, 100).tokens == {'train': 30, 'valid': 0}
    for data in (whole[:-2], whole[2:] + whole[:2], None):
        pending.unlink() if data is None else pending.write_bytes(data)
        with pytest.raises(UserError, match='train-pending-1.bin: The file is damaged. Delete .* prepare it again'):
            shards.ShardWriter(tmp_path, 40000, 100)
    journal = shards.read_journal(tmp_path)
    del journal['pending']  # an earlier version wrote no checksums
    shards.write_journal(tmp_path, journal)
    for data, is_whole in ((whole, True), (whole[:-2], False)):
        pending.write_bytes(data)
        with contextlib.nullcontext() if is_whole else pytest.raises(UserError, match='The file is damaged'):
            shards.ShardWriter(tmp_path, 40000, 100)


def test_what_cannot_be_read_is_neither_damaged_nor_absent(tmp_path, ids, monkeypatch):
    write(tmp_path / 'finished', ids)
    (tmp_path / 'finished' / 'tokenizer').mkdir()
    shards.start_journal(tmp_path / 'begun', {})
    writer = shards.ShardWriter(tmp_path / 'begun', 40000, 100)
    writer.append('train', ids[:30])
    writer.commit('end')
    stat = os.stat

    def refuse(path, **options):
        if str(path).endswith(('tokenizer', 'pending-1.bin')):
            raise PermissionError(errno.EACCES, 'Permission denied', str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, 'stat', refuse)
    with pytest.raises(PermissionError):
        shards.ShardWriter(tmp_path / 'begun', 40000, 100)
    with pytest.raises(PermissionError):
        shards.load_shards(tmp_path / 'finished')


def test_damage_is_found(tmp_path, ids):
    write(tmp_path, ids)
    loaded = shards.load_shards(tmp_path)
    path = tmp_path / 'train-00003.bin'
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    shards.load_shards(tmp_path)
    with pytest.raises(UserError, match='train-00003.bin: The file is damaged'):
        loaded.verify()
    for other, size in ((content[:-2], 198), (content + content[:2], 202)):
        path.write_bytes(other)
        with pytest.raises(UserError, match=f'train-00003.bin: The file has {size} bytes'):
            shards.load_shards(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match='train-00003.bin: The file is missing'):
        shards.load_shards(tmp_path)


def test_a_token_beyond_the_vocabulary_is_found_anywhere_in_a_large_file(tmp_path):
    for place in (0, -1):
        ids = np.zeros(2**21 + 1, int)  # more than is read at once
        ids[place] = 9
        write(tmp_path / str(place), ids, per_shard=len(ids), vocab_size=9, documents=((0,), (0,)))
        with pytest.raises(UserError, match='train-00000.bin: The file has the token 9, but'):
            shards.load_shards(tmp_path / str(place)).verify()


def test_no_index_another_version_damaged_index(tmp_path, ids):
    with pytest.raises(UserError, match='no index.json'):
        shards.load_shards(tmp_path / 'none')
    write(tmp_path, ids)
    index = json.loads((tmp_path / 'index.json').read_text())
    (tmp_path / 'index.json').write_text(json.dumps(index | {'format_version': 9}))
    with pytest.raises(UserError, match='format version 9'):
        shards.load_shards(tmp_path)
    (tmp_path / 'index.json').write_text('{"format_version": 1')
    with pytest.raises(UserError, match='damaged'):
        shards.load_shards(tmp_path)
