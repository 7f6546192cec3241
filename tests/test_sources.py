"""Corpora against the files that they read."""

import gzip
import io
import os
import pathlib
import random
import subprocess
import sys

import pytest

from gpt1_jax.data.corpus import sources
from gpt1_jax.errors import UserError


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(sources, 'BLOCK_BYTES', 1000)


def make_text(seed, lines=60):
    rng = random.Random(seed)
    words = ['word', 'héllo', '日本', 'x' * 30, 'ok']
    return ''.join(' '.join(rng.choices(words, k=rng.randint(0, 15))) + '\n' for _ in range(lines))


def make_folder(folder, count=30):
    texts = {}
    for i in range(count):
        name = f'{"ab"[i % 2]}/book{i:02d}.txt' + ('.gz' if i % 3 == 0 else '')
        texts[name] = make_text(i)
        path = folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        data = texts[name].encode()
        path.write_bytes(gzip.compress(data) if name.endswith('.gz') else data)
    (folder / 'notes.md').write_text('not a text')
    return dict(sorted(texts.items()))


def joined(blocks):
    texts = {}
    for block in blocks:
        texts[block.name] = texts.get(block.name, '') + block.text
    return texts


def test_folder(tmp_path, small_blocks):
    texts = make_folder(tmp_path)
    corpus = sources.open_corpus(f'text:{tmp_path}')
    blocks = list(corpus.blocks())
    assert list(joined(blocks).items()) == list(texts.items())
    assert corpus.documents == 30 and [b.document for b in blocks] == sorted(b.document for b in blocks)
    assert all(block.text.endswith('\n') and len(block.text.encode()) < 2000 for block in blocks)
    files = [p for p in tmp_path.rglob('*.txt*')]
    assert corpus.size == sum(p.stat().st_size for p in files) == sum(block.size for block in blocks)


@pytest.mark.parametrize('pattern, count', [('a/*.txt', 10), ('*/book0?.txt*', 10), ('b/book01.txt', 1)])
def test_globs_and_files(tmp_path, pattern, count):
    texts = make_folder(tmp_path)
    corpus = sources.open_corpus(f'text:{tmp_path}/{pattern}')
    assert corpus.documents == count
    assert set(joined(corpus.blocks()).values()) <= set(texts.values())


def test_reading_goes_on_from_any_block(tmp_path, small_blocks):
    make_folder(tmp_path, 7)
    corpus = sources.open_corpus(f'text:{tmp_path}')
    blocks = list(corpus.blocks())
    for i, block in enumerate(blocks):
        rest = corpus.blocks(start=(block.document, block.end))
        assert [b[:-1] for b in rest] == [b[:-1] for b in blocks[i + 1 :]]


def test_lines_longer_than_a_block(tmp_path, small_blocks):
    """Cut at spaces, and where there are none, between characters."""
    for name, text in (('spaces.txt', 'some words ' * 2000), ('none.txt', 'aé日😀' * 2000)):
        (tmp_path / name).write_text(text)
        corpus = sources.open_corpus(f'text:{tmp_path / name}')
        blocks = list(corpus.blocks(held_out=0))
        assert ''.join(b.text for b in blocks) == text
        assert max(len(b.text.encode()) for b in blocks) <= 2000 and len(blocks) > 5
        for i, block in enumerate(blocks):
            assert [b.text for b in corpus.blocks(0, (0, block.end))] == [b.text for b in blocks[i + 1 :]]
    corpus = sources.open_corpus(f'text:{tmp_path}/spaces.txt')
    assert all(block.text.endswith(' ') for block in corpus.blocks(0))


def test_held_out_documents(tmp_path):
    make_folder(tmp_path, 30)

    def held(folder, fraction):
        return {b.name for b in sources.open_corpus(f'text:{folder}').blocks(fraction) if b.held_out}

    assert held(tmp_path, 0) == set()
    assert len(held(tmp_path, 0.001)) == 1  # at least one
    some = held(tmp_path, 0.3)
    assert 2 <= len(some) <= 18
    for path in list(tmp_path.rglob('book*'))[::2]:
        path.unlink()
    assert held(tmp_path, 0.3) == {name for name in some if (tmp_path / name).exists()}  # stable
    assert 1 <= len(held(tmp_path, 0.9999)) < 15  # never all


@pytest.mark.parametrize('suffix', ['.txt', '.txt.gz'])
def test_one_document_holds_out_its_end(tmp_path, suffix, small_blocks):
    text = make_text(0, 500)
    data = text.encode()
    (tmp_path / f'one{suffix}').write_bytes(gzip.compress(data) if suffix == '.txt.gz' else data)
    corpus = sources.open_corpus(f'text:{tmp_path}')
    blocks = list(corpus.blocks(0.1))
    train = ''.join(b.text for b in blocks if not b.held_out)
    assert train + ''.join(b.text for b in blocks if b.held_out) == text and train.endswith('\n')
    assert 0.85 * len(data) < len(train.encode()) < 0.95 * len(data)
    assert not any(b.held_out for b in corpus.blocks(0))
    for i, block in enumerate(blocks):
        assert [b[:-1] for b in corpus.blocks(0.1, (0, block.end))] == [b[:-1] for b in blocks[i + 1 :]]


def test_errors(tmp_path):
    def read(uri):
        return list(sources.open_corpus(uri).blocks())

    with pytest.raises(UserError, match="data.source: 'books' is no running text"):
        read('books')
    for missing in ('', str(tmp_path / 'none'), str(tmp_path), f'{tmp_path}/*.txt', '/no/such/*.txt'):
        with pytest.raises(UserError, match='There is no text'):
            read(f'text:{missing}')
    with pytest.raises(UserError, match=r"'\*\*' is not supported"):
        read(f'text:{tmp_path}/**/a.txt')
    (tmp_path / 'empty.txt').write_text('')
    with pytest.raises(UserError, match='holds no text'):
        read(f'text:{tmp_path}')
    (tmp_path / 'latin.txt').write_bytes(b'line\n' * 300000 + 'caf\u00e9\n'.encode('latin-1'))
    with pytest.raises(UserError, match=r'latin\.txt of text:.*: The text is not UTF-8 at byte 1,500,003. .*iconv'):
        read(f'text:{tmp_path}')
    (tmp_path / 'latin.txt').write_text('caf\u00e9', encoding='utf-16')
    with pytest.raises(UserError, match='iconv -f UTF-16'):
        read(f'text:{tmp_path}')
    (tmp_path / 'latin.txt').unlink()
    whole = gzip.compress(os.urandom(5000))
    for bad in (whole[:3000], b'not gzip', whole[:100] + b'\0\0\0\0' + whole[104:]):
        (tmp_path / 'bad.txt.gz').write_bytes(bad)
        with pytest.raises(UserError, match=r'bad\.txt\.gz of text:.* (damaged|not UTF-8)'):
            read(f'text:{tmp_path}')


def test_a_link_that_leads_nowhere(tmp_path):
    (tmp_path / 'a.txt').write_text('text')
    (tmp_path / 'b.txt').symlink_to(tmp_path / 'gone')
    with pytest.raises(UserError, match=r'b\.txt: The file cannot be read'):
        sources.open_corpus(f'text:{tmp_path}')


@pytest.mark.parametrize('suffix', ['', '.gz'])
def test_files_of_a_remote_store_read_like_local_ones(tmp_path, monkeypatch, small_blocks, suffix):
    """What epath opens on gs:// has neither readline(n) nor a seek that returns the place."""
    gfile = pytest.importorskip('tensorflow').io.gfile.GFile
    data = make_text(0, 200).encode()
    (tmp_path / f'one.txt{suffix}').write_bytes(gzip.compress(data) if suffix else data)
    corpus = sources.open_corpus(f'text:{tmp_path}')
    local = list(corpus.blocks(0.2))
    monkeypatch.setattr(
        sources, '_open_binary', lambda path: io.BufferedReader(sources._RemoteFile(gfile(os.fspath(path), 'rb')))
    )
    remote = list(corpus.blocks(0.2))
    assert [block._replace(size=0) for block in remote] == [block._replace(size=0) for block in local]
    assert sum(block.size for block in remote) == sum(block.size for block in local)


def test_imports_neither_jax_nor_tensorflow():
    code = (
        'import sys, gpt1_jax.data.corpus.windows, gpt1_jax.data.corpus.preparation; '
        'print([m for m in ("jax", "tensorflow", "tensorflow_datasets") if m in sys.modules])'
    )
    root = pathlib.Path(__file__).parents[1]
    command = [sys.executable, '-c', code]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == '[]'


def test_tfds(tmp_path, monkeypatch):
    """A set that is written with TFDS itself, under a name that it knows and under one that it does not."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    texts = {'train': [f'Train {i} é\nline\n' for i in range(25)], 'validation': [f'Valid {i}' for i in range(3)]}
    features = tfds.features.FeaturesDict({'text': tfds.features.Text(), 'id': tfds.features.Text()})
    for name, splits in (('novels', texts), ('trainonly', {'train': texts['train']})):
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version='1.0.0',
            data_dir=tmp_path,
            features=features,
            disable_shuffling=True,
            split_datasets={
                split: tf.data.Dataset.from_tensor_slices({'text': rows, 'id': rows}) for split, rows in splits.items()
            },
        )
    tfds.dataset_builders.store_as_tfds_dataset(
        name='notext',
        version='1.0.0',
        data_dir=tmp_path,
        disable_shuffling=True,
        features=tfds.features.FeaturesDict({'words': tfds.features.Text()}),
        split_datasets={'train': tf.data.Dataset.from_tensor_slices({'words': ['a']})},
    )
    monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', str(tmp_path))

    corpus = sources.open_corpus('tfds:novels')
    blocks = list(corpus.blocks(0.5))
    assert [b.text for b in blocks] == texts['train'] + texts['validation']
    assert [b.held_out for b in blocks] == [False] * 25 + [True] * 3
    assert corpus.documents == 28 and corpus.size > 0
    for i in (0, 10, 24, 25, 27):
        assert [b[:-1] for b in corpus.blocks(start=(i, blocks[i].end))] == [b[:-1] for b in blocks[i + 1 :]]
    held = [b.held_out for b in sources.open_corpus('tfds:trainonly').blocks(0.3)]
    assert 0 < sum(held) < 25

    with pytest.raises(UserError, match='no feature book_text or text, only words'):
        sources.open_corpus('tfds:notext')
    with pytest.raises(UserError, match='tfds build pg19.*TFDS_DATA_DIR'):
        sources.open_corpus('tfds:pg19')  # known, not prepared
    with pytest.raises(UserError, match='tfds:nosuchset: TensorFlow Datasets has no such set'):
        sources.open_corpus('tfds:nosuchset')
    tfds.dataset_builders.store_as_tfds_dataset(
        name='arrays',
        version='1.0.0',
        data_dir=tmp_path,
        features=features,
        file_format='array_record',
        split_datasets={'train': [(i, {'text': 'a', 'id': 'b'}) for i in range(2)]},
    )
    with pytest.raises(UserError, match='--file_format=tfrecord'):
        sources.open_corpus('tfds:arrays')
    (shard,) = tmp_path.glob('trainonly/1.0.0/*train*.tfrecord*')
    shard.write_bytes(shard.read_bytes()[:-30])
    with pytest.raises(UserError, match='tfds:trainonly: The files .* are damaged'):
        list(sources.open_corpus('tfds:trainonly').blocks())
