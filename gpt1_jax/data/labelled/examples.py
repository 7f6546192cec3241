"""Entries as a source has them -> Examples: every text, label and id of a split, checked."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging

from gpt1_jax.data.labelled.registry import Dataset
from gpt1_jax.data.labelled.values import require, to_list, to_text
from gpt1_jax.errors import UserError

_ID_COLUMNS = ('idx', 'id', 'index', 'story_id', 'inputstoryid', 'test_id')  # in any case
_NO_ID = re.compile('[\x00-\x1f\x7f\ud800-\udfff]')  # would break a line of a prediction file
_NO_LABEL = ('', '-', '-1', '-1.0', 'hidden')


@dataclasses.dataclass
class Examples:
    """Labelled examples of one split.

    Attributes:
      fields: column name -> n texts (for choices: n lists of texts), in the order of the sequence.
      labels: int32 [n] label ids, float32 [n] scores, or None if the split has no labels.
      ids: n different strings: the entries' idx, id, index, story_id, InputStoryid or test_id, in any case, if each has
        one and no two are the same; else their numbers.
      subsets: n values of the data set's subset_field (RACE's level), or None if the entries have none.
    """

    fields: dict[str, list]
    labels: np.ndarray | None
    ids: list[str]
    subsets: list[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Sequence[int]) -> 'Examples':
        """The examples of these indices, in this order."""
        pick = lambda column: None if column is None else [column[i] for i in indices]
        return Examples(
            {name: pick(column) for name, column in self.fields.items()},
            None if self.labels is None else self.labels[np.asarray(indices, int)],
            pick(self.ids),
            pick(self.subsets),
        )


def parse(dataset: Dataset, uri: str, split: str, entries: Iterator[tuple[str, dict]]) -> Examples:
    """Entries as the source has them, each with its place -> Examples. Warns of anything odd, in one line.

    Raises:
      UserError: an entry does not fit the data set, or there is none. `uri` and `split` are for these messages.
    """
    test = split.startswith('test')
    needed = dataset.fields if test else (*dataset.fields, dataset.label_field)
    examples = Examples({name: [] for name in dataset.fields}, None, [], [] if dataset.subset_field else None)
    labels, without_label, kept_texts, odd, label_ids, names = [], [], {}, collections.Counter(), set(), set()
    for where, entry in adapted(dataset, entries):
        require(where, entry, needed)
        texts = []
        for name in dataset.fields:
            column = f'{where}, column {name!r}'
            if dataset.kind == 'multiple_choice' and name == dataset.fields[-1]:
                choices = [_text(choice, column, odd) for choice in _choices(dataset, entry[name], column)]
                examples.fields[name].append(choices)
                texts += choices
            else:
                text = _text(entry[name], column, odd)
                examples.fields[name].append(kept_texts.setdefault(text, text))  # RACE's articles repeat
                texts.append(text)
        odd['examples without any text'] += all(not text or text.isspace() for text in texts)
        value = entry.get(dataset.label_field)
        label = _label(dataset, value, f'{where}, column {dataset.label_field!r}', label_ids)
        if label is None:
            without_label.append((len(labels), where, value))
        labels.append(label)
        if dataset.labels is not None:
            names.add(_plain(value).strip())
        ids = [_plain(entry[column]) for column in _id_columns(dataset, entry) if entry[column] is not None]
        examples.ids.append(next(filter(None, ids), '') if ids else None)
        if dataset.subset_field:
            examples.subsets.append(str(entry.get(dataset.subset_field, '')))
    if not labels:
        raise UserError(f'{uri}: The {split} split is empty. Add examples, or name another source.')
    examples.ids, odd['empty or repeated ids (the examples are numbered instead)'] = _numbered(examples.ids)
    notes = [f'{what}: {count}' for what, count in odd.items() if count] + _shifted(dataset, label_ids, labels)
    if notes:
        logging.warning('%s, %s split of %d examples: %s.', uri, split, len(labels), '; '.join(notes))
    if not any(examples.subsets or ()):
        examples.subsets = None
    if test and len(without_label) == len(labels):
        return examples
    if without_label and (not dataset.drop_unlabelled or len(without_label) == len(labels)):
        _, where, value = without_label[0]
        none, fix = _of_no_label(dataset, value, names)
        raise UserError(
            f'{where}, column {dataset.label_field!r}: {none}, as in {len(without_label)} of {len(labels)} examples. '
            f'Label every example (only a test split may have no labels, and then none at all){fix}.'
        )
    examples.labels = np.array(
        [0 if label is None else label for label in labels], np.float32 if dataset.labels is None else np.int32
    )
    if without_label:
        logging.info(
            '%s: %d of the %d examples of the %s split of %s have no label and are left out.',
            dataset.name,
            len(without_label),
            len(labels),
            split,
            uri,
        )
        dropped = {number for number, *_ in without_label}
        examples = examples.take([i for i in range(len(labels)) if i not in dropped])
    return examples


def adapted(dataset: Dataset, entries: Iterator[tuple[str, dict]]) -> Iterator[tuple[str, dict]]:
    """Entries as the source has them, each with its place -> entries with the data set's own column names."""
    for where, entry in entries:
        for theirs, ours in dataset.aliases.items():
            if theirs in entry and ours not in entry:
                entry[ours] = entry.pop(theirs)
        if dataset.choices:
            require(where, entry, dataset.choices)
            entry[dataset.fields[-1]] = [entry[name] for name in dataset.choices]
        if dataset.adapt is None:
            yield where, entry
        else:
            yield from dataset.adapt(where, entry)


def _text(value, where: str, odd: collections.Counter) -> str:
    text = to_text(value, where)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: JSON can write it, UTF-8 cannot
        odd['texts with half a character (U+FFFD stands for it)'] += 1
        text = text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
    return text


def _choices(dataset: Dataset, value, where: str) -> list:
    try:
        value = to_list(value, where)
    except UserError as error:
        if dataset.name == 'custom':
            raise UserError(f'{error} If each choice has its own column, name these in data.choices.') from None
        raise
    if len(value) != len(dataset.labels):
        raise UserError(
            f'{where}: The number of choices is {len(value)}, but the data set has {len(dataset.labels)}. '
            f'Give {len(dataset.labels)}.'
        )
    return value


def _plain(value) -> str:
    """The text of an id or a label. A column of integers with nulls in it was often saved as one of floats."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _id_columns(dataset: Dataset, entry: dict) -> list[str]:
    """The columns that may hold the entry's id, the most likely first."""
    own = (*dataset.fields, dataset.label_field)
    found = [name for name in entry if name.lower() in _ID_COLUMNS and name not in own]
    return sorted(found, key=lambda name: (name not in _ID_COLUMNS, _ID_COLUMNS.index(name.lower())))


def _numbered(ids: list[str | None]) -> tuple[list[str], int]:
    """(the ids if all are there and different, else numbers; how many are unusable, 0 if no entry has one)"""
    usable = {id_ for id_ in ids if id_ and not _NO_ID.search(id_)}
    if len(usable) == len(ids):
        return ids, 0
    return list(map(str, range(len(ids)))), 0 if set(ids) == {None} else len(ids) - len(usable)


# ----------------------------------------------------------------- labels


def _label(dataset: Dataset, value, where: str, ids: set[int]) -> int | float | None:
    """The label's id or score; None for no label: -1, -, hidden, an empty string, null, or no column.

    ids: the id is added if the value is an id itself.
    """
    if value is None or value != value:  # null; not-a-number, which is pandas' null
        return None
    name = str(value).strip()
    number = _number(name)
    if dataset.labels is None:
        if name in _NO_LABEL:
            return None
        low, high = dataset.score_range
        if not low <= number <= high:  # also when it is not a number
            comma = ' (with a point, not a comma)' if ',' in name else ''
            raise UserError(f'{where}: The score {value!r} is not between {low:g} and {high:g}. Correct it{comma}.')
        return number
    for one in _names(dataset, name):
        if one in dataset.labels:
            return dataset.labels.index(one)
    equal = [i for i, label in enumerate(dataset.labels) if _number(label) == number]
    if len(equal) == 1:
        return equal[0]
    if name in _NO_LABEL:
        return None
    # If the names are numbers themselves (Story Cloze: 1 and 2), or nobody has named them, ids would be ambiguous.
    ids_allowed = dataset.labels != dataset.choices and all(math.isnan(_number(label)) for label in dataset.labels)
    if ids_allowed and number in range(len(dataset.labels)):
        ids.add(int(number))
        return int(number)
    raise _unknown(dataset, value, where, ids_allowed)


def _names(dataset: Dataset, name: str) -> Iterator[str]:
    """The names that mean the same label as `name`. A truth value stands for a label of that name, or for 1 or 0 if
    these are labels, but never for an id: nobody knows which of two ids `true` means."""
    yield name
    if (truth := name.lower()) in ('true', 'false'):
        yield truth
        if {'0', '1'} <= {*dataset.labels}:
            yield str(int(truth == 'true'))
        name = truth
    if name in dataset.label_aliases:
        yield dataset.label_aliases[name]


def _unknown(dataset: Dataset, value, where: str, ids_allowed: bool) -> UserError:
    what, use = f'The label {value!r} is unknown', ', '.join(dataset.labels)
    name = str(value).strip()
    if like := [label for label in dataset.labels if label.lower() == name.lower()]:
        what += f', only {like[0]!r} is known: upper and lower case differ'
    if ids_allowed:
        use += f', or their ids 0 to {len(dataset.labels) - 1}'
    if not math.isnan(_number(name)) and (ids_allowed or dataset.name == 'custom'):
        use += f'; {_from_1(dataset)}'
    if ',' in name and dataset.name == 'custom':
        use += f'; in data.labels, put a name with a comma in quotes, as in "{name}",other'
    return UserError(f'{where}: {what}. Use {use}.')


def _of_no_label(dataset: Dataset, value, names: set[str]) -> tuple[str, str]:
    """What is wrong with a value that is not a label, and how else to fix it. names: all values of the column."""
    if value is None or value != value or not _plain(value).strip():
        return 'There is no label', ''
    what = f'The value {value!r} stands for no label'
    if dataset.name != 'custom' or dataset.labels is None:
        return what, ''
    numbers = {_number(name) for name in names - {'', 'None', 'nan'}}
    by_name = any(map(math.isnan, numbers))
    labels = [*dataset.labels, _plain(value).strip()] if by_name else [_plain(number) for number in sorted(numbers)]
    if dataset.kind == 'multiple_choice' and len(labels) != len(dataset.labels):
        return what, ''
    return what, f'; if it is a label, set data.labels={",".join(labels)}'


def _from_1(dataset: Dataset) -> str:
    from_0, from_1 = (','.join(map(str, range(first, first + len(dataset.labels)))) for first in (0, 1))
    if dataset.labels == dataset.choices:
        return f'if they are numbers, set data.labels={from_1} or data.labels={from_0}'
    if dataset.name == 'custom':
        return f'if they begin with 1, set data.labels={from_1}'
    return 'if they begin with 1, write the names'


def _shifted(dataset: Dataset, ids: set[int], labels: list) -> list[str]:
    """A note if the labels are ids and the first one never occurs: they may be numbers that begin with 1."""
    if not ids or 0 in labels:
        return []
    read = ', '.join(f'{i} is read as {dataset.labels[i]}' for i in sorted(ids))
    return [f'the labels are numbers, but never 0: {read} ({_from_1(dataset)})']


def _number(text: str) -> float:
    """The number that a text is; NaN if it is not one."""
    try:
        return float(text)
    except ValueError:
        return math.nan
