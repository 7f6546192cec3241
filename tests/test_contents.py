"""Contents as UTF-8: compression by content, encodings, and commands that convert the others."""

import gzip
import os
import pathlib
import shutil
import subprocess

import pytest

from gpt1_jax.data.labelled import contents
from gpt1_jax.errors import UserError

TEXT = 'text\tlabel\r\nnaïve café\tyes\nold\rone\t1\n'


def lines(path):
    return list(contents.lines(path, contents.read(path)))


def refusal(path):
    with pytest.raises(UserError) as caught:
        lines(path)
    return str(caught.value)


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-32'])
@pytest.mark.parametrize('packed', [False, True])
def test_encodings_with_a_mark(tmp_path, encoding, packed):
    path = tmp_path / 'train.tsv'  # packed or not: the content tells
    data = TEXT.encode(encoding)
    path.write_bytes(gzip.compress(data[:9]) + gzip.compress(data[9:]) if packed else data)
    assert lines(path) == TEXT.splitlines(keepends=True)
    assert contents.decode(path, contents.read(path)) == TEXT


def test_big_endian(tmp_path):
    (tmp_path / 'a.csv').write_bytes(b'\xfe\xff' + TEXT.encode('utf-16-be'))
    assert ''.join(lines(tmp_path / 'a.csv')) == TEXT


@pytest.mark.parametrize('name', ["it's here.csv", 'train.csv.gz'])
@pytest.mark.parametrize('encoding', ['cp1252', 'latin-1', 'utf-16-le', 'utf-16-be'])
def test_the_command_converts_the_file(tmp_path, name, encoding):
    if not all(map(shutil.which, ('iconv', 'gunzip'))):
        pytest.skip('no iconv')
    path, text = tmp_path / name, TEXT + ('\x81' if encoding == 'latin-1' else '')  # none of Windows' characters
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == '.gz' else data)
    message = refusal(path)
    command = message.partition('  ')[2].partition('  and start again.')[0]
    subprocess.run(['bash', '-c', command], check=True)
    assert ''.join(lines(path)) == text and {p.name for p in tmp_path.iterdir()} == {name, f'{name}.bak'}
    assert ('byte 14' in message) == (not encoding.startswith('utf-16'))


def test_one_wrong_byte_in_utf8_is_damage(tmp_path):
    path = tmp_path / 'a.csv'
    path.write_bytes('café, caf'.encode() + b'\xe9, x\n')
    message = refusal(path)
    assert 'not UTF-8 at byte 10, but it is before: it may be damaged' in message and 'iconv -c -f UTF-8' in message


@pytest.mark.parametrize(
    'data, words',
    [
        (b'PK\x03\x04\x14\x00', 'This is a zip file or an Excel workbook'),
        (b'\x1f\x8b' + b'x' * 20, 'not a complete gzip file'),
        (gzip.compress(b'text' * 99, mtime=0)[:-9], 'not a complete gzip file'),
        (b'\xff\xfea', 'The file is not UTF-16 at byte 2, though it begins like it'),
    ],
)
def test_damaged_files(tmp_path, data, words):
    (tmp_path / 'a.csv').write_bytes(data)
    assert words in refusal(tmp_path / 'a.csv')


def test_a_file_that_cannot_be_read(tmp_path):
    assert 'The file cannot be read (No such file or directory)' in refusal(pathlib.Path(tmp_path / 'none.csv'))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'a.csv')
    assert 'a.csv: This is not an ordinary file' in refusal(tmp_path / 'a.csv')


def test_a_few_zeros_are_text(tmp_path):
    (tmp_path / 'a.csv').write_bytes((b'a\0' + b'b' * 37 + b'\n') * 99)
    assert lines(tmp_path / 'a.csv')[1] == 'a\0' + 'b' * 37 + '\n'
