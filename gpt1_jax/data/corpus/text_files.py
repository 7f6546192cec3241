"""Running text in files: which files of a folder are read, and which are left out."""

import bisect
import collections
import dataclasses
import glob
import itertools
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

from absl import logging
from etils import epath

from gpt1_jax.data.corpus.containers import TEXT_COLUMNS, Part, has_json_rows, table_part, text_part, zip_part
from gpt1_jax.data.corpus.documents import Corpus, DocumentError, fingerprint
from gpt1_jax.encodings import conversion
from gpt1_jax.errors import UserError
from gpt1_jax.files import is_local

_TEXTS = ('.txt', '.txt.gz')
_TABLES = ('.jsonl', '.jsonl.gz', '.parquet')
_JSON = ('.json', '.json.gz', '.ndjson', '.ndjson.gz')  # tables like .jsonl, if their first line is an object
_CELLS = ('.csv', '.csv.gz', '.tsv', '.tsv.gz')
_COLUMNS = f'{", ".join(TEXT_COLUMNS[:-1])} or {TEXT_COLUMNS[-1]}'
_KINDS_SHOWN = 8


def open_text(location: str, text_column: str = '') -> Corpus:
    """Opens text:LOCATION, a folder, a glob of files and folders, or a file.

    In a folder and the folders in it, also by links, these files are read, whatever the case of the suffix: .txt and
    .txt.gz, each a document; .zip, whose members of these kinds are documents; .parquet, .jsonl, and .json and .ndjson
    if their first line is an object, also in .gz, with a document per row. Files that are not meant to be read, by
    their names, are left out: hidden ones and backups of editors. So is a member of an archive that lies unpacked
    beside it. A file that is named itself, or by a glob, may have any suffix except those of other tables.

    Args:
      text_column: of tables; '': the first of TEXT_COLUMNS.

    Raises:
      UserError: there is nothing that could be read.
    """
    left_out, problems = collections.Counter(), []
    root, paths = _find(location, left_out, problems)
    names = {path.relative_to(root).as_posix(): path for path in paths}
    paths = dict(sorted(names.items()))
    parts, not_read, unpacked = {}, [], collections.defaultdict(list)  # of an archive: what lies beside it
    for name, path in paths.items():
        try:
            part = _part(name, path, paths, text_column, left_out, unpacked[name])
            if part and part.documents:
                parts[name] = part
            elif not part and name.lower().endswith(_TABLES):
                not_read.append(name)
        except DocumentError as error:
            problems.append(str(error))
    if not parts and not problems:
        raise UserError(
            f'text:{location}: There is no text. Name a folder with files .txt, .txt.gz, .zip, .jsonl or .parquet, a '
            f'glob or a file{_in_words(left_out, " (left out: {})")}.'
        )
    if not_read:
        logging.warning(
            'text:%s: %s tables are not read, such as %s: none of their columns is called %s and holds text. Name the '
            'one that does in data.text_column.',
            location,
            f'{len(not_read):,}',
            not_read[0],
            _COLUMNS,
        )
    return dataclasses.replace(
        _corpus(location, paths, parts),
        left_out=_in_words(left_out, '{}'),
        problems=tuple(problems),
        parts=lambda: (
            dict(
                name=name,
                path=os.path.abspath(paths[name]) if is_local(paths[name]) else os.fspath(paths[name]),
                documents=part.documents,
                size=part.size,
                text_column=text_column,
                unpacked=unpacked.get(name, []),
            )
            for name, part in parts.items()
        ),
    )


def reopen_text(location: str, files: Sequence[Mapping]) -> Corpus:
    """Opens files that another process has found in text:LOCATION. files: some of `Corpus.parts`.

    Raises UserError: one cannot be read, or has changed.
    """
    paths, parts = {file['name']: epath.Path(file['path']) for file in files}, {}
    for file in files:
        name, path = file['name'], paths[file['name']]
        part = _part(name, path, file['unpacked'], file['text_column'], collections.Counter(), [])
        if part is None or (part.documents, part.size) != (file['documents'], file['size']):
            raise DocumentError(f'{path}: The file has changed since the run began. Run the same command again.')
        parts[name] = part
    return _corpus(location, paths, parts)


def _corpus(location, paths, parts):
    def files(first: int) -> Iterator[BinaryIO]:
        for part in parts.values():
            if first < part.documents:
                yield from part.files(first)
            first = max(0, first - part.documents)

    def convert(name: str, encoding: str) -> str:
        if name in paths:
            return conversion(paths[name], encoding)
        archive = next((one for one in parts if name.startswith(f'{one}/')), None)
        if archive is None:  # a row of a table
            return ''
        folder, member = os.fspath(paths[archive].parent), name.removeprefix(f'{archive}/')
        unpack = f'unzip {shlex.quote(paths[archive].name)} {shlex.quote(member)}'
        return f'cd {shlex.quote(folder)} && {unpack} && {conversion(member, encoding)}'

    ends, of_file = list(itertools.accumulate(part.documents for part in parts.values())), list(parts)
    return Corpus(
        f'text:{location}',
        ends[-1] if ends else 0,
        sum(part.size for part in parts.values()),
        fingerprint(list(parts), [part.size for part in parts.values()]),
        lambda: (name for part in parts.values() for name in part.names()),
        files,
        convert=convert,
        is_row=lambda document: of_file[bisect.bisect(ends, document)].lower().endswith((*_TABLES, *_JSON)),
    )


def _find(location, left_out, problems):
    """The folder that names are relative to, and the paths of all files that may be read."""
    path = epath.Path(location).expanduser()
    parts = path.parts
    exists = lambda i: epath.Path(*parts[: i + 1]).exists()
    magic = next((i for i, part in enumerate(parts) if re.search(r'[*?[]', part) and not exists(i)), None)
    if '**' in parts:
        raise UserError(f"text:{location}: '**' is not supported. Name the folder, which is read whole.")
    if magic is not None:
        root = epath.Path(*parts[:magic])
        literal = epath.Path(glob.escape(os.fspath(root)))
        found = literal.glob('/'.join(parts[magic:])) if root.is_dir() else []
        files, folders, links = [], [], []
        for one in found:
            if not _counted(left_out, _unwanted(one.name)):
                (files if not one.is_dir() else links if os.path.islink(one) else folders).append(one)
        return root, [*files, *_walk(folders, left_out, problems, links)]
    if location and path.is_dir():
        return path, list(_walk([path], left_out, problems))
    return path.parent, [path] if location and path.exists() else []


def _walk(roots, left_out, problems, linked=()):
    """The files of folders, linked folders included: each once, even if several paths lead to it."""

    def on_error(error):
        reason = error.strerror or error
        problems.append(f'{error.filename}: The folder cannot be read ({reason}). Allow it, or move it away.')

    tops, seen = [os.fspath(path) for path in (*roots, *linked)], set()
    for number, top in enumerate(tops):  # links join it on the way
        local = is_local(top)
        real = os.path.realpath if local else os.fspath
        above = os.path.join(real(os.path.dirname(top)), '')
        if number >= len(roots) and (real(top) in seen or above.startswith(os.path.join(real(top), ''))):
            left_out['link to a folder that is read anyway'] += 1
            continue
        walk = os.walk(top, onerror=on_error) if local else epath.Path(top).walk(on_error=on_error)
        for folder, folders, files in walk:
            seen.add(real(folder))
            paths = [os.path.join(folder, name) for name in sorted(folders) if not _counted(left_out, _unwanted(name))]
            links = [path for path in paths if local and os.path.islink(path)]
            tops += links
            folders[:] = [os.path.basename(path) for path in paths if path not in links and real(path) not in seen]
            for name in files:
                path = epath.Path(folder) / name
                is_table = name.lower().endswith(_JSON) and not _unwanted(name) and has_json_rows(path)
                if is_table or not _counted(left_out, _unwanted(name) or _other_kind(name)):
                    yield path


def _part(name, path, paths, text_column, left_out, unpacked) -> Part | None:
    """The documents of a file; None if none is left. Adds to `unpacked` those of `paths` that are members of it."""
    suffixes = name.lower()
    if is_local(path) and os.path.exists(path) and not os.path.isfile(path):
        raise DocumentError(f'{path}: This is not an ordinary file. Move it away.')
    if suffixes.endswith(_CELLS) or (suffixes.endswith(_JSON) and not has_json_rows(path)):
        raise DocumentError(
            f'{path}: This is a table, not text. Make it JSON lines or parquet, such as with `{_as_rows(path)}`, or '
            'leave it out.'
        )
    if suffixes.endswith((*_TABLES, *_JSON)):
        part = table_part(name, path, text_column)
        if isinstance(part, Part):
            return part
        if text_column and suffixes.endswith(_TABLES):
            other = f' (its {part})' if part else ''
            raise DocumentError(f'{path}: It has no column {text_column!r} of text{other}. Correct data.text_column.')
        none = f'without a column {text_column or _COLUMNS}'
        left_out[f'table {f"whose {part}" if part else none}'] += 1
        return None
    if not suffixes.endswith('.zip'):
        return text_part(name, path)

    def wanted(member: str) -> bool:
        kind = next(filter(None, map(_unwanted, member.split('/'))), '') or _other_kind(member, _TEXTS)
        places = os.path.join(os.path.dirname(name), member), os.path.join(name[: -len('.zip')], member)
        if not kind and (there := [place for place in places if place in paths]):
            kind = 'member of a .zip that is there unpacked'
            unpacked.extend(there)
        return not _counted(left_out, kind)

    return zip_part(name, path, wanted)


def _unwanted(name):
    """The kind of a file or folder that is not meant to be read, by its name; '' for others."""
    if name.endswith(('~', '.swp', '.swo', '.bak')) or (name.startswith('#') and name.endswith('#')):
        return 'copy of an editor'
    return 'hidden' if name.startswith('.') or name == '__MACOSX' else ''


def _other_kind(name, kinds=(*_TEXTS, *_TABLES, '.zip')):
    """The suffix of a file that is not text by its name; '' if it is."""
    if name.lower().endswith(kinds):
        return ''
    stem, suffix = os.path.splitext(name.lower())
    return (os.path.splitext(stem)[1] if suffix == '.gz' else '') + suffix or 'without a suffix'


def _as_rows(path):
    """The shell command that converts another kind of table to one that is read."""
    path = os.fspath(path)
    stem = re.sub(r'\.\w+(\.gz)?$', '', path, flags=re.IGNORECASE)
    if not path.lower().endswith(_CELLS):
        show = 'gzip -dc' if path.lower().endswith('.gz') else 'cat'
        return f"{show} {shlex.quote(path)} | jq -c 'arrays[], objects' > {shlex.quote(f'{stem}.jsonl')}"
    delimiter = '\t' if '.tsv' in path.lower()[-7:] else ','
    options = f'parse_options=csv.ParseOptions(delimiter={delimiter!r}, newlines_in_values=True)'
    code = f'parquet.write_table(csv.read_csv({path!r}, {options}), {f"{stem}.parquet"!r})'
    return f'python -c {shlex.quote(f"from pyarrow import csv, parquet; {code}")}'


def _counted(counts, kind):
    """Counts a kind, unless it is ''; returns whether it was counted."""
    if kind:
        counts[kind] += 1
    return bool(kind)


def _in_words(left_out, form):
    """5 .md, 2 hidden; '' where nothing is left out."""
    if not left_out:
        return ''
    shown = [f'{count:,} {kind}' for kind, count in left_out.most_common(_KINDS_SHOWN)]
    others = left_out.total() - sum(count for _, count in left_out.most_common(_KINDS_SHOWN))
    return form.format(', '.join(shown + ([f'{others:,} others'] if others else [])))
