"""What each labelled data set is: REGISTRY has one entry a set, `custom_dataset` makes one from a config.

"paper" is Radford et al. (2018), "the release" the code published with it. Label orders and field names are those of
TensorFlow Datasets; `aliases` and `columns` are those of the files that GLUE and the authors of the sets ship.
"""

import dataclasses
from collections.abc import Callable

from gpt1_jax.data import adapters
from gpt1_jax.errors import UserError

CLASS_METRICS = ('accuracy', 'matthews', 'f1')
SCORE_METRICS = ('pearson', 'spearman')
RULES = ('longest', 'release')
_FIELDS_OF_KIND = {
    'classification': (1, 1), 'entailment': (2, 2), 'similarity': (2, 2), 'multiple_choice': (2, 3)}


def _splits(train: str = 'train', dev: str = 'dev', test: str = 'test', **more: str) -> dict[str, str]:
    return {'train': train, 'dev': dev, 'test': test, **more}


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
      splits: the source's names for 'train', 'dev', 'test', and for more splits whose keys begin with dev_ or test_.
        Where train and dev have the same name, 374 rows of it are held out as dev, as in the release.
      score_range: (0., highest) for a float target; highest is a whole number.
      rule: how long texts are cut, see transforms.encode.
      group_field: column by whose values the metrics are wanted besides, as RACE's level; or None.
      adapt: (where, row) -> (where, row)..., makes rows with the fields above of a source's own; see adapters.
      aliases: other names of columns -> the names above.
      columns: of .tsv and .csv files that have no header line.
      drop_unlabelled: leave out rows without a label (SNLI: the annotators did not agree) instead of refusing them.
      drop_broken: leave out lines of a .tsv that have too few or too many cells (GLUE's QQP has some), likewise.
      spellings: other names of the data set's folder, see datasets.folder_of.
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
    group_field: str | None = None
    adapt: Callable | None = None
    aliases: dict[str, str] = dataclasses.field(default_factory=dict)
    columns: tuple[str, ...] = ()
    drop_unlabelled: bool = False
    drop_broken: bool = False
    spellings: tuple[str, ...] = ()

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
_NLI_FIELDS = ('premise', 'hypothesis')
_NLI_LABELS = ('entailment', 'neutral', 'contradiction')
_NLI_ALIASES = {'sentence1': 'premise', 'sentence2': 'hypothesis', 'gold_label': 'label'}
_SENTENCES = ('sentence1', 'sentence2')
REGISTRY = {dataset.name: dataset for dataset in (
    Dataset('cola', 'classification', ('sentence',), ('unacceptable', 'acceptable'), ('matthews', 'accuracy'),
            source='tfds:glue/cola', splits=_GLUE, columns=('source', 'label', 'star', 'sentence')),
    Dataset('sst2', 'classification', ('sentence',), ('negative', 'positive'), ('accuracy',),
            source='tfds:glue/sst2', splits=_GLUE),
    Dataset('snli', 'entailment', _NLI_FIELDS, _NLI_LABELS, ('accuracy',),
            source='tfds:snli', splits=_GLUE, aliases=_NLI_ALIASES, drop_unlabelled=True, spellings=('snli_1.0',)),
    Dataset('mnli', 'entailment', _NLI_FIELDS, _NLI_LABELS, ('accuracy',), source='tfds:glue/mnli',
            splits=_splits(dev='validation_matched', dev_mismatched='validation_mismatched',
                           test='test_matched', test_mismatched='test_mismatched'),
            aliases=_NLI_ALIASES, spellings=('multinli', 'multi_nli', 'multinli_1.0')),
    Dataset('qnli', 'entailment', ('question', 'sentence'), ('entailment', 'not_entailment'), ('accuracy',),
            source='tfds:glue/qnli', splits=_GLUE),
    Dataset('rte', 'entailment', _SENTENCES, ('entailment', 'not_entailment'), ('accuracy',),
            source='tfds:glue/rte', splits=_GLUE),
    Dataset('wnli', 'entailment', _SENTENCES, ('not_entailment', 'entailment'), ('accuracy',),
            source='tfds:glue/wnli', splits=_GLUE),
    Dataset('scitail', 'entailment', _NLI_FIELDS, ('entails', 'neutral'), ('accuracy',), source='tfds:sci_tail',
            splits=_GLUE, aliases=_NLI_ALIASES, columns=(*_NLI_FIELDS, 'label'), spellings=('scitail_v1.1',)),
    Dataset('mrpc', 'similarity', _SENTENCES, ('not_equivalent', 'equivalent'), ('f1', 'accuracy'),
            source='tfds:glue/mrpc', splits=_GLUE,
            aliases={'#1 String': 'sentence1', '#2 String': 'sentence2', 'Quality': 'label'}),
    Dataset('qqp', 'similarity', ('question1', 'question2'), ('not_duplicate', 'duplicate'), ('f1', 'accuracy'),
            source='tfds:glue/qqp', splits=_GLUE, aliases={'is_duplicate': 'label'}, drop_broken=True),
    Dataset('stsb', 'similarity', _SENTENCES, None, ('pearson', 'spearman'), source='tfds:glue/stsb', splits=_GLUE,
            score_range=(0.0, 5.0), aliases={'score': 'label'}, spellings=('stsbenchmark',)),
    Dataset('race', 'multiple_choice', ('article', 'question', 'options'), ('A', 'B', 'C', 'D'), ('accuracy',),
            label_field='answer', source='tfds:race/middle,race/high', group_field='level', adapt=adapters.race),
    Dataset('story_cloze', 'multiple_choice', ('context', 'endings'), ('1', '2'), ('accuracy',),
            source='tfds:story_cloze/2016', splits=_splits('validation', 'validation'), rule='release',
            adapt=adapters.story_cloze, spellings=('story_cloze_2016', 'rocstories')),
    Dataset('copa', 'multiple_choice', ('premise', 'question', 'choices'), ('choice1', 'choice2'), ('accuracy',),
            source='tfds:super_glue/copa', splits=_GLUE, adapt=adapters.copa),
    Dataset('dpr', 'multiple_choice', ('context', 'endings'), ('0', '1'), ('accuracy',),
            source='tfds:definite_pronoun_resolution', splits=_splits(dev='train'), adapt=adapters.dpr,
            spellings=('dprd', 'definite_pronoun_resolution')),
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
                   splits=None, max_score=0, rule='longest') -> Dataset:
    """A Dataset from a config's values, checked. Raises UserError for a value that does not fit."""
    if kind not in _FIELDS_OF_KIND:
        kinds = ', '.join(_FIELDS_OF_KIND)
        raise UserError(f'Data set {name!r}: kind {kind!r} is unknown; use one of {kinds}.')
    least, most = _FIELDS_OF_KIND[kind]
    if not least <= len(fields) <= most or len(set(fields)) < len(fields):
        count = str(least) if least == most else f'{least} or {most}'
        raise UserError(f'Data set {name!r}: kind {kind!r} takes {count} different fields, not {fields!r}.')
    if label_field in fields:
        raise UserError(f'Data set {name!r}: the column {label_field!r} is the label and one of the fields; take it '
                        'out of data.fields.')
    if labels is None:
        if kind == 'multiple_choice':
            raise UserError(f'Data set {name!r}: multiple choice needs labels, the names of the choices.')
        if max_score < 1 or max_score != int(max_score):
            raise UserError(f'Data set {name!r} has neither labels nor a highest score: set data.labels=first,second,'
                            '... or data.max_score, a whole number.')
    elif max_score:
        raise UserError(f'Data set {name!r} has labels and a max_score: set one of them.')
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
    score_range = None if labels else (0.0, float(max_score))
    return Dataset(name, kind, tuple(fields), labels, metrics, label_field, source,
                   _splits(**(splits or {})), score_range, rule)
