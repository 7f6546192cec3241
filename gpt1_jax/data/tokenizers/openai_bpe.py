"""The vocabulary that OpenAI released with GPT-1, exact (Radford et al. 2018, section 4.1, and the release's code).

A text is standardised and split by spaCy's blank English tokenizer; each token is lower-cased, then merged by byte-pair
encoding with `</w>` on its last symbol. Without one of the packages no text is encoded: other rules give other ids.
"""

import functools
import hashlib
import json
import threading
from collections.abc import Iterable, Sequence

import numpy as np
from etils import epath

from gpt1_jax.data.tokenizers.standardise import standardise
from gpt1_jax.errors import UserError
from gpt1_jax.files import check_file, exists, import_package, make_directory, read_json, write_atomically

RELEASE_NAMES = ('encoder_bpe_40000.json', 'vocab_40000.bpe')
HUGGING_FACE_NAMES = ('vocab.json', 'merges.txt')

_UNKNOWN, _NEWLINE, _END_OF_WORD = '<unk>', '\n</w>', '</w>'
_HEADER = '#version: 0.2'
_MODEL = {'type': 'BPE', 'end_of_word_suffix': _END_OF_WORD, 'unk_token': _UNKNOWN}  # in tokenizer.json
_MAX_CHUNKS = 2**18  # in spaCy's cache, at about 1 kB each


class OpenAITokenizer:
    """A vocabulary in the release's format.

    Attributes:
      vocab_size: number of entries V, 40,478 in the release.
      newline_id: V - 1, stands between lines.
      end_id: the same. The release has no entry that ends a document, so `prepare` ends it like a line.
      start_id, delimiter_id, extract_id: V, V + 1, V + 2.
      fingerprint: 16 hex characters of the SHA-256 of entries and merges; their files' names do not matter.
    """

    def __init__(self, vocabulary: dict[str, int], merges: list[tuple[str, str]]):
        """vocabulary: entry -> id; merges: in their order. `load_openai` reads and checks both."""
        self._entries = sorted(vocabulary, key=vocabulary.get)
        self._merges = merges
        self.vocab_size = len(vocabulary)
        self.newline_id = self.end_id = vocabulary[_NEWLINE]
        self.start_id, self.delimiter_id, self.extract_id = range(self.vocab_size, self.vocab_size + 3)
        self.fingerprint = hashlib.sha256(json.dumps([self._entries, merges]).encode()).hexdigest()[:16]
        self._bpe = None  # made for the first text: a run on encoded data needs none of the packages
        self._one_thread = threading.Lock()  # for the caches below; a worker of Beam encodes in several

    def encode_batch(self, texts: Iterable[str]) -> list[np.ndarray]:
        """Standardises and encodes each text: int32 [length], empty for an empty text; 0 is an unknown piece.

        Raises UserError if ftfy, spaCy or tokenizers is not installed.
        """
        with self._one_thread:
            if self._bpe is None:
                self._load_packages()
            return [self._encode(standardise(text)) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, in lower case: newline_id is a newline; special ids (>= V) leave nothing."""
        ids = np.asarray(ids, np.int64)
        text = ''.join(self._texts[i] for i in ids[ids < self.vocab_size])
        return text.replace(' \n', '\n').strip(' ')

    def save(self, directory: epath.PathLike) -> None:
        """Writes the release's two files and tokenizer.json into the folder, which is made if it is not there."""
        self.save_vocabulary(directory)
        description = {'kind': 'openai', 'fingerprint': self.fingerprint}
        write_atomically(epath.Path(directory) / 'tokenizer.json', [json.dumps(description).encode() + b'\n'])

    def save_vocabulary(self, directory: epath.PathLike, names: tuple[str, str] = RELEASE_NAMES) -> None:
        """Writes the two files alone, for programs that have another tokenizer.json (transformers)."""
        directory = epath.Path(directory)
        make_directory(directory)
        vocabulary = {entry: i for i, entry in enumerate(self._entries)}
        lines = [_HEADER, *map(' '.join, self._merges), '']
        write_atomically(directory / names[0], [json.dumps(vocabulary, ensure_ascii=False).encode()])
        write_atomically(directory / names[1], ['\n'.join(lines).encode()])

    @functools.cached_property
    def _texts(self) -> list[str]:
        texts = [entry.replace(_END_OF_WORD, ' ') for entry in self._entries]
        texts[self.newline_id] = '\n'
        return texts

    def _load_packages(self) -> None:
        # ftfy too, which `standardise` imports only where a text needs it: no run should fail half-way.
        _, self._spacy, tokenizers = (
            import_package(name, "text cannot be encoded with the release's vocabulary")
            for name in ('ftfy', 'spacy', 'tokenizers')
        )
        vocabulary = {entry: i for i, entry in enumerate(self._entries)}
        self._bpe = tokenizers.models.BPE(
            vocab=vocabulary, merges=self._merges, unk_token=_UNKNOWN, end_of_word_suffix=_END_OF_WORD
        )
        self._clear_caches()

    def _clear_caches(self) -> None:
        self._split = self._spacy.blank('en').tokenizer
        self._split.max_cache_size = 2 * _MAX_CHUNKS
        self._split('\n ')  # what a newline is to spaCy, and never a chunk below: into the cache
        self._chunks = set()  # that spaCy's cache has
        self._token_ids = functools.cache(self._merge)

    def _encode(self, text: str) -> np.ndarray:
        # After the first special case in a text ("don't"), spaCy adds nothing more to its cache. So each chunk is
        # first split alone. The whole text is still split as one: a special case may span chunks.
        chunks = set(text.split(' '))
        new = chunks - self._chunks
        if len(self._chunks) + len(new) > _MAX_CHUNKS:
            self._clear_caches()
            new = chunks
        for chunk in new:
            self._split(chunk)
        self._chunks |= new
        tokens = self._split(text).to_array(self._spacy.attrs.ORTH)
        return np.frombuffer(bytearray().join(map(self._token_ids, tokens.tolist())), np.int32)

    def _merge(self, token: int) -> bytes:
        """The ids, int32, of a token that is named by spaCy's hash."""
        token = self._split.vocab.strings[token]
        if token.isspace():  # '\n ': standardised text has no other such token
            ids = [self.newline_id]
        else:
            ids = [piece.id for piece in self._bpe.tokenize(token.lower())]
        return np.array(ids, np.int32).tobytes()


def load_openai(directory: epath.PathLike, fingerprint: str | None = None) -> OpenAITokenizer:
    """Loads the two files of a folder, by the release's names or by Hugging Face's, or the tokenizer.json that
    transformers 5 writes instead of them.

    Raises UserError: a file is missing or damaged, the two do not belong together or have another fingerprint.
    """
    vocabulary_path, merges_path = _find_files(epath.Path(directory))
    if vocabulary_path == merges_path:
        vocabulary, merges = _read_both(vocabulary_path)
    else:
        vocabulary, merges = _read_vocabulary(vocabulary_path), _read_merges(merges_path)
    characters = sum(len(entry.removesuffix(_END_OF_WORD)) == 1 for entry in vocabulary)  # a newline's included
    if len(vocabulary) != 1 + characters + len(merges):
        raise UserError(
            f'{vocabulary_path}: The file has {len(vocabulary):,} entries, and the {len(merges):,} merges '
            f'of {merges_path} make {1 + characters + len(merges):,}. Copy both from one folder.'
        )
    first = characters  # <unk> is before all characters, the newline after the merges
    for rank, halves in enumerate(merges):
        # With one merge for an entry and its halves before it, the library's order of merging cannot matter.
        if vocabulary.get(''.join(halves)) != first + rank or not all(
            0 < vocabulary.get(half, 0) < first + rank for half in halves
        ):
            number = f'Line {rank + 2}' if merges_path != vocabulary_path else f'Merge {rank + 1}'
            raise UserError(
                f'{merges_path}: {number}, {" ".join(halves)!r}, does not make entry {first + rank} '
                f'of {vocabulary_path} from earlier ones. Copy both from one folder.'
            )
    tokenizer = OpenAITokenizer(vocabulary, merges)
    if fingerprint not in (None, tokenizer.fingerprint):
        raise UserError(
            f'{vocabulary_path}: This file and {merges_path.name} do not match the fingerprint '
            f'{fingerprint} in tokenizer.json. Copy all three from one folder again.'
        )
    return tokenizer


def _find_files(directory: epath.Path) -> tuple[epath.Path, epath.Path]:
    for names in (RELEASE_NAMES, HUGGING_FACE_NAMES):
        there = [name for name in names if exists(directory / name)]
        if len(there) == 2:
            return directory / names[0], directory / names[1]
        if there:
            (missing,) = set(names) - set(there)
            raise UserError(f'{directory}: The folder has {there[0]} and lacks {missing}. Copy both from one folder.')
    if exists(directory / 'tokenizer.json'):
        return directory / 'tokenizer.json', directory / 'tokenizer.json'
    raise UserError(
        f'{directory}: The folder holds no tokenizer. Name one that the task prepare made, or one with '
        f'{" and ".join(RELEASE_NAMES)} of the release, or with {" and ".join(HUGGING_FACE_NAMES)}.'
    )


def _read_vocabulary(path: epath.Path) -> dict[str, int]:
    return _checked_vocabulary(path, read_json(path, object, 'Copy it again.'))


def _read_both(path: epath.Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of the library tokenizers' one file. Merges are pairs, or strings in older files."""
    description = read_json(path, object, 'Copy it again.')
    model = description.get('model') if isinstance(description, dict) else None
    if not isinstance(model, dict) or any(model.get(name) != value for name, value in _MODEL.items()):
        raise UserError(
            f"{path}: The tokenizer is not of GPT-1's kind, byte-pair encoding with {_UNKNOWN!r}, and {_END_OF_WORD!r} "
            f'at the end of words. Name a folder with {" and ".join(HUGGING_FACE_NAMES)}.'
        )
    merges = [
        tuple(one.split(' ') if isinstance(one, str) else one if isinstance(one, list) else ())
        for one in model.get('merges') or ()
    ]
    if not all(len(halves) == 2 and all(isinstance(half, str) and half for half in halves) for halves in merges):
        raise UserError(f'{path}: Some of its merges are not two pieces. Copy it again.')
    return _checked_vocabulary(path, model.get('vocab')), merges


def _checked_vocabulary(path: epath.Path, vocabulary) -> dict[str, int]:
    if not isinstance(vocabulary, dict) or not all(type(i) is int for i in vocabulary.values()):
        raise UserError(f'{path}: The file is not a vocabulary, an object with an id for each entry. Copy it again.')
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise UserError(
            f'{path}: The ids of its {len(vocabulary):,} entries are not 0 to {len(vocabulary) - 1:,}. Copy it again.'
        )
    if vocabulary.get(_UNKNOWN) != 0 or vocabulary.get(_NEWLINE) != len(vocabulary) - 1:
        raise UserError(
            f'{path}: The file is not in the format of the release, where {_UNKNOWN!r} is the first entry '
            f'and {_NEWLINE!r} the last. Name the folder of another vocabulary.'
        )
    return vocabulary


def _read_merges(path: epath.Path) -> list[tuple[str, str]]:
    try:
        check_file(path)
        header, *lines = path.read_bytes().decode().removesuffix('\n').split('\n')
    except UnicodeDecodeError as error:
        raise UserError(f'{path}: The file is damaged, it is not UTF-8 ({error}). Copy it again.') from error
    if not header.startswith('#version'):
        raise UserError(f'{path}: Line 1, {header[:40]!r}, is not {_HEADER!r}. Copy it again.')
    merges = [tuple(line.split(' ')) for line in lines]
    for number, halves in enumerate(merges, 2):
        if len(halves) != 2 or not all(halves):
            raise UserError(
                f'{path}: Line {number}, {" ".join(halves)[:40]!r}, is not two pieces and a space between '
                'them. Copy it again.'
            )
    return merges
