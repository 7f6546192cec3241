"""Files are whole or not there, and what is missing is named."""

import errno
import json
import os
import sys
import types

import pytest
from etils import epath

from gpt1_jax import files
from gpt1_jax.errors import UserError


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = epath.Path(tmp_path / 'file')
    files.write_atomically(path, [b'old ', b'content'])
    assert path.read_bytes() == b'old content'

    def parts():
        yield b'new'
        raise OSError(28, 'No space left on device')

    with pytest.raises(UserError, match=f'{path}: The file cannot be written .No space left on device.. Make room'):
        files.write_atomically(path, parts())
    assert path.read_bytes() == b'old content'


def test_json(tmp_path):
    path = epath.Path(tmp_path / 'file.json')
    files.write_json(path, {'a': [1, None]})
    assert files.read_json(path) == json.loads(path.read_text()) == {'a': [1, None]}
    path.write_text('{"a": [1')
    with pytest.raises(UserError, match='file.json: The file is damaged'):
        files.read_json(path)
    for encoding in ('utf-8', 'utf-8-sig', 'utf-16'):
        path.write_bytes('{"a": "ä", "a": "ä"}'.encode(encoding))  # one value, though it is there twice
        assert files.read_json(path) == {'a': 'ä'}


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (b'[' * 100_000, 'it is nested too deeply'),
        (b'{"a":' * 500 + b'1' + b'}' * 500, 'it is nested too deeply'),
        (b'{"a": 1, "a": 2}', 'an object has two values of one key'),
        (b'{"a": "\xff"}', "can't decode byte"),
        (b'1' * 5000, 'Exceeds the limit'),
        (b'', 'Expecting value'),
        (b'[1]', 'it is '),
    ],
)
def test_json_that_is_none_here_is_one_sentence(tmp_path, content, words):
    path = epath.Path(tmp_path / 'file.json')
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        files.read_json(path, dict, 'Make it again.')
    assert str(caught.value).startswith(f'{path}: The file is damaged (') and words in str(caught.value)
    assert str(caught.value).endswith('). Make it again.')


def test_json_without_end_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, '_MOST_JSON', 1000)
    path = epath.Path(tmp_path / 'file.json')
    path.write_bytes(b' ' * 990 + b'{}')
    assert files.read_json(path) == {}
    path.write_bytes(b' ' * 1000 + b'{}')
    with pytest.raises(UserError, match='it has more than 1,000 bytes'):
        files.read_json(path)
    path.unlink()
    os.mkfifo(path)
    for no_file in (path, epath.Path('/dev/zero'), epath.Path(tmp_path)):
        with pytest.raises(UserError, match='This is not an ordinary file'):
            files.read_json(no_file)
    with pytest.raises(FileNotFoundError):
        files.read_json(epath.Path(tmp_path / 'none'))


FORM = {'p': os.PathLike, 'a': int, 'b': [float], 'c': {str: (str, type(None))}, 'd': object}
RIGHT = {'p': 'ä/b', 'a': 1, 'b': [0.5, 2], 'c': {'x': None, 'y': ''}, 'd': [1], 'more': 0}


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({}, ''),
        ({'a': True}, "a is 'True'"),
        ({'a': 1.0}, "a is '1.0'"),
        ({'a': 2**63}, 'a is'),
        ({'b': 1}, 'b is not a list'),
        ({'b': [1, 'x']}, "b[1] is 'x'"),
        ({'b': [10**400]}, 'b[0] is'),
        ({'c': []}, 'c is not an object'),
        ({'c': {'x': 1}}, "c.x is '1'"),
        ({'p': 1}, "p is '1'"),
        ({'p': 'a\0b'}, r"p is 'a\x00b'"),
        ({'p': 'a/\ud800'}, r"p is 'a/\ud800'"),
    ],
)
def test_the_form_of_json(tmp_path, change, words):
    path = epath.Path(tmp_path / 'file.json')
    files.write_json(path, RIGHT | change)
    if not words:
        assert files.read_json(path, FORM) == RIGHT
        return
    with pytest.raises(UserError) as caught:
        files.read_json(path, FORM)
    assert f'({words}' in str(caught.value)
    with pytest.raises(UserError, match=r"it lacks 'e'"):
        files.check_form(path, RIGHT, {'e': int}, '')


def test_a_lack_of_memory_is_one_sentence():
    assert files.explain(MemoryError()).startswith('memory: There is not enough (MemoryError). ')
    assert '(RESOURCE_EXHAUSTED: 1 TB)' in files.explain(RuntimeError('RESOURCE_EXHAUSTED: 1 TB'))
    dispatched = 'INTERNAL: Error dispatching computation: Out of memory allocating 32768000000 bytes.'  # on a CPU
    assert f'({dispatched[:-1]})' in files.explain(RuntimeError(dispatched))
    assert files.explain(RuntimeError('INTERNAL: something else')) == ''


def test_a_folder_that_cannot_be_made(tmp_path):
    files.make_directory(epath.Path(tmp_path / 'a' / 'b'))
    files.make_directory(epath.Path(tmp_path / 'a' / 'b'))
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='file/c: The folder cannot be made'):
        files.make_directory(epath.Path(tmp_path / 'file' / 'c'))


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    assert files.import_package('json', 'nothing works') is json
    with pytest.raises(UserError, match='no_such_package: This package is not installed, and no wheel turns without'):
        files.import_package('no_such_package', 'no wheel turns')
    (tmp_path / 'of_two.py').write_text('import no_such_part')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match='^no_such_part: This package is not installed'):
        files.import_package('of_two', 'no wheel turns')


def test_tensorflow_leaves_an_accelerator_to_jax(monkeypatch):
    hidden = []

    def hide(devices, kind):
        hidden.append((devices, kind))
        raise RuntimeError('Visible devices cannot be modified after being initialized')

    tensorflow = types.SimpleNamespace(config=types.SimpleNamespace(set_visible_devices=hide))
    monkeypatch.setitem(sys.modules, 'tensorflow', tensorflow)
    assert files.import_tensorflow() is tensorflow and hidden == [([], 'GPU')]


def test_package_versions():
    assert files.package_version('pytest') == pytest.__version__
    assert files.package_version('no-such-package') == ''


def test_local_paths(tmp_path):
    assert files.is_local(tmp_path) and not files.is_local('gs://bucket/file')


@pytest.fixture
def naps(monkeypatch):
    """The seconds that it waits, which it does not."""
    naps = []
    monkeypatch.setattr(files.time, 'sleep', naps.append)
    return naps


def failing(*numbers):
    """A function that fails with these errors of the system, one a call, then returns 7."""
    numbers = list(numbers)

    def operation():
        if numbers:
            raise OSError(number := numbers.pop(0), os.strerror(number), '/disk/file')
        return 7

    return operation


def test_an_error_that_may_pass_is_waited_for_within_bounds(naps):
    assert files.patiently(failing(errno.EIO, errno.ESTALE, errno.ETIMEDOUT)) == 7 and len(naps) == 3
    with pytest.raises(OSError, match='Input/output error'):
        files.patiently(failing(*[errno.EIO] * 4))
    assert len(naps) == 6 and sum(naps) < 10
    with pytest.raises(PermissionError):
        files.patiently(failing(errno.EACCES))
    assert len(naps) == 6


def test_what_cannot_be_known_is_not_absent(tmp_path, monkeypatch, naps):
    path = epath.Path(tmp_path / 'file')
    assert files.exists(epath.Path(tmp_path)) and not files.exists(path) and not files.exists(path / 'below')
    path.write_text('12345')
    assert files.exists(path) and not files.exists(path / 'below') and files.size_of(path) == 5
    for error in (PermissionError(errno.EACCES, 'x'), OSError(errno.EIO, 'x')):
        with monkeypatch.context() as patch, pytest.raises(type(error)):
            patch.setattr(files.os, 'stat', lambda path: (_ for _ in ()).throw(error))
            assert not path.exists()  # what it is better than
            files.exists(path)


def test_a_file_of_an_owner_without_a_name_has_a_size(tmp_path):
    path = epath.Path(tmp_path / 'file')
    path.write_text('12345')
    if os.geteuid():
        pytest.skip('only root may give files away')
    os.chown(path, 123_456, 123_456)
    assert files.size_of(path) == 5


@pytest.mark.parametrize(
    ('error', 'sentence'),
    [
        (
            PermissionError(errno.EACCES, 'Permission denied', '/a/b'),
            '/a/b: It cannot be read or written (Permission denied). Give this user permission, or name another.',
        ),
        (
            OSError(errno.EIO, 'Input/output error', '/a'),
            '/a: It cannot be read or written (Input/output error). Check the path and its disk.',
        ),
        (OSError(errno.EBADF, 'Bad file descriptor', 7), 'file: It cannot be read or written (Bad file descriptor). '),
        (OSError(errno.ENOSPC, 'No space left'), 'file: It cannot be read or written (No space left). Make room, or'),
        (OSError('of a library'), ''),
        (ValueError('of the program'), ''),
    ],
)
def test_errors_of_the_system_in_words(error, sentence):
    assert files.explain(error).startswith(sentence) and bool(files.explain(error)) == bool(sentence)


def test_folders_that_cannot_be_renamed_are_noticed(tmp_path, monkeypatch):
    """gcsfuse says so for folders with files in them, unless it is told to copy."""
    workdir = epath.Path(tmp_path / 'run')
    files.check_renaming(workdir)
    assert workdir.is_dir() and not list(workdir.iterdir())
    rename = os.rename

    def of_a_bucket(source, target):
        if os.path.isdir(source) and os.listdir(source):
            raise OSError(errno.EMFILE, 'Too many open files', source, None, target)
        rename(source, target)

    monkeypatch.setattr(os, 'rename', of_a_bucket)
    with pytest.raises(
        UserError,
        match='run: Checkpoints cannot be saved there, because folders cannot be made and renamed .Too many open fi',
    ):
        files.check_renaming(workdir)
    assert not list(workdir.iterdir())


def test_a_seal_shows_any_change(tmp_path):
    whole = json.loads(json.dumps(files.sealed({'a': 1.5, 'b': {3: ['x', None]}})))
    files.check_seal(tmp_path, whole, 'Fix it.')
    files.check_seal(tmp_path, {'a': 2.5}, 'Fix it.')  # an earlier version wrote none
    for changes in ({'a': 1.25}, {'b': {'3': ['x']}}, {'c': 0}, {'sha256': ''}):
        with pytest.raises(UserError, match='another checksum'):
            files.check_seal(tmp_path, whole | changes, 'Fix it.')
