"""Preparation of a corpus against encoding by hand: over workers, interruptions, and what can go wrong."""

import contextlib
import gzip
import json
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath

from corpora import InProcess, content, held_out, options
from gpt1_jax import files
from gpt1_jax.data.corpus import documents, passes, preparation, shards, sources
from gpt1_jax.data.tokenizers.loading import load_tokenizer
from gpt1_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]


def make_text(seed, lines):
    rng = random.Random(seed)
    words = 'the Captain said naïve house again walking river don’t morning lady Sir'.split()
    ends = ['.\n', '!\n', ' --\n', '\n']
    lines = (' '.join(rng.choices(words, k=rng.randint(0, 12))) for _ in range(lines))
    return ''.join(line + rng.choice(ends) for line in lines)


@pytest.fixture(scope='module')
def books(tmp_path_factory):
    folder = tmp_path_factory.mktemp('books')
    for i in range(12):
        data = make_text(i, 50 if i % 2 else 1500).encode()
        if i % 4:
            (folder / f'{i:02d}.txt').write_bytes(data)
        else:
            (folder / f'{i:02d}.txt.gz').write_bytes(gzip.compress(data))
    (folder / '98.txt').write_text(' \n\n')
    (folder / '99.txt').write_text('no newline at the end')
    return folder


@pytest.fixture(scope='module')
def prepared(books, tmp_path_factory):
    output = tmp_path_factory.mktemp('prepared') / 'deep' / 'shards'
    preparation.prepare(options(f'text:{books}'), output)
    return output


def test_tokens_are_the_documents(books, prepared):
    """Each document read whole, standardised and encoded in one piece."""
    loaded = shards.load_shards(prepared)
    loaded.verify()
    tokenizer = load_tokenizer(prepared / 'tokenizer')
    assert (loaded.tokenizer_fingerprint, loaded.vocab_size) == (tokenizer.fingerprint, 320)
    corpus = sources.open_corpus(f'text:{books}')
    names, held = list(corpus.names()), held_out(corpus, 0.2)
    expected = {'train': [], 'valid': []}
    documents = {'train': 0, 'valid': 0}
    for path in sorted(books.iterdir()):
        text = (gzip.decompress(path.read_bytes()) if path.suffix == '.gz' else path.read_bytes()).decode()
        (ids,) = tokenizer.encode_batch([text])
        split = 'valid' if names.index(path.name) in held else 'train'
        if len(ids):
            expected[split] += *ids.tolist(), tokenizer.end_id
            documents[split] += 1
    for name, split in loaded.splits.items():
        tokens = split.read(np.array([0]), split.tokens)[0]
        assert tokens.tolist() == expected[name]
        assert split.documents == documents[name]
    assert sum(split.documents for split in loaded.splits.values()) == 13  # one is only white space


def test_same_bytes_for_any_number_of_workers_and_small_blocks(books, prepared, tmp_path, monkeypatch):
    preparation.prepare(options(f'text:{books}', workers=1), tmp_path / 'one')
    assert content(tmp_path / 'one') == content(prepared)
    monkeypatch.setattr(documents, '_GROUP', 20000)
    preparation.prepare(options(f'text:{books}', workers=3), tmp_path / 'three')
    assert content(tmp_path / 'three') == content(prepared)


def test_block_joints_are_seamless(books, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, 'BLOCK_BYTES', 5000)
    data = options(f'text:{books}', tokenizer=str(prepared / 'tokenizer'))
    preparation.prepare(data, tmp_path / 'shards')
    small, whole = content(tmp_path / 'shards'), content(prepared)
    assert small.pop('index.json') != whole.pop('index.json')  # the options differ
    assert small == whole


def test_done_already_and_other_options(books, prepared):
    before = content(prepared)
    preparation.prepare(options(f'text:{books}', workers=1), prepared)
    assert content(prepared) == before
    with pytest.raises(UserError, match='vocab_size was 320, is 400'):
        preparation.prepare(options(f'text:{books}', vocab_size=400), prepared)
    with pytest.raises(UserError, match='source was text:.*, is docs:numpy'):
        preparation.prepare(options('docs:numpy'), prepared)
    with pytest.raises(UserError, match='tokenizer was not given, is .*; vocab_size was 320, is not given'):
        preparation.prepare(options(f'text:{books}', tokenizer=str(prepared / 'tokenizer')), prepared)


SCRIPT = """
import json, os, sys
from gpt1_jax.data.corpus import documents, preparation, shards
from gpt1_jax.errors import UserError
data, output, die_after = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
documents._GROUP = 20000
commit = shards.ShardWriter.commit
def commit_and_die(writer, position):
    global die_after
    commit(writer, position)
    die_after -= 1
    if die_after == 0:
        os.kill(os.getpid(), 9)
shards.ShardWriter.commit = commit_and_die
try:
    preparation.prepare(data, output)
except UserError as error:
    sys.exit(f'error: {error}')
"""


def run(data, output, die_after=0, **kwargs):
    arguments = [sys.executable, '-c', SCRIPT, json.dumps(data.to_dict()), str(output), str(die_after)]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=120, **kwargs)


def test_killed_and_resumed_is_byte_identical(books, prepared, tmp_path):
    data = options(f'text:{books}')
    for die_after in (1, 3):
        output = tmp_path / str(die_after)
        assert run(data, output, die_after).returncode == -signal.SIGKILL
        journal = shards.read_journal(output)
        finished = [shard['file'] for split in shards.SPLITS for shard in journal['shards'][split]]
        assert finished and not (output / 'index.json').exists()
        times = {file: (output / file).stat().st_mtime_ns for file in finished}
        with pytest.raises(UserError, match='held_out was 0.2, is 0.3'):
            preparation.prepare(options(f'text:{books}', held_out=0.3), output)
        preparation.prepare(data, output)
        assert content(output) == content(prepared)
        # Kept, not written again.
        assert times == {file: (output / file).stat().st_mtime_ns for file in finished}


def test_what_an_earlier_version_began_is_resumed(books, prepared, tmp_path):
    """Its journal also lists files with the offsets at which documents start."""
    data, journal = options(f'text:{books}'), tmp_path / 'shards' / 'journal'
    assert run(data, tmp_path / 'shards', 2).returncode == -signal.SIGKILL
    state = json.loads((journal / 'journal.json').read_text())
    (journal / 'train-starts-1.bin').write_bytes(np.array([0, 17], '<i8').tobytes())
    state['starts'] = {'train': ['train-starts-1.bin'], 'valid': []}
    state = {name: of_it for name, of_it in state.items() if name not in ('sha256', 'pending')}
    (journal / 'journal.json').write_text(json.dumps(state))
    preparation.prepare(data, tmp_path / 'shards')
    assert content(tmp_path / 'shards') == content(prepared)


class Death(BaseException):
    """In place of the process's own."""


@pytest.mark.slow
def test_death_at_every_step_of_writing(tmp_path, monkeypatch):
    """Before and after every file that is put in its place or removed, and once more while it goes on."""
    (tmp_path / 'books').mkdir()
    for i in range(5):
        (tmp_path / 'books' / f'{i}.txt').write_text(make_text(i, (10, 200)[i % 2]))
    data = options(f'text:{tmp_path / "books"}', tokens_per_shard=2000)
    monkeypatch.setattr(passes, 'process_pool', lambda workers: contextlib.nullcontext(InProcess()))
    monkeypatch.setattr(documents, '_GROUP', 4000)
    done, deadly = 0, None  # steps of writing; (number of one, whether death comes after it)

    def deadly_step(method):
        def step(path, *arguments, **options):
            nonlocal done
            done += 1
            if deadly == (done, False):
                raise Death
            result = method(path, *arguments, **options)
            if deadly == (done, True):
                raise Death
            return result

        return step

    for name in ('replace', 'unlink', 'rmtree'):
        kind = type(epath.Path(tmp_path))
        monkeypatch.setattr(kind, name, deadly_step(getattr(kind, name)))

    def attempt(output, *, die_at=None, commit_seconds=0):
        nonlocal done, deadly
        done, deadly = 0, die_at
        monkeypatch.setattr(passes, '_COMMIT_SECONDS', commit_seconds)
        try:
            preparation.prepare(data, output)
        except Death:
            pass

    attempt(tmp_path / 'whole')
    steps, rng, whole = done, random.Random(0), content(tmp_path / 'whole')
    assert steps > 20 and len(whole) > 6
    for at in range(1, steps + 1):
        for after in (False, True):
            output = tmp_path / f'{at}{after}'
            attempt(output, die_at=(at, after), commit_seconds=rng.choice([0, 1e9]))
            attempt(output, die_at=(rng.randint(1, 12), rng.random() < 0.5), commit_seconds=rng.choice([0, 1e9]))
            attempt(output)
            assert content(output) == whole, (at, after)
            shutil.rmtree(output)


def test_a_real_kill(books, prepared, tmp_path):
    """kill -9 from outside, while workers are there: they die with their parent."""
    data = options(f'text:{books}')
    arguments = [sys.executable, '-c', SCRIPT, json.dumps(data.to_dict()), str(tmp_path / 'shards'), '0']
    process = subprocess.Popen(arguments, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
    while not (tmp_path / 'shards' / 'journal').exists():
        time.sleep(0.01)
    time.sleep(0.5)
    process.kill()
    process.wait()
    preparation.prepare(data, tmp_path / 'shards')
    assert content(tmp_path / 'shards') == content(prepared)
    deadline = time.monotonic() + 20
    while (
        alive := subprocess.run(['pgrep', '-s', str(process.pid)], capture_output=True).stdout
    ) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive


def test_a_mistake_before_anything_is_encoded_can_be_fixed(books, prepared, tmp_path):
    output = tmp_path / 'shards'
    with pytest.raises(UserError, match='vocab_size: .* Set it to .* or less'):
        preparation.prepare(options(f'text:{books}', vocab_size=40000), output)
    for name in ('train-00098.bin', 'train-00099.bin.tmp'):
        (output / name).write_bytes(b'of a death before the first commit')
    preparation.prepare(options(f'text:{books}'), output)
    assert content(output) == content(prepared)


def test_home_directory(books, prepared, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    preparation.prepare(options(f'text:{books}', tokenizer=str(prepared / 'tokenizer')), '~/shards')
    assert shards.load_shards('~/shards').directory == tmp_path / 'shards'
    assert load_tokenizer('~/shards/tokenizer').vocab_size == 320


def test_changed_source_is_refused_when_resumed(tmp_path):
    folder = tmp_path / 'books'
    folder.mkdir()
    for i in range(4):
        (folder / f'{i}.txt').write_text(make_text(i, 2000))
    data = options(f'text:{folder}')
    assert run(data, tmp_path / 'out', 1).returncode == -signal.SIGKILL
    (folder / '4.txt').write_text('new')
    with pytest.raises(UserError, match='interrupted, and the files of .* have changed since'):
        preparation.prepare(data, tmp_path / 'out')


def test_full_disk(prepared, tmp_path):
    """A limit on the size of files stands for the full disk; then there is room again."""
    (tmp_path / 'one.txt').write_text(make_text(0, 25000))
    data = options(f'text:{tmp_path}/one.txt', tokens_per_shard=150000, tokenizer=str(prepared / 'tokenizer'))
    limit = 280_000  # bytes: enough for the tokenizer, not for a shard

    def set_limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    limited = run(data, tmp_path / 'out', preexec_fn=set_limit)
    assert limited.returncode == 1
    assert re.search(r'error: .*: The file cannot be written .* Make room', limited.stderr)
    assert not (tmp_path / 'out' / 'train-00000.bin').exists()
    assert run(data, tmp_path / 'out').returncode == 0
    shards.load_shards(tmp_path / 'out').verify()


def test_wrong_outputs_and_options(books, tmp_path):
    source = f'text:{books}'
    (tmp_path / 'file').write_text('x')
    for output in (tmp_path / 'file', tmp_path / 'file' / 'below'):
        with pytest.raises(UserError, match='The folder cannot be made'):
            preparation.prepare(options(source), output)
    with pytest.raises(UserError, match='is not empty and holds no preparation'):
        preparation.prepare(options(source), tmp_path)
    for name, value in (('held_out', 1.0), ('held_out', -0.1), ('workers', -1), ('tokens_per_shard', 0)):
        with pytest.raises(UserError, match=f'data.{name}: {value} is'):
            preparation.prepare(options(source, **{name: value}), tmp_path / 'out')
    with pytest.raises(UserError, match='holds no tokenizer'):
        preparation.prepare(options(source, tokenizer=str(tmp_path)), tmp_path / 'out')
    with pytest.raises(UserError, match='too small for a vocabulary of 40,000'):  # raised in a worker
        preparation.prepare(options(source, vocab_size=40000), tmp_path / 'out')


def test_one_document_and_no_held_out_text(tmp_path):
    (tmp_path / 'one.txt').write_text(make_text(0, 300))
    source = f'text:{tmp_path}/one.txt'
    loaded = preparation.prepare(options(source), tmp_path / 'a')
    assert loaded.splits['train'].documents == loaded.splits['valid'].documents == 1
    share = loaded.splits['valid'].tokens / (loaded.splits['valid'].tokens + loaded.splits['train'].tokens)
    assert 0.15 < share < 0.25
    loaded = preparation.prepare(options(source, held_out=0.0), tmp_path / 'b')
    assert set(loaded.splits) == {'train'}
    (tmp_path / 'two.txt').write_text('a single line ' * 100)
    reused = options(f'text:{tmp_path}/two.txt', tokenizer=str(tmp_path / 'a' / 'tokenizer'))
    with pytest.raises(UserError, match='too short to hold out 0.2'):
        preparation.prepare(reused, tmp_path / 'c')


def test_what_an_earlier_version_held_out_is_not_mixed_with_what_this_one_does(books, prepared, tmp_path):
    """It chose by the names alone. What it finished is read; what it only began is refused, or begun anew."""
    data = options(f'text:{books}')
    shutil.copytree(prepared, tmp_path / 'finished')
    index = json.loads((prepared / 'index.json').read_text())
    assert index['preparation'].pop('held_out_by') == 'bytes' and index.pop('sha256')
    (tmp_path / 'finished' / 'index.json').write_text(json.dumps(index))
    assert preparation.prepare(data, tmp_path / 'finished').preparation == index['preparation']

    def as_before(output, position):
        state = json.loads((output / 'journal' / 'journal.json').read_text())
        del state['preparation']['held_out_by']
        del state['sha256'], state['pending']
        state |= {} if position else {'position': None}
        (output / 'journal' / 'journal.json').write_text(json.dumps(state))
        (output / 'journal' / 'held_out.json').unlink()

    assert run(data, tmp_path / 'begun', 1).returncode == -signal.SIGKILL
    as_before(tmp_path / 'begun', True)
    with pytest.raises(UserError, match='An earlier version .* held out other documents. Choose another data.output'):
        preparation.prepare(data, tmp_path / 'begun')
    shards.start_journal(tmp_path / 'opened', index['preparation'])
    preparation.prepare(data, tmp_path / 'opened')
    assert content(tmp_path / 'opened') == content(prepared)


def test_what_is_held_out_is_kept_for_a_resumed_run(books, prepared, tmp_path, monkeypatch):
    data = options(f'text:{books}')
    assert run(data, tmp_path / 'shards', 2).returncode == -signal.SIGKILL
    monkeypatch.setattr(passes, 'survey', None)  # all text is not read once more
    path = tmp_path / 'shards' / 'journal' / 'held_out.json'
    kept = path.read_text()
    path.write_text(json.dumps(json.loads(kept) | {'held_out': '0'}))
    with pytest.raises(UserError, match='held_out.json: The file is damaged .it has another checksum.. Delete it'):
        preparation.prepare(data, tmp_path / 'shards')
    path.write_text(kept)
    [table] = path.parent.glob('held_out-*.bin')
    values = table.read_bytes()
    table.write_bytes(values[:-1] + b'!')
    with pytest.raises(UserError, match='held_out-.*: The file is damaged .it has another checksum.. Delete it'):
        preparation.prepare(data, tmp_path / 'shards')
    documents, begins = np.frombuffer(values, '<i8').reshape(2, -1).tolist()
    assert begins == [0] * len(documents) and documents
    earlier = {'preparation': json.loads(kept)['preparation'], 'held_out': {str(one): 0 for one in documents}}
    shutil.copytree(tmp_path / 'shards', tmp_path / 'earlier')  # of an earlier version
    (tmp_path / 'earlier' / 'journal' / table.name).unlink()
    (tmp_path / 'earlier' / 'journal' / 'held_out.json').write_text(json.dumps(files.sealed(earlier)))
    preparation.prepare(data, tmp_path / 'earlier')
    assert content(tmp_path / 'earlier') == content(prepared)
    table.write_bytes(values)
    preparation.prepare(data, tmp_path / 'shards')
    assert content(tmp_path / 'shards') == content(prepared)


def test_millions_of_documents_may_be_held_out(tmp_path):
    """C4 has 365 million."""
    held, options_of = {3 * i: i % 7 for i in range(3_600_000)}, {'source': 'text:c4'}
    (tmp_path / 'journal').mkdir()
    preparation._keep_held_out(epath.Path(tmp_path), options_of, held)
    assert preparation._kept_held_out(epath.Path(tmp_path), options_of) == held
    assert preparation._kept_held_out(epath.Path(tmp_path), {'source': 'text:c5'}) is None
    preparation._keep_held_out(epath.Path(tmp_path), options_of, {})
    assert preparation._kept_held_out(epath.Path(tmp_path), options_of) == {}


def test_a_folder_that_is_removed_while_the_vocabulary_is_learned(books, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, 'process_pool', lambda workers: contextlib.nullcontext(InProcess()))
    monkeypatch.setattr(preparation, '_tokenizer', lambda *_: shutil.rmtree(tmp_path / 'out'))
    with pytest.raises(UserError, match='out: The folder was removed, replaced or taken over'):
        preparation.prepare(options(f'text:{books}/9*'), tmp_path / 'out')


def test_bad_files_are_named_before_anything_is_written(tmp_path):
    (tmp_path / 'books').mkdir()
    for i in range(3):
        (tmp_path / 'books' / f'{i}.txt').write_text(make_text(i, 200))
    for name in ('x', 'y'):
        (tmp_path / 'books' / f'{name}.txt').write_bytes(b'caf\xe9')
    data = options(f'text:{tmp_path}/books')
    with pytest.raises(UserError, match=r'2 files cannot be read.*\n  x\.txt of .*\n  y\.txt of '):
        preparation.prepare(data, tmp_path / 'shards')
    assert not (tmp_path / 'shards').exists()
    for name in ('x', 'y'):
        (tmp_path / 'books' / f'{name}.txt').unlink()
    preparation.prepare(data, tmp_path / 'shards')


def test_cleaned_text(prepared, tmp_path, caplog):
    """Tokens of the text without its licence and its line ends, and of no other preparation."""
    (tmp_path / 'books').mkdir()
    bodies, prose = [], 'the Captain said good morning, walking again to the house by the river'
    for i in range(4):
        body = f'{make_text(i, 20)}\n{prose}\n{prose},\n{prose}\n\n'
        bodies.append(body.replace(f'{prose}\n{prose},\n{prose}', f'{prose} {prose}, {prose}'))
        header, licence = ('*** START', '*** END') if i else ('', '')
        of = ' OF THE PROJECT GUTENBERG EBOOK A ***\n' if i else ''
        (tmp_path / 'books' / f'{i}.txt').write_text(f'{header}{of}{body}{licence}{of}{"licence" if i else ""}')
    (tmp_path / 'books' / 'notes.md').write_text('x')
    data = options(f'text:{tmp_path}/books', strip_gutenberg=True, unwrap=True, tokenizer=str(prepared / 'tokenizer'))
    data.held_out = 0.3  # one document
    with caplog.at_level('INFO', 'absl'):
        loaded = preparation.prepare(data, tmp_path / 'out')
    assert 'documents: 4; left out: 1 .md' in caplog.text
    assert 'without the markers of Project Gutenberg: 1 of 4 documents' in caplog.text
    assert re.search(r'held out: 1 documents, 2\d(\.\d)? % of the text', caplog.text)
    tokenizer = load_tokenizer(prepared / 'tokenizer')
    expected = {tuple([*ids.tolist(), tokenizer.end_id]) for ids in tokenizer.encode_batch(bodies)}
    found = set()
    for split in loaded.splits.values():
        ids = split.read(np.array([0]), split.tokens)[0].tolist()
        ends = [i + 1 for i, token in enumerate(ids) if token == tokenizer.end_id]
        found |= {tuple(ids[begin:end]) for begin, end in zip([0, *ends], ends)}
    assert found == expected
    with pytest.raises(UserError, match='strip_gutenberg was True, is not given; unwrap was True, is not given'):
        preparation.prepare(options(data.source, tokenizer=data.tokenizer, held_out=0.3), tmp_path / 'out')
