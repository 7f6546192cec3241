"""Fetching from a hub of this machine, in every state that a network can be in."""

import json
import os
import pwd
import re
import subprocess
import sys

import pytest
from etils import epath

from gpt1_jax import hub, network
from gpt1_jax.errors import UserError
from helpers import ROOT
from servers import Hub, running

NAME = 'someone/some-model'
FILES = {'config.json': b'{}', 'model.safetensors': bytes(range(256)) * 40, 'other.txt': b'not wanted'}
WANTED = ['config.json', 'model.safetensors']
BY_HAND = r'hf download someone/some-model --local-dir DIR'


@pytest.fixture
def server(hub_server):
    hub_server.add(NAME, FILES)
    return hub_server


def open_(text=NAME, kind='model', download=True):
    return hub.open_repository(f'hf:{text}', hub.parse(text), kind, download)


def again(text=NAME, **kwargs):
    """As the next run of the program does it."""
    hub.open_repository.cache_clear()
    network._faults.clear()
    return open_(text, **kwargs)


def contents(folder, files=WANTED):
    return {file: (folder / file).read_bytes() for file in files}


def refused(match, text=NAME, files=WANTED, **kwargs):
    with pytest.raises(UserError, match=match) as error:
        again(text, **kwargs).get(files)
    assert re.fullmatch(r'[^\n]+: [A-Z][^\n]*\. [A-Z][^\n]*\.', str(error.value)), error.value
    return str(error.value)


@pytest.mark.parametrize(
    ('text', 'name'),
    [
        ('a/b', ('a/b', None, '')),
        ('nyu-mll/glue:sst2', ('nyu-mll/glue', None, 'sst2')),
        ('a.b/c_d-1.0@refs/pr/1:x', ('a.b/c_d-1.0', 'refs/pr/1', 'x')),
        ('a/b@v2', ('a/b', 'v2', '')),
        *((text, None) for text in ('a', '/a/b', './a', '../a/b', 'a/b/c', '~/a', 'a/', 'a/b:', 'a/b@', '')),
    ],
)
def test_names(text, name):
    assert hub.parse(text) == name


def test_what_is_wanted_is_fetched_once(server, caplog, monkeypatch):
    monkeypatch.setattr(pwd, 'getpwuid', {}.__getitem__)  # the user of a container need not have a name
    caplog.set_level('INFO', logger='absl')
    repository = open_()
    assert repository.sizes == {name: len(data) for name, data in FILES.items()}
    assert contents(repository.get(WANTED)) == {name: FILES[name] for name in WANTED}
    assert repository.commit in caplog.text and server.url in caplog.text  # what was read, and from where
    assert sorted(path.rpartition('/')[2] for path in server.fetched()) == WANTED
    server.asked.clear()
    record = repository.get(WANTED).parents[1] / 'gpt1_jax' / f'{repository.commit}.json'
    record.unlink()
    record.with_name(f'{record.name}.tmp').mkdir()  # in the place of what another process of the run writes there
    assert contents(again().get(WANTED)) == {name: FILES[name] for name in WANTED}
    assert server.fetched() == [] and record.exists()


def test_a_changed_repository_is_fetched_and_named(server, caplog):
    caplog.set_level('INFO', logger='absl')
    first = open_().commit
    server.add(NAME, FILES | {'config.json': b'{"a": 1}'})
    assert open_().commit == first  # all of a run reads one commit
    repository = again()
    assert repository.commit != first and repository.commit in caplog.text
    assert contents(repository.get(WANTED))['config.json'] == b'{"a": 1}'


def test_revisions(server):
    commit = server.add(NAME, {'config.json': b'old'}, revision='v1')
    server.add(NAME, {'config.json': b'asked for'}, revision='refs/pr/1')
    for revision, data in (('v1', b'old'), (commit, b'old'), ('refs/pr/1', b'asked for'), ('main', b'{}')):
        assert contents(again(f'{NAME}@{revision}').get(['config.json']), ['config.json']) == {'config.json': data}
    message = refused("no revision 'v9'", f'{NAME}@v9')
    assert 'branches, tags or commits' in message


def test_data_sets_are_other_repositories(server):
    server.add(NAME, {'a.parquet': b'abc'}, kind='dataset')
    folder = again(kind='dataset').get(['a.parquet'])
    assert (folder / 'a.parquet').read_bytes() == b'abc'
    server.faults = {f'/api/datasets/{NAME}/revision/v1': (9, 500)}
    refused('--repo-type dataset --revision v1 --local-dir DIR', text=f'{NAME}@v1', kind='dataset')


@pytest.mark.parametrize(
    ('status', 'code', 'match'),
    [
        (403, 'GatedRepo', 'permission of its owner. Ask for it there, log in with  hf auth login'),
        (401, 'GatedRepo', 'permission of its owner. Ask for it there, log in with  hf auth login'),
        (404, 'RepoNotFound', 'has no model someone/some-model, or it is private'),
        (401, '', 'has no model someone/some-model, or it is private'),
        (403, '', 'answers with status 403. Log in'),
    ],
)
def test_what_the_hub_refuses(server, status, code, match):
    server.refused[NAME] = (status, code)
    refused(match)
    assert len(server.asked) <= 3  # nothing is tried again and again


def test_an_unknown_name(server):
    refused('no such folder here, and the hub has no model no-one/nothing', 'no-one/nothing')
    refused('the hub has no model some--one/nothing', 'some--one/nothing')  # which it allows nobody


def test_no_network(server, caplog):
    """Neither a server that refuses, nor one that is silent or broken; what is in the cache is read nevertheless."""
    api = f'/api/models/{NAME}/revision/main'
    for fault in ('silent', 'dead', 500, 429):
        server.faults = {f'/api/models/{NAME}': (9, fault), api: (9, fault)}
        refused(f'cannot be fetched .*{BY_HAND}')
    server.faults = {}
    again().get(WANTED)
    server.faults = {f'/api/models/{NAME}': (9, 500)}
    assert contents(again().get(WANTED)) == {name: FILES[name] for name in WANTED}
    server.shutdown()
    server.server_close()
    assert contents(again().get(WANTED)) == {name: FILES[name] for name in WANTED}
    assert "in the hub's cache is read, 2 of 3 files, because the hub is not asked" in caplog.text
    refused('Connection refused.*hf download someone/some-model --revision v2 --local-dir DIR', f'{NAME}@v2')
    refused(f'lacks other.txt, which cannot be fetched .*Connection refused.*{BY_HAND}', files=['other.txt'])


def test_offline_and_forbidden(server, monkeypatch):
    refused('data.download is False', download=False)
    assert server.asked == []
    again().get(WANTED)
    server.asked.clear()
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    assert contents(again().get(WANTED)) == {name: FILES[name] for name in WANTED}
    refused('HF_HUB_OFFLINE is set', f'{NAME}@v2')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
    commit = again(download=False).commit
    for text in (NAME, f'{NAME}@{commit}'):
        assert contents(again(text, download=False).get(WANTED)) == {name: FILES[name] for name in WANTED}
    assert server.asked == []


def weights_path(server):
    return next(path for path in server.files if path.endswith('model.safetensors'))


def test_a_download_that_is_cut_goes_on(server, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE', 512)  # it goes on from whole pieces
    server.faults[weights_path(server)] = (2, 'cut')
    assert contents(again().get(WANTED)) == {name: FILES[name] for name in WANTED}
    assert len([path for path in server.fetched() if path == weights_path(server)]) == 3
    size = len(FILES['model.safetensors'])
    assert server.ranges == [f'bytes={size // 2}-', f'bytes={size * 3 // 4}-']


def test_a_download_that_ends_is_named_and_goes_on_later(server):
    server.faults[weights_path(server)] = (99, 'dead')
    refused(f'model.safetensors cannot be fetched .*Run the command again.*{BY_HAND}')
    refused('lacks model.safetensors, which', download=False)  # half is never taken for whole
    server.faults.clear()
    server.asked.clear()
    assert contents(again().get(WANTED)) == {name: FILES[name] for name in WANTED}
    assert server.fetched() == [weights_path(server)]


def test_a_wrong_checksum(server):
    for file in WANTED:  # of git and of what is stored apart
        path = next(path for path in server.files if path.endswith(file))
        server.faults[path] = (1, 'changed')
        message = refused(f'The file {file} came with another checksum')
        assert 'was deleted. Run the command again' in message
    assert contents(again().get(WANTED)) == {name: FILES[name] for name in WANTED}


def test_a_file_of_the_cache_that_was_cut(server):
    folder = again().get(WANTED)
    path = epath.Path(os.path.realpath(folder / 'model.safetensors'))
    path.write_bytes(path.read_bytes()[:1000])
    for download in (True, False):
        refused(r'model.safetensors: The file has 1,000 of 10,240 bytes. Delete it', download=download)


def test_a_cache_that_another_program_has_filled(server, monkeypatch, caplog):
    huggingface_hub = pytest.importorskip('huggingface_hub')
    huggingface_hub.hf_hub_download(NAME, 'config.json', endpoint=server.url)
    repository = again(download=False)
    assert contents(repository.get(['config.json']), ['config.json']) == {'config.json': b'{}'}
    assert 'an unknown number of files' in caplog.text


def test_a_cache_that_cannot_be_written_is_named(server, monkeypatch, tmp_path, caplog):
    (tmp_path / 'file').write_text('')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'file'))
    refused('config.json cannot be fetched')
    assert "The hub's cache cannot be written" in caplog.text


def test_a_local_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(pwd, 'getpwuid', {}.__getitem__)  # its owner need not have a name here
    for name in ('data/a.parquet', 'README.md', '.git/config', '.cache/huggingface/x'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('abc')
    repository = hub.open_folder('hf:x', epath.Path(tmp_path))
    assert repository.sizes == {'data/a.parquet': 3, 'README.md': 3} and repository.commit == ''
    assert repository.get(['README.md']) == epath.Path(tmp_path)


PROGRAM = f"""
import sys
from gpt1_jax import hub
print((hub.open_repository('hf:x', hub.parse('{NAME}'), 'model').get({WANTED})))
"""


def test_the_environment(server, tmp_path):
    """Of huggingface_hub, which reads it when it is imported: so in a process of its own."""
    environment = os.environ | {'HF_ENDPOINT': server.url, 'HF_HOME': str(tmp_path / 'home'), 'HF_TOKEN': 'hf_secret'}

    def run(**more):
        done = subprocess.run(
            [sys.executable, '-c', PROGRAM], cwd=ROOT, env=environment | more, capture_output=True, text=True
        )
        return done.stdout.strip(), done.stderr

    folder, _ = run()
    assert folder.startswith(f'{tmp_path}/home/hub/models--someone--some-model/snapshots/')
    assert server.headers['authorization'] == 'Bearer hf_secret'
    server.shutdown()
    server.server_close()
    assert run(HF_HUB_OFFLINE='1')[0] == folder
    assert 'UserError: hf:x: ' in run(HF_HUB_OFFLINE='1', HF_HUB_CACHE=str(tmp_path / 'other'))[1]


def test_two_programs_at_once(tmp_path):
    """Both get whole files."""
    with running(Hub()) as server:
        server.add(NAME, FILES)
        environment = os.environ | {'HF_ENDPOINT': server.url, 'HF_HOME': str(tmp_path)}
        both = [
            subprocess.Popen([sys.executable, '-c', PROGRAM], cwd=ROOT, env=environment, stdout=subprocess.PIPE)
            for _ in range(2)
        ]
        folders = {one.communicate()[0].decode().strip() for one in both}
    (folder,) = folders
    assert contents(epath.Path(folder)) == {name: FILES[name] for name in WANTED}
    record = next(epath.Path(tmp_path).glob('hub/models--someone--some-model/gpt1_jax/*.json'))
    assert json.loads(record.read_text()) == {name: len(data) for name, data in FILES.items()}
