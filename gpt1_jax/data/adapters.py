"""Rows as a source has them -> rows with the fields of REGISTRY, for the sets whose own form is another.

Each function takes the words that say where a row stands, and the row, and yields pairs of the same kind. Columns that
are not concerned, as the ids, are kept.
"""

import re
from collections.abc import Iterator

from gpt1_jax.data.rows import require, to_list, to_text
from gpt1_jax.errors import UserError

# The words of the task itself (Roemmele et al. 2011).
_COPA_QUESTIONS = {'cause': 'What was the cause of this?', 'effect': 'What happened as a result?'}


def race(where: str, row: dict) -> Iterator[tuple[str, dict]]:
    """A passage with lists of questions, options and answers -> one row a question, with its level; a row of one
    question passes unchanged.

    The level, 'middle' or 'high', is what the id of the passage begins with (`high1.txt`). A blank in a question, `_`,
    stays as it is: the answer is not put into it.
    """
    if 'questions' not in row:
        yield where, row
        return
    require(where, row, ('article', 'questions', 'options'))
    lists = {name: to_list(row[name], f'{where}, column {name!r}')
             for name in ('questions', 'options', 'answers') if name in row}
    if len({len(values) for values in lists.values()}) > 1:
        lengths = ', '.join(f'{len(values)} {name}' for name, values in lists.items())
        raise UserError(f'{where}: {lengths}; give as many of each.')
    level = re.match('middle|high', str(row.get('example_id', row.get('id', ''))))
    shared = {'article': row['article']} | ({'level': level[0]} if level else {})
    for number, (question, options) in enumerate(zip(lists['questions'], lists['options'])):
        one = {**shared, 'question': question, 'options': options}
        if 'answers' in lists:
            one['answer'] = lists['answers'][number]
        yield f'{where}, question {number + 1}', one


def story_cloze(where: str, row: dict) -> Iterator[tuple[str, dict]]:
    """The columns of the original .csv -> context (four sentences), endings (two) and label; TFDS's rows unchanged."""
    if 'InputSentence1' in row:
        sentences = [f'InputSentence{i}' for i in range(1, 5)]
        endings = [f'RandomFifthSentenceQuiz{i}' for i in (1, 2)]
        require(where, row, (*sentences, *endings))
        context = ' '.join(to_text(row[name], f'{where}, column {name!r}') for name in sentences)
        row = {**row, 'context': context, 'endings': [row[name] for name in endings]}
        if 'AnswerRightEnding' in row:
            row['label'] = row['AnswerRightEnding']
    yield where, row


def copa(where: str, row: dict) -> Iterator[tuple[str, dict]]:
    """Two columns of choices -> a list; the question, 'cause' or 'effect', -> the words that the task's authors use:
    "What was the cause of this?" and "What happened as a result?"."""
    require(where, row, ('question', 'choice1', 'choice2'))
    if row['question'] not in _COPA_QUESTIONS:
        raise UserError(f"{where}, column 'question' is {row['question']!r}; write cause or effect.")
    yield where, {**row, 'question': _COPA_QUESTIONS[row['question']], 'choices': [row['choice1'], row['choice2']]}


def dpr(where: str, row: dict) -> Iterator[tuple[str, dict]]:
    """A sentence with a pronoun and its candidates -> context, the text before the pronoun, and endings, each candidate
    with the text after it.

    The pronoun must be a word of its own; of several occurrences the first is the one to be resolved, as the set's
    authors say (Rahman and Ng 2012).
    """
    require(where, row, ('sentence', 'pronoun', 'candidates'))
    sentence, pronoun = (to_text(row[name], f'{where}, column {name!r}') for name in ('sentence', 'pronoun'))
    pronoun = pronoun.strip()
    found = re.search(rf'(?<!\w){re.escape(pronoun)}(?!\w)', sentence)
    if not pronoun or not found:
        raise UserError(f'{where}: the pronoun {pronoun!r} is not a word of the sentence {sentence!r}; correct one.')
    place = f"{where}, column 'candidates'"
    candidates = [to_text(candidate, place).strip() for candidate in to_list(row['candidates'], place)]
    yield where, {**row, 'context': sentence[:found.start()].rstrip(),
                  'endings': [candidate + sentence[found.end():] for candidate in candidates]}
