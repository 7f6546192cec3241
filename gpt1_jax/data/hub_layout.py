"""Data sets of the Hugging Face hub, or local copies of their repositories: which parquet files hold which split.

A repository says so in the head of its README.md, or by the names of its files. If it has no parquet files, the hub's
own conversion of its files is taken, on the branch refs/convert/parquet.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from absl import logging
from etils import epath

from gpt1_jax import hub
from gpt1_jax.errors import UserError
from gpt1_jax.files import import_package, local_copy

_CONVERTED = 'refs/convert/parquet'
_PART = re.compile(r'(.*)-(\d{5})-of-(\d{5})(-[0-9a-f]+)?')  # of a split in several files
_DEV = re.compile('^(validation|dev|valid|val)(?![a-z])')
_SPLIT = re.compile('(train|test|validation|dev|valid|val)(_(mis)?matched)?$')
_DEV_NAMES = ('validation', 'dev', 'valid', 'val')


class Layout(NamedTuple):
    """The splits of one config of a data set.

    Attributes:
      repository: where the files are.
      config: its name.
      splits: split -> names of parquet files, in order.
      class_names: column -> the names of its ids, from the README.md.
    """

    repository: hub.Repository
    config: str
    splits: Mapping[str, list[str]]
    class_names: Mapping[str, tuple[str, ...]]

    def find(self, split: str) -> str | None:
        """The name that a split has here: its own, or with another word for validation. None: it is not there.

        Raises UserError if two could be meant, or if the hub has converted only the beginning of the split.
        """
        if split in self.splits:
            return split
        names = {_DEV.sub(word, split) for word in _DEV_NAMES} if _DEV.search(split) else set()
        found = [name for name in self.splits if name in names]
        if len(found) > 1:
            raise UserError(f'{self.repository.where}: It has both {found[0]} and {found[1]}. Keep one, in a copy.')
        if not found and f'partial-{split}' in self.splits:
            raise UserError(
                f'{self.repository.where}: The hub has converted only the beginning of its {split} split. Fetch the '
                'whole set, and convert it to parquet or text.'
            )
        return found[0] if found else None

    def paths(self, split: str) -> list[epath.Path]:
        """The files of a split that `find` found, fetched. Raises UserError if some are missing."""
        files = self.splits[split]
        _check_whole(self.repository.where, split, files)
        folder = self.repository.get(files)
        return [folder / file for file in files]


def local_folder(rest: str) -> tuple[epath.Path, str] | None:
    """Folder and config of a URI hf:REST that names a local folder, as DIR or DIR:CONFIG; None if it does not."""
    before, _, after = rest.rpartition(':')
    for path, config in ((rest, ''), (before, after)):
        if path and epath.Path(path).expanduser().is_dir():
            return epath.Path(path).expanduser(), config
    return None


def has_parquet(folder: epath.Path, near: bool = False) -> bool:
    """Whether a local folder holds parquet files: at any depth, or only those that are `near`, see `open_layout`."""
    return bool(_parquet(hub.open_folder('', folder).sizes, near))


def open_layout(rest: str, download: bool = True, preferred: Sequence[str] = (), near: bool = False) -> Layout:
    """The data set of a URI hf:REST: a local folder is taken first, then the hub.

    Args:
      download: whether the hub may be asked.
      preferred: configs to choose from if there are several and the URI names none.
      near: whether only the files in the folder itself and in its folder `data` are read.

    Raises:
      UserError: no such set or config, no parquet files, or it cannot be fetched.
    """
    where, local, name = f'hf:{rest}', local_folder(rest), hub.parse(rest)
    if local:
        where = str(local[0])
        repository, asked = hub.open_folder(where, local[0]), local[1]
    elif name:
        repository, asked = hub.open_repository(where, name, 'dataset', download), name.config
    else:
        raise UserError(
            f'{where}: This is neither a folder nor a name on the hub. Write hf:DIR or hf:OWNER/NAME:CONFIG.'
        )
    card = _card(repository)
    configs = _configs(card, _parquet(repository.sizes, near))
    if not configs and not local and not name.revision:
        logging.info("%s: it has no parquet files, so the hub's conversion is read", where)
        repository = hub.open_repository(where, name._replace(revision=_CONVERTED), 'dataset', download)
        configs = _configs({}, _parquet(repository.sizes))
    if not configs:
        raise UserError(f'{where}: It has no parquet files. Fetch its files, and give files:DIR or text:DIR.')
    config = _choose(where, configs, asked, [*preferred, *_defaults(card)])
    return Layout(repository, config, configs[config], _class_names(card, config))


def _choose(where, configs, asked, preferred):
    if asked:
        if asked not in configs:
            raise UserError(f'{where}: It has no config {asked!r}. Choose one of {_some(configs)}.')
        return asked
    if len(configs) == 1:
        return next(iter(configs))
    for config in (*preferred, 'default'):
        if config in configs:
            logging.info('%s: of its configs %s, %s is read', where, _some(configs), config)
            return config
    name = f'hf:{where.removeprefix("hf:")}'  # files: takes no config
    raise UserError(f'{where}: It has several configs. Add one to the name: {name}:CONFIG, of {_some(configs)}.')


def _some(names):
    names = list(names)
    return ', '.join(names[:20]) + (f' and {len(names) - 20} more' if len(names) > 20 else '')


# ----------------------------------------------------------------- the head of README.md


def _card(repository):
    """The metadata in the head of README.md; {} if there are none, or they cannot be read."""
    if 'README.md' not in repository.sizes:
        return {}
    library = import_package('huggingface_hub', f'{repository.where} cannot be read')
    with local_copy(repository.get(['README.md']) / 'README.md') as path:
        try:
            return library.metadata_load(path) or {}
        except Exception as error:  # any error of a YAML parser
            logging.warning('%s: The head of its README.md is not YAML (%s).', repository.where, type(error).__name__)
            return {}


def _entries(card, key):
    """The dicts of a list, or the only one, which need not be a list."""
    values = card.get(key)
    return [one for one in (values if isinstance(values, list) else [values]) if isinstance(one, dict)]


def _defaults(card):
    return [str(one.get('config_name', 'default')) for one in _entries(card, 'configs') if one.get('default') is True]


def _class_names(card, config):
    found = {}
    for info in _entries(card, 'dataset_info'):
        if str(info.get('config_name', config)) != config:
            continue
        for feature in _entries(info, 'features'):
            kind = feature.get('dtype')
            label = kind.get('class_label') if isinstance(kind, dict) else None
            names = label.get('names') if isinstance(label, dict) else None
            if isinstance(names, dict):  # {'0': 'negative', '1': 'positive'}
                by_id = {int(i): str(name) for i, name in names.items() if str(i).isdecimal()}
                names = [by_id[i] for i in range(len(by_id))] if sorted(by_id) == list(range(len(by_id))) else None
            if isinstance(names, list):
                found[str(feature.get('name'))] = tuple(map(str, names))
    return found


def _parquet(names: Collection[str], near: bool = False) -> list[str]:
    """The names of parquet files among `names`, sorted, without hidden ones. near: see `open_layout`."""
    found = [name for name in names if name.endswith('.parquet') and not f'/{name}'.count('/.')]
    return sorted(name for name in found if not near or '/' not in name.removeprefix('data/'))


def _configs(card, parquet: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """config -> split -> parquet files, as README.md says, or else as the names of the files do."""
    configs = {}
    for one in _entries(card, 'configs'):
        splits = {}
        for split, patterns in _patterns(one):
            if found := list(filter(_glob(patterns).fullmatch, parquet)):
                splits[split] = found
        if splits:
            configs[str(one.get('config_name', 'default'))] = splits
    if not configs:
        for name in parquet:
            config, split = _config_and_split(name)
            configs.setdefault(config, {}).setdefault(split, []).append(name)
        splits = {folder.removeprefix('data/'): sum(parts.values(), []) for folder, parts in configs.items()}
        if configs and all(map(_is_split, configs, configs.values())) and len(splits) == len(configs):
            configs = {'default': splits}  # train/part-0.parquet, dev/part-0.parquet
    return configs


def _is_split(folder, parts):
    """Whether a folder is a split, by its name, and not a config: none of its files has the name of another split."""
    word = lambda name: (found := _SPLIT.match(name.removeprefix('data/'))) and _DEV.sub('dev', found[0])
    return bool(word(folder)) and {*map(word, parts)} <= {None, word(folder)}


def _patterns(config):
    """(split, glob patterns)... of `data_files`, which has many forms."""
    files = config.get('data_files')
    if isinstance(files, dict):
        files = [{'split': split, 'path': path} for split, path in files.items()]
    elif isinstance(files, str) or (isinstance(files, list) and all(isinstance(one, str) for one in files)):
        files = [{'split': 'train', 'path': files}]
    for one in files if isinstance(files, list) else []:
        if isinstance(one, dict) and 'path' in one:
            paths = one['path'] if isinstance(one['path'], list) else [one['path']]
            yield str(one.get('split', 'train')), [str(path) for path in paths]


def _glob(patterns):
    """A regular expression: ** crosses folders, * and ? do not."""
    parts = {'**/': '(?:.*/)?', '**': '.*', '*': '[^/]*', '?': '[^/]'}
    translate = lambda pattern: re.sub(
        r'\*\*/|\*\*|\*|\?|[^*?]+', lambda piece: parts.get(piece[0]) or re.escape(piece[0]), pattern.removeprefix('./')
    )
    return re.compile('|'.join(map(translate, patterns)))


def _config_and_split(name):
    """CONFIG/SPLIT-00000-of-00001.parquet, data/SPLIT.parquet, CONFIG/SPLIT/0000.parquet -> (config, split)."""
    *folders, stem = name.removesuffix('.parquet').split('/')
    if stem.isdecimal() and folders:
        stem = folders.pop()
    part = _PART.fullmatch(stem)
    return ('/'.join(folders) if folders not in ([], ['data']) else 'default'), (part[1] if part else stem)


def _check_whole(where, split, files):
    """Raises UserError if the numbers in the files' names show that one of a split is missing."""
    numbers = {}  # (what is before the number, how many there must be) -> numbers
    for file in files:
        folder, _, stem = file.removesuffix('.parquet').rpartition('/')
        if part := _PART.fullmatch(stem):
            numbers.setdefault((f'{folder}/{part[1]}', int(part[3])), set()).add(int(part[2]))
        elif re.fullmatch(r'0\d{3}', stem):
            numbers.setdefault((folder, None), set()).add(int(stem))
    for (_, count), there in numbers.items():
        count = max(there) + 1 if count is None else count
        if missing := sorted({*range(count)} - there):
            raise UserError(
                f'{where}: Of the {count} files of the {split} split, number {missing[0]} is missing (counted from 0). '
                'Fetch it.'
            )
