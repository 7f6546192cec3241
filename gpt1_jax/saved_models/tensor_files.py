"""The files of weights in Hugging Face folders: `model.safetensors` or `pytorch_model.bin`.

Weights in several files have an index, `model.safetensors.index.json` or `pytorch_model.bin.index.json`, that says
which array is in which file.
"""

import dataclasses
import os
import re
import zipfile
from collections.abc import Callable

import numpy as np
import safetensors
from etils import epath

from gpt1_jax.errors import UserError
from gpt1_jax.files import check_file, local_copy, patiently, read_json

MASKS = re.compile(r'(h\.\d+\.attn\.bias|position_ids)$')  # names of constants in older checkpoints
_TYPES = {'F32', 'F16', 'BF16', 'torch.float32', 'torch.float16', 'torch.bfloat16'}  # of safetensors, of torch


@dataclasses.dataclass(frozen=True)
class Tensors:
    """The arrays of a model.

    Attributes:
      path: of the only file, or of the index.
      shapes: name -> shape.
      get: name -> array, read on demand, except from pickles older than PyTorch 1.6.
    """

    path: epath.Path
    shapes: dict[str, tuple[int, ...]]
    get: Callable[[str], np.ndarray]


def open_tensors(directory: epath.Path) -> Tensors:
    """Opens the file that transformers would choose too.

    Raises UserError for a missing or damaged file or index, a type that is not floating-point, or a pickle where there
    is no PyTorch that reads it safely.
    """
    for name, open_file in (('model.safetensors', _open_safetensors), ('pytorch_model.bin', _open_torch)):
        path, index = directory / name, directory / f'{name}.index.json'
        if path.exists():
            check_file(path)
            return Tensors(path, *open_file(path))
        if index.exists():
            return Tensors(index, *_open_listed(index, open_file))
    raise UserError(
        f'{directory}: There is neither model.safetensors nor pytorch_model.bin, nor an .index.json of '
        'either for several files. Get one of these.'
    )


def _open_listed(index, open_file):
    """({name: shape}, name -> array) of all files that an index lists, {'weight_map': {name: file}}."""
    files = read_json(index, {'weight_map': {str: str}}, 'Get it again.')['weight_map']
    elsewhere = sorted(file for file in set(files.values()) if os.path.dirname(file))
    if elsewhere:
        raise UserError(
            f'{index}: It names {elsewhere[0]!r}, which is not in the same folder. Move that file there, '
            'and write only its name into the index.'
        )
    opened = {}
    for file in sorted(set(files.values())):
        path = index.parent / file
        if not path.is_file():
            raise UserError(f'{path}: The file is missing, but {index.name} names it. Get it again.')
        opened[file] = open_file(path)
    for name, file in files.items():
        if name not in opened[file][0]:
            raise UserError(
                f'{index.parent / file}: The file lacks {name}, which it has according to {index.name}. Get both again.'
            )
    return {name: opened[file][0][name] for name, file in files.items()}, lambda name: opened[files[name]][1](name)


def _open_safetensors(path):
    patiently(lambda: path.open('rb').close())  # without permission, the library would say that there is no such file
    with local_copy(path) as copy:
        try:
            file = safetensors.safe_open(copy, framework='numpy')
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f'{path}: The file is damaged or truncated ({error}). Get it again.') from error
    slices = {name: file.get_slice(name) for name in file.keys()}
    _check_types(path, {name: tensor.get_dtype() for name, tensor in slices.items()})
    return {name: tuple(tensor.get_shape()) for name, tensor in slices.items()}, file.get_tensor


def _open_torch(path):
    try:
        import torch
    except ImportError:
        raise UserError(
            f'{path}: The file is a pickle, which needs the weights-only reader of PyTorch, but that is '
            'not installed. Get model.safetensors instead, or install torch.'
        ) from None
    if tuple(map(int, re.findall(r'\d+', torch.__version__)[:2])) < (2, 6):
        raise UserError(
            f'{path}: The file is a pickle, which can run code in PyTorch {torch.__version__} (CVE-2025-32434). '
            'Install torch 2.6 or newer, or get model.safetensors instead.'
        )
    with local_copy(path) as copy:
        try:
            # Pickles older than PyTorch 1.6 are not zip files, and cannot be mapped.
            tensors = torch.load(copy, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(copy))
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            types = {name: str(tensor.dtype) for name, tensor in tensors.items()}
        except Exception as error:  # of many types, for the many ways in which a file is not a dict of tensors
            raise UserError(
                f'{path}: The file is damaged, or not a dict of tensors ({type(error).__name__}). Get it '
                'again, or get model.safetensors instead.'
            ) from error
    _check_types(path, types)
    return shapes, lambda name: tensors[name].detach().float().numpy()


def _check_types(path, types):
    for name, kind in types.items():
        if kind not in _TYPES and not MASKS.search(name):
            raise UserError(
                f'{path}: The type {kind} of {name} is not supported. Save it as float32, float16 or bfloat16.'
            )
