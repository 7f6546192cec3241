"""Folders that `datasets` of Hugging Face wrote with save_to_disk -> entries."""

from collections.abc import Iterator, Sequence

from etils import epath

from gpt1_jax.data import parquet
from gpt1_jax.data.labelled import hub_sets
from gpt1_jax.data.labelled.registry import Dataset
from gpt1_jax.errors import UserError
from gpt1_jax.files import check_file, import_package, parse_json


def files(folder: epath.Path) -> list[epath.Path]:
    """The .arrow files of a split's folder, in order; none if there are none. Raises UserError if some are missing."""
    there = {path.name: path for path in sorted(folder.glob('*.arrow')) if not path.name.startswith('cache-')}
    try:
        state = parse_json((folder / 'state.json').read_bytes())
        names = [file['filename'] for file in state['_data_files']]
        chosen = state.get('_indices_data_files')
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):
        return [*there.values()]
    if chosen:
        raise UserError(
            f'{folder}: The folder keeps a selection of rows beside the table. Write it again, with ds.to_json or '
            'after ds.flatten_indices().'
        )
    if absent := [name for name in names if name not in there]:
        raise UserError(f'{folder}: There is no {absent[0]}, which state.json names. Copy the folder again.')
    return [there[name] for name in names]


def entries(dataset: Dataset, paths: Sequence[epath.Path]) -> Iterator[tuple[str, dict]]:
    """The rows of .arrow files, each with its place; a label's id becomes its name.

    Raises:
      UserError: a file is damaged, or has other labels than `dataset`.
    """
    arrow = import_package('pyarrow', 'folders of save_to_disk cannot be read')
    for path in paths:
        check_file(path)
        try:
            with path.open('rb') as file:
                reader = arrow.ipc.open_stream(file)
                names = hub_sets.label_names(dataset, str(path), parquet.class_names(reader.schema))
                number = 0
                for batch in reader:
                    batch.validate(full=True)  # Arrow trusts the offsets in it
                    for entry in parquet.entries(batch):
                        number += 1
                        where = f'{path}, row {number}'
                        yield where, hub_sets.named(entry, names, where)
        except (arrow.ArrowException, OSError, ValueError, OverflowError) as error:
            reason = str(error).partition('\n')[0].rstrip('. ')
            raise UserError(
                f'{path}: This is not a whole table of save_to_disk ({reason}). Copy it again, or write the split with '
                "ds.to_json('train.jsonl')."
            ) from error
