"""Zero-shot heuristics: what a language model answers without fine-tuning (Radford et al. 2018, section 5).

Every example becomes one or more sequences, and the log-probability of a part of each is its score:

  cola: the sentence. It is acceptable if its score is at least a threshold, chosen on the train split.
  sst2: "negative" and "positive", each after the sentence and the word "very".
  race: each answer, given document and question. story_cloze: each ending, given the story. copa: each alternative,
    given the premise and the question for its cause or result.
  dpr: the text after the pronoun, once with each candidate in the pronoun's place.

A score is the mean over the tokens, or the sum; for sst2 always the sum, which is the probability of the word even if
it has several pieces. The candidate with the highest score is the answer, the first of equal ones.

The scored part is encoded together with the text before it, as running text; the tokens from the first one on that
differs from the encoding of the text before it alone are scored. RACE's document and COPA's premise are encoded by
themselves. Without a start token the first token of a sequence has no probability and is not scored. A candidate
without scored tokens is never the answer, and a sentence without them is not acceptable.

The dev split is used; of dpr the test split if it has labels. If a set has one split for train and dev (dpr,
story_cloze), all of it is dev, because nothing is trained.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from gpt1_jax.config import check_choice
from gpt1_jax.data.labelled import origins
from gpt1_jax.data.labelled.encoding import encode_texts
from gpt1_jax.data.labelled.examples import Examples
from gpt1_jax.data.labelled.loading import available_splits, load_examples, none_usable, splits_of, uri_of
from gpt1_jax.data.labelled.registry import REGISTRY
from gpt1_jax.data.tokenizers import UNKNOWN_ID
from gpt1_jax.data.tokenizers.loading import Tokenizer
from gpt1_jax.errors import UserError
from gpt1_jax.evaluation import journal, metrics
from gpt1_jax.evaluation.classification import spread
from gpt1_jax.evaluation.paper import ZERO_SHOT
from gpt1_jax.evaluation.perplexity import Window
from gpt1_jax.progress import waiting

CONDITIONS = ('given', 'alone')
_SST2_WORD, _SST2_ANSWERS = 'very', ('negative', 'positive')  # in the order of the labels


class Variant(NamedTuple):
    """What the paper leaves open or decides; the defaults are the paper's where it says something.

    Attributes:
      start_token: whether the token that ends a text stands before each sequence, whose first token is then scored.
      length_normalised: whether a score is the mean over the tokens, or the sum.
      condition: of race, story_cloze and copa: 'given', the answer after all that comes before it, or 'alone'.
    """

    start_token: bool = False
    length_normalised: bool = True
    condition: str = 'given'


@dataclasses.dataclass(frozen=True)
class Questions:
    """The examples of a data set as sequences.

    Attributes:
      name: of the data set.
      split: 'dev' or 'test'.
      labels: int32 [n].
      windows: n * choices sequences, those of an example together; each has `text`, the example's number.
      cut: number of examples that are longer than the model reads.
      chosen_on: of cola, the train split, on which the threshold is chosen; else None.
    """

    name: str
    split: str
    labels: np.ndarray
    windows: list[Window]
    cut: int
    chosen_on: 'Questions | None' = None

    def scored(self) -> int:
        """How many sequences a model scores, those of `chosen_on` included."""
        own = sum(len(window.tokens) > window.first for window in self.windows)
        return own + (self.chosen_on.scored() if self.chosen_on else 0)

    def fingerprint(self) -> str:
        """64 hex characters that change with any part of the questions."""
        windows = (part for window in self.windows for part in (b'%d' % window.first, window.tokens.tobytes()))
        chosen_on = self.chosen_on.fingerprint() if self.chosen_on else ''
        return journal.digest([self.split.encode(), self.labels.tobytes(), *windows, chosen_on.encode()])


class Finding(NamedTuple):
    """The score of a model on a data set.

    Attributes:
      value: of the metric in paper.ZERO_SHOT.
      ties: number of examples in which several candidates have the highest score.
      threshold: of cola, in nats (a token); else None.
    """

    value: float
    ties: int
    threshold: float | None


# ----------------------------------------------------------------- examples -> sequences


def check_names(names: Sequence[str], key: str) -> None:
    """Raises UserError unless there is a name and all are keys of paper.ZERO_SHOT. key: of the config, for messages."""
    if not names:
        raise none_usable({}, key)
    for name in names:
        check_choice(key, name, ZERO_SHOT)


def load(
    names: Sequence[str],
    source: str,
    limit: int | None,
    tokenizer: Tokenizer,
    n_positions: int,
    variant: Variant,
    download: bool = True,
    key: str = '',
) -> tuple[list[Questions], dict[str, str]]:
    """(the data sets that can be used; name -> why another cannot, which is also logged).

    Args:
      names: keys of paper.ZERO_SHOT.
      source: URI, see loading.uri_of; '' for each set's own.
      limit: how many examples of each split are used, evenly spread (RACE has two levels, one after the other); None:
        all.
      download: see loading.load_examples.
      key: for messages, what stands before `datasets` and `source` in the config; '': `datasets` and `data.source`.

    Raises:
      UserError: none of the sets can be used, or a name is unknown.
    """
    found, left_out, datasets, source_key = [], {}, f'{key}datasets', f'{key or "data."}source'
    check_names(names, datasets)
    for name in names:
        try:
            uri = uri_of(REGISTRY[name], source)
            if uri is None:
                raise UserError(f'{source}: There is no folder for it. Add one, or leave it out of {datasets}.')
            uri, *_ = origins.parts(REGISTRY[name], uri, download, source_key)
            found.append(_load(name, uri, limit, tokenizer, n_positions, variant, download))
        except UserError as error:
            left_out[name] = str(error).removeprefix(f'{name}: ')
            logging.warning('%s is left out: %s', name, left_out[name])
    if not found:
        raise none_usable(left_out, datasets, source_key)
    return found, left_out


def _load(name, uri, limit, tokenizer, n_positions, variant, download) -> Questions:
    if name == 'sst2':
        for word, ids in zip(words := (_SST2_WORD, *_SST2_ANSWERS), tokenizer.encode_batch(words)):
            if UNKNOWN_ID in ids:
                raise UserError(f'tokenizer: Its vocabulary cannot write {word!r}. Use a model with another one.')
    read = lambda split, examples: _questions(name, split, examples, tokenizer, n_positions, variant)
    names = available_splits(REGISTRY[name], uri, download) if name == 'dpr' else ['dev']
    if 'test' in names or not names:  # no names: the source could not be asked, and reading the split will say why
        examples = _examples(name, uri, 'test', limit, download)
        if examples.labels is not None:
            return read('test', examples)
    questions = read('dev', _examples(name, uri, 'dev', limit, download))
    if name == 'cola':
        train = read('train', _examples(name, uri, 'train', limit, download))
        questions = dataclasses.replace(questions, chosen_on=train)
    return questions


def _examples(name, uri, split, limit, download) -> Examples:
    dataset = REGISTRY[name]
    splits = splits_of(dataset, uri, download)
    if splits['train'] == splits['dev']:
        splits = splits | {'train': ''}  # nothing is held out
    dataset = dataclasses.replace(dataset, splits=splits)
    if name == 'dpr':
        dataset = dataclasses.replace(dataset, fields=('context', 'rest', 'candidates'))
    with waiting(f'reading {name}, {split}'):
        examples = load_examples(dataset, uri, split, download=download)
    return examples if limit is None else examples.take(spread(len(examples), limit))


def candidates(name: str, fields: Sequence, condition: str) -> list[tuple[str, str, str]]:
    """An example's candidates: (context, what comes before the scored part, the scored part).

    fields: the example's, in the order of the data set; of dpr: context, rest, candidates.
    """
    if name == 'cola':
        return [('', '', *fields)]
    if name == 'sst2':
        return [('', f'{fields[0]} {_SST2_WORD}', f' {answer}') for answer in _SST2_ANSWERS]
    if name == 'dpr':
        context, rest, names = fields
        return [('', f'{context} {candidate}', rest) for candidate in names]
    *given, answers = fields
    *context, before = given if condition == 'given' else ['']
    return [(''.join(context), before, f' {answer}') for answer in answers]


def _questions(name, split, examples, tokenizer, n_positions, variant) -> Questions:
    parts = [candidates(name, fields, variant.condition) for fields in zip(*examples.fields.values(), strict=True)]
    texts = {text for example in parts for context, before, scored in example for text in (context, before + scored)}
    texts |= {before for example in parts for _, before, _ in example}
    texts = list(texts)
    ids = dict(zip(texts, itertools.chain.from_iterable(encode_texts(texts, tokenizer))))
    start = [tokenizer.end_id] if variant.start_token else []
    windows, cut = [], 0
    for number, example in enumerate(parts):
        sequences = [_sequence(ids, *candidate) for candidate in example]
        fitting, lost = _fit(sequences, n_positions + 1 - len(start))
        cut += lost
        for tokens, first in fitting:
            tokens = np.concatenate([np.array(start, np.int32), tokens])
            windows.append(Window(number, tokens, max(1, first + len(start)), words=0))
    return Questions(name, split, examples.labels, windows, cut)


def _sequence(ids, context, before, scored) -> tuple[np.ndarray, int]:
    """(tokens, index of the first one that is scored)"""
    alone, both = ids[before], ids[before + scored]
    length = min(len(alone), len(both))
    same = int(np.argmin(np.append(alone[:length] == both[:length], False)))
    return np.concatenate([ids[context], both]), len(ids[context]) + same


def _fit(sequences, room) -> tuple[list[tuple[np.ndarray, int]], bool]:
    """The candidates of an example cut to `room` tokens each, and whether anything was cut.

    The text before the scored part is cut at its beginning, the same for all candidates. Only a scored part that does
    not fit by itself is cut too, at its end.
    """
    longest = max(len(tokens) - first for tokens, first in sequences)
    kept = max(1, room - longest)
    fitting = [(tokens[max(0, first - kept) :][:room], min(first, kept)) for tokens, first in sequences]
    return fitting, any(len(cut) < len(tokens) for (cut, _), (tokens, _) in zip(fitting, sequences))


# ----------------------------------------------------------------- sequences -> answers

Scorer = Callable[[Iterable[Window]], Iterable[tuple[Window, float]]]


def answer(questions: Questions, score: Scorer, length_normalised: bool) -> Finding:
    """Asks a model all questions of a data set.

    score: windows -> each, in order, with its log-probability, as perplexity.make_scorer gives them.

    Raises UserError if a log-probability is not a number.
    """
    scores, threshold = candidate_scores(questions, score, length_normalised), None
    if questions.chosen_on is None:
        predicted = scores.argmax(axis=1)  # the first of equal ones
    else:
        on_train = candidate_scores(questions.chosen_on, score, length_normalised)
        threshold = best_threshold(on_train[:, 0], questions.chosen_on.labels)
        predicted = scores[:, 0] >= threshold
    metric = ZERO_SHOT[questions.name][0]
    (value,) = metrics.compute((metric,), questions.labels, predicted.astype(np.int32)).values()
    ties = np.sum(scores == scores.max(axis=1, keepdims=True), axis=1) > 1
    return Finding(value, int(ties.sum()), threshold)


def candidate_scores(questions: Questions, score: Scorer, length_normalised: bool) -> np.ndarray:
    """The score of each candidate, float64 [n, choices]; -inf without a scored token. See `answer`."""
    lengths = np.array([len(window.tokens) - window.first for window in questions.windows])
    scores = np.full(len(lengths), -np.inf)
    scored = (window for window, length in zip(questions.windows, lengths) if length > 0)
    scores[lengths > 0] = [value for _, value in score(scored)]
    if np.isnan(scores).any():
        raise UserError(
            f'{questions.name}: A log-probability is not a number: the model has diverged. Use an earlier checkpoint.'
        )
    if length_normalised and questions.name != 'sst2':
        scores /= np.maximum(lengths, 1)
    return scores.reshape(len(questions.labels), -1)


def best_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """The threshold with the highest Matthews correlation, if all scores that are at least as high have label 1.

    It is one of the scores, the lowest of equally good ones; 0 if no score is finite.

    Args:
      scores: [n].
      labels: [n], 0 or 1.
    """
    order = np.argsort(scores)
    scores, positives = scores[order], np.cumsum(labels[order], dtype=np.float64)
    thresholds, below = np.unique(scores, return_index=True)  # below: how many are lower
    missed = np.append(0.0, positives)[below]  # of label 1
    found, rejected = positives[-1] - missed, below - missed  # true positives, true negatives
    n, n_positive = len(scores), positives[-1]
    n_negative, n_found = n - n_positive, n - below
    numerator = found * rejected - (n_found - found) * missed
    denominator = np.sqrt(n_positive * n_negative * n_found * below)
    correlation = np.divide(numerator, denominator, out=np.zeros(len(below)), where=denominator > 0)
    finite = np.isfinite(thresholds)
    return float(thresholds[finite][np.argmax(correlation[finite])]) if finite.any() else 0.0
