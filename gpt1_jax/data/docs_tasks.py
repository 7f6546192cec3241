"""Four labelled sets made of documentation strings: the quickstart's, real English without a download.

  docs_package       which of four packages is this passage from? (passages that name one are left out)
  docs_follows       does the second passage follow the first, or another text of the same package?
  docs_same          are two passages from one docstring, or from two files?
  docs_continuation  which of four passages, all from one package, continues the text?

Each set is balanced (chance is 1 / number of classes), split by file, and says nothing to one who reads only
one of two texts: the wrong second passages are the right ones of other examples. What belongs together shares
a word that is rare in these texts, what does not shares none: a careful reader can nearly always tell.
The dev sets come from the files that the corpus `docs:` holds out where its held_out is DEV_SHARE; a language
model trained with less held out has read their texts, but never their labels.
"""

import collections
import functools
import re

import numpy as np

from gpt1_jax.data.datasets import Examples
from gpt1_jax.data.docstrings import DocFile, read_docstrings
from gpt1_jax.errors import UserError

DEV_SHARE = 0.2  # of the files
_LEAST_WORDS, _ENOUGH_WORDS, _MOST_WORDS = 10, 20, 40
_RARE = 0.01  # of the passages
_PACKAGES = 4
_CHOICES = 4
_OTHER_NAMES = {'tensorflow': ('tf',), 'tensorflow_datasets': ('tfds',), 'numpy': ('np',),
                'sklearn': ('scikit-learn', 'scikit')}
_SENTENCE_END = re.compile(r'(?<=[.!?:;])\s+(?=[A-Z`*"\'(\[])')
_NOT_PROSE = re.compile(r'>>>|\.\. |::|\||===|---|~~~|https?:|:[a-z]+:|\n\s|^\s*[-*+@:#]')
_WORD = re.compile(r'[A-Za-z][a-z]+')


def load(name: str, packages: str, split: str) -> Examples:
    """The split of a `docs:` source; `packages` as in the URI, '' for all that requirements.txt asks for."""
    if name not in _MAKERS:
        raise UserError(f'docs: has no data set {name!r}, only {", ".join(_MAKERS)}; use files: or tfds:.')
    if split == 'test':
        raise UserError(f'docs: has no test split for {name!r}; use dev.')
    return build(name, tuple(package for package in packages.split(',') if package))[split]


@functools.lru_cache(maxsize=4)
def build(name: str, packages: tuple[str, ...] = (), seed: int = 0, train: int = 1500,
          dev: int = 600) -> dict[str, Examples]:
    """build_from_files on installed packages (all: ()); kept, because train and dev are asked for in turn."""
    return build_from_files(name, read_docstrings(packages, DEV_SHARE), seed, train, dev)


def build_from_files(name: str, files: list[DocFile], seed: int = 0, train: int = 1500,
                     dev: int = 600) -> dict[str, Examples]:
    """{'train': Examples, 'dev': Examples} of the set `name`, at most of these sizes.

    Args:
      files: the documentation strings; the held-out ones make the dev set.

    Raises:
      UserError: the files hold too little running text.
    """
    parts, seen, counts = {'train': [], 'dev': []}, set(), collections.Counter()
    for file in sorted(files, key=lambda file: (file.package, file.path)):
        texts = []
        for docstring in file.docstrings:
            # A passage that stands in several places would be a right answer to several questions.
            text = [passage for passage in passages(docstring) if passage.lower() not in seen]
            seen.update(passage.lower() for passage in text)
            for passage in text:
                counts.update(_words(passage))
            texts.append(text)
        part = parts['dev' if file.held_out else 'train']
        part.append((file.package, file.path, [text for text in texts if text]))
    rare = {word for word, count in counts.items() if count < max(_RARE * len(seen), 10)}
    splits = {}
    for part, size in (('train', train), ('dev', dev)):
        rng = np.random.RandomState([seed, size])
        fields, labels = _MAKERS[name](parts[part], parts['train'] + parts['dev'], rare, rng, size)
        if len(labels) < min(size, 4 * _CHOICES):
            raise UserError(f'These packages give only {len(labels)} {part} examples of {name!r}; use docs: '
                            'for all installed packages, or name larger ones, as docs:numpy,scipy,jax,keras.')
        order = rng.permutation(len(labels))
        shuffled = {field: [column[i] for i in order] for field, column in fields.items()}
        splits[part] = Examples(shuffled, np.array(labels, np.int32)[order], [f'{part}-{i}' for i in order])
    return splits


def passages(docstring: str) -> list[str]:
    """Consecutive passages of running text, 10 to 40 words each, cut at ends of sentences if there are any.

    Headings, lists, tables, code and whatever is indented are left out.
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


def _words(passage: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(passage) if len(word) > 3}


# ---------------------------------------------------------------- the sets: files -> ({field: texts}, labels)


def _package(files, all_files, rare, rng, size):
    count = collections.Counter(package for package, _, texts in all_files if texts)
    names = sorted(sorted(count, key=lambda name: (-count[name], name))[:_PACKAGES])
    forbidden = [other for name in names for other in (name, *_OTHER_NAMES.get(name, ()))]
    named = re.compile(rf'(?<![a-z])({"|".join(map(re.escape, forbidden))})(?![a-z])', re.IGNORECASE)
    columns = []
    for name in names:
        by_file = [[passage for text in texts for passage in text
                    if len(passage.split()) >= _ENOUGH_WORDS and not named.search(passage)]
                   for package, _, texts in files if package == name]
        columns.append(_in_turn(by_file, rng))
    each = min(size // len(names), *map(len, columns)) if len(names) == _PACKAGES else 0
    return ({'passage': [passage for column in columns for passage in column[:each]]},
            [label for label in range(len(names)) for _ in range(each)])


def _follows(files, all_files, rare, rng, size):
    pairs = _pairs(files, rare, rng, adjacent=True)
    return _true_and_false(pairs, rare, rng, size, by_package=True, true_label=0)


def _same(files, all_files, rare, rng, size):
    pairs = _pairs(files, rare, rng, adjacent=False)
    return _true_and_false(pairs, rare, rng, size, by_package=False, true_label=1)


def _continuation(files, all_files, rare, rng, size):
    pairs = _pairs(files, rare, rng, adjacent=True)
    rivals = _rivals(pairs, rare, range(len(pairs)), _CHOICES - 1, by_package=True)
    fields, labels = {'context': [], 'endings': []}, []
    for i in list(rivals)[:min(size, len(rivals)) // _CHOICES * _CHOICES]:
        label = len(labels) % _CHOICES
        endings = [pairs[j][3] for j in rivals[i]]
        fields['context'].append(pairs[i][2])
        fields['endings'].append(endings[:label] + [pairs[i][3]] + endings[label:])
        labels.append(label)
    return fields, labels


_MAKERS = {'docs_package': _package, 'docs_follows': _follows, 'docs_same': _same,
           'docs_continuation': _continuation}


def _in_turn(by_file, rng) -> list:
    """One of each file, then a second of each file, and so on: no few large files make the whole set."""
    by_file = [[items[i] for i in rng.permutation(len(items))] for items in by_file]
    by_file = [by_file[i] for i in rng.permutation(len(by_file))]
    longest = max(map(len, by_file), default=0)
    return [items[turn] for turn in range(longest) for items in by_file if turn < len(items)]


def _pairs(files, rare, rng, adjacent: bool) -> list[tuple[str, str, str, str]]:
    """(package, path, first, second): two passages of one docstring that share a rare word, used once."""
    by_file = []
    for package, path, texts in files:
        found = []
        for text in texts:
            order = range(len(text)) if adjacent else rng.permutation(len(text))
            for i, j in zip(order[::2], order[1::2]):
                if _words(text[i]) & _words(text[j]) & rare:
                    found.append((package, path, text[i], text[j]))
        by_file.append(found)
    return _in_turn(by_file, rng)


def _rivals(pairs, rare, indices, number: int, by_package: bool) -> dict[int, list[int]]:
    """For each of these pairs `number` others, of other files, whose second passage does not fit its first.

    All serve equally often, but for the few that find no partner; a pair with too few others is left out.
    """
    groups = collections.defaultdict(list)
    for i in indices:
        groups[pairs[i][0] if by_package else ''].append(i)
    first = {i: _words(pairs[i][2]) & rare for i in indices}
    second = {i: _words(pairs[i][3]) & rare for i in indices}
    chosen = {i: [] for i in indices}
    for group in groups.values():
        for turn in range(number):
            free = collections.deque(group)
            free.rotate(-1 - turn * len(group) // (number + 1))
            for i in group:
                for _ in range(len(free)):
                    j = free.popleft()
                    if pairs[i][1] != pairs[j][1] and not first[i] & second[j] and j not in chosen[i]:
                        chosen[i].append(j)
                        break
                    free.append(j)
    return {i: others for i, others in chosen.items() if len(others) == number}


def _true_and_false(pairs, rare, rng, size, by_package: bool, true_label: int):
    turn, true, false = collections.Counter(), [], []
    for i in rng.permutation(len(pairs)):
        package = pairs[i][0]
        (false if turn[package] % 2 else true).append(i)  # in each package as many of both
        turn[package] += 1
    rivals = _rivals(pairs, rare, sorted(false), 1, by_package)
    true.sort()  # back to the order of _pairs, because only the first ones may be wanted
    each = min(size // 2, len(true), len(rivals))
    chosen = [(i, i, true_label) for i in true[:each]]
    chosen += [(i, rivals[i][0], 1 - true_label) for i in list(rivals)[:each]]
    return ({'first': [pairs[i][2] for i, _, _ in chosen], 'second': [pairs[j][3] for _, j, _ in chosen]},
            [label for _, _, label in chosen])
