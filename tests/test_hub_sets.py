"""Labelled sets of the hub: labels by name, splits by name, and what does not fit."""

import dataclasses

import pytest

from gpt1_jax import hub, network
from gpt1_jax.data.labelled import hub_sets
from gpt1_jax.data.labelled.loading import available_splits, load_examples
from gpt1_jax.data.labelled.registry import REGISTRY, SUITES, custom_dataset
from gpt1_jax.errors import UserError
from helpers import write_parquet

SENTENCES = ['a good one', 'a bad one', 'another good one']
# Of every set of 'all': the columns of the copy that Dataset.hub names, with made-up rows; names of the label's ids.
ROWS = {
    'cola': ({'sentence': SENTENCES, 'label': [1, 0, 1], 'idx': [0, 1, 2]}, ('unacceptable', 'acceptable')),
    'sst2': ({'sentence': SENTENCES, 'label': [1, 0, 1], 'idx': [0, 1, 2]}, ('negative', 'positive')),
    'mrpc': (
        {'sentence1': SENTENCES, 'sentence2': SENTENCES, 'label': [1, 0, 1], 'idx': [0, 1, 2]},
        ('not_equivalent', 'equivalent'),
    ),
    'stsb': ({'sentence1': SENTENCES, 'sentence2': SENTENCES, 'label': [1.5, 0.0, 5.0], 'idx': [0, 1, 2]}, None),
    'qqp': (
        {'question1': SENTENCES, 'question2': SENTENCES, 'label': [1, 0, 1], 'idx': [0, 1, 2]},
        ('not_duplicate', 'duplicate'),
    ),
    'mnli': (
        {'premise': SENTENCES, 'hypothesis': SENTENCES, 'label': [1, 0, 2], 'idx': [0, 1, 2]},
        ('entailment', 'neutral', 'contradiction'),
    ),
    'qnli': (
        {'question': SENTENCES, 'sentence': SENTENCES, 'label': [1, 0, 1], 'idx': [0, 1, 2]},
        ('entailment', 'not_entailment'),
    ),
    'rte': (
        {'sentence1': SENTENCES, 'sentence2': SENTENCES, 'label': [1, 0, 1], 'idx': [0, 1, 2]},
        ('entailment', 'not_entailment'),
    ),
    'wnli': (
        {'sentence1': SENTENCES, 'sentence2': SENTENCES, 'label': [1, 0, 1], 'idx': [0, 1, 2]},
        ('not_entailment', 'entailment'),
    ),
    'snli': (
        {'premise': SENTENCES, 'hypothesis': SENTENCES, 'label': [1, -1, 2]},
        ('entailment', 'neutral', 'contradiction'),
    ),
    'scitail': ({'premise': SENTENCES, 'hypothesis': SENTENCES, 'label': ['neutral', 'entails', 'neutral']}, None),
    'race': (
        {
            'example_id': ['high1.txt', 'middle2.txt', 'high3.txt'],
            'article': SENTENCES,
            'answer': ['B', 'A', 'D'],
            'question': SENTENCES,
            'options': [['w', 'x', 'y', 'z']] * 3,
        },
        None,
    ),
    'copa': (
        {
            'premise': SENTENCES,
            'choice1': SENTENCES,
            'choice2': SENTENCES,
            'question': ['cause', 'effect', 'cause'],
            'idx': [0, 1, 2],
            'label': [1, 0, 1],
        },
        ('choice1', 'choice2'),
    ),
    'dpr': (
        {
            'sentence': ['The cat saw the dog because it ran.', 'He hit him so he fell.', 'Ann met Eve when she sang.'],
            'pronoun': ['it', 'he', 'she'],
            'candidates': [['the cat', 'the dog']] * 3,
            'label': [1, 0, 1],
        },
        ('0', '1'),
    ),
}
EXPECTED = {'stsb': [1.5, 0.0, 5.0], 'mnli': [1, 0, 2], 'snli': [1, 2], 'race': [1, 0, 3]}


def upload(server, tmp_path, hub_name, splits, columns, names=None):
    """A repository with one config, as `datasets` uploads one."""
    repository, _, config = hub_name.partition(':')
    path = write_parquet(tmp_path / 'one.parquet', columns, None if names is None else {'label': names})
    files = {f'{config or "data"}/{split}-00000-of-00001.parquet': path.read_bytes() for split in splits}
    return server.add(repository, files, kind='dataset')


@pytest.mark.parametrize('name', [name for name in SUITES['all'] if REGISTRY[name].hub])
def test_every_set_by_its_name_on_the_hub(hub_server, tmp_path, name):
    dataset = REGISTRY[name]
    columns, names = ROWS[name]
    splits = {'dev': 'validation'}.get(dataset.splits['dev'], dataset.splits['dev'])
    upload(hub_server, tmp_path, dataset.hub, {'train', splits}, columns, names)
    uri = f'hf:{dataset.hub}'
    assert available_splits(dataset, uri)[:2] == ['train', 'dev']
    split = 'train' if dataset.splits['train'] != dataset.splits['dev'] else None
    examples = load_examples(dataset, uri, split or 'dev')
    if split:
        assert examples.labels.tolist() == EXPECTED.get(name, [1, 0, 1])
        assert load_examples(dataset, uri, 'dev').labels.tolist() == EXPECTED.get(name, [1, 0, 1])
    if name == 'race':
        assert examples.subsets == ['high', 'middle', 'high']


def test_the_names_on_the_hub():
    assert {name for name in SUITES['all'] if not REGISTRY[name].hub} == {'story_cloze'}  # not open
    for name in SUITES['all']:
        assert not REGISTRY[name].hub or hub.parse(REGISTRY[name].hub).config
    assert REGISTRY['sst2'].hub == 'nyu-mll/glue:sst2' and REGISTRY['docs_same'].hub == ''


SST2 = {'sentence': SENTENCES, 'label': [1, 0, -1]}


def local(tmp_path, columns, names=None, readme='', split='train', **more):
    """A local copy of a repository; the part of its URI after hf:."""
    write_parquet(tmp_path / 'copy' / 'data' / f'{split}-00000-of-00001.parquet', columns, names and {'label': names})
    if readme:
        (tmp_path / 'copy' / 'README.md').write_text(readme)
    return str(tmp_path / 'copy')


def labels_of(rest, name='sst2', split='train'):
    dataset = REGISTRY[name]
    dataset = dataclasses.replace(dataset, drop_unlabelled=True)
    return load_examples(dataset, f'hf:{rest}', split).labels.tolist()


def test_another_order_of_ids(tmp_path):
    assert labels_of(local(tmp_path, SST2, ('negative', 'positive'))) == [1, 0]
    assert labels_of(local(tmp_path, SST2, ('positive', 'negative'))) == [0, 1]
    assert labels_of(local(tmp_path, SST2)) == [1, 0]  # nobody says what the ids mean: as in files
    assert labels_of(local(tmp_path, SST2, ('0', '1'))) == [1, 0]  # which says as little


def test_names_that_readme_says(tmp_path):
    readme = (
        '---\ndataset_info:\n  features:\n  - name: label\n    dtype:\n      class_label:\n        names:\n'
        "          '0': positive\n          '1': negative\n---\n"
    )
    assert labels_of(local(tmp_path, SST2, readme=readme)) == [0, 1]
    # The file knows better than the text beside it.
    assert labels_of(local(tmp_path, SST2, ('negative', 'positive'), readme)) == [1, 0]


def test_more_names_than_ours_and_synonyms(tmp_path):
    columns = {'premise': SENTENCES, 'hypothesis': SENTENCES, 'label': [1, 0, 1]}
    assert labels_of(local(tmp_path, columns, ('neutral', 'entailment')), 'scitail') == [0, 1, 0]
    rest = local(tmp_path, SST2, ('bad', 'good', 'neither'))
    with pytest.raises(UserError, match=r"Its labels are bad, good, neither, those of sst2 negative, positive: 'bad'"):
        labels_of(rest)
    rest = local(tmp_path, SST2 | {'label': [1, 0, 7]}, ('negative', 'positive'))
    with pytest.raises(UserError, match=r"row 2, column 'label': There is no label 7, only 0 to 1"):
        labels_of(rest)


def custom(**labels):
    return custom_dataset(kind='classification', fields=['sentence'], **labels)


@pytest.mark.parametrize(
    ('labels', 'ours', 'fix'),
    [
        ({'labels': ['0', '1']}, '0, 1', 'Set data.labels=neg,pos.'),
        ({'max_score': 1}, 'numbers', 'Set data.labels=neg,pos and data.max_score=0.'),
    ],
)
def test_other_names_than_a_users_own(tmp_path, labels, ours, fix):
    rest = local(tmp_path, SST2 | {'label': [1, 0, 1]}, ('neg', 'pos'))
    with pytest.raises(UserError) as caught:
        load_examples(custom(**labels), f'hf:{rest}', 'train')
    assert str(caught.value).endswith(f"Its labels are neg, pos, those of custom {ours}: 'neg' is none of them. {fix}")
    assert load_examples(custom(labels=['neg', 'pos']), f'hf:{rest}', 'train').labels.tolist() == [1, 0, 1]


def test_a_split_that_is_not_there(tmp_path):
    rest = local(tmp_path, SST2)
    assert available_splits(REGISTRY['sst2'], f'hf:{rest}') == ['train']
    with pytest.raises(UserError, match='There is no dev.jsonl'):  # a folder may have any file
        labels_of(rest, split='dev')
    with pytest.raises(UserError, match="There is no validation split in config 'default', only train"):
        labels_of(f'{rest}:default', split='dev')


def test_a_config_is_found_by_the_name_of_the_set(tmp_path, caplog):
    caplog.set_level('INFO', logger='absl')
    for config in ('cola', 'sst2'):
        write_parquet(tmp_path / config / 'train.parquet', SST2, {'label': ('negative', 'positive')})
    assert labels_of(str(tmp_path)) == [1, 0]
    assert 'of its configs cola, sst2, sst2 is read' in caplog.text


def test_a_local_copy_of_other_files_is_read_as_files(tmp_path):
    (tmp_path / 'train.jsonl').write_text('{"sentence": "a", "label": "positive"}\n')
    assert labels_of(str(tmp_path)) == [1]
    assert available_splits(REGISTRY['sst2'], f'hf:{tmp_path}') == ['train']


def test_no_network_and_data_download(hub_server, tmp_path):
    uri = 'hf:nyu-mll/glue:sst2'
    upload(hub_server, tmp_path, 'nyu-mll/glue:sst2', ['train'], *ROWS['sst2'])
    with pytest.raises(UserError, match='data.download is False.*--repo-type dataset'):
        load_examples(REGISTRY['sst2'], uri, 'train', download=False)
    assert available_splits(REGISTRY['sst2'], uri, download=False) == []
    labels = load_examples(REGISTRY['sst2'], uri, 'train').labels.tolist()
    hub.open_repository.cache_clear()
    hub_server.shutdown()
    hub_server.server_close()
    network._faults.clear()
    assert load_examples(REGISTRY['sst2'], uri, 'train').labels.tolist() == labels  # from the cache
    with pytest.raises(UserError, match='hf download no/thing --repo-type dataset --local-dir DIR'):
        load_examples(REGISTRY['sst2'], 'hf:no/thing', 'train')


def test_rows_are_named(tmp_path):
    where, entry = next(hub_sets.entries(REGISTRY['sst2'], local(tmp_path, SST2, ('negative', 'positive')), 'train'))
    assert where == f'{tmp_path}/copy, train-00000-of-00001.parquet, row 0'
    assert entry == {'sentence': SENTENCES[0], 'label': 'positive'}
