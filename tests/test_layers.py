"""Taking over parameters: which rows and layers, from every form of a saved model, onto any mesh."""

import jax
import numpy as np
import pytest
from etils import epath

import reference
from configs import finetune, pretrain
from gpt1_jax.errors import UserError
from gpt1_jax.model.architecture import Architecture
from gpt1_jax.saved_models import huggingface, layers, openai, store
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.program import finetuning, pretraining
from models import (
    HEADS,
    SIZES,
    assert_same_bits,
    from_reference,
    load,
    make,
    make_model,
    random_params,
    released_tokenizer,
    write_workdir,
)

VOCABULARY = 50


@pytest.fixture(scope='module')
def uris(tmp_path_factory):
    """{form: (URI, parameters, special rows)}."""
    folder, rng = tmp_path_factory.mktemp('saved'), np.random.default_rng(0)
    tokenizer = released_tokenizer(epath.Path(folder / 'vocabulary'), VOCABULARY)
    plain, plain_params = make_model(rng, tokenizer)
    tuned, tuned_params = make_model(rng, tokenizer, 3, HEADS[1])
    openai.write_folder(make(folder / 'openai'), plain, plain_params)
    huggingface.write_folder(make(folder / 'hf'), tuned, tuned_params)
    write_workdir(make(folder / 'workdir'), tuned, tuned_params)
    return {
        'openai': (f'openai:{folder}/openai', plain_params, 0),
        'hf': (f'hf:{folder}/hf', tuned_params, 3),
        'workdir': (f'{folder}/workdir', tuned_params, 3),
    }


@pytest.mark.parametrize(
    ('form', 'n_special', 'strategy', 'devices'),
    [
        ('openai', 0, 'fsdp+tp', 8),
        ('openai', 3, 'fsdp+tp', 8),
        ('hf', 0, 'fsdp+tp', 8),
        ('hf', 0, 'dp', 2),  # which divide the rows of the new table, not those of the old one
        ('hf', 3, 'fsdp+tp', 8),
        ('workdir', 3, 'fsdp+tp', 8),
    ],
)
def test_which_rows_and_layers_are_taken_over(uris, form, n_special, strategy, devices):
    uri, given, source_special = uris[form]
    saved, partitioner = store.open_model(uri), Partitioner(strategy, devices=jax.devices()[:devices])
    head = HEADS[3] if n_special else None  # of pre-training, which has no special rows, and of fine-tuning
    if head:
        program = finetuning(
            finetune.get_config(), saved.architecture, VOCABULARY, head, 'classification', 1, partitioner
        )
    else:
        config = pretrain.get_config()
        config.model.update(saved.architecture.sizes)
        config.optimizer.warmup_steps = 0
        program = pretraining(config, VOCABULARY, 1, partitioner)
    _, fresh = make_model(np.random.default_rng(1), saved.tokenizer, n_special, head)
    placed = jax.device_put(fresh, jax.tree.map(lambda leaf: leaf.sharding, program.abstract.params))
    assert layers.loader(saved, program, -1) is None
    for n_layers in range(3):
        loaded = jax.device_get(layers.loader(saved, program, n_layers)(placed))
        assert loaded.keys() == fresh.keys()
        old, new, result = given['decoder'], fresh['decoder'], loaded['decoder']
        if head:
            assert_same_bits(loaded['head'], fresh['head'])  # never taken over
        assert_same_bits(result['table'][:VOCABULARY], old['table'][:VOCABULARY])
        assert_same_bits(result['table'][VOCABULARY + n_special :], old['table'][VOCABULARY + source_special :])
        special = old if source_special else new
        assert_same_bits(
            result['table'][VOCABULARY : VOCABULARY + n_special], special['table'][VOCABULARY : VOCABULARY + n_special]
        )
        for part, origin in ((slice(n_layers), old), (slice(n_layers, None), new)):
            assert_same_bits(*(jax.tree.map(lambda leaf: leaf[part], tree['blocks']) for tree in (result, origin)))


@pytest.mark.parametrize('n_layers', [0, 1, 2])
@pytest.mark.parametrize('strategy', ['dp', 'fsdp+tp'])
def test_without_a_rest_the_model_is_one_of_n_layers(tmp_path, n_layers, strategy):
    """Its parameters are the source's first n layers, its states those of the NumPy reference with these alone."""
    tokenizer = released_tokenizer(epath.Path(tmp_path / 'vocabulary'), VOCABULARY)
    given = random_params(sizes=SIZES | dict(vocab=VOCABULARY, mlp=64))
    saved, _ = make_model(np.random.default_rng(0), tokenizer, 3, HEADS[1])
    write_workdir(make(tmp_path / 'source'), saved, from_reference(given) | {'head': _zeros_head()})
    saved, partitioner = store.open_model(f'{tmp_path}/source'), Partitioner(strategy)
    architecture = layers.architecture(saved, n_layers, 'absent')
    assert architecture == Architecture('transformer', {**saved.architecture.sizes, 'layers': n_layers})
    program = finetuning(finetune.get_config(), architecture, VOCABULARY, HEADS[1], 'classification', 1, partitioner)
    fresh = program.create_state(0).params
    head = jax.device_get(fresh['head'])
    params = layers.loader(saved, program, n_layers)(fresh)
    expected = {'table': from_reference(given)['decoder']['table']}
    if n_layers:
        expected |= from_reference(given | {'layers': given['layers'][:n_layers]})['decoder']
    assert_same_bits(jax.device_get(params), {'decoder': expected, 'head': head})
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (8, 16))
    hidden = partitioner.jit(program.classifier.read)(params, tokens).hidden
    shorter = given | {'layers': given['layers'][:n_layers]}
    states = np.stack([reference.forward(shorter, row, SIZES['heads'], n_positions=16) for row in tokens])
    np.testing.assert_allclose(hidden, states, rtol=1e-4, atol=1e-5)


def _zeros_head():
    return {'kernel': np.zeros((16, 3), np.float32), 'bias': np.zeros(3, np.float32)}


def test_which_numbers_of_layers_are_possible(uris):
    saved = store.open_model(uris['workdir'][0])
    assert [layers.number(n, saved) for n in (None, -1, 0, 2)] == [2, -1, 0, 2]
    for n in (-2, 3):
        with pytest.raises(UserError, match=rf'^n_transfer: {n} layers cannot .* from \S*workdir. .* to 2 .all layers'):
            layers.number(n, saved)
    assert layers.architecture(saved, 1, 'fresh') == layers.architecture(saved, -1, 'fresh') == saved.architecture
    with pytest.raises(UserError, match='^n_transfer: With -1 nothing .* leaves nothing in its place. Set'):
        layers.architecture(saved, -1, 'absent')
    sizes = dict(layers=1, width=16, units=24, n_positions=16)
    lstm = saved._replace(architecture=Architecture('lstm', sizes))
    assert layers.architecture(lstm, 1, 'absent') == layers.architecture(lstm, 0, 'fresh') == lstm.architecture
    with pytest.raises(UserError, match='^n_transfer: A model of kind lstm cannot have 0 layers'):
        layers.architecture(lstm, 0, 'absent')


@pytest.mark.parametrize('form', ['openai', 'hf', 'workdir'])
@pytest.mark.parametrize('strategy', ['dp', 'tp', 'fsdp+tp'])
def test_parameters_arrive_on_any_mesh(uris, form, strategy):
    uri, given, _ = uris[form]
    # Four heads: tensor axes of at most four.
    partitioner = Partitioner(strategy, (2, 1, 4) if strategy == 'tp' else ())
    _, classifier, params = load(uri, partitioner)
    assert_same_bits(jax.device_get(params), given)
    assert (classifier.head is None) == ('head' not in given)
    kernel = params['decoder']['blocks']['mlp']['in']['kernel']
    assert kernel.addressable_shards[0].data.size * {'dp': 1, 'tp': 4, 'fsdp+tp': 8}[strategy] == kernel.size
