"""The command line: flags, and values for the keys of a config, with one sentence for each mistake.

absl parses the flags, and ml_collections reads the config and sets its keys. Mistakes that they would misread, or
report with a traceback, are caught here first.
"""

import ast
import difflib
import itertools
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FieldReference, config_flags
from ml_collections.config_flags import tuple_parser

from gpt1_jax.errors import UserError

ARGUMENTS: list[str] = []  # where ml_collections looks for keys; sys.argv may name a file that is not there
_FLAGS = ('config', 'workdir', 'distributed', 'coordinator', 'process_id', 'processes', 'flagfile')
# What ml_collections says of a new key, with the whole config between the two.
_LOCKED = re.compile(r'^Key "(.*?)" does not exist and cannot be added(?:.*Did you mean "([^"]*)" instead)?', re.DOTALL)
_CHANGES = ('variants', 'pretrained', 'scratch')  # parts of a config that may hold any key of another config


def parse(argv: list[str]) -> list[str]:
    """Parses a command line; returns its first word, the program's name, and those that are not flags.

    The program must define a flag `config` with ml_collections, with sys_argv=ARGUMENTS. Raises UserError.
    """
    try:
        arguments = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
    except (flags.Error, OSError, UnicodeDecodeError) as error:
        reason = str(error).removeprefix('ERROR:: ')
        raise UserError(
            f'--flagfile: The file cannot be read ({reason}). Name a file with one flag per line.'
        ) from None
    _check(arguments[1:])
    ARGUMENTS[:] = arguments
    try:
        return flags.FLAGS(arguments)
    except Exception as error:  # of many types
        message = str(error).removeprefix('flag ')
        if not message.endswith('.'):  # not of the parsers below
            where, _, reason = message.rpartition(': ')
            message = f'{where or "--config"}: The value is not valid ({reason}). Correct it.'
        raise UserError(message) from None


# ----------------------------------------------------------------- values


class _Integer(flags.IntegerParser):
    """Whole numbers, also as 1e9, and None, which `_check` allows for some keys."""

    def convert(self, argument):
        if not isinstance(argument, str):
            return super().convert(argument)
        if _is_none(argument):
            return None
        try:
            return super().convert(argument)
        except ValueError:
            number = _Float().convert(argument, 'This is not a whole number. Write it like 64, 1_000_000 or 1e9.')
            if number.is_integer() and abs(number) < 2**53:  # exact
                return int(number)
            raise ValueError('This is not a whole number. Write it like 64, 1_000_000 or 1e9.') from None


class _Float(flags.FloatParser):
    def convert(self, argument, message='This is not a number. Write it like 0.1 or 2.5e-4.'):
        try:
            return super().convert(argument)
        except ValueError:
            raise ValueError(message) from None


class _Bool(flags.BooleanParser):
    def parse(self, argument):
        try:
            return super().parse({'yes': 'true', 'no': 'false'}.get(str(argument).lower(), argument))
        except ValueError:
            raise ValueError('This is neither true nor false. Write True or False.') from None


class _Tuple(tuple_parser.TupleParser):
    """Values separated by commas, with or without brackets and quotes: a,b is ('a', 'b')."""

    def parse(self, argument):
        if not isinstance(argument, str):
            return super().parse(argument)
        value = _literal(argument)
        if value is argument:
            words = (word.strip() for word in argument.strip().strip('()[]').split(','))
            value = tuple(_literal(word) for word in words if word)
        value = value if isinstance(value, tuple | list) else (value,)
        if not all(isinstance(element, str | int | float | tuple) for element in value):
            raise ValueError('This is not a list of words or numbers. Separate them with commas.')
        return tuple(value)


for _type, _parser in {int: _Integer(), float: _Float(), bool: _Bool(), tuple: _Tuple()}.items():
    config_flags.register_flag_parser_for_type(_type, _parser)


def _literal(text):
    """The value of a Python literal; of anything else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _is_none(text):
    return text is not None and text.strip().lower() == 'none'


# ----------------------------------------------------------------- flags and keys


def _check(arguments):
    """Raises UserError for the first argument with an unknown name, or with a value that cannot stand for its key."""
    keys, words = None, iter(arguments)
    for word in itertools.takewhile(lambda word: word != '--', words):
        found = re.fullmatch('--?([^=]+)(=)?(.*)', word, re.DOTALL)
        if not found:
            continue  # not a flag: `main` refuses it
        name, equals, value = found.groups()
        key = re.sub('^(no)?config[.]', '', name)
        if key == name:
            boolean = _is_boolean(name, keys or {})
        elif keys is None:
            raise UserError(f'--{name}: There is no --config before it. Write --config=FILE first.')
        elif key not in keys:
            raise UserError(_unknown_key(key, keys))
        else:
            default = keys[key]
            boolean = (default.get_type() if isinstance(default, FieldReference) else type(default)) is bool
            if name.startswith('no') and not boolean:
                raise UserError(f'--{name}: This key is neither true nor false. Write --config.{key}=VALUE.')
        if boolean:
            continue
        if not equals:
            value = next(words, None)
        following = not equals and re.match(rf'--?(no)?({"|".join(_FLAGS)})\b', value or '')
        if value is None or following or (not value and name in ('config', 'workdir')):
            raise UserError(f'--{name}: The value is missing. Write --{name}=VALUE.')
        if name == 'config':
            if keys is not None:
                raise UserError('--config: It is given twice. Give one config.')
            keys = dict(_entries(_read_config(value)))
        elif key != name:
            _check_value(key, default, value)


def _is_boolean(name, keys):
    """Whether a flag needs no value. Raises UserError if there is no such flag."""
    known, positive = flags.FLAGS, name.removeprefix('no')
    if name in known or name == 'undefok':  # which absl knows without a definition
        return name in known and known[name].boolean
    if positive in known and known[positive].boolean:
        return True
    raise UserError(_unknown_flag(name, keys))


def _check_value(key, default, value):
    """Raises UserError for values that the parser of the key's type would accept, because it does not know the key."""
    if key.rpartition('.')[2] == 'task' and value != default:
        raise UserError(f'{key}: There is no task {value!r} in this config. Use the config file of the task you want.')
    if type(default) is int and _is_none(value):
        raise UserError(f'--config.{key}={value}: This key is always a number. Write one, such as {default}.')
    if not isinstance(default, ConfigDict):
        return
    if not default or key.rpartition('.')[2] in _CHANGES:
        if not isinstance(_literal(value), dict):
            raise UserError(f'--config.{key}={value}: This is not a dict. Write it like {{"name": {{"key": 1}}}}.')
    else:
        one = f'--config.{key}.{next(iter(default))}'
        raise UserError(f'--config.{key}={value}: This is a part of the config. Set its keys, such as {one}=VALUE.')


def _read_config(path):
    folder = pathlib.Path(path.partition(':')[0]).absolute().parent
    if folder.name == 'configs':  # its files import `configs.common`, wherever the program was started
        sys.path.append(str(folder.parent))
    try:
        config = flags.FLAGS['config'].parser.parse(path)
        if getattr(config, 'task', None) is None or not isinstance(config, ConfigDict):
            raise UserError(f'{path}: This is not a config with a task. Use one of configs/.')
        return config
    except UserError:
        raise
    except OSError as error:
        reason = str(error.__cause__ or error).splitlines()[-1].strip()
        raise UserError(f'{path}: The config file cannot be read ({reason}). {_nearest_file(path)}') from None
    except Exception as error:
        error = error.__context__ or error  # ml_collections puts the traceback into some messages
        if unknown := _LOCKED.search(str(error.args[0]) if error.args else ''):
            name, nearest = unknown.groups()
            hint = f'Did you mean {nearest}?' if nearest else 'Use the keys of the config that it changes.'
            raise UserError(f'{path}: It sets {name}, but the config has no such key. {hint}') from None
        raise UserError(
            f'{path}: The config file has an error ({type(error).__name__}: {error}). Correct it, or '
            'use one of configs/.'
        ) from None


def _nearest_file(path):
    file, colon, argument = path.partition(':')
    folders = pathlib.Path('configs'), pathlib.Path(file).parent
    there = {found.stem: str(found) for folder in folders for found in sorted(folder.glob('*.py'))}
    nearest = difflib.get_close_matches(pathlib.Path(file).stem, there, 1)
    return f'Did you mean {there[nearest[0]]}{colon}{argument}?' if nearest else 'Use one of configs/.'


def _entries(config: ConfigDict, prefix: str = ''):
    """Dotted keys and values, also of its parts; a value that may be None is a reference."""
    for name, value in config.items(preserve_field_references=True):
        yield prefix + name, value
        if isinstance(value, ConfigDict):
            yield from _entries(value, f'{prefix}{name}.')


def _unknown_key(key: str, keys: Mapping[str, Any]) -> str:
    """The message for a key that is not one of `keys`; suggests the nearest of the same part, or else of any part."""
    plain = '.'.join(filter(None, key.split('.')))
    if plain in keys:
        return f'{key}: The config has no such key. Did you mean {plain}?'
    wrong = next(start for start in itertools.accumulate(plain.split('.'), '{}.{}'.format) if start not in keys)
    parent, _, name = wrong.rpartition('.')
    beside = {last: last for above, _, last in (k.rpartition('.') for k in keys) if above == parent}
    elsewhere = {k.rpartition('.')[2]: k for k in reversed(keys)}
    nearest = [
        names[match]
        for names, cutoff in ((beside, 0.6), (elsewhere, 0.8))
        for match in difflib.get_close_matches(name, names, 1, cutoff)
    ]
    if nearest:
        hint = f'Did you mean {nearest[0]}?'
    elif beside:
        hint = f'The keys {f"of {parent}" if parent else "here"} are {", ".join(beside)}.'
    else:
        hint = f'Write --config.{parent}=VALUE.'
    return f'{wrong or "--config."}: The config has no such key. {hint}'


def _unknown_flag(name, keys):
    plain = name.replace('-', '_')
    nearest = [f'config.{key}' for key in keys if f'.{key}'.endswith(f'.{plain}')]
    nearest += difflib.get_close_matches(plain, _FLAGS, 1)
    hint = f'Did you mean --{nearest[0]}?' if nearest else 'Keys of the config are set with --config.KEY=VALUE.'
    return f'--{name}: There is no such flag. {hint}'
