"""Hugging Face folders: `config.json`, `model.safetensors` or `pytorch_model.bin`, `vocab.json`, `merges.txt`.

Weights in several files have an index, `model.safetensors.index.json` or `pytorch_model.bin.index.json`, that says
which array is in which file.

Heads: `score.weight` of OpenAIGPTForSequenceClassification, or `multiple_choice_head.summary` of
OpenAIGPTDoubleHeadsModel. The former has no bias there: ours is kept as `score.bias`, which only this program reads.
"""

import functools
import json
import os
import re
import zipfile

import numpy as np
import safetensors.numpy
from etils import epath

from gpt1_jax import weights
from gpt1_jax.data.bpe import HUGGING_FACE_NAMES
from gpt1_jax.data.files import write_atomically
from gpt1_jax.data.tokenizers import N_SPECIAL
from gpt1_jax.errors import UserError
from gpt1_jax.weights.card import model_card

SPECIAL_TOKENS = ('_start_', '_delimiter_', '_classify_')  # names of the release, in the order of their rows
# Defaults of transformers' OpenAIGPTConfig.
_SIZES = dict(vocab_size=40478, n_positions=512, n_embd=768, n_layer=12, n_head=12)
_FIXED = dict(afn='gelu', layer_norm_epsilon=1e-5, tie_word_embeddings=True)
_SCORE = {'score.weight': 'head.weight', 'score.bias': 'head.bias'}
_CHOICE = {f'multiple_choice_head.summary.{part}': f'head.{part}' for part in ('weight', 'bias')}
_TYPES = {'F32', 'F16', 'BF16', 'torch.float32', 'torch.float16', 'torch.bfloat16'}  # names of safetensors, of torch
_MASKS = re.compile(r'(h\.\d+\.attn\.bias|position_ids)$')  # constants that older checkpoints hold


def open_folder(directory: epath.Path) -> weights.Source:
    """Opens a folder that transformers or `write_folder` wrote.

    Raises UserError: a missing or damaged file, another architecture, missing or extra names, other shapes than
    config.json says, a vocabulary of another size.
    """
    config = _read_config(directory)
    tokenizer = weights.open_tokenizer(directory)
    rows, width = config['vocab_size'], config['n_embd']
    architecture = dict(layers=config['n_layer'], width=width, heads=config['n_head'], mlp_width=4 * width,
                        n_positions=config['n_positions'])
    weights.check_heads(directory, architecture)
    n_special = rows - tokenizer.vocab_size
    if n_special not in (0, N_SPECIAL):
        raise UserError(f'the vocabulary in {directory} has {tokenizer.vocab_size:,} tokens where config.json has '
                        f'vocab_size {rows:,}: that must be as many, or {N_SPECIAL} more (start, delimiter, extract)')
    path, found, get_stored = _open_tensors(directory)
    stored = {}  # our name -> name in the file
    for name in found:
        plain = name.removeprefix('transformer.')
        ours = _SCORE.get(plain) or _CHOICE.get(plain) or plain
        if ours in stored:
            raise UserError(f'{path} has both {stored[ours]} and {name}, and a model has one of them: delete the other')
        if not _MASKS.fullmatch(plain):
            stored[ours] = name

    # The same array as the token table: transformers 5 saves OpenAIGPTDoubleHeadsModel with this name only, pickles
    # have both.
    lm_head = stored.pop('lm_head.weight', None)
    if lm_head:
        stored.setdefault('tokens_embed.weight', lm_head)

    def get(name):
        return get_stored(stored[name]) if name in stored else np.zeros((), np.float32)  # 'head.bias' alone may lack

    head, shapes = None, weights.parameter_shapes(architecture, rows)
    if 'head.weight' in stored and n_special:
        choices = stored['head.weight'] in _CHOICE
        classes = 1 if choices else next(iter(found[stored['head.weight']]), 0)
        head = {'kind': 'multiple_choice' if choices else config.get('head_kind', 'classification'), 'classes': classes}
        shapes |= {'head.weight': (classes, width), 'head.bias': (classes,)}
    elif 'head.weight' in stored:  # trained without start and extract tokens: of no use here
        stored = {name: there for name, there in stored.items() if not name.startswith('head.')}
    _check_names(path, stored, shapes)
    for name, shape in shapes.items():
        if name in stored and found[stored[name]] != shape:
            raise UserError(f'{path}: {stored[name]} is {list(found[stored[name]])}, and config.json makes it '
                            f'{list(shape)}: take both from one place')
    if lm_head not in (None, stored['tokens_embed.weight']) and not np.array_equal(
            get_stored(lm_head), get('tokens_embed.weight')):
        raise UserError(f'{path}: lm_head.weight differs from tokens_embed.weight, and GPT-1 has one table for both: '
                        'name a checkpoint whose embeddings are tied')
    return weights.Source(directory, architecture, tokenizer.vocab_size, n_special, head, tokenizer,
                          read=functools.partial(weights.read_parameters, get))


def write_folder(directory: epath.Path, source: weights.Source, params: dict) -> None:
    """Writes what transformers' `from_pretrained` loads, and a model card that says what it does not express.

    Args:
        source: describes the model. params: NumPy, {'decoder', 'head' where there is one}.
    Raises:
        UserError: a model that OpenAIGPTConfig cannot describe; a disk that is full.
    """
    check_expressible(source)
    head = source.head and ('multiple_choice' if source.head['kind'] == 'multiple_choice' else 'score')
    model_class = {None: 'OpenAIGPTLMHeadModel', 'score': 'OpenAIGPTForSequenceClassification',
                   'multiple_choice': 'OpenAIGPTDoubleHeadsModel'}[head]
    head_names = {ours: theirs for theirs, ours in (_CHOICE if head == 'multiple_choice' else _SCORE).items()}
    named = weights.name_parameters(params, source.architecture)
    tensors = {head_names.get(name) or f'transformer.{name}': array for name, array in named.items()}
    data = safetensors.numpy.save(tensors, metadata={'format': 'pt'})
    write_atomically(directory / 'model.safetensors', [data])
    released = weights.save_tokenizer(source.tokenizer, directory, HUGGING_FACE_NAMES)
    if released:
        _write_json(directory / 'tokenizer_config.json', _tokenizer_config(source, head))
    _write_json(directory / 'config.json', _config(source, model_class, head))
    card = model_card(source, model_class, head, released, bias=named.get('head.bias'))
    write_atomically(directory / 'README.md', [card.encode()])


def check_expressible(source: weights.Source) -> None:
    """Raises UserError for a model that OpenAIGPTConfig cannot describe."""
    width, mlp_width = source.architecture['width'], source.architecture['mlp_width']
    if mlp_width != 4 * width:
        raise UserError(f'{source.directory} has mlp_width {mlp_width}, and transformers knows only 4 x width, '
                        f'{4 * width}: it cannot become an hf: folder')
    if source.n_special not in (0, N_SPECIAL):
        raise UserError(f'{source.directory} has {source.n_special} special rows: an hf: folder takes 0 or {N_SPECIAL}')


def _read_config(directory):
    path = directory / 'config.json'
    try:
        config = _SIZES | _FIXED | json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f'{directory} has no config.json: name a folder that from_pretrained of transformers '
                        'loads') from None
    except (ValueError, TypeError) as error:
        raise UserError(f'{path} is damaged ({error}): get it again') from error
    if config.get('model_type') != 'openai-gpt':
        raise UserError(f'{path} is of another architecture, model_type {config.get("model_type")!r}: only openai-gpt '
                        'can be read')
    for name in _SIZES:
        if type(config[name]) is not int or config[name] < 1:
            raise UserError(f'{path}: {name} is {config[name]!r}, and must be a positive whole number')
    if config['afn'] == 'gelu_new':  # the tanh form's name elsewhere in transformers; openai-gpt calls it 'gelu'
        config['afn'] = 'gelu'
    for name, value in _FIXED.items():
        if config[name] != value:
            raise UserError(f'{path} is of another architecture: {name} is {config[name]!r}, GPT-1 has {value!r}')
    return config


def _open_tensors(directory):
    """(path, {name: shape}, name -> array) of the weights, from the first file that transformers too would take.

    path: of the only file, or of the index. Tensors are read when asked for, but those of pickles older than PyTorch
    1.6 at once.
    """
    for name, open_file in (('model.safetensors', _open_safetensors), ('pytorch_model.bin', _open_torch)):
        path, index = directory / name, directory / f'{name}.index.json'
        if path.exists():
            return path, *open_file(path)
        if index.exists():
            return index, *_open_listed(index, open_file)
    raise UserError(f'{directory} has neither model.safetensors nor pytorch_model.bin, nor the .index.json that one of '
                    'them has where it is split into several files: get one of these')


def _open_listed(index, open_file):
    """({name: shape}, name -> array) of all files that an index lists, {'weight_map': {name: file}}."""
    try:
        files = dict(json.loads(index.read_text())['weight_map'])
        elsewhere = sorted(file for file in set(files.values()) if os.path.dirname(file))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{index} does not say which array is in which file: get it again') from error
    if elsewhere:
        raise UserError(f'{index} names {elsewhere[0]!r}, and only files beside it are read: put that file there, and '
                        'its bare name into the index')
    opened = {}
    for file in sorted(set(files.values())):
        path = index.parent / file
        if not path.is_file():
            raise UserError(f'{path} is missing, and {index.name} names it: get it again')
        opened[file] = open_file(path)
    for name, file in files.items():
        if name not in opened[file][0]:
            raise UserError(f'{index.parent / file} lacks {name}, which {index.name} says is there: get both again')
    return {name: opened[file][0][name] for name, file in files.items()}, lambda name: opened[files[name]][1](name)


def _open_safetensors(path):
    try:
        file = safetensors.safe_open(path, framework='numpy')
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f'{path} is damaged or truncated ({error}): get it again') from error
    slices = {name: file.get_slice(name) for name in file.keys()}
    _check_types(path, {name: tensor.get_dtype() for name, tensor in slices.items()})
    return {name: tuple(tensor.get_shape()) for name, tensor in slices.items()}, file.get_tensor


def _open_torch(path):
    try:
        import torch
    except ImportError:
        raise UserError(f'{path} is a pickle, which is read only by the weights-only reader of PyTorch, and that is '
                        'not installed: put model.safetensors in its place, or install torch') from None
    try:
        # Pickles older than PyTorch 1.6 are not zip files, and cannot be mapped.
        tensors = torch.load(path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path))
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        types = {name: str(tensor.dtype) for name, tensor in tensors.items()}
    except Exception as error:  # of many types, one for each way in which a file is not a dict of tensors
        raise UserError(f"{path} is damaged, or not a dict of tensors that PyTorch's weights-only reader can read "
                        f'({type(error).__name__}): get it again, or model.safetensors in its place') from error
    _check_types(path, types)
    return shapes, lambda name: tensors[name].detach().float().numpy()


def _check_types(path, types):
    for name, kind in types.items():
        if kind not in _TYPES and not _MASKS.search(name):
            raise UserError(f'{path}: {name} is of type {kind}, and only float32, float16 and bfloat16 are read: save '
                            'it as one of these')


def _check_names(path, stored, shapes):
    missing = [name for name in shapes if name not in stored and name != 'head.bias']
    extra = [there for name, there in stored.items() if name not in shapes]
    for names, fault in ((missing, 'lacks'), (extra, 'has, beside those of a GPT-1 of this size,')):
        if names:
            more = f' and {len(names) - 3} more' if len(names) > 3 else ''
            raise UserError(f'{path} {fault} {", ".join(names[:3])}{more}: get it again, with its config.json')


def _config(source, model_class, head):
    architecture = source.architecture
    config = dict(
        architectures=[model_class], model_type='openai-gpt', vocab_size=source.vocab_size + source.n_special,
        n_positions=architecture['n_positions'], n_embd=architecture['width'], n_layer=architecture['layers'],
        n_head=architecture['heads'], afn='gelu', layer_norm_epsilon=1e-5, initializer_range=0.02,
        embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1, tie_word_embeddings=True, dtype='float32')
    if head == 'multiple_choice':
        config |= dict(summary_type='cls_index', summary_use_proj=True, summary_proj_to_labels=True,
                       summary_activation=None, summary_first_dropout=0.1)
    elif head:
        labels = [f'LABEL_{i}' for i in range(source.head['classes'])]
        # Every sequence ends in the extract token and attention looks back only: any other token may pad.
        config |= dict(id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
                       pad_token_id=0, head_kind=source.head['kind'])
    return config


def _tokenizer_config(source, head):
    added = SPECIAL_TOKENS if source.n_special else ()
    flags = dict(lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
    return dict(
        tokenizer_class='OpenAIGPTTokenizer', unk_token='<unk>', model_max_length=source.architecture['n_positions'],
        added_tokens_decoder={source.vocab_size + i: {'content': token, **flags} for i, token in enumerate(added)},
        **(dict(pad_token='<unk>') if head == 'score' else {}))


def _write_json(path, value):
    write_atomically(path, [json.dumps(value, indent=2).encode() + b'\n'])
