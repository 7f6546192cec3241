"""Four labelled sets made of documentation strings: the quickstart's, real English without a download.

  docs_package       which of four packages is this passage from? (passages that name one are left out)
  docs_follows       does the second text continue the first, or is it the end of another passage?
  docs_same          are two passages from one docstring, or from two packages?
  docs_continuation  which of four texts continues the context?

Each set is balanced (chance is 1 / number of classes) and split by file. Where an example has several texts, the wrong
ones are of one subject, deep learning, and all others of another, numerical computing (without such packages: of every
second package, and of the rest). So a second text alone gives much away, as in many real sets (Gururangan et al. 2018),
if a decoder has read enough documentation to know the subjects. To learn to compare two texts, a small decoder needs
more examples than a quickstart has time for.
The dev sets come from the files that the corpus `docs:` holds out if its held_out is DEV_SHARE. A language model
trained with less held out has read their texts, but never their labels.
"""

import collections
import functools
import itertools
import re

import numpy as np

from gpt1_jax.data.corpus.docstrings import DocFile, read_docstrings
from gpt1_jax.data.labelled.examples import Examples
from gpt1_jax.errors import UserError

DEV_SHARE = 0.2  # of the files
_LEAST_WORDS, _ENOUGH_WORDS, _MOST_WORDS = 10, 20, 40
_LEAST_PART, _MOST_OF_CUT, _MOST_OF_PAIR = 8, 24, 16  # words of a part; of a passage to be cut; of each of a pair
_PACKAGES = 4
_CHOICES = 4
_NUMERICAL = ('numpy', 'scipy', 'sklearn')  # one of the two subjects; the other packages are the other
_OTHER_NAMES = {
    'tensorflow': ('tf',),
    'tensorflow_datasets': ('tfds',),
    'numpy': ('np',),
    'sklearn': ('scikit-learn', 'scikit'),
}
_SENTENCE_END = re.compile(r'(?<=[.!?:;])\s+(?=[A-Z`*"\'(\[])')
_NOT_PROSE = re.compile(r'>>>|\.\. |::|\||===|---|~~~|https?:|:[a-z]+:|\n\s|^\s*[-*+@:#]')
_WORD = re.compile(r'[A-Za-z][a-z]+')


def load(name: str, packages: str, split: str) -> Examples:
    """The split of a `docs:` URI. `packages`: as in the URI, '' for all that requirements.txt asks for.

    Raises:
      UserError: no such data set or split, or too little text.
    """
    if name not in _MAKERS:
        raise UserError(f'docs: There is no data set {name!r}, only {", ".join(_MAKERS)}. Use files: or tfds:.')
    if split == 'test':
        raise UserError(f'docs: There is no test split for {name!r}. Use dev.')
    return build(name, tuple(package for package in packages.split(',') if package))[split]


@functools.lru_cache(maxsize=4)
def build(
    name: str, packages: tuple[str, ...] = (), seed: int = 0, train: int = 1500, dev: int = 400
) -> dict[str, Examples]:
    """build_from_files on installed packages, () for all. Cached, because train and dev are asked for in turn."""
    return build_from_files(name, read_docstrings(packages, DEV_SHARE), seed, train, dev)


def build_from_files(
    name: str, files: list[DocFile], seed: int = 0, train: int = 1500, dev: int = 400
) -> dict[str, Examples]:
    """{'train': Examples, 'dev': Examples} of the set `name`, of at most these sizes.

    Args:
      files: the documentation strings; the held-out ones make the dev set.

    Raises:
      UserError: the files hold too little running text.
    """
    parts, seen = {'train': [], 'dev': []}, set()
    for file in sorted(files, key=lambda file: (file.package, file.path)):
        texts = []
        for docstring in file.docstrings:
            # A passage that occurs several times would be a right answer to several questions.
            texts.append([passage for passage in passages(docstring) if passage.lower() not in seen])
            seen.update(passage.lower() for passage in texts[-1])
        part = parts['dev' if file.held_out else 'train']
        part.append((file.package, file.path, [text for text in texts if text]))
    splits = {}
    for part, size in (('train', train), ('dev', dev)):
        rng = np.random.RandomState([seed, size])
        fields, labels = _MAKERS[name](parts[part], parts['train'] + parts['dev'], rng, size)
        if len(labels) < min(size, 4 * _CHOICES):
            raise UserError(
                f'docs: These packages give only {len(labels)} {part} examples of {name!r}. Use docs: '
                'for all installed packages, or name larger ones, for example docs:numpy,scipy,jax,keras.'
            )
        order = rng.permutation(len(labels))
        shuffled = {field: [column[i] for i in order] for field, column in fields.items()}
        splits[part] = Examples(shuffled, np.array(labels, np.int32)[order], [f'{part}-{i}' for i in order])
    return splits


def passages(docstring: str) -> list[str]:
    """Consecutive passages of running text, 10 to 40 words each, cut at ends of sentences if there are any.

    Headings, lists, tables, code and indented text are left out.
    """
    sentences = []
    for paragraph in re.split(r'\n\s*\n', docstring):
        words = paragraph.split()
        plain = sum(_WORD.fullmatch(word.strip('.,;:()')) is not None or word in ('a', 'A') for word in words)
        if len(words) >= 5 and plain >= 0.8 * len(words) and not _NOT_PROSE.search(paragraph.strip('\n')):
            sentences += _SENTENCE_END.split(' '.join(words))
    found, current = [], []
    for sentence in sentences:
        words = sentence.split()
        if len(current) + len(words) > _MOST_WORDS:
            found.append(current)
            current = []
        current = (current + words)[:_MOST_WORDS]
        if len(current) >= _ENOUGH_WORDS:
            found.append(current)
            current = []
    found.append(current)
    return [' '.join(words) for words in found if len(words) >= _LEAST_WORDS]


# ---------------------------------------------------------------- the sets: files -> ({field: texts}, labels)


def _package(files, all_files, rng, size):
    count = collections.Counter(package for package, _, texts in all_files if texts)
    names = sorted(sorted(count, key=lambda name: (-count[name], name))[:_PACKAGES])
    forbidden = [other for name in names for other in (name, *_OTHER_NAMES.get(name, ()))]
    named = re.compile(rf'(?<![a-z])({"|".join(map(re.escape, forbidden))})(?![a-z])', re.IGNORECASE)
    columns = []
    for name in names:
        by_file = [
            [
                passage
                for text in texts
                for passage in text
                if len(passage.split()) >= _ENOUGH_WORDS and not named.search(passage)
            ]
            for package, _, texts in files
            if package == name
        ]
        columns.append(_in_turn(by_file, rng))
    each = min(size // len(names), *map(len, columns)) if len(names) == _PACKAGES else 0
    return (
        {'passage': [passage for column in columns for passage in column[:each]]},
        [label for label in range(len(names)) for _ in range(each)],
    )


def _follows(files, all_files, rng, size):
    return _true_and_false(_halves(files, rng), all_files, rng, size, true_label=0)


def _same(files, all_files, rng, size):
    return _true_and_false(_pairs(files, rng), all_files, rng, size, true_label=1)


def _continuation(files, all_files, rng, size):
    home, foreign = _by_subject(_halves(files, rng), all_files)
    wrong = itertools.cycle([second for *_, second in foreign])
    fields, labels = {'context': [], 'endings': []}, []
    if len(foreign) >= _CHOICES - 1:
        for i, (_, _, context, right) in enumerate(home[: min(size, len(home)) // _CHOICES * _CHOICES]):
            label = i % _CHOICES
            endings = list(itertools.islice(wrong, _CHOICES - 1))
            fields['context'].append(context)
            fields['endings'].append(endings[:label] + [right] + endings[label:])
            labels.append(label)
    return fields, labels


_MAKERS = {'docs_package': _package, 'docs_follows': _follows, 'docs_same': _same, 'docs_continuation': _continuation}


def _in_turn(by_file, rng) -> list:
    """One of each file, then a second of each file, and so on, so that a few large files do not fill the set."""
    by_file = [[items[i] for i in rng.permutation(len(items))] for items in by_file]
    by_file = [by_file[i] for i in rng.permutation(len(by_file))]
    longest = max(map(len, by_file), default=0)
    return [items[turn] for turn in range(longest) for items in by_file if turn < len(items)]


def _pairs(files, rng) -> list[tuple[str, str, str, str]]:
    """(package, path, first, second): two passages of one docstring, each used once."""
    begin = lambda passage: ' '.join(passage.split()[:_MOST_OF_PAIR])
    by_file = [
        [(package, path, begin(first), begin(second)) for text in texts for first, second in zip(text[::2], text[1::2])]
        for package, path, texts in files
    ]
    return _in_turn(by_file, rng)


def _halves(files, rng) -> list[tuple[str, str, str, str]]:
    """(package, path, first, second): a passage cut at a random word, so that the two lengths tell nothing."""
    by_file, seen = [], set()
    for package, path, texts in files:
        found = []
        for words in (passage.split()[:_MOST_OF_CUT] for text in texts for passage in text):
            if len(words) < 2 * _LEAST_PART:
                continue
            cut = rng.randint(_LEAST_PART, len(words) - _LEAST_PART + 1)
            first, second = ' '.join(words[:cut]), ' '.join(words[cut:])
            if second.lower() not in seen:
                found.append((package, path, first, second))
            seen.add(second.lower())
        by_file.append(found)
    return _in_turn(by_file, rng)


def _by_subject(pairs, all_files) -> tuple[list, list]:
    """The pairs of each of the two subjects, which are the same in train and dev."""
    packages = sorted({package for package, *_ in all_files})
    home = set(packages) & set(_NUMERICAL)
    if not home or len(home) == len(packages):
        home = set(packages[::2])
    return [pair for pair in pairs if pair[0] in home], [pair for pair in pairs if pair[0] not in home]


def _true_and_false(pairs, all_files, rng, size, true_label: int):
    home, foreign = _by_subject(pairs, all_files)
    each = min(size // 2, len(home) // 2, len(foreign))
    order = sorted(rng.permutation(2 * each), key=lambda i: home[i][0])  # as many of both in each package
    true, false = order[::2], order[1::2]
    return (
        {
            'first': [home[i][2] for i in (*true, *false)],
            'second': [home[i][3] for i in true] + [foreign[i][3] for i in rng.permutation(each)],
        },
        [true_label] * each + [1 - true_label] * each,
    )
