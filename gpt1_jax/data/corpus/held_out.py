"""Which documents of a corpus are held out."""

import hashlib
from collections.abc import Callable, Iterator

import numpy as np

HELD_OUT = 0.01  # fraction of the text
_COPY = 0.9  # of the length of a document: one of its group that is at least as long is its copy
_MOST = 0.9  # of a document that may be held out, at most


def held_out_rule(names: Callable[[], Iterator[str]], fraction: float) -> Callable[[str], bool]:
    """Which documents are held out by name alone: those with a hash below `fraction`, but at least one and not all.

    A document keeps its side when others are added, unless the fraction alone would hold out none or all. names: at
    least two.
    """
    if fraction and all(_draw(name) >= fraction for name in names()):
        lowest = min(names(), key=_draw)
        return lambda name: name == lowest
    if all(_draw(name) < fraction for name in names()):
        highest = max(names(), key=_draw)
        return lambda name: name != highest
    return lambda name: _draw(name) < fraction


def hold_out(names: Iterator[str], sizes: np.ndarray, groups: np.ndarray, fraction: float) -> dict[int, int]:
    """Holds out the fraction of the text, to within one group of documents, and never all.

    Groups are ordered by the lowest hash of their documents' names, and held out from the first on, until the next one
    would overshoot the fraction by more than it is still short of; a group that alone is larger than the fraction is
    passed over. So a document keeps its side when others are added, unless it stands near the limit. If less than half
    of the fraction comes together in this way, as with a single document or a few books, the end of the longest other
    document is held out for the rest, at most nine tenths of it. The end of its copies, which are nearly as long, is
    held out, too; a shorter document that it contains is not.

    Args:
      names: of the documents.
      sizes: bytes of their text, int64 [documents]; one with 0 is on neither side.
      groups: int64 [documents], the same number for documents that must be on the same side.
      fraction: more than 0.
    Returns:
      Index of a document -> the byte from which on it is held out.
    """
    with_text = np.flatnonzero(sizes)
    _, group = np.unique(groups[with_text], return_inverse=True)
    draws = np.fromiter(map(_draw, names), float, len(sizes))[with_text]
    order = np.full(group.max() + 1, np.inf)
    np.minimum.at(order, group, draws)
    size = np.bincount(group, sizes[with_text])
    wanted, taken, held = fraction * size.sum(), 0.0, []
    for one in np.argsort(order, kind='stable').tolist():
        if size[one] > wanted:
            continue
        if taken + size[one] - wanted > wanted - taken or len(held) == len(size) - 1:
            break
        taken += size[one]
        held.append(one)
    found = dict.fromkeys(with_text[np.isin(group, held)].tolist(), 0)
    if taken < wanted / 2:
        free = with_text[~np.isin(group, held)]
        longest = free[np.argmax(sizes[free])]
        copies = with_text[group == group[with_text == longest]]
        copies = copies[sizes[copies] >= _COPY * sizes[longest]]
        share = min((wanted - taken) / sizes[copies].sum(), _MOST)
        found |= {int(document): int(sizes[document] * (1 - share)) for document in copies}
    return found


def _draw(name):
    digest = hashlib.blake2b(name.encode(errors='surrogateescape'), digest_size=8).digest()
    return int.from_bytes(digest, 'big') / 2**64
