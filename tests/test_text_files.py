"""Which files of a folder are read."""

import gzip
import json
import os
import shlex
import shutil
import subprocess
import zipfile

import pytest

from corpora import joined, make_folder
from gpt1_jax.data.corpus import documents
from gpt1_jax.data.corpus.sources import open_corpus
from gpt1_jax.data.corpus.text_files import reopen_text
from gpt1_jax.errors import UserError
from helpers import assert_well_put


def names(location):
    return list(open_corpus(f'text:{location}').names())


def write(folder, *files):
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f'The text of {name}.\n')


@pytest.mark.parametrize('pattern, count', [('a/*.txt', 10), ('*/book0?.txt*', 10), ('b/book01.txt', 1)])
def test_globs_and_files(tmp_path, pattern, count):
    texts = make_folder(tmp_path)
    corpus = open_corpus(f'text:{tmp_path}/{pattern}')
    assert corpus.documents == count
    assert set(joined(corpus.blocks()).values()) <= set(texts.values())


def test_a_glob_matches_folders_too(tmp_path):
    write(tmp_path, 'a.txt', 'n.md', 'sub/b.txt', 'sub/n.md', 'sub/deep/c.txt', '.git/d.txt', 'other/e.txt')
    (tmp_path / 'again').symlink_to('sub')
    (tmp_path / 'loop').symlink_to('.')
    assert names(f'{tmp_path}/*') == ['a.txt', 'n.md', 'other/e.txt', 'sub/b.txt', 'sub/deep/c.txt']
    corpus = open_corpus(f'text:{tmp_path}/*')
    assert set(corpus.left_out.split(', ')) == {'2 link to a folder that is read anyway', '1 .md'}
    assert names(f'{tmp_path}/[su]*') == ['sub/b.txt', 'sub/deep/c.txt']


def test_a_folder_with_brackets_in_its_name(tmp_path):
    write(tmp_path, 'Books [old]/a.txt', 'Books [old]/1?/b.txt', 'Books o/c.txt')
    assert names(f'{tmp_path}/Books [old]/*.txt') == ['a.txt']
    assert names(f'{tmp_path}/Books [old]/1?/*') == ['b.txt']
    assert names(f'{tmp_path}/Books [old]') == ['1?/b.txt', 'a.txt']
    assert names(f'{tmp_path}/*/?.txt') == ['Books [old]/a.txt', 'Books o/c.txt']
    assert names(f'{tmp_path}/Books [o]/*.txt') == ['Books o/c.txt']


def test_what_is_left_out_is_counted(tmp_path):
    write(tmp_path, 'a.txt', 'B.TXT', 'deep/er/c.Txt', 'x.txt/inner.txt', 'n.md', 'n.html', 'o.HTML', 'README')
    write(tmp_path, '.d.txt', '.ipynb_checkpoints/e.txt', '.git/f.txt', '__MACOSX/g.txt', 'deep/._h.txt')
    write(tmp_path, 'i.txt~', '#j.txt#', '.k.txt.swp', 'l.swp', 'm.txt.bak')
    corpus = open_corpus(f'text:{tmp_path}')
    assert list(corpus.names()) == ['B.TXT', 'a.txt', 'deep/er/c.Txt', 'x.txt/inner.txt']
    counts = {kind: int(n) for n, _, kind in (one.partition(' ') for one in corpus.left_out.split(', '))}
    assert counts == {'hidden': 5, 'copy of an editor': 5, '.html': 2, '.md': 1, 'without a suffix': 1}
    assert names(tmp_path / '.d.txt') == ['.d.txt']  # what is named itself is read
    assert names(tmp_path / 'n.md') == ['n.md']
    assert names(f'{tmp_path}/n.*') == ['n.html', 'n.md']


def test_links_are_followed_and_loops_are_not(tmp_path):
    outside = tmp_path / 'outside'
    write(outside, 'far.txt', 'deep/farther.txt')
    root = tmp_path / 'root'
    write(root, 'a.txt', 'sub/b.txt')
    (root / 'file.txt').symlink_to(outside / 'far.txt')
    (root / 'folder').symlink_to(outside)
    (root / 'afar').symlink_to(outside / 'deep')
    (root / 'again').symlink_to('sub')
    (root / 'loop').symlink_to('.')
    (root / 'sub' / 'up').symlink_to('../..')
    (outside / 'back').symlink_to(root)
    corpus = open_corpus(f'text:{root}')
    assert list(corpus.names()) == ['a.txt', 'afar/farther.txt', 'file.txt', 'folder/far.txt', 'sub/b.txt']
    assert corpus.left_out == '4 link to a folder that is read anyway'
    link = tmp_path / 'link'
    link.symlink_to(root)
    assert names(link) == list(corpus.names())


def test_files_that_cannot_be_read_are_named_together(tmp_path, monkeypatch):
    write(tmp_path, 'a.txt', 'locked/b.txt')
    (tmp_path / 'gone.txt').symlink_to(tmp_path / 'nowhere')
    os.mkfifo(tmp_path / 'pipe.txt')
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith('locked'):
            raise PermissionError(13, 'Permission denied', path)
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    corpus = open_corpus(f'text:{tmp_path}')
    assert sorted(corpus.problems) == [
        f'{tmp_path}/gone.txt: The file cannot be read (No such file or directory). Fix or remove it.',
        f'{tmp_path}/locked: The folder cannot be read (Permission denied). Allow it, or move it away.',
        f'{tmp_path}/pipe.txt: This is not an ordinary file. Move it away.',
    ]
    with pytest.raises(UserError, match='cannot be read|not an ordinary file'):
        list(corpus.blocks())
    assert [block.name for block in corpus.blocks(found=documents.Findings())] == ['a.txt']


def test_the_fingerprint_is_that_of_names_and_sizes(tmp_path):
    """As of earlier versions, whose preparations go on."""
    write(tmp_path, 'a.txt', 'b/c.txt')
    sizes = [(tmp_path / name).stat().st_size for name in ('a.txt', 'b/c.txt')]
    assert open_corpus(f'text:{tmp_path}').fingerprint == documents.fingerprint(['a.txt', 'b/c.txt'], sizes)


def test_the_commands_that_convert_files_work(tmp_path):
    folder = tmp_path / "it's here"
    write(folder, 'ok.txt')
    with zipfile.ZipFile(folder / 'b.zip', 'w') as archive:
        archive.writestr('b 8.txt', 'The café of b.\n'.encode('cp1252'))
    (folder / 'c-8.txt').write_bytes('The café of c.\n'.encode('cp1252'))
    found = documents.Findings()
    list(open_corpus(f'text:{folder}').blocks(found=found))
    assert len(found.problems) == 2
    for problem in found.problems:
        command = problem.split('`')[1]
        if command.startswith('cd '):  # unzip may not be there
            unzip = f'{shlex.quote(os.sys.executable)} -m zipfile -e b.zip . #'
            command = command.replace("unzip b.zip 'b 8.txt'", unzip.replace(' #', ''))
        subprocess.run(command, shell=True, check=True)
    assert (folder / 'c-8.txt.bak').read_bytes().decode('cp1252') == 'The café of c.\n'
    texts = joined(open_corpus(f'text:{folder}').blocks())
    assert texts == {'b 8.txt': 'The café of b.\n', 'c-8.txt': 'The café of c.\n', 'ok.txt': 'The text of ok.txt.\n'}


def test_tables_that_are_not_read_are_warned_of(tmp_path, caplog):
    write(tmp_path, 'a.txt')
    (tmp_path / 'b.jsonl').write_text('{"story": "x"}\n')
    (tmp_path / 'c.jsonl').write_text('{"story": "x"}\n')
    (tmp_path / 'meta.json').write_text('{"title": "x"}\n')  # beside a book
    with caplog.at_level('WARNING', 'absl'):
        assert names(tmp_path) == ['a.txt']
    [record] = caplog.records
    assert record.levelname == 'WARNING' and record.getMessage() == (
        f'text:{tmp_path}: 2 tables are not read, such as b.jsonl: none of their columns is called text, book_text or '
        'content and holds text. Name the one that does in data.text_column.'
    )
    caplog.clear()
    corpus = open_corpus(f'text:{tmp_path}', text_column='story')
    assert list(corpus.names()) == ['a.txt', 'b.jsonl:1', 'c.jsonl:1'] and not corpus.problems
    assert corpus.left_out == '1 table without a column story' and not caplog.records


JSON = ('a.ndjson', 'c4-train.00000-of-01024.json.gz', 'd.JSON', 'e.ndjson.gz')


@pytest.fixture
def tables(tmp_path):
    """A folder of JSON lines under other names than .jsonl, and of what only looks like them."""
    for i, name in enumerate(JSON):
        data = ''.join(json.dumps({'text': f'Text {i}, {row}.', 'url': 'x'}) + '\n' for row in range(2)).encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith('.gz') else data)
    (tmp_path / 'meta.json').write_text('{\n  "text": "of one book"\n}\n')
    (tmp_path / 'array.json.gz').write_bytes(gzip.compress(b'[{"text": "Of an array."}, {"text": "More."}]'))
    (tmp_path / 'b.csv').write_text('id,text\n1,"Of a\ntable, "\n')
    (tmp_path / 'c.tsv').write_text('id\ttext\n1\tOf tabs.\n')
    os.mkfifo(tmp_path / 'pipe.json')
    (tmp_path / 'gone.json').symlink_to('nowhere')
    return tmp_path


def test_json_lines_of_other_names_are_rows(tables):
    expected = {f'{name}:{row + 1}': f'Text {i}, {row}.' for i, name in enumerate(JSON) for row in range(2)}
    corpus = open_corpus(f'text:{tables}')
    assert joined(corpus.blocks()) == expected
    assert set(corpus.left_out.split(', ')) == {'3 .json', '1 .json.gz', '1 .csv', '1 .tsv'}
    files = sorted(corpus.parts(), key=lambda part: part['name'])
    assert joined(reopen_text(str(tables), files).blocks()) == expected
    assert joined(open_corpus(f'text:{tables}/c4-train.*.json.gz').blocks()) == {
        name: text for name, text in expected.items() if name.startswith('c4')
    }
    (tables / 'e.ndjson.gz').write_bytes((tables / 'e.ndjson.gz').read_bytes()[:20])
    [problem] = open_corpus(f'text:{tables}').problems
    assert 'e.ndjson.gz: The compressed file is damaged' in problem


TABLES = [
    ('array.json.gz', 'Of an array.'),
    ('meta.json', 'of one book'),
    ('b.csv', 'Of a\ntable, '),
    ('c.tsv', 'Of tabs.'),
]


@pytest.mark.parametrize('name, text', TABLES)
def test_other_tables_are_refused_and_the_command_makes_them_rows(tables, name, text):
    [problem] = open_corpus(f'text:{tables / name}').problems
    assert_well_put(problem)
    assert problem.startswith(f'{tables / name}: This is a table, not text. Make it JSON lines or parquet, such as')
    command = problem.split('`')[1].replace('python', shlex.quote(os.sys.executable))
    if command.startswith('python') or shutil.which('jq'):
        subprocess.run(command, shell=True, check=True)
        [made] = {*tables.glob('*.parquet'), *tables.glob('*.jsonl')}
        assert next(open_corpus(f'text:{made}').blocks()).text == text


def test_which_documents_are_rows(tmp_path):
    write(tmp_path, 'a.txt', 'd.txt')
    (tmp_path / 'b.jsonl').write_text('{"text": "x"}\n\n')
    (tmp_path / 'c.JSON').write_text('{"text": "x"}\n')
    with zipfile.ZipFile(tmp_path / 'c.zip', 'w') as archive:
        archive.writestr('e.txt', 'x')
    corpus = open_corpus(f'text:{tmp_path}')
    assert [corpus.is_row(i) for i in range(corpus.documents)] == [False, True, True, True, False, False]


def test_nothing_there(tmp_path):
    for missing in ('', str(tmp_path / 'none'), str(tmp_path), f'{tmp_path}/*.txt', '/no/such/*.txt'):
        with pytest.raises(UserError, match='There is no text'):
            open_corpus(f'text:{missing}')
    with pytest.raises(UserError, match=r"'\*\*' is not supported"):
        open_corpus(f'text:{tmp_path}/**/a.txt')
    write(tmp_path, 'a.md', 'b.md')
    with pytest.raises(UserError, match=r'There is no text\. .* \(left out: 2 \.md\)\.'):
        open_corpus(f'text:{tmp_path}')
