"""Documents as blocks, against the files that they are cut from."""

import gzip
import os

import pytest

from corpora import held_out, joined, make_folder, make_text
from gpt1_jax.data.corpus import documents, sources
from gpt1_jax.errors import UserError


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(documents, 'BLOCK_BYTES', 1000)


def test_blocks_are_the_texts(tmp_path, small_blocks):
    texts = make_folder(tmp_path)
    corpus = sources.open_corpus(f'text:{tmp_path}')
    blocks = list(corpus.blocks())
    assert list(joined(blocks).items()) == list(texts.items())
    assert corpus.documents == 30 and [b.document for b in blocks] == sorted(b.document for b in blocks)
    assert all(block.text.endswith('\n') and len(block.text.encode()) < 2000 for block in blocks)
    files = [p for p in tmp_path.rglob('*.txt*')]
    assert corpus.size == sum(p.stat().st_size for p in files) == sum(block.size for block in blocks)


@pytest.mark.parametrize('options', [{}, {'strip_gutenberg': True}, {'unwrap': True}])
def test_reading_goes_on_from_any_block(tmp_path, small_blocks, options):
    make_folder(tmp_path, 7)
    corpus = sources.open_corpus(f'text:{tmp_path}', **options)
    blocks = list(corpus.blocks())
    assert len(blocks) > 14
    for i, block in enumerate(blocks):
        rest = corpus.blocks(start=(block.document, block.end))
        assert [b[:-1] for b in rest] == [b[:-1] for b in blocks[i + 1 :]]


def test_lines_longer_than_a_block(tmp_path, small_blocks):
    """Cut at spaces, and where there are none, between characters: 11 bytes do not divide a block."""
    for name, text in (('spaces.txt', 'some words ' * 2000), ('none.txt', 'aé日😀b' * 2000)):
        (tmp_path / name).write_text(text)
        corpus = sources.open_corpus(f'text:{tmp_path / name}')
        blocks = list(corpus.blocks())
        assert ''.join(b.text for b in blocks) == text
        assert max(len(b.text.encode()) for b in blocks) <= 2000 and len(blocks) > 5
        for i, block in enumerate(blocks):
            assert [b.text for b in corpus.blocks(start=(0, block.end))] == [b.text for b in blocks[i + 1 :]]
    corpus = sources.open_corpus(f'text:{tmp_path}/spaces.txt')
    assert all(block.text.endswith(' ') for block in corpus.blocks())


def test_whole_documents_are_held_out(tmp_path, small_blocks):
    make_folder(tmp_path, 6)
    corpus = sources.open_corpus(f'text:{tmp_path}')
    blocks = list(corpus.blocks({1: 0, 4: 0}))
    assert {block.document for block in blocks if block.held_out} == {1, 4}
    assert {block.document for block in blocks if not block.held_out} == {0, 2, 3, 5}
    assert not any(block.held_out for block in corpus.blocks())


@pytest.mark.parametrize('suffix', ['.txt', '.txt.gz'])
def test_one_document_holds_out_its_end(tmp_path, suffix, small_blocks):
    text = make_text(0, 500)
    data = text.encode()
    (tmp_path / f'one{suffix}').write_bytes(gzip.compress(data) if suffix == '.txt.gz' else data)
    (tmp_path / 'empty.txt').write_text('\n \n')  # without text it is on no side
    corpus = sources.open_corpus(f'text:{tmp_path}')
    held = held_out(corpus, 0.1)
    assert held == {1: int(len(data) * 0.9)}
    blocks = [block for block in corpus.blocks(held) if block.document == 1]
    train = ''.join(b.text for b in blocks if not b.held_out)
    assert train + ''.join(b.text for b in blocks if b.held_out) == text and train.endswith('\n')
    assert 0.85 * len(data) < len(train.encode()) < 0.95 * len(data)
    for i, block in enumerate(blocks):
        assert [b[:-1] for b in corpus.blocks(held, (1, block.end))] == [b[:-1] for b in blocks[i + 1 :]]


@pytest.mark.parametrize('fraction', [0.005, 0.01, 0.05])
def test_of_a_text_without_lines_no_more_and_no_less_is_held_out(tmp_path, fraction):
    text = 'some words ' * 200_000
    (tmp_path / 'one.txt').write_text(text)
    corpus = sources.open_corpus(f'text:{tmp_path}')
    blocks = list(corpus.blocks(held_out(corpus, fraction)))
    end = ''.join(block.text for block in blocks if block.held_out)
    assert ''.join(block.text for block in blocks) == text and end.startswith(('some', 'words'))
    assert len(end) == pytest.approx(fraction * len(text), abs=2**12)


def test_errors(tmp_path):
    def refused(match):
        with pytest.raises(UserError, match=match) as caught:
            list(sources.open_corpus(f'text:{tmp_path}').blocks())
        return str(caught.value)

    path = tmp_path / 'latin 1.txt'
    path.write_bytes(b'line\n' * 300000 + 'caf\u00e9\n'.encode('latin-1'))
    message = refused('latin 1.txt of text:.*: The text is not UTF-8 at byte 1,500,003.')
    assert 'but probably WINDOWS-1252. Convert it with' in message
    moves = f"mv '{path}' '{path}.bak' && mv '{path}.utf8' '{path}'"
    assert f"iconv -f WINDOWS-1252 -t UTF-8 '{path}' > '{path}.utf8' && {moves}" in message
    path.write_text('caf\u00e9', encoding='utf-16')
    refused('iconv -f UTF-16 ')
    path.write_bytes('The café is closed.\n'.encode('utf-16-le'))
    refused('latin 1.txt of text:.*iconv -f UTF-16LE ')
    path.write_bytes('The cafe is closed.\n'.encode('utf-16-be'))  # valid UTF-8
    refused('latin 1.txt of text:.*iconv -f UTF-16BE ')
    path.write_bytes('Все счастливые семьи похожи друг на друга.\n'.encode('utf-16-le'))  # as well
    refused('latin 1.txt of text:.*iconv -f UTF-16LE ')
    path.write_bytes(b'%PDF-1.7\n\xe2\xe3\xcf\xd3')
    refused('latin 1.txt of text:.*: The file is not text but a PDF file')
    path.write_text('NUL\0 is a character')
    assert len(list(sources.open_corpus(f'text:{tmp_path}').blocks())) == 1
    path.unlink()
    whole = gzip.compress(os.urandom(5000))
    for bad in (whole[:3000], whole[:100] + b'\0\0\0\0' + whole[104:]):
        (tmp_path / 'bad.txt.gz').write_bytes(bad)
        refused(r'bad\.txt\.gz of text:.* (damaged|not UTF-8|no text)')


@pytest.mark.parametrize('suffix', ['.txt', '.txt.gz'])
def test_the_place_of_an_error_is_that_in_the_file(tmp_path, suffix):
    header = b'Header.\r\n' * 100 + b'*** START OF THE PROJECT GUTENBERG EBOOK Q ***\r\n'
    data = header + b'A line of a paragraph.\r\n' * 100_000 + b'caf\xe9 here.\n' + b'the end\n' * 9
    (tmp_path / f'a{suffix}').write_bytes(gzip.compress(data) if suffix.endswith('gz') else data)
    for options in ({}, {'strip_gutenberg': True}, {'strip_gutenberg': True, 'unwrap': True}):
        with pytest.raises(UserError, match=f'is not UTF-8 at byte {len(header) + 24 * 100_000 + 3:,}.*WINDOWS-1252'):
            list(sources.open_corpus(f'text:{tmp_path}', **options).blocks())


def test_bad_documents_need_not_end_the_stream(tmp_path):
    make_folder(tmp_path, 5)
    names = [block.name for block in sources.open_corpus(f'text:{tmp_path}').blocks()]
    (tmp_path / 'a' / 'bad.txt').write_bytes(b'caf\xe9')
    (tmp_path / 'b' / 'bad.txt').write_bytes(b'caf\xe9')
    found = documents.Findings()
    assert [block.name for block in sources.open_corpus(f'text:{tmp_path}').blocks(found=found)] == names
    assert [problem.partition(' ')[0] for problem in found.problems] == ['a/bad.txt', 'b/bad.txt']


class Counting:
    """A pool that counts what is in flight."""

    def __init__(self):
        self.submitted = self.taken = self.most = 0

    def submit(self, function, texts):
        self.submitted += 1
        self.most = max(self.most, self.submitted - self.taken)
        counter = self

        class Future:
            def result(self):
                counter.taken += 1
                return function(texts)

        return Future()


def test_map_blocks_keeps_the_order_and_little_in_memory(monkeypatch):
    monkeypatch.setattr(documents, '_GROUP', 10)
    blocks = [documents.Block(d, str(d), False, 'x' * (d % 7), 0, 1, 1) for d in range(50)]
    pool = Counting()
    groups = list(documents.map_blocks(pool, lambda texts: [len(t) for t in texts], iter(blocks), 3))
    assert [block for group in groups for block, _ in group] == blocks
    assert all(size == len(block.text) for group in groups for block, size in group)
    assert all(sum(size for _, size in group) >= 10 for group in groups[:-1])
    assert pool.most == 3 and pool.submitted == len(groups) > 5
    assert list(documents.map_blocks(pool, list, iter(()), 3)) == []


@pytest.mark.parametrize('in_flight', [1, 9])
def test_no_text_of_a_group_can_be_lost(monkeypatch, in_flight):
    monkeypatch.setattr(documents, '_GROUP', 10)
    blocks = [documents.Block(d, str(d), False, 'x' * 4, 0, 1, 1) for d in range(6)]
    with pytest.raises(ValueError, match='shorter'):
        list(documents.map_blocks(Counting(), lambda texts: texts[:-1], iter(blocks), in_flight))


def test_of_a_document_that_cannot_be_opened_nothing_can_be_read():
    for use in (lambda file: file.seek(0), lambda file: file.read(1), lambda file: file.readline()):
        with pytest.raises(OSError, match='gone'):
            use(documents.Unreadable(OSError('gone')))
