"""Which examples a split has: held-out ones, limits, the splits that a source has, and the folder of a set."""

import logging
import re

import pytest
from sklearn.model_selection import train_test_split

from gpt1_jax.data.labelled.loading import available_splits, folder_of, load_examples, none_usable, unknown_folders
from gpt1_jax.data.labelled.registry import REGISTRY, custom_dataset
from gpt1_jax.errors import UserError
from helpers import load_files, refusal, write_lines

PAIRS = custom_dataset(kind='entailment', fields=['a', 'b'], labels=['no', 'yes'])


def stories(n):
    return [{'context': f'c{i}', 'endings': [f'a{i}', f'b{i}'], 'label': 1 + i % 2} for i in range(n)]


@pytest.mark.parametrize('n, held_out', [(1871, 374), (748, 374), (747, 149), (20, 4), (2, 1)])
def test_story_cloze_splits_the_validation_file(tmp_path, n, held_out):
    write_lines(tmp_path / 'dev.jsonl.gz', stories(n))
    train, dev = (load_files('story_cloze', tmp_path, split) for split in ('train', 'dev'))
    expected_train, expected_dev = train_test_split(
        [f'c{i}' for i in range(n)], test_size=held_out, random_state=3535999445
    )
    assert train.fields['context'] == expected_train and dev.fields['context'] == expected_dev
    for examples in (train, dev):
        numbers = [int(context[1:]) for context in examples.fields['context']]
        assert examples.fields['endings'] == [[f'a{i}', f'b{i}'] for i in numbers]
        assert examples.labels.tolist() == [i % 2 for i in numbers]
        assert examples.ids == [str(i) for i in numbers]


def test_limit_keeps_the_first(tmp_path):
    write_lines(tmp_path / 'dev.jsonl', stories(30))
    whole = load_files('story_cloze', tmp_path)
    part = load_files('story_cloze', tmp_path, limit=5)
    assert part.fields['context'] == whole.fields['context'][:5] and part.ids == whole.ids[:5]
    assert part.labels.tolist() == whole.labels.tolist()[:5]
    assert len(load_files('story_cloze', tmp_path, limit=500)) == 24
    with pytest.raises(UserError, match='data.limit: The limit 0 is too small'):
        load_files('story_cloze', tmp_path, limit=0)


def test_wrong_splits_and_sources(tmp_path):
    with pytest.raises(UserError, match="no split 'valid'"):
        load_files(PAIRS, tmp_path, 'valid')
    for uri in ('', 'file:/x', 'files:', str(tmp_path)):
        with pytest.raises(UserError, match='The source .* is unknown. Use files:/dir, tfds:name, tokens:/dir'):
            load_examples(PAIRS, uri, 'train')


def test_available_splits(tmp_path):
    for name in ('train.jsonl', 'dev_matched.tsv', 'test_mismatched.csv.gz', 'dev.jsonl'):
        write_lines(tmp_path / name, [{'a': 'x', 'b': 'y'}])
    assert available_splits(REGISTRY['mnli'], f'files:{tmp_path}') == ['train', 'dev', 'test_mismatched']
    assert available_splits(REGISTRY['sst2'], f'files:{tmp_path}') == ['train', 'dev']
    assert available_splits(REGISTRY['story_cloze'], f'files:{tmp_path}') == ['train', 'dev']  # both of dev.jsonl
    assert available_splits(REGISTRY['docs_same'], '') == ['train', 'dev', 'test']
    with pytest.raises(UserError, match='nowhere: This is not a directory'):
        available_splits(REGISTRY['sst2'], f'files:{tmp_path}/nowhere')


def schema(sentence, label):
    return {'sentence': sentence, 'pronoun': 'he', 'candidates': ['A', 'B'], 'label': label}


def schemas(n):
    return [schema(f'A saw B{i} and he ran.', 0) for i in range(n)]


def test_dpr_holds_out_of_its_training_file(tmp_path):
    write_lines(tmp_path / 'train.jsonl', schemas(20))
    contexts = [load_files('dpr', tmp_path, split).fields['context'] for split in ('train', 'dev')]
    assert [len(c) for c in contexts] == [16, 4] and not set(contexts[0]) & set(contexts[1])


def test_the_two_examples_of_a_schema_are_held_out_together(tmp_path):
    write_lines(
        tmp_path / 'train.jsonl',
        [
            schema(f'A saw B{i} because he {verb}.', label)
            for i in range(20)
            for label, verb in enumerate(('looked', 'waved'))
        ],
    )
    contexts = [load_files('dpr', tmp_path, split).fields['context'] for split in ('train', 'dev')]
    assert [len(c) for c in contexts] == [32, 8] and not set(contexts[0]) & set(contexts[1])


@pytest.mark.parametrize('name', ['story_cloze', 'dpr'])
def test_a_users_own_train_and_dev_files_are_both_read(tmp_path, caplog, name):
    """Nothing is held out of one of them, in whichever order they are."""
    make = stories if name == 'story_cloze' else schemas
    write_lines(tmp_path / 'train.jsonl', make(10))
    write_lines(tmp_path / 'val.jsonl', make(14)[10:])
    with caplog.at_level(logging.INFO, logger='absl'):
        found = {
            split: load_files(name, tmp_path, split) for split in available_splits(REGISTRY[name], f'files:{tmp_path}')
        }
    numbers = {
        split: [int(re.search(r'\d+', context)[0]) for context in of.fields['context']] for split, of in found.items()
    }
    assert numbers == {'train': list(range(10)), 'dev': list(range(10, 14))}
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ('INFO', f'{name}: train and dev have a file each, so that nothing is held out.')
    ]


def test_rocstories_beside_the_cloze_test_are_not_read(tmp_path, caplog):
    write_lines(tmp_path / 'val.jsonl', stories(10))
    read = lambda: [load_files('story_cloze', tmp_path, split).fields for split in ('train', 'dev')]
    alone = read()
    assert not caplog.records
    columns = ('storyid', 'storytitle', *(f'sentence{i}' for i in range(1, 6)))
    write_lines(tmp_path / 'train.csv', [dict.fromkeys(columns, 'x')])
    assert read() == alone
    [record] = caplog.records
    assert record.levelname == 'WARNING' and 'There is a file for train that is not read' in record.message


def test_a_mistake_in_a_users_own_train_file_is_told(tmp_path):
    write_lines(tmp_path / 'val.jsonl', stories(10))
    write_lines(tmp_path / 'train.jsonl', [{**stories(1)[0], 'label': 3}])
    assert "train.jsonl, line 1, column 'label': The label 3 is unknown" in refusal('story_cloze', tmp_path)
    write_lines(tmp_path / 'train.jsonl', [{'context': 'c', 'ending': ['a', 'b'], 'label': 1}])
    assert "train.jsonl, line 1: There is no column 'endings'" in refusal('story_cloze', tmp_path)
    write_lines(tmp_path / 'train.jsonl', 'no JSON\n')
    assert 'train.jsonl, line 1: This is not JSON' in refusal('story_cloze', tmp_path)
    assert len(load_files('story_cloze', tmp_path, 'dev')) == 10  # which is right, and nothing is held out of it


def test_a_file_of_a_split_that_the_set_does_not_have_is_named(tmp_path, caplog):
    entry = {'premise': 'a', 'hypothesis': 'b', 'label': 0}
    for name in ('train', 'dev_matched', 'dev_mismatched', 'test'):
        write_lines(tmp_path / f'{name}.jsonl', [entry])
    load_files('mnli', tmp_path, 'dev')
    assert not caplog.records
    load_files('mnli', tmp_path)
    [record] = caplog.records
    assert (
        'There is a file for test that is not read: the splits of mnli are train, validation_matched' in record.message
    )


@pytest.mark.parametrize(
    'name, folders',
    [
        ('sst2', ['sst2', 'SST-2', 'glue_sst2', 'GLUE-SST2']),
        ('stsb', ['STS-B', 'glue_stsb', 'sts_b', 'stsbenchmark']),
        ('scitail', ['sci_tail', 'SciTail', 'SciTailV1.1']),
        ('copa', ['super_glue_copa', 'COPA', 'COPA-resources']),
        ('dpr', ['definite_pronoun_resolution', 'dprd']),
        ('mnli', ['MNLI', 'glue_mnli', 'multinli_1.0']),
        ('snli', ['SNLI', 'snli_1.0']),
        ('story_cloze', ['StoryCloze', 'story_cloze', 'ROCStories', 'cloze_test']),
        ('qqp', ['QQP', 'glue-qqp', 'quora', 'Quora-Question-Pairs']),
        ('race', ['RACE']),
        ('cola', ['CoLA', 'cola_public']),
        ('mrpc', ['MRPC', 'MSRParaphraseCorpus']),
        ('docs_same', ['docs_same']),
    ],
)
def test_folder_of(tmp_path, name, folders):
    for folder in folders:
        (tmp_path / 'other').mkdir(exist_ok=True)
        (tmp_path / folder).mkdir()
        assert {key: folder_of(dataset, tmp_path) for key, dataset in REGISTRY.items()} == (
            dict.fromkeys(REGISTRY) | {name: tmp_path / folder}
        )
        (tmp_path / folder).rmdir()
    (tmp_path / folders[0]).write_text('a file')
    assert folder_of(REGISTRY[name], tmp_path) is None


def test_the_folder_of_a_sets_own_name_is_read(tmp_path, caplog):
    for folder in ('QQP', 'quora', 'books', 'MNLI'):
        (tmp_path / folder).mkdir()
    (tmp_path / 'notes').write_text('a file')
    assert folder_of(REGISTRY['qqp'], tmp_path).name == 'QQP'
    assert f'{tmp_path}: QQP is read for qqp, not quora.' in caplog.text
    assert unknown_folders(tmp_path) == ['books']
    (tmp_path / 'quora_question_pairs').mkdir()
    (tmp_path / 'QQP').rmdir()
    with pytest.raises(UserError, match="There are both quora and quora_question_pairs for the data set 'qqp'"):
        folder_of(REGISTRY['qqp'], tmp_path)


def test_no_set_is_usable():
    message = str(none_usable({'cola': 'cola: It is empty.', 'rte': 'It is gone.', 'wnli': 'wnli: It is gone.'}))
    assert message.startswith(
        'datasets: None of them can be used (cola: It is empty; rte, wnli: It is gone). Set --config.data.'
    )
    assert str(none_usable({})) == 'datasets: The list is empty. Name at least one data set.'


def test_folder_of_mistakes(tmp_path):
    (tmp_path / 'sst2').mkdir()
    (tmp_path / 'SST-2').mkdir()
    with pytest.raises(UserError, match="There are both SST-2 and sst2 for the data set 'sst2'. Keep one"):
        folder_of(REGISTRY['sst2'], tmp_path)
    with pytest.raises(UserError, match='nowhere: This is not a directory'):
        folder_of(REGISTRY['sst2'], tmp_path / 'nowhere')
