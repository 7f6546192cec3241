"""A bag of words with logistic regression: what a small labelled set gives away without a language model."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from gpt1_jax.data.labelled.examples import Examples

# Kinds of features, each of which includes those before it, and strengths: the best on dev are used.
FEATURES = ('words', 'ends', 'pairs')
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)  # inverse, of the regularisation


@dataclasses.dataclass(frozen=True)
class Baseline:
    """The best on dev of all settings: its accuracies (0 to 1) and settings."""

    dev: float
    test: float
    features: str
    strength: float


def fit(splits: dict[str, Examples], fields: Sequence[str] | None = None) -> Baseline:
    """Fits all settings to splits['train'], and takes the one that is best on 'dev', the first of equal ones.

    Args:
      splits: 'train', 'dev' and 'test' of one data set with classes; train has examples of two classes or more. If
        the last field holds lists it is multiple choice: each choice is judged as right or wrong, and the one that is
        most likely right is taken.
      fields: those to use, by default all of them.
    """
    fields = tuple(fields or splits['train'].fields)
    rows, labels = {}, {}
    for split, examples in splits.items():
        rows[split] = [row for texts in zip(*(examples.fields[field] for field in fields)) for row in _rows(texts)]
        labels[split] = examples.labels
    choices = len(rows['train']) // len(labels['train'])
    targets = labels['train']
    if choices > 1:
        targets = (np.arange(choices) == targets[:, None]).reshape(-1)
    best = None
    for kind in FEATURES:
        vectorizer = TfidfVectorizer(analyzer=lambda texts, kind=kind: features(texts, kind)).fit(rows['train'])
        inputs = {split: vectorizer.transform(rows[split]) for split in rows}
        for strength in STRENGTHS:
            model = LogisticRegression(C=strength, max_iter=1000).fit(inputs['train'], targets)
            accuracy = lambda split: float(np.mean(_predict(model, inputs[split], choices) == labels[split]))
            if best is None or accuracy('dev') > best.dev:
                best = Baseline(accuracy('dev'), accuracy('test'), kind, strength)
    return best


def features(texts: Sequence[str], kind: str) -> list[str]:
    """The features of one or more texts, as many times as they occur.

    words: every word of each text. ends: also the first and the last word of each. pairs: also two words in a row, and
    of two texts every word of the first with every word of the last.
    """
    words = [re.findall(r"[a-z0-9_']+", text.lower()) for text in texts]
    found = [f'{i}:{word}' for i, text in enumerate(words) for word in text]
    if kind != 'words':
        found += [f'{i}:first:{text[0]}' for i, text in enumerate(words) if text]
        found += [f'{i}:last:{text[-1]}' for i, text in enumerate(words) if text]
    if kind == 'pairs':
        found += [f'{i}:{a} {b}' for i, text in enumerate(words) for a, b in zip(text, text[1:])]
        if len(words) > 1:
            found += [f'{a}|{b}' for a in words[0] for b in words[-1]]
    return found


def _rows(texts):
    """The texts that the model sees at once: those of an example, or of each of its choices."""
    *before, last = texts
    return [(*before, choice) for choice in last] if isinstance(last, list) else [texts]


def _predict(model, inputs, choices):
    if choices == 1:
        return model.predict(inputs)
    return model.decision_function(inputs).reshape(-1, choices).argmax(axis=1)
