"""Tables as text -> entries: .tsv and .csv of any separator, with or without quotes and a header line."""

import codecs
import csv
import re
from collections.abc import Iterable, Iterator, Sequence

from absl import logging
from etils import epath

from gpt1_jax.data.labelled import contents
from gpt1_jax.data.labelled.registry import Dataset
from gpt1_jax.data.labelled.values import shown
from gpt1_jax.errors import UserError

_SEPARATORS = {',': 'commas', '\t': 'tabs', ';': 'semicolons'}
_QUOTED = re.compile(rb'"(?:[^"]++|"")*+"')
_CELL_END = re.compile(rb'[\t\r\n]|\Z')


def table_entries(path: epath.Path, data: bytes, dataset: Dataset) -> Iterator[tuple[str, dict]]:
    """The entries of a table, without blank lines. `data` are the contents of `path`.

    The suffix says what separates the cells, unless another separator makes the first line a header with a column of
    the set, or a row of dataset.columns, and that of the suffix does not. In tables with tabs, quotes are text, unless
    the whole table is written as pandas and Excel write it: quotes stand around cells, those inside are doubled, and
    all rows have the header's number of cells. Whatever differs from the suffix is logged.

    Raises:
      UserError: the table is malformed, or has no header that names a column of the data set.
    """
    first = next((line.rstrip('\r\n') for line in contents.lines(path, data) if line.strip()), '')
    separator = _separator(path, first, dataset)
    quoted = separator != '\t' or _is_quoted(path, data, first, dataset)
    rows = _quoted_rows(path, data, separator) if quoted else _plain_rows(path, data)
    header, kept, broken, first_broken = None, 0, 0, None
    for number, cells in _without_empty_end(path, rows):
        where = f'{path}, line {number}'
        if header is None:
            header, described = _header(where, cells, dataset)
            if header is cells:
                continue
        if _fits(cells, header, dataset):
            kept += 1
            yield where, {name: cell for name, cell in zip(header, cells) if name}
            continue
        broken += 1
        if first_broken is None:
            ends = '; a carriage return ends it, in place of which use a space' if _lone_returns(data) else ''
            first_broken = UserError(
                f'{where}: There are {len(cells)} cells, but {described} ({shown(header)}). Correct the line{ends}.'
            )
        if quoted or not dataset.drop_broken:
            raise first_broken
    if broken > kept:
        raise first_broken
    if broken:
        logging.warning('%s: %d lines have too few or too many cells and are left out.', path, broken)
    if not quoted and (number := _lone_returns(data)):
        logging.warning('%s: %d lines end in a carriage return only, others in a line feed.', path, number)


def _is_header(cells: Iterable[str], dataset: Dataset) -> bool:
    """Whether a column of the set, or another name of one, is among them."""
    names = {*dataset.fields, *dataset.choices, dataset.label_field, *dataset.aliases, *dataset.columns}
    return not names.isdisjoint(cells)


def _fits(cells: Sequence[str], header: Sequence[str], dataset: Dataset) -> bool:
    """Whether there is a cell for each column, except for those at the end that a line may lack."""
    return len(cells) <= len(header) and {*header[len(cells) :]} <= {*dataset.may_lack}


def _header(where: str, cells: list[str], dataset: Dataset) -> tuple[list[str], str]:
    """(the names of the columns, of the first line or of the data set; what asks for so many, for messages)"""
    if dataset.columns and not _is_header(cells, dataset):
        logging.info('%s: There is no header. The columns are taken as %s.', where, ', '.join(dataset.columns))
        return [*dataset.columns], f'a file without a header needs {len({*dataset.columns} - {*dataset.may_lack})}'
    named = [cell for cell in cells if cell]
    if twice := [name for name in named if named.count(name) > 1]:
        raise UserError(f'{where}: Two columns have the same name, {twice[0]!r}. Rename one of them.')
    plain = [cell.strip().lower() for cell in cells]
    if dataset.adapt is None and not any(_is_header([name], dataset) for name in (*cells, *plain)):
        wanted = ', '.join((*dataset.fields, dataset.label_field))
        raise UserError(
            f'{where}: There is no header with columns of the data set ({wanted}), only {shown(cells)}. Write the '
            'names of the columns as the first line.'
        )
    return cells, f'the header names {len(cells)}'


# ----------------------------------------------------------------- separators and quotes


def _separator(path, first: str, dataset: Dataset) -> str:
    csv.field_size_limit(2**31 - 1)  # a cell may be a whole article
    usual = ',' if path.name.lower().removesuffix('.gz').endswith('.csv') else '\t'
    rows = {
        separator: first.split('\t')
        if separator == '\t'
        else next(csv.reader([first], delimiter=separator), []) or ['']
        for separator in (usual, *_SEPARATORS)
    }
    fits = [
        separator
        for separator, cells in rows.items()
        if _is_header((cell.strip('"') for cell in cells), dataset)
        or (dataset.columns and _fits(cells, dataset.columns, dataset))
    ]
    most = usual if len(rows[usual]) > 1 else max(rows, key=lambda separator: len(rows[separator]))
    separator = (*fits, most)[0]
    if separator != usual:
        logging.info('%s: The cells are separated by %s, not %s.', path, _SEPARATORS[separator], _SEPARATORS[usual])
    return separator


def _is_quoted(path, data: bytes, first: str, dataset: Dataset) -> bool:
    """Whether the quotes of a table with tabs are those of pandas and Excel; logs it, also if it is not certain."""
    whole, doubled, spread, bare = _count_quotes(data)
    header_is = all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in first.split('\t'))
    # GLUE's QQP are lines of a quoted table, some of them halves: there doubled quotes are text, as for everyone else.
    doubled_is = doubled and not dataset.drop_broken
    quoted = not bare and (header_is or doubled_is or (spread and not _all_fit(_plain_rows(path, data), dataset)))
    if quoted and _all_fit(_quoted_rows(path, data, '\t'), dataset):
        logging.info('%s: %d cells are in quotes, which are not text, as in tables of pandas or Excel.', path, whole)
        return True
    if doubled or (whole and not bare):
        logging.warning(
            "%s: %d cells are in quotes from end to end, and %d have others. All are kept as text, as in GLUE's "
            'tables. If those around cells are not text, save the table as .csv.',
            path,
            whole,
            bare,
        )
    return False


def _count_quotes(data: bytes) -> tuple[int, int, int, int]:
    """Numbers of cells: (in quotes from end to end, of these with doubled quotes inside, of these with tabs or line
    ends inside, with quotes otherwise)."""
    whole = doubled = spread = bare = 0
    begin = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    at = data.find(b'"')
    while at >= 0:
        pair = _QUOTED.match(data, at)
        ends = (b'', b'\t', b'\r', b'\n')
        if pair and (at == begin or data[at - 1 : at] in ends) and data[pair.end() : pair.end() + 1] in ends:
            inside = pair[0][1:-1]
            whole += 1
            doubled += b'""' in inside
            spread += any(end in inside for end in ends[1:])
            end = pair.end()
        else:
            bare += 1
            end = _CELL_END.search(data, at).start()
        at = data.find(b'"', end)
    return whole, doubled, spread, bare


def _all_fit(rows: Iterable[tuple[int, list[str]]], dataset: Dataset) -> bool:
    header = None
    for _, cells in rows:
        if cells not in ([], ['']):
            header = header or (cells if _is_header(cells, dataset) or not dataset.columns else dataset.columns)
            if not _fits(cells, header, dataset):
                return False
    return True


# ----------------------------------------------------------------- rows, with the numbers of their lines


def _plain_rows(path, data: bytes) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(contents.lines(path, data), 1):
        yield number, line.rstrip('\r\n').split('\t')


def _quoted_rows(path, data: bytes, separator: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(contents.lines(path, data), delimiter=separator, strict=True)
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as error:
        raise UserError(f'{path}, line {reader.line_num}: This is not CSV ({error}). Correct the quotes.') from error


def _without_empty_end(path, rows: Iterable[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    """The rows without blank lines, and without rows of empty cells at the end, which Excel writes."""
    empty = []
    for number, cells in rows:
        if cells in ([], ['']):
            continue
        if any(cells):
            yield from empty
            empty.clear()
            yield number, cells
        else:
            empty.append((number, cells))
    if empty:
        logging.warning('%s: The last %d lines have empty cells only and are left out.', path, len(empty))


def _lone_returns(data: bytes) -> int:
    """The number of carriage returns without a line feed, in a file that has line feeds too."""
    return data.count(b'\r') - data.count(b'\r\n') if b'\n' in data else 0
