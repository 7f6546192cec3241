"""Files of labelled data -> entries, each with its place, for error messages."""

import itertools
from collections.abc import Iterator

from etils import epath

from gpt1_jax.data import hub_layout
from gpt1_jax.data.labelled import contents, hub_sets, originals, saved_sets, split_files, table_files
from gpt1_jax.data.labelled.registry import Dataset
from gpt1_jax.errors import UserError
from gpt1_jax.files import parse_json


def file_entries(directory: str, split: str, dataset: Dataset) -> Iterator[tuple[str, dict]]:
    """The entries of the files of the split that the source calls `split`; `split_files.find` says how they are named.

    Raises:
      UserError: there are none, two may be meant, or they are malformed.
    """
    files, dev_list = split_files.find(directory, split, dataset)
    if not files:
        folder, near = _expanded(directory), _near(directory, dataset)
        if not _is_parquet(folder, split, dataset, near):
            raise split_files.missing(directory, split, below=near and not hub_layout.has_parquet(folder, near))
        return hub_sets.entries(dataset, str(folder), split, download=False, near=near)
    if files[0].suffix == '.arrow':
        return saved_sets.entries(dataset, files)
    entries = itertools.chain.from_iterable(_entries(path, dataset) for path in files)
    return originals.divided(entries, dev_list, split != 'train') if dev_list else entries


def has_file(directory: str, split: str, dataset: Dataset) -> bool:
    """Whether file_entries finds a file for this split. Raises UserError if there are two, or no directory."""
    return bool(split_files.find(directory, split, dataset).files) or _is_parquet(
        _expanded(directory), split, dataset, _near(directory, dataset)
    )


def _expanded(directory: str) -> epath.Path:
    return epath.Path(directory).expanduser()


def _near(directory: str, dataset: Dataset) -> bool:
    """Whether parquet files in folders below are left out: if the set has a split in another form here, they are a
    backup or another set. Otherwise the folder may be a copy of a repository of the hub."""
    if not hub_layout.has_parquet(_expanded(directory)):
        return False
    for split in dict.fromkeys(dataset.splits.values()):
        try:
            if split_files.find(directory, split, dataset).files:
                return True
        except UserError:  # it will be raised again when that split is read
            return True
    return False


def _is_parquet(folder: epath.Path, split: str, dataset: Dataset, near: bool) -> bool:
    return hub_layout.has_parquet(folder, near) and hub_sets.has_split(dataset, str(folder), split, False, near)


def _entries(path: epath.Path, dataset: Dataset) -> Iterator[tuple[str, dict]]:
    name, data = path.name.lower().removesuffix('.gz'), contents.read(path)
    if name.endswith('.jsonl'):
        return _jsonl_entries(path, data)
    if name.endswith('.json') or (name.endswith('.txt') and data.lstrip()[:1] in (b'{', b'[')):
        return _json_entries(path, data)
    if name.endswith('.xml'):
        return originals.copa_entries(path, data)
    if name.endswith('.c.txt'):
        return originals.pronoun_entries(path, data)
    return table_files.table_entries(path, data, dataset)


def _jsonl_entries(path, data: bytes) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(contents.lines(path, data), 1):
        if not line.strip():
            continue
        array = ', or name the file .json, as it is one array' if line.lstrip()[0] == '[' else ''
        try:
            entry = parse_json(line)
        except ValueError as error:
            raise UserError(
                f'{path}, line {number}: This is not JSON ({error}). Write one object a line{array}.'
            ) from error
        if not isinstance(entry, dict):
            raise UserError(f'{path}, line {number}: This is not a JSON object. Write one object a line{array}.')
        yield f'{path}, line {number}', entry


def _json_entries(path, data: bytes) -> Iterator[tuple[str, dict]]:
    """The entries of an array of objects, of one object, or of one object per line."""
    text = contents.decode(path, data)
    try:
        value = parse_json(text)
    except ValueError as error:
        if text.lstrip()[:1] != '{':
            raise UserError(f'{path}: This is not JSON ({error}). Write an array of objects, or one a line.') from error
        yield from _jsonl_entries(path, data)
        return
    if isinstance(value, dict):
        if value and all(isinstance(column, dict | list) for column in value.values()):
            raise UserError(
                f'{path}: This is one object of columns. Write one object a line, in pandas by to_json(orient='
                "'records', lines=True)."
            )
        yield str(path), value
        return
    for number, entry in enumerate(value if isinstance(value, list) else [value], 1):
        if not isinstance(entry, dict):
            raise UserError(f'{path}, entry {number}: This is not a JSON object. Write an array of objects.')
        yield f'{path}, entry {number}', entry
