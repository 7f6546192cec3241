"""Encodings are recognised, and the commands for them work."""

import gzip
import subprocess

import pytest

from gpt1_jax import encodings

TEXT = 'The naïve café, “quoted” — once.\n' * 20


@pytest.mark.parametrize(
    'codec, name',
    [
        ('utf-16', 'UTF-16'),
        ('utf-32', 'UTF-32'),
        ('utf-16-le', 'UTF-16LE'),
        ('utf-16-be', 'UTF-16BE'),
        ('cp1252', 'WINDOWS-1252'),
    ],
)
@pytest.mark.parametrize('file', ["it's a book.txt", 'b.txt.gz'])
def test_the_command_converts_the_file(tmp_path, codec, name, file):
    path = tmp_path / file
    data = TEXT.encode(codec)
    assert encodings.source_encoding(data) == name
    path.write_bytes(gzip.compress(data) if file.endswith('.gz') else data)
    subprocess.run(encodings.conversion(path, name), shell=True, check=True)
    assert [p.name for p in tmp_path.iterdir()] == [file]
    converted = path.read_bytes()
    assert (gzip.decompress(converted) if file.endswith('.gz') else converted).decode() == TEXT


def test_bytes_that_windows_1252_lacks(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_bytes(b'caf\xe9 \x81\n')
    assert encodings.source_encoding(b'caf\xe9', [b' \x81\n']) == 'ISO-8859-1'
    subprocess.run(encodings.conversion(path, 'ISO-8859-1'), shell=True, check=True)
    assert path.read_text() == 'café \x81\n'


def test_a_few_nul_bytes_are_no_encoding():
    assert encodings.wide_encoding(b'a\0' + b'some text ' * 50) == ''
    assert encodings.wide_encoding(bytes(1000)) == ''
    assert encodings.source_encoding(b'caf\xe9\0' + b'some text ' * 50) == 'WINDOWS-1252'
    assert encodings.source_encoding(bytes(range(256)) + bytes(40)) == ''
    assert encodings.wide_encoding('今天 天气\n'.encode('utf-16-le') * 9, 0.01) == 'UTF-16LE'


def test_formats():
    assert encodings.file_format(b'PK\x03\x04....') == 'a zip archive'
    assert encodings.file_format(b'Once') == ''
