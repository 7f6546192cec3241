"""Models of the Hugging Face hub: which files of a repository are fetched."""

import re
from collections.abc import Collection

from etils import epath

from gpt1_jax import hub
from gpt1_jax.errors import UserError
from gpt1_jax.saved_models import huggingface

_SMALL = re.compile(r'(vocab|tokenizer|tokenizer_config|special_tokens_map)\.json|merges\.txt|sentencepiece/.*')


def fetch(where: str, name: hub.Name) -> epath.Path:
    """The folder in the hub's cache with weights, config and vocabulary of a model.

    Raises UserError if it cannot be fetched, or, before its weights are fetched, if it is not a GPT-1.
    """
    repository = hub.open_repository(where, name, 'model')
    if 'config.json' not in repository.sizes:
        raise UserError(f'{where}: The repository has no config.json. Name one with a model of transformers.')
    huggingface.read_config(repository.get(['config.json']))
    return repository.get(files(repository.sizes))


def files(names: Collection[str]) -> list[str]:
    """The files of a repository that `huggingface.open_folder` reads: the pickle only if there is nothing else."""
    found = ['config.json', *filter(_SMALL.fullmatch, names)]
    for weights in ('model.safetensors', 'pytorch_model.bin'):
        if weights in names:
            return [*found, weights]
        if (index := f'{weights}.index.json') in names:
            part = weights.replace('.', r'-\d+-of-\d+\.')
            return [*found, index, *(name for name in names if re.fullmatch(part, name))]
    return found
