"""The model card: the class to load, the sizes, and what transformers does not express, for every head."""

import re

import numpy as np
import pytest

from gpt1_jax.saved_models.model_card import model_card
from models import HEADS, make_model

INPUTS = {  # what is put before each of the input's parts, and at its end
    'classification': ['`_start_` text `_classify_`'],
    'entailment': ['`_start_` premise `_delimiter_` hypothesis `_classify_`'],
    'similarity': ['`_start_` a `_delimiter_` b `_classify_`', '`_start_` b `_delimiter_` a `_classify_`'],
    'multiple_choice': ['`_start_` context `_delimiter_` answer `_classify_`'],
}


@pytest.mark.parametrize('released', [False, True])
@pytest.mark.parametrize('head', HEADS)
def test_what_a_card_says(sentencepiece, head, released):
    saved, params = make_model(np.random.default_rng(0), sentencepiece, 3 if head else 0, head)
    exported = head and ('multiple_choice' if head.kind == 'multiple_choice' else 'score')
    bias = np.arange(head.classes) / 3 if head else None
    card = model_card(saved, 'TheClass', exported, released, bias)
    assert card.startswith('---\nlibrary_name: transformers\n')
    assert '2 layers, 16 wide, 4 heads, 16 positions, 290 tokens' in card
    code = card.split('```')[1]
    assert "model = TheClass.from_pretrained('.')" in code and released == ('OpenAIGPTTokenizer' in code)
    assert released != ('`sentencepiece/tokenizer.model`' in card)
    assert ('rows 290 `_start_`, 291 `_delimiter_` and 292 `_classify_`' in card) == (head is not None)
    assert re.findall('`_start_` [^.,]*?`_classify_`', card) == (INPUTS[head.kind] if head else [])
    values = re.findall(r'Add \[(.*)\] to the logits', card)
    if exported == 'score':
        np.testing.assert_allclose([float(value) for value in values[0].split(', ')], bias, rtol=1e-8)
    else:
        assert not values
