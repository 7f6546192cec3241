"""Taking over parameters: which rows and layers, from every form of a saved model, onto any mesh."""

import jax
import numpy as np
import pytest
from etils import epath

from configs import finetune, pretrain
from gpt1_jax.saved_models import huggingface, layers, openai, store
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.program import finetuning, pretraining
from models import HEADS, assert_same_bits, load, make, make_model, released_tokenizer, write_workdir

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


@pytest.mark.parametrize(('form', 'n_special'), [('openai', 0), ('openai', 3), ('hf', 0), ('hf', 3), ('workdir', 3)])
def test_which_rows_and_layers_are_taken_over(uris, form, n_special):
    uri, given, source_special = uris[form]
    saved, partitioner = store.open_model(uri), Partitioner('fsdp+tp')
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
