"""Random damages (tests/damages.py): no traceback, no hang, and nothing lost without a word. `--damages=N` says how
many; with `-s`, a table says what became of each form."""

import collections
import contextlib
import random
import re
import shutil
import signal
import time
from concurrent import futures

import damages
from gpt1_jax.data.corpus.sources import open_corpus
from gpt1_jax.data.corpus.survey import survey
from gpt1_jax.data.labelled.loading import load_examples
from gpt1_jax.data.labelled.registry import REGISTRY, custom_dataset
from gpt1_jax.errors import UserError
from helpers import assert_well_put

SECONDS = 5  # for one file
DATASETS = REGISTRY | {'custom': custom_dataset(kind='classification', fields=['text'], labels=['yes', 'no'])}


@contextlib.contextmanager
def limit(seconds):
    def stop(signum, frame):
        raise TimeoutError(f'it took {seconds} seconds')

    former = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


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
        with limit(SECONDS):
            found = collections.Counter(damages.MARK.findall('\n'.join(texts(form, folder))))
    except UserError as error:
        assert_well_put(' '.join(str(error).split()))  # as `main` prints it
        return 'refused'
    except Exception as error:
        return f'{type(error).__name__}: {error}'
    lost = (collections.Counter(damages.marks_of(data, form.file)) - found).total()
    if lost > counted(folder, [record.getMessage() for record in caplog.records]):
        return f'{lost} entries are lost'
    return 'read'


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
