"""Running text in the parquet files of the hub."""

import re

import pytest

from corpora import held_out
from gpt1_jax import hub
from gpt1_jax.data.corpus.sources import open_corpus
from gpt1_jax.errors import UserError
from helpers import assert_well_put, write_parquet

arrow = pytest.importorskip('pyarrow')
NAME = 'someone/books'


@pytest.fixture
def texts(tmp_path):
    """A local copy, two files of train in row groups of three, and one of validation."""
    train = [f'Train {i} \u00e9\nline\n' for i in range(17)]
    train[5] = None
    write_parquet(
        tmp_path / 'data/train-00000-of-00002.parquet', {'id': list('abcdefghij'), 'text': train[:10]}, None, 3
    )
    write_parquet(tmp_path / 'data/train-00001-of-00002.parquet', {'id': list('abcdefg'), 'text': train[10:]}, None, 3)
    write_parquet(tmp_path / 'data/validation-00000-of-00001.parquet', {'id': ['a'], 'text': ['Valid']})
    write_parquet(tmp_path / 'data/test-00000-of-00001.parquet', {'id': ['a'], 'text': ['Test']})
    return train


def test_a_row_is_a_document(tmp_path, texts):
    corpus = open_corpus(f'hf:{tmp_path}')
    blocks = list(corpus.blocks())
    assert corpus.documents == 18 and corpus.size > 0
    assert [(b.document, b.text) for b in blocks] == [(i, t) for i, t in enumerate([*texts, 'Valid']) if t]
    assert [b.name for b in blocks if b.held_out] == ['validation/0']
    for first in (*range(18), 17):
        resumed = corpus.blocks(start=(first, 0))
        assert [b.text for b in resumed] == [b.text for b in blocks if b.document >= first]


def test_without_validation_documents_are_held_out(tmp_path, texts):
    (tmp_path / 'data/validation-00000-of-00001.parquet').unlink()
    assert 0 < len(held_out(open_corpus(f'hf:{tmp_path}'), 0.3)) < 16


def test_the_fingerprint_follows_the_files(tmp_path, texts):
    first = open_corpus(f'hf:{tmp_path}').fingerprint
    assert open_corpus(f'hf:{tmp_path}').fingerprint == first and re.fullmatch('[0-9a-f]{16}', first)
    write_parquet(tmp_path / 'data/validation-00000-of-00001.parquet', {'id': ['a'], 'text': ['Another']})
    assert open_corpus(f'hf:{tmp_path}').fingerprint != first


def test_of_the_hub_it_follows_the_commit(hub_server, tmp_path):
    def fingerprint(text):
        data = write_parquet(tmp_path / 'a.parquet', {'text': [text]}).read_bytes()
        hub_server.add(NAME, {'plain/train-00000-of-00001.parquet': data}, kind='dataset')
        hub.open_repository.cache_clear()
        corpus = open_corpus(f'hf:{NAME}')
        assert [block.text for block in corpus.blocks()] == [text]
        return corpus.fingerprint

    assert fingerprint('abc') == fingerprint('abc') != fingerprint('abd')
    with pytest.raises(UserError, match='data.download is False'):
        open_corpus('hf:someone/other', download=False)


def test_columns(tmp_path):
    def column(columns):
        write_parquet(tmp_path / 'train.parquet', columns)
        return next(iter(open_corpus(f'hf:{tmp_path}').blocks())).text

    assert column({'title': ['a'], 'text': ['b']}) == 'b'
    assert column({'title': ['a'], 'book_text': ['b']}) == 'b'
    assert column({'number': [1], 'story': ['b']}) == 'b'
    assert column({'text': arrow.array(['b'], arrow.large_string())}) == 'b'
    for columns in ({'title': ['a'], 'story': ['b']}, {'text': [1]}, {'text': [['a']]}):
        with pytest.raises(UserError, match='None of its columns .* is called text or book_text or content'):
            column(columns)
    dictionary = arrow.array(['b', 'c', 'b']).dictionary_encode()
    assert column({'text': dictionary}) == 'b'
    assert column({'label': dictionary, 'story': ['x', 'y', 'z']}) == 'x'
    with pytest.raises(UserError, match=r'and holds text \(its column text is of type binary\)\. Name the one'):
        column({'text': [b'b']})


@pytest.mark.parametrize('name', ['train-00001-of-00002', 'validation-00000-of-00001'])
def test_a_file_with_other_columns_is_named(tmp_path, texts, name):
    path = tmp_path / f'data/{name}.parquet'
    for columns, what in (
        ({'id': ['a'], 'story': ['b']}, 'columns are id, story'),
        ({'id': ['a'], 'text': [1]}, 'column text is of type int64'),
    ):
        write_parquet(path, columns)
        with pytest.raises(UserError) as caught:
            open_corpus(f'hf:{tmp_path}')
        assert_well_put(str(caught.value))
        assert str(caught.value).startswith(f'{path}: Its {what}, but the text of ')
    write_parquet(path, {'id': ['a'], 'text': arrow.array(['b'], arrow.large_string())})
    assert [b.text for b in open_corpus(f'hf:{tmp_path}').blocks()][-1] == ('b' if 'valid' in name else 'Valid')


def test_splits(tmp_path):
    write_parquet(tmp_path / 'books.parquet', {'text': ['a']})
    assert [b.text for b in open_corpus(f'hf:{tmp_path}').blocks()] == ['a']  # the only one, whatever its name
    write_parquet(tmp_path / 'more.parquet', {'text': ['a']})
    with pytest.raises(UserError, match='There is no train split, only books, more'):
        open_corpus(f'hf:{tmp_path}')


def test_damage(tmp_path, texts):
    path = tmp_path / 'data/train-00001-of-00002.parquet'
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    with pytest.raises(UserError, match='train-00001-of-00002.parquet: This is not a whole parquet file'):
        open_corpus(f'hf:{tmp_path}')
    path.unlink()
    with pytest.raises(UserError, match='Of the 2 files of the train split, number 1 is missing'):
        open_corpus(f'hf:{tmp_path}')
    raw = arrow.array([b'ab\xff'], arrow.binary()).view(arrow.string())
    for other in tmp_path.glob('data/*'):
        other.unlink()
    write_parquet(path.with_name('train.parquet'), {'text': raw})
    with pytest.raises(UserError, match='0 of hf:.*: The text is not UTF-8 at byte 2'):
        list(open_corpus(f'hf:{tmp_path}').blocks())
