"""Documents that are copies of one another, or nearly: by hashes of their paragraphs."""

import hashlib
import re
from typing import NamedTuple

import numpy as np

from gpt1_jax.data.corpus.cleaning import strip_gutenberg

SHARED = 0.8  # share of the shorter document's paragraphs that two documents have in common if they are nearly the same
BOILERPLATE = 10  # documents: a paragraph that more of them have, such as a licence, says nothing

_LEAST = 32  # letters and digits, about, of a paragraph that counts
_LONG = 1000  # bytes: a longer paragraph is split into its sentences
_BLANK = re.compile(rb'\n\s*\n')
_SENTENCE = re.compile(rb'[.!?]\s|\xe3\x80\x82')  # the last: the full stop of Chinese and Japanese
# Case, white space, punctuation and the form of quotes and dashes do not count: these are their bytes.
_LOWER = bytes(range(256)).lower()
_IGNORED = bytes(b for b in range(128) if not chr(b).isalnum()) + bytes.fromhex(
    'e2 80 93 94 98 99 9c 9d a6 c2 a0 efbbbf'
)


class Print(NamedTuple):
    """What is kept of a text, or of a part of one.

    Attributes:
      content: hash of all of it, 8 bytes.
      paragraphs: of its paragraphs, uint64 [n]; those that are long enough, sorted, each once.
    """

    content: bytes
    paragraphs: np.ndarray


def fingerprint(text: str, limit: int = 2**64) -> Print:
    """Hashes of a text without Project Gutenberg's licence, whatever its case, punctuation and line ends.

    limit: only hashes of paragraphs below it are kept, which samples the paragraphs of all documents alike.
    """
    if 'Gutenberg' in text or 'GUTENBERG' in text:
        text = ''.join(strip_gutenberg(text.splitlines(keepends=True)))
    data = text.encode().replace(b'\r\n', b'\n').replace(b'\r', b'\n')
    keys = []
    for paragraph in _BLANK.split(data):
        for piece in _SENTENCE.split(paragraph) if len(paragraph) > _LONG else (paragraph,):
            keys.append(piece.translate(_LOWER, _IGNORED))
    hashes = b''.join(_hash(key) for key in keys if len(key) >= _LEAST)
    paragraphs = np.unique(np.frombuffer(hashes, '<u8'))
    return Print(_hash(b''.join(keys)), paragraphs[paragraphs < limit] if limit < 2**64 else paragraphs)


def _hash(data):
    return hashlib.blake2b(data, digest_size=8).digest()


def group(contents: np.ndarray, owners: np.ndarray, paragraphs: np.ndarray) -> np.ndarray:
    """Groups documents that are the same, or share more than SHARED of the shorter one's paragraphs.

    Paragraphs that more than BOILERPLATE different documents have are not counted.

    Args:
      contents: uint64 [documents], `Print.content` of each.
      owners, paragraphs: int64 [n] and uint64 [n], a document and the hash of one of its paragraphs.
    Returns:
      int64 [documents], the same number for documents of one group: the lowest index in it.
    """
    _, first, same = np.unique(contents, return_index=True, return_inverse=True)
    groups = first[same]  # the first document of the same content
    distinct = groups[owners] == owners
    owners, paragraphs = owners[distinct], paragraphs[distinct]
    order = np.lexsort((owners, paragraphs))
    owners, paragraphs = owners[order], paragraphs[order]
    new = np.ones(len(owners), bool)  # in two blocks of a document a paragraph counts once
    new[1:] = (owners[1:] != owners[:-1]) | (paragraphs[1:] != paragraphs[:-1])
    owners, paragraphs = owners[new], paragraphs[new]
    _, number, count = np.unique(paragraphs, return_inverse=True, return_counts=True)
    telling = count[number] <= BOILERPLATE
    owners, paragraphs = owners[telling], paragraphs[telling]
    total = np.bincount(owners, minlength=len(contents))
    pairs = []
    for distance in range(1, BOILERPLATE):  # the owners of one paragraph stand side by side
        together = np.flatnonzero(paragraphs[distance:] == paragraphs[:-distance])
        pairs.append(owners[together] * len(contents) + owners[together + distance])
    pairs, shared = np.unique(np.concatenate(pairs), return_counts=True)
    pairs = np.stack(np.divmod(pairs, len(contents)), 1)
    near = shared > SHARED * np.minimum(total[pairs[:, 0]], total[pairs[:, 1]])
    parents = {}
    for a, b in pairs[near].tolist():
        a, b = sorted((_root(parents, a), _root(parents, b)))
        parents[b] = a
    return np.array([_root(parents, document) for document in groups.tolist()], np.int64)


def _root(parents, document):
    while (parent := parents.get(document, document)) != document:
        document = parents[document] = parents.get(parent, parent)
    return document
