"""Places of instructions, from names as XLA writes them."""

import jax
import jax.numpy as jnp
import pytest

from gpt1_jax.meter.places import place, table


@pytest.mark.parametrize(
    ('op_name', 'expected'),
    [
        ('jit(step)/jvp(Decoder)/blocks_3/mlp/in/dot_general', 'forward mlp/in dot_general'),
        ('jit(step)/while/body/jvp(Decoder)/blocks/attention/softmax/exp', 'forward blocks/attention exp'),
        ('jit(step)/transpose(jvp(Decoder))/blocks/mlp/out/dot_general', 'backward blocks/mlp/out dot_general'),
        ('jit(step)/mul', 'update  mul'),
        ('', 'update  '),
    ],
)
def test_places(op_name, expected):
    assert place(op_name) == expected


def test_the_table_counts_what_is_moved_in_every_round():
    """A product reads two matrices and writes one."""
    x = jax.ShapeDtypeStruct((4096, 4096), jnp.float32)
    compiled = jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda _, y: x @ y, x)).lower(x).compile()
    head, first = table(compiled.as_text(), 1).splitlines()
    moved = 3 * 3 * 4 * x.size / 1e9
    assert first.startswith(f'{moved:8.3f} GB     3 x ') and first.endswith(' update  dot_general')
    assert head.startswith('by instruction') and float(head.split()[-2]) > moved
