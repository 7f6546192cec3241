"""A model from one form to another: the release's files, a Hugging Face folder, the workdir of a run."""

import contextlib

import jax
from absl import logging
from etils import epath

from gpt1_jax import config as common
from gpt1_jax.data.files import make_directory
from gpt1_jax.errors import UserError
from gpt1_jax.training import transfer
from gpt1_jax.training.checkpoint import Checkpointer
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.weights import huggingface, openai


def run(config, workdir) -> None:
    """Writes the model `config.source` as `config.target`; each is `openai:DIR`, `hf:DIR` or a workdir.

    Raises UserError, with nothing written: a source that cannot be read, a target that is there already or whose form
    has no place for the model.
    """
    del workdir
    for key in ('source', 'target'):
        if not config[key]:
            raise UserError(f'{key} is empty: give --config.{key}=openai:DIR, hf:DIR or a workdir')
    source = transfer.open_source(config.source)
    scheme, target = transfer.split_place(config.target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f'the target {target} is there already: name a new folder')
    if scheme == 'hf':
        huggingface.check_expressible(source)
    partitioner = Partitioner('dp', (1, 1, 1), jax.devices()[:1])
    model, head, params = transfer.load_model(source, common.model_defaults(), partitioner)
    with _whole_folder(target) as folder:
        if scheme == 'openai':
            openai.write_folder(folder, source, jax.device_get(params))
        elif scheme == 'hf':
            huggingface.write_folder(folder, source, jax.device_get(params))
        else:
            transfer.describe_run(folder, model, source.tokenizer, head)
            checkpointer = Checkpointer(folder / 'checkpoints')
            checkpointer.save(0, {'params': params}, {'evaluations': []})
            checkpointer.close()
    if scheme == 'openai' and source.n_special:
        logging.warning("the release's files have no place for the %d special rows%s: left out", source.n_special,
                        ' and the head' if head else '')
    logging.info('%s: %s parameters from %s', config.target,
                 f'{sum(leaf.size for leaf in jax.tree.leaves(params)):,}', config.source)


@contextlib.contextmanager
def _whole_folder(target: epath.Path):
    """A folder beside `target` that becomes it when all is written, and is deleted when something fails."""
    partial = target.with_name(f'.{target.name}.converting')
    partial.rmtree(missing_ok=True)
    make_directory(partial)
    try:
        yield partial
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except BaseException:
        partial.rmtree(missing_ok=True)
        raise
