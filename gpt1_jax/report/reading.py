"""The files of one workdir that the report reads, each checked; damaged ones are named and left out."""

from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from gpt1_jax.array_files import load_npz
from gpt1_jax.errors import UserError
from gpt1_jax.files import check_form, parse_json, read_json
from gpt1_jax.report import results
from gpt1_jax.training.metric_writer import read_metrics

_COPY = 'Put a copy back.'
_NUMBER = (int, type(None))
_RESULT = {
    'model': (
        {'kind': str, 'sizes': {'layers': int, 'width': int}, 'parameters': int, 'tokens_seen': _NUMBER},
        type(None),
    ),
    'versions': dict,
    'device': ({'kind': str, 'count': int}, type(None)),
}
_COUNTS = ({str: int}, type(None))
_SETBACKS = {'skipped_steps': _NUMBER, 'rollbacks': ([{'step': int, 'batches': [int]}], type(None))}
# Facts of a task, if it has them.
_FACTS = {
    'finetune': {
        **dict.fromkeys(('train_examples', 'dev_examples', 'cut_sequences'), _NUMBER),
        **{'dev_constant': (float, type(None)), **_SETBACKS},
    },
    'pretrain': {'tokens': _NUMBER, 'flops': (float, type(None)), **_SETBACKS},
    'prepare': {'documents': _COUNTS, 'tokens': _COUNTS, 'vocab_size': _NUMBER},
    'zero_shot': {'checkpoints': ([{'step': _NUMBER, 'tokens_seen': _NUMBER}], type(None)), 'cut': _COUNTS},
}
# Keys of a config, if it has them.
_SETTINGS = {
    **dict.fromkeys(('seed', 'n_transfer', 'data.batch_size', 'data.limit', 'model.n_positions'), _NUMBER),
    **dict.fromkeys(('model.layers', 'model.width', 'model.units'), _NUMBER),
    **dict.fromkeys(('init_from', 'data.source', 'data.dataset', 'model.kind', 'study', 'rest'), (str, type(None))),
    'data.share': (float, type(None)),
}


def read(folder: epath.Path) -> dict[str, Any]:
    """The attributes of a `collect.Run` that are in the files of its workdir; each is empty if its file is missing or
    damaged, and `damage` names the damaged files."""
    damage = []

    def attempt(file: str, read: Callable, empty):
        """What `read` makes of a file, or `empty` if the file is missing or damaged."""
        try:
            return read(folder / file) if (folder / file).exists() else empty
        except (UserError, OSError, ValueError, KeyError, TypeError) as error:
            known = isinstance(error, UserError)
            reason = str(error).removeprefix(f'{folder / file}: ') if known else f'The file is damaged ({error!r}).'
            damage.append(f'{file}: {reason}')
            return empty

    result, versions, device = attempt('results.json', _read_result, (None, {}, {}))
    config = attempt('config.json', _read_config, {})
    return dict(
        config=result.config if result else config,  # config.json may be of a later command, which was refused
        result=result,
        versions=versions,
        device=device,
        plan=attempt('runs.json', _read_plan, ()),
        metrics=attempt('metrics.jsonl', _read_metrics, ()),
        dev=attempt('dev.npz', _read_dev, {}),
        errors=attempt('dev_errors.jsonl', lambda path: _read_lines(path, {'index': int, 'texts': list}), ()),
        generations=attempt('generations.jsonl', lambda path: _read_lines(path, {'prompt': str, 'text': str}), ()),
        vocabulary=attempt('tokenizer/tokenizer.json', _read_vocabulary, ''),
        damage=tuple(damage),
    )


def setting(config: dict, key: str) -> Any:
    """The value of a dotted key of a config; None if it has none."""
    for name in key.split('.'):
        config = config.get(name) if isinstance(config, dict) else None
    return config


def _read_config(path):
    config = read_json(path, dict, _COPY)
    if not isinstance(config.get('task'), str):
        raise UserError(f'{path}: It names no task.')
    _check_settings(path, config)
    return config


def _check_settings(path, config):
    check_form(path, {key: setting(config, key) for key in _SETTINGS}, _SETTINGS, _COPY)


def _read_result(path):
    stored = read_json(path)
    result = results.from_json(path, stored)
    if result is None:
        raise UserError(f'{path}: It is of another version of the program.')
    check_form(path, stored, _RESULT, _COPY)
    _check_settings(path, result.config)
    for score in result.scores:
        if score.examples < 1 or (score.metric == 'accuracy' and not 0 <= score.value <= 1):
            raise UserError(f'{path}: A score of {score.dataset} is not valid.')
    if result.task == 'zero_shot' and not result.scores:
        raise UserError(f'{path}: It has no scores.')
    facts = {'left_out': ({str: str}, type(None)), **_FACTS.get(result.task, {})}
    check_form(path, {name: result.facts.get(name) for name in facts}, facts, _COPY)
    if 'rollbacks' in facts and any(len(one['batches']) != 2 for one in result.facts.get('rollbacks') or ()):
        raise UserError(f'{path}: The batches of a rollback are not valid.')
    return result, stored['versions'], stored['device'] or {}


def _read_plan(path):
    return tuple({key: entry[key] for key in results.RUN} for entry in read_json(path, [results.RUN], _COPY))


def _read_vocabulary(path):
    return str(read_json(path, dict, _COPY).get('fingerprint', ''))


def _read_metrics(path):
    lines = tuple(read_metrics(path.parent))
    if not all('step' in line for line in lines):
        raise UserError(f'{path}: A line has no step.')
    return lines


def _read_lines(path, form):
    """The objects of a .jsonl file. The last line may be cut short: the run was killed, or goes on."""
    texts, objects = path.read_text().split('\n'), []
    for number, text in enumerate(texts, 1):
        if not text:
            continue
        try:
            line = parse_json(text)
            check_form(path, line, form, _COPY)
        except (ValueError, UserError):
            if number == len(texts):
                break
            raise UserError(f'{path}: Line {number} is damaged.') from None
        objects.append(line)
    return tuple(objects)


def _read_dev(path):
    dev = load_npz(path.read_bytes())
    if dev['labels'].ndim != 1 or dev['logits'].ndim != 2 or len(dev['labels']) != len(dev['logits']):
        raise UserError(f'{path}: Labels and logits do not fit each other.')
    if not np.isfinite(dev['logits']).all():
        raise UserError(f'{path}: The logits are not finite.')
    return dev
