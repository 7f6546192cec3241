"""index.json of a shard folder, and journal.json of an unfinished one: their forms and checks."""

import json

import numpy as np
from etils import epath

from gpt1_jax.errors import UserError
from gpt1_jax.files import check_form, check_seal, read_json, sealed, write_atomically

FORMAT_VERSION = 1
SPLITS = ('train', 'valid')
COPY_AGAIN = 'Copy it again, or delete the folder and prepare it again.'

_SHARD = {'file': str, 'tokens': int, 'sha256': str}
_INDEX = {
    'format_version': int,
    'dtype': str,
    'tokenizer_fingerprint': str,
    'vocab_size': int,
    'preparation': dict,
    'splits': {str: {'tokens': int, 'documents': int, 'shards': [_SHARD]}},
    'characters': (int, type(None)),
}
_JOURNAL = {
    'preparation': dict,
    'generation': int,
    'position': object,
    'tokens': dict.fromkeys(SPLITS, int),
    'documents': dict.fromkeys(SPLITS, int),
    'shards': dict.fromkeys(SPLITS, [_SHARD]),
}


def dtype_of(vocab_size: int) -> np.dtype:
    """The type of a vocabulary's ids in a shard."""
    return np.dtype('<u2' if vocab_size <= 2**16 else '<u4')


def file_name(split: str, number: int) -> str:
    """The name of a shard's file; they are numbered from 0."""
    return f'{split}-{number:05d}.bin'


def read_index(directory: epath.Path) -> dict:
    """The index of a finished folder.

    Raises:
      UserError: there is none, or one of another format version, or it contradicts itself.
    """
    path = directory / 'index.json'
    try:
        index = read_json(path, {'format_version': object}, COPY_AGAIN)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f'{directory}: The folder holds no prepared shards (no index.json). Run the task prepare with '
            'this data.output, or, if a preparation was interrupted, run it again.'
        ) from error
    if (version := index['format_version']) != FORMAT_VERSION:
        raise UserError(
            f'{path}: The file has format version {version!r}, and this program reads '
            f'version {FORMAT_VERSION}. Prepare the corpus again.'
        )
    check_form(path, {'characters': None} | index, _INDEX, COPY_AGAIN)
    check_seal(path, index, COPY_AGAIN)
    if fault := _contradiction(index):
        raise UserError(f'{path}: The file is damaged ({fault}). {COPY_AGAIN}')
    return index


def write_index(
    directory: epath.Path,
    preparation: dict,
    vocab_size: int,
    tokenizer_fingerprint: str,
    splits: dict[str, dict],
    characters: int | None,
) -> None:
    """Makes a folder a finished one.

    Args:
      splits: 'tokens', 'documents' and 'shards' of each; one without tokens is left out.
      characters: of the text; None if unknown.
    """
    index = {
        'format_version': FORMAT_VERSION,
        'dtype': dtype_of(vocab_size).str,
        'tokenizer_fingerprint': tokenizer_fingerprint,
        'vocab_size': vocab_size,
        'preparation': preparation,
        'splits': {name: split for name, split in splits.items() if split['tokens']},
        **({} if characters is None else {'characters': characters}),
    }
    write_atomically(directory / 'index.json', [json.dumps(sealed(index), indent=1).encode() + b'\n'])


def _contradiction(index) -> str:
    """What cannot be right in an index, in words; '' if all may be. A file must have its usual name, never a path."""
    vocab_size, dtype, splits = index['vocab_size'], index['dtype'], index['splits']
    if vocab_size < 1 or dtype != dtype_of(vocab_size).str:
        return f'{dtype} is not the type of {vocab_size} ids'
    if not {'train'} <= splits.keys() <= {*SPLITS}:
        return f'the splits are {", ".join(splits) or "none"}'
    for name, split in splits.items():
        for number, shard in enumerate(split['shards']):
            if shard['file'] != file_name(name, number) or shard['tokens'] < 1:
                return f'{shard["file"]!r} with {shard["tokens"]} tokens is not file {number} of {name}'
        if split['tokens'] != sum(shard['tokens'] for shard in split['shards']):
            return f'the files of {name} do not have {split["tokens"]} tokens'
        if not 0 <= split['documents'] <= split['tokens']:
            return f'{name} has {split["documents"]} documents in {split["tokens"]} tokens'
    return ''


def read_journal(directory: epath.PathLike) -> dict | None:
    """The journal of an unfinished folder, None if there is none. Raises UserError for a damaged one."""
    path = epath.Path(directory) / 'journal' / 'journal.json'
    fix = f'Delete {directory} and prepare it again.'
    try:
        journal = read_json(path, _JOURNAL, fix)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if 'pending' in journal:  # earlier versions wrote neither this nor the checksum
        journal = {'sha256': ''} | journal
    check_seal(path, journal, fix)
    return journal


def write_journal(directory: epath.Path, journal: dict) -> None:
    """Writes a journal with its checksum: nothing else would show that it has changed."""
    write_atomically(directory / 'journal' / 'journal.json', [json.dumps(sealed(journal)).encode()])
