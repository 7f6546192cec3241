"""Perplexity of running text, and log-probabilities of sentences, by a window that slides over each document."""

import contextlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from gpt1_jax import config as common
from gpt1_jax.data.corpora import Corpus, open_corpus
from gpt1_jax.data.tokenizers import standardise
from gpt1_jax.errors import UserError
from gpt1_jax.model.decoding import UNKNOWN_ID, bucket
from gpt1_jax.training import steps, transfer
from gpt1_jax.training.partitioning import Partitioner

_WINDOWS = 1024  # read before they are sorted by length into batches


class Piece(NamedTuple):
    """A part of a text: its tokens, int32 [n], and the number of its words."""

    ids: np.ndarray
    words: int


class Window(NamedTuple):
    """tokens: int32 [n], of the text number `text`; those from `first` on are scored, the others are context; words:
    that the text has up to here, since the window before."""

    text: int
    tokens: np.ndarray
    first: int
    words: int


def run(config, workdir) -> dict:
    """Scores `config.data.source` with `config.init_from`; returns what it writes to results.json (see the config)."""
    if not config.init_from:
        raise UserError('init_from is empty: name the --workdir of a pre-training run with --config.init_from=DIR, or '
                        'released weights with openai:DIR or hf:DIR')
    if config.data.batch_size < 1:
        raise UserError(f'data.batch_size={config.data.batch_size} is too small: give at least 1')
    partitioner = Partitioner(config.mesh.strategy, config.mesh.shape)
    source = transfer.open_source(config.init_from)
    context = source.architecture['n_positions']
    stride = context // 2 if config.stride is None else config.stride
    if not 1 <= stride <= context:
        raise UserError(f'stride={stride} is not between 1 and the model\'s {context} positions, where every token is '
                        'scored once: choose one that is')
    corpus = open_corpus(config.data.source)
    common.save_or_compare(config, workdir, write=jax.process_index() == 0)
    model, _, params = transfer.load_model(source, config.model, partitioner)

    texts = (sentences if config.sentences else documents)(corpus, source.tokenizer)
    windows = (window for number, pieces in enumerate(texts)
               for window in slide(number, pieces, start_id=source.tokenizer.end_id, context=context, stride=stride))
    log_probabilities, tokens, unknown, words = [], 0, 0, 0
    with _sentences_file(config, workdir) as file, partitioner.activate():
        scored = score_windows(windows, model, params, partitioner, config.data.batch_size)
        for _, of_one_text in itertools.groupby(scored, lambda pair: pair[0].text):
            of_one_text = list(of_one_text)
            log_probability = math.fsum(value for _, value in of_one_text)
            n_tokens = sum(len(window.tokens) - window.first for window, _ in of_one_text)
            n_unknown = sum(int(np.sum(window.tokens[window.first:] == UNKNOWN_ID)) for window, _ in of_one_text)
            if file:
                file.write(json.dumps({'log_probability': log_probability, 'tokens': n_tokens, 'unknown': n_unknown,
                                       'mean': log_probability / n_tokens if n_tokens else None}) + '\n')
            log_probabilities.append(log_probability)
            tokens += n_tokens
            unknown += n_unknown
            words += sum(window.words for window, _ in of_one_text)
    if not tokens:
        raise UserError(f'the source {config.data.source!r} holds nothing but white space: name another one')
    total = math.fsum(log_probabilities)
    results = {'sentences' if config.sentences else 'documents': len(log_probabilities), 'tokens': tokens,
               'unknown_tokens': unknown, 'comparable': not unknown, 'words': words, 'stride': stride,
               'log_probability': total, 'loss': -total / tokens, 'perplexity': common.perplexity(-total / tokens),
               'word_perplexity': common.perplexity(-total / words)}
    if jax.process_index() == 0:
        common.write_json(workdir / 'results.json', results)
    logging.info('%s tokens, %s words: perplexity %.2f a token, %.2f a word', f'{tokens:,}', f'{words:,}',
                 results['perplexity'], results['word_perplexity'])
    if unknown:
        logging.warning('%s of the %s scored tokens (%.3g %%) are the unknown piece, one token for any text that the '
                        'vocabulary lacks: the perplexities are not comparable with those of another vocabulary',
                        f'{unknown:,}', f'{tokens:,}', 100 * unknown / tokens)
    return results


def documents(corpus: Corpus, tokenizer) -> Iterator[Iterator[Piece]]:
    """The corpus's documents in pieces of about 1 MB, joined as `prepare` joins them: by a newline where one stood."""
    def pieces(blocks):
        begun = newline = False
        for block in blocks:
            ids = tokenizer.encode_batch([block.text])[0]
            if len(ids):
                if begun and newline:
                    ids = np.insert(ids, 0, tokenizer.newline_id)
                begun, newline = True, False
            newline |= block.text.endswith('\n')
            yield Piece(ids, len(standardise(block.text).split()))

    for _, blocks in itertools.groupby(corpus.blocks(held_out=0), lambda block: block.document):
        yield pieces(blocks)


def sentences(corpus: Corpus, tokenizer) -> Iterator[list[Piece]]:
    """The corpus's lines, each a text in one piece."""
    for _, blocks in itertools.groupby(corpus.blocks(held_out=0), lambda block: block.document):
        rest = ''  # of a line that is longer than a block
        for block in blocks:
            *lines, rest = (rest + block.text).split('\n')
            yield from _encode_lines(lines, tokenizer)
        yield from _encode_lines([rest] if rest else [], tokenizer)


def _encode_lines(lines, tokenizer):
    for line, ids in zip(lines, tokenizer.encode_batch(lines), strict=True):
        yield [Piece(ids, len(standardise(line).split()))]


def slide(text: int, pieces: Iterable[Piece], *, start_id: int, context: int, stride: int) -> Iterator[Window]:
    """Windows of at most context + 1 tokens that score each token of a text once; at least one window.

    Before the text stands `start_id`, which is not scored. A token has at least context - stride tokens before it, or
    all that there are.
    """
    tokens, first, words = np.array([start_id], np.int32), 1, 0
    for piece in pieces:
        tokens = np.concatenate([tokens, piece.ids])
        words += piece.words
        while len(tokens) > context + 1:
            yield Window(text, tokens[:context + 1], first, words)
            tokens, first, words = tokens[stride:], context + 1 - stride, 0
    yield Window(text, tokens, first, words)


def score_windows(windows: Iterable[Window], model, params: dict, partitioner: Partitioner, batch_size: int,
                  ) -> Iterator[tuple[Window, float]]:
    """Each window, in order, with the log-probability of its scored tokens in nats. Call it inside
    `partitioner.activate`.

    Only token rows compete. Windows of like length share a batch: of `batch_size` windows of the whole context, or of
    more that are shorter.
    """
    step = steps.jit_eval_step(steps.nll_step(model, partitioner.groups), params, partitioner)
    windows = iter(windows)
    while chunk := list(itertools.islice(windows, _WINDOWS)):
        by_length = {}
        for place, window in enumerate(chunk):
            by_length.setdefault(bucket(len(window.tokens) - 1, model.n_positions), []).append(place)
        pending = []
        for length, places in by_length.items():
            rows = max(1, batch_size * model.n_positions // length // partitioner.groups) * partitioner.groups
            for start in range(0, len(places), rows):
                members = places[start:start + rows]
                batch = _batch([chunk[place] for place in members], rows, length)
                batch = {name: partitioner.local_rows(array) for name, array in batch.items()}
                pending.append((members, step(params, partitioner.put_batch(batch))))
        scores = np.zeros(len(chunk))
        for members, nll in pending:
            scores[members] = -jax.device_get(nll)[:len(members)]
        yield from zip(chunk, scores.tolist(), strict=True)


def _batch(windows, rows, length):
    """tokens int32 [rows, length + 1] and weights float32 [rows, length], 0 where not scored."""
    tokens, weights = np.zeros((rows, length + 1), np.int32), np.zeros((rows, length), np.float32)
    for row, window in enumerate(windows):
        tokens[row, :len(window.tokens)] = window.tokens
        weights[row, window.first - 1:len(window.tokens) - 1] = 1
    return {'tokens': tokens, 'weights': weights}


def _sentences_file(config, workdir):
    if not config.sentences or jax.process_index() != 0:
        return contextlib.nullcontext()
    return (workdir / 'sentences.jsonl').open('w')
