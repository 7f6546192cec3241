"""Examples -> token sequences, "traversal-style" (Radford et al. 2018, section 3.3 and Figure 1)."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from gpt1_jax.data.labelled import sequences as disk
from gpt1_jax.data.labelled.examples import Examples
from gpt1_jax.data.labelled.loading import load_examples
from gpt1_jax.data.labelled.registry import RULES, Dataset
from gpt1_jax.data.labelled.sequences import Encoded, Sequences
from gpt1_jax.data.labelled.token_folder import cut_to, read_tokens
from gpt1_jax.data.tokenizers.loading import Tokenizer
from gpt1_jax.errors import UserError
from gpt1_jax.files import package_version
from gpt1_jax.progress import Progress, waiting

ENCODING_VERSION = 1  # part of the caches' keys: raise it whenever a text becomes other tokens, here or in a tokenizer
_TEXTS_AT_ONCE, _EXAMPLES_AT_ONCE = 2000, 1000  # so that temporary arrays stay small


def encode_split(data: ConfigDict, dataset: Dataset, split: str, tokenizer: Tokenizer, n_positions: int) -> Encoded:
    """Reads and tokenises one split as `config.data` says (`limit` is for the train split); warns of cut sequences."""
    limit = data.limit if split == 'train' else None
    max_length = n_positions if data.max_length is None else data.max_length
    if max_length > n_positions:
        raise UserError(
            f"data.max_length: {max_length} is more than the model's {n_positions} positions. Give at most as many."
        )
    scheme, _, path = data.source.partition(':')
    if scheme == 'tokens':
        encoded = read_tokens(
            path, dataset.name, split, fingerprint=tokenizer.fingerprint, max_length=max_length, rule=data.rule
        )
        encoded = encoded if limit is None else encoded.take(np.arange(min(limit, len(encoded.ids))))
    else:
        with waiting(f'reading {dataset.name}, {split}'):
            examples = load_examples(dataset, data.source, split, limit, data.download)
        encoded = encode(dataset, examples, tokenizer, max_length, data.rule or None, cache=data.cache)
    if encoded.cut_sequences:
        logging.warning(
            '%s: %d sequences of the %s split are longer than %d tokens and were cut, by %d tokens together',
            dataset.name,
            encoded.cut_sequences,
            split,
            cut_to(path) if scheme == 'tokens' else max_length,
            encoded.cut_tokens,
        )
    return encoded


def encode(
    dataset: Dataset,
    examples: Examples,
    tokenizer: Tokenizer,
    max_length: int,
    rule: str | None = None,
    cache: str = 'off',
) -> Encoded:
    """Tokenises, cuts to at most max_length tokens, and adds <start>, <delimiter> and <extract>.

    Args:
      tokenizer: has encode_batch, start_id, delimiter_id, extract_id (data/tokenizers), and for a cache fingerprint.
      max_length: the longest sequence allowed, special tokens included.
      rule: how a sequence that is too long is cut; the data set's own by default.
        'longest': one text is cut at its end; of a pair the longer text first, at its end (the second if equal). In
          multiple choice the first field is cut: a context that the choices continue at its front, so that what is
          nearest to them stays; an article with a question (RACE) at its end, because on RACE this loses fewer of the
          words that question and right answer share with the article. Only if question and answer alone do not fit,
          the front of the question is cut, then the end of the answer. Ours; the paper does not say.
        'release': each of two texts at its end, to max_length // 2 - 2 tokens.
      cache: a folder that keeps the sequences for the next time, '' for the user's own, 'off' for none. They are used
        again only if texts, tokenizer, its libraries, rule, max_length and ENCODING_VERSION are the same.

    Raises:
      UserError: max_length is below 4, the rule is unknown or not for this data set, or the cache is not local.
    """
    rule = rule or dataset.rule
    if max_length < 4:
        raise UserError(f'data.max_length: The length {max_length} is too small. Use at least 4.')
    check_rule(rule, dataset)
    texts, columns = _distinct(dataset, examples)
    folder, found = disk.cache_folder(cache), None
    if folder:
        key = _fingerprint(texts, columns, dataset.kind, rule, max_length, tokenizer)
        found = disk.load_copy(folder, key)
    sequences, lost = found or _sequences(dataset.kind, rule, texts, columns, tokenizer, max_length)
    if folder and not found:
        disk.save_copy(folder, key, sequences, lost)
    return Encoded(
        sequences, examples.labels, examples.ids, int(np.count_nonzero(lost)), int(lost.sum()), examples.subsets
    )


def check_rule(rule: str, dataset: Dataset) -> None:
    """Raises UserError if a rule is unknown or not for this data set; see `encode`. rule: '' for the data set's own."""
    if rule and (rule not in RULES or (rule == 'release' and len(dataset.fields) != 2)):
        raise UserError(
            f'data.rule: The rule {rule!r} does not fit the data set {dataset.name!r}. Use longest, or, '
            'with two fields, release.'
        )


def encode_texts(texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[list[np.ndarray]]:
    """The tokens of the texts, int32 [length] each, some thousand texts at a time; shows how far it is."""
    with contextlib.closing(Progress(len(texts), 0, 'encoding', unit='text', part=True)) as progress:
        for first in range(0, len(texts), _TEXTS_AT_ONCE):
            progress.update(first)
            yield tokenizer.encode_batch(texts[first : first + _TEXTS_AT_ONCE])


def _distinct(dataset, examples) -> tuple[list[str], list[np.ndarray]]:
    """The distinct texts, and for each field their indices: [n, 1], for choices [n, S].

    An article of RACE has three to four questions, and each question is in four sequences.
    """
    numbers = {}
    number = lambda text: numbers.setdefault(text, len(numbers))
    columns = [
        np.array(
            [list(map(number, [value] if isinstance(value, str) else value)) for value in examples.fields[name]],
            np.int32,
        )
        for name in dataset.fields
    ]
    return list(numbers), columns


def _fingerprint(texts, columns, kind, rule, max_length, tokenizer) -> str:
    """40 hex characters that identify everything that the sequences are made from."""
    data = [text.encode(errors='surrogatepass') for text in texts]
    made_by = [package_version(name) for name in ('ftfy', 'sentencepiece', 'spacy', 'tokenizers')]
    hashed = hashlib.sha1(
        repr(
            (ENCODING_VERSION, kind, rule, max_length, tokenizer.fingerprint, [c.shape for c in columns], made_by)
        ).encode()
    )
    for part in (np.array([len(text) for text in data]), *columns, *data):
        hashed.update(part)
    return hashed.hexdigest()


def _sequences(kind, rule, texts, columns, tokenizer, max_length) -> tuple[Sequences, np.ndarray]:
    """(sequences; int32 [n, S], the number of tokens that each lost to max_length)"""
    special = tokenizer.start_id, tokenizer.delimiter_id, tokenizer.extract_id  # the highest ids
    dtype = np.uint16 if max(special) < 2**16 else np.int32
    pool, text_lengths = [np.array(special, dtype)], []
    for ids in encode_texts(texts, tokenizer):
        text_lengths += map(len, ids)
        pool.append(np.concatenate(ids).astype(dtype))
    pool = np.concatenate(pool)
    text_lengths = np.array(text_lengths, np.int64)
    text_starts = len(special) + np.cumsum(text_lengths) - text_lengths

    # Every sequence is slices of the pool end to end; the special tokens are in the pool too.
    shape = np.broadcast_shapes(*(column.shape for column in columns))
    starts = [np.broadcast_to(text_starts[column], shape) for column in columns]
    whole = [np.broadcast_to(text_lengths[column], shape) for column in columns]
    kept, at_front = _cut(kind, rule, whole, max_length)
    starts = [
        start + (length - rest if front else 0) for start, length, rest, front in zip(starts, whole, kept, at_front)
    ]
    lost = sum(whole) - sum(kept)
    if kind == 'similarity':
        starts, kept = ([np.hstack(pair), np.hstack(pair[::-1])] for pair in (starts, kept))
        lost = np.hstack([lost, lost])
    ones, token = np.ones(lost.shape, np.int64), lambda i: np.full(lost.shape, i)
    between = len(columns) - 1  # no delimiter between context and question
    starts = [token(0), *starts[:between], *([token(1)] if between else []), starts[-1], token(2)]
    kept = [ones, *kept[:between], *([ones] if between else []), kept[-1], ones]
    starts, kept = np.stack(starts, axis=-1), np.stack(kept, axis=-1)
    return Sequences.end_to_end(_join(pool, starts, kept), kept.sum(axis=-1).astype(np.int32)), lost.astype(np.int32)


def _cut(kind, rule, lengths, max_length) -> tuple[list[np.ndarray], list[bool]]:
    """Lengths of the texts of each sequence -> what is kept of them, and whether they are cut at their front."""
    if rule == 'release':
        return [np.minimum(length, max_length // 2 - 2) for length in lengths], [False, False]
    if len(lengths) == 1:
        return [np.minimum(lengths[0], max_length - 2)], [False]
    budget = max_length - 3
    if kind == 'multiple_choice':
        *before, answer = lengths
        kept = [np.minimum(answer, budget)]
        for length in before[::-1]:  # the question, if there is one, before the context
            kept.insert(0, np.minimum(length, budget - sum(kept)))
        return kept, [True, False] if len(before) == 1 else [False, True, False]
    # First the longer text is cut to the length of the other, then both by the same.
    first, second = lengths
    excess = np.maximum(0, first + second - budget)
    uneven = np.minimum(excess, abs(first - second))
    cut_first = (excess - uneven) // 2 + np.where(first > second, uneven, 0)
    return [first - cut_first, second - (excess - cut_first)], [False, False]


def _join(pool, starts, lengths) -> np.ndarray:
    """The slices [n, S, P] of the pool, end to end."""
    tokens, done = np.empty(lengths.sum(), pool.dtype), 0
    for first in range(0, len(starts), _EXAMPLES_AT_ONCE):
        start, length = (array[first : first + _EXAMPLES_AT_ONCE].ravel() for array in (starts, lengths))
        ends = np.cumsum(length)
        index = np.repeat(start - (ends - length), length) + np.arange(ends[-1])
        tokens[done : done + ends[-1]] = pool[index]
        done += ends[-1]
    return tokens
