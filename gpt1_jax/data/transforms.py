"""Examples -> token sequences, "traversal-style" (Radford et al. 2018, section 3.3 and Figure 1)."""

import hashlib
from importlib import metadata

import numpy as np

from gpt1_jax.data import encoded as disk
from gpt1_jax.data.datasets import Dataset, Examples
from gpt1_jax.data.encoded import Encoded, Sequences
from gpt1_jax.data.registry import RULES
from gpt1_jax.errors import UserError

ENCODING_VERSION = 1  # raise it with every change of what a text becomes, here or in a tokenizer: it keys the cache
_TEXTS_AT_ONCE, _EXAMPLES_AT_ONCE = 10_000, 1000  # so that what is held besides the result stays small


def encode(dataset: Dataset, examples: Examples, tokenizer, max_length: int, rule: str | None = None,
           cache: str = 'off') -> Encoded:
    """Tokenises, cuts to at most max_length tokens, and adds <start>, <delimiter> and <extract>.

    Args:
      tokenizer: has encode_batch, start_id, delimiter_id and extract_id (tokenizers.py), and with a cache fingerprint.
      max_length: the longest sequence allowed, special tokens included.
      rule: how a sequence that is too long is cut; the data set's own by default.
        'longest': one text at its end; of a pair the longer text first, at its end (the second if equal). Of multiple
          choice the first field: a context that goes on into the choices at its front, so that what stands nearest to
          them stays; an article with a question (RACE) at its end, which on RACE loses fewer of the words that question
          and right answer share with the article than the front would. Only when question and answer do not fit alone,
          the front of the question is cut, then the end of the answer. Ours; the paper does not say.
        'release': each of two texts at its end, to max_length // 2 - 2 tokens.
      cache: a folder that keeps the sequences for the next time, '' for the user's own, 'off' for none. They are found
        again only while texts, tokenizer and its libraries, rule, max_length and ENCODING_VERSION are the same.

    Raises:
      UserError: max_length below 4, a rule that is unknown or not for this data set, or a cache that is not local.
    """
    rule = rule or dataset.rule
    if max_length < 4:
        raise UserError(f'max_length is {max_length}; a sequence needs at least 4 tokens.')
    if rule not in RULES or (rule == 'release' and len(dataset.fields) != 2):
        raise UserError(f'Data set {dataset.name!r}: rule {rule!r} must be "longest", or "release" with two fields.')
    texts, columns = _distinct(dataset, examples)
    folder, found = disk.cache_folder(cache), None
    if folder:
        key = _fingerprint(texts, columns, dataset.kind, rule, max_length, tokenizer)
        found = disk.load_entry(folder, key)
    sequences, lost = found or _sequences(dataset.kind, rule, texts, columns, tokenizer, max_length)
    if folder and not found:
        disk.save_entry(folder, key, sequences, lost)
    return Encoded(sequences, examples.labels, examples.ids, int(np.count_nonzero(lost)), int(lost.sum()),
                   examples.groups)


def _distinct(dataset, examples) -> tuple[list[str], list[np.ndarray]]:
    """The distinct texts, and for each field which of them stand there: [n, 1], of choices [n, S].

    RACE's articles stand in three to four questions each, and each in four sequences.
    """
    numbers = {}
    number = lambda text: numbers.setdefault(text, len(numbers))
    columns = [np.array([list(map(number, [entry] if isinstance(entry, str) else entry))
                         for entry in examples.fields[name]], np.int32) for name in dataset.fields]
    return list(numbers), columns


def _fingerprint(texts, columns, kind, rule, max_length, tokenizer) -> str:
    """40 hex characters of all that the sequences are made from."""
    data = [text.encode(errors='surrogatepass') for text in texts]
    made_by = [_version(name) for name in ('ftfy', 'sentencepiece', 'spacy', 'tokenizers')]
    hashed = hashlib.sha1(repr((
        ENCODING_VERSION, kind, rule, max_length, tokenizer.fingerprint, [c.shape for c in columns], made_by)).encode())
    for part in (np.array([len(text) for text in data]), *columns, *data):
        hashed.update(part)
    return hashed.hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # and so not used
        return ''


def _sequences(kind, rule, texts, columns, tokenizer, max_length) -> tuple[Sequences, np.ndarray]:
    """(sequences, lost int32 [n, S]: what each lost to max_length)"""
    special = tokenizer.start_id, tokenizer.delimiter_id, tokenizer.extract_id  # the highest ids
    dtype = np.uint16 if max(special) < 2**16 else np.int32
    pool, text_lengths = [np.array(special, dtype)], []
    for first in range(0, len(texts), _TEXTS_AT_ONCE):
        ids = tokenizer.encode_batch(texts[first:first + _TEXTS_AT_ONCE])
        text_lengths += map(len, ids)
        pool.append(np.concatenate(ids).astype(dtype))
    pool = np.concatenate(pool)
    text_lengths = np.array(text_lengths, np.int64)
    text_starts = len(special) + np.cumsum(text_lengths) - text_lengths

    # Every sequence is slices of the pool end to end, the special tokens among them.
    shape = np.broadcast_shapes(*(column.shape for column in columns))
    starts = [np.broadcast_to(text_starts[column], shape) for column in columns]
    whole = [np.broadcast_to(text_lengths[column], shape) for column in columns]
    kept, at_front = _cut(kind, rule, whole, max_length)
    starts = [start + (length - rest if front else 0)
              for start, length, rest, front in zip(starts, whole, kept, at_front)]
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
    """Lengths of the texts of each sequence -> what is kept of them, and whether it is their front that is cut."""
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
    # What one text is longer by goes first, the rest is shared.
    first, second = lengths
    excess = np.maximum(0, first + second - budget)
    uneven = np.minimum(excess, abs(first - second))
    cut_first = (excess - uneven) // 2 + np.where(first > second, uneven, 0)
    return [first - cut_first, second - (excess - cut_first)], [False, False]


def _join(pool, starts, lengths) -> np.ndarray:
    """The slices [n, S, P] of the pool, end to end."""
    tokens, done = np.empty(lengths.sum(), pool.dtype), 0
    for first in range(0, len(starts), _EXAMPLES_AT_ONCE):
        start, length = (array[first:first + _EXAMPLES_AT_ONCE].ravel() for array in (starts, lengths))
        ends = np.cumsum(length)
        index = np.repeat(start - (ends - length), length) + np.arange(ends[-1])
        tokens[done:done + ends[-1]] = pool[index]
        done += ends[-1]
    return tokens
