"""The entries of the registry: their values, the files as they are published, and custom sets."""

import inspect
import re

import numpy as np
import pytest

from configs import finetune
from gpt1_jax.data.labelled.registry import REGISTRY, RULES, SUITES, custom_dataset, dataset_of
from gpt1_jax.errors import UserError
from helpers import load_files, write_lines

PAPER = {'snli', 'mnli', 'qnli', 'rte', 'scitail', 'race', 'story_cloze', 'mrpc', 'qqp', 'stsb', 'sst2', 'cola'}


def test_registry():
    expected = {
        'cola': ('classification', 'classification', 2, 2, 'matthews', 'accuracy'),
        'sst2': ('classification', 'classification', 2, 2, 'accuracy'),
        'snli': ('entailment', 'classification', 3, 3, 'accuracy'),
        'mnli': ('entailment', 'classification', 3, 3, 'accuracy'),
        'qnli': ('entailment', 'classification', 2, 2, 'accuracy'),
        'rte': ('entailment', 'classification', 2, 2, 'accuracy'),
        'wnli': ('entailment', 'classification', 2, 2, 'accuracy'),
        'scitail': ('entailment', 'classification', 2, 2, 'accuracy'),
        'mrpc': ('similarity', 'classification', 2, 2, 'f1', 'accuracy'),
        'qqp': ('similarity', 'classification', 2, 2, 'f1', 'accuracy'),
        'stsb': ('similarity', 'ordinal', 6, 0, 'pearson', 'spearman'),
        'race': ('multiple_choice', 'multiple_choice', 1, 4, 'accuracy'),
        'story_cloze': ('multiple_choice', 'multiple_choice', 1, 2, 'accuracy'),
        'copa': ('multiple_choice', 'multiple_choice', 1, 2, 'accuracy'),
        'dpr': ('multiple_choice', 'multiple_choice', 1, 2, 'accuracy'),
    }
    assert {
        name: (d.kind, d.loss, d.classes, len(d.labels or ()), *d.metrics)
        for name, d in REGISTRY.items()
        if name in expected
    } == expected
    assert expected.keys() == PAPER | {'wnli', 'copa', 'dpr'}
    assert all(
        d.name == name and d.rule in RULES and d.suites in ((), ('all',), ('glue', 'all'))
        for name, d in REGISTRY.items()
    )


def test_suites():
    """In the order of the table that a suite prints."""
    glue = ('cola', 'sst2', 'mrpc', 'stsb', 'qqp', 'mnli', 'qnli', 'rte', 'wnli')
    assert SUITES == {'glue': glue, 'all': (*glue, 'snli', 'scitail', 'race', 'story_cloze', 'copa', 'dpr')}


NLI_HEADER = 'index\tpromptID\tsentence1_parse\tsentence1\tsentence2\tlabel1\tgold_label\n'
PAIR_HEADER = 'index\tsentence1\tsentence2\tlabel\n'
STORY_HEADER = (
    'InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,RandomFifthSentenceQuiz1,'
    'RandomFifthSentenceQuiz2,AnswerRightEnding\n'
)
KAGGLE = '"id","qid1","qid2","question1","question2","is_duplicate"\n'
PAIR = [['a'], ['b']]
PUBLISHED = [  # data set, split, file, its text, fields, labels, ids
    (
        'cola',
        'train',
        'train.tsv',
        'gj04\t1\t\tA "quoted one.\ngj04\t0\t*\tTwo\n',
        [['A "quoted one.', 'Two']],
        [1, 0],
        None,
    ),
    ('cola', 'test', 'test.tsv', 'index\tsentence\n0\tOne\n1\tTwo\n', [['One', 'Two']], None, ['0', '1']),
    ('sst2', 'dev', 'dev.tsv', 'sentence\tlabel\nOne \t1\n', [['One ']], [1], None),
    (
        'mrpc',
        'dev',
        'dev.tsv',
        '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\ta\tb\n0\t9\t7\tc\td\n',
        [['a', 'c'], ['b', 'd']],
        [1, 0],
        None,
    ),
    ('mrpc', 'test', 'test.tsv', 'index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t7\t8\ta\tb\n', PAIR, None, ['0']),
    (
        'qqp',
        'train',
        'train.tsv',
        'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n5\t1\t2\ta\tb\t1\n6\t3\n',
        PAIR,
        [1],
        ['5'],  # the second line is broken, as some of GLUE's are
    ),
    ('stsb', 'dev', 'dev.tsv', 'index\tgenre\tsentence1\tsentence2\tscore\n0\tx\ta\tb\t3.800\n', PAIR, [3.8], ['0']),
    ('mnli', 'dev', 'dev_matched.tsv', NLI_HEADER + '3\tp\tx\ta\tb\tneutral\tcontradiction\n', PAIR, [2], ['3']),
    (
        'mnli',
        'dev_mismatched',
        'dev_mismatched.tsv',
        NLI_HEADER + '4\tp\tx\tc\td\tneutral\tneutral\n',
        [['c'], ['d']],
        [1],
        ['4'],
    ),
    ('mnli', 'test_mismatched', 'test_mismatched.tsv', 'index\tsentence1\tsentence2\n9\ta\tb\n', PAIR, None, ['9']),
    (
        'snli',
        'dev',
        'dev.tsv',
        NLI_HEADER + '1\tp\tx\ta\tb\tneutral\t-\n2\tp\tx\tc\td\tneutral\tentailment\n',
        [['c'], ['d']],
        [0],
        ['2'],
    ),
    ('qnli', 'train', 'train.tsv', 'index\tquestion\tsentence\tlabel\n0\ta\tb\tnot_entailment\n', PAIR, [1], ['0']),
    ('rte', 'train', 'train.tsv', PAIR_HEADER + '0\ta\tb\tentailment\n', PAIR, [0], ['0']),
    ('wnli', 'train', 'train.tsv', PAIR_HEADER + '0\ta\tb\t1\n', PAIR, [1], ['0']),
    ('scitail', 'train', 'train.tsv', 'a\tb\tneutral\nc\td\tentails\n', [['a', 'c'], ['b', 'd']], [1, 0], None),
    ('scitail', 'dev', 'dev.tsv', 'premise\thypothesis\tlabel\na\tb\tneutral\n', PAIR, [1], None),
    (
        'story_cloze',
        'test',
        'test.csv',
        STORY_HEADER + 'u-1,"A, b.",C.,D.,E.,F.,"""G""",2\n',
        [['A, b. C. D. E.'], [['F.', '"G"']]],
        [1],
        ['u-1'],
    ),
    (
        'copa',
        'dev',
        'val.jsonl',
        '{"premise": "a", "choice1": "b", "choice2": "c", "question": "cause", "label": 1, "idx": 0}\n'
        '{"premise": "d", "choice1": "e", "choice2": "f", "question": "effect", "label": 0, "idx": 1}\n',
        [['a', 'd'], ['What was the cause of this?', 'What happened as a result?'], [['b', 'c'], ['e', 'f']]],
        [1, 0],
        ['0', '1'],
    ),
    # The authors' own files, under their names.
    ('cola', 'dev', 'cola_public/raw/in_domain_dev.tsv', 'gj04\t0\t*\tOne "two\n', [['One "two']], [0], None),
    ('cola', 'train', 'original/raw/in_domain_train.tsv', 'gj04\t1\t\tOne\n', [['One']], [1], None),
    (
        'stsb',
        'dev',
        'sts-dev.csv',
        'main\tx\t2012\t1\t5.000\t"a\tb, c\nmain\ty\t2013\t1\t0.2\tc\td\thttp://e\thttp://f\n',
        [['"a', 'c'], ['b, c', 'd']],
        [5, 0.2],
        None,
    ),
    ('qqp', 'train', 'train.csv', KAGGLE + '"7","1","2","a ""b""","","1"\n', [['a "b"'], ['']], [1], ['7']),
    ('qqp', 'test', 'test.csv', '"test_id","question1","question2"\n"3","a","b\nc"\n', [['a'], ['b\nc']], None, ['3']),
    (
        'qqp',
        'train',
        'train.jsonl',
        '{"questions": {"id": [1, 2], "text": ["a", "b"]}, "is_duplicate": true}\n'
        '{"questions": {"id": [3, 4], "text": ["c", "d"]}, "is_duplicate": false}\n',
        [['a', 'c'], ['b', 'd']],
        [1, 0],
        None,
    ),
    (
        'mnli',
        'dev_mismatched',
        'multinli_1.0/multinli_1.0_dev_mismatched.jsonl',
        '{"gold_label": "-", "sentence1": "a", "sentence2": "b", "pairID": "1n"}\n'
        '{"gold_label": "neutral", "sentence1": "c", "sentence2": "d", "pairID": "2n"}\n',
        [['c'], ['d']],
        [1],
        ['1'],
    ),
    (
        'mnli',
        'train',
        'multinli_1.0_train.txt',
        'gold_label\tsentence1\tsentence2\tgenre\tlabel1\tlabel2\nneutral\t"a\tb\tx\tneutral\n',
        [['"a'], ['b']],
        [1],
        None,
    ),
    (
        'snli',
        'test',
        'snli_1.0_test.txt',
        'gold_label\tsentence1\tsentence2\tpairID\tlabel1\tlabel2\n-\ta\tb\t1n\tneutral\tentailment\n'
        'contradiction\ta "b"\td\t2n\tcontradiction\n',
        [['a "b"'], ['d']],
        [2],
        ['1'],
    ),
    ('scitail', 'dev', 'tsv_format/scitail_1.0_dev.tsv', 'a "c.\tb\tneutral\n', [['a "c.'], ['b']], [1], None),
    ('scitail', 'dev', 'dgem_format/scitail_1.0_structure_dev.tsv', 'a\tb\tentails\tx<>y\n', PAIR, [0], None),
    (
        'scitail',
        'dev',
        'snli_format/scitail_1.0_dev.txt',
        '{"sentence1": "a", "sentence2": "b", "gold_label": "entailment", "annotator_labels": ["entailment"]}\n' * 2,
        [['a', 'a'], ['b', 'b']],
        [0, 0],
        None,
    ),
    (
        'scitail',
        'dev',
        'SciTailV1.1/predictor_format/scitail_1.0_structure_dev.jsonl',
        '{"answer": "x", "sentence1": "a", "sentence2": "b", "gold_label": "entails", "question": "y"}\n',
        PAIR,
        [0],
        None,
    ),
    (
        'race',
        'dev',
        'RACE/dev/middle/12.txt',
        '{"answers": ["B", "D"], "options": [["a", "b", "c", "d"], ["e", "f", "g", "h"]], "questions": ["q", "r _"], '
        '"article": "one.\\ntwo.", "id": "12.txt"}\n',
        [['one.\ntwo.'] * 2, ['q', 'r _'], [['a', 'b', 'c', 'd'], ['e', 'f', 'g', 'h']]],
        [1, 3],
        None,
    ),
    (
        'story_cloze',
        'test',
        'cloze_test_test__winter2018-cloze_test_ALL_test - 1.csv',
        STORY_HEADER.replace(',AnswerRightEnding', '') + 'u-1,A.,B.,C.,D.,E.,F.\n',
        [['A. B. C. D.'], [['E.', 'F.']]],
        None,
        ['u-1'],
    ),
]


@pytest.mark.parametrize(
    'name, split, file, text, fields, labels, ids', PUBLISHED, ids=[f'{name}-{split}' for name, split, *_ in PUBLISHED]
)
def test_files_as_they_are_published(tmp_path, name, split, file, text, fields, labels, ids):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    write_lines(tmp_path / file, text)
    examples = load_files(name, tmp_path, split)
    assert list(examples.fields.items()) == list(zip(REGISTRY[name].fields, fields))
    assert (None if examples.labels is None else examples.labels.tolist()) == (labels and np.float32(labels).tolist())
    assert examples.ids == (ids or [str(i) for i in range(len(fields[0]))])


CHOICES = {'kind': 'multiple_choice', 'choices': ['c', 'd']}


def test_registry_and_custom_agree():
    for dataset in REGISTRY.values():
        names = inspect.signature(custom_dataset).parameters
        values = {name: getattr(dataset, name) for name in names if name != 'max_score'}
        custom = custom_dataset(**values, max_score=(dataset.score_range or (0, 0))[1])
        for name, value in values.items():
            assert getattr(custom, name) == value
        assert custom.score_range == dataset.score_range


@pytest.mark.parametrize(
    'change, words',
    [
        ({'kind': 'regression'}, "data.kind: The kind 'regression' is unknown. Use one of classification, entailment"),
        ({'fields': ['a']}, 'There must be 2 different fields'),
        ({'fields': ['a', 'a']}, 'There must be 2 different fields'),
        ({'kind': 'multiple_choice', 'fields': ['a', 'b', 'c', 'd']}, 'There must be 2 or 3 different fields'),
        ({'kind': 'multiple_choice', 'labels': None}, 'Multiple choice needs the names of the choices'),
        ({'labels': ['x']}, 'two or more different names'),
        ({'labels': ['x', 'x']}, 'two or more different names'),
        ({'labels': None}, 'or data.max_score, a whole number'),
        ({'labels': None, 'max_score': 4.5}, 'or data.max_score, a whole number'),
        ({'max_score': 5}, 'There are labels and a max_score'),
        ({'label_field': 'b'}, "data.fields: The column 'b' is that of the label"),
        ({'metrics': ['pearson']}, "data.metrics: The metric 'pearson' does not fit"),
        ({'metrics': ['f1'], 'labels': ['x', 'y', 'z']}, "data.metrics: The metric 'f1' does not fit"),
        ({'choices': ['c', 'd']}, "data.choices: The choices cannot be in 'c, d'. Name two or more columns"),
        ({**CHOICES, 'choices': ['c']}, "data.choices: The choices cannot be in 'c'"),
        ({**CHOICES, 'choices': ['c', 'c']}, "data.choices: The choices cannot be in 'c, c'"),
        ({**CHOICES, 'choices': ['c', 'a']}, "data.choices: The choices cannot be in 'c, a'"),
        ({**CHOICES, 'choices': ['c', 'label']}, "data.choices: The choices cannot be in 'c, label'"),
        ({**CHOICES, 'labels': ['x', 'y', 'z']}, 'data.labels: There are 3 for 2 choices. Name one for each'),
        ({**CHOICES, 'fields': []}, 'There must be 2 or 3 different fields'),
        ({**CHOICES, 'fields': ['a', 'b', 'e']}, 'There must be 2 or 3 different fields'),
    ],
)
def test_custom_data_sets_are_checked(change, words):
    with pytest.raises(UserError) as caught:
        custom_dataset(**{'kind': 'entailment', 'fields': ['a', 'b'], 'labels': ['x', 'y'], **change})
    assert words in str(caught.value) and re.fullmatch(r'data\.\w+: [A-Z].*\. [A-Z].*\.', str(caught.value))


def test_a_custom_set_of_a_config():
    data = finetune.get_config('custom').data
    data.update(kind='multiple_choice', fields='story,question', choices='b, a', label_field='answer', source='files:x')
    dataset = dataset_of(data)
    assert dataset.fields == ('story', 'question', 'b, a') and dataset.choices == dataset.labels == ('b', 'a')
    data.labels = '1,2'
    assert dataset_of(data).labels == ('1', '2')
    with data.unlocked():
        del data.choices  # as in the config of a run of an earlier version
    data.update(fields='story,ends')
    assert dataset_of(data).choices == () and dataset_of(data).fields == ('story', 'ends')


@pytest.mark.parametrize(
    ('text', 'names'),
    [
        ("['premise','hypothesis']", ('premise', 'hypothesis')),
        ('("premise", "the hypothesis")', ('premise', 'the hypothesis')),
        ('[premise, hypothesis]', ('premise', 'hypothesis')),
        ("'premise',hypothesis,", ('premise', 'hypothesis')),
        ('[1],[2]', ('[1]', '[2]')),
        ('premise (en),hypothesis (en)', ('premise (en)', 'hypothesis (en)')),
        ("it's,the authors'", ("it's", "the authors'")),
        ('"arts, crafts", \'news, other\'', ('arts, crafts', 'news, other')),
        ('["arts, crafts",news]', ('arts, crafts', 'news')),
        ("'a' b',c", ("a' b", 'c')),
    ],
)
def test_names_are_taken_in_brackets_and_quotes_too(text, names):
    data = finetune.get_config('custom').data
    data.update(kind='entailment', fields=text, labels=text, label_field='answer', source='files:x')
    assert dataset_of(data).fields == dataset_of(data).labels == names
    data.update(metrics="['accuracy']")
    assert dataset_of(data).metrics == ('accuracy',)
