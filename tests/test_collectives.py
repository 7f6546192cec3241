"""What devices send each other: programs for eight host devices against arithmetic, and the forms that TPUs write."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from gpt1_jax.errors import UserError
from gpt1_jax.meter.collectives import Collective, collectives

# kind -> (function of a device's part, what it sends inside and between two slices of four, from 1,024 float32)
CASES = {
    'all-reduce': (lambda x: lax.psum(x, 'data'), (2 * 3 / 4 * 4096, 2 * 1 / 2 * 4096 / 4)),
    'all-gather': (lambda x: lax.all_gather(x, 'data'), (3 * 2 * 4096, 4096)),
    'reduce-scatter': (lambda x: lax.psum_scatter(x, 'data', tiled=True), (3 / 4 * 4096, 1 / 2 * 4096 / 4)),
    'all-to-all': (lambda x: lax.all_to_all(x, 'data', 0, 0, tiled=True), (3 / 8 * 4096, 1 / 2 * 4096)),
    'collective-permute': (lambda x: lax.ppermute(x, 'data', [(i, (i + 1) % 8) for i in range(8)]), (0, 4096)),
}


def compiled(function, n=1):
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    on_each = jax.shard_map(
        lambda x: function(x) if n == 1 else lax.fori_loop(0, n, lambda _, x: function(x), x),
        mesh=mesh,
        in_specs=PartitionSpec('data'),
        out_specs=PartitionSpec('data'),
        check_vma=False,
    )
    return jax.jit(on_each).lower(jax.ShapeDtypeStruct((8 * 1024,), jnp.float32)).compile().as_text()


@pytest.mark.parametrize('kind', CASES)
def test_what_a_device_sends(kind):
    function, (inside, between) = CASES[kind]
    [one] = collectives(compiled(function))
    assert (one.kind, one.times, one.bytes) == (kind, 1, 4096)
    assert one.sent(4) == pytest.approx((inside, between))
    assert one.sent(8)[1] == 0 and one.sent(8)[0] > 0


def test_a_loop_sends_in_each_round():
    [one] = collectives(compiled(lambda x: lax.psum(x, 'data'), n=5))
    assert one.times == 5


def test_a_ring_brings_every_part_to_every_device():
    """Counted by a simulation: in each of g - 1 rounds a device passes on what it got in the round before."""
    g, part = 8, 100.0
    sent = sum(part for _ in range(g - 1))
    gathered = functools.partial(Collective, times=1, groups=np.arange(g)[None])
    assert gathered('all-gather', bytes=part).sent(g) == (sent, 0)
    assert gathered('reduce-scatter', bytes=part * g).sent(g) == (sent, 0)
    assert gathered('all-reduce', bytes=part * g).sent(g) == (2 * sent, 0)


FORM = """HloModule step

%inner (p: bf16[96,768]) -> bf16[768,768] {{
  %p = bf16[96,768]{{1,0:T(8,128)S(1)}} parameter(0)
  ROOT %all-gather.1 = bf16[768,768]{{1,0:T(8,128)(2,1)}} all-gather(%p), channel_id=1, {groups}, dimensions={{0}}
}}

ENTRY %main (a: bf16[96,768]) -> bf16[768,768] {{
  %a = bf16[96,768]{{1,0:T(8,128)(2,1)}} parameter(0)
  ROOT %fusion.1 = bf16[768,768]{{1,0:T(8,128)(2,1)}} fusion(%a), kind=kCustom, calls=%inner
}}
"""


@pytest.mark.parametrize(
    ('groups', 'expected'),
    [
        ('replica_groups={{0,1,2,3},{4,5,6,7}}', [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ('replica_groups=[2,4]<=[8]', [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ('replica_groups=[4,2]<=[2,4]T(1,0)', [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['x'=2,'y'=4] {'y'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=mesh['x'=2,'y'=4] {'x'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['x'=2,'y'=2,'z'=2] {'x','z'}", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ("replica_groups=mesh['x'=4,'y'=2], device_ids=([2,4]T(1,0)) {'x'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=mesh['x'=4,'y'=2], device_ids=([2,4]T(1,0)) {'y'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ],
)
def test_groups_in_the_forms_of_compilers(groups, expected):
    """Inside a fusion, and of an array in on-chip memory."""
    [one] = collectives(FORM.format(groups=groups))
    np.testing.assert_array_equal(one.groups, expected)
    assert one.bytes == 96 * 768 * 2


def test_a_group_of_one_sends_nothing():
    assert not collectives(FORM.format(groups="replica_groups=mesh['x'=1,'y'=8] {'x'}"))


def test_a_form_that_is_not_known_is_not_passed_over():
    with pytest.raises(UserError, match='unknown which devices'):
        collectives(FORM.format(groups="replica_groups=mesh['x'=8] {'x':(1)2}"))


SCATTER = """HloModule step

%all-reduce-scatter.4 (p: bf16[768,768]) -> bf16[768,96] {
  %p = bf16[768,768]{0,1:T(8,128)(2,1)} parameter(0)
  %all-reduce.43 = bf16[768,768]{0,1:T(8,128)(2,1)} all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}
  %zero = u32[] constant(0)
  ROOT %cut = bf16[768,96]{0,1:T(8,128)(2,1)} dynamic-slice(%all-reduce.43, %zero, %zero), dynamic_slice_sizes={768,96}
}

ENTRY %main (a: bf16[768,768]) -> bf16[768,96] {
  %a = bf16[768,768]{0,1:T(8,128)(2,1)} parameter(0)
  ROOT %fusion.449 = bf16[768,96]{0,1:T(8,128)(2,1)} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.4
}
"""


def test_a_tpu_s_reduce_scatter():
    [one] = collectives(SCATTER)
    assert one.kind == 'reduce-scatter' and one.sent(8) == (7 / 8 * 768 * 768 * 2, 0)


SEND = """HloModule step

ENTRY %main (a: f32[64,8,128]) -> token[] {{
  %a = f32[64,8,128]{{2,1,0:T(8,128)}} parameter(0)
  %after = token[] after-all()
  %send = (f32[64,8,128]{{2,1,0:T(8,128)}}, u32[], token[]) send(%a, %after), channel_id=3, is_host_transfer=true, \
frontend_attributes={{_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target={target},\
_xla_megascale_transfer_type="{kind}"}}
  ROOT %done = token[] send-done(%send), channel_id=3, is_host_transfer=true
}}
"""
PAIRS = ','.join(f'{{20000{i}->10000{i}}}' for i in range(4))
SAME = ','.join(f'{{10000{i},20000{i}}}' for i in range(4))


@pytest.mark.parametrize(
    ('transfer', 'target', 'kind', 'share'),
    [
        ('ALL_REDUCE', '"{1,2}x{0:3}"', 'all-reduce', 1),
        ('ALL_GATHER', '"{1:2}x{0:3}"', 'all-gather', 1),
        ('ALL_TO_ALL', f'{{{SAME}}}', 'all-to-all', 1 / 2),
        ('ONE_TO_ONE', f'{{{PAIRS}}}', 'collective-permute', 1),
    ],
)
def test_what_a_tpu_s_host_sends_to_other_slices(transfer, target, kind, share):
    [one] = collectives(SEND.format(target=target, kind=transfer))
    assert one.kind == kind and one.sent(4) == (0, share * 4 * 64 * 8 * 128)
    np.testing.assert_array_equal(np.sort(one.groups), [[i, i + 4] for i in range(4)])
