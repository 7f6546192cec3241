"""Examples -> token sequences, "traversal-style" (Radford et al. 2018, section 3.3 and Figure 1)."""

import dataclasses

import numpy as np

from gpt1_jax.data.datasets import Dataset, Examples
from gpt1_jax.errors import UserError


@dataclasses.dataclass
class Encoded:
    """Token sequences of n examples.

    Attributes:
      sequences: [n][S] int32 arrays, each from <start> to <extract>; S = 1, 2 for similarity (both orders),
        or the number of choices.
      labels: int32 | float32 [n], or None.
      ids: n strings.
      cut_sequences: how many of the n * S sequences lost tokens to max_length.
      cut_tokens: how many tokens they lost together.
    """

    sequences: list[list[np.ndarray]]
    labels: np.ndarray | None
    ids: list[str]
    cut_sequences: int
    cut_tokens: int


def encode(dataset: Dataset, examples: Examples, tokenizer, max_length: int,
           rule: str | None = None) -> Encoded:
    """Tokenises, cuts to at most max_length tokens, and adds <start>, <delimiter> and <extract>.

    Args:
      tokenizer: has encode_batch, start_id, delimiter_id and extract_id (tokenizers.py).
      max_length: the longest sequence allowed, special tokens included.
      rule: how a sequence that is too long is cut; the data set's own by default.
        'longest': one text at its end; of a pair the longer text first, at its end (the second if equal);
          of multiple choice the front of context and question, so that what stands nearest to the answer
          stays, and the end of the answer only when it does not fit alone. Ours; the paper does not say.
        'release': each of two texts at its end, to max_length // 2 - 2 tokens.

    Raises:
      UserError: max_length below 4.
    """
    if max_length < 4:
        raise UserError(f'max_length is {max_length}; a sequence needs at least 4 tokens.')
    rule = rule or dataset.rule
    columns = [_encode_column(tokenizer, examples.fields[name]) for name in dataset.fields]
    special = [np.array([i], np.int32)
               for i in (tokenizer.start_id, tokenizer.delimiter_id, tokenizer.extract_id)]
    sequences, cut_sequences, cut_tokens = [], 0, 0
    for parts in zip(*columns):
        if dataset.kind == 'multiple_choice':
            before = np.concatenate(parts[:-1])  # no delimiter between context and question
            whole = [(before, answer) for answer in parts[-1]]
        else:
            whole = [parts]
        kept = [_cut(dataset.kind, rule, texts, max_length) for texts in whole]
        lost = [sum(map(len, texts)) - sum(map(len, rest)) for texts, rest in zip(whole, kept)]
        if dataset.kind == 'similarity':
            kept, lost = [kept[0], kept[0][::-1]], lost * 2
        cut_sequences += sum(n > 0 for n in lost)
        cut_tokens += sum(lost)
        sequences.append([_join(special, texts) for texts in kept])
    return Encoded(sequences, examples.labels, examples.ids, cut_sequences, cut_tokens)


def _encode_column(tokenizer, column: list) -> list:
    """One encode_batch call for a column's texts; lists of choices are flattened and regrouped."""
    if not column or isinstance(column[0], str):
        return tokenizer.encode_batch(column)
    flat = iter(tokenizer.encode_batch([text for choices in column for text in choices]))
    return [[next(flat) for _ in choices] for choices in column]


def _cut(kind: str, rule: str, texts: tuple[np.ndarray, ...], max_length: int) -> list[np.ndarray]:
    """One or two texts, shortened so that they fit into max_length tokens with the special ones."""
    budget = max_length - 1 - len(texts)
    if len(texts) == 1:
        return [texts[0][:budget]]
    first, second = texts
    if rule == 'release':
        return [text[:max_length // 2 - 2] for text in texts]
    excess = max(0, len(first) + len(second) - budget)
    if kind == 'multiple_choice':
        return [first[excess:], second[:budget]]
    # What one text is longer by goes first, the rest is shared.
    uneven = min(excess, abs(len(first) - len(second)))
    cut_first, cut_second = (excess - uneven) // 2, (excess - uneven + 1) // 2
    if len(first) > len(second):
        cut_first += uneven
    else:
        cut_second += uneven
    return [first[:len(first) - cut_first], second[:len(second) - cut_second]]


def _join(special, texts) -> np.ndarray:
    start, delimiter, extract = special
    middle = texts if len(texts) == 1 else [texts[0], delimiter, texts[1]]
    return np.concatenate([start, *middle, extract]).astype(np.int32, copy=False)
