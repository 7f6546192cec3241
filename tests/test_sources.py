"""Corpora against the files that they read."""

import pathlib
import subprocess
import sys

import pytest

from corpora import held_out
from gpt1_jax.data.corpus import sources
from gpt1_jax.errors import UserError


def test_errors(tmp_path):
    with pytest.raises(UserError, match="data.source: 'books' is not running text"):
        sources.open_corpus('books')
    (tmp_path / 'empty.txt').write_text('')
    with pytest.raises(UserError, match='holds no text'):
        sources.open_corpus(f'text:{tmp_path}')


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
    blocks = list(corpus.blocks())
    assert [b.text for b in blocks] == texts['train'] + texts['validation']
    assert [b.held_out for b in blocks] == [False] * 25 + [True] * 3
    assert corpus.documents == 28 and corpus.size > 0
    for i in (0, 10, 24, 25, 27):
        assert [b[:-1] for b in corpus.blocks(start=(i, blocks[i].end))] == [b[:-1] for b in blocks[i + 1 :]]
    assert 0 < len(held_out(sources.open_corpus('tfds:trainonly'), 0.3)) < 25

    with pytest.raises(UserError, match='no feature book_text or text, only words'):
        sources.open_corpus('tfds:notext')
    with pytest.raises(UserError, match='tfds build pg19.*TFDS_DATA_DIR'):
        sources.open_corpus('tfds:pg19', download=False)  # known, not prepared
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
