"""The damages of tests/soak.py: of every file of a checkpoint, a workdir, a shard folder or a cache. Who reads it gets
what was written, or is told in one sentence; an older checkpoint stands in for a damaged one, with a warning."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import pathlib
import random
import shutil
import signal
from collections.abc import Callable

import jax
import ml_collections
import numpy as np
from etils import epath

import models
import soak_cases
from gpt1_jax.data.corpus import shards
from gpt1_jax.data.labelled import sequences
from gpt1_jax.data.tokenizers.loading import load_tokenizer
from gpt1_jax.errors import UserError
from gpt1_jax.saved_models import store
from gpt1_jax.training.checkpoint import Checkpointer
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.program import pretraining
from helpers import assert_well_put
from soak_cases import Case, differences
from soak_trials import LIMIT, READING, Lane, ended, require, require_sentence, require_whole

HOW = ('truncated', 'emptied', 'deleted', 'one bit flipped')


@dataclasses.dataclass(frozen=True)
class Target:
    """Files that are damaged, and who reads them.

    Attributes:
      group: in the table.
      source: the folder that is copied.
      files: which of them are damaged, by their path in it.
      read: reads a folder in this process; `known`, what it finds in the whole one, then what may stand in for that,
        `instead` in words; or
      case: the run that reads it, and `expected`, what that leaves.
      place: of the copy in the trial's folder: 'run', the workdir of `case`, or 'compiled', its compiled steps.
      unread: files of an earlier run that this one neither reads nor writes.
    """

    name: str
    group: str
    source: pathlib.Path
    files: Callable[[str], bool]
    read: Callable[[pathlib.Path], object] | None = None
    known: tuple = ()
    instead: str = 'an older checkpoint'
    case: Case | None = None
    expected: dict | None = None
    place: str = 'run'
    unread: Callable[[str], bool] = lambda name: False

    @property
    def in_process(self) -> bool:
        return self.read is not None

    def names(self) -> list[str]:
        paths = (path for path in sorted(self.source.rglob('*')) if path.is_file())
        return [name for path in paths if self.files(name := str(path.relative_to(self.source)))]


def damage(path: pathlib.Path, how: str, rng: random.Random) -> str:
    """Damages a file; says how."""
    data = bytearray(path.read_bytes())
    if how == 'deleted':
        path.unlink()
    elif how == 'emptied' or not data:
        path.write_bytes(b'')
    elif how == 'truncated':
        size = rng.randrange(len(data))
        path.write_bytes(data[:size])
        return f'truncated to {size} of {len(data)} bytes'
    else:
        bit = rng.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        return f'bit {bit} flipped'
    return how


def spoil(lane: Lane, rng: random.Random, target: Target, name: str, how: str) -> tuple[str, str]:
    """Damages a file of a folder, and reads that; (words, outcome)."""
    place = lane.folder / target.place
    shutil.copytree(target.source, place)
    words = f'{target.name}: {name} {damage(place / name, how, rng)}'
    if target.in_process:
        return words, _read(target, place, words)
    moment = {'cache': str(place)} if target.place == 'compiled' else {}
    started = lane.start(target.case, **moment)
    status = ended(started, LIMIT, words)
    if status == 2:
        require_sentence(started, words)
        return words, 'refused'
    require_whole(started, words)
    require(status == 0, f'{words}: status {status}: {started.printed()[1][-300:]!r}')
    found = differences(lane.folder / 'run', target.expected)
    left = [word for word in found if not (word.startswith(f'{name} ') and target.unread(name))]
    require(not left, f'{words}: status 0, and {"; ".join(left[:4])}')
    if found:
        return words, 'not read'
    return words, 'an older checkpoint' if 'damaged' in started.printed()[1] else 'right'


def _read(target, place, words):
    with READING, warnings() as said:
        try:
            found = target.read(place)
        except UserError as error:
            message = ' '.join(str(error).split())
            try:
                assert_well_put(message)
            except AssertionError:
                require(False, f'{words}: no sentence: {message}')
            return 'refused'
        except Exception as error:  # a traceback, for a user
            require(False, f'{words}: {type(error).__name__}: {error}')
    if found == target.known[0]:
        return 'right'
    require(found in target.known, f'{words}: read otherwise, {str(found)[:200]} for {str(target.known[0])[:200]}')
    require(said, f'{words}: {target.instead} without a warning')
    return target.instead


@contextlib.contextmanager
def warnings():
    """Those that the program logs."""
    said, handler, logger = [], logging.Handler(logging.WARNING), logging.getLogger('absl')
    handler.emit = lambda record: said.append(record.getMessage())
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


# ----------------------------------------------------------------- readers


def digest(tree) -> str:
    hashed = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        hashed.update(f'{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}'.encode())
        hashed.update(np.ascontiguousarray(jax.device_get(leaf)))
    return hashed.hexdigest()


def resumed(abstract, workdir: pathlib.Path, step: int | None = None) -> object:
    """What a run resumes from: (step, arrays, meta)."""
    checkpointer = Checkpointer(epath.Path(workdir) / 'checkpoints', best_metric='valid_loss')
    found = checkpointer.restore_latest(abstract) if step is None else checkpointer.restore(step, abstract)
    return found and (found[0], digest(found[1]), json.dumps(found[2]))


def model(tree: dict, architecture: tuple, workdir: pathlib.Path, step: str = '') -> object:
    """What a run that starts from a model knows of it. tree, architecture: of the whole one."""
    saved = store.open_model(f'{workdir}{step}')
    # The tree of a model of another form would be another one: slow to find out, and rare.
    params = saved.read(tree) if _form(saved) == architecture else models.read(f'{workdir}{step}')[1]
    tokens = saved.tokenizer.encode_batch(['the ship and the cow 1 \u00e9'])[0].tolist()
    return digest(params), _form(saved), saved.tokens_seen() or 0, saved.tokenizer.fingerprint, tokens


def _form(saved):
    return saved.architecture, saved.vocab_size, saved.n_special, saved.head


def shard_folder(folder: pathlib.Path) -> object:
    """What pre-training reads of a shard folder."""
    found = shards.load_shards(folder)
    found.verify()
    tokenizer = load_tokenizer(folder / 'tokenizer')
    return (
        found.tokenizer_fingerprint,
        found.vocab_size,
        found.preparation,
        {
            name: (split.tokens, split.documents, split.read(np.array([0]), split.tokens).tolist())
            for name, split in found.splits.items()
        },
        tokenizer.fingerprint,
        [ids.tolist() for ids in tokenizer.encode_batch(['the ship and the cow 1 \u00e9'])],
    )


def cached(key: str, folder: pathlib.Path) -> object:
    """The token sequences of a cache; None, and they are made again."""
    found = sequences.load_copy(folder, key)
    return found and digest([found[0].tokens, found[0].lengths, found[1]])


# ----------------------------------------------------------------- targets


def targets(lane: Lane) -> list[Target]:
    """All that the lane's runs leave; makes the folders that are damaged, where they are not there yet."""
    make = {'pretrain': _of_pretraining, 'finetune': _of_finetuning, 'sweep': _of_sweep, 'prepare': _of_prepare}
    cases = [(name, case) for name, case in lane.cases.items() if case.task in make]
    found = [target for name, case in cases for target in make[case.task](lane, name, case)]
    data = lane.reference.parent / 'data' / 'shards'
    found.append(Target('shards', 'shard folder', data, lambda name: True, shard_folder, (shard_folder(data),)))
    return found


def _of_pretraining(lane, name, case):
    stopped = _stopped(lane, name, signal.SIGTERM)
    program = pretraining(
        ml_collections.ConfigDict(json.loads((stopped / 'config.json').read_text())),
        json.loads((stopped / 'model.json').read_text())['vocab_size'],
        16,
        Partitioner('dp', (), jax.devices()[:1]),
    )
    read = functools.partial(resumed, program.abstract.items())
    steps = sorted((int(path.name) for path in (stopped / 'checkpoints').iterdir()), reverse=True)
    known = tuple(read(stopped, step) for step in steps)
    latest = lambda file: file.startswith(f'checkpoints/{steps[0]}/')
    some = lambda file: latest(file) and hashlib.sha1(file.encode()).digest()[0] % 5 == 0
    common = dict(case=case, expected=lane.expected[name], unread=_is_log)
    yield Target(f'resumed {name}', 'checkpoint', stopped, latest, read, known)
    yield Target(f'program {name}', 'checkpoint', stopped, some, **common)
    yield Target(f'stopped {name}', 'workdir of a stopped run', stopped, _is_no_checkpoint, **common)
    if name == 'pretrain transformer':
        yield _best(lane, name)
        compiled = pathlib.Path(lane.environment['JAX_COMPILATION_CACHE_DIR'])
        by_size = sorted((path for path in compiled.iterdir() if path.is_file()), key=lambda path: path.stat().st_size)
        largest = {path.name for path in by_size[-6:]}
        yield Target('compiled', 'compiled steps', compiled, largest.__contains__, **common | {'place': 'compiled'})


def _best(lane, name):
    """The best checkpoint, as it is read by a run that starts from it."""
    run = lane.reference / name / 'run'
    saved = json.loads((run / 'model.json').read_text())
    checkpointer = Checkpointer(
        epath.Path(run) / 'checkpoints', best_metric=saved['best_metric'], best_mode=saved['best_mode']
    )
    best = checkpointer.steps_by_rank()[0]
    files = f'checkpoints/{best}/', 'model.json', 'tokenizer/'
    read = functools.partial(model, soak_cases.parameters(run, best), _form(store.open_model(str(run))))
    known = (read(run), *(read(run, f'@{step}') for step in checkpointer.steps()))
    return Target(f'best {name}', 'model', run, lambda file: file.startswith(files), read, known)


def _of_finetuning(lane, name, case):
    run = lane.reference / name / 'run'
    if name == 'finetune lstm':
        yield _best(lane, name)
    else:
        files = lambda file: _is_no_checkpoint(file) and 'cache/' not in file
        common = dict(case=case, expected=lane.expected[name], unread=_is_output)
        yield Target(f'again {name}', 'workdir of a finished run', run, files, **common)
    for key in sorted(path.name for path in (run / 'cache').iterdir()):
        yield Target(
            f'cache {name}',
            'token cache',
            run / 'cache',
            lambda file, key=key: file.startswith(key),
            functools.partial(cached, key),
            (cached(key, run / 'cache'), None),
            instead='made again',
        )


def _of_sweep(lane, name, case):
    if name == 'sweep lstm':
        files = lambda file: _is_no_checkpoint(file) and (file.count('/') < 2 or file.startswith('rte/seed1'))
        common = dict(case=case, expected=lane.expected[name], unread=_is_output)
        yield Target(f'again {name}', 'workdir of a finished run', lane.reference / name / 'run', files, **common)


def _of_prepare(lane, name, case):
    some = lambda file: not file.endswith('.bin') or file.endswith('-00000.bin')
    common = dict(case=case, expected=lane.expected[name])
    yield Target(f'unfinished {name}', 'unfinished shards', _stopped(lane, name, signal.SIGKILL), some, **common)
    yield Target(f'again {name}', 'finished shards, prepared again', lane.reference / name / 'run', some, **common)


def _is_no_checkpoint(file):
    return 'checkpoints/' not in file


def _is_log(file):
    return file.rpartition('/')[2] == 'metrics.jsonl' or 'tensorboard/' in file or 'cache/' in file


def _is_output(file):
    """Of a finished run, which does not read it again; the models are read by others (`_best`)."""
    name, outputs = file.rpartition('/')[2], ('dev.npz', 'dev_errors.jsonl', 'table.txt', 'model.json')
    return name in outputs or 'predictions/' in file or 'tokenizer/' in file or _is_log(file)


def _stopped(lane, name, number):
    """The workdir of a run that was stopped when three fifths of its files were written."""
    lane.folder = lane.reference / f'stopped {name}'
    workdir = lane.folder / 'run'
    if not (lane.folder / 'log.at').exists():
        shutil.rmtree(lane.folder, ignore_errors=True)
        lane.folder.mkdir(parents=True)
        at = int(0.6 * lane.operations[name])
        started = lane.start(lane.cases[name], folder=str(workdir), number=at, signal=number)
        require(ended(started, LIMIT, name), f'{name}: it was not stopped')
    return workdir
