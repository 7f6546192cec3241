"""Hugging Face checkpoints: transformers' numbers, what it reads, and every way in which they can be wrong.

Whole folders as its classes save them are in test_tensor_files.py.
"""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from etils import epath

from gpt1_jax.errors import UserError
from gpt1_jax.model.classifier import ClassifierHead
from gpt1_jax.saved_models import huggingface, store
from models import (
    HEADS,
    assert_close_to_largest,
    assert_same_bits,
    golden_weights,
    hidden_of,
    make,
    make_model,
    read,
    refuses,
    released_tokenizer,
    write_checkpoint,
)


@pytest.mark.parametrize('prefix', ['', 'transformer.'])
def test_logits_equal_those_of_transformers(tmp_path, golden, prefix):
    tensors = {
        prefix + name: array
        for name, array in golden_weights(golden).items()
        if not name.startswith(('score', 'multiple'))
    }
    tensors |= {
        'lm_head.weight': tensors[f'{prefix}tokens_embed.weight'],  # as older versions wrote
        f'{prefix}h.0.attn.bias': np.tril(np.ones((1, 1, 16, 16), np.uint8)),
        f'{prefix}position_ids': np.arange(16),
    }
    saved, classifier, params, hidden = hidden_of(write_checkpoint(tmp_path, tensors), golden['tokens'].reshape(-1, 12))
    assert saved.head is None and saved.n_special == 0
    assert_close_to_largest(hidden @ params['decoder']['table'][:50].T, golden['logits'])


def test_head_logits_equal_those_of_transformers(tmp_path, golden):
    """Of 50 rows the last three are special where the vocabulary has 47 tokens."""
    tensors, tokens = golden_weights(golden), golden['tokens'].reshape(-1, 12)
    scores = {name: array for name, array in tensors.items() if not name.startswith('multiple')}
    saved, classifier, params, hidden = hidden_of(write_checkpoint(tmp_path / 'scores', scores, 47), tokens)
    assert saved.n_special == 3 and saved.head == ClassifierHead('classification', 3)
    assert_close_to_largest(classifier.classify(params, hidden[:, -1:]), golden['class_logits'])
    choices = {name: array for name, array in tensors.items() if not name.startswith('score')}
    saved, classifier, params, hidden = hidden_of(write_checkpoint(tmp_path / 'choices', choices, 47), tokens)
    assert saved.head == ClassifierHead('multiple_choice', 1)
    states = hidden[:, -1].reshape(2, 2, 16)
    assert_close_to_largest(classifier.classify(params, states), golden['choice_logits'])


def test_a_head_without_special_rows_is_of_no_use(tmp_path, golden, caplog):
    uri = write_checkpoint(
        tmp_path, {name: array for name, array in golden_weights(golden).items() if not name.startswith('score')}
    )
    assert store.open_model(uri).head is None
    assert 'The head multiple_choice_head.summary.weight is left out' in caplog.text


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_half_precision_becomes_float32(tmp_path, golden, dtype):
    tensors = {
        name: array.astype(dtype)
        for name, array in golden_weights(golden).items()
        if not name.startswith(('score', 'multiple'))
    }
    table = read(write_checkpoint(tmp_path, tensors))[1]['decoder']['table']
    expected = np.concatenate([tensors['tokens_embed.weight'], tensors['positions_embed.weight']]).astype(np.float32)
    assert_same_bits(table, expected)


@pytest.fixture(params=['released', 'sentencepiece'])
def tokenizer(request, tmp_path, sentencepiece):
    return sentencepiece if request.param == 'sentencepiece' else released_tokenizer(epath.Path(tmp_path / 'v'), 60)


@pytest.mark.parametrize(
    ('head', 'model_class', 'words'),
    [
        (HEADS[0], 'OpenAIGPTLMHeadModel', []),
        (HEADS[2], 'OpenAIGPTForSequenceClassification', ['`score.bias`', 'hypothesis']),
        (HEADS[3], 'OpenAIGPTForSequenceClassification', ['`score.bias`', 'Both orders']),
        (HEADS[4], 'OpenAIGPTDoubleHeadsModel', ['mc_logits']),
    ],
)
def test_what_transformers_reads(tmp_path, tokenizer, head, model_class, words):
    """Names and keys as transformers 5 loads them; what it does not express is in the card."""
    saved, params = make_model(np.random.default_rng(0), tokenizer, 3 if head else 0, head)
    folder = make(tmp_path / 'hf')
    huggingface.write_folder(folder, saved, params)
    config = json.loads((folder / 'config.json').read_text())
    rows = saved.vocab_size + saved.n_special
    expected = dict(
        model_type='openai-gpt',
        architectures=[model_class],
        vocab_size=rows,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=4,
        afn='gelu',
        layer_norm_epsilon=1e-5,
        initializer_range=0.02,
        tie_word_embeddings=True,
        **dict.fromkeys(('embd_pdrop', 'attn_pdrop', 'resid_pdrop'), 0.1),  # paper, section 4.1
    )
    assert config | expected == config
    tensors = safetensors.numpy.load_file(folder / 'model.safetensors')
    assert tensors['transformer.tokens_embed.weight'].shape == (rows, 16)
    card = (folder / 'README.md').read_text()
    assert all(word in card for word in [model_class, 'Embedding dropout', 'Position rows', *words])
    if head and head.kind == 'multiple_choice':
        np.testing.assert_array_equal(tensors['multiple_choice_head.summary.weight'], params['head']['kernel'].T)
        np.testing.assert_array_equal(tensors['multiple_choice_head.summary.bias'], params['head']['bias'])
    elif head:
        np.testing.assert_array_equal(tensors['score.weight'], params['head']['kernel'].T)
        assert len(config['id2label']) == head.classes and config['pad_token_id'] == 0
        assert {str(i): label for label, i in config['label2id'].items()} == config['id2label']
    if saved.vocab_size == 60:
        assert {'vocab.json', 'merges.txt'} < {path.name for path in folder.iterdir()}
        added = json.loads((folder / 'tokenizer_config.json').read_text())['added_tokens_decoder']
        names = dict(zip(('60', '61', '62'), huggingface.SPECIAL_TOKENS)) if head else {}
        alone = dict.fromkeys(('lstrip', 'rstrip', 'normalized', 'single_word'), False)  # no text beside it is changed
        assert added == {i: {'content': name, 'special': True, **alone} for i, name in names.items()}
    else:
        assert 'SentencePiece' in card and not (folder / 'tokenizer_config.json').exists()


def test_what_transformers_cannot_describe_is_refused(tmp_path, sentencepiece):
    saved, params = make_model(np.random.default_rng(0), sentencepiece, mlp_width=32)
    with pytest.raises(UserError, match='mlp_width 32'):
        huggingface.write_folder(make(tmp_path / 'hf'), saved, params)
    assert not list((tmp_path / 'hf').iterdir())


# What can be wrong


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(model_type='gpt2'), ["'gpt2'", 'openai-gpt']),
        (dict(afn='relu'), ['afn', "'relu'"]),
        (dict(layer_norm_epsilon=1e-6), ['layer_norm_epsilon']),
        (dict(tie_word_embeddings=False), ['tie_word_embeddings']),
        (dict(n_head=5), ['5 heads']),
        (dict(n_layer=0), ['n_layer']),
        (dict(n_embd='16'), ['n_embd']),
        (dict(vocab_size=51), ['vocabulary', '50', '51']),
        (dict(vocab_size=53), ['tokens_embed.weight', '[50, 16]', '[53, 16]']),
        (dict(n_layer=3), ['lacks', 'h.2.attn.c_attn.weight', 'and 9 more']),
        (dict(n_layer=1), ['h.1.attn.c_attn.bias', 'does not have']),
        (dict(n_positions=8), ['positions_embed.weight', '[8, 16]']),
    ],
)
def test_wrong_configs_are_named(tmp_path, golden, change, words):
    tensors = {
        name: array for name, array in golden_weights(golden).items() if not name.startswith(('score', 'multiple'))
    }
    store.open_model(write_checkpoint(tmp_path, tensors))
    refuses(write_checkpoint(tmp_path, tensors, **change), *words)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda t: t.pop('h.1.ln_2.bias'), ['lacks arrays: h.1.ln_2.bias']),
        (lambda t: t.update({'adapter.weight': np.zeros(3, np.float32)}), ['adapter.weight', 'does not have']),
        (lambda t: t.update({'h.0.ln_1.bias': np.zeros(3, np.float32)}), ['h.0.ln_1.bias', '[3]', '[16]']),
        (lambda t: t.update({'h.0.ln_1.bias': np.zeros(16, np.int8)}), ['h.0.ln_1.bias', 'I8']),
        (lambda t: t.update({'transformer.h.0.ln_1.bias': np.zeros(16, np.float32)}), ['both', 'h.0.ln_1.bias']),
        (lambda t: t.update({'lm_head.weight': t['tokens_embed.weight'] + 1}), ['lm_head.weight', 'tied']),
    ],
)
def test_wrong_tensors_are_named(tmp_path, golden, change, words):
    tensors = {
        name: array for name, array in golden_weights(golden).items() if not name.startswith(('score', 'multiple'))
    }
    change(tensors)
    refuses(write_checkpoint(tmp_path, tensors), *words)
