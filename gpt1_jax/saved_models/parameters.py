"""Models in files of other programs: names and shapes of their arrays, and how they become our parameters.

Arrays are named as in Hugging Face checkpoints, without the prefix `transformer.`: 'tokens_embed.weight' (token and
special rows), 'positions_embed.weight', 'h.{layer}.attn.c_attn.weight', ...; those of the head are 'head.weight'
[classes, width] and 'head.bias' [classes]. The release has the same arrays without names, in the order of
`parameter_shapes`. Weights are [in, out] everywhere, so our kernels are reshaped views of them, stacked over layers.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from gpt1_jax import peers
from gpt1_jax.data.tokenizers.loading import Tokenizer, load_tokenizer
from gpt1_jax.data.tokenizers.sentence_piece import SentencePieceTokenizer
from gpt1_jax.errors import UserError
from gpt1_jax.model.architecture import Architecture
from gpt1_jax.model.classifier import ClassifierHead

_PATHS = {  # of a layer's arrays, in the tree of the decoder's blocks
    'attn.c_attn.weight': ('attention', 'qkv_kernel'),
    'attn.c_attn.bias': ('attention', 'qkv_bias'),
    'attn.c_proj.weight': ('attention', 'out_kernel'),
    'attn.c_proj.bias': ('attention', 'out_bias'),
    'ln_1.weight': ('norm_1', 'scale'),
    'ln_1.bias': ('norm_1', 'bias'),
    'mlp.c_fc.weight': ('mlp', 'in', 'kernel'),
    'mlp.c_fc.bias': ('mlp', 'in', 'bias'),
    'mlp.c_proj.weight': ('mlp', 'out', 'kernel'),
    'mlp.c_proj.bias': ('mlp', 'out', 'bias'),
    'ln_2.weight': ('norm_2', 'scale'),
    'ln_2.bias': ('norm_2', 'bias'),
}
_NAMES = {path: name for name, path in _PATHS.items()}
_SENTENCEPIECE = 'sentencepiece'  # sub-folder for a tokenizer that the format's own vocabulary files cannot hold


class SavedModel(NamedTuple):
    """A model on disk, opened and checked; its parameters are not read yet.

    Attributes:
      directory: its folder.
      architecture: its kind and sizes.
      vocab_size: V of its tokenizer.
      n_special: special rows in its table.
      head: the task head, or None.
      read: abstract parameters {'decoder', 'head' if there is one} (ShapeDtypeStructs with shardings) -> the
        parameters, sharded so.
      tokens_seen: () -> tokens that it was pre-trained on; None if unknown.
      step: () -> the step of its checkpoint; None if it has none.
      fingerprint: () -> a string that identifies its checkpoint; '' if unknown.
      labels: the names of the head's outputs, in order; None if it has none, or they are unknown.
    """

    directory: epath.Path
    architecture: Architecture
    vocab_size: int
    n_special: int
    head: ClassifierHead | None
    tokenizer: Tokenizer
    read: Callable
    tokens_seen: Callable = lambda: None
    step: Callable = lambda: None
    fingerprint: Callable = lambda: ''
    labels: tuple[str, ...] | None = None


def parameter_shapes(sizes: Mapping[str, int], rows: int) -> dict[str, tuple[int, ...]]:
    """name -> shape of a decoder with `rows` token and special rows, in the release's order."""
    width, mlp_width = sizes['width'], sizes['mlp_width']
    layer = {
        'attn.c_attn': (width, 3 * width),
        'attn.c_proj': (width, width),
        'ln_1': (width,),
        'mlp.c_fc': (width, mlp_width),
        'mlp.c_proj': (mlp_width, width),
        'ln_2': (width,),
    }
    shapes = {'positions_embed.weight': (sizes['n_positions'], width), 'tokens_embed.weight': (rows, width)}
    for i in range(sizes['layers']):
        for part, shape in layer.items():
            shapes |= {f'h.{i}.{part}.weight': shape, f'h.{i}.{part}.bias': shape[-1:]}
    return shapes


def read_parameters(directory: epath.Path, get: Callable[[str], np.ndarray], abstract: dict) -> dict:
    """Float32 parameters with the shapes and shardings of `abstract`; get: name -> array of any float type.

    Raises UserError if this process reads others than process 0: each would give its own shards of an array.
    """

    def read(path, wanted):
        array = np.empty(wanted.shape, np.float32)
        match tuple(entry.key for entry in path):
            case 'decoder', 'table':
                positions = get('positions_embed.weight')
                array[: -len(positions)], array[-len(positions) :] = get('tokens_embed.weight'), positions
            case 'decoder', 'blocks', *names:
                for layer, destination in enumerate(array):
                    destination[...] = get(f'h.{layer}.{_NAMES[tuple(names)]}').reshape(destination.shape)
            case 'head', 'kernel':
                array[...] = get('head.weight').T
            case 'head', 'bias':
                array[...] = get('head.bias')
        if peers.current:
            peers.check_same(str(zlib.crc32(array)), str(directory))
        return jax.make_array_from_callback(wanted.shape, wanted.sharding, lambda index: array[index])

    return jax.tree_util.tree_map_with_path(read, abstract)


def name_parameters(params: dict, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The inverse of `read_parameters`: from NumPy parameters, name -> C-contiguous array in the release's order."""
    table, blocks = params['decoder']['table'], flatten_dict(params['decoder'].get('blocks', {}))
    rows = len(table) - sizes['n_positions']
    named = {}
    for name, shape in parameter_shapes(sizes, rows).items():
        if name == 'positions_embed.weight':
            array = table[rows:]
        elif name == 'tokens_embed.weight':
            array = table[:rows]
        else:
            _, layer, part = name.split('.', 2)
            array = blocks[_PATHS[part]][int(layer)]
        named[name] = np.ascontiguousarray(array.reshape(shape))
    if 'head' in params:
        named['head.weight'] = np.ascontiguousarray(params['head']['kernel'].T)
        named['head.bias'] = np.ascontiguousarray(params['head']['bias'])
    return named


def check_heads(directory: epath.Path, sizes: Mapping[str, int]) -> None:
    """Raises UserError unless the width divides into the heads."""
    if sizes['heads'] < 1 or sizes['width'] % sizes['heads']:
        raise UserError(
            f'{directory}: The width {sizes["width"]} is not a multiple of {sizes["heads"]} heads. Get the '
            'folder again.'
        )


def open_tokenizer(directory: epath.Path) -> Tokenizer:
    """The tokenizer of a weights folder. Raises UserError as `load_tokenizer` does."""
    beside = directory / _SENTENCEPIECE
    return load_tokenizer(beside if beside.exists() else directory)


def save_tokenizer(tokenizer: Tokenizer, directory: epath.Path, names: tuple[str, str]) -> bool:
    """Writes what `open_tokenizer` reads: two files of these names if the tokenizer is of the release's kind, else the
    folder `sentencepiece/`. Returns whether it is of the release's kind."""
    released = not isinstance(tokenizer, SentencePieceTokenizer)
    if released:
        tokenizer.save_vocabulary(directory, names)
    else:
        tokenizer.save(directory / _SENTENCEPIECE)
    return released
