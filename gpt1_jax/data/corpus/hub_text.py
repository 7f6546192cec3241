"""Running text of the Hugging Face hub, and of local copies of its data sets: a row of a parquet file is a document."""

import itertools

from absl import logging

from gpt1_jax.data import hub_layout, parquet
from gpt1_jax.data.corpus.containers import TEXT_COLUMNS, parquet_texts
from gpt1_jax.data.corpus.documents import Corpus, fingerprint
from gpt1_jax.errors import UserError


def open_hub(rest: str, text_column: str = '', download: bool = True) -> Corpus:
    """Opens hf:REST: its train split, and its validation split, if it has one, as the held-out text.

    text_column: '': the first of TEXT_COLUMNS, or the only one with text. Raises UserError: no such set, none of its
    columns is text, or it cannot be fetched.
    """
    layout = hub_layout.open_layout(rest, download)
    where = layout.repository.where
    splits = {'train': layout.find('train'), 'validation': layout.find('validation')}
    if splits['train'] is None and len(layout.splits) == 1:  # of another name
        splits = {'train': next(iter(layout.splits))}
    if splits['train'] is None:
        raise UserError(f'{where}: There is no train split, only {", ".join(layout.splits)}. Name another set.')
    paths = {split: layout.paths(name) for split, name in splits.items() if name}
    column, metadata = None, {}
    for path in itertools.chain(*paths.values()):
        file = parquet.open_file(path)
        column = column or _text_column(where, file.schema_arrow, text_column)
        if parquet.text_column(file.schema_arrow, [column]) is None:
            other = (
                parquet.other_type(file.schema_arrow, [column]) or f'columns are {", ".join(file.schema_arrow.names)}'
            )
            raise UserError(
                f'{path}: Its {other}, but the text of {where} is column {column}. Name one that all files have '
                'in data.text_column, or another config.'
            )
        metadata[path] = file.metadata
    counts = {split: [metadata[path].num_rows for path in of_split] for split, of_split in paths.items()}
    size = sum(_size(of_file, column) for of_file in metadata.values())
    logging.info('%s: the text is column %r of %s', where, column, ' and '.join(filter(None, splits.values())))

    def names():
        return (f'{split}/{i}' for split in counts for i in range(sum(counts[split])))

    def files(first):
        for path, count in zip(metadata, itertools.chain(*counts.values())):
            if first < count:
                yield from parquet.whole(path, parquet_texts(path, column, first), count - first)
            first = max(0, first - count)

    return Corpus(
        f'hf:{rest}',
        sum(map(sum, counts.values())),
        size,
        fingerprint(layout.repository.commit, [path.name for path in metadata], counts, size),
        names,
        files,
        'validation/' if 'validation' in paths else None,
    )


def _text_column(where, schema, wanted):
    texts, names = parquet.text_columns(schema), [wanted] if wanted else TEXT_COLUMNS
    if found := parquet.text_column(schema, names):
        return found
    if wanted or len(texts) != 1:
        its = (other := parquet.other_type(schema, names)) and f' (its {other})'
        raise UserError(
            f'{where}: None of its columns {", ".join(schema.names)} is called {" or ".join(names)} '
            f'and holds text{its}. Name the one that does in data.text_column, or another config.'
        )
    return texts[0]


def _size(metadata, column):
    """Bytes of a column, about."""
    numbers = [i for i in range(metadata.num_columns) if metadata.schema.column(i).path == column]
    return sum(
        metadata.row_group(group).column(i).total_uncompressed_size
        for group in range(metadata.num_row_groups)
        for i in numbers
    )
