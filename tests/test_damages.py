"""Random damages (tests/damages.py): no traceback, no hang, and nothing lost without a word. `--damages=N` says how
many; with `-s`, a table says what became of each form."""

import collections
import pathlib
import random
import re
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import NamedTuple

import numpy as np
import pytest
from etils import epath

import damages
import models
import recorded
from configs import generate as generate_config, pretrain
from gpt1_jax.data.corpus import shards
from gpt1_jax.data.corpus.sources import open_corpus
from gpt1_jax.data.corpus.survey import survey
from gpt1_jax.data.labelled import sequences, token_folder
from gpt1_jax.data.labelled.loading import load_examples
from gpt1_jax.data.labelled.registry import REGISTRY, custom_dataset
from gpt1_jax.errors import UserError
from gpt1_jax.report import collect, page, results
from gpt1_jax.saved_models import huggingface, openai, store, tensor_files
from gpt1_jax.tasks import generate
from gpt1_jax.training.metric_writer import read_metrics
from gpt1_jax.workdir import open_workdir
from helpers import assert_well_put

DATASETS = REGISTRY | {'custom': custom_dataset(kind='classification', fields=['text'], labels=['yes', 'no'])}


class Inline(futures.Executor):
    """Does all in this thread."""

    def submit(self, function, *arguments):
        future = futures.Future()
        future.set_result(function(*arguments))
        return future


def texts(form, folder):
    """All that is read of a file, and of a whole one beside that of a corpus."""
    if form in damages.CORPORA:
        (folder / 'whole.txt').write_text('a whole text\n')
        corpus = open_corpus(f'text:{folder}')
        survey(corpus, Inline(), 1)  # as `prepare` does first
        if corpus.left_out:
            raise UserError(f'{folder}: Of the files {corpus.left_out} are left out. So the log says.')
        return [block.text.replace('\0', '') for block in corpus.blocks()]  # NULs are no text, as a warning says
    examples = load_examples(DATASETS[form.dataset], f'files:{folder}', form.split)
    values = [*examples.ids, *(value for column in examples.fields.values() for value in column)]
    return [text for value in values for text in (value if isinstance(value, list) else [value])]


def counted(folder, messages):
    """How many entries the log says are left out, or have an id that is not used."""
    return sum(
        int(number)
        for message in messages
        if re.search('left out|hold no text|numbered', message)
        for number in re.findall(r'\b[0-9]+\b', message.replace(str(folder), ''))
    )


def outcome(form, folder, data, caplog):
    """'read', 'refused' or what is wrong."""
    (folder / form.file).write_bytes(data)
    try:
        with damages.in_time():
            found = collections.Counter(damages.MARK.findall('\n'.join(texts(form, folder))))
    except UserError as error:
        assert_well_put(' '.join(str(error).split()))  # as `main` prints it
        return 'refused'
    except (Exception, damages.Hang) as error:
        return f'{type(error).__name__}: {error}'
    lost = (collections.Counter(damages.marks_of(data, form.file)) - found).total()
    if lost > counted(folder, [record.getMessage() for record in caplog.records]):
        return f'{lost} entries are lost'
    return 'read'


@damages.in_memory()
def test_damages(tmp_path, caplog, request):
    rng, forms, folder = random.Random(0), [*damages.LABELLED, *damages.CORPORA], tmp_path / 'data'
    table, problems = collections.defaultdict(collections.Counter), []
    with caplog.at_level('INFO', logger='absl'):
        for number in range(request.config.getoption('--damages')):
            form = forms[number % len(forms)]
            done, data = damages.damaged(form, rng)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            caplog.clear()
            started = time.monotonic()
            what = outcome(form, folder, data, caplog)
            counts = table[number % len(forms), form.file]
            counts['longest'] = max(counts['longest'], round(time.monotonic() - started, 2))
            counts['files'] += 1
            counts[what if what in ('read', 'refused') else 'problems'] += 1
            if what not in ('read', 'refused'):
                problems.append(f'{number}, {form.file}, {done}: {what}: {data[:600]!r}')
    for (_, file), counts in table.items():
        print(file, dict(counts))
    assert not problems, f'{len(problems)} problems:\n' + '\n'.join(problems[:20])


# ----------------------------------------------------------------- what the program wrote itself


class Stored(NamedTuple):
    """Files that the program wrote, below a folder, and how it reads them: what it makes of them, which must be what it
    made of whole ones, unless that is None."""

    name: str
    folder: str
    files: Sequence[str]
    read: Callable[[epath.Path], object]


def _shards(folder):
    loaded = shards.load_shards(folder)
    loaded.verify()
    splits = {name: split.read(np.arange(split.tokens), 1).tobytes() for name, split in loaded.splits.items()}
    return loaded.tokenizer_fingerprint, loaded.vocab_size, splits


def _journal(folder):
    writer = shards.ShardWriter(folder, 40, 100)
    return writer.position, writer.tokens, writer.documents, writer._buffers['train'][:30].tobytes()


def _opened(scheme):
    def read(folder):
        store.open_model(f'{scheme}{folder}')
        if scheme == 'hf:':
            tensors = tensor_files.open_tensors(folder)
            for name in tensors.shapes:
                tensors.get(name)

    return read


def _resumed(folder):
    open_workdir(pretrain.get_config('tiny'), folder, write=True)


def _prompts(folder):
    asked = generate_config.get_config()
    asked.prompts = str(folder / 'prompts.txt')
    tokenizer = store.open_model(str(folder)).tokenizer
    for prompt in generate._read_prompts(asked):
        generate.make_rows(prompt, 'prompt', tokenizer=tokenizer, context=16, samples=2, max_tokens=3)


def _report(folder):
    page.sections(collect.collect(folder))


def _copy(folder):
    found = sequences.load_copy(pathlib.Path(folder), 'copy')
    return found and (found[0].tokens.tobytes(), found[1].tobytes())


def _tokens(folder):
    read = token_folder.read_tokens(folder, 'sst2', 'train', fingerprint='f', max_length=9, rule='r')
    return read.sequences.tokens.tobytes(), read.ids, read.labels.tobytes()


STORED = [
    Stored('shards', 'shards', ('index.json', 'train-00000.bin', 'tokenizer/tokenizer.json'), _shards),
    Stored('journal', 'journal', ('journal/journal.json', 'journal/train-pending-1.bin'), _journal),
    Stored('model', 'run', ('model.json', 'tokenizer/tokenizer.json', 'tokenizer/tokenizer.model'), _opened('')),
    Stored('hf:', 'hf', ('config.json', 'model.safetensors', 'vocab.json', 'merges.txt'), _opened('hf:')),
    Stored(
        'openai:', 'openai', ('params_shapes.json', 'hparams.json', 'params_0.npy', 'params_7.npy'), _opened('openai:')
    ),
    Stored('workdir', 'resumed', ('config.json', 'source.txt'), _resumed),
    Stored('results', 'result', ('results.json',), lambda folder: (results.read(folder), None)[1]),
    Stored('metrics', 'result', ('metrics.jsonl',), lambda folder: (read_metrics(folder), None)[1]),
    Stored('tokens:', 'tokens', ('index.json', 'train.npz'), _tokens),
    Stored('cache', 'cache', ('copy/tokens.npy', 'copy/lengths.npy', 'copy/lost.npy', 'copy/checksums.json'), _copy),
    Stored('prompts', 'run', ('prompts.txt',), _prompts),
    Stored(
        'report', 'result', ('results.json', 'config.json', 'metrics.jsonl', 'dev.npz', 'dev_errors.jsonl'), _report
    ),
]


@pytest.fixture(scope='module')
def written(tmp_path_factory, sentencepiece):
    """A folder with those of all STORED, whole."""
    folder, rng = epath.Path(tmp_path_factory.mktemp('written')), np.random.default_rng(0)
    finite = lambda rng, shape: rng.normal(size=shape).astype(np.float32)
    sentencepiece.save(folder / 'shards' / 'tokenizer')
    for name, vocab_size, finished in (('shards', sentencepiece.vocab_size, True), ('journal', 40, False)):
        shards.start_journal(folder / name, {'source': 'text:/books'})
        writer = shards.ShardWriter(folder / name, vocab_size, 100)
        writer.start_document('train')
        writer.append('train', rng.integers(0, vocab_size, 130))
        writer.commit({'start': [0, 7]})
        if finished:
            writer.finish(sentencepiece.fingerprint)
    saved, params = models.make_model(rng, sentencepiece, draw=finite)
    (folder / 'run').mkdir()
    store.describe_run(folder / 'run', models.classifier_of(saved), sentencepiece)
    (folder / 'run' / 'prompts.txt').write_text('the ship\n\nna\u00efve \u2014 sail\n')
    (folder / 'openai').mkdir()
    openai.write_folder(folder / 'openai', saved, params)
    saved, params = models.make_model(rng, models.released_tokenizer(folder / 'released', 60), draw=finite)
    (folder / 'hf').mkdir()
    huggingface.write_folder(folder / 'hf', saved, params)
    open_workdir(pretrain.get_config('tiny'), folder / 'resumed', write=True, fingerprint=lambda source: 'one')
    (folder / 'resumed' / 'checkpoints').mkdir()
    shutil.copytree(next(recorded.everything().glob('*/sst2/seed0')), folder / 'result')
    lengths = np.array([[3], [4]], np.int32)
    encoded = sequences.Encoded(
        sequences.Sequences.end_to_end(np.arange(7, dtype=np.int32), lengths), np.array([0, 1]), ['0', '1'], 0, 0
    )
    token_folder.write_tokens(folder / 'tokens', 'sst2', {'train': encoded}, fingerprint='f', max_length=9, rule='r')
    sequences.save_copy(pathlib.Path(folder / 'cache'), 'copy', encoded.sequences, np.zeros((2, 1), np.int32))
    return folder


@damages.in_memory()
def test_damages_of_what_the_program_wrote(written, caplog, request):
    """Where it is read all the same, it is what was written."""
    rng, table, problems = random.Random(1), collections.defaultdict(collections.Counter), []
    whole = {one.name: one.read(written / one.folder) for one in STORED}
    for number in range(request.config.getoption('--damages')):
        one = STORED[-1] if number % 1000 == 199 else STORED[number % (len(STORED) - 1)]  # the last takes a second
        path = written / one.folder / rng.choice(one.files)
        data = path.read_bytes()
        done, damaged = damages.stored_damaged(path.name, data, rng)
        path.write_bytes(damaged)
        caplog.clear()
        started, what = time.monotonic(), 'read'
        try:
            with damages.in_time():
                found = one.read(written / one.folder)
            if found not in (None, whole[one.name]):
                what = f'it was read as {str(found)[:200]}'
        except UserError as error:
            what = 'refused'
            assert_well_put(' '.join(str(error).split()))
        except (Exception, damages.Hang) as error:
            what = f'{type(error).__name__}: {error}'
        finally:
            path.write_bytes(data)
        counts = table[one.name]
        counts['longest'] = max(counts['longest'], round(time.monotonic() - started, 2))
        counts[what if what in ('read', 'refused') else 'problems'] += 1
        if what not in ('read', 'refused'):
            problems.append(f'{number}, {one.name}, {path.name}, {done}: {what[:300]}: {damaged[:300]!r}')
    for name, counts in table.items():
        print(name, dict(counts))
    assert not problems, f'{len(problems)} problems:\n' + '\n'.join(problems[:20])
