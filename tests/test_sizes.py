"""The named sizes: of kinds that there are, complete, and gpt1 with the paper's parameters."""

import jax
import pytest

from gpt1_jax.model import architecture
from gpt1_jax.model.classifier import Classifier
from gpt1_jax.model.sizes import SIZES


@pytest.mark.parametrize('name', SIZES)
def test_a_size_fits_its_kind(name):
    size = SIZES[name]
    assert set(size.sizes) == set(architecture.KINDS[size.kind].SIZES)
    model = architecture.build({'kind': size.kind, **size.sizes}, size.vocab_size, 0, 'cpu')
    assert architecture.Architecture.of(model) == architecture.Architecture(size.kind, size.sizes)


def test_gpt1_has_the_paper_s_parameters():
    """12 layers of 12 width^2 weights and 13 width biases and gains; token and position rows. 117 million or so."""
    size = SIZES['gpt1']
    model = architecture.build({'kind': size.kind, **size.sizes}, size.vocab_size, 0, 'cpu')
    shapes = jax.eval_shape(Classifier(model).init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == (40000 + 512) * 768 + 12 * (12 * 768**2 + 13 * 768) and 116e6 < count < 118e6
