"""A tokenizer from the folder that holds it."""

from etils import epath

from gpt1_jax.data.tokenizers.openai_bpe import OpenAITokenizer, load_openai
from gpt1_jax.data.tokenizers.sentence_piece import SentencePieceTokenizer, load_sentencepiece
from gpt1_jax.errors import UserError
from gpt1_jax.files import check_form, read_json

Tokenizer = SentencePieceTokenizer | OpenAITokenizer
_AGAIN = 'Prepare the tokenizer again.'


def load_tokenizer(directory: epath.PathLike, threads: int = -1) -> Tokenizer:
    """Loads what `save` wrote, or the release's vocabulary: its two files, or Hugging Face's two copies of them.

    Args:
      threads: of SentencePiece, -1 for all cores.
    Raises:
      UserError: a file that is missing, damaged or of an unknown kind; a package that is not installed.
    """
    directory = epath.Path(directory).expanduser()
    kind, fingerprint = _read_description(directory / 'tokenizer.json')
    if kind == 'sentencepiece':
        return load_sentencepiece(directory, fingerprint, threads)
    if kind == 'openai':
        return load_openai(directory, fingerprint)
    raise UserError(
        f'{directory}/tokenizer.json: The tokenizer is of an unknown kind, {kind!r}. Use sentencepiece or openai.'
    )


def _read_description(path: epath.Path) -> tuple[str, str | None]:
    """Kind and fingerprint of a tokenizer; a folder that `save` did not write can only be the release's kind."""
    try:
        description = read_json(path, dict, _AGAIN)
    except (FileNotFoundError, NotADirectoryError):
        return 'openai', None
    if 'model' in description:  # Hugging Face's file of the same name
        return 'openai', None
    check_form(path, description, {'kind': str, 'fingerprint': str}, _AGAIN)
    return description['kind'], description['fingerprint']
