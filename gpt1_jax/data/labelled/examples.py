"""Entries as a source has them -> Examples: every text, label and id of a split, checked."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging

from gpt1_jax.data.labelled.readers import require, to_list, to_text
from gpt1_jax.data.labelled.registry import Dataset
from gpt1_jax.errors import UserError

_ID_COLUMNS = ('idx', 'id', 'index', 'story_id', 'InputStoryid')
_NO_LABEL = ('', '-', '-1', '-1.0')


@dataclasses.dataclass
class Examples:
    """Labelled examples of one split.

    Attributes:
      fields: column name -> n texts (for choices: n lists of texts), in the order of the sequence.
      labels: int32 [n] label ids, float32 [n] scores, or None where the split has no labels.
      ids: n strings: the entry's idx, id, index, story_id or InputStoryid, else its number.
      subsets: n values of the data set's subset_field (RACE's level), or None where the entries have none.
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
    """Entries as the source has them, each with where it stands -> Examples.

    Raises:
      UserError: an entry does not fit the data set, or there is none. `uri` and `split` are for these messages.
    """
    test = split.startswith('test')
    needed = dataset.fields if test else (*dataset.fields, dataset.label_field)
    examples = Examples({name: [] for name in dataset.fields}, None, [], [] if dataset.subset_field else None)
    labels, without_label, first_with_id, kept_texts = [], [], {}, {}
    for where, entry in _adapted(dataset, entries):
        require(where, entry, needed)
        for name in dataset.fields:
            column = f'{where}, column {name!r}'
            if dataset.kind == 'multiple_choice' and name == dataset.fields[-1]:
                examples.fields[name].append(_choices(entry[name], column, len(dataset.labels)))
            else:
                text = to_text(entry[name], column)
                examples.fields[name].append(kept_texts.setdefault(text, text))  # RACE's articles repeat
        label = _label(dataset, entry.get(dataset.label_field), f'{where}, column {dataset.label_field!r}')
        if label is None:
            without_label.append((len(labels), where))
        labels.append(label)
        id_ = next((str(entry[column]) for column in _ID_COLUMNS if entry.get(column) is not None), None)
        if id_ is not None and (first := first_with_id.setdefault(id_, where)) != where:
            raise UserError(
                f'{where}: The id {id_!r} is also that of {first.rpartition(", ")[2]}. '
                'Give each example an id of its own.'
            )
        examples.ids.append(str(len(labels) - 1) if id_ is None else id_)
        if dataset.subset_field:
            examples.subsets.append(str(entry.get(dataset.subset_field, '')))
    if not labels:
        raise UserError(f'{uri}: The {split} split is empty. Add examples, or name another source.')
    if not any(examples.subsets or ()):
        examples.subsets = None
    if test and len(without_label) == len(labels):
        return examples
    if without_label and not dataset.drop_unlabelled:
        raise UserError(
            f'{without_label[0][1]}, column {dataset.label_field!r}: There is no label. Label every '
            'example (only a test split may have no labels, and then none at all).'
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
        dropped = {number for number, _ in without_label}
        examples = examples.take([i for i in range(len(labels)) if i not in dropped])
    return examples


def _adapted(dataset: Dataset, entries: Iterator[tuple[str, dict]]) -> Iterator[tuple[str, dict]]:
    """Entries with the data set's own column names."""
    for where, entry in entries:
        for theirs, ours in dataset.aliases.items():
            if theirs in entry and ours not in entry:
                entry[ours] = entry.pop(theirs)
        if dataset.adapt is None:
            yield where, entry
        else:
            yield from dataset.adapt(where, entry)


def _choices(value, where: str, number: int) -> list[str]:
    value = to_list(value, where)
    if len(value) != number:
        raise UserError(
            f'{where}: The number of choices is {len(value)}, but the data set has {number}. Give {number}.'
        )
    return [to_text(choice, where) for choice in value]


def _label(dataset: Dataset, value, where: str) -> int | float | None:
    """The label's id or score; None for no label: -1, -, an empty string, null, or no column."""
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer() and dataset.labels:
        value = int(value)
    name = str(value).strip()
    if isinstance(value, bool):  # by name only, also 1 and 0: nobody knows which of two ids `true` means
        name = next((n for n in (name, name.lower(), str(int(value))) if n in (dataset.labels or ())), name)
    if dataset.labels and name in dataset.labels:
        return dataset.labels.index(name)
    if name in _NO_LABEL:
        return None
    number = _number(name)
    if dataset.labels is None:
        low, high = dataset.score_range
        if not low <= number <= high:  # also when it is not a number
            raise UserError(f'{where}: The score {value!r} is not between {low:g} and {high:g}. Correct it.')
        return number
    # Where names are numbers themselves (Story Cloze: 1 and 2), ids would be ambiguous.
    ids_allowed = all(math.isnan(_number(label)) for label in dataset.labels)
    if ids_allowed and number in range(len(dataset.labels)):
        return int(number)
    raise UserError(
        f'{where}: The label {value!r} is unknown. Use {", ".join(dataset.labels)}'
        + (f', or their ids 0 to {len(dataset.labels) - 1}.' if ids_allowed else '.')
    )


def _number(text: str) -> float:
    """Its value; not-a-number if it is not a number."""
    try:
        return float(text)
    except ValueError:
        return math.nan
