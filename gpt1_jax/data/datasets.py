"""Labelled data sets: what each one is (REGISTRY), and how its rows are read (load_examples).

"paper" is Radford et al. (2018), "the release" the code published with it.
"""

import dataclasses
import json
from collections.abc import Iterator

import numpy as np

from gpt1_jax.data import rows
from gpt1_jax.errors import UserError

CLASS_METRICS = ('accuracy', 'matthews', 'f1')
SCORE_METRICS = ('pearson', 'spearman')
RULES = ('longest', 'release')
_FIELDS_OF_KIND = {
    'classification': (1, 1), 'entailment': (2, 2), 'similarity': (2, 2), 'multiple_choice': (2, 3)}
_ID_COLUMNS = ('idx', 'id', 'story_id')
# The release makes Story Cloze's train and dev sets of the validation file with these numbers.
_RELEASE_HELD_OUT, _RELEASE_SEED = 374, 3535999445


def _splits(train: str = 'train', dev: str = 'dev', test: str = 'test') -> dict[str, str]:
    return {'train': train, 'dev': dev, 'test': test}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One labelled data set.

    Attributes:
      name: key in REGISTRY.
      kind: 'classification', 'entailment', 'similarity' or 'multiple_choice' (paper, section 3.3).
      fields: column names in the order of the sequence; for multiple choice: context, [question], choices.
      labels: label names in the order of their ids (multiple choice: one a choice); None for a float target.
      metrics: names in analysis.metrics; the first one picks the best epoch.
      label_field: column of the label.
      source: default URI.
      splits: the source's names for 'train', 'dev' and 'test'. Where train and dev have the same name, 374
        rows of it are held out as dev, the same ones as in the release.
      score_range: (0., highest) for a float target; highest is a whole number.
      rule: how long texts are cut, see transforms.encode.
    """

    name: str
    kind: str
    fields: tuple[str, ...]
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    label_field: str = 'label'
    source: str = ''
    splits: dict[str, str] = dataclasses.field(default_factory=_splits)
    score_range: tuple[float, float] | None = None
    rule: str = 'longest'

    @property
    def loss(self) -> str:
        """'classification', 'multiple_choice' or 'ordinal' (soft targets over whole scores, the release)."""
        if self.labels is None:
            return 'ordinal'
        return 'multiple_choice' if self.kind == 'multiple_choice' else 'classification'

    @property
    def classes(self) -> int:
        """Outputs of the linear layer for one sequence: 1 for multiple choice."""
        if self.labels is None:
            return int(self.score_range[1]) + 1
        return 1 if self.kind == 'multiple_choice' else len(self.labels)


_GLUE = _splits(dev='validation')
REGISTRY = {dataset.name: dataset for dataset in (
    Dataset('sst2', 'classification', ('sentence',), ('negative', 'positive'), ('accuracy',),
            source='tfds:glue/sst2', splits=_GLUE),
    Dataset('rte', 'entailment', ('sentence1', 'sentence2'), ('entailment', 'not_entailment'), ('accuracy',),
            source='tfds:glue/rte', splits=_GLUE),
    Dataset('stsb', 'similarity', ('sentence1', 'sentence2'), None, ('pearson', 'spearman'),
            source='tfds:glue/stsb', splits=_GLUE, score_range=(0.0, 5.0)),
    Dataset('mrpc', 'similarity', ('sentence1', 'sentence2'), ('not_equivalent', 'equivalent'),
            ('f1', 'accuracy'), source='tfds:glue/mrpc', splits=_GLUE),
    Dataset('story_cloze', 'multiple_choice', ('context', 'endings'), ('1', '2'), ('accuracy',),
            source='tfds:story_cloze/2016', splits=_splits('validation', 'validation'), rule='release'),
    Dataset('docs_package', 'classification', ('passage',), ('0', '1', '2', '3'), ('accuracy',),
            source='docs:'),
    Dataset('docs_follows', 'entailment', ('first', 'second'), ('follows', 'does_not_follow'), ('accuracy',),
            source='docs:'),
    Dataset('docs_same', 'similarity', ('first', 'second'), ('different', 'same'), ('accuracy', 'f1'),
            source='docs:'),
    Dataset('docs_continuation', 'multiple_choice', ('context', 'endings'), ('0', '1', '2', '3'),
            ('accuracy',), source='docs:'),
)}


def custom_dataset(*, kind, fields, labels=None, metrics=None, name='custom', label_field='label', source='',
                   splits=None, score_range=None, rule='longest') -> Dataset:
    """A Dataset from a config's values, checked. Raises UserError for a value that does not fit."""
    if kind not in _FIELDS_OF_KIND:
        kinds = ', '.join(_FIELDS_OF_KIND)
        raise UserError(f'Data set {name!r}: kind {kind!r} is unknown; use one of {kinds}.')
    least, most = _FIELDS_OF_KIND[kind]
    if not least <= len(fields) <= most or len(set(fields)) < len(fields):
        count = str(least) if least == most else f'{least} or {most}'
        raise UserError(f'Data set {name!r}: kind {kind!r} takes {count} different fields, not {fields!r}.')
    if labels is None:
        if kind == 'multiple_choice':
            raise UserError(f'Data set {name!r}: multiple choice needs labels, the names of the choices.')
        high = score_range[1] if score_range and len(score_range) == 2 and score_range[0] == 0 else 0
        if high < 1 or high != int(high):
            raise UserError(f'Data set {name!r} has no labels, so score_range must be (0, a whole number), '
                            f'not {score_range!r}.')
    elif len(labels) < 2 or len({str(label) for label in labels}) < len(labels):
        raise UserError(f'Data set {name!r}: labels must be two or more different names, not {labels!r}.')
    known = SCORE_METRICS if labels is None else CLASS_METRICS
    metrics = tuple(metrics or known[:1])
    for metric in metrics:
        if metric not in known or (metric == 'f1' and len(labels) != 2):
            raise UserError(f'Data set {name!r}: metric {metric!r} does not fit its labels; '
                            f'use {", ".join(known)} (f1 with two labels only).')
    if rule not in RULES or (rule == 'release' and len(fields) != 2):
        raise UserError(f'Data set {name!r}: rule {rule!r} must be "longest", or "release" with two fields.')
    if unknown := set(splits or ()) - {'train', 'dev', 'test'}:
        raise UserError(f'Data set {name!r}: splits has {sorted(unknown)}; its keys are train, dev and test.')
    labels = None if labels is None else tuple(map(str, labels))
    score_range = None if labels else tuple(map(float, score_range))
    return Dataset(name, kind, tuple(fields), labels, metrics, label_field, source,
                   _splits(**(splits or {})), score_range, rule)


@dataclasses.dataclass
class Examples:
    """Rows of one split.

    Attributes:
      fields: column name -> n texts (for choices: n lists of texts), in the order of the sequence.
      labels: int32 [n] label ids, float32 [n] scores, or None where the split has no labels.
      ids: n strings: the row's idx, id or story_id, else its number.
    """

    fields: dict[str, list]
    labels: np.ndarray | None
    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices) -> 'Examples':
        """The examples of these indices, in this order."""
        return Examples({name: [column[i] for i in indices] for name, column in self.fields.items()},
                        None if self.labels is None else self.labels[np.asarray(indices, int)],
                        [self.ids[i] for i in indices])


def load_examples(dataset: Dataset, source_uri: str, split: str, limit: int | None = None) -> Examples:
    """Reads one split: 'train', 'dev' or 'test'. `limit` keeps the first ones; an empty URI is the default.

    Sources: `files:/dir` (SPLIT.jsonl, .tsv or .csv, each also .gz; a header line in .tsv and .csv; quotes
    mean nothing in .tsv; choices are a list, in .tsv and .csv a JSON list), `tfds:name/config` (prepared
    before), `docs:` or `docs:package,package`.

    Raises:
      UserError: what is missing or malformed, by file and line or column.
    """
    uri = source_uri or dataset.source
    scheme, _, place = uri.partition(':')
    if split not in ('train', 'dev', 'test'):
        raise UserError(f'There is no split {split!r}; use train, dev or test.')
    if limit is not None and limit < 1:
        raise UserError(f'limit is {limit}; use at least 1, or None for all examples of {uri}.')
    if scheme == 'docs':
        from gpt1_jax.data import docs_tasks  # it imports this module
        examples = docs_tasks.load(dataset.name, place, split)
    elif scheme in ('files', 'tfds') and place:
        read = rows.file_rows if scheme == 'files' else rows.tfds_rows
        examples = _parse(dataset, uri, split, read(place, dataset.splits[split]))
        if dataset.splits['train'] == dataset.splits['dev'] and split != 'test':
            examples = _hold_out(examples, split, uri)
    else:
        raise UserError(f'Data set {dataset.name!r}: source {uri!r} is not understood; '
                        'use files:/dir, tfds:name or docs:.')
    return examples if limit is None else examples.take(range(min(limit, len(examples))))


def _hold_out(examples: Examples, split: str, uri: str) -> Examples:
    from sklearn.model_selection import train_test_split  # the release's own split; slow to import
    n = len(examples)
    held_out = _RELEASE_HELD_OUT if n >= 2 * _RELEASE_HELD_OUT else max(1, n // 5)
    if n < 2:
        raise UserError(f'{uri} has one row for train and dev together; at least two are needed.')
    train, dev = train_test_split(np.arange(n), test_size=held_out, random_state=_RELEASE_SEED)
    return examples.take(train if split == 'train' else dev)


# ----------------------------------------------------------------- rows -> Examples


def _parse(dataset: Dataset, uri: str, split: str, rows: Iterator[tuple[str, dict]]) -> Examples:
    examples = Examples({name: [] for name in dataset.fields}, None, [])
    labels, unlabelled = [], None
    for where, row in rows:
        needed = dataset.fields if split == 'test' else (*dataset.fields, dataset.label_field)
        if missing := [name for name in needed if name not in row]:
            raise UserError(f'{where}: there is no column {missing[0]!r}, only {", ".join(map(str, row))}; '
                            f'rename a column, or name the right one in the config.')
        for name in dataset.fields:
            place = f'{where}, column {name!r}'
            if dataset.kind == 'multiple_choice' and name == dataset.fields[-1]:
                examples.fields[name].append(_choices(row[name], place, len(dataset.labels)))
            else:
                examples.fields[name].append(_text(row[name], place))
        label = _label(dataset, row.get(dataset.label_field), where)
        if label is None and unlabelled is None:
            unlabelled = where
        labels.append(label)
        examples.ids.append(next((str(row[c]) for c in _ID_COLUMNS if c in row), str(len(labels) - 1)))
    if not labels:
        raise UserError(f'{uri} has no rows in its {split} split; add some, or name another source.')
    if unlabelled is None:
        examples.labels = np.array(labels, np.float32 if dataset.labels is None else np.int32)
    elif split != 'test' or any(label is not None for label in labels):
        raise UserError(f'{unlabelled}: column {dataset.label_field!r} has no label; '
                        'label every row (only a test split may have no labels, and then none at all).')
    return examples


def _text(value, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f'{where} is {type(value).__name__} and not text; write it as a string.')
    return value


def _choices(value, where: str, number: int) -> list[str]:
    if isinstance(value, str):  # .tsv and .csv have no lists of their own
        try:
            value = json.loads(value)
        except ValueError:
            pass
    if not isinstance(value, list):
        raise UserError(f'{where} is not a list of choices; write ["first", "second"].')
    if len(value) != number:
        raise UserError(f'{where} has {len(value)} choices, but the data set has {number}; give {number}.')
    return [_text(choice, where) for choice in value]


def _label(dataset: Dataset, value, where: str) -> int | float | None:
    """The label's id or score; None for no label: -1, an empty string, null, or no column."""
    if isinstance(value, float) and value.is_integer() and dataset.labels:
        value = int(value)
    name = str(int(value) if isinstance(value, bool) else value).strip()
    if dataset.labels and name in dataset.labels:
        return dataset.labels.index(name)
    if value is None or name in ('', '-1', '-1.0'):
        return None
    try:
        number = float(name)
    except ValueError:
        number = float('nan')
    where = f'{where}: column {dataset.label_field!r} has'
    if dataset.labels is None:
        low, high = dataset.score_range
        if not low <= number <= high:  # also when it is no number
            raise UserError(f'{where} {value!r}, which is no score between {low:g} and {high:g}; correct it.')
        return number
    # Where the names themselves are numbers (Story Cloze: 1 and 2), ids would be ambiguous.
    ids_allowed = not all(label.isdecimal() for label in dataset.labels)
    if ids_allowed and number in range(len(dataset.labels)):
        return int(number)
    raise UserError(f'{where} the unknown label {value!r}; the labels known are {", ".join(dataset.labels)}'
                    + (f', or their ids 0 to {len(dataset.labels) - 1}.' if ids_allowed else '.'))
