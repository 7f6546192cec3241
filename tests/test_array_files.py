"""Files of NumPy: what is read is what was written, and nothing else is; archives that unpack to too much."""

import io
import os
import zipfile

import numpy as np
import pytest

from gpt1_jax import array_files
from gpt1_jax.errors import UserError


def npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def test_what_is_written_is_read(tmp_path):
    values = np.arange(6, dtype=np.int16).reshape(2, 3)
    np.save(tmp_path / 'a.npy', values)
    np.testing.assert_array_equal(array_files.load_npy(tmp_path / 'a.npy'), values)
    read = array_files.load_npz(npz(a=values, b=np.array(['x'])))
    np.testing.assert_array_equal(read['a'], values)
    assert read['b'].tolist() == ['x']
    with pytest.raises(FileNotFoundError):
        array_files.load_npy(tmp_path / 'none.npy')


@pytest.mark.parametrize(
    'header',
    ["{'descr': '<i2', 'fortran_order': False, 'shape': (99,), }", '(' * 110, "{'descr': ('a',), 'shape': '\\", '[1'],
)
def test_a_damaged_header_is_one_type_of_error(tmp_path, header):
    np.save(tmp_path / 'a.npy', np.arange(6, dtype=np.int16))
    data = bytearray((tmp_path / 'a.npy').read_bytes())
    data[10:128] = header.encode().ljust(117) + b'\n'
    (tmp_path / 'a.npy').write_bytes(data)
    with pytest.raises(ValueError) as caught:
        array_files.load_npy(tmp_path / 'a.npy')
    assert '\n' not in str(caught.value) and len(str(caught.value)) <= 200


def test_no_pickle_is_loaded(tmp_path):
    """Not even one that would make nothing but an array of objects."""

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'it ran'),)

    np.save(tmp_path / 'a.npy', np.array([Evil()]))
    with pytest.raises(ValueError, match='Python objects'):
        array_files.load_npy(tmp_path / 'a.npy')
    with pytest.raises(ValueError, match='pickle'):
        array_files.load_npz(npz(a=np.array([Evil()])))
    assert not (tmp_path / 'it ran').exists()


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'a.npy')
    with pytest.raises(UserError, match='not an ordinary file'):
        array_files.load_npy(tmp_path / 'a.npy')


def test_an_archive_that_unpacks_to_too_much_is_not_unpacked():
    bomb = npz(a=np.zeros(10**8, np.uint8))
    assert len(bomb) < 10**6
    with pytest.raises(ValueError, match='would unpack from .* to 100,000,128 bytes'):
        array_files.load_npz(bomb)
    assert zipfile.is_zipfile(io.BytesIO(bomb))  # whole, and of use to those who want it
