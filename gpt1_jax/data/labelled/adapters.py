"""Entries in a source's own form -> entries with the fields of REGISTRY.

Each function takes the place of an entry, for error messages, and the entry, and yields pairs of the same two. Other
columns, such as the ids, are kept.
"""

import re
from collections.abc import Iterator

from gpt1_jax.data.labelled.values import require, to_list, to_text
from gpt1_jax.errors import UserError

# The words of the task itself (Roemmele et al. 2011).
_COPA_QUESTIONS = {'cause': 'What was the cause of this?', 'effect': 'What happened as a result?'}


def race(where: str, entry: dict) -> Iterator[tuple[str, dict]]:
    """A passage with lists of questions, options and answers -> one entry a question, with its level.

    The level, 'middle' or 'high', is what the id of the passage begins with (`high1.txt`), or else the name of its
    folder. A blank in a question, `_`, stays as it is: the answer is not put into it.
    """
    level = re.match('middle|high', str(entry.get('example_id', entry.get('id', ''))))
    level = level or re.search(r'(?<=[/\\])(middle|high)(?=[/\\][^/\\]*$)', where)
    level = {'level': level[0]} if level else {}
    if 'questions' not in entry:
        yield where, level | entry
        return
    require(where, entry, ('article', 'questions', 'options'))
    lists = {
        name: to_list(entry[name], f'{where}, column {name!r}')
        for name in ('questions', 'options', 'answers')
        if name in entry
    }
    if len({len(values) for values in lists.values()}) > 1:
        lengths = ', '.join(f'{len(values)} {name}' for name, values in lists.items())
        raise UserError(f'{where}: The lists have {lengths}. Give the same number of each.')
    shared = {'article': entry['article']} | level
    for number, (question, options) in enumerate(zip(lists['questions'], lists['options'])):
        one = {**shared, 'question': question, 'options': options}
        if 'answers' in lists:
            one['answer'] = lists['answers'][number]
        yield f'{where}, question {number + 1}', one


def qqp(where: str, entry: dict) -> Iterator[tuple[str, dict]]:
    """The Hugging Face hub's `questions`, with two texts in `text`, -> question1 and question2. Other entries pass
    unchanged."""
    if 'questions' in entry:
        column = f"{where}, column 'questions'"
        texts = to_list(entry['questions'].get('text') if isinstance(entry['questions'], dict) else None, column)
        if len(texts) != 2:
            raise UserError(f'{column}: There are {len(texts)} texts. Give two.')
        entry = {**entry, 'question1': texts[0], 'question2': texts[1]}
    yield where, entry


def story_cloze(where: str, entry: dict) -> Iterator[tuple[str, dict]]:
    """The columns of the original .csv -> context (four sentences), endings (two) and label. TFDS's entries pass
    unchanged."""
    if 'InputSentence1' in entry:
        sentences = [f'InputSentence{i}' for i in range(1, 5)]
        endings = [f'RandomFifthSentenceQuiz{i}' for i in (1, 2)]
        require(where, entry, (*sentences, *endings))
        context = ' '.join(to_text(entry[name], f'{where}, column {name!r}') for name in sentences)
        entry = {**entry, 'context': context, 'endings': [entry[name] for name in endings]}
        if 'AnswerRightEnding' in entry:
            entry['label'] = entry['AnswerRightEnding']
    yield where, entry


def copa(where: str, entry: dict) -> Iterator[tuple[str, dict]]:
    """Two columns of choices -> a list; the question, 'cause' or 'effect', -> the wording of the task's authors:
    "What was the cause of this?" and "What happened as a result?"."""
    require(where, entry, ('question', 'choice1', 'choice2'))
    question = entry['question']
    if not isinstance(question, str) or question not in _COPA_QUESTIONS:
        raise UserError(f"{where}, column 'question': The value {question!r} is unknown. Write cause or effect.")
    yield where, {**entry, 'question': _COPA_QUESTIONS[question], 'choices': [entry['choice1'], entry['choice2']]}


def dpr(where: str, entry: dict) -> Iterator[tuple[str, dict]]:
    """A sentence with a pronoun and its candidates -> context, the text before the pronoun, and endings, each candidate
    with the text after it; also the candidates and `rest`, the text after it, which only zero-shot evaluation reads.

    The pronoun must be a word of its own; of several occurrences the first is the one to be resolved, as the set's
    authors say (Rahman and Ng 2012).
    """
    require(where, entry, ('sentence', 'pronoun', 'candidates'))
    sentence, pronoun = (to_text(entry[name], f'{where}, column {name!r}') for name in ('sentence', 'pronoun'))
    pronoun = pronoun.strip()
    found = re.search(rf'(?<!\w){re.escape(pronoun)}(?!\w)', sentence)
    if not pronoun or not found:
        raise UserError(
            f'{where}: The pronoun {pronoun!r} is not a word of the sentence {sentence!r}. Correct one of them.'
        )
    column = f"{where}, column 'candidates'"
    candidates = [to_text(candidate, column).strip() for candidate in to_list(entry['candidates'], column)]
    yield (
        where,
        {
            **entry,
            'context': sentence[: found.start()].rstrip(),
            'endings': [candidate + sentence[found.end() :] for candidate in candidates],
            'candidates': candidates,
            'rest': sentence[found.end() :],
        },
    )
