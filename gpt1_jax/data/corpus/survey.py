"""One pass over all text of a corpus, before anything is written: what cannot be read, is empty or is there twice."""

import array
import contextlib
import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
from absl import logging

from gpt1_jax.data.corpus import duplicates
from gpt1_jax.data.corpus.documents import Block, Corpus, Findings, map_blocks
from gpt1_jax.errors import UserError
from gpt1_jax.progress import Progress

_PARAGRAPHS_OF = 2**31  # bytes: of a larger corpus as many paragraphs are kept, as a sample, as one of this size has
_PROBLEMS_SHOWN = 10
_TEXT = re.compile('[^\\s\ufeff\\0]')


class Survey(NamedTuple):
    """What a corpus holds, by document.

    Attributes:
      sizes: bytes of its text, int64 [documents]; 0 where there is nothing but white space.
      groups: int64 [documents], the same number for documents that are the same text, or nearly.
    """

    sizes: np.ndarray
    groups: np.ndarray


class Facts(NamedTuple):
    """What is kept of consecutive documents: of a corpus, or of a part of one.

    Attributes:
      sizes, has_text, contents: bytes of the text, whether there is any, and a hash of it; int64, bool and uint64
        [documents].
      owners, paragraphs: a document and the hash of one of its paragraphs, int64 and uint64 [n].
      problems: sentences on documents that cannot be read.
      unmarked: documents that `strip_gutenberg` left as they are.
      nuls: names of documents with NUL characters.
    """

    sizes: np.ndarray
    has_text: np.ndarray
    contents: np.ndarray
    owners: np.ndarray
    paragraphs: np.ndarray
    problems: list[str]
    unmarked: int
    nuls: list[str]


def survey(corpus: Corpus, pool: Executor, in_flight: int) -> Survey:
    """Reads all text in a pool of processes, and logs what it finds.

    in_flight: tasks that are in memory at most.

    Raises:
      UserError: there is no text, or files that cannot be read: it names all of them.
    """
    work = functools.partial(_fingerprints, paragraph_limit(corpus))
    return conclude(corpus, gather(corpus, lambda blocks: map_blocks(pool, work, blocks, in_flight)))


def gather_here(corpus: Corpus, limit: int) -> Facts:
    """The facts of a part of a corpus, in this process alone. limit: the `paragraph_limit` of the whole."""
    read = lambda blocks: ([(block, duplicates.fingerprint(block.text, limit))] for block in blocks)
    return gather(corpus, read, show=False)


def paragraph_limit(corpus: Corpus) -> int:
    """Only hashes of paragraphs below this limit are kept, so that memory does not grow with the corpus."""
    return min(2**64, 2**64 * _PARAGRAPHS_OF // max(1, corpus.size))


def _fingerprints(limit, texts):
    return [duplicates.fingerprint(text, limit) for text in texts]


def gather(
    corpus: Corpus, read: Callable[[Iterable[Block]], Iterator[list[tuple[Block, duplicates.Print]]]], show: bool = True
) -> Facts:
    """Reads all text. read: blocks -> groups of them, in order, each block with its fingerprint."""
    found, nuls, done = Findings(), [], 0
    sizes, contents = np.zeros(corpus.documents, np.int64), np.zeros(corpus.documents, np.uint64)
    has_text = np.zeros(corpus.documents, bool)
    owners, paragraphs = array.array('q'), array.array('Q')
    with contextlib.closing(Progress(corpus.size, 0, 'checking', unit='B', show=show)) as progress:
        for group in read(corpus.blocks(found=found)):
            for block, (content, of_block) in group:
                index = block.document
                sizes[index] += block.end - block.offset
                has_text[index] |= bool(_TEXT.search(block.text))
                before = contents[index].tobytes()  # of a document in several blocks
                contents[index] = np.frombuffer(hashlib.blake2b(before + content, digest_size=8).digest(), np.uint64)[0]
                owners.frombytes(np.full(len(of_block), index).tobytes())
                paragraphs.frombytes(of_block.tobytes())
                if '\0' in block.text and nuls[-1:] != [block.name]:
                    nuls.append(block.name)
                done += block.size
            progress.update(done)
    owners, paragraphs = np.asarray(owners), np.asarray(paragraphs)
    return Facts(sizes, has_text, contents, owners, paragraphs, list(found.problems), found.unmarked, nuls)


def together(parts: Iterable[Facts]) -> Facts:
    """The facts of a corpus from those of its parts, in their order."""
    parts = list(parts)
    firsts = itertools.accumulate((len(part.sizes) for part in parts), initial=0)
    parts = [part._replace(owners=part.owners + first) for part, first in zip(parts, firsts)]
    arrays = ('sizes', 'has_text', 'contents', 'owners', 'paragraphs')
    return Facts(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays},
        problems=[problem for part in parts for problem in part.problems],
        unmarked=sum(part.unmarked for part in parts),
        nuls=[name for part in parts for name in part.nuls],
    )


def conclude(corpus: Corpus, facts: Facts) -> Survey:
    """The survey of a corpus from the facts of all its documents; logs what it finds. Raises UserError as `survey`."""
    _check(corpus.uri, dict.fromkeys([*corpus.problems, *facts.problems]), facts.has_text)
    groups = duplicates.group(facts.contents, facts.owners, facts.paragraphs)
    _log(corpus, facts, groups)
    return Survey(np.where(facts.has_text, facts.sizes, 0), groups)


def _check(uri, problems, has_text):
    if len(problems) == 1:
        raise UserError(*problems)
    if problems:
        more = len(problems) - _PROBLEMS_SHOWN
        lines = [*itertools.islice(problems, _PROBLEMS_SHOWN), *([f'and {more:,} more'] if more > 0 else [])]
        raise UserError('\n  '.join([f'{uri}: {len(problems):,} files cannot be read. Fix or remove them:', *lines]))
    if not has_text.any():
        raise UserError(f'{uri}: Its {len(has_text):,} documents hold nothing but white space. Name another source.')


def _log(corpus, facts, groups):
    has_text, nuls, unmarked = facts.has_text, facts.nuls, facts.unmarked
    of_all = f'of {corpus.documents:,} documents'
    if empty := int(np.sum(~has_text)):
        logging.info('%s: without text: %s %s', corpus.uri, f'{empty:,}', of_all)
    if unmarked:
        logging.info('%s: without the markers of Project Gutenberg: %s %s', corpus.uri, f'{unmarked:,}', of_all)
    if nuls:
        logging.warning(
            '%s: NUL characters, which are left out: in %s %s, such as %s',
            corpus.uri,
            f'{len(nuls):,}',
            of_all,
            nuls[0],
        )
    with_text = np.flatnonzero(has_text)
    _, first, count = np.unique(groups[with_text], return_index=True, return_counts=True)
    if copies := len(with_text) - len(first):
        a, b = with_text[groups[with_text] == groups[with_text[first[np.argmax(count)]]]][:2].tolist()
        name = lambda index: next(itertools.islice(corpus.names(), index, None))
        logging.warning(
            '%s: copies of others, or nearly: %s %s, such as %s and %s; copies are all trained on or all held out',
            corpus.uri,
            f'{copies:,}',
            of_all,
            name(a),
            name(b),
        )
