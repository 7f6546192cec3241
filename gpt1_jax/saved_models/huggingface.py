"""Hugging Face folders: `config.json`, the files of weights (tensor_files.py), `vocab.json`, `merges.txt`.

Heads: `score.weight` of OpenAIGPTForSequenceClassification, or `multiple_choice_head.summary` of
OpenAIGPTDoubleHeadsModel. The former has no bias in transformers; we store it as `score.bias`, which only we read.
"""

import functools

import numpy as np
import safetensors.numpy
from absl import logging
from etils import epath

from gpt1_jax.config import MOST_SIZE
from gpt1_jax.data.tokenizers import N_SPECIAL
from gpt1_jax.data.tokenizers.openai_bpe import HUGGING_FACE_NAMES
from gpt1_jax.errors import UserError
from gpt1_jax.files import read_json, write_atomically, write_json
from gpt1_jax.model.architecture import Architecture
from gpt1_jax.model.classifier import ClassifierHead
from gpt1_jax.saved_models import parameters
from gpt1_jax.saved_models.model_card import model_card
from gpt1_jax.saved_models.tensor_files import MASKS, open_tensors

SPECIAL_TOKENS = ('_start_', '_delimiter_', '_classify_')  # names of the release, in the order of their rows
# Defaults of transformers' OpenAIGPTConfig.
_SIZES = dict(vocab_size=40478, n_positions=512, n_embd=768, n_layer=12, n_head=12)
_FIXED = dict(afn='gelu', layer_norm_epsilon=1e-5, tie_word_embeddings=True)
_SCORE = {'score.weight': 'head.weight', 'score.bias': 'head.bias'}
_CHOICE = {f'multiple_choice_head.summary.{part}': f'head.{part}' for part in ('weight', 'bias')}


def open_folder(directory: epath.Path) -> parameters.SavedModel:
    """Opens a folder that transformers or `write_folder` wrote.

    Raises UserError for a missing or damaged file, another architecture, missing or extra names, shapes that
    contradict config.json, or a vocabulary of another size.
    """
    config = read_config(directory)
    tokenizer = parameters.open_tokenizer(directory)
    rows, width = config['vocab_size'], config['n_embd']
    sizes = dict(
        layers=config['n_layer'],
        width=width,
        heads=config['n_head'],
        mlp_width=4 * width,
        n_positions=config['n_positions'],
    )
    parameters.check_heads(directory, sizes)
    n_special = rows - tokenizer.vocab_size
    if n_special not in (0, N_SPECIAL):
        raise UserError(
            f'{directory}: The vocabulary has {tokenizer.vocab_size:,} tokens, but config.json has '
            f'vocab_size {rows:,}. That must be the same, or {N_SPECIAL} more (start, delimiter, extract).'
        )
    tensors = open_tensors(directory)
    stored, lm_head = _stored_names(tensors)
    head, shapes = None, parameters.parameter_shapes(sizes, rows)
    if 'head.weight' in stored and n_special:
        head = _head(config, tensors, stored['head.weight'])
        shapes |= {'head.weight': (head.classes, width), 'head.bias': (head.classes,)}
    elif 'head.weight' in stored:  # useless here, because it was trained without start and extract tokens
        logging.warning(
            '%s: The head %s is left out: it was trained without start and extract tokens, which the vocabulary lacks.',
            tensors.path,
            stored['head.weight'],
        )
        stored = {name: there for name, there in stored.items() if not name.startswith('head.')}
    _check_names(tensors.path, stored, shapes)
    _check_shapes(tensors, stored, shapes)
    if lm_head:
        _check_tied(tensors, lm_head, stored['tokens_embed.weight'])

    def get(name):  # only 'head.bias' may be absent
        return tensors.get(stored[name]) if name in stored else np.zeros((), np.float32)

    return parameters.SavedModel(
        directory,
        Architecture('transformer', sizes),
        tokenizer.vocab_size,
        n_special,
        head,
        tokenizer,
        read=functools.partial(parameters.read_parameters, directory, get),
        labels=head and _labels(config, head.classes),
    )


def write_folder(directory: epath.Path, saved: parameters.SavedModel, params: dict) -> None:
    """Writes a folder that transformers' `from_pretrained` loads, and a model card that says what it does not express.

    params: NumPy, {'decoder', 'head' if there is one}. Raises UserError if OpenAIGPTConfig cannot describe the model,
    or the disk is full.
    """
    check_expressible(saved)
    head = saved.head and ('multiple_choice' if saved.head.kind == 'multiple_choice' else 'score')
    model_class = {
        None: 'OpenAIGPTLMHeadModel',
        'score': 'OpenAIGPTForSequenceClassification',
        'multiple_choice': 'OpenAIGPTDoubleHeadsModel',
    }[head]
    head_names = {ours: theirs for theirs, ours in (_CHOICE if head == 'multiple_choice' else _SCORE).items()}
    named = parameters.name_parameters(params, saved.architecture.sizes)
    tensors = {head_names.get(name) or f'transformer.{name}': array for name, array in named.items()}
    data = safetensors.numpy.save(tensors, metadata={'format': 'pt'})
    write_atomically(directory / 'model.safetensors', [data])
    released = parameters.save_tokenizer(saved.tokenizer, directory, HUGGING_FACE_NAMES)
    if released:
        write_json(directory / 'tokenizer_config.json', _tokenizer_config(saved, head))
    write_json(directory / 'config.json', _config(saved, model_class, head))
    card = model_card(saved, model_class, head, released, bias=named.get('head.bias'))
    write_atomically(directory / 'README.md', [card.encode()])


def check_expressible(saved: parameters.SavedModel) -> None:
    """Raises UserError if OpenAIGPTConfig cannot describe the model."""
    width, mlp_width = saved.architecture.sizes['width'], saved.architecture.sizes['mlp_width']
    if mlp_width != 4 * width:
        raise UserError(
            f'{saved.directory}: The model has mlp_width {mlp_width}, but transformers supports only '
            f'4 x width, {4 * width}. Convert it to a workdir or an openai: folder.'
        )
    if saved.n_special not in (0, N_SPECIAL):
        raise UserError(
            f'{saved.directory}: The model has {saved.n_special} special rows, but an hf: folder takes 0 '
            f'or {N_SPECIAL}. Convert it to a workdir or an openai: folder.'
        )


def read_config(directory: epath.Path) -> dict:
    """config.json with transformers' defaults. Raises UserError if it is missing, or does not describe a GPT-1."""
    path = directory / 'config.json'
    try:
        config = _SIZES | _FIXED | read_json(path, dict, 'Get it again.')
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{directory}: There is no config.json. Name a folder that transformers' from_pretrained loads, or "
            'OWNER/NAME on the Hugging Face hub.'
        ) from None
    if config.get('model_type') != 'openai-gpt':
        raise UserError(
            f'{path}: The model is of another architecture, model_type {config.get("model_type")!r}. Name '
            'a folder with model_type openai-gpt.'
        )
    for name in _SIZES:
        if type(config[name]) is not int or not 1 <= config[name] <= MOST_SIZE:
            raise UserError(
                f'{path}: The value {config[name]!r} of {name} is not valid. It must be from 1 to {MOST_SIZE:,}.'
            )
    if config['afn'] == 'gelu_new':  # the tanh form's name elsewhere in transformers; openai-gpt calls it 'gelu'
        config['afn'] = 'gelu'
    for name, value in _FIXED.items():
        if config[name] != value:
            raise UserError(
                f'{path}: The model is of another architecture, {name} {config[name]!r}. Name a folder '
                f'with {name} {value!r}.'
            )
    return config


def _stored_names(tensors):
    """({our name: name in the file}, the name of the output table in the file, or None)."""
    stored = {}
    for name in tensors.shapes:
        plain = name.removeprefix('transformer.')
        ours = _SCORE.get(plain) or _CHOICE.get(plain) or plain
        if ours in stored:
            raise UserError(f'{tensors.path}: The file has both {stored[ours]} and {name}. Delete one of them.')
        if not MASKS.fullmatch(plain):
            stored[ours] = name
    # Another name of the token table: transformers 5 saves OpenAIGPTDoubleHeadsModel with this name only, and pickles
    # have both.
    lm_head = stored.pop('lm_head.weight', None)
    if lm_head:
        stored.setdefault('tokens_embed.weight', lm_head)
    return stored, lm_head


def _head(config, tensors, name):
    """The head whose weight has this name in the file."""
    if name in _CHOICE:
        return ClassifierHead('multiple_choice', 1)
    return ClassifierHead(config.get('head_kind', 'classification'), next(iter(tensors.shapes[name]), 0))


def _check_names(path, stored, shapes):
    missing = [name for name in shapes if name not in stored and name != 'head.bias']
    extra = [there for name, there in stored.items() if name not in shapes]
    for names, fault in ((missing, 'lacks arrays'), (extra, 'has arrays that a GPT-1 of this size does not have')):
        if names:
            more = f' and {len(names) - 3} more' if len(names) > 3 else ''
            raise UserError(
                f'{path}: The file {fault}: {", ".join(names[:3])}{more}. Get it again, with its config.json.'
            )


def _check_shapes(tensors, stored, shapes):
    for name, shape in shapes.items():
        if name in stored and tensors.shapes[stored[name]] != shape:
            raise UserError(
                f'{tensors.path}: The shape of {stored[name]} is {list(tensors.shapes[stored[name]])}, but config.json '
                f'makes it {list(shape)}. Take both from the same model.'
            )


def _check_tied(tensors, lm_head, table):
    if lm_head != table and not np.array_equal(tensors.get(lm_head), tensors.get(table)):
        raise UserError(
            f'{tensors.path}: The arrays lm_head.weight and tokens_embed.weight differ, but GPT-1 has one table '
            'for both. Name a checkpoint with tied embeddings.'
        )


def _config(saved, model_class, head):
    sizes = saved.architecture.sizes
    config = dict(
        architectures=[model_class],
        model_type='openai-gpt',
        vocab_size=saved.vocab_size + saved.n_special,
        n_positions=sizes['n_positions'],
        n_embd=sizes['width'],
        n_layer=sizes['layers'],
        n_head=sizes['heads'],
        afn='gelu',
        layer_norm_epsilon=1e-5,
        initializer_range=0.02,
        embd_pdrop=0.1,
        attn_pdrop=0.1,
        resid_pdrop=0.1,
        tie_word_embeddings=True,
        dtype='float32',
    )
    if head == 'multiple_choice':
        config |= dict(
            summary_type='cls_index',
            summary_use_proj=True,
            summary_proj_to_labels=True,
            summary_activation=None,
            summary_first_dropout=0.1,
        )
    elif head:
        labels = saved.labels or [f'LABEL_{i}' for i in range(saved.head.classes)]
        # Any token may pad: every sequence ends with the extract token, and attention only looks back.
        config |= dict(
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
            pad_token_id=0,
            head_kind=saved.head.kind,
        )
    return config


def _labels(config, classes):
    """The labels that `_config` wrote; other programs' labels need not be those of a data set here, and are ignored."""
    names = config.get('id2label') if 'head_kind' in config else None
    labels = tuple(names.get(str(i)) for i in range(classes)) if isinstance(names, dict) else ()
    named = labels and all(isinstance(label, str) and not label.startswith('LABEL_') for label in labels)
    return labels if named else None


def _tokenizer_config(saved, head):
    added = SPECIAL_TOKENS if saved.n_special else ()
    flags = dict(lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
    return dict(
        tokenizer_class='OpenAIGPTTokenizer',
        unk_token='<unk>',
        model_max_length=saved.architecture.sizes['n_positions'],
        added_tokens_decoder={saved.vocab_size + i: {'content': token, **flags} for i, token in enumerate(added)},
        **(dict(pad_token='<unk>') if head == 'score' else {}),
    )
