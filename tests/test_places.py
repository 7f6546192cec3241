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


def test_the_table_counts_what_is_moved():
    compiled = jax.jit(lambda x: jnp.sum(x @ x)).lower(jnp.zeros((64, 64))).compile()
    head, first = table(compiled.as_text(), 1).splitlines()
    assert head.startswith('by instruction') and head.endswith('GB') and '1 x ' in first
