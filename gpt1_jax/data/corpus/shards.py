"""Token shards: flat files of token ids with an index, read as windows.

A folder holds `train-00000.bin`, ..., `valid-00000.bin`, ... (little-endian unsigned integers, the same number of
tokens in each but the last of a split), `tokenizer/`, and `index.json`, which is written last: a folder without it is
not finished. One that a version before 0.2 wrote also holds `train-starts.npy` and `valid-starts.npy`, which nothing
reads.
"""

import dataclasses
import hashlib
import json

import numpy as np
from etils import epath

from gpt1_jax.errors import UserError
from gpt1_jax.files import is_local, make_directory, write_atomically

FORMAT_VERSION = 1
SPLITS = ('train', 'valid')
_COPY_AGAIN = 'Copy it again, or delete the folder and prepare it again.'


class Split:
    """One split of a shard folder: a sequence of tokens, cut into files.

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
                pieces.append(self._array(shard)[max(0, begin) : begin + length])
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
                raise UserError(f'{path}: The file is missing, though index.json lists it. {_COPY_AGAIN}') from error
            if size != expected:
                raise UserError(
                    f'{path}: The file has {size:,} bytes where index.json says {expected:,}. {_COPY_AGAIN}'
                )

    def check_content(self) -> None:
        """Raises UserError for a file that does not have the SHA-256 of the index."""
        for shard in self._shards:
            path = self._directory / shard['file']
            digest = hashlib.sha256()
            with path.open('rb') as file:
                while chunk := file.read(2**22):
                    digest.update(chunk)
            if digest.hexdigest() != shard['sha256']:
                raise UserError(
                    f'{path}: The file is damaged (its SHA-256 is not the one in index.json). {_COPY_AGAIN}'
                )


@dataclasses.dataclass(frozen=True)
class Shards:
    """A prepared corpus.

    Attributes:
      preparation: options and source that the content depends on.
      splits: 'train' and, where text was held out, 'valid'.
      characters: of the text; None where it was not this process that finished the preparation.
    """

    directory: epath.Path
    tokenizer_fingerprint: str
    vocab_size: int
    preparation: dict
    splits: dict[str, Split]
    characters: int | None = None

    def verify(self) -> None:
        """Reads every file; raises UserError that names the first with other content than was written."""
        for split in self.splits.values():
            split.check_sizes()
            split.check_content()


def load_shards(directory: epath.PathLike) -> Shards:
    """Opens a shard folder that `prepare` finished.

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
            shards = Shards(
                directory, index['tokenizer_fingerprint'], index['vocab_size'], index['preparation'], splits
            )
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f'{directory}: The folder holds no prepared shards (no index.json). Run the task prepare with '
            'this data.output, or, if a preparation was interrupted, run it again.'
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{directory}/index.json: The file is damaged. {_COPY_AGAIN}') from error
    if version != FORMAT_VERSION:
        raise UserError(
            f'{directory}/index.json: The file has format version {version}, and this program reads '
            f'version {FORMAT_VERSION}. Prepare the corpus again.'
        )
    for split in splits.values():
        split.check_sizes()
    return shards


def shards_fingerprint(uri: str) -> str:
    """Tells the content of `shards:/path` from any other, wherever it lies; '' for another URI, or without an index."""
    scheme, _, path = uri.partition(':')
    try:
        index = json.loads((epath.Path(path).expanduser() / 'index.json').read_text()) if scheme == 'shards' else {}
        content = [index[name] for name in ('dtype', 'tokenizer_fingerprint', 'vocab_size', 'splits')]  # with checksums
    except (OSError, ValueError, KeyError, TypeError):
        return ''
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def read_journal(directory: epath.PathLike) -> dict | None:
    """The journal of an unfinished folder, None where there is none. Raises UserError for a damaged one."""
    path = epath.Path(directory) / 'journal' / 'journal.json'
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(f'{path}: The file is damaged. Delete {directory} and prepare it again.') from error


def remove_journal(directory: epath.PathLike) -> None:
    """Of a finished folder; one is there only if the process died between its last two steps."""
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
    write_atomically(directory / 'journal' / 'journal.json', [json.dumps(journal).encode()])


class ShardWriter:
    """Writes a shard folder such that the death of the process costs only what came after the last commit.

    `journal/` holds what a resumed preparation needs: journal.json with the position in the input, and for each split
    the tokens that do not fill a shard yet (`pending`). Every file is written whole or not at all, and journal.json
    after the files that it names.

    Attributes:
      position: what the last commit was given; None at the beginning.
      tokens, documents: their numbers so far, by split.
    """

    def __init__(self, directory: epath.PathLike, vocab_size: int, tokens_per_shard: int):
        """Resumes from the journal of `directory`."""
        self._directory = epath.Path(directory)
        self._journal = self._directory / 'journal'
        self._state = read_journal(directory)
        self._vocab_size = vocab_size
        self._dtype = np.dtype('<u2' if vocab_size <= 2**16 else '<u4')
        self._buffers = {split: np.empty(tokens_per_shard, self._dtype) for split in SPLITS}
        self.position = self._state['position']
        self.tokens = self._state['tokens']
        self.documents = self._state['documents']
        for split in SPLITS:
            if filled := self._filled(split):
                pending = self._pending(split, self._state['generation']).read_bytes()
                self._buffers[split][:filled] = np.frombuffer(pending, self._dtype)

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
        generation = self._state['generation']
        for split in SPLITS:
            if filled := self._filled(split):
                write_atomically(self._pending(split, generation), [self._buffers[split][:filled]])
        self.position = self._state['position'] = position
        write_atomically(self._journal / 'journal.json', [json.dumps(self._state).encode()])
        for split in SPLITS:
            self._pending(split, generation - 1).unlink(missing_ok=True)

    def finish(self, tokenizer_fingerprint: str) -> None:
        """Writes the last shards and index.json; `commit` everything before."""
        for split in SPLITS:
            if filled := self._filled(split):
                self._write_shard(split, self._buffers[split][:filled])
        splits = {
            split: {name: self._state[name][split] for name in ('tokens', 'documents', 'shards')}
            for split in SPLITS
            if self.tokens[split]
        }
        index = {
            'format_version': FORMAT_VERSION,
            'dtype': self._dtype.str,
            'tokenizer_fingerprint': tokenizer_fingerprint,
            'vocab_size': self._vocab_size,
            'preparation': self._state['preparation'],
            'splits': splits,
        }
        write_atomically(self._directory / 'index.json', [json.dumps(index, indent=1).encode() + b'\n'])
        remove_journal(self._directory)

    def _filled(self, split: str) -> int:
        return self.tokens[split] - sum(shard['tokens'] for shard in self._state['shards'][split])

    def _pending(self, split: str, generation: int) -> epath.Path:
        return self._journal / f'{split}-pending-{generation}.bin'

    def _write_shard(self, split: str, ids: np.ndarray) -> None:
        shards = self._state['shards'][split]
        file = f'{split}-{len(shards):05d}.bin'
        write_atomically(self._directory / file, [ids])
        shards.append({'file': file, 'tokens': len(ids), 'sha256': hashlib.sha256(ids).hexdigest()})
