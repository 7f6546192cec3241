"""Files in forms that only the authors of one data set write -> entries."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator

from absl import logging
from etils import epath

from gpt1_jax.data.labelled import contents
from gpt1_jax.errors import UserError

_COPA = {'p': 'premise', 'a1': 'choice1', 'a2': 'choice2'}
_PAIR = ('#1 ID', '#2 ID')


def copa_entries(path: epath.Path, data: bytes) -> Iterator[tuple[str, dict]]:
    """COPA's XML (Roemmele et al. 2011), with an <item> per entry -> entries like SuperGLUE's, but with labels by name.

    Raises:
      UserError: it is not such XML.
    """
    try:
        text = data.decode('utf-8-sig')
    except UnicodeDecodeError:
        declared = re.match(rb'<\?xml[^>]*encoding=["\']([\w.-]+)', data)
        try:
            text = data.decode(declared[1].decode() if declared else 'utf-8')
        except (LookupError, UnicodeError) as error:
            raise UserError(f'{path}: The text has another encoding than it says ({error}). Copy it again.') from error
    if '<!ENTITY' in text:  # entities of entities can fill any memory
        raise UserError(f'{path}: The XML defines entities, which are not read. Write the characters themselves.')
    try:
        root = ET.fromstring(text)
    except (ET.ParseError, ValueError) as error:
        raise UserError(f'{path}: This is not XML ({error}). Copy the file again.') from error
    for number, item in enumerate(root.iter('item'), 1):
        where = f'{path}, item {item.get("id", number)}'
        entry = {'idx': item.get('id'), 'question': item.get('asks-for')}
        for tag, name in _COPA.items():
            elements = item.findall(tag)
            if len(elements) != 1:
                raise UserError(f'{where}: There are {len(elements)} elements <{tag}>. Write one in each item.')
            entry[name] = ''.join(elements[0].itertext()).strip()
        if right := item.get('most-plausible-alternative'):
            entry['label'] = f'choice{right}'
        yield where, entry


def pronoun_entries(path: epath.Path, data: bytes) -> Iterator[tuple[str, dict]]:
    """The text form of definite pronoun resolution (Rahman and Ng 2012) -> entries. An item is a line each of sentence,
    pronoun, candidates separated by commas, and the right one, with an empty line after them.

    Raises:
      UserError: an item has another form.
    """
    item = []
    for number, line in enumerate([*contents.lines(path, data), ''], 1):
        if line.strip():
            item.append(line.strip())
        elif item:
            where = f'{path}, line {number - len(item)}'
            if len(item) != 4:
                raise UserError(
                    f'{where}: The item has {len(item)} lines. Write four, sentence, pronoun, candidates and the right '
                    'one, and an empty line after them.'
                )
            sentence, pronoun, candidates, right = item
            candidates = [candidate.strip() for candidate in candidates.split(',')]
            plain = str if right in candidates else str.lower
            found = [i for i, candidate in enumerate(candidates) if plain(candidate) == plain(right)]
            if len(found) != 1:
                raise UserError(
                    f'{where}: The answer {right!r} is not one of the candidates {", ".join(candidates)}. Correct it.'
                )
            yield where, {'sentence': sentence, 'pronoun': pronoun, 'candidates': candidates, 'label': found[0]}
            item = []


def divided(entries: Iterable[tuple[str, dict]], dev_list: epath.Path, dev: bool) -> Iterator[tuple[str, dict]]:
    """If `dev`, the entries of MRPC's training file whose pair of ids is in GLUE's dev_ids.tsv; else the others.

    Raises:
      UserError: the file of ids cannot be read.
    """
    listed = {tuple(line.split()) for line in contents.lines(dev_list, contents.read(dev_list))} - {()}
    found = set()
    for where, entry in entries:
        pair = tuple(entry.get(name) for name in _PAIR)
        found |= {pair} & listed
        if (pair in listed) == dev:
            yield where, entry
    if found != listed:
        logging.warning('%s: %d of the %d pairs were not found.', dev_list, len(listed - found), len(listed))
