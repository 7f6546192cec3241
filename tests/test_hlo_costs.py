"""Bytes and FLOPs read off compiled programs, and kernels read off traces. CPU programs are compared with XLA's own
analysis; what only TPUs and GPUs write is written here in their form, and compared with arithmetic."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from gpt1_jax.meter import hlo
from gpt1_jax.meter.trace import summary


def compiled(function, *shapes, **options):
    """`function`, compiled for float32 arguments of these shapes (int32 where a shape is a list)."""
    arguments = [jax.ShapeDtypeStruct(tuple(s), jnp.int32 if isinstance(s, list) else jnp.float32) for s in shapes]
    usual = {'xla_cpu_use_fusion_emitters': True}  # which conftest.py leaves out
    return jax.jit(function, **options).lower(*arguments).compile(compiler_options=usual)


def executed_once(program):
    """Costs of a program's instructions, those of loops and calls once, as XLA's analysis counts them."""
    text = program.as_text()
    bodies = {
        header.split()[1 if header.startswith('ENTRY') else 0].lstrip('%'): body.split('\n')
        for header, body in re.findall(r'^(\S[^\n]*) \{\n(.*?)^\}', text, re.M | re.S)
    }
    costs, waiting, result = hlo.costs(text), [re.search(r'^ENTRY %?([\w.\-]+)', text, re.M)[1]], []
    while waiting:
        for line in bodies[waiting.pop()]:
            if match := re.match(r'\s*(?:ROOT )?%?([\w.\-]+) = ', line):
                result.append(costs[match[1]])
                waiting += re.findall(r'(?:body|condition)=%?([\w.\-]+)', line)
                if result[-1].opcode == 'call':
                    waiting += re.findall(r'to_apply=%?([\w.\-]+)', line)
    return result


def total(program, what):
    return sum(getattr(cost, what) for cost in executed_once(program))


@pytest.mark.parametrize(
    'function, shapes, flops',
    [
        (lambda x, y: x @ y, [(64, 32), (32, 128)], 2 * 64 * 32 * 128),
        (lambda x, y: jnp.einsum('bhqd,bhkd->bhqk', x, y), [(2, 3, 48, 16), (2, 3, 40, 16)], 2 * 2 * 3 * 48 * 40 * 16),
        (lambda x, y: jnp.einsum('qbk,wqk->bw', x, y), [(8, 64, 32), (16, 8, 32)], 2 * 64 * 16 * 8 * 32),
    ],
)
def test_products(function, shapes, flops):
    program = compiled(function, *shapes)
    assert total(program, 'flops') == flops == program.cost_analysis()['flops']
    assert total(program, 'bytes') == pytest.approx(program.cost_analysis()['bytes accessed'], rel=0.01)


def test_fusion():
    program = compiled(lambda x, y: jnp.tanh(x) * y + x, (256, 64), (256, 64))
    assert total(program, 'bytes') == 3 * 256 * 64 * 4 == program.cost_analysis()['bytes accessed']
    assert total(program, 'flops') == 0  # of products


def test_scan_reads_a_slice_of_stacked_parameters():
    layers, n = 16, 128
    loss = lambda w, x: lax.scan(lambda h, one: (jnp.tanh(h @ one), None), x, w)[0].sum()
    program = compiled(jax.grad(loss), (layers, n, n), (8, n))
    assert total(program, 'flops') == 3 * 2 * 8 * n * n  # of one layer: forward, and two backward
    loops = [cost for cost in executed_once(program) if 'while/body' in cost.op_name]
    assert loops and max(cost.bytes for cost in loops) < 4 * n * n * 4  # a stack has 16
    assert total(program, 'bytes') == pytest.approx(program.cost_analysis()['bytes accessed'], rel=0.05)


def test_the_rounds_of_loops_are_counted_also_within_loops():
    inner = lambda x, w: lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ w), x)
    program = compiled(lambda x, w: lax.fori_loop(0, 5, lambda _, x: inner(x, w) @ w, x), (8, 64), (64, 64))
    executed = hlo.executed(program.as_text())
    assert sum(times * cost.flops for cost, times in executed) == 5 * (3 + 1) * 2 * 8 * 64 * 64
    assert {times for cost, times in executed if cost.flops} == {5, 15}
    assert {times for _, times in hlo.executed(program.as_text(), rounds=False)} == {1}
    assert total(program, 'flops') == 2 * 2 * 8 * 64 * 64  # as XLA counts


ON_TPU = """HloModule step

%%body (in: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %%in = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %%i = s32[]{:T(128)} get-tuple-element(%%in), index=0
  %%x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%%in), index=1
  %%y = f32[8,128]{1,0:T(8,128)} tanh(%%x)
  ROOT %%out = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%%i, %%y)
}

%%condition (in.1: (s32[], f32[8,128])) -> pred[] {
  %%bound = s32[]{:T(128)} constant(4)
  %%in.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %%i.1 = s32[]{:T(128)} get-tuple-element(%%in.1), index=0
  ROOT %%less = pred[]{:T(512)} compare(%%i.1, %%bound), direction=%s
}

ENTRY %%main (x.1: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %%x.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  ROOT %%loop = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%%x.1), condition=%%condition, body=%%body
}
"""


@pytest.mark.parametrize(('direction', 'rounds'), [('LT', 4), ('GT', 1)])  # 1: nothing is known
def test_the_rounds_of_a_loop_on_a_tpu(direction, rounds):
    [tanh] = [(cost, times) for cost, times in hlo.executed(ON_TPU % direction) if cost.opcode == 'tanh']
    assert tanh[0].bytes == 2 * 8 * 128 * 4 and tanh[1] == rounds


@pytest.mark.parametrize(
    'function, shapes, moved',
    [
        (lambda x, u, i: lax.dynamic_update_slice(x, u, (i, 0)), [(512, 64), (4, 64), []], 2 * 4 * 64 * 4),
        (lambda x, u, i: lax.dynamic_update_slice(x, jnp.tanh(u), (i, 0)), [(512, 64), (4, 64), []], 2 * 4 * 64 * 4),
        (lambda x, u, i: x.at[i].add(u, mode='clip'), [(512, 64), (8, 64), [8]], 3 * 8 * 64 * 4),
    ],
)
def test_updates_in_place(function, shapes, moved):
    program = compiled(function, *shapes, donate_argnums=0)
    assert total(program, 'bytes') == pytest.approx(moved, rel=0.15)  # with the indices


def test_gather():
    # XLA's own analysis counts the table whole.
    program = compiled(lambda table, rows: table[rows], (512, 64), [16])
    assert total(program, 'bytes') == pytest.approx(2 * 16 * 64 * 4, rel=0.1)


# A TPU's products are convolutions: of batches by a window with holes, or by one padded operand. S(1) is on the chip.
TPU = """HloModule jit_step, is_scheduled=true

%fused_halves (param_0.1: bf16[5,1,32]) -> bf16[16,32] {
  %param_0.1 = bf16[5,1,32]{2,1,0:T(8,128)(2,1)} parameter(0)
  %half = bf16[1,32]{1,0:T(8,128)(2,1)} slice(%param_0.1), slice={[1:2], [0:1], [0:32]}
  ROOT %copies = bf16[16,32]{1,0:T(8,128)(2,1)} broadcast(%half), dimensions={0,1}
}

%fused_qkv (param_0.2: bf16[48,1,32], param_1.2: bf16[5,1,32], param_2.2: bf16[8,16,48]) -> bf16[32,8,16] {
  %param_0.2 = bf16[48,1,32]{0,2,1:T(8,128)(2,1)} parameter(0)
  %param_2.2 = bf16[8,16,48]{2,1,0:T(8,128)(2,1)S(1)} parameter(2)
  %param_1.2 = bf16[5,1,32]{2,1,0:T(8,128)(2,1)} parameter(1)
  %inner = bf16[16,32]{1,0:T(8,128)(2,1)} fusion(%param_1.2), kind=kLoop, calls=%fused_halves
  ROOT %qkv = bf16[32,8,16]{2,1,0:T(8,128)(2,1)S(1)} convolution(%param_0.2, %param_2.2), \
    window={size=8 pad=7_7 rhs_reversal=1}, dim_labels=f0b_0oi->b0f, metadata={op_name="qkv"}
}

ENTRY %main (x: bf16[48,1,32], y: bf16[5,1,32], z: bf16[8,16,48], p: bf16[4,64,2,6]) -> bf16[4,2,64,64] {
  %x = bf16[48,1,32]{0,2,1:T(8,128)(2,1)} parameter(0)
  %y = bf16[5,1,32]{2,1,0:T(8,128)(2,1)} parameter(1)
  %z = bf16[8,16,48]{2,1,0:T(8,128)(2,1)} parameter(2)
  %p = bf16[4,64,2,6]{3,1,2,0:T(8,128)(2,1)} parameter(3)
  %buffer = f32[1,4096,32]{2,1,0:T(8,128)} custom-call(), custom_call_target="AllocateBuffer"
  %copy-start.1 = (bf16[8,16,48]{2,1,0:T(8,128)(2,1)S(1)}, bf16[8,16,48]{2,1,0:T(8,128)(2,1)}, \
    u32[]{:S(2)}) copy-start(%z)
  %copy-done.1 = bf16[8,16,48]{2,1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start.1)
  %slice-start.1 = ((bf16[8,16,48]{2,1,0:T(8,128)(2,1)}), bf16[2,16,48]{2,1,0:T(8,128)(2,1)S(1)}, \
    s32[]{:S(2)}) slice-start(%z), slice={[0:2], [0:16], [0:48]}
  %slice-done.1 = bf16[2,16,48]{2,1,0:T(8,128)(2,1)S(1)} slice-done(%slice-start.1)
  %qkv_fusion = bf16[32,8,16]{2,1,0:T(8,128)(2,1)S(1)} fusion(%x, %y, %copy-done.1), kind=kOutput, calls=%fused_qkv
  %copy-start.2 = (bf16[32,8,16]{2,1,0:T(8,128)(2,1)}, bf16[32,8,16]{2,1,0:T(8,128)(2,1)S(1)}, \
    u32[]{:S(2)}) copy-start(%qkv_fusion)
  %seven = bf16[8,7,48]{2,1,0:T(8,128)(2,1)} slice(%z), slice={[0:8], [0:7], [0:48]}
  %five = bf16[5,48,9]{2,1,0:T(8,128)(2,1)} parameter(4)
  %strided = bf16[8,2,9]{2,1,0:T(8,128)(2,1)} convolution(%seven, %five), window={size=5 stride=3 pad=2_0}, \
    dim_labels=b0f_0io->b0f
  ROOT %scores = bf16[4,2,64,64]{3,2,1,0:T(8,128)(2,1)} convolution(%p, %p), \
    window={size=4x2 stride=3x1 lhs_dilate=4x2}, dim_labels=0b1f_0o1i->01bf, metadata={op_name="scores"}
}
"""
# A GPU's: cuBLAS with room to work in, on slices of stacks; a product with a sum in its place; asynchronous slices.
GPU = """HloModule jit_step, is_scheduled=true

%dynamic-slice-fusion (p0: bf16[12,3,32,5], p1: s32[], p2: bf16[64,3,5], p3: bf16[12,32,64]) -> \
    (bf16[12,32,64], s8[4096]) {
  %p0 = bf16[12,3,32,5]{3,2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = bf16[64,3,5]{2,1,0} parameter(2)
  %zero = s32[] constant(0)
  %layer = bf16[1,3,32,5]{3,2,1,0} dynamic-slice(%p0, %p1, %zero, %zero, %zero), dynamic_slice_sizes={1,3,32,5}
  %of_layer = bf16[3,32,5]{2,1,0} bitcast(%layer)
  %gemm = (bf16[32,64]{1,0}, s8[4096]{0}) custom-call(%of_layer, %p2), custom_call_target="__cublas$lt$matmul", \
    metadata={op_name="mlp"}, backend_config={"gemm_backend_config":{"beta":0,"dot_dimension_numbers":{\
"lhs_contracting_dimensions":["0","2"],"rhs_contracting_dimensions":["1","2"],"lhs_batch_dimensions":[]}}}
  %product = bf16[32,64]{1,0} get-tuple-element(%gemm), index=0
  %room = s8[4096]{0} get-tuple-element(%gemm), index=1
  %stacked = bf16[1,32,64]{2,1,0} bitcast(%product)
  %p3 = bf16[12,32,64]{2,1,0} parameter(3)
  %update = bf16[12,32,64]{2,1,0} dynamic-update-slice(%p3, %stacked, %p1, %zero, %zero)
  ROOT %both = (bf16[12,32,64]{2,1,0}, s8[4096]{0}) tuple(%update, %room)
}

%gemm_fusion_computation (parameter_0: bf16[64,32], parameter_1: bf16[64,16], parameter_2: f32[32,16]) -> f32[32,16] {
  %parameter_2 = f32[32,16]{1,0} parameter(2)
  %parameter_0 = bf16[64,32]{1,0} parameter(0)
  %parameter_1 = bf16[64,16]{1,0} parameter(1)
  %dot.1 = f32[32,16]{1,0} dot(%parameter_0, %parameter_1), lhs_contracting_dims={0}, rhs_contracting_dims={0}, \
    metadata={op_name="table"}, backend_config={"sizes":["16"]}
  ROOT %add.1 = f32[32,16]{1,0} add(%parameter_2, %dot.1)
}

%fused_dynamic_slice (param_0.3: pred[12,8,64], param_1.3: s32[]) -> pred[1,8,64] {
  %param_0.3 = pred[12,8,64]{2,1,0} parameter(0)
  %param_1.3 = s32[] parameter(1)
  %constant.3 = s32[] constant(0)
  ROOT %slice.3 = pred[1,8,64]{2,1,0} dynamic-slice(%param_0.3, %param_1.3, %constant.3, %constant.3), \
    dynamic_slice_sizes={1,8,64}
}

%fused_updates (param_0.4: bf16[12,8], param_1.4: f32[8], param_2.4: s32[], param_3.4: f32[12,8]) -> \
    (bf16[12,8], f32[12,8]) {
  %param_0.4 = bf16[12,8]{1,0} parameter(0)
  %wide = f32[12,8]{1,0} convert(%param_0.4)
  %param_1.4 = f32[8]{0} parameter(1)
  %row = f32[1,8]{1,0} bitcast(%param_1.4)
  %param_2.4 = s32[] parameter(2)
  %constant.4 = s32[] constant(0)
  %updated = f32[12,8]{1,0} dynamic-update-slice(%wide, %row, %param_2.4, %constant.4)
  %narrow = bf16[12,8]{1,0} convert(%updated)
  %param_3.4 = f32[12,8]{1,0} parameter(3)
  %other = f32[12,8]{1,0} dynamic-update-slice(%param_3.4, %row, %param_2.4, %constant.4)
  %double = f32[12,8]{1,0} add(%other, %other)
  ROOT %pair = (bf16[12,8]{1,0}, f32[12,8]{1,0}) tuple(%narrow, %double)
}

%fused_put (param_0.5: f32[12,8], param_1.5: f32[1,8], param_2.5: s32[]) -> f32[12,8] {
  %param_0.5 = f32[12,8]{1,0} parameter(0)
  %param_1.5 = f32[1,8]{1,0} parameter(1)
  %param_2.5 = s32[] parameter(2)
  ROOT %put.5 = f32[12,8]{1,0} dynamic-update-slice(%param_0.5, %param_1.5, %param_2.5, %param_2.5)
}

%nested (param_0.6: f32[12,8], param_1.6: f32[1,8], param_2.6: s32[]) -> f32[12,8] {
  %param_0.6 = f32[12,8]{1,0} parameter(0)
  %param_1.6 = f32[1,8]{1,0} parameter(1)
  %param_2.6 = s32[] parameter(2)
  ROOT %put_fusion = f32[12,8]{1,0} fusion(%param_0.6, %param_1.6, %param_2.6), kind=kLoop, calls=%fused_put
}

ENTRY %main (s: bf16[12,3,32,5], i: s32[], w: bf16[64,3,5], o: bf16[12,32,64]) -> f32[32,16] {
  %s = bf16[12,3,32,5]{3,2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %w = bf16[64,3,5]{2,1,0} parameter(2)
  %o = bf16[12,32,64]{2,1,0} parameter(3)
  %a = bf16[64,32]{1,0} parameter(4)
  %b = bf16[64,16]{1,0} parameter(5)
  %c = f32[32,16]{1,0} parameter(6)
  %mask = pred[12,8,64]{2,1,0} parameter(7)
  %rows = bf16[12,8]{1,0} parameter(8)
  %new = f32[8]{0} parameter(9)
  %wides = f32[12,8]{1,0} parameter(10)
  %line = f32[1,8]{1,0} bitcast(%new)
  %put = f32[12,8]{1,0} dynamic-update-slice(%wides, %line, %i, %i)
  %nested_put = f32[12,8]{1,0} fusion(%put, %line, %i), kind=kCustom, calls=%nested
  %places = s32[2,1]{1,0} parameter(11)
  %taken = bf16[2,8]{1,0} gather(%rows, %places), offset_dims={1}, collapsed_slice_dims={0}, slice_sizes={1,8}
  %terms = f32[2,8]{1,0} parameter(12)
  %scattered = f32[12,8]{1,0} scatter(%nested_put, %places, %terms), to_apply=%sum
  %stacks = (bf16[12,32,64]{2,1,0}, s8[4096]{0}) fusion(%s, %i, %w, %o), kind=kCustom, calls=%dynamic-slice-fusion
  %gemm_fusion = f32[32,16]{1,0} fusion(%a, %b, %c), kind=kCustom, calls=%gemm_fusion_computation, \
    backend_config={"fusion_backend_config":{"kind":"__triton_gemm"}}
  %fusion-start = ((pred[12,8,64]{2,1,0}, s32[]), pred[1,8,64]{2,1,0}, u32[]) fusion-start(%mask, %i), kind=kLoop, \
    calls=%fused_dynamic_slice
  %fusion-done = pred[1,8,64]{2,1,0} fusion-done(%fusion-start)
  %updates = (bf16[12,8]{1,0}, f32[12,8]{1,0}) fusion(%rows, %new, %i, %wides), kind=kLoop, calls=%fused_updates
  %loop = (s32[], bf16[12,32,64]{2,1,0}) while(%stacks), condition=%none, body=%none, \
    backend_config={"known_trip_count":{"n":"12"}}
  ROOT %copy.9 = f32[32,16]{1,0} copy(%gemm_fusion)
}
"""
GEMM_FLOPS, GEMM_BYTES = 2 * 32 * 64 * 3 * 5, 2 * (3 * 32 * 5 + 64 * 3 * 5 + 32 * 64)


@pytest.mark.parametrize(
    'text, name, flops, moved',
    [
        (TPU, 'scores', 2 * 4 * 2 * 64 * 64 * 6, 2 * (2 * 4 * 64 * 2 * 6 + 4 * 2 * 64 * 64)),
        # Each of 8 places of the result meets the one column of data at one of 8 places of the window.
        # Of `y`, one row is moved.
        (TPU, 'qkv_fusion', 2 * 32 * 8 * 16 * 48, 2 * (48 * 32 + 32)),
        # Of 5 places of the window, 3 are on data for the first of 2 places of the result, and 5 for the second.
        (TPU, 'strided', 2 * 8 * 9 * 48 * (3 + 5), 2 * (8 * 7 * 48 + 5 * 48 * 9 + 8 * 2 * 9)),
        (TPU, 'buffer', 0, 0),
        (TPU, 'copy-start.1', 0, 8 * 16 * 48 * 2 + 4),
        (TPU, 'copy-done.1', 0, 0),
        (TPU, 'slice-start.1', 0, 2 * 16 * 48 * 2),
        (TPU, 'slice-done.1', 0, 0),
        (TPU, 'copy-start.2', 0, 32 * 8 * 16 * 2 + 4),
        (GPU, 'gemm', GEMM_FLOPS, GEMM_BYTES),
        (GPU, 'stacks', GEMM_FLOPS, GEMM_BYTES + 4),
        (GPU, 'gemm_fusion', 2 * 64 * 32 * 16, 2 * 64 * (32 + 16) + 2 * 4 * 32 * 16),
        (GPU, 'fusion-start', 0, 2 * 8 * 64 + 4),
        (GPU, 'fusion-done', 0, 0),
        # In place: a row read, and written as narrow as its stack. The other stack is read by what is written.
        (GPU, 'updates', 0, 8 * 4 + 4 + 8 * 2 + 2 * 12 * 8 * 4),
        (GPU, 'taken', 0, 2 * 2 * 8 * 2 + 2 * 4),
        (GPU, 'put', 0, 2 * 8 * 4 + 2 * 4),
        (GPU, 'nested_put', 0, 2 * 8 * 4 + 4),
        (GPU, 'scattered', 0, 3 * 2 * 8 * 4 + 2 * 4),
        (GPU, 'loop', 0, 0),
        (GPU, 'copy.9', 0, 2 * 32 * 16 * 4),
    ],
)
def test_what_tpus_and_gpus_write(text, name, flops, moved):
    cost = hlo.costs(text)[name]
    assert (cost.flops, cost.bytes) == (flops, moved)


def test_a_fusion_without_source_has_that_of_its_inside():
    assert hlo.costs(TPU)['qkv_fusion'].op_name == 'qkv'


def trace(folder, lines):
    """Writes a trace; lines: (device, its line) -> [(event, microseconds, statistics)]."""
    events, statistics, planes = {}, {}, {}
    number = lambda names, name: names.setdefault(name, len(names) + 1)
    for (device, line), content in lines.items():
        text = ''
        for name, microseconds, stats in content:
            text += f'events {{ metadata_id: {number(events, name)} duration_ps: {microseconds}000000 '
            text += (
                ' '.join(
                    f'stats {{ metadata_id: {number(statistics, key)} str_value: "{value}" }}'
                    for key, value in stats.items()
                )
                + ' }\n'
            )
        planes.setdefault(device, []).append(f'lines {{ name: "{line}" {text} }}')
    metadata = ' '.join(
        f'{kind}_metadata {{ key: {i} value {{ id: {i} name: "{name}" }} }}'
        for kind, names in (('event', events), ('stat', statistics))
        for name, i in names.items()
    )
    space = '\n'.join(
        f'planes {{ name: "{device}" {" ".join(content)} {metadata} }}' for device, content in planes.items()
    )
    (folder / 'host.xplane.pb').write_bytes(jax.profiler.ProfileData.text_proto_to_serialized_xspace(space))


KERNEL = {'kernel_details': 'regs:32 grid:1,1,1 block:128,1,1'}
COPY = {'memcpy_details': 'kind_src:device kind_dst:device size:4096 dest:0 async:1'}


def test_kernels_of_a_gpu(tmp_path):
    """Each is counted once: kernels that share an instruction, copies, and what does not say its instruction."""
    gpu = '/device:GPU:0'
    trace(
        tmp_path,
        {
            (gpu, 'Stream #7(Compute)'): 2
            * [
                ('gemm', 5, {'hlo_op': 'gemm_fusion', **KERNEL}),
                ('gemm', 6, {'hlo_op': 'gemm_fusion', **KERNEL}),
                ('memset', 1, {'hlo_op': 'gemm_fusion', 'Memset_details': 'num_bytes:64'}),
                ('in_a_graph', 4, KERNEL),
                ('check', 3, {'hlo_op': 'loop', **COPY}),
                ('alloc', 900, {'memalloc_details': 'num_bytes:64'}),
            ],
            (gpu, 'CUPTI overhead'): [('overhead', 900, {}), ('copy', 2, {'hlo_op': 'not_in_the_text', **COPY})],
            (gpu, 'XLA Ops'): [('gemm_fusion', 900, {'hlo_op': 'gemm_fusion', **KERNEL})],
            (gpu, 'XLA Modules'): [('jit_step', 900, {})],
            ('/device:GPU:1', 'Stream #7(Compute)'): [('gemm', 900, {'hlo_op': 'gemm_fusion', **KERNEL})],
            ('/host:CPU', 'python'): [('gemm', 900, {'hlo_op': 'gemm_fusion'})],
        },
    )
    result = summary(tmp_path, GPU, 2, (1e12, 1e12))
    assert result['device_ms_per_step'] == pytest.approx((1 + 5 + 6 + 4 + 3 + 2 / 2) / 1e3)
    kernels = {kernel['instruction']: kernel for kernel in result['kernels']}
    gemm = kernels['gemm_fusion']
    assert (gemm['kernel'], gemm['calls_per_step'], gemm['gflop']) == ('gemm', 1, 2 * 64 * 32 * 16 / 1e9)
    assert gemm['of_ceiling'] == pytest.approx(2 * 64 * 32 * 16 / 1e12 / 12e-6)
    assert kernels['in_a_graph']['ms_per_step'] == pytest.approx(0.004)
    assert kernels['loop']['ms_per_step'] == pytest.approx(0.003)
    assert kernels['not_in_the_text']['gb'] == pytest.approx(2 * 4096 / 2 / 1e9)


def test_kernels_of_a_tpu(tmp_path):
    """Named in the event; a loop's event spans those of its body."""
    tpu = '/device:TPU:0'
    trace(
        tmp_path,
        {
            (tpu, 'XLA Ops'): [
                ('%loop = (s32[]) while(%stacks)', 900, {}),
                ('%copy.9 = f32[32,16] copy(%gemm_fusion)', 5, {}),
                ('%fusion-done = pred[1,8,64] fusion-done(%fusion-start)', 2, {}),
            ],
            (tpu, 'Async XLA Ops'): [('%fusion-start = pred[1,8,64] fusion-start(%mask)', 900, {})],
            (tpu, 'Steps'): [('1', 900, {})],
            ('/device:TPU:0 SparseCore 0', 'XLA Ops'): [('%copy.9', 900, {})],
        },
    )
    result = summary(tmp_path, GPU, 1, (None, None))
    assert {kernel['instruction']: kernel['ms_per_step'] for kernel in result['kernels']} == pytest.approx(
        {'copy.9': 0.005, 'fusion-done': 0.002}
    )


def test_a_trace_without_kernels_says_what_it_has(tmp_path):
    trace(tmp_path, {('/device:GPU:0', 'Steps'): [('1', 900, {})]})
    with pytest.raises(ValueError, match='no kernel, only /device:GPU:0 .Steps.'):
        summary(tmp_path, GPU, 1, (None, None))


def test_kernels_of_a_real_trace(tmp_path):
    """On this machine: the product runs as often as the loop does."""
    program = compiled(lambda w, x: lax.scan(lambda h, one: (jnp.tanh(h @ one), None), x, w)[0], (6, 64, 64), (8, 64))
    w, x = jnp.zeros((6, 64, 64)), jnp.zeros((8, 64))
    with jax.profiler.trace(str(tmp_path)):
        for _ in range(3):
            program(w, x).block_until_ready()
    result = summary(tmp_path, program.as_text(), 3, (None, None))
    assert sum(kernel['gflop'] for kernel in result['kernels']) == pytest.approx(6 * 2 * 8 * 64 * 64 / 1e9)
    assert result['kernels_shown'] == pytest.approx(1)
