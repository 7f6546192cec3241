"""Log-probabilities of texts of any length, by a window that slides over each."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from gpt1_jax.data.corpus.documents import Corpus
from gpt1_jax.data.corpus.preparation import Joint, join
from gpt1_jax.data.tokenizers import UNKNOWN_ID
from gpt1_jax.data.tokenizers.loading import Tokenizer
from gpt1_jax.data.tokenizers.standardise import standardise
from gpt1_jax.model.classifier import Classifier
from gpt1_jax.model.decoding import bucket
from gpt1_jax.training import program
from gpt1_jax.training.partitioning import Partitioner

_WINDOWS = 1024  # read before they are sorted by length into batches


def perplexity(loss: float) -> float:
    """Perplexity of a loss in nats per token; always finite."""
    return math.exp(min(loss, 700.0))


class Piece(NamedTuple):
    """A part of a text: its tokens, int32 [n], and the number of its words."""

    ids: np.ndarray
    words: int


class Window(NamedTuple):
    """A part of a text that the model reads at once.

    Attributes:
      text: its number.
      tokens: int32 [n]; those from `first` on are scored, the others only come before them.
      words: number of words of the text up to here, since the window before.
    """

    text: int
    tokens: np.ndarray
    first: int
    words: int


class TextScore(NamedTuple):
    """A text's log-probability in nats, and how many tokens, unknown pieces among them, and words it has."""

    log_probability: float
    tokens: int
    unknown: int
    words: int


def documents(corpus: Corpus, tokenizer: Tokenizer) -> Iterator[Iterator[Piece]]:
    """The corpus's documents in pieces of about 1 MB, with the tokens that `prepare` gives them."""

    def pieces(blocks):
        joint = Joint()
        for block in blocks:
            ids, joint = join(joint, block.text, tokenizer.encode_batch([block.text])[0], tokenizer.newline_id)
            yield Piece(ids, len(standardise(block.text).split()))

    for _, blocks in itertools.groupby(corpus.blocks(), lambda block: block.document):
        yield pieces(blocks)


def sentences(corpus: Corpus, tokenizer: Tokenizer) -> Iterator[list[Piece]]:
    """The corpus's lines, each a text in one piece."""
    for _, blocks in itertools.groupby(corpus.blocks(), lambda block: block.document):
        rest = ''  # of a line that is longer than a block
        for block in blocks:
            *lines, rest = (rest + block.text).split('\n')
            yield from _encode_lines(lines, tokenizer)
        yield from _encode_lines([rest] if rest else [], tokenizer)


def _encode_lines(lines, tokenizer):
    for line, ids in zip(lines, tokenizer.encode_batch(lines), strict=True):
        yield [Piece(ids, len(standardise(line).split()))]


def score_texts(
    texts: Iterable[Iterable[Piece]],
    classifier: Classifier,
    params: dict,
    partitioner: Partitioner,
    *,
    batch_size: int,
    start_id: int,
    stride: int,
) -> Iterator[TextScore]:
    """Each text's score, in order. See `slide` and `make_scorer`."""
    context = classifier.model.n_positions
    windows = (
        window
        for number, pieces in enumerate(texts)
        for window in slide(number, pieces, start_id=start_id, context=context, stride=stride)
    )
    scored = make_scorer(classifier, params, partitioner, batch_size)(params, windows)
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

    Before the text stands `start_id`, which is not scored. A token has at least context - stride tokens before it, or
    all that there are.
    """
    tokens, first, words = np.array([start_id], np.int32), 1, 0
    for piece in pieces:
        tokens = np.concatenate([tokens, piece.ids])
        words += piece.words
        while len(tokens) > context + 1:
            yield Window(text, tokens[: context + 1], first, words)
            tokens, first, words = tokens[stride:], context + 1 - stride, 0
    yield Window(text, tokens, first, words)


def make_scorer(
    classifier: Classifier, abstract_params: dict, partitioner: Partitioner, batch_size: int
) -> Callable[[dict, Iterable[Window]], Iterator[tuple[Window, float]]]:
    """A function (params, windows) -> each window, in order, with the log-probability of its scored tokens in nats.

    Only token rows compete. Windows of like length share a batch: of `batch_size` windows of the whole context, or of
    more that are shorter.

    Args:
      abstract_params: shapes and shardings of the parameters, or these themselves.
    """
    step = program.text_evaluation(classifier, abstract_params, partitioner)
    n_positions, placement = classifier.model.n_positions, partitioner.placement

    def score(params, windows):
        windows = iter(windows)
        while chunk := list(itertools.islice(windows, _WINDOWS)):
            by_length = {}
            for index, window in enumerate(chunk):
                by_length.setdefault(bucket(len(window.tokens) - 1, n_positions), []).append(index)
            pending = []
            for length, indices in by_length.items():
                rows = max(1, batch_size * n_positions // length // placement.shards) * placement.shards
                for start in range(0, len(indices), rows):
                    members = indices[start : start + rows]
                    batch = _batch([chunk[index] for index in members], rows, length)
                    batch = {name: placement.take(array) for name, array in batch.items()}
                    pending.append((members, step(params, partitioner.put_batch(batch))))
            scores = np.zeros(len(chunk))
            for members, nll in pending:
                scores[members] = -jax.device_get(nll).reshape(-1)[: len(members)]
            yield from zip(chunk, scores.tolist(), strict=True)

    return score


def _batch(windows, rows, length):
    """tokens int32 [rows, length + 1] and weights float32 [rows, length], 0 where not scored."""
    tokens, weights = np.zeros((rows, length + 1), np.int32), np.zeros((rows, length), np.float32)
    for row, window in enumerate(windows):
        tokens[row, : len(window.tokens)] = window.tokens
        weights[row, window.first - 1 : len(window.tokens) - 1] = 1
    return {'tokens': tokens, 'weights': weights}
