"""The sets with a form of their own: what becomes of their entries."""

import pytest

from helpers import load_files, refusal, write_lines

ARTICLE = {'article': 'text', 'question': 'Which _ ?', 'options': ['a', 'b', 'c', 'd'], 'answer': 'C'}
PASSAGE = {
    'article': 'text',
    'questions': ['first', 'second _ .'],
    'answers': ['B', 'D'],
    'options': [['a', 'b', 'c', 'd'], ['e', 'f', 'g', 'h']],
}


def test_race_one_question_an_entry(tmp_path):
    write_lines(
        tmp_path / 'train.jsonl',
        [{**ARTICLE, 'level': level, 'example_id': 'high1.txt'} for level in ('high', 'middle')],
    )
    examples = load_files('race', tmp_path)
    assert examples.fields == {name: [ARTICLE[name]] * 2 for name in ('article', 'question', 'options')}
    assert examples.labels.tolist() == [2, 2] and examples.ids == ['0', '1']  # a passage's id is not the question's
    assert examples.subsets == ['high', 'middle'] and examples.take([1]).subsets == ['middle']
    assert load_files('race', tmp_path, limit=1).subsets == ['high']
    write_lines(tmp_path / 'test.jsonl', [{**ARTICLE, 'answer': ''}])
    assert load_files('race', tmp_path, 'test').labels is None and load_files('race', tmp_path, 'test').subsets is None


def test_race_several_questions_an_entry(tmp_path):
    write_lines(tmp_path / 'train.jsonl', [{**PASSAGE, 'id': 'high7.txt'}, {**PASSAGE, 'id': 'middle7.txt'}])
    examples = load_files('race', tmp_path)
    assert examples.fields['question'] == ['first', 'second _ .'] * 2 and examples.fields['article'] == ['text'] * 4
    assert examples.fields['options'] == PASSAGE['options'] * 2
    assert examples.labels.tolist() == [1, 3, 1, 3] and examples.ids == ['0', '1', '2', '3']
    assert examples.subsets == ['high', 'high', 'middle', 'middle']


@pytest.mark.parametrize(
    'entry, words',
    [
        (
            {**ARTICLE, 'options': ['a', 'b', 'c']},
            "line 1, column 'options': The number of choices is 3, but the data set has 4. Give 4.",
        ),
        ({**ARTICLE, 'answer': 'E'}, "line 1, column 'answer': The label 'E' is unknown. Use A, B, C, D, or"),
        (
            {**PASSAGE, 'options': [['a', 'b', 'c', 'd'], ['e', 'f', 'g']]},
            "line 1, question 2, column 'options': The number of choices is 3",
        ),
        (
            {**PASSAGE, 'answers': ['A']},
            'line 1: The lists have 2 questions, 2 options, 1 answers. Give the same number',
        ),
        ({**PASSAGE, 'options': 'a'}, "line 1, column 'options': The value is not a list"),
        ({'questions': [], 'options': []}, "line 1: There is no column 'article'"),
    ],
)
def test_malformed_race(tmp_path, entry, words):
    write_lines(tmp_path / 'dev.jsonl', [entry])
    assert words in refusal('race', tmp_path, 'dev')


@pytest.mark.parametrize(
    'sentence, pronoun, context, after',
    [
        ('The dog saw the cat because it ran.', 'it', 'The dog saw the cat because', ' ran.'),
        (
            'The dog with its bowl bit a cat, so it hid, and it ran.',
            'it',
            'The dog with its bowl bit a cat, so',
            ' hid, and it ran.',  # a word of its own, and the first one
        ),
    ],
)
def test_dpr(tmp_path, sentence, pronoun, context, after):
    entry = {'sentence': sentence, 'pronoun': pronoun, 'candidates': ['The dog', ' the cat'], 'label': 1}
    write_lines(tmp_path / 'test.jsonl', [entry])
    examples = load_files('dpr', tmp_path, 'test')
    assert examples.fields == {'context': [context], 'endings': [['The dog' + after, 'the cat' + after]]}
    assert examples.labels.tolist() == [1]


@pytest.mark.parametrize(
    'name, change, words',
    [
        ('dpr', {'pronoun': 'she'}, "line 1: The pronoun 'she' is not a word of the sentence"),
        ('dpr', {'pronoun': ''}, "The pronoun '' is not a word"),
        ('dpr', {'sentence': 5}, "line 1, column 'sentence': The value is int, not text"),
        ('dpr', {'candidates': 'A, B'}, "line 1, column 'candidates': The value is not a list"),
        ('dpr', {'candidates': ['A']}, "column 'endings': The number of choices is 1, but the data set has 2"),
        ('copa', {'question': 'why'}, "line 1, column 'question': The value 'why' is unknown. Write cause or effect."),
        (
            'copa',
            {'question': ['cause']},
            "line 1, column 'question': The value ['cause'] is unknown. Write cause or effect.",
        ),
        ('copa', {'choice1': 5}, "line 1, column 'choices': The value is int, not text"),
    ],
)
def test_malformed_entries_of_their_own_form(tmp_path, name, change, words):
    entry = {
        'dpr': {'sentence': 'A saw B and he ran.', 'pronoun': 'he', 'candidates': ['A', 'B'], 'label': 0},
        'copa': {'premise': 'a', 'choice1': 'b', 'choice2': 'c', 'question': 'cause', 'label': 0},
    }[name]
    write_lines(tmp_path / 'test.jsonl', [entry | change])
    assert words in refusal(name, tmp_path, 'test')
    del entry[next(iter(change))]
    write_lines(tmp_path / 'test.jsonl', [entry])
    assert f'line 1: There is no column {next(iter(change))!r}' in refusal(name, tmp_path, 'test')


def test_choices_in_tsv_are_json(tmp_path):
    (tmp_path / 'test.tsv').write_text('context\tendings\tlabel\nonce\t["a", "b \\"c\\""]\t2\n')
    examples = load_files('story_cloze', tmp_path, 'test')
    assert examples.fields['endings'] == [['a', 'b "c"']] and examples.labels.tolist() == [1]


@pytest.mark.parametrize(
    'folder, entry, level',
    [
        ('', {'example_id': 'high1.txt'}, 'high'),
        ('', {'id': 'middle7.txt', 'level': 'high'}, 'high'),
        ('middle', {'id': '7.txt'}, 'middle'),
        ('high', {'example_id': 'middle7.txt'}, 'middle'),
        ('higher', {}, None),
        ('high/x', {}, None),
    ],
)
def test_the_level_of_race(tmp_path, folder, entry, level):
    """In the entry, else in the id of the passage, else the folder's name; whatever form the entry has."""
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    write_lines(tmp_path / folder / 'train.jsonl', [ARTICLE | entry])
    assert load_files('race', tmp_path / folder).subsets == (level and [level])
    if 'level' not in entry:
        write_lines(tmp_path / folder / 'train.jsonl', [PASSAGE | entry])
        assert load_files('race', tmp_path / folder).subsets == (level and [level, level])


@pytest.mark.parametrize(
    'questions, words',
    [
        ({'text': ['a', 'b', 'c']}, "line 1, column 'questions': There are 3 texts. Give two."),
        ({'id': [1, 2]}, "line 1, column 'questions': The value is not a list"),
        (['a', 'b'], "line 1, column 'questions': The value is not a list"),
        ({'text': ['a', None]}, "line 1, column 'question2': The value is null, not text"),
    ],
)
def test_malformed_quora(tmp_path, questions, words):
    write_lines(tmp_path / 'train.jsonl', [{'questions': questions, 'is_duplicate': True}])
    assert words in refusal('qqp', tmp_path)
