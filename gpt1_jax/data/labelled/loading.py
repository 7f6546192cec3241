"""One split of a labelled data set, from files, TensorFlow Datasets or documentation strings."""

import os
import re
from collections.abc import Mapping

from etils import epath

from gpt1_jax.data.labelled import docstring_sets, readers, token_folder
from gpt1_jax.data.labelled.examples import Examples, parse
from gpt1_jax.data.labelled.registry import Dataset
from gpt1_jax.errors import UserError
from gpt1_jax.files import import_package

# The release splits Story Cloze's validation file into train and dev with these numbers.
_RELEASE_HELD_OUT, _RELEASE_SEED = 374, 3535999445


def load_examples(dataset: Dataset, uri: str, split: str, limit: int | None = None) -> Examples:
    """Reads one split, a key of dataset.splits. `limit` keeps the first examples; an empty URI is the default.

    URIs: `files:/dir` (SPLIT.jsonl, .tsv or .csv, each also .gz, with the source's name of the split, where dev or
    val may stand for validation; a header line in .tsv and .csv, unless the set's own files have none; quotes mean
    nothing in .tsv; choices are a list, in .tsv and .csv a JSON list), `tfds:name/config` (prepared before; several
    with commas between are read one after the other), `docs:` or `docs:package,package`.

    Raises:
      UserError: what is missing or malformed, by file and line or column.
    """
    uri, scheme, rest = _parts(dataset, uri)
    if split not in dataset.splits:
        raise UserError(f'Data set {dataset.name!r}: There is no split {split!r}. Use {", ".join(dataset.splits)}.')
    if limit is not None and limit < 1:
        raise UserError(f'data.limit: The limit {limit} is too small. Use at least 1, or None for all examples.')
    if scheme == 'docs':
        examples = docstring_sets.load(dataset.name, rest, split)
    else:
        if scheme == 'files':
            names = {*dataset.fields, dataset.label_field, *dataset.aliases}
            entries = readers.file_entries(rest, dataset.splits[split], dataset.columns, names, dataset.drop_broken)
        elif scheme == 'tfds':
            entries = readers.tfds_entries(rest, dataset.splits[split])
        else:
            raise UserError(
                f'{uri}: This folder holds tokens, not text. Name a source with the text of the data set '
                f'{dataset.name!r}.'
            )
        examples = parse(dataset, uri, split, entries)
        if dataset.splits['train'] == dataset.splits['dev'] and split in ('train', 'dev'):
            examples = _hold_out(examples, split, uri)
    return examples if limit is None else examples.take(range(min(limit, len(examples))))


def available_splits(dataset: Dataset, uri: str) -> list[str]:
    """The keys of dataset.splits that the source has; an empty URI is the default. Raises UserError for a bad URI."""
    _, scheme, rest = _parts(dataset, uri)
    if scheme == 'docs':
        return list(docstring_sets.SIZES)
    if scheme == 'tokens':
        return token_folder.tokens_splits(rest)
    if scheme == 'files':
        return [key for key, name in dataset.splits.items() if readers.has_file(rest, name)]
    there = readers.tfds_splits(rest)
    return [key for key, name in dataset.splits.items() if name in there]


def folder_of(dataset: Dataset, directory: os.PathLike | str) -> epath.Path | None:
    """The folder of this data set in a directory that holds many, or None.

    Its name is the data set's, or one of its known spellings, with or without glue or super_glue in front; case, `-`,
    `_` and `.` do not matter: sst2, SST-2 and glue_sst2 are one.

    Raises:
      UserError: no such directory, or two folders of this set.
    """
    directory = epath.Path(directory).expanduser()
    if not directory.is_dir():
        raise UserError(f'{directory}: This is not a directory. Name the one that holds the folders of the data sets.')
    plain = lambda name: re.sub('[^a-z0-9]', '', name.lower())
    known = {
        prefix + plain(name) for name in (dataset.name, *dataset.spellings) for prefix in ('', 'glue', 'superglue')
    }
    found = sorted(path for path in directory.iterdir() if plain(path.name) in known and path.is_dir())
    if len(found) > 1:
        raise UserError(
            f'{directory}: There are both {found[0].name} and {found[1].name} for the data set '
            f'{dataset.name!r}. Keep one of them.'
        )
    return found[0] if found else None


def uri_of(dataset: Dataset, source: str) -> str | None:
    """The URI of a data set in a source of many: `files:` and `tokens:` name a directory with a folder for each, any
    other source is the URI itself. None if the directory has no such folder. Raises UserError as `folder_of` does."""
    scheme, _, path = source.partition(':')
    if scheme not in ('files', 'tokens'):
        return source
    folder = folder_of(dataset, path)
    return None if folder is None else f'{scheme}:{folder}'


def none_usable(left_out: Mapping[str, str]) -> UserError:
    """The error where a task is left with no data set. left_out: data set -> why it cannot be used."""
    reasons = '; '.join(f'{name}: {reason.rstrip(".")}' for name, reason in left_out.items())
    return UserError(
        f'datasets: None of them can be used ({reasons}). Set --config.data.source to the folder that holds them.'
    )


def _parts(dataset: Dataset, uri: str) -> tuple[str, str, str]:
    """(URI, its scheme, the rest of it)"""
    uri = uri or dataset.uri
    scheme, _, rest = uri.partition(':')
    if scheme != 'docs' and (scheme not in ('files', 'tfds', 'tokens') or not rest):
        raise UserError(
            f'data.source: The source {uri!r} of the data set {dataset.name!r} is unknown. '
            'Use files:/dir, tfds:name, tokens:/dir or docs:.'
        )
    return uri, scheme, rest


def _hold_out(examples: Examples, split: str, uri: str) -> Examples:
    """One side of a split that holds train and dev. Examples with the same first text stay together: a schema of DPR
    comes as two, which have opposite answers."""
    n = len(examples)
    of_text = {}
    for number, text in enumerate(next(iter(examples.fields.values()))):
        of_text.setdefault(text, []).append(number)
    if len(of_text) < 2:
        raise UserError(f'{uri}: There is one example for train and dev together. Give at least two.')
    held_out = _RELEASE_HELD_OUT if n >= 2 * _RELEASE_HELD_OUT else max(1, n // 5)
    texts = max(1, round(held_out * len(of_text) / n))  # where every text is there once, as many as examples
    model_selection = import_package('sklearn.model_selection', "the release's split cannot be made")
    train, dev = model_selection.train_test_split(list(of_text), test_size=texts, random_state=_RELEASE_SEED)
    return examples.take([number for text in (train if split == 'train' else dev) for number in of_text[text]])
