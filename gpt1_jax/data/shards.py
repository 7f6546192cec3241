"""Token shards: flat files of token ids with an index, read as windows.

A directory holds `train-00000.bin`, ..., `valid-00000.bin`, ... (little-endian unsigned integers, the same
number of tokens in each but the last of a split), `train-starts.npy` and `valid-starts.npy` (int64 token
offsets at which documents start), `tokenizer/`, and `index.json`, which is written last: a directory
without it is not finished.
"""

import dataclasses
import hashlib
import io
import itertools
import json

import numpy as np
from etils import epath

from gpt1_jax.data.files import is_local, make_directory, write_atomically
from gpt1_jax.errors import UserError

FORMAT_VERSION = 1
SPLITS = ('train', 'valid')


class Split:
    """One split of a shard directory: a sequence of tokens, cut into files.

    Attributes:
        tokens: number of tokens. documents: number of documents.
    """

    def __init__(self, directory: epath.Path, name: str, dtype: np.dtype, entry: dict):
        self._directory = directory
        self._name = name
        self._dtype = dtype
        self._shards = entry['shards']
        self._arrays = {}
        # Where each shard starts, and the end of the last one.
        self._bounds = np.cumsum([0] + [shard['tokens'] for shard in self._shards], dtype=np.int64)
        self.tokens = int(entry['tokens'])
        self.documents = int(entry['documents'])

    @property
    def document_starts(self) -> np.ndarray:
        """Token offset of the first token of every document: int64 [documents], increasing."""
        path = self._directory / f'{self._name}-starts.npy'
        if is_local(path):
            return np.load(path, mmap_mode='r', allow_pickle=False)
        with path.open('rb') as file:
            return np.load(file, allow_pickle=False)

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
            raise IndexError(f'windows of {length} tokens at {starts.min()} to {starts.max()} are not within '
                             f'the {self.tokens} tokens of {self._directory}/{self._name}')
        windows = np.empty((len(starts), length), self._dtype)
        first = np.searchsorted(self._bounds, starts, 'right') - 1
        last = np.searchsorted(self._bounds, starts + length - 1, 'right') - 1
        for shard in np.unique(first):
            rows = np.flatnonzero((first == shard) & (last == shard))
            if len(rows):
                views = np.lib.stride_tricks.sliding_window_view(self._array(shard), length)
                windows[rows] = views[starts[rows] - self._bounds[shard]]
        for row in np.flatnonzero(last > first):
            pieces = []
            for shard in range(first[row], last[row] + 1):
                begin = starts[row] - self._bounds[shard]
                pieces.append(self._array(shard)[max(0, begin):begin + length])
            windows[row] = np.concatenate(pieces)
        return windows

    def _array(self, shard: int) -> np.ndarray:
        """The tokens of one file: mapped where it is local, else read whole into memory, once."""
        if shard not in self._arrays:
            path = self._directory / self._shards[shard]['file']
            if is_local(path):
                self._arrays[shard] = np.memmap(path, self._dtype, 'r')
            else:
                self._arrays[shard] = np.frombuffer(path.read_bytes(), self._dtype)
        return self._arrays[shard]

    def check_sizes(self) -> None:
        """Raises UserError for a file that is missing or of another size than the index says."""
        for shard in self._shards:
            path = self._directory / shard['file']
            expected = shard['tokens'] * self._dtype.itemsize
            try:
                size = path.stat().length
            except FileNotFoundError as error:
                raise UserError(f'{path} is missing, though index.json lists it: copy it again, or delete '
                                'the directory and prepare it anew.') from error
            if size != expected:
                raise UserError(f'{path} has {size:,} bytes where index.json says {expected:,}: copy it '
                                'again, or delete the directory and prepare it anew.')

    def check_content(self) -> None:
        """Raises UserError for a file whose SHA-256 is not the one in the index."""
        for shard in self._shards:
            path = self._directory / shard['file']
            digest = hashlib.sha256()
            with path.open('rb') as file:
                while chunk := file.read(2**22):
                    digest.update(chunk)
            if digest.hexdigest() != shard['sha256']:
                raise UserError(f'{path} is damaged (its SHA-256 is not the one in index.json): copy it '
                                'again, or delete the directory and prepare it anew.')


@dataclasses.dataclass(frozen=True)
class Shards:
    """A prepared corpus. `splits` has 'train' and, where text was held out, 'valid'."""
    directory: epath.Path
    tokenizer_fingerprint: str
    vocab_size: int
    preparation: dict
    splits: dict[str, Split]

    def verify(self) -> None:
        """Reads every file; raises UserError naming the first whose content is not what was written."""
        for split in self.splits.values():
            split.check_sizes()
            split.check_content()


def load_shards(directory) -> Shards:
    """Opens a shard directory that `prepare` finished.

    Raises:
        UserError: no index, an index of another format version, a missing or truncated file.
    """
    directory = epath.Path(directory).expanduser()
    try:
        index = json.loads((directory / 'index.json').read_text())
        version = index['format_version']
        if version == FORMAT_VERSION:
            dtype = np.dtype(index['dtype'])
            splits = {name: Split(directory, name, dtype, entry) for name, entry in index['splits'].items()}
            shards = Shards(directory, index['tokenizer_fingerprint'], index['vocab_size'], index['preparation'],
                            splits)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f'No prepared shards in {directory} (no index.json): run the task prepare with this '
                        'data.output, or, if a preparation was interrupted, run it again.') from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{directory}/index.json is damaged: delete the directory and prepare it '
                        'anew.') from error
    if version != FORMAT_VERSION:
        raise UserError(f'{directory}/index.json has format version {version}, this program reads version '
                        f'{FORMAT_VERSION}: prepare the corpus again.')
    for split in splits.values():
        split.check_sizes()
    return shards


def read_journal(directory) -> dict | None:
    """The journal of an unfinished directory, None where there is none. Raises UserError for a damaged one."""
    path = epath.Path(directory) / 'journal' / 'journal.json'
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(f'{path} is damaged: delete {directory} and prepare it anew.') from error


def remove_journal(directory) -> None:
    """Of a finished directory; one is there only if the process died between its last two steps."""
    journal = epath.Path(directory) / 'journal'
    if journal.exists():
        journal.rmtree()


def start_journal(directory, preparation: dict) -> None:
    """Makes `directory` an unfinished shard directory. preparation: what its content depends on."""
    directory = epath.Path(directory)
    make_directory(directory / 'journal')
    zero = {split: 0 for split in SPLITS}
    journal = {
        'preparation': preparation, 'generation': 0, 'position': None, 'tokens': zero, 'documents': zero,
        'shards': {split: [] for split in SPLITS}, 'starts': {split: [] for split in SPLITS}}
    write_atomically(directory / 'journal' / 'journal.json', [json.dumps(journal).encode()])


class ShardWriter:
    """Writes a shard directory such that the death of the process costs only what came after the last commit.

    `journal/` holds what goes on from a commit: journal.json with the position in the input, and per split
    the tokens that do not fill a shard yet (`pending`) and the starts of the documents since the commit
    before.
    Every file is written whole or not at all, and journal.json after those it speaks of.

    Attributes:
        position: what the last commit was given; None at the beginning.
        tokens, documents: their numbers so far, by split.
    """

    def __init__(self, directory, vocab_size: int, tokens_per_shard: int):
        """Goes on from the journal of `directory`."""
        self._directory = epath.Path(directory)
        self._journal = self._directory / 'journal'
        self._state = read_journal(directory)
        self._vocab_size = vocab_size
        self._dtype = np.dtype('<u2' if vocab_size <= 2**16 else '<u4')
        self._buffers = {split: np.empty(tokens_per_shard, self._dtype) for split in SPLITS}
        self._starts = {split: [] for split in SPLITS}
        self.position = self._state['position']
        self.tokens = self._state['tokens']
        self.documents = self._state['documents']
        for split in SPLITS:
            if filled := self._filled(split):
                pending = self._path('pending', split, self._state['generation']).read_bytes()
                self._buffers[split][:filled] = np.frombuffer(pending, self._dtype)

    def start_document(self, split: str) -> None:
        """The next token of the split is the first of a document."""
        self._starts[split].append(self.tokens[split])
        self.documents[split] += 1

    def append(self, split: str, ids: np.ndarray) -> bool:
        """Adds tokens to a split; True if they finished a shard, and it is time for a commit."""
        buffer, finished = self._buffers[split], False
        while len(ids):
            filled = self._filled(split)
            taken = min(len(ids), len(buffer) - filled)
            buffer[filled:filled + taken] = ids[:taken]
            ids = ids[taken:]
            self.tokens[split] += taken
            if filled + taken == len(buffer):
                self._write_shard(split, buffer)
                finished = True
        return finished

    def commit(self, position) -> None:
        """Makes all so far safe. position: JSON, where in the input to go on from here."""
        self._state['generation'] += 1
        generation = self._state['generation']
        for split in SPLITS:
            if filled := self._filled(split):
                write_atomically(self._path('pending', split, generation), [self._buffers[split][:filled]])
            if self._starts[split]:
                starts = self._path('starts', split, generation)
                write_atomically(starts, [np.array(self._starts[split], '<i8')])
                self._state['starts'][split].append(starts.name)
                self._starts[split].clear()
        self.position = self._state['position'] = position
        write_atomically(self._journal / 'journal.json', [json.dumps(self._state).encode()])
        for split in SPLITS:
            self._path('pending', split, generation - 1).unlink(missing_ok=True)

    def finish(self, tokenizer_fingerprint: str) -> None:
        """Writes the last shards, the documents' starts and index.json; `commit` everything before."""
        for split in SPLITS:
            if filled := self._filled(split):
                self._write_shard(split, self._buffers[split][:filled])
        splits = {split: {name: self._state[name][split] for name in ('tokens', 'documents', 'shards')}
                  for split in SPLITS if self.tokens[split]}
        for split in splits:
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                header, {'descr': '<i8', 'fortran_order': False, 'shape': (self.documents[split],)})
            starts = ((self._journal / name).read_bytes() for name in self._state['starts'][split])
            write_atomically(self._directory / f'{split}-starts.npy',
                             itertools.chain([header.getvalue()], starts))
        index = {'format_version': FORMAT_VERSION, 'dtype': self._dtype.str,
                 'tokenizer_fingerprint': tokenizer_fingerprint, 'vocab_size': self._vocab_size,
                 'preparation': self._state['preparation'], 'splits': splits}
        write_atomically(self._directory / 'index.json', [json.dumps(index, indent=1).encode() + b'\n'])
        remove_journal(self._directory)

    def _filled(self, split: str) -> int:
        return self.tokens[split] - sum(shard['tokens'] for shard in self._state['shards'][split])

    def _path(self, kind: str, split: str, generation: int) -> epath.Path:
        return self._journal / f'{split}-{kind}-{generation}.bin'

    def _write_shard(self, split: str, ids: np.ndarray) -> None:
        shards = self._state['shards'][split]
        file = f'{split}-{len(shards):05d}.bin'
        write_atomically(self._directory / file, [ids])
        shards.append({'file': file, 'tokens': len(ids), 'sha256': hashlib.sha256(ids).hexdigest()})
