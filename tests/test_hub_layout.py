"""Which files of a data set's repository hold which split."""

import pytest
from etils import epath

from gpt1_jax import hub
from gpt1_jax.data import hub_layout
from gpt1_jax.errors import UserError
from helpers import write_parquet

NAME = 'someone/some-set'


def layout_of(tmp_path, files, readme='', rest=None, **kwargs):
    """Of a local copy, whose files are all the same small one."""
    folder = tmp_path / 'copy'
    write_parquet(tmp_path / 'any.parquet', {'text': ['a']})
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((tmp_path / 'any.parquet').read_bytes())
    if readme:
        (folder / 'README.md').write_text(readme)
    return hub_layout.open_layout(rest or str(folder), **kwargs)


def splits_of(layout):
    return {split: files for split, files in layout.splits.items()}


@pytest.mark.parametrize(
    ('files', 'config', 'splits'),
    [
        (['train.parquet', 'test.parquet'], 'default', {'train': ['train.parquet'], 'test': ['test.parquet']}),
        (
            ['data/train-00001-of-00002-0a1b.parquet', 'data/train-00000-of-00002-99ff.parquet'],
            'default',
            {'train': ['data/train-00000-of-00002-99ff.parquet', 'data/train-00001-of-00002-0a1b.parquet']},
        ),
        (
            ['sst2/validation_matched-00000-of-00001.parquet'],
            'sst2',
            {'validation_matched': ['sst2/validation_matched-00000-of-00001.parquet']},
        ),
        (
            ['all/train/0000.parquet', 'all/train/0001.parquet', 'all/test/0000.parquet'],
            'all',
            {'test': ['all/test/0000.parquet'], 'train': ['all/train/0000.parquet', 'all/train/0001.parquet']},
        ),
        (  # of folders that have the names of splits, as Spark and others write them
            ['train/part-0.parquet', 'train/part-1.parquet', 'dev/part-0.parquet'],
            'default',
            {'dev': ['dev/part-0.parquet'], 'train': ['train/part-0.parquet', 'train/part-1.parquet']},
        ),
        (
            ['data/train/a.parquet', 'data/val/validation.parquet'],
            'default',
            {'train': ['data/train/a.parquet'], 'val': ['data/val/validation.parquet']},
        ),
        # A config with the name of a split, which has splits itself.
        (
            ['test/train.parquet', 'test/dev.parquet'],
            'test',
            {'dev': ['test/dev.parquet'], 'train': ['test/train.parquet']},
        ),
        (
            ['train.parquet', '.dev.parquet', '.old/test.parquet', 'data/.x/dev.parquet'],
            'default',
            {'train': ['train.parquet']},
        ),
    ],
)
def test_by_the_names_of_files(tmp_path, files, config, splits):
    layout = layout_of(tmp_path, files)
    assert (layout.config, splits_of(layout)) == (config, splits)
    for split, of_split in splits.items():
        assert layout.paths(split) == [epath.Path(tmp_path) / 'copy' / file for file in of_split]


CARD = """---
license: mit
configs:
- config_name: first
  data_files:
  - split: train
    path: first/a-*
  - split: validation
    path:
    - first/b-*
    - 'first/c.parquet'
- config_name: second
  default: true
  data_files: 'second/**/*.parquet'
- config_name: words
  data_files: words.csv
dataset_info:
- config_name: first
  features:
  - name: text
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': no
          '1': 'yes'
- config_name: second
  features: []
---
# Text
"""
CARD_FILES = ['first/a-1.parquet', 'first/b-1.parquet', 'first/c.parquet', 'second/x/y/z.parquet', 'words.csv']


def test_by_the_head_of_readme(tmp_path):
    layout = layout_of(tmp_path, CARD_FILES, CARD, rest=f'{tmp_path}/copy:first')
    assert splits_of(layout) == {'train': ['first/a-1.parquet'], 'validation': ['first/b-1.parquet', 'first/c.parquet']}
    assert layout.class_names == {'label': ('False', 'yes')}  # what YAML makes of a plain no
    layout = layout_of(tmp_path, CARD_FILES, CARD)
    assert (layout.config, splits_of(layout)) == ('second', {'train': ['second/x/y/z.parquet']})
    assert layout_of(tmp_path, CARD_FILES, CARD, preferred=['none', 'first']).config == 'first'
    with pytest.raises(UserError, match=r"copy: It has no config 'words'. Choose one of first, second"):
        layout_of(tmp_path, CARD_FILES, CARD, rest=f'{tmp_path}/copy:words')


@pytest.mark.parametrize(
    'readme',
    [
        '',
        '---\nconfigs: [a, b]\n---\n',
        '---\nconfigs: {\n---\n',
        '# no head',
        '---\n- 1\n---\n',
        '---\nconfigs: 3\n---\n',
        '---\ndataset_info: {features: [{name: a, dtype: {class_label: 3}}]}\n---\n',
        '---\ndataset_info: {features: [{name: a, dtype: {class_label: {names: 3}}}]}\n---\n',
    ],
)
def test_where_readme_says_nothing_the_names_do(tmp_path, readme):
    assert splits_of(layout_of(tmp_path, ['data/train-00000-of-00001.parquet'], readme)) == {
        'train': ['data/train-00000-of-00001.parquet']
    }


def test_dicts_and_lists_of_files(tmp_path):
    readme = (
        '---\nconfigs:\n- config_name: a\n  data_files: {train: "*.parquet", test: [x/1.parquet, "?/2.parquet"]}\n---\n'
    )
    layout = layout_of(tmp_path, ['a.parquet', 'x/1.parquet', 'x/2.parquet', 'xy/2.parquet'], readme)
    assert splits_of(layout) == {'train': ['a.parquet'], 'test': ['x/1.parquet', 'x/2.parquet']}


def test_several_configs_need_a_choice(tmp_path):
    files = [f'{config}/train-00000-of-00001.parquet' for config in ('a', 'b')]
    with pytest.raises(UserError, match=rf'several configs. Add one to the name: hf:{tmp_path}/copy:CONFIG, of a, b\.'):
        layout_of(tmp_path, files)
    assert layout_of(tmp_path, files, rest=f'{tmp_path}/copy:b').config == 'b'
    assert layout_of(tmp_path, [*files, 'train.parquet']).config == 'default'
    years = (
        '---\nconfigs:\n- {config_name: 2019, data_files: a/*}\n'
        '- {config_name: 2020, default: true, data_files: b/*}\n---'
    )
    assert layout_of(tmp_path, files, years).config == '2020'  # which YAML reads as a number


@pytest.mark.parametrize(
    ('names', 'asked', 'found'),
    [
        (['train', 'validation'], 'validation', 'validation'),
        (['train', 'dev'], 'validation', 'dev'),
        (['train', 'val'], 'dev', 'val'),
        (['valid_matched', 'valid_mismatched'], 'validation_mismatched', 'valid_mismatched'),
        (['train', 'test'], 'validation', None),
        (['validity'], 'validation', None),
        (['test'], 'train', None),
    ],
)
def test_words_for_validation(tmp_path, names, asked, found):
    assert layout_of(tmp_path, [f'{name}.parquet' for name in names]).find(asked) == found


def test_two_that_could_be_meant_and_a_part(tmp_path):
    layout = layout_of(tmp_path, ['dev.parquet', 'val.parquet', 'default/partial-train/0000.parquet'])
    with pytest.raises(UserError, match='It has both dev and val. Keep one'):
        layout.find('validation')
    layout = layout_of(tmp_path, [], rest=f'{tmp_path}/copy:default')
    (tmp_path / 'copy/dev.parquet').unlink()
    (tmp_path / 'copy/val.parquet').unlink()
    with pytest.raises(UserError, match='converted only the beginning of its train split'):
        layout_of(tmp_path, []).find('train')


@pytest.mark.parametrize(
    ('files', 'match'),
    [
        (['data/train-00001-of-00003.parquet', 'data/train-00000-of-00003.parquet'], 'Of the 3 files .* number 2'),
        (['a/train/0001.parquet'], 'Of the 2 files .* number 0'),
    ],
)
def test_a_split_that_is_not_whole(tmp_path, files, match):
    with pytest.raises(UserError, match=match + ' is missing'):
        layout_of(tmp_path, files).paths('train')


def test_the_name_of_a_config_on_the_hub(hub_server, tmp_path):
    upload(hub_server, tmp_path, {'a/train.parquet': '', 'b/train.parquet': ''})
    with pytest.raises(UserError, match=rf'Add one to the name: hf:{NAME}:CONFIG, of a, b\.'):
        hub_layout.open_layout(NAME)


def test_only_what_is_near(tmp_path):
    files = ['train.parquet', 'data/dev.parquet', 'data/old/test.parquet', 'backup/test.parquet']
    layout_of(tmp_path, files)
    layout = hub_layout.open_layout(str(tmp_path / 'copy'), near=True)
    assert splits_of(layout) == {'train': ['train.parquet'], 'dev': ['data/dev.parquet']}
    for name in files[:2]:
        (tmp_path / 'copy' / name).unlink()
    folder = epath.Path(tmp_path / 'copy')
    assert hub_layout.has_parquet(folder) and not hub_layout.has_parquet(folder, near=True)


def test_what_is_no_data_set(tmp_path):
    (tmp_path / 'empty').mkdir()
    for rest, match in (
        (str(tmp_path / 'empty'), 'no parquet files. Fetch its files'),
        ('/nowhere', 'neither a folder nor a name on the hub'),
        ('glue', 'neither a folder nor a name on the hub'),
    ):
        with pytest.raises(UserError, match=match):
            hub_layout.open_layout(rest)
    assert not hub_layout.has_parquet(epath.Path(tmp_path / 'empty'))
    assert hub_layout.local_folder(f'{tmp_path}/empty:a') == (epath.Path(tmp_path / 'empty'), 'a')
    assert hub_layout.local_folder('nyu-mll/glue:sst2') is None


def upload(server, tmp_path, files, revision='main'):
    data = write_parquet(tmp_path / 'any.parquet', {'text': ['a']}).read_bytes()
    files = {name: text.encode() if text else data for name, text in files.items()}
    return server.add(NAME, files, kind='dataset', revision=revision)


def test_of_the_hub_only_what_is_read_is_fetched(hub_server, tmp_path):
    upload(hub_server, tmp_path, {'README.md': CARD} | dict.fromkeys(CARD_FILES, ''))
    layout = hub_layout.open_layout(f'{NAME}:first')
    assert [path.read_bytes() for path in layout.paths('train')] == [(tmp_path / 'any.parquet').read_bytes()]
    assert [path.partition('/resolve/')[2][41:] for path in hub_server.fetched()] == ['README.md', 'first/a-1.parquet']


def test_the_hubs_conversion(hub_server, tmp_path, caplog):
    caplog.set_level('INFO', logger='absl')
    upload(hub_server, tmp_path, {'README.md': '# x', 'data.csv': 'a,b'})
    upload(hub_server, tmp_path, {'default/train/0000.parquet': ''}, revision='refs/convert/parquet')
    assert splits_of(hub_layout.open_layout(NAME)) == {'train': ['default/train/0000.parquet']}
    assert "the hub's conversion is read" in caplog.text
    hub.open_repository.cache_clear()
    with pytest.raises(UserError, match='no parquet files. Fetch its files'):
        hub_layout.open_layout(f'{NAME}@main')


def test_without_any_conversion(hub_server, tmp_path):
    upload(hub_server, tmp_path, {'data.csv': 'a,b'})
    with pytest.raises(UserError, match="no revision 'refs/convert/parquet'"):
        hub_layout.open_layout(NAME)
