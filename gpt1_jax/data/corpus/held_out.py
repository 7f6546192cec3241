"""Which documents of a corpus are held out."""

import hashlib
from collections.abc import Callable, Iterator

HELD_OUT = 0.01  # fraction of the documents


def held_out_rule(names: Callable[[], Iterator[str]], fraction: float) -> Callable[[str], bool]:
    """Which documents are held out: those with a hash below `fraction`, but at least one and not all.

    A document keeps its side when others are added, unless the fraction alone would hold out none or all. names: at
    least two.
    """

    def draw(name):
        return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), 'big') / 2**64

    if fraction and all(draw(name) >= fraction for name in names()):
        lowest = min(names(), key=draw)
        return lambda name: name == lowest
    if fraction and all(draw(name) < fraction for name in names()):
        highest = max(names(), key=draw)
        return lambda name: name != highest
    return lambda name: draw(name) < fraction
