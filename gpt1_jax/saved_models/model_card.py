"""The model card of an exported folder: how to load it, and what transformers does not express."""

import numpy as np

from gpt1_jax.saved_models.parameters import SavedModel


def model_card(saved: SavedModel, model_class: str, head: str | None, released: bool, bias: np.ndarray | None) -> str:
    """README.md of an hf: folder.

    Args:
      model_class: of transformers.
      head: None, 'score' or 'multiple_choice'.
      released: whether the vocabulary is of the release's kind.
      bias: of the head, [classes], or None.
    """
    a = saved.architecture.sizes
    loading = [f'from transformers import {model_class}', f"model = {model_class}.from_pretrained('.')"]
    if released:
        loading = [
            f'from transformers import {model_class}, OpenAIGPTTokenizer',
            loading[1],
            "tokenizer = OpenAIGPTTokenizer.from_pretrained('.')",
        ]
    lines = [
        '---',
        'library_name: transformers',
        'tags: [gpt1_jax, openai-gpt]',
        '---',
        '',
        '# A GPT-1 decoder',
        '',
        f'{a["layers"]} layers, {a["width"]} wide, {a["heads"]} heads, {a["n_positions"]} positions, '
        f'{saved.vocab_size:,} tokens. Trained or converted with gpt1_jax, after Radford et al. (2018), "Improving '
        'Language Understanding by Generative Pre-Training".',
        '',
        '```python',
        *loading,
        '```',
        '',
        '## What transformers does not express',
        '',
        *(f'- {item}' for item in _differences(saved, head, released, bias)),
        '',
    ]
    return '\n'.join(lines)


def _differences(saved, head, released, bias):
    yield (
        'Embedding dropout: in training, gpt1_jax (like the release) by default drops elements of the embedding '
        'table, once for look-up and softmax; transformers drops elements of the sum of token and position row.'
    )
    yield (
        'Position rows: in training, gpt1_jax (like the release) by default has the rows of the positions in the '
        "softmax's denominator; transformers leaves them out. The logits of tokens are the same."
    )
    if released:
        yield (
            'Text: transformers does not split words as the release does (ftfy, then spaCy), so many texts get '
            'other ids. Encode with gpt1_jax if exact ids matter.'
        )
    else:
        yield (
            'Vocabulary: it is a SentencePiece model, `sentencepiece/tokenizer.model`, for which transformers has '
            'no tokenizer class with this architecture. Encode each line with the `sentencepiece` package, put the '
            "piece '<nl>' between lines, and give the model the ids."
        )
    if saved.n_special:
        first = saved.vocab_size
        yield (
            f'Special tokens: rows {first} `_start_`, {first + 1} `_delimiter_` and {first + 2} `_classify_` of the '
            'embeddings; neither the model nor the tokenizer adds them to a text. Never sample them.'
        )
    if head:
        yield {
            'classification': 'Input of the head: `_start_` text `_classify_`.',
            'entailment': 'Input of the head: `_start_` premise `_delimiter_` hypothesis `_classify_`.',
            'similarity': 'Both orders: `_start_` a `_delimiter_` b `_classify_` and `_start_` b `_delimiter_` a '
            '`_classify_` each give logits; add them (the bias once).',
            'multiple_choice': 'Input of the head, for each choice: `_start_` context `_delimiter_` answer '
            '`_classify_`; the score is `mc_logits`.',
        }[saved.head.kind]
    if head == 'score':
        values = ', '.join(f'{value:.9g}' for value in bias)
        yield (
            f'Bias of the head: the class has none and warns that `score.bias` is unexpected. Add [{values}] to the '
            'logits.'
        )
