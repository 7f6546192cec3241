"""The runs of tests/soak.py, of a second or two, and what they leave, to be compared with that of other runs."""

import functools
import hashlib
import importlib.util
import json
import os
import pathlib
import random
import re
from typing import NamedTuple

import jax

import fork_server
import runs
from helpers import SUBJECTS, sentence, some_words

TINY = {
    'transformer': ('tiny', dict(layers=1, width=16, heads=2, mlp_width=64, n_positions=32)),
    'lstm': ('tiny_lstm', dict(layers=1, width=16, units=24, n_positions=32)),
}
SERVER = {  # environment: one device, quick compilation
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true',
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'NPROC': '32',
    **fork_server.ENVIRONMENT,
}
_TIMES = ('time', 'tokens_per_second', 'mfu')
_OF_RUN = ('seconds', 'config_fingerprint', 'sha256')  # of results.json: its time, and what depends on paths


class Case(NamedTuple):
    """A run.

    Attributes:
      flags: what the program is given, with words such as WORKDIR for places.
      exact: whether it leaves the same whenever it is run, but for times; else the same files.
    """

    name: str
    flags: tuple[str, ...]
    exact: bool = True

    @property
    def task(self) -> str:
        return self.name.partition(' ')[0]

    def arguments(self, workdir: pathlib.Path, *changes: str) -> list[str]:
        """changes: flags that are added, in place of those of the same name."""
        flags = {flag.partition('=')[0]: flag for flag in (*self.flags, *changes, '--workdir=WORKDIR')}
        return [flag.replace('WORKDIR', str(workdir)) for flag in flags.values()]


def write_data(folder: pathlib.Path) -> None:
    """FOLDER/books, FOLDER/shards of them, FOLDER/labelled with three splits, FOLDER/suite with two sets of GLUE."""
    folder.mkdir(parents=True)
    runs.write_data(folder)
    rng = random.Random(1)
    texts = [sentence(rng, rng.choice(list(SUBJECTS))) for _ in range(12)]
    write = lambda path, entries: path.write_text('\n'.join(map(json.dumps, entries)))
    write(folder / 'labelled' / 'test.jsonl', [{'text': text} for text in texts])
    for name, make in (
        ('sst2', lambda: {'sentence': some_words(rng, 5), 'label': rng.randrange(2)}),
        ('rte', lambda: {'sentence1': some_words(rng, 4), 'sentence2': some_words(rng, 3), 'label': rng.randrange(2)}),
    ):
        (folder / 'suite' / name).mkdir(parents=True)
        for split, n in (('train', 24), ('dev', 10), ('test', 6)):
            write(folder / 'suite' / name / f'{split}.jsonl', [make() | {'idx': i} for i in range(n)])


def cases(folder: pathlib.Path) -> dict[str, Case]:
    """All runs by name, on the data in a folder; those that fine-tune start from FOLDER/lm-KIND."""
    found = []
    training = ('--config.optimizer.learning_rate=0.01', '--config.log.every=1', '--config.checkpoint.every=2')
    for kind, (size, sizes) in TINY.items():
        found += [
            Case(
                f'pretrain {kind}',
                (
                    f'--config=configs/pretrain.py:{size}',
                    *(f'--config.model.{name}={value}' for name, value in sizes.items()),
                    f'--config.data.source=shards:{folder}/shards',
                    '--config.data.batch_size=8',
                    f'--config.data.tokens={16 * 8 * 32}',
                    *training,
                    '--config.optimizer.warmup_steps=2',
                    '--config.log.eval_every=5',
                    '--config.checkpoint.keep_every=6',
                ),
            ),
            Case(
                f'finetune {kind}',
                (
                    '--config=configs/finetune.py:custom',
                    f'--config.init_from={folder}/lm-{kind}',
                    f'--config.data.source=files:{folder}/labelled',
                    '--config.data.kind=classification',
                    '--config.data.fields=text',
                    '--config.data.labels=sea,farm',
                    '--config.data.batch_size=8',
                    '--config.data.epochs=2',
                    '--config.data.cache=WORKDIR/cache',
                    *training,
                ),
            ),
            Case(
                f'sweep {kind}',
                (
                    '--config=configs/finetune.py:glue',
                    f'--config.init_from={folder}/lm-{kind}',
                    f'--config.data.source=files:{folder}/suite',
                    '--config.data.batch_size=8',
                    '--config.data.epochs=1',
                    '--config.data.cache=off',
                    '--config.seeds=2',
                    *training,
                ),
            ),
        ]
    common = (
        '--config=configs/prepare.py',
        f'--config.data.source=text:{folder}/books',
        '--config.data.held_out=0.25',
        '--config.data.tokens_per_shard=400',
    )
    found += [
        Case('prepare trained', (*common, '--config.data.vocab_size=320', '--config.data.workers=2')),
        Case(
            'prepare given', (*common, f'--config.data.tokenizer={folder}/shards/tokenizer', '--config.data.workers=1')
        ),
    ]
    return {case.name: case for case in found}


def others(folder: pathlib.Path) -> dict[str, Case]:
    """Runs of the other tasks by name, on what is in the folder after those of `cases`; they are stopped only. Not
    quickstart, which reads for long and is made of other tasks."""
    model = f'--config.init_from={folder}/lm-transformer'
    labelled = (
        f'--config.data.source=files:{folder}/labelled',
        '--config.data.kind=classification',
        '--config.data.fields=text',
        '--config.data.labels=sea,farm',
        '--config.data.eval_batch_size=2',
        '--config.data.cache=off',
    )
    suite = (f'--config.data.source=files:{folder}/suite', '--config.data.cache=off')
    tuning = ('--config.data.batch_size=8', '--config.data.epochs=1', '--config.log.every=1')
    tiny = tuple(f'--config.model.{name}={value}' for name, value in TINY['transformer'][1].items())
    flags = {
        'evaluate': ('evaluate.py:custom', f'--config.init_from={folder}/tuned-transformer', *labelled),
        'evaluate_text': (
            'evaluate.py:text',
            model,
            f'--config.data.source=text:{folder}/books',
            '--config.data.batch_size=1',
            '--config.stride=4',
        ),
        'zero_shot': (
            'zero_shot.py',
            f'{model}@all',
            f'--config.data.source=files:{folder}/suite',
            '--config.datasets=sst2',
            '--config.data.batch_size=1',
        ),
        'generate': ('generate.py', model, '--config.samples=40', '--config.max_tokens=20', '--config.batch_size=2'),
        'convert': ('convert.py', f'--config.source={folder}/lm-transformer', '--config.target=hf:WORKDIR/model'),
        'report': ('report.py', f'--config.runs={folder}/tuned-transformer'),
        'ablation': (
            'ablation.py:lambda',
            model,
            *suite,
            *tuning,
            '--config.datasets=sst2',
            '--config.coefficients=(0.0,1.0)',
        ),
        'layer_transfer': ('layer_transfer.py:rte', model, *suite, *tuning),
        'benchmark': ('benchmark.py:generate', *tiny, '--config.batches=(1,)', '--config.minutes=0.02'),
        'paper': (
            'paper.py:tiny',
            f'--config.text=text:{folder}/books',
            f'--config.source=files:{folder}/suite',
            '--config.parts=prepare,pretrain,zero_shot,samples,report',
            '--config.prepare.data.vocab_size=320',
            '--config.prepare.data.held_out=0.25',
            *(flag.replace('config.', 'config.pretrain.', 1) for flag in tiny),
            '--config.pretrain.data.batch_size=8',
            f'--config.pretrain.data.tokens={10 * 8 * 32}',
            '--config.pretrain.optimizer.warmup_steps=2',
            '--config.pretrain.log.eval_every=4',
        ),
    }
    if importlib.util.find_spec('libtpu'):
        flags['compile'] = ('compile.py:v5e-4', *tiny, '--config.works=("pretrain",)', '--config.as_run=False')
    with_times = ('benchmark', 'compile', 'paper')
    return {
        name: Case(name, (f'--config=configs/{file}', *more), exact=name not in with_times)
        for name, (file, *more) in flags.items()
    }


def contents(workdir: pathlib.Path) -> dict[str, object]:
    """What a run left, by file, without times, speeds and the folder around it; of a checkpoint its record."""
    found = {}
    one, all_of_them = (re.escape(os.fsencode(path)) for path in (workdir.parent, workdir.parents[2]))
    place = re.compile(one + b'|' + all_of_them + rb'/(reference|trials)/[^/"]+')  # of a copied folder, the first one
    for path in sorted(workdir.rglob('*')):
        name = str(path.relative_to(workdir))
        if path.is_dir() or {'tensorboard', 'cache'} & set(path.relative_to(workdir).parts):
            continue
        if checkpoint := re.match('(?:.*/)?checkpoints/[^/]+', name):
            found.setdefault(checkpoint[0], None)
            if name.endswith('/record/metadata'):
                found[checkpoint[0]] = json.loads(path.read_text())['record']
            continue
        data = place.sub(b'FOLDER', path.read_bytes())
        if path.name == 'metrics.jsonl':
            found[name] = [_without_times(line) for line in data.decode(errors='replace').splitlines()]
        elif path.name == 'results.json':
            found[name] = json.loads(data) | dict.fromkeys(_OF_RUN)
        else:
            found[name] = hashlib.sha256(data).hexdigest()
    return found


def _without_times(line):
    try:
        return {key: value for key, value in json.loads(line).items() if key not in _TIMES}
    except (ValueError, AttributeError):  # damaged
        return line


def parameters(workdir: pathlib.Path, step: int) -> dict:
    """The tree of the parameters of a checkpoint, as its record has them, to be read on one device."""
    record = json.loads((workdir / 'checkpoints' / str(step) / 'record' / 'metadata').read_text())['record']
    tree = {}
    for name, leaf in record['leaves']['params'].items():
        *path, last = name.split('/')
        inner = functools.reduce(lambda inner, key: inner.setdefault(key, {}), path, tree)
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        inner[last] = jax.ShapeDtypeStruct(leaf['shape'], leaf['dtype'], sharding=sharding)
    return tree


def differences(workdir: pathlib.Path, expected: dict[str, object]) -> list[str]:
    """In words, where a workdir is not what another has left. Raises nothing: what cannot be read differs too."""
    try:
        found = contents(workdir)
    except (ValueError, OSError, KeyError) as error:
        return [f'{workdir}: {type(error).__name__}: {error}']
    words = [f'{name} is missing' for name in sorted(expected.keys() - found.keys())]
    words += [f'{name} is left over' for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        if found[name] != expected[name]:
            one, other = (json.dumps(value, sort_keys=True) for value in (found[name], expected[name]))
            at = next((i for i, pair in enumerate(zip(one, other)) if pair[0] != pair[1]), 0)
            there, here = (text[max(0, at - 40) : at + 40] for text in (one, other))
            words.append(f'{name} differs: {there!r} for {here!r}')
    return words
