"""What a run leaves for other runs: its model's description, tokenizer and parameters; and how they are taken over."""

import functools
import json

import jax
import jax.numpy as jnp
from etils import epath

from gpt1_jax.config import write_json
from gpt1_jax.data.files import is_local
from gpt1_jax.data.tokenizers import load_tokenizer
from gpt1_jax.errors import UserError
from gpt1_jax.model.heads import ClassifierHead
from gpt1_jax.model.transformer import Decoder, model_from_config
from gpt1_jax.training.checkpoint import Checkpointer
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.state import abstract_tree, params_initialiser
from gpt1_jax.weights import Source, huggingface, openai

ARCHITECTURE = ('layers', 'width', 'heads', 'mlp_width', 'n_positions')
_FOREIGN = {'openai': openai.open_folder, 'hf': huggingface.open_folder}


def describe_run(workdir: epath.Path, model, tokenizer, head=None) -> None:
    """Writes workdir/model.json and workdir/tokenizer, all that `open_source` needs besides a checkpoint."""
    if jax.process_index() != 0:
        return
    tokenizer.save(workdir / 'tokenizer')
    write_json(workdir / 'model.json', {
        'architecture': {name: getattr(model, name) for name in ARCHITECTURE}, 'vocab_size': model.vocab_size,
        'n_special': model.n_special, 'head': head and {'kind': head.kind, 'classes': head.classes}})


def split_place(place: str) -> tuple[str, epath.Path]:
    """'openai:DIR' and 'hf:DIR' -> the scheme and its folder, which must be local; any other place -> '', a workdir."""
    scheme, _, folder = place.partition(':')
    if scheme not in _FOREIGN:
        return '', epath.Path(place).expanduser()
    if not is_local(folder):
        raise UserError(f'{place} is not a local folder: copy it here first (weights are mapped from disk)')
    return scheme, epath.Path(folder).expanduser()


def open_source(init_from: str) -> Source:
    """Opens the workdir of a pre-training or fine-tuning run, 'openai:DIR' (the release's folder `model/`) or 'hf:DIR'.

    Raises UserError if it is none of these, or damaged; a checkpoint is looked for when it is read.
    """
    scheme, directory = split_place(init_from)
    if scheme:
        return _FOREIGN[scheme](directory)
    try:
        description = json.loads((directory / 'model.json').read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f'{init_from} is not the workdir of a training run (it has no model.json): name the --workdir '
                        'of a pre-training run, or openai:DIR or hf:DIR for the files of other programs') from None
    return Source(directory=directory, tokenizer=load_tokenizer(directory / 'tokenizer'), **description,
                  read=functools.partial(_read_checkpoint, directory, description['head'] is not None))


def load_model(source: Source, model_config, partitioner: Partitioner) -> tuple[Decoder, ClassifierHead | None, dict]:
    """The source's own decoder, its task head (None where it has none) and their parameters {'decoder', 'head'}.

    For evaluation and generation. `model_config`: a run's `config.model`, of which the architecture does not count.
    Call it outside `Partitioner.activate`.
    """
    model = model_from_config({**model_config, **source.architecture}, source.vocab_size, source.n_special)
    head = source.head and ClassifierHead(**source.head)
    boxed = jax.eval_shape(params_initialiser(model, head), jax.random.key(0))
    return model, head, source.read(abstract_tree(boxed, partitioner))


def loader(source: Source, model, n_layers: int, partitioner: Partitioner):
    """A function params -> params that takes over the source's table and first `n_layers` layers, on their shardings.

    The head, and with n_layers -1 everything, stays as it was. Call it outside `Partitioner.activate`.
    """
    if n_layers < 0:
        return None
    head = source.head and ClassifierHead(**source.head)
    boxed = jax.eval_shape(params_initialiser(model.clone(n_special=source.n_special), head), jax.random.key(0))
    abstract = abstract_tree(boxed, partitioner)

    def load(params):
        shardings = jax.tree.map(lambda leaf: leaf.sharding, params['decoder'])
        decoder = jax.jit(functools.partial(
            transfer, vocab_size=model.vocab_size, n_special=model.n_special, source_special=source.n_special,
            n_layers=n_layers), out_shardings=shardings)(params['decoder'], source.read(abstract)['decoder'])
        return params | {'decoder': decoder}

    return load


def _read_checkpoint(directory, finetuned, abstract):
    """The run's best parameters, or its latest where none is best."""
    metric, mode = ('dev_score', 'max') if finetuned else ('valid_loss', 'min')
    checkpointer = Checkpointer(directory / 'checkpoints', best_metric=metric, best_mode=mode)
    best = checkpointer.best_step()
    if best is not None:
        return checkpointer.restore(best, {'params': abstract})[1]['params']
    restored = checkpointer.restore_latest({'params': abstract})
    if restored is None:
        raise UserError(f'{directory} has no checkpoint yet: let its run save one first')
    return restored[1]['params']


def transfer(fresh, source, *, vocab_size: int, n_special: int, source_special: int, n_layers: int):
    """Decoder parameters `fresh` with those of `source` in their place (release, `n_transfer`).

    Token and position rows, special rows where both have them, and the first `n_layers` layers come from the source.
    """
    tokens, positions = source['table'][:vocab_size], source['table'][vocab_size + source_special:]
    special = source['table'] if source_special and n_special else fresh['table']
    table = jnp.concatenate([tokens, special[vocab_size:vocab_size + n_special], positions])
    take = lambda new, old: jnp.concatenate([old[:n_layers], new[n_layers:]])
    return {'table': table, 'blocks': jax.tree.map(take, fresh['blocks'], source['blocks'])}
