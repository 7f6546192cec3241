"""Parameters under the names of other programs: there and back, bit for bit, at random sizes."""

import numpy as np
import pytest
from etils import epath

from gpt1_jax.saved_models import huggingface, openai
from models import HEADS, assert_same_bits, assert_same_model, make, make_model, read, released_tokenizer


@pytest.mark.parametrize('seed', range(10))
def test_export_then_import_is_the_identity(tmp_path, sentencepiece, seed):
    rng = np.random.default_rng(seed)
    heads, head_dim = (int(n) for n in rng.integers(1, 5, 2))
    width = heads * head_dim
    sizes = dict(layers=int(rng.integers(1, 4)), width=width, heads=heads, n_positions=int(rng.integers(1, 20)))
    released = released_tokenizer(epath.Path(tmp_path / 'vocabulary'), int(rng.integers(43, 200)))
    tokenizer = (released, sentencepiece)[seed % 2]

    head = HEADS[seed // 2]
    saved, params = make_model(rng, tokenizer, 3 if head else 0, head, mlp_width=4 * width, **sizes)
    huggingface.write_folder(make(tmp_path / 'hf'), saved, params)
    again, back = read(f'hf:{tmp_path / "hf"}')
    assert_same_bits(back, params)
    assert_same_model(again, saved)

    saved, params = make_model(rng, tokenizer, mlp_width=int(rng.integers(1, 40)), **sizes)
    openai.write_folder(make(tmp_path / 'openai'), saved, params)
    again, back = read(f'openai:{tmp_path / "openai"}')
    assert_same_bits(back, params)
    assert_same_model(again, saved)
