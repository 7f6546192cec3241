"""One pass over all text of a corpus, before anything is written: what cannot be read, is empty or is there twice."""

import array
import contextlib
import functools
import hashlib
import itertools
import re
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
from absl import logging

from gpt1_jax.data.corpus import duplicates
from gpt1_jax.data.corpus.documents import Corpus, Findings, map_blocks
from gpt1_jax.errors import UserError
from gpt1_jax.progress import Progress

_TASK = 2**19  # characters, at least, that a worker is given at once
_PARAGRAPHS_OF = 2**31  # bytes: of a larger corpus a sample of the paragraphs is kept, as many as one of this size has
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


def survey(corpus: Corpus, pool: Executor, in_flight: int) -> Survey:
    """Reads all text in a pool of processes, and logs what it finds.

    in_flight: tasks that are in memory at most.

    Raises:
      UserError: there is no text, or files that cannot be read: it names all of them.
    """
    found, nuls, done = Findings(dict.fromkeys(corpus.problems)), [], 0
    sizes, contents = np.zeros(corpus.documents, np.int64), np.zeros(corpus.documents, np.uint64)
    has_text = np.zeros(corpus.documents, bool)
    owners, paragraphs = array.array('q'), array.array('Q')
    limit = min(2**64, 2**64 * _PARAGRAPHS_OF // max(1, corpus.size))
    with contextlib.closing(Progress(corpus.size, 0, 'checking', unit='B')) as progress:
        work = functools.partial(_fingerprints, limit)
        for group in map_blocks(pool, work, corpus.blocks(found=found), in_flight, _TASK):
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
    _check(corpus.uri, found.problems, has_text)
    groups = duplicates.group(contents, np.asarray(owners), np.asarray(paragraphs))
    _log(corpus, has_text, groups, nuls, found.unmarked)
    return Survey(np.where(has_text, sizes, 0), groups)


def _fingerprints(limit, texts):
    return [duplicates.fingerprint(text, limit) for text in texts]


def _check(uri, problems, has_text):
    if len(problems) == 1:
        raise UserError(*problems)
    if problems:
        more = len(problems) - _PROBLEMS_SHOWN
        lines = [*itertools.islice(problems, _PROBLEMS_SHOWN), *([f'and {more:,} more'] if more > 0 else [])]
        raise UserError('\n  '.join([f'{uri}: {len(problems):,} files cannot be read. Fix or remove them:', *lines]))
    if not has_text.any():
        raise UserError(f'{uri}: Its {len(has_text):,} documents hold nothing but white space. Name another source.')


def _log(corpus, has_text, groups, nuls, unmarked):
    of_all = f'of {corpus.documents:,} documents'
    if empty := int(np.sum(~has_text)):
        logging.info('%s: without text: %s %s', corpus.uri, f'{empty:,}', of_all)
    if unmarked:
        logging.info('%s: without the markers of Project Gutenberg: %s %s', corpus.uri, f'{unmarked:,}', of_all)
    if nuls:
        logging.warning(
            '%s: NUL characters, which are left out: in %s %s, such as %s', corpus.uri, len(nuls), of_all, nuls[0]
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
