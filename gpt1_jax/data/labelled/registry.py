"""The labelled data sets: REGISTRY has one entry a set, SUITES groups them, `custom_dataset` makes one from a config.

To add a set, add an entry to REGISTRY; if its files have another form than `fields`, add a function to adapters.py.
"Paper" is Radford et al. (2018), "the release" the code published with it. Label orders and field names are those of
TensorFlow Datasets; `aliases` and `columns` are those of the files that GLUE and the authors of the sets publish.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence

from ml_collections import ConfigDict

from gpt1_jax.config import check_choice
from gpt1_jax.data.labelled import adapters
from gpt1_jax.errors import UserError

CLASS_METRICS = ('accuracy', 'matthews', 'f1')
SCORE_METRICS = ('pearson', 'spearman')
RULES = ('longest', 'release')
_FIELDS_OF_KIND = {'classification': (1, 1), 'entailment': (2, 2), 'similarity': (2, 2), 'multiple_choice': (2, 3)}


def _splits(train: str = 'train', dev: str = 'dev', test: str = 'test', **more: str) -> dict[str, str]:
    return {'train': train, 'dev': dev, 'test': test, **more}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One labelled data set.

    Attributes:
      name: key in REGISTRY.
      kind: 'classification', 'entailment', 'similarity' or 'multiple_choice' (paper, section 3.3).
      fields: column names in the order of the sequence; for multiple choice: context, [question], choices.
      labels: label names in the order of their ids (multiple choice: one per choice); None for a float target.
      metrics: names in evaluation.metrics; the first one picks the best epoch.
      label_field: column of the label.
      uri: where the data come from by default.
      hub: OWNER/NAME:CONFIG of an open copy on the Hugging Face hub, or ''.
      splits: the source's names of 'train', 'dev', 'test', and of more splits, with keys that begin with dev_ or test_.
        If train and dev have the same name, 374 examples of it are held out as dev, by place as in the release: the
        same ones only in a source that keeps the order of the authors' file, which TensorFlow Datasets does not.
      score_range: (0., highest) for a float target; highest is a whole number.
      rule: how long texts are cut, see encoding.encode.
      subset_field: column that names the subset of an example, such as RACE's level, for metrics by subset; or None.
      adapt: (where, entry) -> (where, entry)..., turns the source's entries into entries with these fields; see
        adapters.
      aliases: other names of columns -> the names above.
      label_aliases: other words for labels -> their names; true and false stand for truth values.
      choices: columns of the choices, if these are not one list in the last of `fields`.
      files: the authors' own names of its files, in the order in which they are looked for. `{}` stands for train, test
        or a word for dev, `*` for anything: all files that match are then read. Folders in front may be absent.
      dev_list: the file that lists the pairs of ids in the authors' training file that are dev.
      columns: of .tsv and .csv files that have no header line.
      may_lack: the last columns of .tsv files, which some lines do not have.
      drop_unlabelled: leave out entries without a label (SNLI, MultiNLI: the annotators did not agree), and log how
        many, instead of refusing them.
      drop_broken: likewise leave out lines of a .tsv that have too few or too many cells (GLUE's QQP has some).
      spellings: other names of the data set's folder, see loading.folder_of.
      suites: keys of SUITES that the set is part of.
      paper: metric -> (GPT's score, the best before it), on test sets in per cent (paper, tables 2 to 5), None if there
        is no number; with `_SUBSET` appended for a subset, and 'mismatched_' in front for MNLI's second test set.
      submission_names: split -> file name of predictions, without suffix; NAME_SPLIT for other splits.
      submission_labels: the labels' words in these files, in the order of their ids; the labels themselves by default.
      submission_suffix: 'tsv' or 'csv'.
    """

    name: str
    kind: str
    fields: tuple[str, ...]
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    label_field: str = 'label'
    uri: str = ''
    hub: str = ''
    splits: dict[str, str] = dataclasses.field(default_factory=_splits)
    score_range: tuple[float, float] | None = None
    rule: str = 'longest'
    subset_field: str | None = None
    adapt: Callable[[str, dict], Iterator[tuple[str, dict]]] | None = None
    aliases: dict[str, str] = dataclasses.field(default_factory=dict)
    label_aliases: dict[str, str] = dataclasses.field(default_factory=dict)
    choices: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    dev_list: str = ''
    columns: tuple[str, ...] = ()
    may_lack: tuple[str, ...] = ()
    drop_unlabelled: bool = False
    drop_broken: bool = False
    spellings: tuple[str, ...] = ()
    suites: tuple[str, ...] = ()
    paper: dict[str, tuple[float, float | None]] = dataclasses.field(default_factory=dict)
    submission_names: dict[str, str] = dataclasses.field(default_factory=dict)
    submission_labels: tuple[str, ...] | None = None
    submission_suffix: str = 'tsv'

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

    @property
    def outputs(self) -> tuple[str, ...] | None:
        """The labels of the linear layer's outputs; None if the outputs are not labels."""
        return self.labels if self.loss == 'classification' else None


def _of_glue(config: str) -> dict[str, str]:
    return dict(uri=f'tfds:glue/{config}', hub=f'nyu-mll/glue:{config}')


_TFDS_SPLITS = _splits(dev='validation')
_GLUE = dict(suites=('glue', 'all'), splits=_TFDS_SPLITS)
_NUMBERS = dict(submission_labels=('0', '1'))  # GLUE wants these sets' label ids, and the other sets' label names
_NLI_FIELDS = ('premise', 'hypothesis')
_NLI_LABELS = ('entailment', 'neutral', 'contradiction')
_NLI_ALIASES = {'sentence1': 'premise', 'sentence2': 'hypothesis', 'gold_label': 'label'}
_NLI_VOTES = tuple(f'label{i}' for i in range(1, 6))
_SENTENCES = ('sentence1', 'sentence2')
# One paragraph a set, not one line a value. A suite has its sets in this order.
# fmt: off
REGISTRY = {dataset.name: dataset for dataset in (
    Dataset('cola', 'classification', ('sentence',), ('unacceptable', 'acceptable'), ('matthews', 'accuracy'),
            **_of_glue('cola'), columns=('source', 'label', 'star', 'sentence'),
            files=('cola_public/raw/*_domain_{}.tsv', 'original/raw/*_domain_{}.tsv'),
            spellings=('cola_public', 'cola_public_1.1'), paper={'matthews': (45.4, 35.0)},
            submission_names={'test': 'CoLA'}, **_NUMBERS, **_GLUE),
    Dataset('sst2', 'classification', ('sentence',), ('negative', 'positive'), ('accuracy',), **_of_glue('sst2'),
            paper={'accuracy': (91.3, 93.2)}, submission_names={'test': 'SST-2'}, **_NUMBERS, **_GLUE),
    Dataset('mrpc', 'similarity', _SENTENCES, ('not_equivalent', 'equivalent'), ('f1', 'accuracy'),
            **_of_glue('mrpc'), aliases={'#1 String': 'sentence1', '#2 String': 'sentence2', 'Quality': 'label'},
            files=('msr_paraphrase_{}.txt',), dev_list='dev_ids.tsv',
            spellings=('msr_paraphrase_corpus', 'msrp'), paper={'f1': (82.3, 86.0)},
            submission_names={'test': 'MRPC'}, **_NUMBERS, **_GLUE),
    Dataset('stsb', 'similarity', _SENTENCES, None, ('pearson', 'spearman'), **_of_glue('stsb'),
            score_range=(0.0, 5.0), aliases={'score': 'label'}, spellings=('stsbenchmark',),
            files=('stsbenchmark/sts-{}.csv',), may_lack=('source1', 'source2'),
            columns=('genre', 'filename', 'year', 'old_index', 'score', *_SENTENCES, 'source1', 'source2'),
            paper={'pearson': (82.0, 81.0)}, submission_names={'test': 'STS-B'}, **_GLUE),
    Dataset('qqp', 'similarity', ('question1', 'question2'), ('not_duplicate', 'duplicate'), ('f1', 'accuracy'),
            **_of_glue('qqp'), aliases={'is_duplicate': 'label'},
            label_aliases={'true': 'duplicate', 'false': 'not_duplicate'}, drop_broken=True, adapt=adapters.qqp,
            spellings=('quora', 'quora_question_pairs', 'quora_duplicate_questions'), paper={'f1': (70.3, 66.1)},
            submission_names={'test': 'QQP'}, **_NUMBERS, **_GLUE),
    Dataset('mnli', 'entailment', _NLI_FIELDS, _NLI_LABELS, ('accuracy',), **_of_glue('mnli'),
            splits=_splits(dev='validation_matched', dev_mismatched='validation_mismatched',
                           test='test_matched', test_mismatched='test_mismatched'),
            aliases=_NLI_ALIASES, drop_unlabelled=True, may_lack=_NLI_VOTES,
            files=('multinli_1.0/multinli_1.0_{}.jsonl', 'multinli_1.0/multinli_1.0_{}.txt', '{}.txt'),
            spellings=('multinli', 'multi_nli', 'multinli_1.0'), suites=('glue', 'all'),
            paper={'accuracy': (82.1, 80.6), 'mismatched_accuracy': (81.4, 80.1)},
            submission_names={'test': 'MNLI-m', 'test_mismatched': 'MNLI-mm'}),
    Dataset('qnli', 'entailment', ('question', 'sentence'), ('entailment', 'not_entailment'), ('accuracy',),
            **_of_glue('qnli'), paper={'accuracy': (88.1, 82.3)}, submission_names={'test': 'QNLI'}, **_GLUE),
    Dataset('rte', 'entailment', _SENTENCES, ('entailment', 'not_entailment'), ('accuracy',), **_of_glue('rte'),
            paper={'accuracy': (56.0, 61.7)}, submission_names={'test': 'RTE'}, **_GLUE),
    Dataset('wnli', 'entailment', _SENTENCES, ('not_entailment', 'entailment'), ('accuracy',), **_of_glue('wnli'),
            paper={'accuracy': (53.4, None)}, submission_names={'test': 'WNLI'}, **_NUMBERS, **_GLUE),
    Dataset('snli', 'entailment', _NLI_FIELDS, _NLI_LABELS, ('accuracy',), uri='tfds:snli',
            hub='stanfordnlp/snli:plain_text', splits=_TFDS_SPLITS,
            aliases=_NLI_ALIASES, drop_unlabelled=True, may_lack=_NLI_VOTES,
            files=('snli_1.0/snli_1.0_{}.jsonl', 'snli_1.0/snli_1.0_{}.txt', '{}.txt'),
            spellings=('snli_1.0',), suites=('all',),
            paper={'accuracy': (89.9, 89.3)}),
    Dataset('scitail', 'entailment', _NLI_FIELDS, ('entails', 'neutral'), ('accuracy',), uri='tfds:sci_tail',
            hub='allenai/scitail:tsv_format',
            splits=_TFDS_SPLITS, aliases=_NLI_ALIASES, columns=(*_NLI_FIELDS, 'label', 'structure'),
            files=('SciTailV1.1/tsv_format/scitail_1.0_{}.tsv', 'SciTailV1.1/snli_format/scitail_1.0_{}.txt',
                   'SciTailV1.1/predictor_format/scitail_1.0_structure_{}.jsonl',
                   'SciTailV1.1/dgem_format/scitail_1.0_structure_{}.tsv', '{}.txt'), may_lack=('structure',),
            label_aliases={'entailment': 'entails'}, spellings=('scitail_v1.1',), suites=('all',),
            paper={'accuracy': (88.3, 83.3)}),
    Dataset('race', 'multiple_choice', ('article', 'question', 'options'), ('A', 'B', 'C', 'D'), ('accuracy',),
            label_field='answer', uri='tfds:race/middle,race/high',
            hub='ehovy/race:all', subset_field='level', adapt=adapters.race,
            files=('RACE/{}/*/*.txt',),
            suites=('all',), submission_suffix='csv',
            paper={'accuracy': (59.0, 53.3), 'accuracy_middle': (62.9, 60.2), 'accuracy_high': (57.4, 50.3)}),
    Dataset('story_cloze', 'multiple_choice', ('context', 'endings'), ('1', '2'), ('accuracy',),
            uri='tfds:story_cloze/2016', splits=_splits('validation', 'validation'), rule='release',
            adapt=adapters.story_cloze, suites=('all',),
            files=('cloze_test_{}__spring2016 - cloze_test_ALL_{}.csv', 'cloze_test_{}__spring2016.csv',
                   'cloze_test_{}__winter2018-cloze_test_ALL_{} - 1 - 1.csv',
                   'cloze_test_{}__winter2018-cloze_test_ALL_{} - 1.csv', 'cloze_test_{}__winter2018.csv'),
            spellings=('story_cloze_2016', 'story_cloze_2018', 'story_cloze_test', 'cloze_test', 'rocstories'),
            paper={'accuracy': (86.5, 77.6)}, submission_suffix='csv'),
    Dataset('copa', 'multiple_choice', ('premise', 'question', 'choices'), ('choice1', 'choice2'), ('accuracy',),
            uri='tfds:super_glue/copa', hub='aps/super_glue:copa', splits=_TFDS_SPLITS, adapt=adapters.copa,
            files=('COPA-resources/datasets/copa-{}.xml',), spellings=('copa_resources',), suites=('all',)),
    Dataset('dpr', 'multiple_choice', ('context', 'endings'), ('0', '1'), ('accuracy',),
            uri='tfds:definite_pronoun_resolution',
            hub='community-datasets/definite_pronoun_resolution:plain_text', splits=_splits(dev='train'),
            adapt=adapters.dpr,
            files=('{}.c.txt',), spellings=('dprd', 'definite_pronoun_resolution'), suites=('all',)),
    Dataset('docs_number', 'classification', ('text',), ('singular', 'plural'), ('accuracy',), uri='docs:'),
    Dataset('docs_next', 'entailment', ('text', 'word'), ('follows', 'does_not_follow'), ('accuracy',), uri='docs:'),
    Dataset('docs_same', 'similarity', ('first', 'second'), ('different', 'same'), ('accuracy', 'f1'), uri='docs:'),
    Dataset('docs_cloze', 'multiple_choice', ('text', 'words'), ('0', '1', '2', '3'), ('accuracy',), uri='docs:'),
)}
# fmt: on
# 'glue': its nine tasks. 'all': the paper's twelve sets, wnli, copa and dpr.
SUITES = {
    suite: tuple(name for name, dataset in REGISTRY.items() if suite in dataset.suites) for suite in ('glue', 'all')
}


def custom_dataset(
    *,
    kind: str,
    fields: Sequence[str],
    labels: Sequence[str] | None = None,
    metrics: Sequence[str] = (),
    label_field: str = 'label',
    uri: str = '',
    max_score: float = 0,
    choices: Sequence[str] = (),
) -> Dataset:
    """The data set 'custom' of a config's values `data.*`, with labels or a score from 0 to `max_score`.

    choices: columns of the choices, which then follow those of `fields`; by default they are the labels too.

    Raises:
      UserError: a value that does not fit.
    """
    if kind not in _FIELDS_OF_KIND:
        raise UserError(f'data.kind: The kind {kind!r} is unknown. Use one of {", ".join(_FIELDS_OF_KIND)}.')
    if choices:
        if kind != 'multiple_choice' or len(set(choices)) < max(2, len(choices)) or {*choices} & {*fields, label_field}:
            raise UserError(
                f'data.choices: The choices cannot be in {", ".join(choices)!r}. Name two or more columns that are '
                'neither in data.fields nor that of the label, and set data.kind=multiple_choice.'
            )
        fields, labels = (*fields, ', '.join(choices)), labels or choices
        if len(labels) != len(choices):
            raise UserError(
                f'data.labels: There are {len(labels)} for {len(choices)} choices. Name one for each, in their order.'
            )
    least, most = _FIELDS_OF_KIND[kind]
    if not least <= len(fields) <= most or len(set(fields)) < len(fields):
        count = str(least) if least == most else f'{least} or {most}'
        raise UserError(
            f'data.fields: There must be {count} different fields for {kind}, not {", ".join(fields)!r}. '
            'Name the columns of the text.'
        )
    if label_field in fields:
        raise UserError(f'data.fields: The column {label_field!r} is that of the label. Leave it out.')
    if labels is None:
        if kind == 'multiple_choice':
            raise UserError(
                'data.labels: Multiple choice needs the names of the choices. Set, for example, data.labels=A,B,C,D, '
                'or data.choices if each choice has its own column.'
            )
        if max_score < 1 or max_score != int(max_score):
            raise UserError(
                'data.labels: There are neither labels nor a highest score. Set data.labels=first,second,'
                '... or data.max_score, a whole number.'
            )
    elif max_score:
        raise UserError('data.labels: There are labels and a max_score. Set one of them.')
    elif len(labels) < 2 or len(set(labels)) < len(labels):
        raise UserError(
            f'data.labels: There must be two or more different names, not {", ".join(labels)!r}. Name each label once.'
        )
    known = SCORE_METRICS if labels is None else CLASS_METRICS
    metrics = tuple(metrics or known[:1])
    for metric in metrics:
        if metric not in known or (metric == 'f1' and len(labels) != 2):
            raise UserError(
                f'data.metrics: The metric {metric!r} does not fit the labels. Use {", ".join(known)} '
                '(f1 only with two labels).'
            )
    return Dataset(
        'custom',
        kind,
        tuple(fields),
        None if labels is None else tuple(labels),
        metrics,
        label_field,
        uri,
        choices=tuple(choices),
        score_range=None if labels else (0.0, float(max_score)),
    )


def dataset_of(data: ConfigDict) -> Dataset:
    """The data set that `config.data` names: of the registry, or a custom one. Raises UserError."""
    if data.dataset == 'custom':
        return custom_dataset(
            kind=data.kind,
            fields=_names(data.fields),
            labels=_names(data.labels) or None,
            metrics=_names(data.metrics),
            label_field=data.label_field,
            uri=data.source,
            max_score=data.max_score,
            choices=_names(data.get('choices', '')),  # a run of an earlier version has no such key
        )
    check_choice('data.dataset', data.dataset, (*REGISTRY, 'custom'))
    return REGISTRY[data.dataset]


def _names(text):
    """Names separated by commas, with or without brackets and quotes; in quotes they may have commas."""
    inside = re.fullmatch(r'\s*[\[(]([^][()]*)[\])]\s*', text)  # brackets that are not of the names
    words = re.findall(r"""\s*("[^"]+"|'[^']+'|[^,]*)\s*(?:,|$)""", inside[1] if inside else text)
    return tuple(re.sub(r"""^(['"])(.+)\1$""", r'\2', word.strip()) for word in words if word.strip())
