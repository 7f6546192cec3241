"""Files are whole or not there, and what is missing is named."""

import json

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


def test_a_folder_that_cannot_be_made(tmp_path):
    files.make_directory(epath.Path(tmp_path / 'a' / 'b'))
    files.make_directory(epath.Path(tmp_path / 'a' / 'b'))
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='file/c: The folder cannot be made'):
        files.make_directory(epath.Path(tmp_path / 'file' / 'c'))


def test_a_missing_package_is_named():
    assert files.import_package('json', 'nothing works') is json
    with pytest.raises(UserError, match='no_such_package: This package is not installed, and no wheel turns without'):
        files.import_package('no_such_package', 'no wheel turns')


def test_package_versions():
    assert files.package_version('pytest') == pytest.__version__
    assert files.package_version('no-such-package') == ''


def test_local_paths(tmp_path):
    assert files.is_local(tmp_path) and not files.is_local('gs://bucket/file')
