"""A labelled data set as token sequences in a folder, `tokens:/dir`: for a machine that lacks its text, or a package
to encode it.

`SPLIT.npz` holds the arrays of an `Encoded` (subsets as 'groups', their former name); `index.json`, written last, names
the data set and the tokenizer.
"""

import hashlib
import io
import os
import re

import numpy as np
from etils import epath

from gpt1_jax.array_files import load_npz
from gpt1_jax.data.labelled.sequences import Encoded, Sequences
from gpt1_jax.errors import UserError
from gpt1_jax.files import check_form, make_directory, read_json, write_atomically, write_json

FORMAT_VERSION = 1
_AGAIN = 'Copy the folder again.'
_SPLIT = {'sha256': str, 'examples': int, 'cut_sequences': int, 'cut_tokens': int}
_FORM = {'dataset': str, 'tokenizer_fingerprint': str, 'max_length': int, 'rule': str, 'splits': {str: _SPLIT}}


def write_tokens(
    directory: os.PathLike | str,
    dataset: str,
    splits: dict[str, Encoded],
    *,
    fingerprint: str,
    max_length: int,
    rule: str,
) -> None:
    """Writes the splits of one data set.

    Args:
      dataset: its name in the registry.
      fingerprint: of the tokenizer.
      max_length, rule: what `encoding.encode` was given.
    """
    directory = epath.Path(directory)
    make_directory(directory)
    index = {
        'format_version': FORMAT_VERSION,
        'dataset': dataset,
        'tokenizer_fingerprint': fingerprint,
        'max_length': max_length,
        'rule': rule,
        'splits': {},
    }
    for split, encoded in splits.items():
        arrays = {
            'tokens': encoded.sequences.tokens,
            'lengths': encoded.sequences.lengths,
            'ids': np.array(encoded.ids),
        }
        arrays |= {} if encoded.labels is None else {'labels': encoded.labels}
        arrays |= {} if encoded.subsets is None else {'groups': np.array(encoded.subsets)}
        data = io.BytesIO()
        np.savez_compressed(data, allow_pickle=False, **arrays)
        write_atomically(directory / f'{split}.npz', [data.getvalue()])
        index['splits'][split] = {
            'sha256': hashlib.sha256(data.getvalue()).hexdigest(),
            'examples': len(encoded.ids),
            'cut_sequences': encoded.cut_sequences,
            'cut_tokens': encoded.cut_tokens,
        }
    write_json(directory / 'index.json', index)


def tokens_splits(directory: os.PathLike | str) -> list[str]:
    """The names of the splits of a folder. Raises UserError as `read_tokens` does."""
    return list(_read_index(epath.Path(directory).expanduser())['splits'])


def cut_to(directory: os.PathLike | str) -> int:
    """The tokens of the longest sequence that was not cut. Raises UserError as `read_tokens` does."""
    return _read_index(epath.Path(directory).expanduser())['max_length']


def count_examples(directory: os.PathLike | str, dataset: str, split: str) -> int:
    """How many examples a split has. Raises UserError as `read_tokens` does."""
    directory = epath.Path(directory).expanduser()
    return _entry(directory, _read_index(directory), split, {'dataset': dataset})['examples']


def read_tokens(
    directory: os.PathLike | str, dataset: str, split: str, *, fingerprint: str, max_length: int, rule: str
) -> Encoded:
    """Reads one split that `write_tokens` wrote. Arguments as there; the rule may be '' for any.

    Raises:
      UserError: the split is missing or damaged, is of another data set, tokenizer or rule, or has a sequence longer
        than max_length.
    """
    directory = epath.Path(directory).expanduser()
    index = _read_index(directory)
    wanted = {'dataset': dataset, 'rule': rule, 'tokenizer_fingerprint': fingerprint}
    entry, path = _entry(directory, index, split, wanted), directory / f'{split}.npz'
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != entry['sha256']:
            raise ValueError('its SHA-256 is not the one in index.json')
        arrays = load_npz(data)
        if fault := _misfit(arrays, entry['examples']):
            raise ValueError(fault)
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: The file cannot be read ({error}). Copy it again.') from error
    longest = int(arrays['lengths'].max(initial=0))
    if longest > max_length:
        raise UserError(
            f'{path}: The longest sequence has {longest} tokens, but this run takes {max_length}. Make the '
            f'folder again from the text, with max_length {max_length}.'
        )
    ids, subsets = arrays['ids'].tolist(), arrays.get('groups')
    return Encoded(
        Sequences.end_to_end(arrays['tokens'], arrays['lengths']),
        arrays.get('labels'),
        ids,
        entry['cut_sequences'],
        entry['cut_tokens'],
        None if subsets is None else subsets.tolist(),
    )


def _read_index(directory: epath.Path) -> dict:
    path = directory / 'index.json'
    try:
        index = read_json(path, {'format_version': object}, _AGAIN)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f'{directory}: There is no index.json, so this folder holds no tokens. Name the folder of one '
            'data set that python -m benchmarks.accelerator --unpack made.'
        ) from error
    if index['format_version'] != FORMAT_VERSION:
        raise UserError(
            f'{path}: The format version is {index["format_version"]!r}, but this program reads '
            f'{FORMAT_VERSION}. Make the folder again from the text.'
        )
    check_form(path, index, _FORM, _AGAIN)
    for split in index['splits']:
        if not re.fullmatch(r'\w+', split):  # it becomes a part of paths
            raise UserError(f'{path}: The file is damaged ({split!r} is not a name of a split). {_AGAIN}')
    return index


def _entry(directory, index, split, wanted):
    """What the index says of a split. wanted: entry of the index -> what it must be, '' for any."""
    again = 'make the folder again from the text.'
    for name, value in wanted.items():
        if value and value != index[name]:
            what = {'dataset': 'data set', 'tokenizer_fingerprint': 'tokenizer'}.get(name, name)
            raise UserError(
                f'{directory}: These tokens are of the {what} {index[name]!r}, but this run needs {value!r}. '
                f'Name another folder, or {again}'
            )
    if split not in index['splits']:
        raise UserError(
            f'{directory}: There is no split {split!r}, only {", ".join(index["splits"])}. Name another '
            f'folder, or {again}'
        )
    return index['splits'][split]


def _misfit(arrays, examples) -> str:
    """Which of the arrays is not one that `write_tokens` writes, in words; '' if all are."""
    if missing := {'tokens', 'lengths', 'ids'} - arrays.keys():
        return f'it has no {min(missing)}'
    tokens, lengths = arrays['tokens'], arrays['lengths']
    if tokens.dtype.kind not in 'iu' or lengths.dtype.kind not in 'iu' or (tokens.ndim, lengths.ndim) != (1, 2):
        return 'its tokens are not sequences'
    if lengths.min(initial=0) < 0 or tokens.min(initial=0) < 0 or lengths.sum() != len(tokens):
        return 'its lengths are not those of its tokens'
    if not all(isinstance(one, str) and one.isprintable() for one in arrays['ids'].tolist()):
        return 'its ids are not those of examples'
    of_examples = {name: array for name, array in arrays.items() if name != 'tokens'}
    if wrong := [name for name, array in of_examples.items() if len(np.atleast_1d(array)) != examples]:
        return f'its {wrong[0]} are not those of {examples} examples'
    return ''
