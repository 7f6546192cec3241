"""gs:// against a stand-in for the service: paths like local ones, checkpoints, metrics; with the service's faults."""

import concurrent.futures
import io
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import models
from bucket import BUCKET, bucket
from gpt1_jax import files, lock, remote
from gpt1_jax.data import parquet
from gpt1_jax.data.corpus.shards import ShardWriter, load_shards, start_journal
from gpt1_jax.errors import UserError
from gpt1_jax.saved_models import huggingface, openai
from gpt1_jax.training.checkpoint import Checkpointer
from gpt1_jax.training.metric_writer import MetricWriter, read_metrics
from helpers import ENVIRONMENT, ROOT, command

pytest.importorskip('tensorflow')


@pytest.fixture(scope='module')
def running(tmp_path_factory):
    """One server for all tests: TensorStore reads its address once."""
    try:
        with bucket(tmp_path_factory.mktemp('server')) as server, pytest.MonkeyPatch.context() as patch:
            for name, value in server.environment.items():
                patch.setenv(name, value)
            yield server
    except FileNotFoundError:
        pytest.skip('openssl is not installed')


@pytest.fixture
def store(running):
    """The server, empty and without faults."""
    with running.lock:
        running.objects.clear()
        running.asked.clear()
    yield running
    running.fault = lambda method, path, number: ''


def folder():
    return epath.Path(f'gs://{BUCKET}/a/b')


def once_each(*faults):
    """These faults, in turn, at the first request of each kind."""
    seen = {}

    def fault(method, path, number):
        kind = method, path.startswith('/upload'), '?' in path, 'upload_id' in path
        if kind in seen:
            return ''
        seen[kind] = faults[len(seen) % len(faults)]
        return seen[kind]

    return fault


def using(root):
    """What a folder answers to all that the program does with files."""
    path, found = root / 'one.txt', []
    root.mkdir(parents=True, exist_ok=True)
    root.mkdir(parents=True, exist_ok=True)
    with path.open('w') as file:
        file.write('first\n')
        file.flush()
        found.append(path.read_text())
        file.write('second\n')
    with path.open('a') as file:
        file.write('third\n')
    with path.open('rb') as file:
        found += [file.readline(), file.seek(1), file.read(3), file.tell(), file.read()]
    with path.open() as file:
        found.append(list(file))
    files.write_atomically(root / 'two', [b'x', np.arange(3)])
    files.write_json(root / 'c' / 'three.json', [1]) if (root / 'c').mkdir() is None else None
    found += [
        (root / 'two').read_bytes(),
        files.read_json(root / 'c' / 'three.json', list),
        files.size_of(root / 'two'),
    ]
    found.append(sorted((one.name, one.is_dir()) for one in root.iterdir()))
    found.append(sorted(one.name for one in root.glob('*.txt')))
    for missing in (lambda: (root / 'no').read_text(), lambda: (root / 'no').unlink(), lambda: (root / 'no').rmtree()):
        with pytest.raises(FileNotFoundError) as caught:
            missing()
        found.append(caught.value.filename == str(root / 'no'))
    (root / 'c').rmtree()
    path.replace(root / 'two')
    found += [files.exists(one) for one in (root, path, root / 'two', root / 'c')]
    return found + [(root / 'two').read_text()]


@pytest.mark.parametrize('faults', [(503, 'cut', 'lost'), ('lost', 503, 'cut')])
def test_paths_behave_like_local_ones_whatever_faults_pass(tmp_path, store, faults):
    store.fault = once_each(*faults)
    assert using(folder()) == using(epath.Path(tmp_path / 'b'))
    assert {what for *_, what in store.asked} == {'', *faults}
    assert store.names() == ['a/b/', 'a/b/two']


@pytest.mark.parametrize(
    ('fault', 'says'), [(401, 'HTTP status 401'), (403, 'HTTP status 403'), ('no bucket', 'bucket does not exist')]
)
def test_what_the_store_refuses_is_one_sentence_at_once(store, fault, says):
    path = folder() / 'one' if isinstance(fault, int) else epath.Path('gs://nowhere/a/one')
    store.fault = lambda method, path, number: fault if isinstance(fault, int) else ''
    for use in (path.read_text, lambda: path.write_text('x'), lambda: path.parent.mkdir(parents=True)):
        with pytest.raises(OSError) as caught:
            use()
        assert says in (sentence := files.explain(caught.value)) and sentence.startswith(str(caught.value.filename))
    for use in (lambda: files.write_json(path, 1), lambda: files.make_directory(path)):
        with pytest.raises(UserError, match=f'^{path}: .*{says}'):
            use()
    assert len(store.asked) < 30 and store.names() == []


def test_a_folder_is_removed_whatever_faults_pass(store):
    for name in ('one', 'two', 'c/three'):
        files.write_json(folder() / name, 1)
    store.fault = lambda method, path, number: 503 if number % 3 == 2 else ''
    folder().rmtree()
    assert store.names() == []


class Refused:
    """A file of TensorFlow that cannot be uploaded."""

    uploads = 0

    def write(self, data):
        pass

    def flush(self):
        self.uploads += 1
        raise OSError('refused')

    close = flush


def test_the_end_of_a_file_is_no_further_attempt():
    file = Refused()
    with pytest.raises(OSError, match='refused'), remote._Writer(remote._File(file, 'gs://a/b', 'wb'), 9) as writer:
        writer.write(b'a')
    assert file.uploads == 2  # when it is flushed, and closed


def items():
    return {'params': {'w': jnp.arange(12.0).reshape(3, 4), 'b': jnp.ones(5)}}


def test_checkpoints(store):
    """Saved, ranked, removed when they are old, restored with the same bits; half of one is none."""
    store.fault = once_each('cut', 503, 'lost')
    saved, directory = items(), folder() / 'checkpoints'
    checkpointer = Checkpointer(directory, keep_latest=1, keep_best=1, best_metric='loss')
    for step, loss in ((1, 1.0), (2, 3.0), (3, 2.0)):
        checkpointer.save(step, jax.tree.map(lambda leaf: leaf + step, saved), {'at': step}, {'loss': loss})
    checkpointer.close()
    reader = Checkpointer(directory, best_metric='loss')
    assert reader.steps() == reader.steps_by_rank() == [1, 3]
    with store.lock:
        del store.objects[BUCKET, 'a/b/checkpoints/3/commit_success.txt']
    assert reader.steps() == [1]
    step, restored, meta = reader.restore_latest(jax.eval_shape(items))
    assert (step, meta) == (1, {'at': 1})
    jax.tree.map(np.testing.assert_array_equal, restored, jax.tree.map(lambda leaf: leaf + 1, saved))


def test_metrics(store, caplog):
    workdir = folder()
    for first in (1, 3):  # the second run goes on after step 2
        writer = MetricWriter(workdir)
        writer.truncate_after(first - 1)
        for step in range(first, first + 4):
            writer.write(step, {'loss': step / 2})
        writer.flush()
        assert [line['step'] for line in read_metrics(workdir)] == list(range(1, first + 4))
        writer.close()
    uploads = [path for method, path, _ in store.asked if method == 'POST' and path.endswith('metrics.jsonl')]
    assert 2 <= len(uploads) <= 5  # not one for each line
    assert len(store.names('a/b/tensorboard/events')) == 2 and 'Not all metrics' not in caplog.text


def test_shards(store, sentencepiece):
    output = folder()
    start_journal(output, {})
    sentencepiece.save(output / 'tokenizer')
    writer = ShardWriter(output, sentencepiece.vocab_size, 10)
    writer.start_document('train')
    writer.append('train', np.arange(25))
    writer.commit(1)
    ShardWriter(output, sentencepiece.vocab_size, 10).finish(sentencepiece.fingerprint)
    shards = load_shards(output)
    shards.verify()
    np.testing.assert_array_equal(shards.splits['train'].read(np.array([8, 0, 17]), 8)[:, 0], [8, 0, 17])
    assert not store.names('a/b/journal')

    def read(threads):
        split = load_shards(output).splits['train']
        store.asked.clear()
        store.fault, store.seconds = (lambda method, path, number: 'slow'), 0.1
        with concurrent.futures.ThreadPoolExecutor() as pool:
            assert [list(window) for [window] in pool.map(split.read, [np.array([1])] * threads, [5] * threads)] == [
                [1, 2, 3, 4, 5]
            ] * threads
        store.fault = lambda method, path, number: ''
        return len(store.asked)

    assert read(1) == read(4)  # the threads that want a file read it once
    split = load_shards(output).splits['train']
    store.put((BUCKET, 'a/b/train-00000.bin'), b'abc')
    with pytest.raises(UserError, match='train-00000.bin: The file has become shorter since the run began'):
        split.read(np.array([0]), 8)


def test_what_cannot_be_known_is_not_taken_for_absent(store):
    """A run that found no checkpoints would begin again."""
    files.write_json(folder() / 'checkpoints' / '3' / 'commit_success.txt', 1)
    checkpointer = Checkpointer(folder() / 'checkpoints')
    store.fault = lambda method, path, number: 403 if method == 'GET' and 'prefix=' in path else ''
    for ask in (
        lambda: folder().is_dir(),
        lambda: list(folder().iterdir()),
        lambda: list(folder().walk()),
        lambda: list(folder().glob('*')),
        lambda: folder().rmtree(),
        checkpointer.steps,
    ):
        with pytest.raises(OSError, match='HTTP status 403'):
            ask()
    store.fault = lambda method, path, number: ''
    assert checkpointer.steps() == [3]


def test_half_a_checkpoint_that_was_being_deleted_is_none(store):
    for step in ('1', '2'):
        for name in ('commit_success.txt', 'params/d/0'):
            (folder() / step / name).write_text('')
    store.fault = lambda method, path, number: 403 if method == 'DELETE' and 'params' in path else ''
    with pytest.raises(OSError, match='HTTP status 403'):
        (folder() / '2').rmtree()
    assert store.names('a/b/2') == ['a/b/2/params/d/0'] and Checkpointer(folder()).steps() == [1]


@pytest.mark.parametrize('scheme', ['openai', 'hf'])
def test_models_of_other_programs(store, sentencepiece, scheme):
    saved, params = models.make_model(np.random.default_rng(0), sentencepiece)
    {'openai': openai, 'hf': huggingface}[scheme].write_folder(folder(), saved, params)
    _, there = models.read(f'{scheme}:{folder()}')
    models.assert_same_bits(there, params)


def test_parquet(store):
    arrow = pytest.importorskip('pyarrow')
    pytest.importorskip('pyarrow.parquet')
    path, rows = folder() / 'a.parquet', [{'text': f'{i} ship' * 100, 'label': i} for i in range(1000)]
    table = io.BytesIO()
    arrow.parquet.write_table(arrow.Table.from_pylist(rows), table, row_group_size=300)
    path.write_bytes(table.getvalue())
    store.fault = once_each('cut')
    assert list(parquet.rows(path)) == rows
    store.fault = lambda method, path, number: 403
    with pytest.raises(OSError, match='HTTP status 403'):  # which does not mean that the file is damaged
        list(parquet.rows(path))


def test_a_lock(store, monkeypatch):
    monkeypatch.setattr(lock, 'BEAT_SECONDS', 0.05)
    monkeypatch.setattr(lock, 'STALE_SECONDS', 3.0)
    monkeypatch.setattr(lock, '_SETTLE_SECONDS', 0.0)
    monkeypatch.setattr(lock, '_machine', iter('abcdefghijk').__next__)  # each is of another machine
    with lock.hold(folder()):
        with monkeypatch.context() as another, pytest.raises(UserError, match='b: Another run writes to it'):
            another.setattr(lock, '_held', {})
            with lock.hold(folder()):
                pass
    assert store.names() == ['a/b/']
    files.write_json(folder() / lock.NAME, lock._holder())  # one that is dead
    monkeypatch.setattr(lock, 'STALE_SECONDS', 0.2)
    with lock.hold(folder()):
        lock.check(folder())
    assert store.names() == ['a/b/']


@pytest.mark.rehearsal
@pytest.mark.parametrize('fault', [503, 'cut', 'lost', 'slow'])
def test_a_run_in_a_faulty_store_has_the_bits_of_a_local_one(tmp_path, running, fault):
    """prepare, pretrain, convert, generate: each request in eight goes wrong."""
    (tmp_path / 'books').mkdir()
    for number in range(4):
        (tmp_path / 'books' / f'{number}.txt').write_text(f'the ship and the field of {number}.\n' * 300)
    with running.lock:
        running.objects.clear()
    environment = ENVIRONMENT | running.environment
    running.fault = lambda method, path, number: fault if number % 8 == 5 else ''
    roots = [epath.Path(tmp_path / 'here'), epath.Path(f'gs://{BUCKET}/there')]
    for root in roots:
        shards = f'--config.data.output={root}/shards', f'--config.data.source=text:{tmp_path}/books'
        small = '--config.model.layers=1', '--config.model.width=64', '--config.model.n_positions=32'
        length = (
            '--config.optimizer.warmup_steps=2',
            '--config.model.mlp_width=256',
            '--config.data.tokens=2560',
            '--config.data.batch_size=8',
            '--config.checkpoint.every=5',
        )
        trained = f'--config.data.source=shards:{root}/shards', f'--workdir={root}/run', *small, *length
        for words in (
            ('prepare.py', *shards, '--config.data.vocab_size=290', f'--workdir={root}/prepare'),
            ('pretrain.py:tiny', *trained),
            ('convert.py', f'--config.source={root}/run', f'--config.target=hf:{root}/hf', f'--workdir={root}/convert'),
            ('generate.py', f'--config.init_from={root}/run', '--config.max_tokens=4', f'--workdir={root}/text'),
        ):
            subprocess.run(command(*words), cwd=ROOT, env=environment, check=True, timeout=900)
    running.fault = lambda method, path, number: ''
    names = 'shards/train-00000.bin shards/index.json hf/model.safetensors text/generations.jsonl'.split()
    for name in (*names, 'run/checkpoints/10/record/metadata'):
        here, there = ((root / name).read_bytes() for root in roots)
        assert here == there, name
