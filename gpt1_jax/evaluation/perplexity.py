"""Log-probabilities of texts of any length, with a window that slides over each text."""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from gpt1_jax.data.corpus.documents import Corpus
from gpt1_jax.data.corpus.passes import Joint, join
from gpt1_jax.data.tokenizers import UNKNOWN_ID
from gpt1_jax.data.tokenizers.loading import Tokenizer
from gpt1_jax.data.tokenizers.standardise import standardise
from gpt1_jax.evaluation.journal import Watch
from gpt1_jax.model.classifier import Classifier
from gpt1_jax.model.decoding import bucket
from gpt1_jax.training import program
from gpt1_jax.training.partitioning import Partitioner

_WINDOWS = 1024  # read before they are sorted by length into batches
_LINE_END = re.compile('\r\n|\r|\n')


def perplexity(loss: float) -> float:
    """Perplexity of a loss in nats per token; finite if the loss is."""
    return math.exp(min(loss, 700.0))


class Piece(NamedTuple):
    """A part of a text: its tokens, int32 [n], the number of its words, and its share of the source's size."""

    ids: np.ndarray
    words: int
    size: int = 0


class Window(NamedTuple):
    """A part of a text that the model reads at once.

    Attributes:
      text: its number.
      tokens: int32 [n]; those from `first` on are scored, the others are their context.
      words: number of words of the text up to here, since the window before.
      size: its share in the progress of an evaluation.
    """

    text: int
    tokens: np.ndarray
    first: int
    words: int
    size: int = 1


class TextScore(NamedTuple):
    """A text's log-probability in nats, and its numbers of tokens, of unknown pieces among them, and of words."""

    log_probability: float
    tokens: int
    unknown: int
    words: int


def documents(corpus: Corpus, tokenizer: Tokenizer) -> Iterator[Iterator[Piece]]:
    """The corpus's documents without empty ones, in pieces of about 1 MB, with the tokens that `prepare` gives them."""

    def pieces(blocks):
        joint = Joint()
        for block in blocks:
            ids, joint = join(joint, block.text, tokenizer.encode_batch([block.text])[0], tokenizer.newline_id)
            yield Piece(ids, len(standardise(block.text).split()), block.size)

    for _, blocks in itertools.groupby(corpus.blocks(), lambda block: block.document):
        yield pieces(blocks)


def sentences(corpus: Corpus, tokenizer: Tokenizer) -> Iterator[list[Piece]]:
    """The corpus's lines, each a text in one piece. They end as Python's universal newlines do. An empty row of a table
    is an empty line."""
    done = 0  # documents; those without text have no blocks

    def empty_rows(end):
        return _encode_lines([''] * sum(map(corpus.is_row, range(done, end))), tokenizer, 0)

    for document, blocks in itertools.groupby(corpus.blocks(), lambda block: block.document):
        yield from empty_rows(document)
        done = document + 1
        begun, size = [], 0  # the parts of a line that is longer than a block
        for block in blocks:
            text = block.text
            if begun and begun[-1].endswith('\r'):  # the \n of this line end may come now
                text = begun.pop() + text
            held = '\r' * text.endswith('\r')
            first, *lines = _LINE_END.split(text.removesuffix(held))
            begun.append(first)
            size += block.size
            if lines:
                yield from _encode_lines([''.join(begun), *lines[:-1]], tokenizer, size)
                begun, size = lines[-1:], 0
            begun += [held] * bool(held)
        rest = ''.join(begun)
        yield from _encode_lines([rest.removesuffix('\r')] if rest else [], tokenizer, size)
    yield from empty_rows(corpus.documents)


def _encode_lines(lines, tokenizer, size):
    """A piece for each line; the last one has the size of all."""
    for number, (line, ids) in enumerate(zip(lines, tokenizer.encode_batch(lines), strict=True), 1):
        yield [Piece(ids, len(standardise(line).split()), size if number == len(lines) else 0)]


def score_texts(
    texts: Iterable[Iterable[Piece]],
    classifier: Classifier,
    params: dict,
    partitioner: Partitioner,
    *,
    batch_size: int,
    start_id: int,
    stride: int,
    watch: Watch,
) -> Iterator[TextScore]:
    """Each text's score, in order. See `slide` and `make_scorer`."""
    context = classifier.model.n_positions
    windows = (
        window
        for number, pieces in enumerate(texts)
        for window in slide(number, pieces, start_id=start_id, context=context, stride=stride)
    )
    scored = make_scorer(classifier, params, partitioner, batch_size)(params, windows, watch)
    for _, of_one_text in itertools.groupby(scored, lambda pair: pair[0].text):
        of_one_text = list(of_one_text)
        targets = [window.tokens[window.first :] for window, _ in of_one_text]
        yield TextScore(
            math.fsum(value for _, value in of_one_text),
            sum(map(len, targets)),
            sum(int(np.sum(ids == UNKNOWN_ID)) for ids in targets),
            sum(window.words for window, _ in of_one_text),
        )


def slide(text: int, pieces: Iterable[Piece], *, start_id: int, context: int, stride: int) -> Iterator[Window]:
    """Windows of at most context + 1 tokens that score each token of a text once; at least one window.

    `start_id`, which is not scored, stands before the text. A token has at least context - stride tokens before it, or
    all that there are.
    """
    tokens, first, words, size = np.array([start_id], np.int32), 1, 0, 0
    for piece in pieces:
        tokens = np.concatenate([tokens, piece.ids])
        words += piece.words
        size += piece.size
        while len(tokens) > context + 1:
            part = size * stride // len(tokens)  # the tokens that are left keep their share of the size
            yield Window(text, tokens[: context + 1], first, words, part)
            tokens, first, words, size = tokens[stride:], context + 1 - stride, 0, size - part
    yield Window(text, tokens, first, words, size)


def make_scorer(
    classifier: Classifier, abstract_params: dict, partitioner: Partitioner, batch_size: int
) -> Callable[..., Iterator[tuple[Window, float]]]:
    """A function (params, windows, watch=Watch()) -> each window, in order, with the log-probability of its scored
    tokens in nats. `watch` sees every batch, and counts `Window.size`.

    Only token rows compete. Windows of similar length share a batch: `batch_size` windows of the whole context, or more
    if they are shorter.

    Args:
      abstract_params: shapes and shardings of the parameters, or these themselves.
    """
    step = program.text_evaluation(classifier, abstract_params, partitioner)
    n_positions, placement = classifier.model.n_positions, partitioner.placement

    def score(params, windows, watch=None):
        watch, windows = watch or Watch(), iter(windows)
        while chunk := list(itertools.islice(windows, _WINDOWS)):
            by_length = {}
            for index, window in enumerate(chunk):
                by_length.setdefault(bucket(len(window.tokens) - 1, n_positions), []).append(index)
            batches = []  # (length, rows, which windows)
            for length, indices in by_length.items():
                rows = max(1, batch_size * n_positions // length // placement.shards) * placement.shards
                batches += [(length, rows, indices[start : start + rows]) for start in range(0, len(indices), rows)]

            def arrays(start):
                for length, rows, members in batches[start:]:
                    batch = _batch([chunk[index] for index in members], rows, length)
                    yield {name: placement.take(array) for name, array in batch.items()}

            results = watch.each(
                lambda batch: step(params, partitioner.put_batch(batch)),
                arrays,
                keep=lambda number, nll: -nll.reshape(-1)[: len(batches[number][2])],
                size=lambda number: sum(chunk[index].size for index in batches[number][2]),
                content=lambda: _content(chunk, batch_size),
            )
            scores = np.zeros(len(chunk))
            for (*_, members), values in zip(batches, results, strict=True):
                scores[members] = values
            yield from zip(chunk, scores.tolist(), strict=True)

    return score


def _content(windows, batch_size):
    yield b'%d windows of the whole context' % batch_size
    for window in windows:
        yield b'%d' % window.first
        yield window.tokens.tobytes()


def _batch(windows, rows, length):
    """tokens int32 [rows, length + 1] and weights float32 [rows, length], 0 where not scored."""
    tokens, weights = np.zeros((rows, length + 1), np.int32), np.zeros((rows, length), np.float32)
    for row, window in enumerate(windows):
        tokens[row, : len(window.tokens)] = window.tokens
        weights[row, window.first - 1 : len(window.tokens) - 1] = 1
    return {'tokens': tokens, 'weights': weights}
