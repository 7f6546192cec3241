"""NumPy files, read without pickles and in bounded memory; a damaged one raises ValueError."""

import io
import os
import warnings
import zipfile

import numpy as np

from gpt1_jax.files import check_file, local_copy

_MOST = 2**26  # bytes that any .npz may unpack to
_RATIO = 100  # or this many times its size, if that is more: arrays of floats or tokens shrink less than tenfold


def load_npy(path: os.PathLike) -> np.ndarray:
    """The array of a .npy file, memory-mapped. Raises ValueError if it is damaged, OSError if there is none, UserError
    for a pipe or a device."""
    check_file(path)
    with local_copy(path) as copy:
        return _loaded(lambda: np.load(copy, mmap_mode='r', allow_pickle=False))


def load_npz(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a .npz file with this content. Raises ValueError if it is damaged, or unpacks to too much."""

    def load():
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > max(_MOST, _RATIO * len(data)):
            raise ValueError(f'it would unpack from {len(data):,} to {unpacked:,} bytes')
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return dict(file)

    return _loaded(load)


def _loaded(load):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('error')  # NumPy warns where it corrects a header; here that is damage
            return load()
    except OSError:
        raise
    except Exception as error:  # of many types: NumPy parses headers as Python literals
        raise ValueError(' '.join(f'{type(error).__name__}: {error}'.split())[:200]) from error
