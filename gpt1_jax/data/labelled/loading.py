"""One split of a labelled data set, from files, TensorFlow Datasets, the Hugging Face hub or documentation strings."""

import contextlib
import os
import re
from collections.abc import Mapping, Sequence

from absl import logging
from etils import epath

from gpt1_jax.data import tfds
from gpt1_jax.data.labelled import docstring_sets, hub_sets, origins, readers, split_files, token_folder
from gpt1_jax.data.labelled.examples import Examples, adapted, parse
from gpt1_jax.data.labelled.registry import REGISTRY, Dataset
from gpt1_jax.errors import UserError
from gpt1_jax.files import import_package

# The release splits Story Cloze's validation file into train and dev with these numbers.
_RELEASE_HELD_OUT, _RELEASE_SEED = 374, 3535999445
_USUAL = {'train': 'train', 'dev': 'validation', 'test': 'test'}  # split -> what sources usually call it


def load_examples(dataset: Dataset, uri: str, split: str, limit: int | None = None, download: bool = True) -> Examples:
    """Reads one split, a key of dataset.splits.

    URIs: `files:/dir`: SPLIT.jsonl, .json, .tsv or .csv, each also .gz, or .parquet, with the source's name of the
    split (for validation also dev, val or valid), in any case; or files as the set's authors, `datasets` or the Hugging
    Face hub publish them (see `split_files.find`; for tables, `table_files.table_entries`). If a split is in another
    form than parquet, parquet is read only from the folder and its folder `data`. Choices are a list, in tables a JSON
    list. `tfds:name/config`; several, separated by commas, are read one after the other. `hf:OWNER/NAME:CONFIG`, of the
    Hugging Face hub, or `hf:DIR`, a copy of its repository. `docs:` or `docs:package,package`.

    Args:
      uri: '' for the set's own.
      limit: keeps the first examples only; None: all.
      download: whether a set of tfds: or hf: that is not here is fetched.

    Raises:
      UserError: what is missing or malformed, by file and line or column.
    """
    uri, scheme, rest = origins.parts(dataset, uri, download)
    if split not in dataset.splits:
        raise UserError(f'Data set {dataset.name!r}: There is no split {split!r}. Use {", ".join(dataset.splits)}.')
    if limit is not None and limit < 1:
        raise UserError(f'data.limit: The limit {limit} is too small. Use at least 1, or None for all examples.')
    splits = splits_of(dataset, uri, download)
    if scheme == 'docs':
        examples = docstring_sets.load(dataset.name, rest, split)
    else:
        if scheme == 'files':
            entries = readers.file_entries(rest, splits[split], dataset)
        elif scheme == 'tfds':
            entries = tfds.entries(rest, splits[split], download)
        elif scheme == 'hf':
            entries = hub_sets.entries(dataset, rest, splits[split], download)
        else:
            raise UserError(
                f'{uri}: This folder holds tokens, not text. Name a source with the text of the data set '
                f'{dataset.name!r}.'
            )
        examples = parse(dataset, uri, split, entries)
        if splits['train'] == splits['dev'] and split in ('train', 'dev'):
            examples = _hold_out(examples, split, uri)
        if scheme == 'files' and split == 'train':
            _log_other_files(dataset, rest, splits)
    return examples if limit is None else examples.take(range(min(limit, len(examples))))


def available_splits(dataset: Dataset, uri: str, download: bool = True) -> list[str]:
    """The keys of dataset.splits that the source has, see `load_examples`; none of a set that cannot be fetched.

    Raises UserError for a bad URI.
    """
    try:
        uri, scheme, rest = origins.parts(dataset, uri, download)
        splits = splits_of(dataset, uri, download)
        if scheme == 'tfds':
            there = tfds.splits(rest, download)
            return [key for key, name in splits.items() if name in there]
        if scheme == 'hf':
            return [key for key, name in splits.items() if hub_sets.has_split(dataset, rest, name, download)]
    except UserError:
        if (uri or dataset.uri).startswith(('tfds:', 'hf:')):  # the error comes again when a split is read
            return []
        raise
    if scheme == 'docs':
        return list(docstring_sets.SIZES)
    if scheme == 'tokens':
        return token_folder.tokens_splits(rest)
    return [key for key, name in splits.items() if readers.has_file(rest, name, dataset)]


def count_training_examples(dataset: Dataset, uri: str, download: bool = True) -> int:
    """How many training examples a set has. Raises UserError, which says what is wrong with each split, if nothing can
    be fine-tuned on it."""
    uri, scheme, path = origins.parts(dataset, uri, download)
    if scheme == 'tokens':  # the rest is checked when they are read, which is soon
        return [token_folder.count_examples(path, dataset.name, split) for split in ('dev', 'train')][-1]
    if scheme == 'tfds':  # what prepared it has checked it, and to read it all takes long
        _, number = (tfds.count(path, dataset.splits[split], download) for split in ('dev', 'train'))
        return number
    numbers, mistakes = {}, {}
    for split in dict.fromkeys(('train', 'dev', *available_splits(dataset, uri, download))):
        try:
            numbers[split] = len(load_examples(dataset, uri, split, download=download))
        except UserError as error:
            mistakes[str(error)] = split
    if mistakes:
        raise UserError(' '.join(mistakes))
    return numbers['train']


def splits_of(dataset: Dataset, uri: str, download: bool = True) -> dict[str, str]:
    """The source's names of the splits: dataset.splits, with two exceptions. If that has train and dev in one file, but
    a folder or a repository has a file for each, with columns of this set, each is read from its own. Of the user's
    own sets in TensorFlow Datasets, 'dev' may be called 'validation'."""
    uri, scheme, rest = origins.parts(dataset, uri, download)
    splits = dataset.splits
    if scheme == 'tfds' and splits['dev'] == 'dev':
        there = tfds.splits(rest, download)
        return splits | ({'dev': _USUAL['dev']} if 'dev' not in there and _USUAL['dev'] in there else {})
    if splits['train'] == splits['dev']:
        key = 'dev' if splits['train'] == 'train' else 'train'
        if scheme == 'files':
            own = readers.has_file(rest, _USUAL[key], dataset) and _has_columns(dataset, rest, _USUAL[key])
        else:
            own = scheme == 'hf' and hub_sets.has_split(dataset, rest, _USUAL[key], download)
        if own:
            return splits | {key: _USUAL[key]}
    return splits


def folder_of(dataset: Dataset, directory: os.PathLike | str) -> epath.Path | None:
    """The folder of this data set in a directory that holds several, or None.

    Its name is the data set's, or else one of its known spellings, with or without glue or super_glue in front; case,
    `-`, `_` and `.` do not matter: sst2, SST-2 and glue_sst2 are one.

    Raises:
      UserError: no such directory, or two folders of this set.
    """
    folders = _folders(directory)
    named = [path for path in folders if _is_named(path, [dataset.name])]
    spelt = [path for path in folders if _is_named(path, dataset.spellings)]
    found = named or spelt
    if len(found) > 1:
        raise UserError(
            f'{directory}: There are both {found[0].name} and {found[1].name} for the data set '
            f'{dataset.name!r}. Keep one of them.'
        )
    if named and spelt:
        logging.warning('%s: %s is read for %s, not %s.', directory, named[0].name, dataset.name, spelt[0].name)
    return found[0] if found else None


def unknown_folders(directory: os.PathLike | str) -> list[str]:
    """The names of the folders in a directory that are of no data set in REGISTRY. Raises UserError as `folder_of`."""
    names = [name for dataset in REGISTRY.values() for name in (dataset.name, *dataset.spellings)]
    return [path.name for path in _folders(directory) if not _is_named(path, names)]


def _folders(directory) -> list[epath.Path]:
    directory = epath.Path(directory).expanduser()
    if not directory.is_dir():
        raise UserError(f'{directory}: This is not a directory. Name the one that holds the folders of the data sets.')
    return sorted(path for path in directory.iterdir() if path.is_dir())


def _is_named(path, names: Sequence[str]) -> bool:
    plain = lambda name: re.sub('[^a-z0-9]', '', name.lower())
    return plain(path.name) in {prefix + plain(name) for name in names for prefix in ('', 'glue', 'superglue')}


def uri_of(dataset: Dataset, source: str) -> str | None:
    """The URI of a data set in a source of several: `files:` and `tokens:` name a directory with a folder for each, any
    other source is the URI itself. None if the directory has no such folder. Raises UserError as `folder_of` does."""
    scheme, _, path = source.partition(':')
    if scheme not in ('files', 'tokens'):
        return source
    folder = folder_of(dataset, path)
    return None if folder is None else f'{scheme}:{folder}'


def none_usable(
    left_out: Mapping[str, str], datasets: str = 'datasets', source: str = 'data.source', fix: str = ''
) -> UserError:
    """The error for a task that is left without a data set.

    Args:
      left_out: data set -> why it cannot be used.
      datasets, source: the keys of the config that name the sets and where they are.
      fix: what to do, if it is not to set `source`.
    """
    if not left_out:
        return UserError(f'{datasets}: The list is empty. Name at least one data set.')
    names = {}  # by reason, of which all may have the same
    for name, reason in left_out.items():
        names.setdefault(reason.removeprefix(f'{name}: ').rstrip('.'), []).append(name)
    reasons = '; '.join(f'{", ".join(those)}: {reason}' for reason, those in names.items())
    fix = fix or f'Set --config.{source} to the folder that holds them.'
    return UserError(f'{datasets}: None of them can be used ({reasons}). {fix}')


def _has_columns(dataset: Dataset, directory: str, name: str) -> bool:
    """Whether the file has any column of the data set. ROCStories has none, and may lie beside the cloze test."""
    try:
        _, first = next(adapted(dataset, readers.file_entries(directory, name, dataset)), ('', {}))
    except UserError:  # it will be raised again when the file is read
        return True
    return any(column in first for column in (*dataset.fields, dataset.label_field))


def _log_other_files(dataset: Dataset, directory: str, splits: dict[str, str]) -> None:
    """Logs what becomes of files with the usual name of a split, if this data set's splits have other names."""
    if splits != dataset.splits:
        logging.info('%s: train and dev have a file each, so that nothing is held out.', dataset.name)
    why = 'it has no column of theirs' if splits['train'] == splits['dev'] else 'they have files of other names'
    for name in _USUAL.values():
        with contextlib.suppress(UserError):  # there are two such files
            if not {*split_files.stems(name)} & {*splits.values()} and readers.has_file(directory, name, dataset):
                logging.warning(
                    '%s: There is a file for %s that is not read: the splits of %s are %s, and %s.',
                    directory,
                    name,
                    dataset.name,
                    ', '.join(dict.fromkeys(splits.values())),
                    why,
                )


def _hold_out(examples: Examples, split: str, uri: str) -> Examples:
    """One side of a split that holds train and dev. Examples with the same first text stay together: a schema of DPR
    comes as two, which have opposite answers."""
    n = len(examples)
    of_text = {}
    for number, text in enumerate(next(iter(examples.fields.values()))):
        of_text.setdefault(text, []).append(number)
    if len(of_text) < 2:
        raise UserError(f'{uri}: There is only one text for train and dev together. Give at least two.')
    held_out = _RELEASE_HELD_OUT if n >= 2 * _RELEASE_HELD_OUT else max(1, n // 5)
    texts = max(1, round(held_out * len(of_text) / n))  # as many as examples if no text is repeated
    model_selection = import_package('sklearn.model_selection', "the release's split cannot be made")
    train, dev = model_selection.train_test_split(list(of_text), test_size=texts, random_state=_RELEASE_SEED)
    return examples.take([number for text in (train if split == 'train' else dev) for number in of_text[text]])
