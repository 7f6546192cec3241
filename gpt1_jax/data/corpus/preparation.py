"""Text to a vocabulary and token shards: streaming, on all cores, resumable.

The vocabulary is learned from a sample of the training text, then all text is standardised and encoded. The result
depends on the source and the options, not on the number of workers or on interruptions.
"""

import contextlib
import dataclasses
import functools
import hashlib
import heapq
import re
import resource
import sys
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from absl import logging
from etils import epath

from gpt1_jax.data.corpus import shards
from gpt1_jax.data.corpus.documents import map_blocks
from gpt1_jax.data.corpus.held_out import held_out_rule, hold_out
from gpt1_jax.data.corpus.sources import TEXT_OPTIONS, open_corpus
from gpt1_jax.data.corpus.survey import survey
from gpt1_jax.data.tokenizers.loading import load_tokenizer
from gpt1_jax.data.tokenizers.sentence_piece import train_sentencepiece
from gpt1_jax.data.tokenizers.standardise import standardise
from gpt1_jax.errors import UserError
from gpt1_jax.files import read_json, write_json
from gpt1_jax.processes import cores, process_pool
from gpt1_jax.progress import Progress

_EXCERPT = 2**14  # characters; short ones let the sample see many documents
_TASK = 2**19  # characters, at least, that a worker is given at once
_COMMIT_SECONDS = 60
_HELD_OUT = 'journal/held_out.json'
_LINE_END = re.compile('[\n\r\x85\u2028\u2029]')


class Joint(NamedTuple):
    """What a block of a document must know of the blocks before it: whether they have tokens (`begun`), and whether a
    line has ended since the last of these (`newline`)."""

    begun: bool = False
    newline: bool = False


def join(joint: Joint, text: str, ids: np.ndarray, newline_id: int) -> tuple[np.ndarray, Joint]:
    """Adds a block to its document, such that the tokens of all blocks are those of the whole text.

    Args:
      joint: after the blocks before; Joint() at the beginning of a document.
      text, ids: of the block: what was read, and its own tokens, int32 [n].
    Returns:
      The tokens to append to the document, int32 [n] or [n + 1], and the joint for the next block.
    """
    if len(ids):
        before = text[: len(text) - len(text.lstrip())]  # a line may end where the last block has ended already
        if joint.begun and (joint.newline or _LINE_END.search(before)):
            ids = np.insert(ids, 0, newline_id)
        joint = Joint(begun=True)
    after = text[len(text.rstrip()) :]
    return ids, joint._replace(newline=joint.newline or bool(_LINE_END.search(after)))


def prepare(data: Mapping, output: epath.PathLike) -> shards.Shards:
    """Turns a corpus into shards; resumes where an earlier call was interrupted; opens what is finished.

    Args:
      data: `source`, `download`, `text_column`, `strip_gutenberg`, `unwrap` (see `open_corpus`), `held_out` (fraction
        of the text, see `hold_out`), `tokens_per_shard`, `workers` (0: all cores), `tokenizer` (a folder, see
        `load_tokenizer`; '': train one, with `vocab_size` pieces, on `tokenizer_sample_mb` of text).
      output: the folder to write.
    Raises:
      UserError: a source that cannot be read, an output that cannot be written or holds something else.
    """
    output = epath.Path(output).expanduser()
    _check(data)
    options = {name: data[name] for name in ('source', 'held_out', 'tokens_per_shard')}
    options |= {name: data[name] for name in TEXT_OPTIONS if data[name]}
    if data['tokenizer']:
        options['tokenizer'] = load_tokenizer(data['tokenizer']).fingerprint
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
    corpus = open_corpus(data['source'], download=data['download'], **{name: data[name] for name in TEXT_OPTIONS})
    options |= {'documents': corpus.documents, 'fingerprint': corpus.fingerprint}
    if not corpus.own_held_out and not corpus.by_name:
        options['held_out_by'] = 'bytes'
    journal = shards.read_journal(output)
    if journal is None:
        if output.is_dir() and any(path.name != 'journal' for path in output.iterdir()):
            raise UserError(f'{output}: The folder is not empty and holds no preparation. Choose another data.output.')
    elif journal['position'] is None and journal['preparation'] != options:
        # Nothing is encoded yet: an option was wrong, such as too large a vocabulary, and has been fixed.
        if (output / 'tokenizer').exists():
            (output / 'tokenizer').rmtree()
        journal = None
    else:
        _require_same(journal['preparation'], options, output)
        logging.info('resuming the preparation in %s', output)
    held_out = _hold_out(corpus, data, output, options)
    if journal is None:
        shards.start_journal(output, options)
    write_json(output / _HELD_OUT, {'preparation': options, 'held_out': held_out})
    tokenizer = _tokenizer(corpus, data, output, held_out)
    characters = _encode_corpus(corpus, data, output, tokenizer, held_out)
    prepared = dataclasses.replace(shards.load_shards(output), characters=characters)
    _log_summary(prepared, time.monotonic() - started)
    return prepared


def _check(data):
    if not 0 <= data['held_out'] < 1:
        raise UserError(f'data.held_out: {data["held_out"]} is no fraction of the text. It must be from 0 to below 1.')
    least_values = {'tokens_per_shard': 1, 'vocab_size': 1, 'tokenizer_sample_mb': 1, 'workers': 0}
    for name, least in least_values.items():
        if data[name] < least:
            raise UserError(f'data.{name}: {data[name]} is too small. It must be at least {least}.')


def _require_same(earlier, options, output):
    # A finished folder may know more than the options say; any other option that only one of them has is a difference.
    of_files = {'documents', 'fingerprint', 'held_out_by'}
    names = sorted((earlier.keys() | options.keys()) - (of_files - options.keys()))
    differing = [name for name in names if earlier.get(name) != options.get(name)]
    if not differing:
        return
    if of_files.issuperset(differing) and 'held_out_by' in differing:
        raise UserError(
            f'{output}: An earlier version of this program began this preparation, and held out other documents. '
            'Choose another data.output, or delete it.'
        )
    if of_files.issuperset(differing):
        raise UserError(
            f'{output}: The preparation in this folder was interrupted, and the files of '
            f'{options["source"]} have changed since. Choose another data.output, or delete it.'
        )
    changes = (
        f'{name} was {earlier.get(name, "not given")}, is {options.get(name, "not given")}'
        for name in differing
        if name not in of_files
    )
    raise UserError(
        f'{output}: The folder holds another preparation ({"; ".join(changes)}). Choose another '
        'data.output, or delete it.'
    )


def _hold_out(corpus, data, output, options) -> dict[int, int]:
    """What is held out beside the source's own split, see `Corpus.blocks`; the same after an interruption."""
    path, fraction = output / _HELD_OUT, data['held_out']
    kept = read_json(path) if path.exists() else {}
    if kept.get('preparation') == options:
        return {int(document): byte for document, byte in kept['held_out'].items()}
    if corpus.own_held_out:
        return {}
    if corpus.by_name and corpus.documents > 1:
        is_held_out = held_out_rule(corpus.names, fraction)
        return {i: 0 for i, name in enumerate(corpus.names()) if is_held_out(name)}
    with process_pool(data['workers']) as pool:
        found = survey(corpus, pool, _in_flight(data))
    held_out = hold_out(corpus.names(), found.sizes, found.groups, fraction) if fraction else {}
    share = sum(int(found.sizes[document]) - byte for document, byte in held_out.items()) / found.sizes.sum()
    what = 'the end of each of ' if any(held_out.values()) else ''
    logging.info('%s: held out: %s%s documents, %.3g %% of the text', corpus.uri, what, len(held_out), 100 * share)
    return held_out


def _in_flight(data):
    return 2 * (data['workers'] or cores()) + 2


def _tokenizer(corpus, data, output, held_out):
    """The tokenizer in output/tokenizer: there already, copied from the one named, or trained."""
    path = output / 'tokenizer'
    if (path / 'tokenizer.json').exists():
        return load_tokenizer(path)
    if data['tokenizer']:
        load_tokenizer(data['tokenizer']).save(path)
    else:
        with process_pool(data['workers']) as pool:
            sample = _sample(_read(corpus, held_out), data['tokenizer_sample_mb'] * 2**20)
            texts = list(pool.map(standardise, sample, chunksize=64))
            logging.info(
                'learning a vocabulary of %s pieces from %.1f million characters',
                f'{data["vocab_size"]:,}',
                sum(map(len, texts)) / 1e6,
            )
            # In a worker, which gives its memory back when it ends.
            pool.submit(_train, texts, data['vocab_size'], path).result()
    return load_tokenizer(path)


def _train(texts, vocab_size, path):
    train_sentencepiece(texts, vocab_size).save(path)


def _read(corpus, held_out):
    """All blocks; shows how many of their bytes are read."""
    done = 0
    with contextlib.closing(Progress(corpus.size, 0, 'sampling', unit='B')) as progress:
        for block in corpus.blocks(held_out):
            yield block
            done += block.size
            progress.update(done)


def _sample(blocks, characters):
    """Excerpts of the training text: those with the lowest hashes, that many characters or all."""
    heap, total = [], 0
    for block in blocks:
        begin = 0
        while begin < len(block.text) and not block.held_out:
            end = block.text.find('\n', begin + _EXCERPT) + 1 or len(block.text)
            key = f'{block.name}\0{block.offset}\0{begin}'.encode(errors='surrogateescape')
            rank = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), 'big')
            heapq.heappush(heap, (-rank, block.text[begin:end]))
            total += end - begin
            while total - len(heap[0][1]) >= characters:
                total -= len(heapq.heappop(heap)[1])
            begin = end
    return [text for _, text in sorted(heap, reverse=True)]


def _encode_corpus(corpus, data, output, tokenizer, held_out):
    """Encodes all text into shards, from the journal's position on; returns the number of its characters."""
    writer = shards.ShardWriter(output, tokenizer.vocab_size, data['tokens_per_shard'])
    position = writer.position or {'start': [0, 0], 'document': None, **Joint()._asdict(), 'characters': 0, 'bytes': 0}
    end = np.array([tokenizer.end_id])
    committed = time.monotonic()
    with (
        process_pool(data['workers']) as pool,
        contextlib.closing(Progress(corpus.size, position['bytes'], 'encoding', unit='B')) as progress,
    ):
        blocks = corpus.blocks(held_out, tuple(position['start']))
        encode = functools.partial(_encode, output / 'tokenizer')
        for group in map_blocks(pool, encode, blocks, _in_flight(data), _TASK):
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
    position |= {'start': [corpus.documents, 0], 'document': None}
    if not writer.tokens['train']:
        raise UserError(f'{corpus.uri}: There is no text to train on. Use another data.source.')
    if data['held_out'] and not writer.tokens['valid']:
        raise UserError(
            f'{corpus.uri}: The text is too short to hold out {data["held_out"]} of it. Use more text, or '
            'set data.held_out to 0.'
        )
    writer.commit(position)
    writer.finish(tokenizer.fingerprint)
    return position['characters']


def _end_document(writer, position, end):
    return position['document'] is not None and position['begun'] and writer.append(position['document'][1], end)


def _encode(tokenizer, texts):
    return _load_tokenizer(tokenizer).encode_batch(texts)


@functools.cache
def _load_tokenizer(path):
    return load_tokenizer(path, threads=1)  # the processes already use all cores


def _log_summary(prepared, seconds):
    train, valid = prepared.splits['train'], prepared.splits.get('valid')
    held_out = (valid.tokens, valid.documents) if valid else (0, 0)
    unit = 1 if sys.platform == 'darwin' else 1024
    main, worker = (
        resource.getrusage(who).ru_maxrss * unit / 1e6 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    logging.info(
        'prepared %s: %s documents, %s training tokens, %s held-out tokens (%s documents), vocabulary %s, %.3f '
        'characters per token, %.0f seconds, peak memory %.0f MB (largest worker %.0f MB)',
        prepared.directory,
        f'{train.documents + held_out[1]:,}',
        f'{train.tokens:,}',
        f'{held_out[0]:,}',
        f'{held_out[1]:,}',
        f'{prepared.vocab_size:,}',
        prepared.characters / (train.tokens + held_out[0]),
        seconds,
        main,
        worker,
    )
