"""Text to token ids and back.

The ids 0..V-1 are the vocabulary's own. The release (Radford et al. 2018) puts three special rows after
them, `_start_`, `_delimiter_` and `_classify_`: here `start_id`, `delimiter_id` and `extract_id`.
"""

import hashlib
import io
import itertools
import json
import re
from collections.abc import Iterable

import numpy as np
import sentencepiece
from etils import epath

from gpt1_jax.data.files import import_package, make_directory, write_atomically
from gpt1_jax.errors import UserError

N_SPECIAL = 3

_PUNCTUATION = re.compile(r'([-~!";?+,)(\\/*\[\]}{|_])\1*')
# Anything but ASCII text, the common quotes, dashes and the ellipsis, or an HTML entity. In a line without
# these ftfy does no more than straighten the quotes.
_UNUSUAL = re.compile(
    '[^\\t\\n\\x0c\\x20-\\x7e\u2013\u2014\u2018\u2019\u201c\u201d\u2026]|&#?[0-9A-Za-z]{1,24};')


def standardise(text: str) -> str:
    """Cleans text as the release does: ftfy, then punctuation and white space.

    Long dashes become `-`, the ellipsis character `...`, the acute accent `'`; runs of one punctuation
    character are set off by spaces; white space around a newline becomes ' \\n ', other runs of white
    space one space; the ends are stripped. Letter case is left to the tokenizer.
    """
    text = _fix(text)
    for character, replacement in zip('\u2014\u2013\u2015\u2026\u00b4', ('-', '-', '-', '...', "'")):
        text = text.replace(character, replacement)
    text = _PUNCTUATION.sub(lambda run: f' {run[0]} ', text)
    lines = (' '.join(line.split()) for line in text.split('\n'))
    return ' \n '.join(line for line in lines if line)


def _fix(text: str) -> str:
    """`ftfy.fix_text(text)`, many times as fast: only unusual lines go through ftfy, and need it."""
    text = text.replace('\r\n', '\n')
    markup = text.find('<')  # from the line of the first '<' on, ftfy leaves HTML entities alone
    parts, done = [], 0
    for match in _UNUSUAL.finditer(text):
        if match.start() < done:
            continue
        start = text.rfind('\n', done, match.start()) + 1 or done
        end = text.find('\n', match.start()) + 1 or len(text)
        unescape = False if 0 <= markup < start else 'auto'
        ftfy = import_package('ftfy', 'text with unusual characters cannot be encoded')
        parts += _straighten(text[done:start]), ftfy.fix_text(text[start:end], unescape_html=unescape)
        done = end
    parts.append(_straighten(text[done:]))
    return ''.join(parts)


def _straighten(text: str) -> str:
    if text.isascii():
        return text
    return text.replace('\u2018', "'").replace('\u2019', "'").replace('\u201c', '"').replace('\u201d', '"')


class SentencePieceTokenizer:
    """A SentencePiece model with control pieces '<nl>' and '<end>'.

    Attributes:
        vocab_size: number of pieces V, control and byte pieces included.
        newline_id: stands between lines. end_id: `prepare` writes it after each document.
        start_id, delimiter_id, extract_id: V, V + 1, V + 2.
        fingerprint: 16 hex characters of the SHA-256 of the model.
    """

    def __init__(self, model: bytes, threads: int = -1):
        """model: a serialised SentencePiece model; threads: of `encode_batch`, -1 for all cores.

        Raises UserError if these bytes are no model, or one without the two control pieces.
        """
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model, num_threads=threads)
        except RuntimeError as error:
            raise UserError('The tokenizer.model is not a SentencePiece model: prepare it again.') from error
        self._model = model
        self.vocab_size = self._processor.vocab_size()
        self.newline_id = self._processor.piece_to_id('<nl>')
        self.end_id = self._processor.piece_to_id('<end>')
        if not (self._processor.is_control(self.newline_id) and self._processor.is_control(self.end_id)):
            raise UserError("The SentencePiece model lacks the control pieces '<nl>' and '<end>': let "
                            'prepare train one.')
        self.start_id, self.delimiter_id, self.extract_id = range(self.vocab_size, self.vocab_size + 3)
        self.fingerprint = hashlib.sha256(model).hexdigest()[:16]

    def encode_batch(self, texts: Iterable[str]) -> list[np.ndarray]:
        """Standardises and encodes each text: int32 [length], empty for an empty text."""
        lines = [standardise(text).split(' \n ') for text in texts]
        pieces = iter(self._processor.encode(list(itertools.chain.from_iterable(lines))))
        newline = [self.newline_id]
        batch = []
        for text_lines in lines:
            parts = []
            for ids in itertools.islice(pieces, len(text_lines)):
                if ids:  # a line of nothing but invisible characters has no pieces
                    parts += newline, ids
            batch.append(np.fromiter(itertools.chain.from_iterable(parts[1:]), np.int32))
        return batch

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids: newline_id is a newline; end_id and special ids (>= V) leave nothing."""
        ids = np.asarray(ids, np.int64)
        ids = ids[(ids < self.vocab_size) & (ids != self.end_id)]
        lines = np.split(ids, np.flatnonzero(ids == self.newline_id))
        return '\n'.join(self._processor.decode([line.tolist() for line in lines]))

    def save(self, directory) -> None:
        """Writes tokenizer.model and tokenizer.json into the directory, which is made if need be."""
        directory = epath.Path(directory)
        make_directory(directory)
        write_atomically(directory / 'tokenizer.model', [self._model])
        description = {'kind': 'sentencepiece', 'fingerprint': self.fingerprint}
        write_atomically(directory / 'tokenizer.json', [json.dumps(description).encode() + b'\n'])


def train_sentencepiece(texts: Iterable[str], vocab_size: int) -> SentencePieceTokenizer:
    """Learns a lower-casing BPE vocabulary of `vocab_size` pieces; the same texts give the same model.

    Characters that are too rare for a piece of their own (0.05 % of the text) are spelled in bytes.

    Args:
        texts: standardised texts; their lines are the training sentences.
    Raises:
        UserError: too little text for this vocabulary, or too small a vocabulary for its characters.
    """
    lines = (line for text in texts for line in text.split(' \n ') if line)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=model, model_type='bpe', vocab_size=vocab_size,
            normalization_rule_name='nmt_nfkc_cf', byte_fallback=True, control_symbols=['<nl>', '<end>'],
            bos_id=-1, eos_id=-1, pad_id=-1, max_sentence_length=2**24, minloglevel=2)
    except RuntimeError as error:
        message = str(error)
        if largest := re.search(r'Please set it to a value <= (\d+)', message):
            raise UserError(f'The text is too small for a vocabulary of {vocab_size:,} pieces: set '
                            f'vocab_size to {int(largest[1]):,} or less, or use more text.') from error
        if smallest := re.search(r'smaller than required_chars\. \d+ vs (\d+)', message):
            raise UserError(f'A vocabulary of {vocab_size:,} pieces cannot hold the characters of the text: '
                            f'set vocab_size to {int(smallest[1]):,} or more.') from error
        if 'sentences_.empty()' in message:
            raise UserError('There is no text to train a tokenizer on: use another source.') from error
        raise
    return SentencePieceTokenizer(model.getvalue())


def load_tokenizer(directory, threads: int = -1):
    """Loads what `save` wrote, or the release's vocabulary: its two files, or the two that Hugging Face makes of them.

    Args:
        threads: of SentencePiece, -1 for all cores.
    Returns:
        A SentencePieceTokenizer or an OpenAITokenizer (bpe.py); both have the same interface.
    Raises:
        UserError: a file that is missing, damaged or of an unknown kind; a package that is not installed.
    """
    from gpt1_jax.data.bpe import load_openai  # not above: bpe.py imports this module
    directory = epath.Path(directory).expanduser()
    kind, fingerprint = _read_description(directory / 'tokenizer.json')
    if kind == 'sentencepiece':
        return _load_sentencepiece(directory, fingerprint, threads)
    if kind == 'openai':
        return load_openai(directory, fingerprint)
    raise UserError(f'{directory}/tokenizer.json is of an unknown kind, {kind!r}: use sentencepiece or openai.')


def _read_description(path: epath.Path) -> tuple[str, str | None]:
    """Kind and fingerprint of a tokenizer; a folder that `save` did not write can only be the release's kind."""
    try:
        description = json.loads(path.read_bytes())
        if 'model' in description:  # Hugging Face's file of the same name
            return 'openai', None
        return description['kind'], description['fingerprint']
    except (FileNotFoundError, NotADirectoryError):
        return 'openai', None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} is damaged: prepare the tokenizer again.') from error


def _load_sentencepiece(directory: epath.Path, fingerprint: str, threads: int) -> SentencePieceTokenizer:
    try:
        model = (directory / 'tokenizer.model').read_bytes()
    except FileNotFoundError as error:
        raise UserError(f'No tokenizer in {directory}: tokenizer.model is missing, copy it from where tokenizer.json '
                        'is from.') from error
    if hashlib.sha256(model).hexdigest()[:16] != fingerprint:
        raise UserError(f'{directory}/tokenizer.model does not match the fingerprint {fingerprint} in '
                        'tokenizer.json: copy both files from one place again.')
    return SentencePieceTokenizer(model, threads)
