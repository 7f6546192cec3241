"""Which files of a folder hold a split of a labelled data set."""

import fnmatch
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from absl import logging
from etils import epath

from gpt1_jax.data.labelled import saved_sets
from gpt1_jax.data.labelled.registry import Dataset
from gpt1_jax.errors import UserError

_TABLE = re.compile(r'(?P<stem>.+)(?P<suffix>\.(jsonl|json|tsv|csv)(\.gz)?|\.parquet)')
_ADD = 'Add the file, or name the folder that holds it.'
_PACKED = ('.zip', '.tar', '.tgz', '.bz2', '.xz', '.zst', '.7z')
_LISTED = 10  # names in an error message
_WINOGRAD = (
    'Write each schema as {"sentence": ..., "pronoun": ..., "candidates": [..., ...], "label": 0} in a line of '
    'test.jsonl, and take it for dpr; or take WNLI of GLUE: neither the XML nor the text of the Winograd schema '
    'challenge is read.'
)
_HINTS = {  # a file of the authors that is not one split -> what to do with it
    'msr_paraphrase_train.txt': "Add GLUE's dev_ids.tsv, the dev pairs of msr_paraphrase_train.txt; or rename this "
    'file train.tsv, msr_paraphrase_test.txt test.tsv, and move the dev pairs to a dev.tsv with the header.',
    'quora_duplicate_questions.tsv': 'Split quora_duplicate_questions.tsv into train.tsv and dev.tsv, or rather .csv, '
    'both with its header, by a program that knows quotes, as some of its rows go over several lines; or take QQP of '
    'GLUE, which is split.',
    'copa-dev.xml': "Add SuperGLUE's train.jsonl and val.jsonl: the authors of COPA give dev and test only.",
    'copa-all.xml': 'Add copa-dev.xml and copa-test.xml: copa-all.xml is both.',
    'wscollection.xml': _WINOGRAD,
    'wsc273.txt': _WINOGRAD,
}


class Found(NamedTuple):
    """The files of a split, in the order in which they are read; none if there is none.

    dev_list: the file that says which rows are dev, if train and dev are together in these files.
    """

    files: Sequence[epath.Path]
    dev_list: epath.Path | None = None


def find(directory: str, split: str, dataset: Dataset) -> Found:
    """The files of the split that the source calls `split`, except .parquet, which `hub_layout` finds.

    The first of these that are there: SPLIT.SUFFIX in the folder, in any case, or a folder SPLIT of save_to_disk; the
    authors' names, dataset.files, in their order; SPLIT.SUFFIX in the folder `data` of a repository.

    Raises:
      UserError: there are two of one kind, not all parts of one, or no directory.
    """
    folder = epath.Path(directory).expanduser()
    if not folder.is_dir():
        raise UserError(f'{directory}: This is not a directory. Name the folder that holds {_usual_stem(split)}.jsonl.')
    paths = _listing(folder)
    if files := _plain(folder, paths, split):
        return Found(files)
    own, is_dev = _own(folder, split, dataset.files), split in stems('validation')
    dev_list = folder / dataset.dev_list if dataset.dev_list in [path.name for path in paths] else None
    if not own and is_dev and dev_list:
        own = _own(folder, 'train', dataset.files)
    if own:
        (first, files), *others = own.items()
        if others:
            logging.info('%s: %s is read, not %s.', directory, first.name, ', '.join(other.name for other, _ in others))
        return Found(files, dev_list if is_dev or split == 'train' else None)
    data = folder / 'data'
    return Found(_plain(data, _listing(data), split) if data.is_dir() else [])


def missing(directory: str, split: str, below: bool = False) -> UserError:
    """The error for a folder without a file of the split: what is there, and what to do with it.

    below: whether there are parquet files in folders below, which are not read.
    """
    names = [path.name for path in _listing(epath.Path(directory).expanduser())]
    stem = _usual_stem(split)
    there = ', '.join(names[:_LISTED]) + (f' and {len(names) - _LISTED} more' if len(names) > _LISTED else '')
    what = f'{directory}: There is no {stem}.jsonl (or .json, .tsv, .csv, one of these .gz, or .parquet), only'
    hints = [_HINTS[name.lower()] for name in names if name.lower() in _HINTS]
    fix = hints[0] if hints else _fix(names, split, stem)
    if below and fix == _ADD:
        fix = f'{_ADD[:-1]}; if a parquet file of a folder below is it, move it here as {stem}.parquet.'
    return UserError(f'{what} {there or "nothing"}. {fix}')


def _fix(names: Sequence[str], split: str, stem: str) -> str:
    """What to do with a folder that has these names and no file of the split."""
    has_word = lambda name, *splits: any(word in name.lower() for split in splits for word in stems(split))
    of_split = [name for name in names if has_word(name, split)]
    of_none = [name for name in names if not has_word(name, 'train', 'validation', 'test')]
    for name in of_split:
        if table := _TABLE.fullmatch(name.lower()):
            return f'Rename {name} {stem}{table["suffix"]}.'
    for name in names:
        if (table := _TABLE.fullmatch(name.lower())) and table['stem'] in stems(split.partition('_')[0]):
            return f'If {name} is it, rename it {stem}{table["suffix"]}.'  # MNLI has two splits each of dev and test
    suffixes = {epath.Path(name).suffix.lower(): name for name in (*of_none, *of_split)}
    if suffixes.keys() & {'.xlsx', '.xls', '.ods'}:
        return f'Save the table as {stem}.csv (CSV UTF-8): workbooks are not read.'
    if packed := [name for suffix, name in suffixes.items() if suffix in _PACKED]:
        return f'Unpack {packed[0]} there: of packed files only .gz are read.'
    if '.xml' in suffixes:
        return f'Write its entries to {stem}.jsonl, one JSON object a line: this XML is not read.'
    if '.arrow' in suffixes:
        return f'Move the files of a saved split, state.json too, to a folder {stem}.'
    if suffixes.get('.txt') in of_split:
        return f'If {suffixes[".txt"]} has columns with tabs between them, rename it {stem}.tsv.'
    for name in of_none:
        if (table := _TABLE.fullmatch(name.lower())) and name != 'dataset_dict.json':
            return f'If {name} is the file of this split, rename it {stem}{table["suffix"]}.'
    return _ADD


def _usual_stem(split: str) -> str:
    return split.replace('validation', 'dev')


def stems(split: str) -> list[str]:
    """The names that may stand for the split."""
    first, _, rest = split.partition('_')
    words = ('validation', 'val', 'dev', 'valid') if first in ('validation', 'dev') else (first,)
    return [f'{word}_{rest}' if rest else word for word in words]


def _listing(folder) -> list[epath.Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith('.'))


def _plain(folder, paths: Sequence[epath.Path], split: str) -> list[epath.Path]:
    """SPLIT.SUFFIX among the paths of a folder, in any case, or the files in its folder SPLIT. Raises UserError if both
    are there, or two."""
    words, found, parquet = stems(split), {}, []
    for path in paths:
        table = _TABLE.fullmatch(path.name.lower())
        if table and table['stem'] in words:
            if table['suffix'] == '.parquet':
                parquet.append(path.name)
            else:
                found[path.name] = [path]
        elif path.name.lower() in words and path.is_dir() and (files := saved_sets.files(path)):
            found[f'{path.name}/'] = files
    # Earlier versions knew only these names: if one of them is there, other files beside it change nothing.
    first = dict.fromkeys((split, split.replace('validation', 'val'), split.replace('validation', 'dev')))
    first = [f'{stem}{suffix}{gz}' for stem in first for suffix in ('.jsonl', '.tsv', '.csv') for gz in ('', '.gz')]
    names = [name for name in first if name in found] or [*found]
    if len(names) > 1:
        raise UserError(f'{folder}: There are both {names[0]} and {names[1]}. Keep one of them.')
    if not names:
        return []
    if others := [name for name in (*found, *parquet) if name not in names]:
        logging.warning('%s: %s is read, not %s.', folder, names[0], ', '.join(others))
    return found[names[0]]


# ----------------------------------------------------------------- the authors' names


def _own(folder, split: str, patterns: Sequence[str]) -> dict[epath.Path, list[epath.Path]]:
    """For each pattern that matches: the first file -> all. Raises UserError if two files match one without `*`."""
    found = {}
    for pattern in patterns:
        parts = pattern.lower().split('/')
        last = next(i for i, part in enumerate(parts) if '{}' in part)
        for begin in range(last + 1):  # a folder above may be the one that is named
            files = [
                file
                for stem in stems(split)
                for file in _matching(folder, [part.replace('{}', stem) for part in parts[begin:]])
            ]
            if len(files) > 1 and '*' not in pattern:
                raise UserError(f'{folder}: There are both {files[0].name} and {files[1].name}. Keep one of them.')
            if files:
                found[files[0]] = files  # once, if two patterns find it because their folders may be absent
                break
    return found


def _matching(folder, parts: Sequence[str]) -> Iterator[epath.Path]:
    """The files below the folder whose path matches, in the order of the numbers in their names; .gz does not count."""
    number_last = lambda path: (len(path.name), path.name) if path.name[:1].isdigit() else (0, path.name)
    for path in sorted(_listing(folder), key=number_last):
        name = path.name.lower()
        if len(parts) > 1:
            if fnmatch.fnmatchcase(name, parts[0]) and path.is_dir():
                yield from _matching(path, parts[1:])
        elif fnmatch.fnmatchcase(name.removesuffix('.gz'), parts[0]):
            yield path
