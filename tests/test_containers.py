"""Documents in archives and tables, against what was written into them."""

import gzip
import json
import pwd
import tarfile
import zipfile

import pyarrow
import pyarrow.parquet
import pytest
from etils import epath

from corpora import make_text
from gpt1_jax.data.corpus import documents
from gpt1_jax.data.corpus.sources import open_corpus
from gpt1_jax.errors import UserError

TEXTS = [make_text(i, 30) for i in range(60)]


def read(source, **options):
    return [(block.name, block.text) for block in open_corpus(f'text:{source}', **options).blocks()]


def problems(source, **options):
    found = documents.Findings()
    corpus = open_corpus(f'text:{source}', **options)
    list(corpus.blocks(found=found))
    return [*corpus.problems, *found.problems]


def test_members_of_archives(tmp_path):
    with zipfile.ZipFile(tmp_path / 'b.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('one.txt', TEXTS[0])
        archive.writestr('deep/er/TWO.TXT', TEXTS[1])
        archive.writestr('deep/three.txt.gz', gzip.compress(TEXTS[2].encode()))
        for name in ('read.me', '__MACOSX/._one.txt', '.hidden.txt', 'one.txt~', 'inner.zip', 'folder.txt/'):
            archive.writestr(name, 'x')
    (tmp_path / 'a.txt').write_text(TEXTS[3])
    names = ['a.txt', 'b.zip/one.txt', 'b.zip/deep/er/TWO.TXT', 'b.zip/deep/three.txt.gz']
    assert read(tmp_path) == list(zip(names, [TEXTS[3], *TEXTS[:3]]))
    assert read(tmp_path / 'b.zip') == list(zip(names[1:], TEXTS))
    corpus = open_corpus(f'text:{tmp_path}')
    assert (corpus.documents, list(corpus.names())) == (4, names)
    assert {'2 hidden', '1 .me', '1 .zip', '1 copy of an editor'} == set(corpus.left_out.split(', '))
    for i in range(4):
        assert [b.name for b in corpus.blocks(start=(i, 0))] == names[i:]


def test_files_whose_owner_has_no_name(tmp_path, monkeypatch):
    """As in a folder that is mounted into a container."""
    (tmp_path / 'a.txt').write_text(TEXTS[0])
    (tmp_path / 'b.jsonl').write_text(json.dumps({'text': TEXTS[1]}))
    monkeypatch.setattr(pwd, 'getpwuid', {}.__getitem__)
    assert [text for _, text in read(tmp_path)] == TEXTS[:2]


def test_a_member_that_is_there_unpacked_is_not_read_twice(tmp_path):
    for stem in 'abc':
        with zipfile.ZipFile(tmp_path / f'{stem}.zip', 'w') as archive:
            archive.writestr(f'{stem}.txt', TEXTS[0])
    (tmp_path / 'a.txt').write_text(TEXTS[1])
    (tmp_path / 'b').mkdir()
    (tmp_path / 'b' / 'b.txt').write_text(TEXTS[1])
    assert [name for name, _ in read(tmp_path)] == ['a.txt', 'b/b.txt', 'c.zip/c.txt']
    assert open_corpus(f'text:{tmp_path}').left_out == '2 member of a .zip that is there unpacked'


def test_archives_that_cannot_be_read(tmp_path):
    (tmp_path / 'ok.txt').write_text(TEXTS[0])
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        archive.writestr('one.txt', TEXTS[0])
        archive.writestr('two.txt', TEXTS[1])
    whole = (tmp_path / 'a.zip').read_bytes()
    (tmp_path / 'cut.zip').write_bytes(whole[:-30])
    encrypted = bytearray(whole)
    encrypted[6] |= 1  # of the first member, in its header and in the list at the end
    encrypted[whole.index(b'PK\1\2') + 8] |= 1
    (tmp_path / 'secret.zip').write_bytes(encrypted)
    flipped = whole.replace(TEXTS[1].encode()[:20], TEXTS[1].encode()[:19] + b'!')
    (tmp_path / 'flipped.zip').write_bytes(flipped)
    method = bytearray(whole)
    for place in (8, whole.index(b'PK\1\2') + 10):
        method[place : place + 2] = b'\x09\0'  # Deflate64
    (tmp_path / 'method.zip').write_bytes(method)
    with zipfile.ZipFile(tmp_path / 'lzma.zip', 'w', zipfile.ZIP_LZMA) as archive:
        archive.writestr('one.txt', TEXTS[0])
    packed = bytearray((tmp_path / 'lzma.zip').read_bytes())
    packed[60:70] = bytes(10)
    (tmp_path / 'lzma.zip').write_bytes(packed)
    found = problems(tmp_path)
    assert len(found) == 5
    [cut] = [one for one in found if one.startswith(f'{tmp_path}/cut.zip')]
    assert 'damaged' in cut
    [secret] = [one for one in found if one.startswith('secret.zip/one.txt of ')]
    assert 'password' in secret and 'Unpack it yourself' in secret
    assert any(one.startswith('flipped.zip/two.txt of ') and 'damaged' in one for one in found)
    assert any(one.startswith('lzma.zip/one.txt of ') and 'damaged' in one for one in found)
    assert any(one.startswith('method.zip/one.txt of ') and 'cannot be unpacked here' in one for one in found)


@pytest.mark.parametrize('damaged', [0, 2, 4])
def test_a_damaged_member_leaves_the_others_as_they_are(tmp_path, damaged):
    path, names = tmp_path / 'a.zip', [f'{i}.txt' for i in range(5)]
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, f'The text of {name} is short. ' * 20)
        place = archive.infolist()[damaged].header_offset + 30 + len('0.txt') + 5
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)
    found = documents.Findings()
    others = [block.name for block in open_corpus(f'text:{path}').blocks(found=found)]
    assert others == [f'a.zip/{name}' for i, name in enumerate(names) if i != damaged]
    [problem] = found.problems
    assert problem.startswith(f'a.zip/{damaged}.txt of ') and 'damaged' in problem


@pytest.mark.parametrize('suffix', ['.jsonl', '.jsonl.gz', '.JSONL'])
def test_rows_of_json_lines(tmp_path, suffix):
    rows = [{'id': 0, 'text': TEXTS[0]}, {'id': 1, 'text': None}, {'id': 2}, {'text': TEXTS[1], 'content': 'no'}]
    lines = [*map(json.dumps, rows), '', json.dumps({'text': 'lone \ud800'})]
    data = '\n'.join(lines).encode()
    path = tmp_path / f'a{suffix}'
    path.write_bytes(gzip.compress(data) if suffix.endswith('gz') else data)
    (tmp_path / 'other.jsonl').write_text('{"sentence": "no text", "label": 1}\n')
    expected = [(f'{path.name}:1', TEXTS[0]), (f'{path.name}:4', TEXTS[1]), (f'{path.name}:6', 'lone ?')]
    assert read(tmp_path) == expected
    corpus = open_corpus(f'text:{tmp_path}')
    assert corpus.documents == 6 and corpus.left_out == '1 table without a column text, book_text or content'
    assert [b.name for b in corpus.blocks(start=(1, 0))] == [name for name, _ in expected[1:]]
    assert read(tmp_path / 'other.jsonl', text_column='sentence') == [('other.jsonl:1', 'no text')]
    with pytest.raises(UserError, match='There is no text.* 1 table without a column'):
        open_corpus(f'text:{tmp_path}/other.jsonl')
    assert problems(tmp_path / 'other.jsonl', text_column='content') == [
        f"{tmp_path}/other.jsonl: It has no column 'content' of text. Correct data.text_column."
    ]


@pytest.mark.parametrize('before', [1, 99])
def test_the_first_rows_may_be_others(tmp_path, before):
    header, rows = [json.dumps({'version': 1})] * before, [json.dumps({'text': text}) for text in TEXTS[:3]]
    (tmp_path / 'a.jsonl').write_text('\n'.join([*header, *rows]))
    assert read(tmp_path) == [(f'a.jsonl:{before + i + 1}', text) for i, text in enumerate(TEXTS[:3])]


def test_lines_that_are_no_json_are_all_named(tmp_path):
    lines = [json.dumps({'content': 'text'})] * 50
    lines[3], lines[20], lines[21] = '{"content": "cut', '{"content": 5}', '["content"]'
    (tmp_path / 'a.jsonl').write_text('\n'.join(lines) + '\n')
    where = f'{tmp_path}/a.jsonl: Line'
    assert problems(tmp_path) == [
        f"{where} {n} is not a JSON object with text as 'content'. Fix or remove it." for n in (4, 21, 22)
    ]
    assert len(list(open_corpus(f'text:{tmp_path}').blocks(found=documents.Findings()))) == 47
    lines = [json.dumps({column: 'x'}) for column in ('text', 'text', 'content', 'id')]
    (tmp_path / 'a.jsonl').write_text('\n'.join(lines))  # two files joined; the last row has no text, and may
    assert problems(tmp_path) == [f"{where} 3 is not a JSON object with text as 'text'. Fix or remove it."]
    (tmp_path / 'a.jsonl').write_text('<html>\n')
    assert 'Its first line is not JSON' in problems(tmp_path)[0]


@pytest.mark.parametrize('group', [7, 1000])
def test_rows_of_parquet(tmp_path, group):
    texts = [*TEXTS, None]
    table = pyarrow.table({'n': range(61), 'book_text': pyarrow.array(texts, pyarrow.large_string())})
    pyarrow.parquet.write_table(table, tmp_path / 'a.parquet', row_group_size=group)
    assert read(tmp_path) == [(f'a.parquet:{i}', text) for i, text in enumerate(TEXTS, 1)]
    corpus = open_corpus(f'text:{tmp_path}')
    assert corpus.documents == 61
    for first in (0, 6, 7, 33, 59):
        assert [b.text for b in corpus.blocks(start=(first, 0))] == TEXTS[first:]
    assert not list(corpus.blocks(start=(60, 0)))
    data = (tmp_path / 'a.parquet').read_bytes()
    (tmp_path / 'b.parquet').write_bytes(data[:-100])
    pyarrow.parquet.write_table(pyarrow.table({'text': [1, 2]}), tmp_path / 'numbers.parquet')
    [problem] = problems(tmp_path)
    assert 'b.parquet: This is not a whole parquet file' in problem
    assert open_corpus(f'text:{tmp_path}').left_out == '1 table whose column text is of type int64'
    assert problems(tmp_path / 'numbers.parquet', text_column='text') == [
        f"{tmp_path}/numbers.parquet: It has no column 'text' of text (its column text is of type int64). Correct "
        'data.text_column.'
    ]


def test_rows_of_a_dictionary(tmp_path):
    """As pandas writes a column of categories."""
    values = [TEXTS[0], TEXTS[1], None, TEXTS[0]]
    pyarrow.parquet.write_table(
        pyarrow.table({'text': pyarrow.array(values).dictionary_encode()}), tmp_path / 'a.parquet', row_group_size=2
    )
    assert read(tmp_path) == [(f'a.parquet:{i}', text) for i, text in enumerate(values, 1) if text]


def test_gzip_is_known_by_its_content(tmp_path):
    (tmp_path / 'zipped.txt').write_bytes(gzip.compress(TEXTS[0].encode()) + gzip.compress(TEXTS[1].encode()))
    (tmp_path / 'empty.txt.gz').write_bytes(b'')
    assert read(tmp_path) == [('zipped.txt', TEXTS[0] + TEXTS[1])]
    (tmp_path / 'plain.txt.gz').write_text(TEXTS[0])
    assert problems(tmp_path) == [
        f'{tmp_path}/plain.txt.gz: The file is not gzip, though its name ends in .gz. Rename it to '
        f'{tmp_path}/plain.txt.'
    ]


@pytest.mark.parametrize('form', [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize('name', ['a.tar', 'b.tar.gz', 'c.tgz', 'd.txt'])
def test_tar_archives_are_refused(tmp_path, name, form):
    (tmp_path / 'one.txt').write_text(TEXTS[0])
    with tarfile.open(tmp_path / name, 'w:gz' if name.endswith('gz') else 'w', format=form) as archive:
        archive.add(tmp_path / 'one.txt', 'one.txt')
    message = f'{tmp_path / name}: This is a tar archive, not text. Unpack it, and name its folder.'
    assert problems(tmp_path / name) == [message]
    assert problems(tmp_path) == [message] * (name == 'd.txt')
    (tmp_path / 'one.txt').write_text('about ' * 43 + 'ustar')
    assert not problems(tmp_path / 'one.txt')


def test_a_file_that_vanishes_is_named(tmp_path):
    for name in 'abc':
        (tmp_path / f'{name}.txt').write_text(TEXTS[0])
    with zipfile.ZipFile(tmp_path / 'd.zip', 'w') as archive:
        archive.writestr('one.txt', TEXTS[1])
        archive.writestr('two.txt', TEXTS[1])
    corpus, found = open_corpus(f'text:{tmp_path}'), documents.Findings()
    (tmp_path / 'b.txt').unlink()
    (tmp_path / 'd.zip').unlink()
    assert [block.name for block in corpus.blocks(found=found)] == ['a.txt', 'c.txt']
    assert [problem.partition(' ')[0] for problem in found.problems] == ['b.txt', 'd.zip/one.txt', 'd.zip/two.txt']


@pytest.mark.parametrize('data', [b'', b'cut', TEXTS[0].encode() * 2])
def test_a_file_that_changes_is_named(tmp_path, data):
    for name in 'ab':
        (tmp_path / f'{name}.txt').write_text(TEXTS[0])
    corpus, found = open_corpus(f'text:{tmp_path}'), documents.Findings()
    (tmp_path / 'a.txt').write_bytes(data)
    assert [block.name for block in corpus.blocks(found=found)] == ['b.txt']
    [problem] = found.problems
    assert problem.startswith('a.txt of ') and '(it has changed since the run began). Fix or remove it.' in problem


@pytest.mark.parametrize('suffix', ['', '.gz', '.zip'])
def test_files_of_a_remote_store_read_like_local_ones(tmp_path, monkeypatch, suffix):
    """TensorFlow's files have neither readline(n) nor a seek that returns the place."""
    pytest.importorskip('tensorflow')
    monkeypatch.setattr(documents, 'BLOCK_BYTES', 1000)
    data = make_text(0, 200).encode()
    path = tmp_path / f'one.txt{suffix}'
    path.write_bytes(gzip.compress(data) if suffix == '.gz' else data)
    if suffix == '.zip':
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
            archive.writestr('a.txt', data)
            archive.writestr('b.txt', data.decode()[:500])
    corpus = open_corpus(f'text:{tmp_path}')
    local, backend = list(corpus.blocks({0: 5000})), epath.Path('gs://bucket')._backend
    monkeypatch.setattr(type(epath.Path()), 'open', lambda path, mode: backend.open(path, mode))
    remote = list(open_corpus(f'text:{tmp_path}').blocks({0: 5000}))
    assert [block._replace(size=0) for block in remote] == [block._replace(size=0) for block in local]
    assert sum(block.size for block in remote) == sum(block.size for block in local)
