"""The named sizes: of kinds that there are, complete, and gpt1 with the paper's parameters."""

import jax
import pytest

from configs import finetune, pretrain
from gpt1_jax.model import architecture
from gpt1_jax.model.classifier import Classifier
from gpt1_jax.model.sizes import SIZES


@pytest.mark.parametrize('name', SIZES)
def test_a_size_fits_its_kind(name):
    size = SIZES[name]
    assert set(size.sizes) == set(architecture.KINDS[size.kind].SIZES)
    model = architecture.build({'kind': size.kind, **size.sizes}, size.vocab_size, 0, 'cpu')
    assert architecture.Architecture.of(model) == architecture.Architecture(size.kind, size.sizes)


@pytest.mark.parametrize(('name', 'std'), [('gpt1', 0.02), ('tiny', 0.049), ('tiny_lstm', 0.049)])
def test_initial_values_are_those_of_the_width_in_pretraining_and_from_scratch(name, std):
    size = SIZES[name]
    for config in (pretrain.get_config(name), finetune.get_config('sst2')):
        settings = {**config.model, 'kind': size.kind, **size.sizes}
        assert architecture.build(settings, size.vocab_size, 0, 'cpu').init_std == std


def test_an_lstm_has_the_paper_s_units_or_narrower_in_proportion_whole_vectors():
    assert [SIZES[name].sizes['units'] for name in ('lstm', 'small_lstm', 'tiny_lstm')] == [2048, 680, 344]


@pytest.mark.parametrize(('name', 'other'), [('tiny_lstm', 'tiny'), ('small_lstm', 'small'), ('lstm', 'gpt1')])
def test_an_lstm_reads_what_was_prepared_for_the_transformer_beside_it(name, other):
    one, two = SIZES[name], SIZES[other]
    assert one.vocab_size == two.vocab_size
    assert all(one.sizes[size] == two.sizes[size] for size in ('width', 'n_positions'))


def test_gpt1_has_the_paper_s_parameters():
    """12 layers of 12 width^2 weights and 13 width biases and gains; token and position rows. 117 million or so."""
    size = SIZES['gpt1']
    model = architecture.build({'kind': size.kind, **size.sizes}, size.vocab_size, 0, 'cpu')
    shapes = jax.eval_shape(Classifier(model).init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == (40000 + 512) * 768 + 12 * (12 * 768**2 + 13 * 768) and 116e6 < count < 118e6
