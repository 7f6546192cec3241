"""Sources of running text, by the kind of their URI."""

import dataclasses
import functools
import io
import itertools

from absl import logging

from gpt1_jax.data.corpus.docstrings import read_docstrings
from gpt1_jax.data.corpus.documents import Corpus, fingerprint
from gpt1_jax.data.corpus.hub_text import open_hub
from gpt1_jax.data.corpus.text_files import open_text
from gpt1_jax.data.corpus.tfds_text import open_tfds
from gpt1_jax.errors import UserError

TEXT_OPTIONS = ('text_column', 'strip_gutenberg', 'unwrap')  # keys of `data` that `open_corpus` takes


def open_corpus(
    uri: str, *, text_column: str = '', strip_gutenberg: bool = False, unwrap: bool = False, download: bool = True
) -> Corpus:
    """Opens a source of running text, and logs how much of it is read.

    Args:
      uri: `text:PATH`, a folder, a glob or a file, see `open_text`; `tfds:NAME`, a TensorFlow Datasets set with a
        feature `text` or `book_text`; `hf:OWNER/NAME` or `hf:OWNER/NAME:CONFIG`, a data set of the Hugging Face hub,
        see `open_hub`; `docs:` or `docs:a,b`, documentation strings of installed Python packages, see
        `read_docstrings`.
      text_column: of tables; '': the first of TEXT_COLUMNS.
      strip_gutenberg, unwrap: whether the functions of these names in cleaning.py clean each document.
      download: whether what is not here may be fetched.
    Raises:
      UserError: an unknown kind, nothing there, or nothing in it.
    """
    kind, _, rest = str(uri).partition(':')
    openers = {
        'text': functools.partial(open_text, text_column=text_column),
        'tfds': functools.partial(open_tfds, download=download),
        'hf': functools.partial(open_hub, text_column=text_column, download=download),
        'docs': _open_docs,
    }
    if kind not in openers:
        raise UserError(
            f'data.source: {uri!r} is not running text. Give text:/folder-glob-or-file, tfds:name, hf:OWNER/NAME or '
            'docs:.'
        )
    corpus = openers[kind](rest)
    if not corpus.problems and not (corpus.documents and corpus.size):
        raise UserError(f'{uri}: The source holds no text. Name another one.')
    left_out = f'; left out: {corpus.left_out}' if corpus.left_out else ''
    logging.info('%s: documents: %s%s', corpus.uri, f'{corpus.documents:,}', left_out)
    cleaning = {name: True for name, on in (('strip_gutenberg', strip_gutenberg), ('unwrap', unwrap)) if on}
    if cleaning:
        cleaning['fingerprint'] = fingerprint(corpus.fingerprint, sorted(cleaning))
    return dataclasses.replace(corpus, **cleaning)


# Documentation strings.


def _open_docs(packages: str) -> Corpus:
    docs = read_docstrings(tuple(filter(None, packages.split(','))))
    texts = {doc.path: '\n\n'.join(doc.docstrings).encode(errors='replace') for doc in docs}

    def files(first):
        return (io.BytesIO(text) for text in itertools.islice(texts.values(), first, None))

    return Corpus(
        f'docs:{packages}',
        len(texts),
        sum(map(len, texts.values())),
        fingerprint([(path, fingerprint(text)) for path, text in texts.items()]),
        lambda: iter(texts),
        files,
        by_name=True,
    )
