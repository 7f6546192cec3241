"""Folders of save_to_disk, written here with pyarrow as `datasets` does."""

import json
import os

import pyarrow as pa
import pytest

from gpt1_jax.data.labelled.registry import custom_dataset
from helpers import load_files, refusal

ROWS = [{'sentence': f'row {i}', 'label': i % 2, 'idx': 7 + i} for i in range(5)]
NAMES = ['negative', 'positive']


def save(folder, files, rows=ROWS, names=NAMES, **state):
    """One split, in `files` files, with its label names as `datasets` writes them."""
    folder.mkdir(parents=True)
    label = {'names': names, '_type': 'ClassLabel'} if names else {'dtype': 'int64', '_type': 'Value'}
    info = {'info': {'features': {'label': label, 'sentence': {'dtype': 'string', '_type': 'Value'}}}}
    table = pa.Table.from_pylist(rows).replace_schema_metadata({'huggingface': json.dumps(info)})
    share = -(-len(rows) // files)
    written = [f'data-{i:05}-of-{files:05}.arrow' for i in range(files)]
    for i, name in enumerate(written):
        with pa.ipc.new_stream(str(folder / name), table.schema) as writer:
            writer.write_table(table.slice(i * share, share), max_chunksize=2)
    state = {'_data_files': [{'filename': name} for name in written], '_split': 'train', **state}
    (folder / 'state.json').write_text(json.dumps(state))
    (folder / 'dataset_info.json').write_text('{}')
    return [folder / name for name in written]


@pytest.mark.parametrize('files', [1, 3])
def test_rows_in_order(tmp_path, files):
    save(tmp_path / 'train', files)
    save(tmp_path / 'validation', 1, ROWS[:2])
    (tmp_path / 'train' / 'cache-0.arrow').write_bytes(b'')
    (tmp_path / 'dataset_dict.json').write_text('{"splits": ["train", "validation"]}')
    train, dev = (load_files('sst2', tmp_path, split) for split in ('train', 'dev'))
    assert train.fields['sentence'] == [f'row {i}' for i in range(5)] and train.labels.tolist() == [0, 1, 0, 1, 0]
    (tmp_path / 'train' / 'state.json').unlink()  # the names of the files tell
    assert load_files('sst2', tmp_path).ids == train.ids
    assert train.ids == ['7', '8', '9', '10', '11'] and len(dev) == 2
    assert 'There is no test.jsonl' in refusal('sst2', tmp_path, 'test')


def test_labels_are_compared_by_name(tmp_path):
    save(tmp_path / 'train', 1, names=NAMES[::-1])
    assert load_files('sst2', tmp_path).labels.tolist() == [1, 0, 1, 0, 1]
    save(tmp_path / 'other' / 'train', 1, names=['bad', 'good'])
    assert 'Its labels are bad, good, those of sst2 negative, positive' in refusal('sst2', tmp_path / 'other')
    save(tmp_path / 'third' / 'train', 1, names=[])
    assert load_files('sst2', tmp_path / 'third').labels.tolist() == [0, 1, 0, 1, 0]
    save(tmp_path / 'test', 1, [{**row, 'label': -1} for row in ROWS])
    assert load_files('sst2', tmp_path, 'test').labels is None


def test_lists_of_a_column(tmp_path):
    choices = custom_dataset(kind='multiple_choice', fields=['text', 'options'], labels=['a', 'b'])
    save(tmp_path / 'train', 1, [{'text': 'x', 'options': ['one', 'two'], 'label': 1}], names=[])
    assert load_files(choices, tmp_path).fields['options'] == [['one', 'two']]


def test_what_is_refused(tmp_path):
    [first, second] = save(tmp_path / 'train', 2)
    second.rename(tmp_path / 'away')
    assert f'There is no {second.name}, which state.json names. Copy the folder again.' in refusal('sst2', tmp_path)
    save(tmp_path / 'other' / 'train', 1, _indices_data_files=[{'filename': 'indices.arrow'}])
    assert 'keeps a selection of rows beside the table' in refusal('sst2', tmp_path / 'other')
    data = first.read_bytes()
    (tmp_path / 'away').rename(second)
    for damaged in (b'ARROW', data[: len(data) // 2], b''):
        first.write_bytes(damaged)
        assert f'{first}: This is not a whole table of save_to_disk (' in refusal('sst2', tmp_path)
        assert "ds.to_json('train.jsonl')" in refusal('sst2', tmp_path)
    first.unlink()
    os.mkfifo(first)
    assert f'{first}: This is not an ordinary file' in refusal('sst2', tmp_path)


def test_a_table_with_wrong_offsets(tmp_path):
    """They would be read outside the file."""
    [path] = save(tmp_path / 'train', 1)
    data = path.read_bytes()
    offsets = b''.join(i.to_bytes(4, 'little') for i in (0, 5, 10))
    assert data.count(offsets) >= 1
    path.write_bytes(data.replace(offsets, offsets[:8] + (2**30).to_bytes(4, 'little')))
    assert 'This is not a whole table' in refusal('sst2', tmp_path)
