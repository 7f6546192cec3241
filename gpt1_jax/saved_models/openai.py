"""The release's files: `params_0.npy`, `params_1.npy`, ... are chunks, of any sizes, of one flat float32 vector;
`params_shapes.json` lists the shapes of its arrays; `encoder_bpe_40000.json` and `vocab_40000.bpe` are the vocabulary.

The release's heads are 64 wide, and its files do not say so; for other widths `hparams.json` gives `n_head`.
"""

import functools
import io
import itertools
import json
import math
import re

import numpy as np
from etils import epath

from gpt1_jax.array_files import load_npy
from gpt1_jax.data.tokenizers.openai_bpe import RELEASE_NAMES
from gpt1_jax.errors import UserError
from gpt1_jax.files import read_json, write_atomically
from gpt1_jax.model.architecture import Architecture
from gpt1_jax.saved_models import parameters

_CHUNKS = 10  # as many as the release has
_HEAD_WIDTH = 64
_HEADS = 'Write {"n_head": N} into it.'


def open_folder(directory: epath.Path) -> parameters.SavedModel:
    """Opens the folder `model/` of the release, or one that `write_folder` wrote.

    Raises UserError for a missing, damaged or truncated file, shapes that are not GPT-1's or do not add up to the sizes
    of the chunks, or a vocabulary of another size.
    """
    shapes = _read_shapes(directory)
    chunks = _open_chunks(directory)
    if (found := sum(map(len, chunks))) != (wanted := sum(map(math.prod, shapes))):
        raise UserError(
            f'{directory}: The {len(chunks)} files params_*.npy hold {found:,} values, but '
            f'params_shapes.json lists {wanted:,}. Get the folder again.'
        )
    sizes, rows = _read_sizes(directory, shapes)
    tokenizer = parameters.open_tokenizer(directory)
    if tokenizer.vocab_size != rows:
        raise UserError(
            f'{directory}: The vocabulary has {tokenizer.vocab_size:,} tokens, but params_shapes.json has '
            f'{rows:,} rows for them. Take both from the same model.'
        )
    spans = dict(zip(parameters.parameter_shapes(sizes, rows), _spans(shapes)))
    firsts = [first for first, _ in _spans([chunk.shape for chunk in chunks])]

    def get(name):
        start, shape = spans[name]
        stop = start + math.prod(shape)
        parts = [
            chunk[max(start - first, 0) : stop - first]
            for first, chunk in zip(firsts, chunks)
            if first < stop and first + len(chunk) > start
        ]
        return (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(shape)

    return parameters.SavedModel(
        directory,
        Architecture('transformer', sizes),
        rows,
        n_special=0,
        head=None,
        tokenizer=tokenizer,
        read=functools.partial(parameters.read_parameters, directory, get),
    )


def write_folder(directory: epath.Path, saved: parameters.SavedModel, params: dict) -> int:
    """Writes the decoder `params['decoder']` (NumPy) and the vocabulary. The format has no place for special rows and
    head; a SentencePiece vocabulary goes to `sentencepiece/`. Returns how many parameters it has written. Raises
    UserError if the disk is full."""
    table, vocab_size = params['decoder']['table'], saved.vocab_size
    tokens, positions = table[:vocab_size], table[vocab_size + saved.n_special :]
    plain = {'decoder': params['decoder'] | {'table': np.concatenate([tokens, positions])}}
    named = parameters.name_parameters(plain, saved.architecture.sizes)
    shapes = [_release_shape(name, array.shape) for name, array in named.items()]
    flat = np.concatenate([array.ravel() for array in named.values()])
    for i, chunk in enumerate(np.array_split(flat, _CHUNKS)):
        buffer = io.BytesIO()
        np.save(buffer, chunk, allow_pickle=False)
        write_atomically(directory / f'params_{i}.npy', [buffer.getbuffer()])
    write_atomically(directory / 'params_shapes.json', [json.dumps(shapes).encode()])
    heads = saved.architecture.sizes['heads']
    if saved.architecture.sizes['width'] != _HEAD_WIDTH * heads:
        write_atomically(directory / 'hparams.json', [json.dumps({'n_head': heads}).encode()])
    parameters.save_tokenizer(saved.tokenizer, directory, RELEASE_NAMES)
    return flat.size


def _read_shapes(directory):
    path = directory / 'params_shapes.json'
    try:
        shapes = [tuple(shape) for shape in read_json(path, [[int]], 'Get it again.')]
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{directory}: There is no params_shapes.json. Name the folder 'model' of the release."
        ) from None
    if len(shapes) < 14 or (len(shapes) - 2) % 12 or [len(shape) for shape in shapes[:2]] != [2, 2]:
        raise UserError(
            f'{path}: The shapes are not those of a GPT-1 (positions, tokens, then 12 arrays per layer). '
            'Get the file again.'
        )
    return shapes


def _read_sizes(directory, shapes):
    """(sizes, token rows); checks every shape against them."""
    (n_positions, width), (rows, _) = shapes[:2]
    sizes = dict(
        layers=(len(shapes) - 2) // 12,
        width=width,
        heads=_n_head(directory, width),
        mlp_width=shapes[8][-1],
        n_positions=n_positions,
    )
    parameters.check_heads(directory, sizes)
    expected = parameters.parameter_shapes(sizes, rows)
    for i, (shape, (name, plain)) in enumerate(zip(shapes, expected.items())):
        if shape != (wanted := _release_shape(name, plain)):
            raise UserError(
                f'{directory}/params_shapes.json: Shape {i} ({name}) is {list(shape)}, but the other '
                f'shapes require {list(wanted)}. Get the file again.'
            )
    return sizes, rows


def _n_head(directory, width):
    path = directory / 'hparams.json'
    if not path.exists() and width % _HEAD_WIDTH == 0:
        return width // _HEAD_WIDTH
    if not path.exists():
        raise UserError(f'{path}: The file is missing, and a width of {width} may have any heads. {_HEADS}')
    return read_json(path, {'n_head': int}, _HEADS)['n_head']


def _open_chunks(directory):
    """The chunks in order, memory-mapped."""
    numbers = sorted(
        int(found[1]) for path in directory.iterdir() if (found := re.fullmatch(r'params_(\d+)\.npy', path.name))
    )
    if numbers != list(range(len(numbers))) or not numbers:
        missing = next(i for i in itertools.count() if i not in numbers)
        raise UserError(f'{directory}/params_{missing}.npy: The file is missing. Get the folder again.')
    return [_open_chunk(directory / f'params_{i}.npy') for i in numbers]


def _open_chunk(path):
    try:
        chunk = load_npy(path)
    except ValueError as error:
        raise UserError(f'{path}: The file is damaged or truncated ({error}). Get it again.') from error
    if chunk.dtype != np.float32 or chunk.ndim != 1:
        raise UserError(
            f'{path}: The file holds {chunk.dtype}{list(chunk.shape)}, not a flat float32 vector. Get it again.'
        )
    return chunk


def _spans(shapes):
    """(first index in the flat vector, shape) of each array."""
    sizes = [math.prod(shape) for shape in shapes]
    return list(zip(itertools.accumulate(sizes, initial=0), shapes))


def _release_shape(name, shape):
    """The release keeps the kernels of its 1x1 convolutions as [1, in, out]."""
    return (1, *shape) if name.startswith('h.') and len(shape) == 2 else shape
