"""What the Triton kernels for NVIDIA GPUs share: the call from JAX, and the hash of dropout.

They are called through jax-triton, because JAX is giving up its own interface to Triton. Triton and jax-triton are
optional.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import mlir
from jaxlib.mlir import ir

from gpt1_jax.model import mesh

try:
    import triton.language as tl
    from triton import jit
    from triton.language import constexpr
except ImportError:
    tl, jit, constexpr = None, lambda kernel: kernel, float
try:
    import jax_triton
except ImportError:  # then `obstacle` says so, and no kernel is called
    jax_triton = None


class Tuning(NamedTuple):
    """warps: of a program. stages: of its loops."""

    warps: int
    stages: int = 2


def obstacle() -> str | None:
    """Why no kernel can be called, or None."""
    return None if jax_triton else 'there is none for a GPU without pip install -e ".[triton]"'


def call(
    kernel: Callable,
    *arrays: jax.Array,
    shapes: Any,
    grid: int,
    sizes: Any,
    tuning: Tuning,
    aliases: dict[int, int] | None = None,
) -> Any:
    """Arrays of `shapes` (a tree of `jax.ShapeDtypeStruct`), written by `grid` programs of a kernel.

    sizes: the kernel's argument `sizes`, which is fixed when it is compiled. aliases: number of an array -> number of
    the result that is written in its place.
    """
    # jax-triton 0.4 renamed an argument, and may meet a Triton that writes newer PTX than JAX's assembler reads.
    names = {'out_type': shapes, 'backend_options': {'ptx_version': 83}} if _is_new() else {'out_shape': shapes}
    return jax_triton.triton_call(
        *arrays,
        kernel=kernel,
        grid=grid,
        sizes=sizes,
        num_warps=tuning.warps,
        num_stages=tuning.stages,
        input_output_aliases=aliases or {},
        **names,
    )


def _is_new():
    """Whether jax-triton is 0.4 or newer."""
    return 'out_type' in inspect.signature(jax_triton.triton_call).parameters


def _lower(context, *arrays, **parameters):
    """jax-triton's lowering as in 0.4: to a call that XLA can put into a CUDA graph. The older call would end the
    graph, and the GPU would wait some microseconds for what comes next."""
    library = jax_triton.triton_lib
    results = library.triton_kernel_call_lowering(library.get_cuda_backend, context, *arrays, **parameters)
    call = results[0].owner.attributes
    call['backend_config'] = ir.DictAttr.get(
        {'name': ir.StringAttr.get(parameters['name']), 'opaque': call['backend_config']}
    )
    call['call_target_name'] = ir.StringAttr.get('triton_kernel_call_ffi')
    call['api_version'] = mlir.i32_attr(4)
    return results


if jax_triton and not _is_new() and jax.__version_info__ >= (0, 10, 2):  # which have that call
    mlir.register_lowering(jax_triton.triton_lib.triton_kernel_call_p, _lower, platform='cuda')


def first_row(rows: int) -> jax.Array:
    """uint32: the number in the whole batch of this device's first row, of `rows`; inside a `shard_map`."""
    axes = mesh.axes('batch')
    return jnp.uint32(lax.axis_index(axes) * rows if axes else 0)


@jit
def kept(index, first, second, threshold: constexpr):
    """`dropout.keep` of elements `index` (uint32), with the two seeds."""
    x = index ^ first
    x = (x ^ (x >> 17)) * 0xED5AD4BB
    x = x ^ second
    x = (x ^ (x >> 11)) * 0xAC4C1B51
    x = x ^ first
    x = (x ^ (x >> 15)) * 0x31848BAB
    return x >= threshold
