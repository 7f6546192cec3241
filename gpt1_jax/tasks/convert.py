"""Converts a model between the release's files, a Hugging Face folder and the workdir of a run."""

import contextlib
import os
import re
import time

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from gpt1_jax import hub
from gpt1_jax.errors import UserError
from gpt1_jax.files import is_local, make_directory
from gpt1_jax.progress import waiting
from gpt1_jax.report.results import Result, record
from gpt1_jax.saved_models import huggingface, openai, store
from gpt1_jax.training.checkpoint import Checkpointer
from gpt1_jax.training.partitioning import Partitioner, is_writer
from gpt1_jax.workdir import open_workdir


def run(config: ConfigDict, workdir: epath.Path) -> Result:
    """Writes the model `config.source` as `config.target`; each is `openai:DIR`, `hf:DIR` or a workdir.

    Raises UserError, before anything is written, if the source cannot be read, the target exists or is a name on the
    hub, or the target's form cannot hold the model.
    """
    started = time.monotonic()
    for key in ('source', 'target'):
        if not config[key]:
            raise UserError(f'{key}: It is empty. Give --config.{key}=openai:DIR, hf:DIR or a workdir.')
    saved = store.open_model(config.source)
    scheme, target = store.split_uri(config.target)
    if not scheme and (prefix := re.match(r'\w+:(?!//)', config.target)):  # not of gs://
        raise UserError(f'target: The form {prefix[0]} is unknown. Give openai:DIR, hf:DIR or a workdir.')
    if scheme == 'hf' and hub.parse(config.target.removeprefix('hf:')) and not target.parent.exists():
        raise UserError(
            f'target: {config.target} is a name on the hub, to which nothing is uploaded. For a folder of this name, '
            f'give hf:./{target}.'
        )
    if scheme:
        saved.architecture.require('convert', config.source)
        if not saved.architecture.sizes['layers']:
            raise UserError(f'{config.source}: Other programs have no models without layers. Convert it to a workdir.')
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f'target: {target} exists already. Name a new folder.')
    if os.path.abspath(target) == os.path.abspath(workdir):  # its config.json would be in the way
        raise UserError(f'target: {target} is also the folder of this run. Name another --workdir.')
    if scheme == 'hf':
        huggingface.check_expressible(saved)
    open_workdir(config, workdir, write=is_writer())
    partitioner = Partitioner('dp', (1, 1, 1), jax.devices()[:1])
    classifier, params = store.load_model(saved, {}, partitioner)
    model = store.summary(classifier.model, params, saved.tokens_seen())
    with _whole_folder(target) as folder, waiting(f'writing {config.target}'):
        if scheme == 'openai':
            model['parameters'] = openai.write_folder(folder, saved, jax.device_get(params))
        elif scheme == 'hf':
            huggingface.write_folder(folder, saved, jax.device_get(params))
        else:
            store.describe_run(
                folder, classifier, saved.tokenizer, tokens_before=saved.tokens_seen(), labels=saved.labels
            )
            checkpointer = Checkpointer(folder / 'checkpoints')
            checkpointer.save(0, {'params': params}, {'evaluations': []})
            checkpointer.close()
        # Before the target exists: with a target, an interrupted run could not be started again.
        result = record(config, workdir, started, model=model)
    if scheme == 'openai' and saved.n_special:
        logging.warning(
            "%s: The release's files have no place for the %d special rows%s, which are left out.",
            config.target,
            saved.n_special,
            ' and the head' if saved.head else '',
        )
    logging.info('%s: %s parameters from %s', config.target, f'{model["parameters"]:,}', config.source)
    return result


@contextlib.contextmanager
def _whole_folder(target: epath.Path):
    """A temporary folder that is renamed to `target` at the end, or deleted if something fails.

    In a remote store, where a folder cannot be renamed in one step, it is `target` itself: what an interrupted
    conversion leaves there is not taken for a model, because the files that are written last are missing.
    """
    partial = target.with_name(f'.{target.name}.converting') if is_local(target) else target
    partial.rmtree(missing_ok=True)
    make_directory(partial)
    try:
        yield partial
        if partial != target:
            if target.exists():
                target.rmdir()
            partial.rename(target)
    except BaseException:
        with contextlib.suppress(OSError):  # perhaps the same error again
            partial.rmtree()
        raise
