"""A SentencePiece BPE vocabulary, trained by `prepare`."""

import hashlib
import io
import itertools
import json
import re
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece
from etils import epath

from gpt1_jax.data.tokenizers.standardise import standardise
from gpt1_jax.errors import UserError
from gpt1_jax.files import check_file, make_directory, write_atomically


class SentencePieceTokenizer:
    """A SentencePiece model with control pieces '<nl>' and '<end>'.

    Attributes:
      vocab_size: number of pieces V, control and byte pieces included.
      newline_id: stands between lines.
      end_id: `prepare` writes it after each document.
      start_id, delimiter_id, extract_id: V, V + 1, V + 2.
      fingerprint: 16 hex characters of the SHA-256 of the model.
    """

    def __init__(self, model: bytes, threads: int = -1):
        """model: a serialised SentencePiece model; threads: of `encode_batch`, -1 for all cores.

        Raises UserError if these bytes are not a model, or one without the two control pieces.
        """
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model, num_threads=threads)
        except RuntimeError as error:
            raise UserError('tokenizer.model: It is not a SentencePiece model. Prepare it again.') from error
        self._model = model
        self.vocab_size = self._processor.vocab_size()
        self.newline_id = self._processor.piece_to_id('<nl>')
        self.end_id = self._processor.piece_to_id('<end>')
        if not (self._processor.is_control(self.newline_id) and self._processor.is_control(self.end_id)):
            raise UserError("tokenizer.model: It lacks the control pieces '<nl>' and '<end>'. Let prepare train one.")
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

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids: newline_id is a newline; end_id and special ids (>= V) leave nothing."""
        ids = np.asarray(ids, np.int64)
        ids = ids[(ids < self.vocab_size) & (ids != self.end_id)]
        lines = np.split(ids, np.flatnonzero(ids == self.newline_id))
        return '\n'.join(self._processor.decode([line.tolist() for line in lines]))

    def save(self, directory: epath.PathLike) -> None:
        """Writes tokenizer.model and tokenizer.json into the folder, which is made if it is not there."""
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
            sentence_iterator=lines,
            model_writer=model,
            model_type='bpe',
            vocab_size=vocab_size,
            normalization_rule_name='nmt_nfkc_cf',
            byte_fallback=True,
            control_symbols=['<nl>', '<end>'],
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            max_sentence_length=2**24,
            minloglevel=2,
        )
    except RuntimeError as error:
        message = str(error)
        if largest := re.search(r'Please set it to a value <= (\d+)', message):
            raise UserError(
                f'data.vocab_size: The text is too small for a vocabulary of {vocab_size:,} pieces. Set it '
                f'to {int(largest[1]):,} or less, or use more text.'
            ) from error
        if smallest := re.search(r'smaller than required_chars\. \d+ vs (\d+)', message):
            raise UserError(
                f'data.vocab_size: A vocabulary of {vocab_size:,} pieces cannot hold the characters of the '
                f'text. Set it to {int(smallest[1]):,} or more.'
            ) from error
        if 'sentences_.empty()' in message:
            raise UserError('data.source: There is no text to train a tokenizer on. Use another source.') from error
        raise
    return SentencePieceTokenizer(model.getvalue())


def load_sentencepiece(directory: epath.Path, fingerprint: str, threads: int) -> SentencePieceTokenizer:
    """Loads tokenizer.model. Raises UserError if it is missing, or has another fingerprint."""
    try:
        check_file(directory / 'tokenizer.model')
        model = (directory / 'tokenizer.model').read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f'{directory}/tokenizer.model: The file is missing. Copy it from where tokenizer.json is from.'
        ) from error
    if hashlib.sha256(model).hexdigest()[:16] != fingerprint:
        raise UserError(
            f'{directory}/tokenizer.model: The file does not match the fingerprint {fingerprint} in '
            'tokenizer.json. Copy both from one folder again.'
        )
    return SentencePieceTokenizer(model, threads)
