"""A labelled data set as token sequences in a folder, `tokens:/dir`: to train where its text is not, or cannot be
encoded.

`SPLIT.npz` holds the arrays of an `Encoded`; `index.json`, written last, says of which data set and tokenizer they are.
"""

import hashlib
import io
import json

import numpy as np
from etils import epath

from gpt1_jax.data.encoded import Encoded, Sequences
from gpt1_jax.data.files import make_directory, write_atomically
from gpt1_jax.errors import UserError

FORMAT_VERSION = 1


def write_tokens(directory, dataset: str, splits: dict[str, Encoded], *, fingerprint: str, max_length: int,
                 rule: str) -> None:
    """Writes the splits of one data set.

    Args:
      dataset: its name in the registry. fingerprint: of the tokenizer.
      max_length, rule: what `transforms.encode` was given.
    """
    directory = epath.Path(directory)
    make_directory(directory)
    index = {'format_version': FORMAT_VERSION, 'dataset': dataset, 'tokenizer_fingerprint': fingerprint,
             'max_length': max_length, 'rule': rule, 'splits': {}}
    for split, encoded in splits.items():
        arrays = {'tokens': encoded.sequences.tokens, 'lengths': encoded.sequences.lengths,
                  'ids': np.array(encoded.ids)}
        arrays |= {} if encoded.labels is None else {'labels': encoded.labels}
        arrays |= {} if encoded.groups is None else {'groups': np.array(encoded.groups)}
        data = io.BytesIO()
        np.savez_compressed(data, allow_pickle=False, **arrays)
        write_atomically(directory / f'{split}.npz', [data.getvalue()])
        index['splits'][split] = {
            'sha256': hashlib.sha256(data.getvalue()).hexdigest(), 'examples': len(encoded.ids),
            'cut_sequences': encoded.cut_sequences, 'cut_tokens': encoded.cut_tokens}
    write_atomically(directory / 'index.json', [json.dumps(index, indent=1).encode() + b'\n'])


def tokens_splits(directory) -> list[str]:
    """The names of the splits of a folder. Raises UserError as `read_tokens` does."""
    return list(_read_index(epath.Path(directory).expanduser())['splits'])


def read_tokens(directory, dataset: str, split: str, *, fingerprint: str, max_length: int, rule: str) -> Encoded:
    """Reads one split that `write_tokens` wrote.

    Raises UserError: nothing there, or damaged; of another data set, tokenizer or rule ('': whatever it was); sequences
    longer than max_length.
    """
    directory = epath.Path(directory).expanduser()
    index = _read_index(directory)
    again = 'make the folder again from the text'
    for name, wanted, given in (('data set', dataset, index['dataset']), ('rule', rule, index['rule']),
                                ('tokenizer', fingerprint, index['tokenizer_fingerprint'])):
        if wanted and wanted != given:
            raise UserError(f'{directory}: these token sequences are of the {name} {given!r}, and this run wants '
                            f'{wanted!r}: name another folder, or {again}')
    if split not in index['splits']:
        raise UserError(f'{directory}: there is no split {split!r}, only {", ".join(index["splits"])}: {again}')
    entry, path = index['splits'][split], directory / f'{split}.npz'
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != entry['sha256']:
            raise ValueError('its SHA-256 is not the one in index.json')
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read ({error}): copy it again') from error
    longest = int(arrays['lengths'].max())
    if longest > max_length:
        raise UserError(f'{path}: the longest sequence has {longest} tokens, more than the {max_length} of this run: '
                        f'{again}, with data.max_length={max_length}')
    ids, groups = arrays['ids'].tolist(), arrays.get('groups')
    return Encoded(Sequences.end_to_end(arrays['tokens'], arrays['lengths']), arrays.get('labels'), ids,
                   entry['cut_sequences'], entry['cut_tokens'], None if groups is None else groups.tolist())


def _read_index(directory: epath.Path) -> dict:
    path = directory / 'index.json'
    try:
        index = json.loads(path.read_text())
        if index['format_version'] != FORMAT_VERSION:
            raise UserError(f'{path} has format version {index["format_version"]!r}, and this program reads version '
                            f'{FORMAT_VERSION}: make the folder again from the text')
        return index
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f'{directory} holds no token sequences (no index.json): name the folder of one data set that '
                        'python -m benchmarks.accelerator --unpack made') from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} is damaged ({error}): copy the folder again') from error
