"""Models on disk: the workdir of a run, the release's files, a Hugging Face folder."""

import os
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import logging
from etils import epath

from gpt1_jax import hub, peers
from gpt1_jax.config import MOST_LAYERS, MOST_SIZE
from gpt1_jax.data.tokenizers import N_SPECIAL
from gpt1_jax.data.tokenizers.loading import Tokenizer, load_tokenizer
from gpt1_jax.errors import DivergedError, UserError
from gpt1_jax.files import check_form, check_seal, exists, read_json, sealed, write_json
from gpt1_jax.model import architecture
from gpt1_jax.model.architecture import Architecture
from gpt1_jax.model.classifier import Classifier, ClassifierHead
from gpt1_jax.progress import waiting
from gpt1_jax.saved_models import hub_models, huggingface, openai
from gpt1_jax.saved_models.parameters import SavedModel
from gpt1_jax.training.checkpoint import Checkpointer
from gpt1_jax.training.partitioning import Partitioner, is_writer
from gpt1_jax.training.room import check_room
from gpt1_jax.training.state import abstract_params

FORMAT_VERSION = 2
_RESTORE = 'Restore a copy, or name another run.'
_MOST_NAMED = 10
_NUMBER = (int, type(None))
_DESCRIPTION = {
    **{'kind': str, 'architecture': dict, 'vocab_size': int, 'n_special': int},
    **{'head': ({'kind': str, 'classes': int}, type(None)), 'best_metric': (str, type(None)), 'best_mode': str},
    **{'tokens_before': _NUMBER, 'tokens_per_step': int, 'labels': ([str], type(None))},
}
_FOREIGN = {'openai': openai.open_folder, 'hf': huggingface.open_folder}


def describe_run(
    workdir: epath.Path,
    classifier: Classifier,
    tokenizer: Tokenizer,
    *,
    best_metric: str | None = None,
    best_mode: str = 'min',
    tokens_before: int | None = None,
    tokens_per_step: int = 0,
    labels: Sequence[str] | None = None,
) -> None:
    """Writes workdir/model.json and workdir/tokenizer: with a checkpoint, all that `open_model` needs.

    Args:
      best_metric: ranks the checkpoints, with `best_mode`, see Checkpointer.
      tokens_before: that the model was pre-trained on before this run; None if unknown.
      tokens_per_step: that each step adds.
      labels: see SavedModel.
    """
    if not is_writer():
        return
    tokenizer.save(workdir / 'tokenizer')
    model, head, made = classifier.model, classifier.head, Architecture.of(classifier.model)
    described = {
        'format_version': FORMAT_VERSION,
        'kind': made.kind,
        'architecture': made.sizes,
        'vocab_size': model.vocab_size,
        'n_special': model.n_special,
        'head': head and {'kind': head.kind, 'classes': head.classes},
        'best_metric': best_metric,
        'best_mode': best_mode,
        'tokens_before': tokens_before,
        'tokens_per_step': tokens_per_step,
        'labels': labels and list(labels),
    }
    write_json(workdir / 'model.json', sealed(described))


def split_uri(uri: str) -> tuple[str, epath.Path]:
    """'openai:DIR' or 'hf:DIR' -> scheme and folder; anything else is a workdir, scheme ''."""
    scheme, _, folder = uri.partition(':')
    if scheme not in _FOREIGN:
        return '', epath.Path(uri).expanduser()
    return scheme, epath.Path(folder).expanduser()


def open_model(init_from: str) -> SavedModel:
    """Opens the workdir of a pre-training or fine-tuning run, 'openai:DIR' (the release's folder `model/`) or 'hf:DIR'.

    If there is no such DIR, 'hf:OWNER/NAME' and 'hf:OWNER/NAME@REVISION' are fetched from the Hugging Face hub. Of a
    run, the best checkpoint is read, or the latest if none is ranked; if it is damaged, the next best, with a warning.
    'WORKDIR@STEP' names another.

    Raises UserError if it is none of these, or damaged, or has no such step. A run without any checkpoint is noticed
    only when its parameters are read.
    """
    if not init_from:
        raise UserError(
            'init_from: It is empty. Name the --workdir of a training run with --config.init_from=DIR, or the files of '
            'other programs with openai:DIR, hf:DIR or hf:OWNER/NAME.'
        )
    scheme, directory = split_uri(init_from)
    if scheme:
        name = hub.parse(init_from.partition(':')[2]) if scheme == 'hf' and not directory.exists() else None
        if name and not name.config:
            directory = hub_models.fetch(init_from, name)
        return _FOREIGN[scheme](directory)
    directory, step = _split_step(directory)
    if not exists(directory / 'model.json'):
        raise _no_run(init_from, directory)
    stored = _read_description(directory / 'model.json')
    if step is not None:
        _checkpointer(directory, stored).check_step(step, init_from)
    tokenizer = load_tokenizer(directory / 'tokenizer')
    if tokenizer.vocab_size != stored['vocab_size']:
        raise UserError(
            f'{directory}: The tokenizer has {tokenizer.vocab_size:,} tokens, but model.json says '
            f'{stored["vocab_size"]:,}. {_RESTORE}'
        )
    checkpoint = _Checkpoint(directory, stored, step)
    return SavedModel(
        directory,
        Architecture(stored['kind'], stored['architecture']),
        stored['vocab_size'],
        stored['n_special'],
        stored['head'],
        tokenizer,
        checkpoint.read,
        checkpoint.tokens_seen,
        checkpoint.step,
        checkpoint.fingerprint,
        stored['labels'] and tuple(stored['labels']),
    )


def warn_unless_finished(init_from: str) -> None:
    """For tasks that open one model many times: a run without results may train on and get another best checkpoint."""
    scheme, directory = split_uri(init_from)
    directory, step = _split_step(directory)
    is_run = not scheme and exists(directory / 'model.json')
    if is_run and step is None and not exists(directory / 'results.json'):
        logging.warning(
            'init_from: %s is not finished. If it trains on, these runs may start from different checkpoints. To start '
            'all from the same one, name it: %s@STEP.',
            *(init_from, init_from),
        )


def kept_steps(run: str) -> list[int]:
    """The steps of the checkpoints in the workdir of a run, ascending."""
    return Checkpointer(epath.Path(run).expanduser() / 'checkpoints').steps()


def load_model(saved: SavedModel, model_config: Mapping, partitioner: Partitioner) -> tuple[Classifier, dict]:
    """The saved model with its head, if any, and its parameters, for evaluation and generation.

    model_config: settings of the computation, a run's `config.model`; its kind and sizes are ignored.
    """
    model_config = {**model_config, 'kind': saved.architecture.kind, **saved.architecture.sizes}
    model = architecture.build(model_config, saved.vocab_size, saved.n_special, partitioner.platform)
    classifier = Classifier(model, saved.head)
    params = abstract_params(classifier, partitioner)
    check_room(str(saved.directory), 'parameters', params)
    with waiting(f'reading the parameters in {saved.directory}', show=is_writer()):
        return classifier, saved.read(params)


def check_finite(saved: SavedModel, params: dict, partitioner: Partitioner) -> None:
    """Raises DivergedError if a parameter is not finite. For generation, which would make text with any model."""
    finite = lambda tree: jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
    if not partitioner.jit(finite, out_shardings=partitioner.sharding())(params):
        raise DivergedError(
            f'{saved.directory}: Its parameters are not all finite, so the model has diverged. Name another run, or an '
            'earlier checkpoint of this one as RUN@STEP.'
        )


def summary(model: nn.Module, params: dict, tokens_seen: int | None) -> dict:
    """`model` of a result record. params: the parameters, or their shapes."""
    made = Architecture.of(model)
    return {
        'kind': made.kind,
        'sizes': dict(made.sizes),
        'tokens_seen': tokens_seen,
        'parameters': sum(leaf.size for leaf in jax.tree.leaves(params)),
    }


def _read_description(path: epath.Path) -> dict:
    stored = read_json(path, dict, _RESTORE)
    check_seal(path, stored, _RESTORE)
    version = stored.get('format_version', 1)
    if version == 1:
        metric, mode = ('valid_loss', 'min') if stored.get('head') is None else ('dev_score', 'max')
        stored |= {
            'kind': architecture.DEFAULT_KIND,
            'best_metric': metric,
            'best_mode': mode,
            'tokens_before': None,
            'tokens_per_step': 0,
        }
    elif version != FORMAT_VERSION:
        raise UserError(
            f'{path}: The file has format version {version!r}, but this program reads 1 and '
            f'{FORMAT_VERSION}. Use a newer version of the program.'
        )
    stored.setdefault('labels', None)  # earlier versions did not write them
    check_form(path, stored, _DESCRIPTION, _RESTORE)
    made = architecture.KINDS.get(stored['kind'])
    if made is None:
        raise UserError(
            f'{path}: There is no kind of model {stored["kind"]!r}, only '
            f'{", ".join(architecture.KINDS)}. Use the program that wrote it.'
        )
    check_form(path, stored, {'architecture': dict.fromkeys(made.SIZES, int)}, _RESTORE)
    sizes, head, labels = stored['architecture'], stored['head'], stored['labels']
    if wrong := [
        *(f'{name} {sizes[name]}' for name in made.SIZES if not (name != 'layers') <= sizes[name] <= MOST_SIZE),
        *([f'layers {sizes["layers"]}'] if sizes['layers'] > MOST_LAYERS else []),
        *([f'n_special {stored["n_special"]}'] if stored['n_special'] not in (0, N_SPECIAL) else []),
        *([f'best_mode {stored["best_mode"]!r}'] if stored['best_mode'] not in ('min', 'max') else []),
        *([f'{head["classes"]} classes'] if head and not 1 <= head['classes'] <= MOST_SIZE + 1 else []),
        *([f'{len(labels)} labels'] if labels and len(labels) != (head and head['classes']) else []),
    ]:
        raise UserError(f'{path}: The file is damaged ({wrong[0]} is not valid). {_RESTORE}')
    stored['head'] = head and ClassifierHead(head['kind'], head['classes'])
    return stored


def _checkpointer(directory, stored):
    return Checkpointer(directory / 'checkpoints', best_metric=stored['best_metric'], best_mode=stored['best_mode'])


def _no_run(init_from, directory):
    """The error for a folder without a model.json."""
    name = 'Name the --workdir of a run, or openai:DIR, hf:DIR or hf:OWNER/NAME for the files of other programs.'
    if not exists(directory):
        return UserError(f'{init_from}: There is no such folder. {name}')
    plan, runs = directory / 'runs.json', []
    if exists(plan):
        listed = read_json(plan, [{'path': os.PathLike}], 'Name one of the runs below its folder.')
        runs = [str(run) for entry in listed if exists((run := directory / entry['path']) / 'model.json')]
    if runs:
        named = ', '.join(runs[:_MOST_NAMED]) + (f' or {len(runs) - _MOST_NAMED} more' * (len(runs) > _MOST_NAMED))
        return UserError(f'{init_from}: This is the workdir of a sweep, not of one run. Name one of its runs: {named}.')
    return UserError(f'{init_from}: This is not the workdir of a training run, because it has no model.json. {name}')


def _split_step(directory):
    """(folder, step) of 'FOLDER@STEP', unless a folder has that name; else (folder, None)."""
    name, _, step = directory.name.rpartition('@')
    if name and step.isdecimal() and len(step) < 20 and not directory.exists():
        return directory.with_name(name), int(step)
    return directory, None


class _Checkpoint:
    """The checkpoint of a run that is read: that of `step`; for None the best that is not damaged, chosen when it is
    first needed."""

    def __init__(self, directory, stored, step):
        self._directory, self._stored, self._given, self._step = directory, stored, step is not None, step

    def read(self, abstract):
        """The parameters."""
        checkpointer, items = _checkpointer(self._directory, self._stored), {'params': abstract}
        if peers.current:  # only then, because finding the checkpoint reads it whole
            peers.check_same(self.fingerprint(), str(self._directory))
        if self._given:
            return checkpointer.restore(self._step, items)[1]['params']
        restored = checkpointer.restore_best(items, first=() if self._step is None else (self._step,))
        if restored is None:
            raise UserError(f'{self._directory}: There is no checkpoint yet. Let its run save one first.')
        self._step = restored[0]
        return restored[1]['params']

    def step(self):
        """None if there is none yet."""
        if self._step is None:
            self._step = next(_checkpointer(self._directory, self._stored).whole_steps('params'), None)
        return self._step

    def tokens_seen(self):
        before, each = self._stored['tokens_before'], self._stored['tokens_per_step']
        return before if before is None or not each else before + (self.step() or 0) * each

    def fingerprint(self):
        step = self.step()
        return '' if step is None else _checkpointer(self._directory, self._stored).fingerprint(step)
