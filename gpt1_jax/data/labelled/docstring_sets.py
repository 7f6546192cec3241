"""Four labelled sets made of documentation strings: the quickstart's, real English without a download.

  docs_number  will the verb that comes next be singular or plural?
  docs_next    does this word come next, "the" or "of"?
  docs_same    are two texts the halves of one sentence?
  docs_cloze   which of four words comes next?

Neither subject nor length gives the answer away: among the texts of one package and of about one length, all answers
are equally frequent, and wrong answers come from there too. The second text alone says nothing: in docs_next each word
is as often right as wrong, docs_cloze always has the same four choices, and in docs_same each text is in one right pair
and in one wrong one.

A file belongs to one split: train, or held out for dev or test. Sentences of dev and test that share eight words in a
row with a sentence of the train files are left out, shorter ones if they are the same. A language model that is trained
on `training_text` has not read the sentences of dev and test.
"""

import collections
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gpt1_jax.data.corpus.docstrings import DocFile, read_docstrings
from gpt1_jax.data.corpus.held_out import held_out_rule
from gpt1_jax.data.labelled.examples import Examples
from gpt1_jax.errors import UserError

HELD_OUT = 0.3  # of the files, for dev and test
SIZES = {'train': 1000, 'dev': 500, 'test': 1000}  # at most
_DEV = 0.4  # of the files that are held out
_FEWEST = 16  # examples of a split
_COMMON_RUN = 8  # words
_LEAST, _MOST = 3, 16  # words of a text that goes on with another word
_LEAST_HALF, _MOST_HALF = 4, 12  # words
_SINGULAR, _PLURAL = ('is', 'was', 'has', 'does'), ('are', 'were', 'have', 'do')
_NO_SUBJECT = frozenset(  # before a verb: they tell its number, or have none
    'it there that which this these those they we you i to not and if '
    'can cannot could may might must shall should will would'.split()
)
_CHOICES = ('the', 'of', 'to', 'is')
_MARKS = '.,;:()[]"\'`*'
_SENTENCE_END = re.compile(r'(?<=[.!?:;])\s+(?=[A-Z`*"\'(\[])')
_NOT_PROSE = re.compile(r'>>>|\.\. |::|\||===|---|~~~|https?:|:[a-z]+:|(^|\n)\s|^[-*+@:#]')
_WORD = re.compile(r'[A-Za-z][a-z]+')


# Split -> (package, sentences as lists of words) of each of its files.
Sentences = dict[str, list[tuple[str, list[list[str]]]]]


class Cut(NamedTuple):
    """A sentence cut in two: its package, and the words of the two parts."""

    package: str
    before: list[str]
    after: list[str]


def load(name: str, packages: str, split: str) -> Examples:
    """The split of a `docs:` URI. `packages`: as in the URI, '' for all that requirements.txt asks for.

    Raises:
      UserError: no such data set, or too little text.
    """
    if name not in _MAKERS:
        raise UserError(f'docs: There is no data set {name!r}, only {", ".join(_MAKERS)}. Use files: or tfds:.')
    return build(name, _names(packages))[split]


@functools.lru_cache(maxsize=8)
def build(name: str, packages: tuple[str, ...] = ()) -> dict[str, Examples]:
    """`make` of installed packages, () for all. Cached, because the splits are asked for in turn."""
    return make(name, _installed(packages))


@functools.lru_cache(maxsize=2)
def _installed(packages):
    return by_split(read_docstrings(packages, HELD_OUT))


def training_text(packages: str) -> dict[str, str]:
    """The running text of each train file of a `docs:` URI that has any, with one line per paragraph."""
    files = read_docstrings(_names(packages), HELD_OUT)
    paragraphs = {
        file.path: [p for doc in file.docstrings for p in running_text(doc)] for file in files if not file.held_out
    }
    return {path: '\n'.join(found) for path, found in paragraphs.items() if found}


def _names(packages: str) -> tuple[str, ...]:
    return tuple(filter(None, packages.split(',')))


def make(name: str, parts: Sentences, seed: int = 0, sizes: dict[str, int] = SIZES) -> dict[str, Examples]:
    """Split -> examples of the set `name`, at most as many as `sizes` says, in random order.

    Raises:
      UserError: there is too little running text.
    """
    splits = {}
    for number, (split, size) in enumerate(sizes.items()):
        rng = np.random.RandomState([seed, number])
        fields, labels = _MAKERS[name](parts[split], rng, size)
        if len(labels) < min(size, _FEWEST):
            raise UserError(
                f'docs: These packages give only {len(labels)} {split} examples of {name!r}. Use docs: '
                'for all installed packages, or name larger ones, for example docs:numpy,scipy,jax,keras.'
            )
        order = rng.permutation(len(labels))
        shuffled = {field: [column[i] for i in order] for field, column in fields.items()}
        splits[split] = Examples(shuffled, np.array(labels, np.int32)[order], [f'{split}-{i}' for i in order])
    return splits


@functools.lru_cache(maxsize=2**17)
def running_text(docstring: str) -> tuple[str, ...]:
    """The paragraphs of running text: headings, lists, tables, code and indented text are left out."""
    found = []
    for paragraph in re.split(r'\n\s*\n', docstring):
        words = paragraph.split()
        plain = sum(_WORD.fullmatch(word.strip('.,;:()')) is not None or word in ('a', 'A') for word in words)
        if len(words) >= 5 and plain >= 0.8 * len(words) and not _NOT_PROSE.search(paragraph.strip('\n')):
            found.append(' '.join(words))
    return tuple(found)


# ---------------------------------------------------------------- files -> sentences


def by_split(files: list[DocFile]) -> Sentences:
    """The sentences of the files. One that is there several times counts once."""
    held_out = [f'dev of {file.path}' for file in files if file.held_out]
    is_dev = held_out_rule(lambda: iter(held_out), _DEV) if held_out else None
    known = {run for file in files if not file.held_out for sentence in _sentences(file) for run in _runs(sentence)}
    parts, seen = {'train': [], 'dev': [], 'test': []}, set()
    for file in sorted(files, key=lambda file: (file.package, file.path)):
        kept = []
        for sentence in _sentences(file):
            if sentence.lower() not in seen and not (file.held_out and known.intersection(_runs(sentence))):
                kept.append(sentence.split())
                seen.add(sentence.lower())
        split = 'train' if not file.held_out else 'dev' if is_dev(f'dev of {file.path}') else 'test'
        parts[split].append((file.package, kept))
    return parts


def _sentences(file: DocFile) -> Iterator[str]:
    for docstring in file.docstrings:
        for paragraph in running_text(docstring):
            yield from _SENTENCE_END.split(paragraph)


def _runs(sentence: str) -> set[str]:
    """Every _COMMON_RUN words in a row; all words if there are fewer."""
    words = re.findall(r'[a-z0-9]+', sentence.lower())
    return {' '.join(words[i : i + _COMMON_RUN]) for i in range(max(1, len(words) - _COMMON_RUN + 1))}


# ---------------------------------------------------------------- sentences -> texts -> ({field: texts}, labels)


def _number(files, rng, size):
    def at(words, i):
        return words[i] in _SINGULAR + _PLURAL and words[i - 1].lower().strip(_MARKS) not in _NO_SUBJECT

    groups = _balanced(_cuts(files, rng, _LEAST, _MOST, at), (_SINGULAR, _PLURAL))[: size // 2]
    texts = [' '.join(cut.before) for group in groups for cut in group]
    return {'text': texts}, [0, 1] * len(groups)


def _next(files, rng, size):
    pair = _CHOICES[:2]
    groups = _balanced(_before(files, rng, pair), [(word,) for word in pair])[: size // 4 * 2]
    texts = [' '.join(cut.before) for group in groups for cut in group]
    words = [pair[i % 2] for i in range(len(groups)) for _ in pair]
    return {'text': texts, 'word': words}, [int(i % 2 != answer) for i in range(len(groups)) for answer in (0, 1)]


def _cloze(files, rng, size):
    groups = _balanced(_before(files, rng, _CHOICES), [(word,) for word in _CHOICES])[: size // len(_CHOICES)]
    texts = [' '.join(cut.before) for group in groups for cut in group]
    orders = [rng.permutation(len(_CHOICES)).tolist() for _ in texts]
    choices = [[_CHOICES[i] for i in order] for order in orders]
    return {'text': texts, 'words': choices}, [order.index(i % len(_CHOICES)) for i, order in enumerate(orders)]


def _same(files, rng, size):
    def at(words, i):
        return _LEAST_HALF <= len(words) - i <= _MOST_HALF

    waiting, pairs, used = {}, [], set()
    for cut in _cuts(files, rng, _LEAST_HALF, _MOST_HALF, at):
        halves = {' '.join(cut.before).lower(), ' '.join(cut.after).lower()}
        if used.isdisjoint(halves):  # else the wrong pair might be right too
            used |= halves
            alike = cut.package, len(cut.after)  # the halves that are exchanged are of one length
            if alike in waiting:
                pairs.append((waiting.pop(alike), cut))
            else:
                waiting[alike] = cut
    pairs = pairs[: size // 4]
    firsts = [' '.join(cut.before) for a, b in pairs for cut in (a, b, a, b)]
    seconds = [' '.join(cut.after) for a, b in pairs for cut in (a, b, b, a)]
    return {'first': firsts, 'second': seconds}, [1, 1, 0, 0] * len(pairs)


_MAKERS = {'docs_number': _number, 'docs_next': _next, 'docs_same': _same, 'docs_cloze': _cloze}


def _cuts(files, rng, least: int, most: int, at: Callable) -> list[Cut]:
    """Each sentence cut once, at a random place i, from `least` to `most`, where `at(words, i)` is true; the first of
    each file, then the second of each, and so on, so that a few large files do not fill the set."""
    by_file = []
    for package, sentences in files:
        cuts = []
        for words in sentences:
            places = [i for i in range(least, min(most + 1, len(words))) if at(words, i)]
            if places:
                i = places[rng.randint(len(places))]
                cuts.append(Cut(package, words[:i], words[i:]))
        by_file.append([cuts[i] for i in rng.permutation(len(cuts))])
    by_file = [by_file[i] for i in rng.permutation(len(by_file))]
    longest = max(map(len, by_file), default=0)
    return [cuts[turn] for turn in range(longest) for cuts in by_file if turn < len(cuts)]


def _before(files, rng, choices: Iterable[str]) -> list[Cut]:
    """Sentences cut before one of these words."""
    return _cuts(files, rng, _LEAST, _MOST, lambda words, i: words[i] in choices)


def _balanced(cuts: list[Cut], answers: Sequence[tuple[str, ...]]) -> list[tuple[Cut, ...]]:
    """Groups of one cut for each answer, all of one package and of about one length; those of the first cuts first.
    answers: the words that come next."""
    alike, groups = collections.defaultdict(lambda: [[] for _ in answers]), []
    for cut in cuts:
        waiting = alike[cut.package, len(cut.before) // 3]
        waiting[next(i for i, words in enumerate(answers) if cut.after[0] in words)].append(cut)
        if all(waiting):
            groups.append(tuple(by_answer.pop(0) for by_answer in waiting))
    return groups
