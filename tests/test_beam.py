"""The preparation on many machines against the one on this: every file, byte for byte.

Where Apache Beam is not installed (see launch/beam.txt), its runner's place is taken by a loop that does the tasks of a
job in any order, some of them twice.
"""

import concurrent.futures
import contextlib
import gzip
import importlib.util
import itertools
import json
import os
import pathlib
import random
import threading
import zipfile

import pyarrow
import pyarrow.parquet
import pytest

from configs.prepare import get_config
from corpora import InProcess, content, make_text, options
from gpt1_jax.data.corpus import beam, documents, passes, preparation, shards, units
from gpt1_jax.data.corpus.passes import HERE
from gpt1_jax.data.corpus.sources import open_corpus
from gpt1_jax.errors import UserError
from gpt1_jax.tasks import prepare

ROOT = pathlib.Path(__file__).parents[1]
has_beam = pytest.mark.skipif(
    importlib.util.find_spec('apache_beam') is None, reason='Apache Beam has an environment of its own: launch/beam.txt'
)


def make_corpus(folder):
    """All kinds of files; copies, and files without text."""
    folder.mkdir()
    texts = [make_text(i, 40 + 10 * (i % 5)) for i in range(24)]
    texts[5] = texts[4]
    texts[7] = f'Title\n*** START OF THE PROJECT GUTENBERG EBOOK A ***\n{texts[7]}'
    for i, text in enumerate(texts[:8]):
        if i % 3:
            (folder / f'{i}.txt').write_text(text)
        else:
            (folder / f'{i}.txt.gz').write_bytes(gzip.compress(text.encode()))
    (folder / 'blank.txt').write_text(' \n\n')
    (folder / 'empty.txt').write_text('')
    (folder / 'n.txt').write_text('A short one.\n')
    (folder / 'long.txt').write_text(make_text(99, 900) + 'x ' * 9000 + 'no newline at the end')
    rows = [{'text': text} for text in texts[8:14]] + [{'text': ''}, {'other': 1}, {'text': 'a\0b'}]
    (folder / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    table = pyarrow.table({'text': [*texts[14:19], None, 'short']})
    pyarrow.parquet.write_table(table, folder / 'table.parquet', row_group_size=3)
    with zipfile.ZipFile(folder / 'zip.zip', 'w') as archive:
        for i, text in enumerate(texts[19:]):
            archive.writestr(f'{i}.txt', text)  # some of them lie beside it
            archive.writestr(f'deep/{i}.txt', text[::-1])
    (folder / 'notes.md').write_text('not read')


@pytest.fixture(scope='module')
def books(tmp_path_factory):
    folder = tmp_path_factory.mktemp('beam') / 'books'
    make_corpus(folder)
    return folder


def small(books, **values):
    return options(f'text:{books}', tokens_per_shard=1500, workers=1, **values)


@pytest.fixture(scope='module')
def prepared(books, tmp_path_factory):
    """By the local runner."""
    output = tmp_path_factory.mktemp('local') / 'shards'
    preparation.prepare(small(books), output)
    assert len(content(output)) > 12
    return output


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Neither processes to train a vocabulary nor waiting for the disk: both would take most of the time here."""
    monkeypatch.setattr(os, 'fsync', lambda file: None)
    monkeypatch.setattr(passes, 'process_pool', lambda workers: contextlib.nullcontext(InProcess()))


@pytest.fixture
def many_units(monkeypatch):
    """Units of four thousand bytes, and pieces of few tokens."""
    monkeypatch.setattr(units, '_UNIT', 4000)
    monkeypatch.setattr(units, '_PIECE', 700)


class Shuffled:
    """Does a job: its tasks in any order, some twice; dies in the middle of the job of this number."""

    def __init__(self, seed=0, die_in=None):
        self._rng, self._die_in, self.jobs = random.Random(seed), die_in, []

    def __call__(self, function, elements):
        self.jobs.append(len(elements))
        elements = self._rng.sample(elements, len(elements)) + self._rng.sample(elements, len(elements) // 5)
        for i, element in enumerate(elements):
            if len(self.jobs) == self._die_in and i == len(elements) // 2:
                raise KeyboardInterrupt
            function(element)


@pytest.mark.parametrize('block', [2**20, 1500])
def test_same_bytes_whatever_the_order(books, prepared, many_units, tmp_path, monkeypatch, block):
    """In blocks as they are, and in small ones: with those also cleaned, and with a tokenizer that is there."""
    monkeypatch.setattr(documents, 'BLOCK_BYTES', block)
    if block < 2000:
        data = small(books, tokenizer=str(prepared / 'tokenizer'), strip_gutenberg=True, unwrap=True)
        preparation.prepare(data, tmp_path / 'local')
        expected = content(tmp_path / 'local')
    else:
        data, expected = small(books), content(prepared)
    run = Shuffled(block)
    loaded = preparation.prepare(data, tmp_path / 'out', beam.passes(run))
    assert content(tmp_path / 'out') == expected
    cleaning = {name: data[name] for name in ('strip_gutenberg', 'unwrap')}
    assert loaded.characters == sum(len(one.text) for one in open_corpus(data.source, **cleaning).blocks())
    assert min(run.jobs) > 10 and len(run.jobs) == (3 if data.tokenizer else 4)


def test_same_bytes_in_one_unit(books, prepared, tmp_path):
    run = Shuffled()
    preparation.prepare(small(books), tmp_path / 'out', beam.passes(run))
    assert content(tmp_path / 'out') == content(prepared)
    assert run.jobs[:3] == [1, 1, 1]


def test_units_are_the_documents_in_their_order(books, many_units):
    corpus = open_corpus(f'text:{books}')
    held_out = {0: 0, 3: 100, corpus.documents - 1: 5}
    whole = [(block.name, block.text, block.held_out) for block in corpus.blocks(held_out)]
    parts = list(units.units(corpus, held_out))
    assert len(parts) > 12 and sum(part['documents'] for part in parts) == corpus.documents
    rng, found = random.Random(0), {}
    for i in rng.sample(range(len(parts)), len(parts)):
        part, held = units.open_unit(json.loads(json.dumps(parts[i])))
        blocks, last = list(part.blocks(held)), part.documents - 1
        found[i] = [(block.name, block.text, block.held_out) for block in blocks]
        assert list(part.blocks(held, (last, 0))) == [block for block in blocks if block.document == last]
    assert list(itertools.chain(*(found[i] for i in sorted(found)))) == whole


def test_two_workers_at_one_task(books, tmp_path, monkeypatch):
    both = threading.Barrier(2)
    monkeypatch.setattr(os, 'fsync', lambda file: both.wait(60))  # until each has written its result
    task = {'work': 'check', 'limit': 2**64, **next(units.units(open_corpus(f'text:{books}'), {}))}
    path, line = tmp_path / 'check.jsonl', json.dumps(task).encode()
    path.write_bytes(line)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: units.work(str(path), (0, 0, len(line))), range(2)))
    assert sorted(one.name for one in tmp_path.iterdir()) == ['check-0.json', 'check.jsonl']


def test_cut():
    rng = random.Random(0)
    for _ in range(200):
        pieces = [(str(i), rng.choice([0, 1, 5, 30])) for i in range(rng.randint(0, 6))]
        length = rng.randint(1, 40)
        files = units.cut(pieces, length)
        expanded = [[(name, token) for name, begin, end in parts for token in range(begin, end)] for parts in files]
        every = [(name, token) for name, tokens in pieces for token in range(tokens)]
        assert expanded == [every[i : i + length] for i in range(0, len(every), length)]
        assert all(begin < end for parts in files for _, begin, end in parts)


def test_the_sample_is_the_same_when_few_excerpts_are_looked_at_first(tmp_path, many_units, monkeypatch):
    """As in a large corpus; the text has more than the 1 MB that is sampled."""
    for i in range(12):
        (tmp_path / f'{i}.txt').write_text(make_text(i, 1500))
    corpus, data = open_corpus(f'text:{tmp_path}'), options('', tokenizer_sample_mb=1)
    local = HERE.sample(corpus, data, tmp_path, {3: 0})
    assert 2**20 < sum(map(len, local)) < 2**20 + 2**15 < corpus.size / 1.3
    for spare, jobs in ((4, 1), (0.1, 3)):
        monkeypatch.setattr(beam, '_SPARE', spare)
        run, output = Shuffled(), tmp_path / str(spare)
        assert beam.passes(run).sample(corpus, data, output, {3: 0}) == local
        assert len(run.jobs) == jobs
    limit = lambda path: json.loads(path.read_text().partition('\n')[0])['limit']
    first = min(output.glob('journal/sample-*.jsonl'), key=limit)
    found = [json.loads(path.read_bytes()) for path in output.glob(f'journal/{first.stem}-*.json')]
    assert (
        sum(len(text) for one in found for _, text in one) < 2**20 / 2
    )  # a large corpus does not go through one place


def test_interrupted_anywhere(books, prepared, many_units, tmp_path):
    """What is done is kept; there is no index before the end."""
    for die_in in (1, 3, 4):
        output, dying, again = tmp_path / str(die_in), Shuffled(1, die_in), Shuffled(2)
        with pytest.raises(KeyboardInterrupt):
            preparation.prepare(small(books), output, beam.passes(dying))
        assert not (output / 'index.json').exists()
        with pytest.raises(UserError, match='no prepared shards'):
            shards.load_shards(output)
        if die_in == 3:
            preparation.prepare(small(books), output)  # begun there, finished here
        else:
            preparation.prepare(small(books), output, beam.passes(again))
            assert len(again.jobs) == 5 - die_in and (again.jobs[0] < dying.jobs[-1] or die_in == 4)
        assert content(output) == content(prepared)
    assert preparation.prepare(small(books), output, beam.passes(None)).characters  # done already


def test_a_wrong_option_can_be_put_right(books, prepared, tmp_path):
    output = tmp_path / 'out'
    with pytest.raises(UserError, match='vocab_size: .* Set it to .* or less'):
        preparation.prepare(small(books, vocab_size=40000), output, beam.passes(Shuffled()))
    other = options(f'text:{books}', tokens_per_shard=400, vocab_size=300)
    for data, die_in in ((other, 2), (small(books), 2), (other, 1)):
        with pytest.raises(KeyboardInterrupt):  # while it writes: what it has checked, sampled, encoded is kept
            preparation.prepare(data, output, beam.passes(Shuffled(die_in=die_in)))
    preparation.prepare(small(books), output, beam.passes(Shuffled()))
    assert content(output) == content(prepared)


def test_what_is_wrong_with_the_text_is_said_as_here(tmp_path):
    folder, output = tmp_path / 'books', tmp_path / 'out'
    make_corpus(folder)
    for name in ('x', 'y'):
        (folder / f'{name}.txt').write_bytes(b'caf\xe9')
    data = small(folder)
    sentences = []
    for one in (None, beam.passes(Shuffled())):
        with pytest.raises(UserError, match=r'2 files cannot be read.*\n  x\.txt of .*\n  y\.txt of ') as caught:
            preparation.prepare(data, output, one)
        sentences.append(str(caught.value))
    assert sentences[0] == sentences[1]
    for name in ('x', 'y'):
        (folder / f'{name}.txt').write_bytes(b'cafe')  # of the same size
    (tmp_path / 'broken').mkdir()
    (tmp_path / 'broken' / 'a.zip').write_text('no archive')
    for one in (None, beam.passes(Shuffled())):
        with pytest.raises(UserError, match='a.zip: The compressed file is damaged'):
            preparation.prepare(small(tmp_path / 'broken'), tmp_path / 'none', one)

    def changing(function, elements):
        if len(jobs := [*output.glob('journal/encode-*.jsonl')]) == 1 and len(changed) == 1:
            changed.extend(jobs)
            (folder / '1.txt').write_text('other')
        for element in elements:
            function(element)

    changed = [None]
    with pytest.raises(UserError, match='1.txt: The file has changed since the run began. Run the same command again'):
        preparation.prepare(data, output, beam.passes(changing))
    preparation.prepare(data, output, beam.passes(changing))
    preparation.prepare(data, tmp_path / 'anew')
    assert content(output) == content(tmp_path / 'anew')
    (tmp_path / 'two.txt').write_text('a single line ' * 100)
    reused = options(f'text:{tmp_path}/two.txt', tokenizer=str(output / 'tokenizer'))
    with pytest.raises(UserError, match='too short to hold out 0.2'):
        preparation.prepare(reused, tmp_path / 'c', beam.passes(changing))


def test_jobs_that_end_without_results(books, tmp_path):
    def lose(function, elements):
        for element in elements[1:]:
            function(element)

    with pytest.raises(UserError, match='check-.*-0.json: The job has ended without this result'):
        preparation.prepare(small(books), tmp_path / 'out', beam.passes(lose))
    preparation.prepare(small(books), tmp_path / 'out', beam.passes(Shuffled()))


def test_a_damaged_piece_is_noticed(books, prepared, tmp_path):
    def damaging(function, elements):
        for piece in [*tmp_path.glob('out/journal/*/train-00000.bin')][:1]:  # once all is encoded
            piece.write_bytes(piece.read_bytes()[:-1] + b'\xff')
        for element in elements:
            function(element)

    data = small(books, tokenizer=str(prepared / 'tokenizer'))
    with pytest.raises(UserError, match='journal/.*/train-00000.bin: The file is damaged. Delete'):
        preparation.prepare(data, tmp_path / 'out', beam.passes(damaging))


def test_what_no_runner_can_do(tmp_path, monkeypatch):
    config = get_config()
    config.data.source = 'docs:'
    config.runner = 'direct'
    with pytest.raises(UserError, match="data.source: 'docs:' is read on one machine. Use text:"):
        prepare.run(config, tmp_path)
    config.runner, config.runner_options = 'local', '--region=x'
    with pytest.raises(UserError, match='runner_options: .* Name one with --config.runner'):
        prepare.run(config, tmp_path)
    config.runner, config.data.source = 'dataflow', 'text:gs://bucket/books'
    monkeypatch.setattr(beam, 'import_package', lambda *arguments: pytest.fail('not the first that is wrong'))
    with pytest.raises(UserError, match=f'data.output: {tmp_path}/shards is on this machine'):
        prepare.run(config, tmp_path)


@pytest.mark.skipif(importlib.util.find_spec('apache_beam') is not None, reason='Apache Beam is installed')
def test_without_beam(tmp_path):
    config = get_config()
    config.data.source, config.runner = f'text:{tmp_path}', 'direct'
    with pytest.raises(UserError, match='apache_beam: This package is not installed.* pip install -r launch/beam.txt'):
        prepare.run(config, tmp_path)


def test_the_versions_of_beams_environment_are_those_of_requirements():
    lines = lambda name: {
        line.partition('==')[0]: line.partition('#')[0].partition(';')[0].strip()
        for line in (ROOT / name).read_text().splitlines()
        if line[:1].isalpha()
    }
    ours, all_others = lines('launch/beam.txt'), lines('requirements.txt')
    same = ours.keys() & all_others.keys()
    assert {'sentencepiece', 'ftfy', 'numpy'} <= same
    assert {name: ours[name] for name in same} == {name: all_others[name] for name in same}


@has_beam
@pytest.mark.parametrize('bundles', [1, 2, 7])
def test_directrunner_equals_local(books, prepared, many_units, tmp_path, bundles):
    flags = f'--direct_num_workers={bundles} --direct_running_mode=multi_threading'
    config = get_config()
    config.data.update(small(books))
    config.update(runner='direct', runner_options=flags)
    result = prepare.run(config, tmp_path / 'work')
    assert content(tmp_path / 'work' / 'shards') == content(prepared)
    assert result.facts['characters_per_token'] > 1


@has_beam
def test_errors_on_beam(books, tmp_path, monkeypatch, capfd):
    for flags, message in (
        ('--direct_num_worker=2', 'Beam has no option --?direct_num_worker'),
        ('--direct_running_mode=x', 'cannot be read .*invalid choice'),
        ("'", 'cannot be read .No closing quotation'),
    ):
        with pytest.raises(UserError, match=f'runner_options: .*{message}'):
            beam.on_beam('direct', flags, 'text:x', tmp_path)
    (tmp_path / 'bad.txt').write_bytes(b'caf\xe9')
    direct = beam.on_beam('direct', '', 'text:', tmp_path)
    with pytest.raises(UserError, match='bad.txt of text:.* is not UTF-8 at byte 3'):
        preparation.prepare(options(f'text:{tmp_path}/bad.txt'), tmp_path / 'a', direct)

    def fail(path, element):
        raise ZeroDivisionError(f'no {element}')

    monkeypatch.setattr(beam, 'work', fail)
    with pytest.raises(
        UserError, match='runner: The job on direct has failed .*no .* run the same command again'
    ) as caught:
        preparation.prepare(small(books), tmp_path / 'b', direct)
    assert '\n' not in str(caught.value) and 'Traceback' not in capfd.readouterr().err
