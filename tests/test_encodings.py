"""Encodings are recognised, and the commands for them work."""

import gzip
import subprocess

import numpy as np
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
    before = path.read_bytes()
    subprocess.run(encodings.conversion(path, name), shell=True, check=True)
    others = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p != path}
    assert others == {f'{file}.bak': before}
    converted = path.read_bytes()
    assert (gzip.decompress(converted) if file.endswith('.gz') else converted).decode() == TEXT


@pytest.mark.parametrize('file', ['a.txt', 'a.txt.gz'])
def test_the_file_stays_where_its_encoding_is_another(tmp_path, file):
    path, data = tmp_path / file, TEXT.encode() + b'\xe9'
    path.write_bytes(gzip.compress(data) if file.endswith('.gz') else data)
    before = path.read_bytes()
    done = subprocess.run(encodings.conversion(path, 'UTF-32'), shell=True, capture_output=True)
    assert done.returncode and b'iconv' in done.stderr and path.read_bytes() == before


def test_bytes_that_windows_1252_lacks(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_bytes(b'caf\xe9 \x81\n')
    assert encodings.source_encoding(b'caf\xe9', [b' \x81\n']) == 'ISO-8859-1'
    subprocess.run(encodings.conversion(path, 'ISO-8859-1'), shell=True, check=True)
    assert path.read_text() == 'café \x81\n'


def test_a_few_nul_bytes_are_no_encoding():
    assert encodings.hidden_encoding(b'a\0' + b'some text ' * 50) == ''
    assert encodings.hidden_encoding(bytes(1000)) == ''
    assert encodings.source_encoding(b'caf\xe9\0' + b'some text ' * 50) == 'WINDOWS-1252'
    assert encodings.source_encoding(bytes(range(256)) + bytes(40)) == ''
    assert encodings.wide_encoding('今天 天气\n'.encode('utf-16-le') * 9, 0.01) == 'UTF-16LE'


LETTERS = {
    'Russian': 'Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.\r\n',
    'capitals': 'ВСЕ СЧАСТЛИВЫЕ СЕМЬИ ПОХОЖИ ДРУГ НА ДРУГА.\n',
    'Greek': 'Άνδρα μοι έννεπε, μούσα, πολύτροπον, ός μάλα πολλά.\n',
    'Hebrew': 'בראשית ברא אלהים את השמים ואת הארץ.\n',
    'Arabic': 'كان يا ما كان في قديم الزمان.\n',
    'Armenian': 'Լինում է չի լինում մի թագավոր։\n',
    'Hindi': 'एक समय की बात है कि एक गाँव में एक किसान रहता था।\n',
    'Thai': 'กาลครั้งหนึ่งนานมาแล้วมีชาวนาคนหนึ่งอาศัยอยู่\n',
    'Polish': 'Zażółć gęślą jaźń, rzekł stary człowiek.\n',
}


@pytest.mark.parametrize('codec', ['utf-16-le', 'utf-16-be'])
@pytest.mark.parametrize('language', LETTERS)
def test_wide_text_that_may_be_utf_8(language, codec):
    data = (LETTERS[language] * 40).encode(codec)
    name = codec.upper().replace('-L', 'L').replace('-B', 'B')
    assert encodings.source_encoding(data) == name
    try:
        data.decode()
    except UnicodeDecodeError:
        return
    assert encodings.hidden_encoding(data) == name


@pytest.mark.parametrize('codec', ['utf-16-le', 'utf-16-be'])
@pytest.mark.parametrize(
    'text',
    [
        '幸福的家庭都是相似的，不幸的家庭各有各的不幸。奥勃朗斯基家里一切都混乱了。\n',
        '吾輩は猫である。\r\n名前はまだ無い。\r\n',
        '옛날 옛적에 호랑이 담배 피우던 시절에 한 농부가 살았다.\n',
    ],
)
def test_wide_text_of_letters_without_nul_bytes(text, codec):
    data = (text * 40).encode(codec)
    assert encodings.source_encoding(data) == codec.upper().replace('-L', 'L').replace('-B', 'B')
    assert encodings.source_encoding(data[:-1]) == encodings.source_encoding(data)  # cut within a character


def test_bytes_that_are_no_text_are_not_taken_for_wide_text():
    rng = np.random.default_rng(0)
    numbers = 100 * rng.normal(size=1000)
    for data in (rng.bytes(3000), numbers.astype('<f2').tobytes(), numbers.astype('<f4').tobytes()):
        assert encodings.source_encoding(bytes(60) + data) == ''


@pytest.mark.parametrize(
    'text',
    [
        'A few\0 of\0 them\0 in\0 a text, \0\n' * 20 + LETTERS['Russian'],
        ''.join('0\t1\t1\n' for _ in range(500)) + '0\t\0\t' * 9,  # a table of single digits
        ''.join(f'\x1b[3{i % 8}m{i}\x1b[0m \0' for i in range(99)),  # colours of a terminal
        ''.join(f'{name}\0\0\0'[:4] for name in ('one', 'four', 'five', 'nine') * 20),  # padded
        'page\f' * 99 + '\0' * 9,
    ],
)
def test_text_with_nul_characters_is_not_taken_for_wide_text(text):
    assert encodings.hidden_encoding(text.encode()) == ''


def test_formats():
    assert encodings.file_format(b'PK\x03\x04....') == 'a zip archive'
    assert encodings.file_format(b'Once') == ''
