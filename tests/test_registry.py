"""The data sets of the registry, read from files as they are shipped, and in the forms of their own."""

import json
import logging

import numpy as np
import pytest

from gpt1_jax.data.datasets import REGISTRY, folder_of, load_examples
from gpt1_jax.errors import UserError

PAPER = {'snli', 'mnli', 'qnli', 'rte', 'scitail', 'race', 'story_cloze', 'mrpc', 'qqp', 'stsb', 'sst2', 'cola'}


@pytest.fixture
def write(tmp_path):
    """write(file name, text or rows): text, or one line of JSON a row."""
    def write_file(name, content):
        if not isinstance(content, str):
            content = ''.join(json.dumps(row) + '\n' for row in content)
        (tmp_path / name).write_text(content)
    return write_file


@pytest.fixture
def load(tmp_path):
    return lambda name, split='train', **kwargs: load_examples(REGISTRY[name], f'files:{tmp_path}', split, **kwargs)


@pytest.fixture
def error(load):
    def message_of(name, split='train'):
        with pytest.raises(UserError) as caught:
            load(name, split)
        message = str(caught.value)
        assert '\n' not in message and message.endswith('.')
        return message
    return message_of


def test_registry():
    docs = {name for name in REGISTRY if name.startswith('docs_')}
    assert REGISTRY.keys() - docs == PAPER | {'wnli', 'copa', 'dpr'}
    assert {name: (d.kind, d.loss, d.classes, len(d.labels or ()), *d.metrics) for name, d in REGISTRY.items()
            if name not in docs} == {
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
        'dpr': ('multiple_choice', 'multiple_choice', 1, 2, 'accuracy')}


# ----------------------------------------------------------------- files as they are shipped


NLI_HEADER = 'index\tpromptID\tsentence1_parse\tsentence1\tsentence2\tlabel1\tgold_label\n'
PAIR_HEADER = 'index\tsentence1\tsentence2\tlabel\n'
STORY_HEADER = ('InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,RandomFifthSentenceQuiz1,'
                'RandomFifthSentenceQuiz2,AnswerRightEnding\n')
PAIR = [['a'], ['b']]
SHIPPED = [  # data set, split, file, its text, fields, labels, ids
    ('cola', 'train', 'train.tsv', 'gj04\t1\t\tA "quoted one.\ngj04\t0\t*\tTwo\n', [['A "quoted one.', 'Two']], [1, 0],
     None),
    ('cola', 'test', 'test.tsv', 'index\tsentence\n0\tOne\n1\tTwo\n', [['One', 'Two']], None, ['0', '1']),
    ('sst2', 'dev', 'dev.tsv', 'sentence\tlabel\nOne \t1\n', [['One ']], [1], None),
    ('mrpc', 'dev', 'dev.tsv', '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\ta\tb\n0\t9\t7\tc\td\n',
     [['a', 'c'], ['b', 'd']], [1, 0], None),
    ('mrpc', 'test', 'test.tsv', 'index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t7\t8\ta\tb\n', PAIR, None, ['0']),
    ('qqp', 'train', 'train.tsv', 'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n5\t1\t2\ta\tb\t1\n6\t3\n',
     PAIR, [1], ['5']),  # the second line is broken, as some of GLUE's are
    ('stsb', 'dev', 'dev.tsv', 'index\tgenre\tsentence1\tsentence2\tscore\n0\tx\ta\tb\t3.800\n', PAIR, [3.8], ['0']),
    ('mnli', 'dev', 'dev_matched.tsv', NLI_HEADER + '3\tp\tx\ta\tb\tneutral\tcontradiction\n', PAIR, [2], ['3']),
    ('mnli', 'dev_mismatched', 'dev_mismatched.tsv', NLI_HEADER + '4\tp\tx\tc\td\tneutral\tneutral\n',
     [['c'], ['d']], [1], ['4']),
    ('mnli', 'test_mismatched', 'test_mismatched.tsv', 'index\tsentence1\tsentence2\n9\ta\tb\n', PAIR, None, ['9']),
    ('snli', 'dev', 'dev.tsv', NLI_HEADER + '1\tp\tx\ta\tb\tneutral\t-\n2\tp\tx\tc\td\tneutral\tentailment\n',
     [['c'], ['d']], [0], ['2']),
    ('qnli', 'train', 'train.tsv', 'index\tquestion\tsentence\tlabel\n0\ta\tb\tnot_entailment\n', PAIR, [1], ['0']),
    ('rte', 'train', 'train.tsv', PAIR_HEADER + '0\ta\tb\tentailment\n', PAIR, [0], ['0']),
    ('wnli', 'train', 'train.tsv', PAIR_HEADER + '0\ta\tb\t1\n', PAIR, [1], ['0']),
    ('scitail', 'train', 'train.tsv', 'a\tb\tneutral\nc\td\tentails\n', [['a', 'c'], ['b', 'd']], [1, 0], None),
    ('scitail', 'dev', 'dev.tsv', 'premise\thypothesis\tlabel\na\tb\tneutral\n', PAIR, [1], None),
    ('story_cloze', 'test', 'test.csv', STORY_HEADER + 'u-1,"A, b.",C.,D.,E.,F.,"""G""",2\n',
     [['A, b. C. D. E.'], [['F.', '"G"']]], [1], ['u-1']),
    ('copa', 'dev', 'val.jsonl',
     '{"premise": "a", "choice1": "b", "choice2": "c", "question": "cause", "label": 1, "idx": 0}\n'
     '{"premise": "d", "choice1": "e", "choice2": "f", "question": "effect", "label": 0, "idx": 1}\n',
     [['a', 'd'], ['What was the cause of this?', 'What happened as a result?'], [['b', 'c'], ['e', 'f']]], [1, 0],
     ['0', '1']),
]


@pytest.mark.parametrize('name, split, file, text, fields, labels, ids', SHIPPED,
                         ids=[f'{name}-{split}' for name, split, *_ in SHIPPED])
def test_files_as_they_are_shipped(write, load, name, split, file, text, fields, labels, ids):
    write(file, text)
    examples = load(name, split)
    assert list(examples.fields.items()) == list(zip(REGISTRY[name].fields, fields))
    assert (None if examples.labels is None else examples.labels.tolist()) == (labels and np.float32(labels).tolist())
    assert examples.ids == (ids or [str(i) for i in range(len(fields[0]))])


def test_headerless_lines_of_another_length(write, error):
    write('train.tsv', 'gj04\t1\t\tOne.\ngj04\t1\tTwo.\n')
    assert 'line 2: 3 cells, but there is no header, so there must be 4 (source, label, star' in error('cola')


def test_what_is_left_out_is_counted(write, load, caplog):
    with caplog.at_level(logging.INFO, logger='absl'):
        write('train.jsonl', [{'premise': 'a', 'hypothesis': 'b', 'label': label} for label in (0, -1, 2, '-', 1)])
        assert load('snli').labels.tolist() == [0, 2, 1] and load('snli').ids == ['0', '2', '4']
        assert '2 of the 5 rows of the train split' in caplog.text
        write('dev.tsv', 'question1\tquestion2\tlabel\na\tb\t1\nc\nd\te\tf\t0\ng\th\t0\n')
        assert load('qqp', 'dev').fields['question1'] == ['a', 'g']
        assert 'dev.tsv: 2 lines are broken' in caplog.text


def test_unlabelled_rows_of_snli_in_a_test_split(write, load):
    rows = [{'premise': 'a', 'hypothesis': 'b', 'label': label} for label in (-1, 1, -1)]
    write('test.jsonl', rows)
    assert load('snli', 'test').labels.tolist() == [1] and load('snli', 'test').ids == ['1']
    write('test.jsonl', rows[::2])
    assert load('snli', 'test').labels is None and len(load('snli', 'test')) == 2


# ----------------------------------------------------------------- sets with a form of their own


ARTICLE = {'article': 'text', 'question': 'Which _ ?', 'options': ['a', 'b', 'c', 'd'], 'answer': 'C'}
PASSAGE = {'article': 'text', 'questions': ['first', 'second _ .'], 'answers': ['B', 'D'],
           'options': [['a', 'b', 'c', 'd'], ['e', 'f', 'g', 'h']]}


def test_race_one_question_a_row(write, load):
    write('train.jsonl', [{**ARTICLE, 'level': 'high', 'example_id': 'high1.txt'},
                          {**ARTICLE, 'level': 'middle', 'example_id': 'high1.txt'}])
    examples = load('race')
    assert examples.fields == {name: [ARTICLE[name]] * 2 for name in ('article', 'question', 'options')}
    assert examples.labels.tolist() == [2, 2] and examples.ids == ['0', '1']  # a passage's id is not the question's
    assert examples.groups == ['high', 'middle'] and examples.take([1]).groups == ['middle']
    assert load('race', limit=1).groups == ['high']
    write('test.jsonl', [{**ARTICLE, 'answer': ''}])
    assert load('race', 'test').labels is None and load('race', 'test').groups is None


def test_race_several_questions_a_row(write, load):
    write('train.jsonl', [{**PASSAGE, 'id': 'high7.txt'}, {**PASSAGE, 'id': 'middle7.txt'}])
    examples = load('race')
    assert examples.fields['question'] == ['first', 'second _ .'] * 2 and examples.fields['article'] == ['text'] * 4
    assert examples.fields['options'] == PASSAGE['options'] * 2
    assert examples.labels.tolist() == [1, 3, 1, 3] and examples.ids == ['0', '1', '2', '3']
    assert examples.groups == ['high', 'high', 'middle', 'middle']


@pytest.mark.parametrize('row, words', [
    ({**ARTICLE, 'options': ['a', 'b', 'c']}, "line 1, column 'options' has 3 choices, but the data set has 4"),
    ({**ARTICLE, 'answer': 'E'}, "line 1: column 'answer' has the unknown label 'E'; the labels known are A, B, C, D"),
    ({**PASSAGE, 'options': [['a', 'b', 'c', 'd'], ['e', 'f', 'g']]},
     "line 1, question 2, column 'options' has 3 choices"),
    ({**PASSAGE, 'answers': ['A']}, 'line 1: 2 questions, 2 options, 1 answers; give as many of each'),
    ({**PASSAGE, 'options': 'a'}, "line 1, column 'options' is not a list"),
    ({'questions': [], 'options': []}, "line 1: there is no column 'article'"),
])
def test_malformed_race(write, error, row, words):
    write('dev.jsonl', [row])
    assert words in error('race', 'dev')


@pytest.mark.parametrize('sentence, pronoun, context, after', [
    ('The dog saw the cat because it ran.', 'it', 'The dog saw the cat because', ' ran.'),
    ('The dog with its bowl bit a cat, so it hid, and it ran.', 'it', 'The dog with its bowl bit a cat, so',
     ' hid, and it ran.'),  # a word of its own, and the first one
])
def test_dpr(write, load, sentence, pronoun, context, after):
    rows = [{'sentence': sentence, 'pronoun': pronoun, 'candidates': ['The dog', ' the cat'], 'label': 1}]
    write('test.jsonl', rows)
    examples = load('dpr', 'test')
    assert examples.fields == {'context': [context], 'endings': [['The dog' + after, 'the cat' + after]]}
    assert examples.labels.tolist() == [1]


def test_dpr_holds_out_of_its_training_rows(write, load):
    write('train.jsonl', [{'sentence': f'A saw B{i} and he ran.', 'pronoun': 'he', 'candidates': ['A', 'B'], 'label': 0}
                          for i in range(20)])
    contexts = [load('dpr', split).fields['context'] for split in ('train', 'dev')]
    assert [len(c) for c in contexts] == [16, 4] and not set(contexts[0]) & set(contexts[1])


def test_the_two_rows_of_a_schema_are_held_out_together(write, load):
    write('train.jsonl', [{'sentence': f'A saw B{i} because he {verb}.', 'pronoun': 'he', 'candidates': ['A', 'B'],
                           'label': j} for i in range(20) for j, verb in enumerate(('looked', 'waved'))])
    contexts = [load('dpr', split).fields['context'] for split in ('train', 'dev')]
    assert [len(c) for c in contexts] == [32, 8] and not set(contexts[0]) & set(contexts[1])


@pytest.mark.parametrize('name, change, words', [
    ('dpr', {'pronoun': 'she'}, "line 1: the pronoun 'she' is not a word of the sentence"),
    ('dpr', {'pronoun': ''}, "the pronoun '' is not a word"),
    ('dpr', {'sentence': 5}, "line 1, column 'sentence' is int and not text"),
    ('dpr', {'candidates': 'A, B'}, "line 1, column 'candidates' is not a list"),
    ('dpr', {'candidates': ['A']}, "column 'endings' has 1 choices, but the data set has 2"),
    ('copa', {'question': 'why'}, "line 1, column 'question' is 'why'; write cause or effect."),
    ('copa', {'choice1': 5}, "line 1, column 'choices' is int and not text"),
])
def test_malformed_rows_of_their_own_form(write, error, name, change, words):
    row = {'dpr': {'sentence': 'A saw B and he ran.', 'pronoun': 'he', 'candidates': ['A', 'B'], 'label': 0},
           'copa': {'premise': 'a', 'choice1': 'b', 'choice2': 'c', 'question': 'cause', 'label': 0}}[name]
    write('test.jsonl', [row | change])
    assert words in error(name, 'test')
    del row[next(iter(change))]
    write('test.jsonl', [row])
    assert f'line 1: there is no column {next(iter(change))!r}' in error(name, 'test')


# ----------------------------------------------------------------- folders


@pytest.mark.parametrize('name, folders', [
    ('sst2', ['sst2', 'SST-2', 'glue_sst2', 'GLUE-SST2']), ('stsb', ['STS-B', 'glue_stsb', 'sts_b']),
    ('scitail', ['sci_tail', 'SciTail', 'SciTailV1.1']), ('copa', ['super_glue_copa', 'COPA']),
    ('dpr', ['definite_pronoun_resolution', 'dprd']), ('mnli', ['MNLI', 'glue_mnli', 'multinli_1.0']),
    ('snli', ['SNLI', 'snli_1.0']), ('story_cloze', ['StoryCloze', 'story_cloze']), ('qqp', ['QQP', 'glue-qqp']),
    ('race', ['RACE']), ('docs_same', ['docs_same'])])
def test_folder_of(tmp_path, name, folders):
    for folder in folders:
        (tmp_path / 'other').mkdir(exist_ok=True)
        (tmp_path / folder).mkdir()
        assert {key: folder_of(dataset, tmp_path) for key, dataset in REGISTRY.items()} == (
            dict.fromkeys(REGISTRY) | {name: tmp_path / folder})
        (tmp_path / folder).rmdir()
    (tmp_path / folders[0]).write_text('a file')
    assert folder_of(REGISTRY[name], tmp_path) is None


def test_folder_of_mistakes(tmp_path):
    (tmp_path / 'sst2').mkdir()
    (tmp_path / 'SST-2').mkdir()
    with pytest.raises(UserError, match="has both SST-2 and sst2 for the data set 'sst2'; keep one"):
        folder_of(REGISTRY['sst2'], tmp_path)
    with pytest.raises(UserError, match='nowhere is not a directory'):
        folder_of(REGISTRY['sst2'], tmp_path / 'nowhere')
