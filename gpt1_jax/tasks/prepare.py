"""Text to a vocabulary and token shards: streaming, on all cores, resumable.

The vocabulary is learned from a sample of the training text, then all text is standardised and encoded. The
result depends on the source and the options, not on the number of workers or on interruptions.
"""

import collections
import contextlib
import functools
import hashlib
import heapq
import resource
import sys
import time
from collections.abc import Iterable, Iterator

import numpy as np
from absl import logging
from etils import epath

from gpt1_jax.data import shards, tokenizers
from gpt1_jax.data.corpora import Block, Corpus, open_corpus
from gpt1_jax.data.processes import cores, process_pool
from gpt1_jax.errors import UserError
from gpt1_jax.progress import progress_bar

_EXCERPT = 2**14  # characters; short ones let the sample see many documents
_TASK = 2**19  # characters, at least, that a worker is given at once
_COMMIT_SECONDS = 60


def run(config, workdir) -> shards.Shards:
    """Prepares `config.data.source` in `config.data.output`, by default WORKDIR/shards."""
    return prepare(config.data, config.data.output or epath.Path(workdir) / 'shards')


def prepare(data, output) -> shards.Shards:
    """Turns a corpus into shards; goes on where an earlier call was interrupted; opens what is finished.

    Args:
        data: `source` (see `open_corpus`), `held_out` (fraction), `tokens_per_shard`, `workers` (0 = all
            cores), `tokenizer` (a directory, see `load_tokenizer`; '' = train one, with `vocab_size` pieces, on
            `tokenizer_sample_mb` of text).
        output: the directory to write.
    Raises:
        UserError: a source that cannot be read, an output that cannot be written or holds something else.
    """
    output = epath.Path(output).expanduser()
    _check(data)
    options = {name: data[name] for name in ('source', 'held_out', 'tokens_per_shard')}
    if data['tokenizer']:
        options['tokenizer'] = tokenizers.load_tokenizer(data['tokenizer']).fingerprint
    else:
        options |= {name: data[name] for name in ('vocab_size', 'tokenizer_sample_mb')}
    if (output / 'index.json').exists():
        finished = shards.load_shards(output)
        # Not the text itself: shards are of use where their source is not, or has changed since.
        _require_same(finished.preparation, options, output)
        shards.remove_journal(output)
        logging.info('%s is already prepared in %s', data['source'], output)
        return finished
    started = time.monotonic()
    corpus = open_corpus(data['source'])
    options |= {'documents': corpus.documents, 'fingerprint': corpus.fingerprint}
    journal = shards.read_journal(output)
    if journal is None:
        if output.is_dir() and any(path.name != 'journal' for path in output.iterdir()):
            raise UserError(f'The output {output} is not empty and holds no preparation: choose another '
                            'data.output.')
        shards.start_journal(output, options)
    elif journal['position'] is None and journal['preparation'] != options:
        # Nothing is encoded yet: an option was wrong, as too large a vocabulary, and has been fixed.
        if (output / 'tokenizer').exists():
            (output / 'tokenizer').rmtree()
        shards.start_journal(output, options)
    else:
        _require_same(journal['preparation'], options, output)
        logging.info('going on with the preparation in %s', output)
    tokenizer = _tokenizer(corpus, data, output)
    characters = _encode_corpus(corpus, data, output, tokenizer)
    prepared = shards.load_shards(output)
    _log_summary(prepared, characters, time.monotonic() - started)
    return prepared


def _check(data) -> None:
    if not 0 <= data['held_out'] < 1:
        raise UserError(f'data.held_out is {data["held_out"]}: give a fraction from 0 to below 1.')
    least_values = {'tokens_per_shard': 1, 'vocab_size': 1, 'tokenizer_sample_mb': 1, 'workers': 0}
    for name, least in least_values.items():
        if data[name] < least:
            raise UserError(f'data.{name} is {data[name]}: give at least {least}.')


def _require_same(earlier: dict, options: dict, output: epath.Path) -> None:
    # A finished directory may say more than is asked for; an option of the one that the other lacks differs.
    of_files = {'documents', 'fingerprint'}
    names = sorted((earlier.keys() | options.keys()) - (of_files - options.keys()))
    differing = [name for name in names if earlier.get(name) != options.get(name)]
    if not differing:
        return
    if of_files.issuperset(differing):
        raise UserError(f'The output {output} holds a preparation that was interrupted, and the files of '
                        f'{options["source"]} have changed since: choose another data.output, or delete it.')
    changes = (f'{name} was {earlier.get(name, "not given")}, is {options.get(name, "not given")}'
               for name in differing if name not in of_files)
    raise UserError(f'The output {output} holds another preparation ({"; ".join(changes)}): choose another '
                    'data.output, or delete it.')


def _tokenizer(corpus: Corpus, data, output: epath.Path):
    """The tokenizer in output/tokenizer: there already, copied from the one named, or trained."""
    place = output / 'tokenizer'
    if (place / 'tokenizer.json').exists():
        return tokenizers.load_tokenizer(place)
    if data['tokenizer']:
        tokenizers.load_tokenizer(data['tokenizer']).save(place)
    else:
        with process_pool(data['workers']) as pool:
            blocks = _with_progress(corpus.blocks(data['held_out']), 'sampling', corpus.size, 0)
            sample = _sample(blocks, data['tokenizer_sample_mb'] * 2**20)
            texts = list(pool.map(tokenizers.standardise, sample, chunksize=64))
            logging.info('learning a vocabulary of %s pieces from %.1f million characters',
                         f'{data["vocab_size"]:,}', sum(map(len, texts)) / 1e6)
            # In a worker, which gives its memory back when it ends.
            pool.submit(_train, texts, data['vocab_size'], place).result()
    return tokenizers.load_tokenizer(place)


def _train(texts: list[str], vocab_size: int, place: epath.Path) -> None:
    tokenizers.train_sentencepiece(texts, vocab_size).save(place)


def _sample(blocks: Iterable[Block], characters: int) -> list[str]:
    """Excerpts of the training text: those with the lowest hashes, that many characters or all."""
    heap, total = [], 0
    for block in blocks:
        begin = 0
        while begin < len(block.text) and not block.held_out:
            end = block.text.find('\n', begin + _EXCERPT) + 1 or len(block.text)
            place = f'{block.name}\0{block.offset}\0{begin}'.encode()
            rank = int.from_bytes(hashlib.blake2b(place, digest_size=8).digest(), 'big')
            heapq.heappush(heap, (-rank, block.text[begin:end]))
            total += end - begin
            while total - len(heap[0][1]) >= characters:
                total -= len(heapq.heappop(heap)[1])
            begin = end
    return [text for _, text in sorted(heap, reverse=True)]


def _encode_corpus(corpus: Corpus, data, output: epath.Path, tokenizer) -> int:
    """Encodes all text into shards, from the journal's position on; returns the number of its characters."""
    writer = shards.ShardWriter(output, tokenizer.vocab_size, data['tokens_per_shard'])
    place = writer.position or {'start': [0, 0], 'document': None, 'begun': False, 'newline': False,
                                'characters': 0, 'bytes': 0}
    newline, end = np.array([tokenizer.newline_id]), np.array([tokenizer.end_id])
    committed = time.monotonic()
    with process_pool(data['workers']) as pool:
        blocks = corpus.blocks(data['held_out'], tuple(place['start']))
        encoded = _encode_blocks(pool, blocks, output / 'tokenizer', 2 * (data['workers'] or cores()) + 2)
        for group in _with_progress(encoded, 'encoding', corpus.size, place['bytes']):
            finished = False
            for block, ids in group:
                split = 'valid' if block.held_out else 'train'
                if place['document'] != [block.document, split]:
                    finished |= _end_document(writer, place, end)
                    place |= {'document': [block.document, split], 'begun': False, 'newline': False}
                if len(ids):
                    if not place['begun']:
                        writer.start_document(split)
                    elif place['newline']:
                        finished |= writer.append(split, newline)
                    finished |= writer.append(split, ids)
                    place |= {'begun': True, 'newline': False}
                place['newline'] |= block.text.endswith('\n')
                place['start'] = [block.document, block.end]
                place['characters'] += len(block.text)
                place['bytes'] += block.size
            if finished or time.monotonic() - committed > _COMMIT_SECONDS:
                writer.commit(place)
                committed = time.monotonic()
    _end_document(writer, place, end)
    place |= {'start': [corpus.documents, 0], 'document': None}
    if not writer.tokens['train']:
        raise UserError(f'The source {corpus.uri!r} has no text to train on: use another one.')
    if data['held_out'] and not writer.tokens['valid']:
        raise UserError(f'The source {corpus.uri!r} is too short to hold out {data["held_out"]} of it: use '
                        'more text, or set data.held_out to 0.')
    writer.commit(place)
    writer.finish(tokenizer.fingerprint)
    return place['characters']


def _end_document(writer: shards.ShardWriter, place: dict, end: np.ndarray) -> bool:
    return place['document'] is not None and place['begun'] and writer.append(place['document'][1], end)


def _encode_blocks(pool, blocks: Iterable[Block], tokenizer, in_flight: int) -> Iterator[list]:
    """Groups of (block, ids), in the order of the blocks; at most `in_flight` groups are in memory."""
    queue = collections.deque()
    for group in _groups(blocks):
        queue.append((group, pool.submit(_encode, tokenizer, [block.text for block in group])))
        if len(queue) == in_flight:
            group, future = queue.popleft()
            yield list(zip(group, future.result(), strict=True))
    for group, future in queue:
        yield list(zip(group, future.result(), strict=True))


def _groups(blocks: Iterable[Block]) -> Iterator[list[Block]]:
    group, characters = [], 0
    for block in blocks:
        group.append(block)
        characters += len(block.text)
        if characters >= _TASK:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _encode(tokenizer: epath.Path, texts: list[str]) -> list[np.ndarray]:
    return _load_tokenizer(tokenizer).encode_batch(texts)


@functools.cache
def _load_tokenizer(place: epath.Path):
    return tokenizers.load_tokenizer(place, threads=1)  # the processes already use all cores


def _with_progress(items: Iterable, description: str, total: int, done: int) -> Iterator:
    """Passes blocks, or groups of (block, ids), on; a bar on a terminal, else a line every 10 seconds."""
    started = logged = time.monotonic()
    read = 0
    bar = progress_bar(total=total, initial=done, desc=description, unit='B', unit_scale=True)
    with bar if bar is not None else contextlib.nullcontext():
        for item in items:
            yield item
            size = item.size if isinstance(item, Block) else sum(block.size for block, _ in item)
            read += size
            if bar is not None:
                bar.update(size)
            now = time.monotonic()
            if bar is None and now - logged >= 10:
                rate = read / (now - started)
                logging.info('%s: %.0f of %.0f MB, %.1f MB/s, %.0f s left', description, (done + read) / 1e6,
                             total / 1e6, rate / 1e6, max(0, total - done - read) / rate)
                logged = now


def _log_summary(prepared: shards.Shards, characters: int, seconds: float) -> None:
    train, valid = prepared.splits['train'], prepared.splits.get('valid')
    tokens = train.tokens + (valid.tokens if valid else 0)
    documents = train.documents + (valid.documents if valid else 0)
    unit = 1 if sys.platform == 'darwin' else 1024
    main, worker = (resource.getrusage(who).ru_maxrss * unit / 1e6
                    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    logging.info(
        'prepared %s: %s documents, %s training tokens, %s held-out tokens (%s documents), vocabulary %s, %.3f '
        'characters per token, %.0f seconds, peak memory %.0f MB (largest worker %.0f MB)', prepared.directory,
        f'{documents:,}', f'{train.tokens:,}', f'{tokens - train.tokens:,}', f'{valid.documents if valid else 0:,}',
        f'{prepared.vocab_size:,}', characters / tokens, seconds, main, worker)
