"""Taking over parameters: which rows and layers, from every kind of source, onto any mesh."""

import jax
import numpy as np
import pytest
from etils import epath
from test_weights import (  # noqa: F401
    HEADS, SIZES, any_bits, assert_same_bits, make, make_model, read, released_tokenizer, sentencepiece)

from gpt1_jax import config as common
from gpt1_jax.errors import UserError
from gpt1_jax.model.heads import ClassifierHead
from gpt1_jax.model.transformer import Decoder
from gpt1_jax.training import transfer
from gpt1_jax.training.checkpoint import Checkpointer
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.state import abstract_tree, params_initialiser
from gpt1_jax.weights import huggingface, openai

VOCABULARY = 50


def write_workdir(folder, source, params):
    """As a run leaves it."""
    model = Decoder(vocab_size=source.vocab_size, n_special=source.n_special, **source.architecture)
    transfer.describe_run(folder, model, source.tokenizer, source.head and ClassifierHead(**source.head))
    checkpointer = Checkpointer(folder / 'checkpoints')
    checkpointer.save(7, {'params': jax.device_put(params)}, {})
    checkpointer.close()


@pytest.fixture(scope='module')
def places(tmp_path_factory):
    """{form: (place, parameters, special rows)}."""
    folder, rng = tmp_path_factory.mktemp('places'), np.random.default_rng(0)
    tokenizer = released_tokenizer(epath.Path(folder / 'vocabulary'), VOCABULARY)
    plain, plain_params = make_model(rng, tokenizer)
    tuned, tuned_params = make_model(rng, tokenizer, 3, HEADS[1])
    openai.write_folder(make(folder / 'openai'), plain, plain_params)
    huggingface.write_folder(make(folder / 'hf'), tuned, tuned_params)
    write_workdir(make(folder / 'workdir'), tuned, tuned_params)
    return {'openai': (f'openai:{folder}/openai', plain_params, 0), 'hf': (f'hf:{folder}/hf', tuned_params, 3),
            'workdir': (f'{folder}/workdir', tuned_params, 3)}


@pytest.mark.parametrize(('form', 'n_special'), [('openai', 0), ('openai', 3), ('hf', 0), ('hf', 3), ('workdir', 3)])
def test_which_rows_and_layers_are_taken_over(places, form, n_special):
    place, given, source_special = places[form]
    source, partitioner = transfer.open_source(place), Partitioner('fsdp+tp')
    model = Decoder(vocab_size=VOCABULARY, n_special=n_special, **SIZES)
    _, fresh = make_model(np.random.default_rng(1), source.tokenizer, n_special, HEADS[3])
    boxed = jax.eval_shape(params_initialiser(model, ClassifierHead(**HEADS[3])), jax.random.key(0))
    placed = jax.device_put(fresh, jax.tree.map(lambda leaf: leaf.sharding, abstract_tree(boxed, partitioner)))
    assert transfer.loader(source, model, -1, partitioner) is None
    for n_layers in range(3):
        loaded = jax.device_get(transfer.loader(source, model, n_layers, partitioner)(placed))
        old, new, result = given['decoder'], fresh['decoder'], loaded['decoder']
        assert_same_bits(loaded['head'], fresh['head'])  # never taken over
        assert_same_bits(result['table'][:VOCABULARY], old['table'][:VOCABULARY])
        assert_same_bits(result['table'][VOCABULARY + n_special:], old['table'][VOCABULARY + source_special:])
        special = old if source_special else new
        assert_same_bits(result['table'][VOCABULARY:VOCABULARY + n_special],
                         special['table'][VOCABULARY:VOCABULARY + n_special])
        for part, origin in ((slice(n_layers), old), (slice(n_layers, None), new)):
            assert_same_bits(*(jax.tree.map(lambda leaf: leaf[part], tree['blocks']) for tree in (result, origin)))


@pytest.mark.parametrize('form', ['openai', 'hf', 'workdir'])
@pytest.mark.parametrize('strategy', ['dp', 'tp', 'fsdp+tp'])
def test_parameters_arrive_on_any_mesh(places, form, strategy):
    place, given, _ = places[form]
    # Four heads: tensor axes of at most four.
    partitioner = Partitioner(strategy, (2, 1, 4) if strategy == 'tp' else ())
    model, head, params = transfer.load_model(transfer.open_source(place), common.model_defaults(), partitioner)
    assert_same_bits(jax.device_get(params), given)
    assert (head is None) == ('head' not in given)
    kernel = params['decoder']['blocks']['mlp']['in']['kernel']
    assert kernel.addressable_shards[0].data.size * {'dp': 1, 'tp': 4, 'fsdp+tp': 8}[strategy] == kernel.size


def test_what_is_no_source_is_named(tmp_path, places):
    for place in ('/nowhere', str(tmp_path), 'gs:/nowhere', f'hf:{tmp_path}', f'openai:{tmp_path}', 'hf:/nowhere'):
        with pytest.raises(UserError, match='nowhere|' + tmp_path.name):
            transfer.open_source(place)


def test_a_run_without_a_checkpoint_is_named(tmp_path, places):
    source = transfer.open_source(places['workdir'][0])
    model = Decoder(vocab_size=VOCABULARY, n_special=0, **source.architecture)
    transfer.describe_run(epath.Path(tmp_path), model, source.tokenizer)
    with pytest.raises(UserError, match='no checkpoint yet'):
        read(str(tmp_path))
