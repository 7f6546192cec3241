"""Token shards: flat files of token ids with an index, read as windows.

A folder holds `train-00000.bin`, ..., `valid-00000.bin`, ... (little-endian unsigned integers, the same number of
tokens in each but the last of a split), `tokenizer/`, and `index.json`, which is written last: a folder without it is
not finished. Versions before 0.2 also wrote `train-starts.npy` and `valid-starts.npy`, which nothing reads.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import threading
from collections.abc import Callable

import numpy as np
from etils import epath

from gpt1_jax.data.corpus.shard_index import (
    COPY_AGAIN,
    SPLITS,
    dtype_of,
    file_name,
    read_index,
    read_journal,
    write_index,
    write_journal,
)
from gpt1_jax.data.tokenizers.loading import load_tokenizer
from gpt1_jax.errors import UserError
from gpt1_jax.files import exists, is_local, make_directory, patiently, size_of, write_atomically
from gpt1_jax.progress import Progress


class Split:
    """One split of a shard folder: a sequence of tokens, cut into files.

    Attributes:
      tokens: number of tokens.
      documents: number of documents.
    """

    def __init__(self, directory: epath.Path, name: str, vocab_size: int, entry: dict):
        self._directory = directory
        self._name = name
        self._vocab_size, self._dtype = vocab_size, dtype_of(vocab_size)
        self._shards = entry['shards']
        self._arrays, self._reading = {}, threading.Lock()
        self._open = functools.lru_cache(64)(lambda path: open(path, 'rb', buffering=0))
        # Where each shard starts, and the end of the last one.
        self._bounds = np.cumsum([0] + [shard['tokens'] for shard in self._shards], dtype=np.int64)
        self.tokens = entry['tokens']
        self.documents = entry['documents']

    def read(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The windows [start, start + length) of tokens; windows may cross files.

        Args:
          starts: int64 [n], token offsets.
        Returns:
          unsigned [n, length].
        Raises:
          IndexError: a window that is not within the split.
        """
        starts = np.asarray(starts, np.int64)
        if starts.size and (starts.min() < 0 or starts.max() + length > self.tokens):
            raise IndexError(
                f'{self._directory}/{self._name}: Windows of {length} tokens at {starts.min()} to '
                f'{starts.max()} are not within its {self.tokens} tokens.'
            )
        windows = np.empty((len(starts), length), self._dtype)
        shards = np.searchsorted(self._bounds, starts, 'right') - 1
        for window, start, shard in zip(windows, starts.tolist(), shards.tolist()):
            filled = 0
            while filled < length:
                first = start + filled - int(self._bounds[shard])
                count = min(length - filled, self._shards[shard]['tokens'] - first)
                window[filled : filled + count] = self._tokens(shard, first, count)
                filled, shard = filled + count, shard + 1
        return windows

    def _tokens(self, shard: int, first: int, count: int) -> np.ndarray:
        """Some tokens of one file. Not memory-mapped: an error of the disk would kill the process."""
        path, size = self._directory / self._shards[shard]['file'], self._dtype.itemsize
        if not is_local(path):  # read whole into memory, once
            with self._reading:  # of two threads that want it, one reads it
                if shard not in self._arrays:
                    self._arrays[shard] = path.read_bytes()
            return self._checked(path, self._arrays[shard][first * size : (first + count) * size], count)

        def read():
            try:
                file = self._open(os.fspath(path))  # held: another thread may push it out of the cache, which closes it
                return os.pread(file.fileno(), count * size, first * size)
            except OSError as error:
                error.filename = os.fspath(path)
                self._open.cache_clear()  # what a network file system has lost must be opened again
                raise

        return self._checked(path, patiently(read), count)

    def _checked(self, path, data, count):
        if len(data) != count * self._dtype.itemsize:
            raise UserError(f'{path}: The file has become shorter since the run began. {COPY_AGAIN}')
        return np.frombuffer(data, self._dtype)

    def check_sizes(self) -> None:
        """Raises UserError for a file that is missing or of another size than the index says."""
        for shard in self._shards:
            path = self._directory / shard['file']
            expected = shard['tokens'] * self._dtype.itemsize
            try:
                size = size_of(path)
            except FileNotFoundError as error:
                raise UserError(f'{path}: The file is missing, though index.json lists it. {COPY_AGAIN}') from error
            if size != expected:
                raise UserError(f'{path}: The file has {size:,} bytes where index.json says {expected:,}. {COPY_AGAIN}')

    def check_content(self, tell: Callable[[int], None]) -> None:
        """Raises UserError for a file that does not have the SHA-256 of the index, or a token beyond the vocabulary.

        tell: is called with the number of tokens that were read, for each part of a file.
        """
        for shard in self._shards:
            path = self._directory / shard['file']
            digest, highest = hashlib.sha256(), 0
            with path.open('rb') as file:
                while chunk := file.read(2**22):
                    digest.update(chunk)
                    highest = max(highest, int(np.frombuffer(chunk, self._dtype).max()))
                    tell(len(chunk) // self._dtype.itemsize)
            if digest.hexdigest() != shard['sha256']:
                raise UserError(f'{path}: The file is damaged (its SHA-256 is not the one in index.json). {COPY_AGAIN}')
            if highest >= self._vocab_size:
                raise UserError(
                    f'{path}: The file has the token {highest:,}, but index.json says that there are only '
                    f'{self._vocab_size:,} tokens. {COPY_AGAIN}'
                )


@dataclasses.dataclass(frozen=True)
class Shards:
    """A prepared corpus.

    Attributes:
      preparation: options and source that the content depends on.
      splits: 'train' and, if text was held out, 'valid'.
      characters: of the text; None if an earlier version of this program prepared it.
    """

    directory: epath.Path
    tokenizer_fingerprint: str
    vocab_size: int
    preparation: dict
    splits: dict[str, Split]
    characters: int | None = None

    def verify(self) -> None:
        """Reads every file; raises UserError that names the first whose content is not what was written."""
        done = 0

        def tell(tokens):
            nonlocal done
            done += tokens
            progress.update(done)

        total = sum(split.tokens for split in self.splits.values())
        with contextlib.closing(Progress(total, 0, 'checking the shards', unit='token', part=True)) as progress:
            for split in self.splits.values():
                split.check_sizes()
                split.check_content(tell)


def load_shards(directory: epath.PathLike) -> Shards:
    """Opens a shard folder that `prepare` finished.

    Raises:
      UserError: no index, an index of another format version, or one that contradicts itself, the sizes of the files or
        the tokenizer beside them; a missing file.
    """
    directory = epath.Path(directory).expanduser()
    index = read_index(directory)
    fingerprint, vocab_size = index['tokenizer_fingerprint'], index['vocab_size']
    splits = {name: Split(directory, name, vocab_size, entry) for name, entry in index['splits'].items()}
    for split in splits.values():
        split.check_sizes()
    if exists(directory / 'tokenizer'):
        tokenizer = load_tokenizer(directory / 'tokenizer')
        if (tokenizer.fingerprint, tokenizer.vocab_size) != (fingerprint, vocab_size):
            raise UserError(
                f'{directory}/tokenizer: This tokenizer has fingerprint {tokenizer.fingerprint} and '
                f'{tokenizer.vocab_size:,} tokens, but index.json says {fingerprint} and {vocab_size:,}. {COPY_AGAIN}'
            )
    return Shards(directory, fingerprint, vocab_size, index['preparation'], splits, index.get('characters'))


def shards_fingerprint(uri: str) -> str:
    """Identifies the content of `shards:/path`, wherever it lies; '' for another URI, or without an index."""
    scheme, _, path = uri.partition(':')
    if scheme != 'shards':
        return ''
    try:
        index = read_index(epath.Path(path).expanduser())
    except (OSError, UserError):
        return ''
    content = [index[name] for name in ('dtype', 'tokenizer_fingerprint', 'vocab_size', 'splits')]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def remove_journal(directory: epath.PathLike) -> None:
    """Removes the journal of a finished folder; it is there only if the process died between its last two steps."""
    journal = epath.Path(directory) / 'journal'
    if journal.exists():
        journal.rmtree()


def start_journal(directory: epath.PathLike, preparation: dict) -> None:
    """Makes `directory` an unfinished shard folder. preparation: what its content depends on."""
    directory = epath.Path(directory)
    make_directory(directory / 'journal')
    zero = {split: 0 for split in SPLITS}
    journal = {
        'preparation': preparation,
        'generation': 0,
        'position': None,
        'tokens': zero,
        'documents': zero,
        'shards': {split: [] for split in SPLITS},
    }
    write_journal(directory, journal)


class ShardWriter:
    """Writes a shard folder so that a kill loses only what came after the last commit.

    `journal/` holds what a resumed preparation needs: journal.json with the position in the input, and for each split
    the tokens that do not fill a shard yet (`pending`). Every file is written whole or not at all, and journal.json
    after the files that it names.

    Attributes:
      position: what the last commit was given; None at the beginning.
      tokens, documents: their numbers so far, by split.
    """

    def __init__(self, directory: epath.PathLike, vocab_size: int, tokens_per_shard: int):
        """Resumes from the journal of `directory`. Raises UserError if that is damaged."""
        self._directory = epath.Path(directory)
        self._journal = self._directory / 'journal'
        self._state = read_journal(directory)
        self._vocab_size = vocab_size
        self._dtype = dtype_of(vocab_size)
        self._buffers = {split: np.empty(tokens_per_shard, self._dtype) for split in SPLITS}
        self.position = self._state['position']
        self.tokens = self._state['tokens']
        self.documents = self._state['documents']
        for split in SPLITS:
            if filled := self._filled(split):
                self._buffers[split][:filled] = self._read_pending(split, filled)

    def start_document(self, split: str) -> None:
        """The next token of the split is the first of a document."""
        self.documents[split] += 1

    def append(self, split: str, ids: np.ndarray) -> bool:
        """Adds tokens to a split; True if they finished a shard, and it is time for a commit."""
        buffer, finished = self._buffers[split], False
        while len(ids):
            filled = self._filled(split)
            taken = min(len(ids), len(buffer) - filled)
            buffer[filled : filled + taken] = ids[:taken]
            ids = ids[taken:]
            self.tokens[split] += taken
            if filled + taken == len(buffer):
                self._write_shard(split, buffer)
                finished = True
        return finished

    def commit(self, position: object) -> None:
        """Makes all so far safe. position: JSON types, where in the input to resume from here."""
        self._state['generation'] += 1
        self._state['pending'] = {}
        generation = self._state['generation']
        for split in SPLITS:
            if filled := self._filled(split):
                pending = self._buffers[split][:filled]
                write_atomically(self._pending(split, generation), [pending])
                self._state['pending'][split] = hashlib.sha256(pending).hexdigest()
        self.position = self._state['position'] = position
        write_journal(self._directory, self._state)
        for split in SPLITS:
            self._pending(split, generation - 1).unlink(missing_ok=True)

    def finish(self, tokenizer_fingerprint: str, characters: int | None = None) -> dict:
        """Writes the last shards and index.json; `commit` everything before. Returns the index's entries, by split.

        characters: of the text; None if unknown.
        """
        for split in SPLITS:
            if filled := self._filled(split):
                self._write_shard(split, self._buffers[split][:filled])
        splits = {
            split: {name: self._state[name][split] for name in ('tokens', 'documents', 'shards')} for split in SPLITS
        }
        preparation = self._state['preparation']
        write_index(self._directory, preparation, self._vocab_size, tokenizer_fingerprint, splits, characters)
        remove_journal(self._directory)
        return splits

    def _filled(self, split: str) -> int:
        return self.tokens[split] - sum(shard['tokens'] for shard in self._state['shards'][split])

    def _pending(self, split: str, generation: int) -> epath.Path:
        return self._journal / f'{split}-pending-{generation}.bin'

    def _read_pending(self, split, filled):
        path = self._pending(split, self._state['generation'])
        data = patiently(path.read_bytes) if exists(path) else b''
        kept = self._state.get('pending', {}).get(split)  # an earlier version wrote none
        if len(data) != filled * self._dtype.itemsize or kept not in (None, hashlib.sha256(data).hexdigest()):
            raise UserError(f'{path}: The file is damaged. Delete {self._directory} and prepare it again.')
        return np.frombuffer(data, self._dtype)

    def _write_shard(self, split: str, ids: np.ndarray) -> None:
        shards = self._state['shards'][split]
        shards.append(write_shard(self._directory, split, len(shards), ids))


def write_shard(directory: epath.Path, split: str, number: int, ids: np.ndarray) -> dict:
    """Writes a file of a split, the one of this number; returns its entry in the index."""
    file = file_name(split, number)
    write_atomically(directory / file, [ids])
    return {'file': file, 'tokens': len(ids), 'sha256': hashlib.sha256(ids).hexdigest()}
