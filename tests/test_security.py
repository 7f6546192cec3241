"""What is read may come from anywhere: it runs nothing, fills no memory, and leads to no file outside its folder."""

import gzip
import json
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import zipfile

import numpy as np
import pyarrow
import pytest
from etils import epath
from pyarrow import parquet as arrow_parquet

import models
from configs import pretrain
from gpt1_jax import hub
from gpt1_jax.config import as_json
from gpt1_jax.data.corpus import containers, shards
from gpt1_jax.data.corpus.sources import open_corpus
from gpt1_jax.data.labelled import contents, sequences, token_folder
from gpt1_jax.errors import UserError
from gpt1_jax.report import page
from gpt1_jax.report.results import Result
from gpt1_jax.saved_models import huggingface, store
from gpt1_jax.training.checkpoint import Checkpointer
from gpt1_jax.training.metric_writer import MetricWriter
from gpt1_jax.workdir import open_workdir
from helpers import ENVIRONMENT, ROOT, load_files, refusal

SECRETS = {
    'HF_TOKEN': 'hf_0123456789abcdefgh',
    'HUGGING_FACE_HUB_TOKEN': 'hf_another9876543210',
    'WANDB_API_KEY': '0123456789abcdef0123456789abcdef01234567',
    'AWS_SECRET_ACCESS_KEY': 'wJalrXUtnFEMI/K7MDENG',
    'MY_PASSWORD': 'correct-horse-battery-staple',
}


# ----------------------------------------------------------------- bombs


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, '_UNPACKED', 10**6)
    (tmp_path / 'fine.txt').write_text('a book\n')
    with zipfile.ZipFile(tmp_path / 'books.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        for name in 'ab':
            archive.writestr(f'{name}.txt', '0' * 600_000)
    (problem,) = open_corpus(f'text:{tmp_path}').problems
    assert 'books.zip' in problem and 'would unpack to 1,200,000, as no text does' in problem
    monkeypatch.setattr(containers, '_UNPACKED', 2 * 10**6)
    assert open_corpus(f'text:{tmp_path}').documents == 3


def test_a_labelled_gzip_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, '_UNPACKED', 10**6)
    (tmp_path / 'train.tsv.gz').write_bytes(gzip.compress(b'sentence\tlabel\n' + b'0' * 3 * 10**6))
    assert 'unpack to more than 1,000,000, as no text does' in refusal('sst2', tmp_path)


def test_a_line_without_end_is_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, '_LONGEST_LINE', 1000)
    (tmp_path / 'fine.txt').write_text('a book\n')
    with gzip.open(tmp_path / 'books.jsonl.gz', 'wt') as file:
        file.write('{"text": "' + 'x' * 2000)
    (problem,) = open_corpus(f'text:{tmp_path}').problems
    assert 'a line has more than 1,000 bytes' in problem


def test_a_parquet_file_with_more_rows_than_fit_is_refused(tmp_path):
    texts = pyarrow.nulls(2**21, pyarrow.string())
    arrow_parquet.write_table(pyarrow.table({'text': texts}), tmp_path / 'books.parquet')
    assert (tmp_path / 'books.parquet').stat().st_size < 10_000
    (problem,) = open_corpus(f'text:{tmp_path}').problems
    assert 'says that it has 2,097,152 rows, more than fit into it' in problem


def write_bombs(folder):
    """A folder for each; they are of kilobytes, and say or hold gigabytes."""
    block = gzip.compress(bytes([ord('0')]) * 2**24)
    for name in ('gzip', 'line', 'zip', 'short', 'parquet', 'wide', 'json'):
        (folder / name).mkdir()
        (folder / name / 'fine.txt').write_text('a book\n')
    (folder / 'gzip' / 'train.tsv.gz').write_bytes(gzip.compress(b'text\tlabel\n') + 64 * block)
    (folder / 'line' / 'books.jsonl.gz').write_bytes(gzip.compress(b'{"text": "') + 64 * block)
    with zipfile.ZipFile(folder / 'zip' / 'books.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a.txt', '0' * 2**24)
    data = bytearray((folder / 'zip' / 'books.zip').read_bytes())
    size = data.rindex(b'PK\x01\x02') + 24  # of the text, in the directory
    for name, told in (('zip', 2**32 - 2), ('short', 100)):
        data[size : size + 4] = told.to_bytes(4, 'little')
        (folder / name / 'books.zip').write_bytes(data)
    labels = ['yes', 'no'] * 40
    for name, texts in (
        ('parquet', pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 80, pyarrow.int32()), ['0' * 2**24])),
        ('wide', ['0' * 2**22 for _ in labels]),
    ):
        table = pyarrow.table({'text': texts, 'label': labels})
        options = {'use_dictionary': name == 'parquet', 'store_schema': False, 'write_statistics': False}
        arrow_parquet.write_table(table, folder / name / 'train.parquet', compression='zstd', **options)
    (folder / 'json' / 'train.jsonl').write_text('[' * 2**24)
    (folder / 'json' / 'model.json').write_text('{"a":' * 2**22)
    for name, shape in (('long.npy', (10**12,)), ('flat.npy', (2**31, 2**31))):
        header = np.lib.format.header_data_from_array_1_0(np.zeros(1)) | {'shape': shape}
        with (folder / 'json' / name).open('wb') as file:
            np.lib.format.write_array_header_1_0(file, header)
    with zipfile.ZipFile(folder / 'json' / 'long.npz', 'w') as archive:
        archive.writestr('a.npy', (folder / 'json' / 'long.npy').read_bytes())


BOMBS = {  # what is said of each
    'gzip': 'unpack to more than 268,435,456, as no text does',
    'line': 'a line has more than 67,108,864 bytes',
    'zip': 'would unpack to 4,294,967,294, as no text does',
    'short': 'Bad CRC-32',  # no more is unpacked than the directory says
    'parquet': 'read',
    'wide': 'as no text does',
    'json': 'nested too deeply',
    'model.json': 'nested too deeply',
    'long.npy': 'mmap length is greater than file size',
    'flat.npy': 'overflow',
    'long.npz': 'Unable to allocate 7.28 TiB',
}
READ_BOMBS = """
import pathlib, resource, sys
from etils import epath
from gpt1_jax import array_files, files
from gpt1_jax.data.corpus.sources import open_corpus
from gpt1_jax.data.labelled.loading import load_examples
from gpt1_jax.data.labelled.registry import custom_dataset
from gpt1_jax.errors import UserError

folder = pathlib.Path(sys.argv[1])
dataset = custom_dataset(kind='classification', fields=['text'], labels=['yes', 'no'])
labelled = lambda name: load_examples(dataset, f'files:{folder / name}', 'train')
corpus = lambda name: list(open_corpus(f'text:{folder / name}').blocks())
try:
    labelled('wide')  # imports what reads parquet files before the limit
except UserError:
    pass
used = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]),) * 2)
for name, read in {
    'gzip': labelled, 'line': corpus, 'zip': corpus, 'short': corpus, 'parquet': labelled, 'wide': labelled,
    'json': labelled, 'model.json': lambda name: files.read_json(epath.Path(folder / 'json' / name)),
    'long.npy': lambda name: array_files.load_npy(folder / 'json' / name),
    'flat.npy': lambda name: array_files.load_npy(folder / 'json' / name),
    'long.npz': lambda name: array_files.load_npz((folder / 'json' / name).read_bytes()),
}.items():
    try:
        read(name)
        print(name, 'read')
    except (UserError, ValueError) as error:
        print(name, type(error).__name__, str(error).splitlines()[0])
"""


@pytest.mark.slow
def test_bombs_of_every_kind_are_read_or_refused_in_bounded_memory(tmp_path):
    """The limit is the system's; a library that would not keep it ends the process."""
    write_bombs(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.rglob('*')) < 2**26
    done = subprocess.run(
        [sys.executable, '-c', READ_BOMBS, str(tmp_path), str(2**30)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = dict(line.split(' ', 1) for line in done.stdout.splitlines())
    assert found.keys() == BOMBS.keys()
    assert {name: said for name, said in found.items() if BOMBS[name] not in said} == {}


# ----------------------------------------------------------------- paths that climb


def test_members_of_an_archive_are_read_where_they_are(tmp_path):
    (tmp_path / 'in').mkdir()
    with zipfile.ZipFile(tmp_path / 'in' / 'books.zip', 'w') as archive:
        for name in ('../../climbed.txt', 'a/../../climbed.txt', '/tmp/absolute.txt'):
            archive.writestr(name, f'the text of {name}\n')
    blocks = list(open_corpus(f'text:{tmp_path}/in').blocks())
    assert [block.text for block in blocks] == ['the text of /tmp/absolute.txt\n']  # the others count as hidden
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['books.zip', 'in']


@pytest.mark.parametrize('split', ['test/../../climbed', '../train', '/etc/passwd', 'test\0', ''])
def test_a_split_that_is_a_path_is_refused(tmp_path, split):
    """It would become a part of the names of files of predictions."""
    entry = {'sha256': '', 'examples': 1, 'cut_sequences': 0, 'cut_tokens': 0}
    index = {'format_version': 1, 'dataset': 'sst2', 'tokenizer_fingerprint': 'f', 'max_length': 9, 'rule': 'r'}
    (tmp_path / 'index.json').write_text(json.dumps(index | {'splits': {split: entry}}))
    with pytest.raises(UserError, match='is not a name of a split'):
        token_folder.tokens_splits(tmp_path)


def test_names_of_the_hub_that_climb_are_refused(hub_server, tmp_path):
    hub_server.add('someone/evil', {'config.json': b'{}', '../../../climbed.json': b'{}'})
    with pytest.raises(UserError, match=r"impossible names .'../../../climbed.json'."):
        hub.open_repository('hf:someone/evil', hub.parse('someone/evil'), 'model')
    assert not list(tmp_path.rglob('climbed*'))


# ----------------------------------------------------------------- links and pipes in a folder to start from


@pytest.fixture(scope='module')
def blobs(tmp_path_factory):
    folder, rng = epath.Path(tmp_path_factory.mktemp('blobs')), np.random.default_rng(0)
    finite = lambda rng, shape: rng.normal(size=shape).astype(np.float32)
    saved, params = models.make_model(rng, models.released_tokenizer(folder / 'released', 60), draw=finite)
    (folder / 'blobs').mkdir()
    huggingface.write_folder(folder / 'blobs', saved, params)
    return folder / 'blobs'


@pytest.fixture
def folder(tmp_path, blobs):
    """A folder as the hub's cache has them: its files are links to others."""
    shutil.copytree(blobs, tmp_path / 'blobs')
    (tmp_path / 'model').mkdir()
    for path in (tmp_path / 'blobs').iterdir():
        (tmp_path / 'model' / path.name).symlink_to(path)
    return tmp_path / 'model'


def test_links_are_followed_for_reading_and_nothing_is_written_there(folder):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.parent.rglob('*') if path.is_file()}
    _, params = models.read(f'hf:{folder}')
    assert np.isfinite(params['decoder']['table']).all()
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.parent.rglob('*') if path.is_file()}
    assert before == after and all(path.is_symlink() for path in folder.iterdir())


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors', 'vocab.json', 'merges.txt'])
@pytest.mark.parametrize('kind', ['dangling', 'loop', 'pipe', 'folder', 'device'])
def test_what_is_no_file_is_one_sentence(folder, name, kind):
    """Above all, it is not waited for, nor read without end."""
    path = folder / name
    path.unlink()
    if kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'folder':
        path.mkdir()
    else:
        path.symlink_to({'dangling': 'nowhere', 'loop': name, 'device': '/dev/zero'}[kind])
    with pytest.raises((UserError, OSError)) as caught:
        store.open_model(f'hf:{folder}')
    assert name in str(caught.value) or str(folder) in str(caught.value)


# ----------------------------------------------------------------- what is written


def write_all(folder, sentencepiece):
    """What tasks write, by the functions that they call."""
    shards.start_journal(folder / 'shards', {'source': 'text:/books'})
    writer = shards.ShardWriter(folder / 'shards', 290, 100)
    writer.start_document('train')
    writer.append('train', np.arange(130))
    writer.commit({'start': [0, 7]})
    writer.finish(sentencepiece.fingerprint)
    asked = pretrain.get_config('tiny')
    open_workdir(asked, folder / 'run', write=True, fingerprint=lambda source: 'content')
    saved, params = models.make_model(np.random.default_rng(0), sentencepiece)
    store.describe_run(folder / 'run', models.classifier_of(saved), sentencepiece)
    checkpointer = Checkpointer(folder / 'run' / 'checkpoints')
    checkpointer.save(1, {'params': params}, {})
    checkpointer.close()
    metrics = MetricWriter(folder / 'run')
    metrics.write(1, {'loss': 3.0})
    metrics.close()
    Result('pretrain', [], {}, None, as_json(asked), 1.0).write(folder / 'run')
    lengths = np.array([[3], [4]], np.int32)
    made = sequences.Sequences.end_to_end(np.arange(7, dtype=np.int32), lengths)
    sequences.save_copy(pathlib.Path(folder / 'cache'), 'copy', made, np.zeros((2, 1), np.int32))
    page.write_blocks('Report', page.sections([]), folder / 'report')


@pytest.mark.parametrize(('umask', 'forbidden'), [(0o022, 0o022), (0o077, 0o077)])
def test_what_is_written_has_the_permissions_that_the_user_wants(tmp_path, sentencepiece, umask, forbidden):
    former = os.umask(umask)
    try:
        write_all(epath.Path(tmp_path) / 'made', sentencepiece)
    finally:
        os.umask(former)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / 'made').rglob('*')}
    assert len(modes) > 20
    assert {str(path): oct(mode) for path, mode in modes.items() if mode & forbidden} == {}
    assert {str(path): oct(mode) for path, mode in modes.items() if path.is_file() and mode & 0o111} == {}


def test_no_secret_of_the_environment_is_written_or_logged(tmp_path, sentencepiece, monkeypatch, caplog):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level('DEBUG'):
        write_all(epath.Path(tmp_path) / 'made', sentencepiece)
        page.write(epath.Path(tmp_path) / 'made', epath.Path(tmp_path) / 'made' / 'page')
    written = {path: path.read_bytes() for path in (tmp_path / 'made').rglob('*') if path.is_file()}
    for name, value in SECRETS.items():
        assert value not in caplog.text and name not in caplog.text
        assert [path for path, data in written.items() if value.encode() in data or name.encode() in data] == []


def test_labels_and_texts_are_data(tmp_path):
    """Nothing in them is evaluated or formatted."""
    evil = '__import__("os").system("touch /tmp/evil") {0.__class__} %s $HOME'
    (tmp_path / 'train.jsonl').write_text(json.dumps({'sentence': evil, 'label': 1}) + '\n')
    assert load_files('sst2', tmp_path).fields['sentence'] == [evil]
