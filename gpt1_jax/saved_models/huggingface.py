"""Hugging Face folders: `config.json`, `model.safetensors` or `pytorch_model.bin`, `vocab.json`, `merges.txt`.

Weights in several files have an index, `model.safetensors.index.json` or `pytorch_model.bin.index.json`, that says
which array is in which file.

Heads: `score.weight` of OpenAIGPTForSequenceClassification, or `multiple_choice_head.summary` of
OpenAIGPTDoubleHeadsModel. The former has no bias in transformers; we store it as `score.bias`, which only we read.
"""

import functools
import os
import re
import zipfile

import numpy as np
import safetensors.numpy
from absl import logging
from etils import epath

from gpt1_jax.config import MOST_SIZE
from gpt1_jax.data.tokenizers import N_SPECIAL
from gpt1_jax.data.tokenizers.openai_bpe import HUGGING_FACE_NAMES
from gpt1_jax.errors import UserError
from gpt1_jax.files import check_file, local_copy, patiently, read_json, write_atomically, write_json
from gpt1_jax.model.architecture import Architecture
from gpt1_jax.model.classifier import ClassifierHead
from gpt1_jax.saved_models import parameters
from gpt1_jax.saved_models.model_card import model_card

SPECIAL_TOKENS = ('_start_', '_delimiter_', '_classify_')  # names of the release, in the order of their rows
# Defaults of transformers' OpenAIGPTConfig.
_SIZES = dict(vocab_size=40478, n_positions=512, n_embd=768, n_layer=12, n_head=12)
_FIXED = dict(afn='gelu', layer_norm_epsilon=1e-5, tie_word_embeddings=True)
_SCORE = {'score.weight': 'head.weight', 'score.bias': 'head.bias'}
_CHOICE = {f'multiple_choice_head.summary.{part}': f'head.{part}' for part in ('weight', 'bias')}
_TYPES = {'F32', 'F16', 'BF16', 'torch.float32', 'torch.float16', 'torch.bfloat16'}  # of safetensors, of torch
_MASKS = re.compile(r'(h\.\d+\.attn\.bias|position_ids)$')  # constants in older checkpoints


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
    path, found, get_stored = _open_tensors(directory)
    stored = {}  # our name -> name in the file
    for name in found:
        plain = name.removeprefix('transformer.')
        ours = _SCORE.get(plain) or _CHOICE.get(plain) or plain
        if ours in stored:
            raise UserError(f'{path}: The file has both {stored[ours]} and {name}. Delete one of them.')
        if not _MASKS.fullmatch(plain):
            stored[ours] = name

    # Another name of the token table: transformers 5 saves OpenAIGPTDoubleHeadsModel with this name only, and pickles
    # have both.
    lm_head = stored.pop('lm_head.weight', None)
    if lm_head:
        stored.setdefault('tokens_embed.weight', lm_head)

    def get(name):  # only 'head.bias' may be absent
        return get_stored(stored[name]) if name in stored else np.zeros((), np.float32)

    head, shapes = None, parameters.parameter_shapes(sizes, rows)
    if 'head.weight' in stored and n_special:
        choices = stored['head.weight'] in _CHOICE
        classes = 1 if choices else next(iter(found[stored['head.weight']]), 0)
        head = ClassifierHead('multiple_choice' if choices else config.get('head_kind', 'classification'), classes)
        shapes |= {'head.weight': (classes, width), 'head.bias': (classes,)}
    elif 'head.weight' in stored:  # useless here, because it was trained without start and extract tokens
        logging.warning(
            '%s: The head %s is left out: it was trained without start and extract tokens, which the vocabulary lacks.',
            path,
            stored['head.weight'],
        )
        stored = {name: there for name, there in stored.items() if not name.startswith('head.')}
    _check_names(path, stored, shapes)
    for name, shape in shapes.items():
        if name in stored and found[stored[name]] != shape:
            raise UserError(
                f'{path}: The shape of {stored[name]} is {list(found[stored[name]])}, but config.json '
                f'makes it {list(shape)}. Take both from the same model.'
            )
    if lm_head not in (None, stored['tokens_embed.weight']) and not np.array_equal(
        get_stored(lm_head), get('tokens_embed.weight')
    ):
        raise UserError(
            f'{path}: The arrays lm_head.weight and tokens_embed.weight differ, but GPT-1 has one table '
            'for both. Name a checkpoint with tied embeddings.'
        )
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


def _open_tensors(directory):
    """(path, {name: shape}, name -> array) of the weights, from the file that transformers would choose too.

    path: of the only file, or of the index. Tensors are read on demand, except for pickles older than PyTorch 1.6.
    """
    for name, open_file in (('model.safetensors', _open_safetensors), ('pytorch_model.bin', _open_torch)):
        path, index = directory / name, directory / f'{name}.index.json'
        if path.exists():
            check_file(path)
            return path, *open_file(path)
        if index.exists():
            return index, *_open_listed(index, open_file)
    raise UserError(
        f'{directory}: There is neither model.safetensors nor pytorch_model.bin, nor an .index.json of '
        'either for several files. Get one of these.'
    )


def _open_listed(index, open_file):
    """({name: shape}, name -> array) of all files that an index lists, {'weight_map': {name: file}}."""
    files = read_json(index, {'weight_map': {str: str}}, 'Get it again.')['weight_map']
    elsewhere = sorted(file for file in set(files.values()) if os.path.dirname(file))
    if elsewhere:
        raise UserError(
            f'{index}: It names {elsewhere[0]!r}, which is not in the same folder. Move that file there, '
            'and write only its name into the index.'
        )
    opened = {}
    for file in sorted(set(files.values())):
        path = index.parent / file
        if not path.is_file():
            raise UserError(f'{path}: The file is missing, but {index.name} names it. Get it again.')
        opened[file] = open_file(path)
    for name, file in files.items():
        if name not in opened[file][0]:
            raise UserError(
                f'{index.parent / file}: The file lacks {name}, which it has according to {index.name}. Get both again.'
            )
    return {name: opened[file][0][name] for name, file in files.items()}, lambda name: opened[files[name]][1](name)


def _open_safetensors(path):
    patiently(lambda: path.open('rb').close())  # without permission, the library would say that there is no such file
    with local_copy(path) as copy:
        try:
            file = safetensors.safe_open(copy, framework='numpy')
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f'{path}: The file is damaged or truncated ({error}). Get it again.') from error
    slices = {name: file.get_slice(name) for name in file.keys()}
    _check_types(path, {name: tensor.get_dtype() for name, tensor in slices.items()})
    return {name: tuple(tensor.get_shape()) for name, tensor in slices.items()}, file.get_tensor


def _open_torch(path):
    try:
        import torch
    except ImportError:
        raise UserError(
            f'{path}: The file is a pickle, which needs the weights-only reader of PyTorch, but that is '
            'not installed. Get model.safetensors instead, or install torch.'
        ) from None
    if tuple(map(int, re.findall(r'\d+', torch.__version__)[:2])) < (2, 6):
        raise UserError(
            f'{path}: The file is a pickle, which can run code in PyTorch {torch.__version__} (CVE-2025-32434). '
            'Install torch 2.6 or newer, or get model.safetensors instead.'
        )
    with local_copy(path) as copy:
        try:
            # Pickles older than PyTorch 1.6 are not zip files, and cannot be mapped.
            tensors = torch.load(copy, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(copy))
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            types = {name: str(tensor.dtype) for name, tensor in tensors.items()}
        except Exception as error:  # of many types, for the many ways in which a file is not a dict of tensors
            raise UserError(
                f'{path}: The file is damaged, or not a dict of tensors ({type(error).__name__}). Get it '
                'again, or get model.safetensors instead.'
            ) from error
    _check_types(path, types)
    return shapes, lambda name: tensors[name].detach().float().numpy()


def _check_types(path, types):
    for name, kind in types.items():
        if kind not in _TYPES and not _MASKS.search(name):
            raise UserError(
                f'{path}: The type {kind} of {name} is not supported. Save it as float32, float16 or bfloat16.'
            )


def _check_names(path, stored, shapes):
    missing = [name for name in shapes if name not in stored and name != 'head.bias']
    extra = [there for name, there in stored.items() if name not in shapes]
    for names, fault in ((missing, 'lacks arrays'), (extra, 'has arrays that a GPT-1 of this size does not have')):
        if names:
            more = f' and {len(names) - 3} more' if len(names) > 3 else ''
            raise UserError(
                f'{path}: The file {fault}: {", ".join(names[:3])}{more}. Get it again, with its config.json.'
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
