"""The release's files: `params_0.npy`, `params_1.npy`, ... are chunks, of any sizes, of one flat float32 vector;
`params_shapes.json` lists the shapes that it splits into; `encoder_bpe_40000.json` and `vocab_40000.bpe`.

The release's heads are 64 wide and its files do not say so; where a model's are not, `hparams.json` gives `n_head`.
"""

import functools
import io
import itertools
import json
import math
import re

import numpy as np
from etils import epath

from gpt1_jax import weights
from gpt1_jax.data.bpe import RELEASE_NAMES
from gpt1_jax.data.files import write_atomically
from gpt1_jax.errors import UserError

_CHUNKS = 10  # as many as the release has
_HEAD_WIDTH = 64


def open_folder(directory: epath.Path) -> weights.Source:
    """Opens the folder `model/` of the release, or one that `write_folder` wrote.

    Raises UserError: a missing, damaged or truncated file, shapes that are not GPT-1's or do not add up to the chunks'
    sizes, a vocabulary of another size.
    """
    shapes = _read_shapes(directory)
    chunks = _open_chunks(directory)
    if (found := sum(map(len, chunks))) != (wanted := sum(map(math.prod, shapes))):
        raise UserError(f'the {len(chunks)} files params_*.npy in {directory} hold {found:,} values where '
                        f'params_shapes.json lists {wanted:,}: get the missing or differing files again')
    architecture, rows = _architecture(directory, shapes)
    tokenizer = weights.open_tokenizer(directory)
    if tokenizer.vocab_size != rows:
        raise UserError(f'the vocabulary in {directory} has {tokenizer.vocab_size:,} tokens where params_shapes.json '
                        f'has {rows:,} rows for them: take both from one place')
    spans = dict(zip(weights.parameter_shapes(architecture, rows), _spans(shapes)))
    firsts = [first for first, _ in _spans([chunk.shape for chunk in chunks])]

    def get(name):
        start, shape = spans[name]
        stop = start + math.prod(shape)
        parts = [chunk[max(start - first, 0):stop - first] for first, chunk in zip(firsts, chunks)
                 if first < stop and first + len(chunk) > start]
        return (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(shape)

    return weights.Source(directory, architecture, rows, n_special=0, head=None, tokenizer=tokenizer,
                          read=functools.partial(weights.read_parameters, get))


def write_folder(directory: epath.Path, source: weights.Source, params: dict) -> None:
    """Writes the decoder `params['decoder']` (NumPy) and the vocabulary. The format has no place for special rows and
    head: they are left out. A SentencePiece vocabulary goes to `sentencepiece/`. Raises UserError where it cannot."""
    table, vocab_size = params['decoder']['table'], source.vocab_size
    tokens, positions = table[:vocab_size], table[vocab_size + source.n_special:]
    plain = {'decoder': params['decoder'] | {'table': np.concatenate([tokens, positions])}}
    named = weights.name_parameters(plain, source.architecture)
    shapes = [_release_shape(name, array.shape) for name, array in named.items()]
    flat = np.concatenate([array.ravel() for array in named.values()])
    for i, chunk in enumerate(np.array_split(flat, _CHUNKS)):
        buffer = io.BytesIO()
        np.save(buffer, chunk, allow_pickle=False)
        write_atomically(directory / f'params_{i}.npy', [buffer.getbuffer()])
    write_atomically(directory / 'params_shapes.json', [json.dumps(shapes).encode()])
    if source.architecture['width'] != _HEAD_WIDTH * source.architecture['heads']:
        write_atomically(directory / 'hparams.json', [json.dumps({'n_head': source.architecture['heads']}).encode()])
    weights.save_tokenizer(source.tokenizer, directory, RELEASE_NAMES)


def _read_shapes(directory):
    path = directory / 'params_shapes.json'
    try:
        shapes = [tuple(map(int, shape)) for shape in json.loads(path.read_text())]
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{directory} has no params_shapes.json: name the folder 'model' of the release") from None
    except (ValueError, TypeError) as error:
        raise UserError(f'{path} is not a list of shapes: get it again') from error
    if len(shapes) < 14 or (len(shapes) - 2) % 12 or [len(shape) for shape in shapes[:2]] != [2, 2]:
        raise UserError(f'{path} does not list the shapes of a GPT-1 (positions, tokens, then 12 arrays a layer): get '
                        'it again')
    return shapes


def _architecture(directory, shapes):
    """(architecture, token rows); checks every shape against them."""
    (n_positions, width), (rows, _) = shapes[:2]
    architecture = dict(layers=(len(shapes) - 2) // 12, width=width, heads=_n_head(directory, width),
                        mlp_width=shapes[8][-1], n_positions=n_positions)
    weights.check_heads(directory, architecture)
    expected = weights.parameter_shapes(architecture, rows)
    for i, (shape, (name, plain)) in enumerate(zip(shapes, expected.items())):
        if shape != (wanted := _release_shape(name, plain)):
            raise UserError(f'{directory}/params_shapes.json does not add up: shape {i} ({name}) is {list(shape)}, and '
                            f'should be {list(wanted)} beside the others: get it again')
    return architecture, rows


def _n_head(directory, width):
    path = directory / 'hparams.json'
    if not path.exists() and width % _HEAD_WIDTH == 0:
        return width // _HEAD_WIDTH
    try:
        return int(json.loads(path.read_text())['n_head'])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} does not say how many heads a width of {width} has: write {{"n_head": N}} '
                        'there') from error


def _open_chunks(directory):
    """The chunks in order, mapped."""
    numbers = sorted(int(found[1]) for path in directory.iterdir()
                     if (found := re.fullmatch(r'params_(\d+)\.npy', path.name)))
    if numbers != list(range(len(numbers))) or not numbers:
        missing = next(i for i in itertools.count() if i not in numbers)
        raise UserError(f'{directory}/params_{missing}.npy is missing: get the folder again')
    return [_open_chunk(directory / f'params_{i}.npy') for i in numbers]


def _open_chunk(path):
    try:
        chunk = np.load(path, mmap_mode='r', allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f'{path} is damaged or truncated ({error}): get it again') from error
    if chunk.dtype != np.float32 or chunk.ndim != 1:
        raise UserError(f'{path} holds {chunk.dtype}{list(chunk.shape)} where a flat float32 vector is expected: get '
                        'it again')
    return chunk


def _spans(shapes):
    """(first index in the flat vector, shape) of each array."""
    sizes = [math.prod(shape) for shape in shapes]
    return list(zip(itertools.accumulate(sizes, initial=0), shapes))


def _release_shape(name, shape):
    """The release keeps the kernels of its 1x1 convolutions as [1, in, out]."""
    return (1, *shape) if name.startswith('h.') and len(shape) == 2 else shape
