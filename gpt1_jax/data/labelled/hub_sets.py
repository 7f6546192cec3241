"""Labelled data sets of the Hugging Face hub, and local copies of their repositories -> entries.

A label's id becomes its name, by the set's own table: sets have the same labels in different orders.
"""

from collections.abc import Iterator, Mapping

from absl import logging

from gpt1_jax.data import hub_layout, parquet
from gpt1_jax.data.labelled.registry import Dataset
from gpt1_jax.errors import UserError


def entries(
    dataset: Dataset, rest: str, split: str, download: bool = True, near: bool = False
) -> Iterator[tuple[str, dict]]:
    """The entries of a split of hf:REST, each with its place.

    Args:
      split: as the source calls it; other words for validation are found too.
      download: whether the hub may be asked.
      near: see `hub_layout.open_layout`.

    Raises:
      UserError: the split is not there, cannot be fetched or is damaged, or has other labels than `dataset`.
    """
    layout = _open(dataset, rest, download, near)
    name = layout.find(split)
    where = layout.repository.where
    if name is None:
        raise UserError(
            f'{where}: There is no {split} split in config {layout.config!r}, only {", ".join(layout.splits)}. '
            'Name another config or set.'
        )
    paths = layout.paths(name)
    first, *others = layout.splits[name]
    if '/' in first.removeprefix('data/'):  # of a config, or what only looks like one
        more = f' and {len(others)} more' if others else ''
        logging.info('%s: its %s split is %s%s', where, name, first, more)
    for path in paths:
        of_file = parquet.class_names(parquet.open_file(path).schema_arrow)
        names = label_names(dataset, where, {**layout.class_names, **of_file})
        for number, entry in enumerate(parquet.rows(path)):
            row = f'{where}, {path.name}, row {number}'
            yield row, named(entry, names, row)


def has_split(dataset: Dataset, rest: str, split: str, download: bool = True, near: bool = False) -> bool:
    """Whether hf:REST has this split, as the source calls it. Raises UserError if it cannot be read."""
    return _open(dataset, rest, download, near).find(split) is not None


def _open(dataset, rest, download, near):
    preferred = [dataset.hub.partition(':')[2], dataset.name] if dataset.hub else [dataset.name]
    return hub_layout.open_layout(rest, download, preferred, near)


def label_names(dataset: Dataset, where: str, class_names: Mapping) -> Mapping[str, tuple[str, ...]]:
    """column -> the names of its ids, without columns whose names only repeat the ids.

    Raises UserError if the names of the labels are not those of `dataset`.
    """
    names = {column: of_ids for column, of_ids in class_names.items() if of_ids != tuple(map(str, range(len(of_ids))))}
    for column, of_ids in names.items():
        if dataset.aliases.get(column, column) != dataset.label_field:
            continue
        ours = dataset.labels or ()
        if other := [name for name in of_ids if dataset.label_aliases.get(name, name) not in ours]:
            fix = 'Name another set, or read it as your own, with configs/finetune.py:custom.'
            if dataset.name == 'custom':
                fix = f'Set data.labels={",".join(of_ids)}{"" if ours else " and data.max_score=0"}.'
            raise UserError(
                f'{where}: Its labels are {", ".join(of_ids)}, those of {dataset.name} '
                f'{", ".join(ours) or "numbers"}: {other[0]!r} is none of them. {fix}'
            )
    return names


def named(entry: dict, names: Mapping[str, tuple[str, ...]], where: str) -> dict:
    """The entry with the names of labels in place of their ids; -1, which means no label, stays."""
    for column, of_ids in names.items():
        value = entry.get(column)
        if isinstance(value, int) and value >= 0:
            if value >= len(of_ids):
                raise UserError(
                    f'{where}, column {column!r}: There is no label {value}, only 0 to {len(of_ids) - 1}. Get the set '
                    'again.'
                )
            entry[column] = of_ids[value]
    return entry
