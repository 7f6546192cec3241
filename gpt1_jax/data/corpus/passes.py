"""The passes over a corpus: a survey of what it holds, a sample of it for a tokenizer, its tokens.

The result of each depends on the text alone; it can be all of a corpus or some documents in a row.
"""

import contextlib
import functools
import hashlib
import heapq
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
from etils import epath

from gpt1_jax.data.corpus import shards
from gpt1_jax.data.corpus.documents import Block, Corpus, map_blocks
from gpt1_jax.data.corpus.survey import Survey, survey
from gpt1_jax.data.tokenizers.loading import Tokenizer, load_tokenizer
from gpt1_jax.errors import UserError
from gpt1_jax.files import is_local
from gpt1_jax.processes import cores, process_pool
from gpt1_jax.progress import Progress

_EXCERPT = 2**14  # characters; short ones let the sample see many documents
_COMMIT_SECONDS = 60
_LINE_END = re.compile('[\n\r\x85\u2028\u2029]')


class Passes(NamedTuple):
    """The three passes over a corpus: in this process and its workers, or on many machines (see beam.py).

    Attributes:
      survey: (corpus, data, output) -> what it holds.
      sample: (corpus, data, output, held_out) -> the texts to train a tokenizer on.
      encode: (corpus, data, output, held_out, tokenizer): makes `output` a finished folder.
    """

    survey: Callable[[Corpus, Mapping, epath.Path], Survey]
    sample: Callable[[Corpus, Mapping, epath.Path, Mapping[int, int]], list[str]]
    encode: Callable[[Corpus, Mapping, epath.Path, Mapping[int, int], Tokenizer], None]


class Joint(NamedTuple):
    """What a block of a document must know of the blocks before it: whether they have tokens (`begun`), and whether a
    line has ended since the last token (`newline`)."""

    begun: bool = False
    newline: bool = False


def join(joint: Joint, text: str, ids: np.ndarray, newline_id: int) -> tuple[np.ndarray, Joint]:
    """Adds a block to its document, so that the tokens of all blocks are those of the whole text, except for HTML
    entities: ftfy leaves those after a `<` alone, but a block does not know of a `<` in an earlier block.

    Args:
      joint: after the blocks before; Joint() at the beginning of a document.
      text, ids: of the block: what was read, and its own tokens, int32 [n].
    Returns:
      The tokens to append to the document, int32 [n] or [n + 1], and the joint for the next block.
    """
    if len(ids):
        before = text[: len(text) - len(text.lstrip())]  # the line of the last block may end here
        if joint.begun and (joint.newline or _LINE_END.search(before)):
            ids = np.insert(ids, 0, newline_id)
        joint = Joint(begun=True)
    after = text[len(text.rstrip()) :]
    return ids, joint._replace(newline=joint.newline or bool(_LINE_END.search(after)))


def excerpts(blocks: Iterable[Block]) -> Iterator[tuple[int, str]]:
    """The training text in excerpts, each with its rank: a hash of its place in the corpus, below 2**64."""
    for block in blocks:
        begin = 0
        while begin < len(block.text) and not block.held_out:
            end = block.text.find('\n', begin + _EXCERPT) + 1 or len(block.text)
            key = f'{block.name}\0{block.offset}\0{begin}'.encode(errors='surrogateescape')
            yield int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), 'big'), block.text[begin:end]
            begin = end


def lowest(ranked: Iterable[tuple[int, str]], characters: int) -> list[tuple[int, str]]:
    """The texts with the lowest ranks, as few as have that many characters, or all. Neither their order matters, nor
    whether the lowest of some parts were chosen before."""
    heap, total = [], 0
    for rank, text in ranked:
        heapq.heappush(heap, (-rank, text))
        total += len(text)
        while total - len(heap[0][1]) >= characters:
            total -= len(heapq.heappop(heap)[1])
    return [(-negative, text) for negative, text in sorted(heap, reverse=True)]


def encode(
    corpus: Corpus,
    held_out: Mapping[int, int],
    writer: shards.ShardWriter,
    tokenizer: Tokenizer,
    read: Callable[[Iterable[Block]], Iterator[list[tuple[Block, np.ndarray]]]],
    show: bool = True,
) -> dict:
    """Encodes all text, from the writer's position on.

    Args:
      read: blocks -> groups of them, in order, each block with the ids of its text.
    Returns:
      The position at the end, to commit; its 'characters' is the number in all text.
    """
    position = writer.position or {'start': [0, 0], 'document': None, **Joint()._asdict(), 'characters': 0, 'bytes': 0}
    end = np.array([tokenizer.end_id])
    committed = time.monotonic()
    with contextlib.closing(Progress(corpus.size, position['bytes'], 'encoding', unit='B', show=show)) as progress:
        for group in read(corpus.blocks(held_out, tuple(position['start']))):
            finished = False
            for block, ids in group:
                split = 'valid' if block.held_out else 'train'
                if position['document'] != [block.document, split]:
                    finished |= _end_document(writer, position, end)
                    position |= {'document': [block.document, split], **Joint()._asdict()}
                before = Joint(position['begun'], position['newline'])
                ids, joint = join(before, block.text, ids, tokenizer.newline_id)
                if joint.begun and not before.begun:
                    writer.start_document(split)
                finished |= writer.append(split, ids)
                position |= joint._asdict()
                position['start'] = [block.document, block.end]
                position['characters'] += len(block.text)
                position['bytes'] += block.size
            if finished or time.monotonic() - committed > _COMMIT_SECONDS:
                writer.commit(position)
                committed = time.monotonic()
            progress.update(position['bytes'])
    _end_document(writer, position, end)
    return position | {'start': [corpus.documents, 0], 'document': None}


def _end_document(writer, position, end):
    return position['document'] is not None and position['begun'] and writer.append(position['document'][1], end)


def check_tokens(corpus: Corpus, held_out: float, tokens: Mapping[str, int]) -> None:
    """Raises UserError if a split has none. held_out: the fraction that was wanted; tokens: by split."""
    if not tokens['train']:
        raise UserError(f'{corpus.uri}: There is no text to train on. Use another data.source.')
    if held_out and not tokens['valid']:
        raise UserError(
            f'{corpus.uri}: The text is too short to hold out {held_out} of it. Use more text, or a larger '
            'data.held_out; `prepare` alone can do with 0.'
        )


# The passes in this process and its workers.

_peaks = []  # MB of memory, of the workers so far


@contextlib.contextmanager
def worker_pool(workers: int) -> Iterator[Executor]:
    """`process_pool`, whose processes `largest_worker` counts."""
    with process_pool(workers) as pool:
        yield pool
        _peaks.extend(map(_peak, multiprocessing.active_children()))


def largest_worker() -> float:
    """The most memory, in MB, that a worker has had since the last call; 0 if it is not known."""
    largest = max(_peaks, default=0.0)
    _peaks.clear()
    return largest


def _peak(process):
    """MB. Not from ru_maxrss, which begins with the memory of the process that started this one."""
    with contextlib.suppress(OSError):
        with open(f'/proc/{process.pid}/status') as file:
            return next((int(line.split()[1]) * 1024 / 1e6 for line in file if line.startswith('VmHWM:')), 0.0)
    return 0.0


def _survey_here(corpus, data, output):
    del output
    with worker_pool(data['workers']) as pool:
        return survey(corpus, pool, _in_flight(data))


def _sample_here(corpus, data, output, held_out):
    del output
    ranked = lowest(excerpts(_read(corpus, held_out)), data['tokenizer_sample_mb'] * 2**20)
    return [text for _, text in ranked]


def _read(corpus, held_out):
    """All blocks; shows how many of their bytes are read."""
    done = 0
    with contextlib.closing(Progress(corpus.size, 0, 'sampling', unit='B')) as progress:
        for block in corpus.blocks(held_out):
            yield block
            done += block.size
            progress.update(done)


def _encode_here(corpus, data, output, held_out, tokenizer):
    writer = shards.ShardWriter(output, tokenizer.vocab_size, data['tokens_per_shard'])
    with worker_pool(data['workers']) as pool, tempfile.TemporaryDirectory() as copy:
        folder = output / 'tokenizer'
        if not is_local(folder):  # the workers then need no TensorFlow, which takes them seconds to load
            tokenizer.save(folder := epath.Path(copy))
        function = functools.partial(_encode, folder)
        read = lambda blocks: map_blocks(pool, function, blocks, _in_flight(data))
        position = encode(corpus, held_out, writer, tokenizer, read)
    check_tokens(corpus, data['held_out'], writer.tokens)
    writer.commit(position)
    writer.finish(tokenizer.fingerprint, position['characters'])


def _in_flight(data):
    return 2 * (data['workers'] or cores()) + 2


def _encode(tokenizer, texts):
    return _load_tokenizer(tokenizer).encode_batch(texts)


@functools.cache
def _load_tokenizer(path):
    return load_tokenizer(path, threads=1)  # the processes already use all cores


HERE = Passes(_survey_here, _sample_here, _encode_here)
