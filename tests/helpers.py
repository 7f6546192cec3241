"""What several test files share and needs no model: the program in a process of its own, texts, labelled
files, statistics."""

import atexit
import contextlib
import csv
import functools
import gzip
import io
import json
import os
import pathlib
import random
import re
import socket
import sys
import tempfile

import ftfy
import numpy as np
import pytest
from etils import epath
from scipy import stats

import fork_server
import reference
from gpt1_jax.data.labelled.loading import load_examples
from gpt1_jax.data.labelled.registry import REGISTRY
from gpt1_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
# Two devices: meshes are tested elsewhere, and starting the program is what takes the time here.
ENVIRONMENT = os.environ | {'XLA_FLAGS': os.environ['XLA_FLAGS'].replace('device_count=8', 'device_count=2')}
HIDDEN = (
    *('tensorflow', 'tensorflow_datasets', 'tensorboardX', 'tqdm', 'spacy', 'ftfy', 'tokenizers', 'keras'),
    *('packaging', 'huggingface_hub', 'pyarrow'),
)
# Python runs this in every process before anything else.
SITECUSTOMIZE = f"""
import sys

class Hide:
    def __init__(self, finder):
        self._finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] not in {HIDDEN}:
            return self._finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self._finder, name)

sys.meta_path[:] = map(Hide, sys.meta_path)
"""
SUBJECTS = {
    'sea': 'ship sail wave anchor harbour captain deck storm'.split(),
    'farm': 'cow field plough barn harvest wheat fence meadow'.split(),
}
WORDS = [word for words in SUBJECTS.values() for word in words]


def sentence(rng, subject):
    a, b, c = rng.choices(SUBJECTS[subject], k=3)
    return f'the {a} and the {b} were near the {c} that {rng.choice(["day", "night"])}.'


def some_words(rng, n):
    return ' '.join(rng.choices(WORDS, k=n))


def command(config, *flags):
    return [sys.executable, '-m', 'gpt1_jax.main', f'--config=configs/{config}', *flags]


def free_port():
    """The first of two in a row that nothing listens on, below those that Linux gives to connections meanwhile."""
    while True:
        port = random.randrange(10_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(('', port)), socket.create_server(('', port + 1)):
            return port


@functools.cache
def _server(path):
    """Starts the program without the seconds of its imports. path: of Python, before its own."""
    server = fork_server.Server(ENVIRONMENT | fork_server.ENVIRONMENT | {'PYTHONPATH': path})
    atexit.register(server.close)
    return server


def run(config, *flags, status=0, path=''):
    """What the program has written to standard output and to standard error; its exit status must be `status`."""
    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder, 'log')
        started = _server(path).start([f'--config=configs/{config}', *flags], log)
        ended, (output, errors) = started.wait(300), started.printed()
    assert ended == status, errors
    return output, errors


def checksums(workdir, step):
    """The checksum of every array of a checkpoint (tests/test_checkpoint.py shows what they notice)."""
    checkpoint = workdir / 'checkpoints' / str(step)
    record = json.loads((checkpoint / 'record' / 'metadata').read_text())['record']
    return {
        f'{item}/{name}': leaf['checksum'] for item, leaves in record['leaves'].items() for name, leaf in leaves.items()
    }


def golden_tree(golden, prefix, classifier=False):
    """The reference's parameter tree of the arrays under `prefix`, with the choice head or the classifier."""
    weights = {k.removeprefix(f'{prefix}/'): v for k, v in golden.items() if k.startswith(f'{prefix}/')}
    if classifier:
        score = weights['score.weight']
        return reference.params_from_huggingface(weights, score.T, np.zeros(len(score)))
    head = 'multiple_choice_head.summary'
    width = weights['tokens_embed.weight'].shape[1]
    zeros = {f'{head}.weight': np.zeros((1, width)), f'{head}.bias': np.zeros(1)}  # lm_gradients have no head
    weights = zeros | weights
    return reference.params_from_huggingface(weights, weights[f'{head}.weight'].T, weights[f'{head}.bias'])


def largest_of_normals(count):
    """What the largest |z| of `count` standard normal variables exceeds with probability 1e-4."""
    return stats.norm.isf(1e-4 / count / 2)


def assert_rows_are_uncorrelated(rows):
    z = np.corrcoef(rows)[np.triu_indices(len(rows), 1)] * np.sqrt(len(rows[0]))
    assert np.abs(z).max() < largest_of_normals(z.size)
    assert abs(np.mean(z**2) - 1) < 5 * np.sqrt(2 / z.size)


def plain_standardise(text):
    """PAPER section 3's rules, one after the other, as literally as can be."""
    text = ftfy.fix_text(text)
    for character, replacement in {'—': '-', '–': '-', '―': '-', '…': '...', '´': "'"}.items():
        text = text.replace(character, replacement)
    text = re.sub(r'(-+|~+|!+|"+|;+|\?+|\++|,+|\)+|\(+|\\+|/+|\*+|\[+|\]+|\}+|\{+|\|+|_+)', r' \1 ', text)
    text = re.sub(r'\s*\n\s*', ' \n ', text)
    text = re.sub(r'[^\S\n]+', ' ', text)
    return text.strip()


def write_lines(path, content):
    """Text, or entries as the file's name asks: .jsonl, .tsv or .csv, and .gz."""
    if isinstance(content, str):
        text = content
    elif '.jsonl' in path.suffixes:
        text = ''.join(json.dumps(entry, ensure_ascii=False) + '\n' for entry in content)
    else:
        lines = [list(content[0]), *(entry.values() for entry in content)]
        text = ''.join('\t'.join(map(str, line)) + '\r\n' for line in lines)
        if '.csv' in path.suffixes:
            file = io.StringIO(newline='')
            csv.writer(file).writerows(lines)
            text = file.getvalue()
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == '.gz' else data)


def write_parquet(path, columns, features=None, rows_per_group=None):
    """Writes columns into a file as `datasets` does, with its features where they are given: column -> names of ids."""
    arrow = pytest.importorskip('pyarrow')
    pytest.importorskip('pyarrow.parquet')
    table = arrow.table(columns)
    if features is not None:
        described = {
            name: {'names': list(features[name]), '_type': 'ClassLabel'}
            if name in features
            else {'dtype': 'string', '_type': 'Value'}
            for name in columns
        }
        table = table.replace_schema_metadata({'huggingface': json.dumps({'info': {'features': described}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    arrow.parquet.write_table(table, path, row_group_size=rows_per_group)
    return epath.Path(path)


def load_files(dataset, folder, split='train', **kwargs):
    """The examples of a data set, or of one of the registry by its name, in a folder."""
    return load_examples(REGISTRY[dataset] if isinstance(dataset, str) else dataset, f'files:{folder}', split, **kwargs)


def assert_well_put(message):
    """One line, `WHERE: WHAT is wrong. HOW to fix it.`"""
    where, _, sentences = message.partition(': ')
    assert '\n' not in message and re.fullmatch(r'[A-Z0-9].*\. [A-Z].*\.', sentences), message


def refusal(dataset, folder, split='train'):
    """The message of the error when they are loaded: one line, `WHERE: WHAT is wrong. HOW to fix it.`"""
    with pytest.raises(UserError) as caught:
        load_files(dataset, folder, split)
    assert_well_put(str(caught.value))
    return str(caught.value)


def flat_keys(values, prefix=''):
    """The dotted keys of a nested dictionary."""
    for key, value in values.items():
        yield from flat_keys(value, f'{prefix}{key}.') if isinstance(value, dict) else [prefix + key]
