"""The GPU's kernels without a GPU: run by Triton's interpreter, and compiled for one."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import types

import jax
import numpy as np
import pytest

from gpt1_jax.model import triton_calls
from helpers import ROOT


class OnHost:
    """A NumPy array with what the interpreter asks of a PyTorch tensor."""

    def __init__(self, array):
        self.array, self.dtype = array, str(array.dtype)

    data_ptr = lambda self: self.array.ctypes.data
    untyped_storage = cpu = lambda self: self
    new_empty = lambda self, *_, **__: OnHost(self.array)
    storage_offset = size = stride = set_ = copy_ = lambda self, *_: None


_LOCK = threading.Lock()  # the interpreter has one grid for all threads


def interpreted_call(*arrays, kernel, out_shape, grid, num_warps, num_stages, input_output_aliases, **constants):
    """`jax_triton.triton_call` without a GPU; what a kernel does not write is NaN."""
    shapes, tree = jax.tree.flatten(out_shape)

    def run(*arrays):
        results = [np.full(shape.shape, np.nan, shape.dtype) for shape in shapes]
        for i, result in input_output_aliases.items():
            results[result] = np.array(arrays[i])
        with _LOCK:
            kernel[(grid,)](*(OnHost(np.array(array)) for array in arrays), *map(OnHost, results), **constants)
        return tree.unflatten(results)

    return jax.pure_callback(run, out_shape, *arrays)


@contextlib.contextmanager
def patched():
    """Kernels are interpreted; skips the test if Triton is not installed."""
    pytest.importorskip('triton', reason='Triton, in which the kernels are written, is not installed')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_calls, 'jax_triton', types.SimpleNamespace(triton_call=interpreted_call))
        yield


_COMPILE = """
import importlib, json, subprocess, sys
import triton
from triton.backends.compiler import GPUTarget

folder = sys.argv[1]
for name, kernel, sizes, types, options in json.load(open(folder + '/kernels.json')):
    module = importlib.import_module(name)
    kernel, sizes = getattr(module, kernel), module.Sizes(*sizes)
    signature = {name: types.get(name, types['']) for name in kernel.arg_names} | {'sizes': 'constexpr'}
    attributes = {(i,): [['tt.divisibility', 16]] for i in range(len(signature) - 1)}
    source = triton.compiler.ASTSource(kernel, signature, {'sizes': sizes}, attributes)
    compiled = triton.compile(source, target=GPUTarget('cuda', 90, 32), options=options)
    open(folder + '/ptx', 'w').write(compiled.asm['ptx'])
    assemble = [triton.knobs.nvidia.ptxas.path, '-v', '--gpu-name=sm_90a', '-o', '/dev/null', folder + '/ptx']
    report = subprocess.run(assemble, capture_output=True, text=True, check=True).stderr
    print('wgmma' in compiled.asm['ptx'], ' 0 bytes spill stores, 0 bytes spill loads' in report)
"""


def compile_kernels(folder, kernels):
    """[(whether products are on tensor cores, whether all numbers are in registers)] of kernels, compiled for an H100:
    (module, kernel, sizes, types of its arrays by name ('': of the others), options)."""
    (folder / 'kernels.json').write_text(json.dumps(kernels))
    environment = os.environ | {'TRITON_INTERPRET': '0', 'TRITON_CACHE_DIR': str(folder)}
    command = [sys.executable, '-c', _COMPILE, str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return [tuple(word == 'True' for word in line.split()) for line in done.stdout.splitlines()]
