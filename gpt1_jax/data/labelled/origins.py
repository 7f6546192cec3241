"""Where a labelled data set is read from: the URI that is given, or its own in TensorFlow Datasets or on the hub."""

import functools
import os

from absl import logging

from gpt1_jax import hub
from gpt1_jax.data import hub_layout, tfds
from gpt1_jax.data.labelled.registry import REGISTRY, Dataset
from gpt1_jax.errors import UserError

_SCHEMES = ('files', 'tfds', 'tokens', 'hf')


def parts(dataset: Dataset, uri: str, download: bool = True, key: str = 'data.source') -> tuple[str, str, str]:
    """(URI, its scheme, the rest of it). An empty URI is the set's own; hf: with a local folder becomes files:.

    Args:
      download: whether the set may be fetched if the URI is empty.
      key: of the config, for messages.

    Raises:
      UserError: an unknown scheme, or the set cannot be found.
    """
    uri = uri or _own(dataset.name, dataset.uri, download, os.environ.get('TFDS_DATA_DIR'), key)
    scheme, _, rest = uri.partition(':')
    if scheme == 'hf' and (local := hub_layout.local_folder(rest)) and not local[1]:
        scheme, rest = 'files', str(local[0])
    if scheme != 'docs' and (scheme not in _SCHEMES or not rest):
        raise UserError(
            f'{key}: The source {uri!r} of the data set {dataset.name!r} is unknown. '
            'Use files:/dir, tfds:name, tokens:/dir, hf:OWNER/NAME:CONFIG or docs:.'
        )
    return uri, scheme, rest


@functools.cache  # one log line and one look at the disk for all splits
def _own(name: str, uri: str, download: bool, folder: str | None, key: str) -> str:
    """The URI if the config's `key` is empty: TensorFlow Datasets' if it has the set or can get it, else the hub's."""
    del folder  # where TensorFlow Datasets looks: only part of the cache's key
    if not uri.startswith('tfds:'):
        return uri
    try:
        for one in uri.removeprefix('tfds:').split(','):
            tfds.open_builder(one, download)
        logging.info('%s: %s is empty, so %s is read', name, key, uri)
        return uri
    except UserError as error:
        fault = f'TensorFlow Datasets: {_first_sentence(error)}'
    on_hub = REGISTRY[name].hub
    if not on_hub:
        raise UserError(
            f'{name}: {key} is empty, and the set cannot be fetched ({fault}; the hub has no open copy). Get its '
            'files, and give files:DIR.'
        )
    try:
        hub_layout.open_layout(on_hub, download)
    except UserError as error:
        repository = hub.parse(on_hub).repository
        raise UserError(
            f'{name}: {key} is empty, and the set cannot be fetched ({fault}; hub: {_first_sentence(error)}). '
            f'Give files:DIR with its files, or fetch them where there is a network:  hf download {repository} '
            f'--repo-type dataset --local-dir DIR , and then give hf:DIR:{hub.parse(on_hub).config}.'
        ) from error
    logging.info('%s: %s is empty, so hf:%s is read (%s)', name, key, on_hub, fault)
    return f'hf:{on_hub}'


def _first_sentence(error):
    """The first sentence of a message, without the place."""
    return str(error).partition(': ')[2].partition('. ')[0].rstrip('.')
