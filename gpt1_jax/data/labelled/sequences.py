"""Token sequences of a split: one flat array, and its copy on disk."""

import dataclasses
import json
import os
import pathlib
import tempfile
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging

from gpt1_jax.array_files import load_npy
from gpt1_jax.errors import UserError
from gpt1_jax.files import read_json


@dataclasses.dataclass(frozen=True)
class Sequences:
    """n examples of S token sequences each, end to end in one array; iterates over examples.

    Attributes:
      tokens: uint16 | int32 [all tokens]; may be a memory map.
      starts: int64 [n, S]; where each sequence begins in tokens.
      lengths: int32 [n, S].
    """

    tokens: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, nested: Sequence[Sequence]) -> 'Sequences':
        """From [n][S] lists or arrays of tokens."""
        lengths = np.array([[len(tokens) for tokens in example] for example in nested], np.int32)
        return cls.end_to_end(np.concatenate([tokens for example in nested for tokens in example]), lengths)

    @classmethod
    def end_to_end(cls, tokens: np.ndarray, lengths: np.ndarray) -> 'Sequences':
        """From sequences of these lengths [n, S] that follow each other in `tokens`."""
        ends = np.cumsum(lengths, dtype=np.int64).reshape(lengths.shape)
        return cls(tokens, ends - lengths, lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, example: int) -> list[np.ndarray]:
        """The S sequences of an example, int32 [length] each."""
        return [
            np.array(self.tokens[start : start + length], np.int32)
            for start, length in zip(self.starts[example], self.lengths[example])
        ]

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        return map(self.__getitem__, range(len(self)))

    def content(self) -> Iterator[bytes | np.ndarray]:
        """Pieces, bytes or uint8 [n], that together identify these sequences."""
        for array in (self.tokens, self.starts, self.lengths):
            yield f'{array.dtype} {array.shape}'.encode()
            yield np.ascontiguousarray(array).reshape(-1).view(np.uint8)


@dataclasses.dataclass
class Encoded:
    """Token sequences of n examples.

    Attributes:
      sequences: each from <start> to <extract>, [n, S]; S = 1, 2 for similarity (both orders), or the number of
        choices. Nested lists are converted.
      labels: int32 | float32 [n], or None.
      ids: n strings.
      cut_sequences: how many of the n * S sequences lost tokens to max_length.
      cut_tokens: how many tokens they lost together.
      subsets: n strings, or None; see examples.Examples.
    """

    sequences: Sequences
    labels: np.ndarray | None
    ids: list[str]
    cut_sequences: int
    cut_tokens: int
    subsets: list[str] | None = None

    def __post_init__(self):
        if not isinstance(self.sequences, Sequences):
            self.sequences = Sequences.of(self.sequences)

    def take(self, indices: np.ndarray) -> 'Encoded':
        """The examples of these indices, in this order. What was cut is still counted over all."""
        return dataclasses.replace(
            self,
            sequences=Sequences(self.sequences.tokens, self.sequences.starts[indices], self.sequences.lengths[indices]),
            ids=[self.ids[i] for i in indices],
            labels=None if self.labels is None else self.labels[indices],
            subsets=None if self.subsets is None else [self.subsets[i] for i in indices],
        )

    def content(self) -> Iterator[bytes | np.ndarray]:
        """Pieces, bytes or uint8 [n], that together identify the sequences and labels."""
        yield from self.sequences.content()
        yield b'' if self.labels is None else self.labels.tobytes()


# ----------------------------------------------------------------- the copy on disk
# A copy is a folder, named after the fingerprint of everything that it is made from, with tokens.npy (end to end),
# lengths.npy, lost.npy (int32 [n, S]; what max_length cost each sequence) and checksums.json. A rename makes it appear
# whole.

_ARRAYS = ('tokens', 'lengths', 'lost')


def cache_folder(path: str) -> pathlib.Path | None:
    """The folder that `data.cache` names: '' is gpt1_jax in the user's cache, 'off' none.

    Raises UserError for a path that is not on this machine: its files cannot be memory-mapped.
    """
    if path == 'off':
        return None
    if '://' in path:
        raise UserError(f'data.cache: The folder {path!r} is not on this machine. Use a local folder, or off.')
    user = os.environ.get('XDG_CACHE_HOME') or pathlib.Path('~/.cache').expanduser()
    return pathlib.Path(path).expanduser() if path else pathlib.Path(user) / 'gpt1_jax'


def load_copy(folder: pathlib.Path, fingerprint: str) -> tuple[Sequences, np.ndarray] | None:
    """(sequences, lost) of a copy, the tokens memory-mapped; None if there is none, or it is damaged (logged)."""
    copy = folder / fingerprint
    if not copy.is_dir():
        return None
    try:
        checksums = read_json(copy / 'checksums.json', dict.fromkeys(_ARRAYS, int))
        arrays = {}
        for name in _ARRAYS:
            arrays[name] = load_npy(copy / f'{name}.npy')
            if zlib.crc32(np.ascontiguousarray(arrays[name])) != checksums[name]:
                raise ValueError(f'{name}.npy has another checksum')
    except (OSError, ValueError, UserError) as error:
        logging.warning('%s: This copy is damaged (%s). It is made again.', copy, error)
        return None
    return Sequences.end_to_end(arrays['tokens'], np.array(arrays['lengths'])), np.array(arrays['lost'])


def save_copy(folder: pathlib.Path, fingerprint: str, sequences: Sequences, lost: np.ndarray) -> None:
    """Writes a copy, in place of a damaged one. If that fails it only logs: the run does not need the copy."""
    copy = folder / fingerprint
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f'{fingerprint}.', dir=folder, ignore_cleanup_errors=True) as temporary:
            made, checksums = pathlib.Path(temporary) / 'copy', {}
            made.mkdir()
            for name, array in (('tokens', sequences.tokens), ('lengths', sequences.lengths), ('lost', lost)):
                np.save(made / f'{name}.npy', array)
                checksums[name] = zlib.crc32(np.ascontiguousarray(array))
            (made / 'checksums.json').write_text(json.dumps(checksums))
            if load_copy(folder, fingerprint) is None:  # else another process was faster
                if copy.exists():
                    copy.rename(pathlib.Path(temporary) / 'damaged')
                made.rename(copy)
    except OSError as error:
        logging.warning(
            '%s: The token sequences cannot be kept here (%s). Free some space, or set data.cache.',
            folder,
            error.strerror or error,
        )
