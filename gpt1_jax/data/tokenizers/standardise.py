"""Text as the release cleans it before it is split into tokens."""

import re

from gpt1_jax.files import import_package

_PUNCTUATION = re.compile(r'([-~!";?+,)(\\/*\[\]}{|_])\1*')
# Anything but ASCII text, the common quotes, dashes and the ellipsis, or an HTML entity. In a line without
# these ftfy does no more than straighten the quotes.
_UNUSUAL = re.compile('[^\\t\\n\\x0c\\x20-\\x7e\u2013\u2014\u2018\u2019\u201c\u201d\u2026]|&#?[0-9A-Za-z]{1,24};')


def standardise(text: str) -> str:
    """Cleans text as the release does: ftfy, then punctuation and white space.

    Long dashes become `-`, the ellipsis character `...`, the acute accent `'`; runs of one punctuation
    character are set off by spaces; white space around a newline becomes ' \\n ', other runs of white
    space one space; the ends are stripped. Letter case is left to the tokenizer. Backslashes are set off
    too, as Hugging Face does: the release's expression names them, but by its quoting it means a plus.
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
