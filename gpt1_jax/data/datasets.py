"""Labelled data sets -> Examples, from files, TensorFlow Datasets or documentation strings.

What each data set is stands in registry.py; the callers of this module find its names here too.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np
from absl import logging
from etils import epath

from gpt1_jax.data import rows, tokens
from gpt1_jax.data.registry import REGISTRY, Dataset, custom_dataset  # noqa: F401
from gpt1_jax.errors import UserError

_ID_COLUMNS = ('idx', 'id', 'index', 'story_id', 'InputStoryid')
_NO_LABEL = ('', '-', '-1', '-1.0')
# The release makes Story Cloze's train and dev sets of the validation file with these numbers.
_RELEASE_HELD_OUT, _RELEASE_SEED = 374, 3535999445


@dataclasses.dataclass
class Examples:
    """Rows of one split.

    Attributes:
      fields: column name -> n texts (for choices: n lists of texts), in the order of the sequence.
      labels: int32 [n] label ids, float32 [n] scores, or None where the split has no labels.
      ids: n strings: the row's idx, id, index, story_id or InputStoryid, else its number.
      groups: n values of the data set's group_field (RACE's level), or None where the rows have none.
    """

    fields: dict[str, list]
    labels: np.ndarray | None
    ids: list[str]
    groups: list[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices) -> 'Examples':
        """The examples of these indices, in this order."""
        pick = lambda column: None if column is None else [column[i] for i in indices]
        return Examples({name: pick(column) for name, column in self.fields.items()},
                        None if self.labels is None else self.labels[np.asarray(indices, int)],
                        pick(self.ids), pick(self.groups))


def load_examples(dataset: Dataset, source_uri: str, split: str, limit: int | None = None) -> Examples:
    """Reads one split, a key of dataset.splits. `limit` keeps the first ones; an empty URI is the default.

    Sources: `files:/dir` (SPLIT.jsonl, .tsv or .csv, each also .gz, with the source's name of the split, where dev or
    val may stand for validation; a header line in .tsv and .csv, unless the set's own files have none; quotes mean
    nothing in .tsv; choices are a list, in .tsv and .csv a JSON list), `tfds:name/config` (prepared before; several
    with commas between are read one after the other), `docs:` or `docs:package,package`.

    Raises:
      UserError: what is missing or malformed, by file and line or column.
    """
    uri, scheme, place = _source(dataset, source_uri)
    if split not in dataset.splits:
        raise UserError(f'There is no split {split!r}; use {", ".join(dataset.splits)}.')
    if limit is not None and limit < 1:
        raise UserError(f'limit is {limit}; use at least 1, or None for all examples of {uri}.')
    if scheme == 'docs':
        from gpt1_jax.data import docs_tasks  # it imports this module
        examples = docs_tasks.load(dataset.name, place, split)
    else:
        if scheme == 'files':
            names = {*dataset.fields, dataset.label_field, *dataset.aliases}
            read = rows.file_rows(place, dataset.splits[split], dataset.columns, names, dataset.drop_broken)
        elif scheme == 'tfds':
            read = rows.tfds_rows(place, dataset.splits[split])
        else:
            raise UserError(f'{uri} holds token sequences: name a source with the text of data set {dataset.name!r}.')
        examples = _parse(dataset, uri, split, read)
        if dataset.splits['train'] == dataset.splits['dev'] and split in ('train', 'dev'):
            examples = _hold_out(examples, split, uri)
    return examples if limit is None else examples.take(range(min(limit, len(examples))))


def available_splits(dataset: Dataset, source_uri: str) -> list[str]:
    """The keys of dataset.splits that the source has; an empty URI is the default. Raises UserError for a bad URI."""
    _, scheme, place = _source(dataset, source_uri)
    if scheme == 'docs':
        return ['train', 'dev']
    if scheme == 'tokens':
        return tokens.tokens_splits(place)
    if scheme == 'files':
        return [key for key, name in dataset.splits.items() if rows.has_file(place, name)]
    there = rows.tfds_splits(place)
    return [key for key, name in dataset.splits.items() if name in there]


def folder_of(dataset: Dataset, directory) -> epath.Path | None:
    """The folder of this data set in a directory that holds many, or None.

    Its name is the data set's, or one of its known spellings, whatever the case, `-`, `_` and `.`, and with or without
    glue or super_glue before it: sst2, SST-2 and glue_sst2 are one.

    Raises UserError: no such directory, or two folders of this set.
    """
    directory = epath.Path(directory).expanduser()
    if not directory.is_dir():
        raise UserError(f'{directory} is not a directory; name the one that holds the folders of the data sets.')
    plain = lambda name: re.sub('[^a-z0-9]', '', name.lower())
    known = {prefix + plain(name) for name in (dataset.name, *dataset.spellings)
             for prefix in ('', 'glue', 'superglue')}
    found = sorted(path for path in directory.iterdir() if plain(path.name) in known and path.is_dir())
    if len(found) > 1:
        raise UserError(f'{directory} has both {found[0].name} and {found[1].name} for the data set {dataset.name!r}; '
                        'keep one of them.')
    return found[0] if found else None


def _source(dataset: Dataset, source_uri: str) -> tuple[str, str, str]:
    """(URI, scheme, place)"""
    uri = source_uri or dataset.source
    scheme, _, place = uri.partition(':')
    if scheme != 'docs' and (scheme not in ('files', 'tfds', 'tokens') or not place):
        raise UserError(f'Data set {dataset.name!r}: source {uri!r} is not understood; '
                        'use files:/dir, tfds:name, tokens:/dir or docs:.')
    return uri, scheme, place


def _hold_out(examples: Examples, split: str, uri: str) -> Examples:
    """One side of a split that has train and dev in it. Rows with the same first text stay together: a schema of DPR
    comes as two rows, whose answers contradict each other."""
    from sklearn.model_selection import train_test_split  # the release's own split; slow to import
    n = len(examples)
    of_text = {}
    for row, text in enumerate(next(iter(examples.fields.values()))):
        of_text.setdefault(text, []).append(row)
    if len(of_text) < 2:
        raise UserError(f'{uri} has one row for train and dev together; at least two are needed.')
    held_out = _RELEASE_HELD_OUT if n >= 2 * _RELEASE_HELD_OUT else max(1, n // 5)
    texts = max(1, round(held_out * len(of_text) / n))  # where each stands once, exactly as many rows
    train, dev = train_test_split(list(of_text), test_size=texts, random_state=_RELEASE_SEED)
    return examples.take([row for text in (train if split == 'train' else dev) for row in of_text[text]])


# ----------------------------------------------------------------- rows -> Examples


def _parse(dataset: Dataset, uri: str, split: str, read: Iterator[tuple[str, dict]]) -> Examples:
    """Rows as the source has them -> Examples."""
    test = split.startswith('test')
    needed = dataset.fields if test else (*dataset.fields, dataset.label_field)
    examples = Examples({name: [] for name in dataset.fields}, None, [], [] if dataset.group_field else None)
    labels, without_label, place_of_id, kept_texts = [], [], {}, {}
    for where, row in _adapted(dataset, read):
        rows.require(where, row, needed)
        for name in dataset.fields:
            place = f'{where}, column {name!r}'
            if dataset.kind == 'multiple_choice' and name == dataset.fields[-1]:
                examples.fields[name].append(_choices(row[name], place, len(dataset.labels)))
            else:
                text = rows.to_text(row[name], place)
                examples.fields[name].append(kept_texts.setdefault(text, text))  # RACE's articles repeat
        label = _label(dataset, row.get(dataset.label_field), where)
        if label is None:
            without_label.append((len(labels), where))
        labels.append(label)
        id_ = next((str(row[column]) for column in _ID_COLUMNS if row.get(column) is not None), None)
        if id_ is not None and (first := place_of_id.setdefault(id_, where)) != where:
            raise UserError(f'{where} has the id {id_!r} of {first.rpartition(", ")[2]} too; '
                            'give each row an id of its own.')
        examples.ids.append(str(len(labels) - 1) if id_ is None else id_)
        if dataset.group_field:
            examples.groups.append(str(row.get(dataset.group_field, '')))
    if not labels:
        raise UserError(f'{uri} has no rows in its {split} split; add some, or name another source.')
    if not any(examples.groups or ()):
        examples.groups = None
    if test and len(without_label) == len(labels):
        return examples
    if without_label and not dataset.drop_unlabelled:
        raise UserError(f'{without_label[0][1]}: column {dataset.label_field!r} has no label; '
                        'label every row (only a test split may have no labels, and then none at all).')
    examples.labels = np.array([0 if label is None else label for label in labels],
                               np.float32 if dataset.labels is None else np.int32)
    if without_label:
        logging.info('%s: %d of the %d rows of the %s split of %s have no label and are left out',
                     dataset.name, len(without_label), len(labels), split, uri)
        dropped = {number for number, _ in without_label}
        examples = examples.take([i for i in range(len(labels)) if i not in dropped])
    return examples


def _adapted(dataset: Dataset, read: Iterator[tuple[str, dict]]) -> Iterator[tuple[str, dict]]:
    """Rows with the data set's own column names."""
    for where, row in read:
        for theirs, ours in dataset.aliases.items():
            if theirs in row and ours not in row:
                row[ours] = row.pop(theirs)
        if dataset.adapt is None:
            yield where, row
        else:
            yield from dataset.adapt(where, row)


def _choices(value, where: str, number: int) -> list[str]:
    value = rows.to_list(value, where)
    if len(value) != number:
        raise UserError(f'{where} has {len(value)} choices, but the data set has {number}; give {number}.')
    return [rows.to_text(choice, where) for choice in value]


def _label(dataset: Dataset, value, where: str) -> int | float | None:
    """The label's id or score; None for no label: -1, -, an empty string, null, or no column."""
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer() and dataset.labels:
        value = int(value)
    name = str(value).strip()
    if isinstance(value, bool):  # by name only, also 1 and 0: which of two ids true means, nobody knows
        name = next((n for n in (name, name.lower(), str(int(value))) if n in (dataset.labels or ())), name)
    if dataset.labels and name in dataset.labels:
        return dataset.labels.index(name)
    if name in _NO_LABEL:
        return None
    number = _number(name)
    where = f'{where}: column {dataset.label_field!r} has'
    if dataset.labels is None:
        low, high = dataset.score_range
        if not low <= number <= high:  # also when it is no number
            raise UserError(f'{where} {value!r}, which is no score between {low:g} and {high:g}; correct it.')
        return number
    # Where names are numbers themselves (Story Cloze: 1 and 2), ids would be ambiguous.
    ids_allowed = all(math.isnan(_number(label)) for label in dataset.labels)
    if ids_allowed and number in range(len(dataset.labels)):
        return int(number)
    raise UserError(f'{where} the unknown label {value!r}; the labels known are {", ".join(dataset.labels)}'
                    + (f', or their ids 0 to {len(dataset.labels) - 1}.' if ids_allowed else '.'))


def _number(text: str) -> float:
    """Its value; not-a-number where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
