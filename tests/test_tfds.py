"""Data sets that TensorFlow Datasets has prepared: written here, read without a network."""

import pytest

from gpt1_jax.data.labelled.loading import available_splits, load_examples
from gpt1_jax.data.labelled.registry import REGISTRY
from gpt1_jax.errors import UserError

tfds = pytest.importorskip('tensorflow_datasets')


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    return tmp_path


def prepare(data_dir, monkeypatch, name, splits):
    """Lets TFDS's own builder prepare {split: rows} in place of what it would download."""
    cls = tfds.builder_cls(name.partition('/')[0])
    generators = {split: list(enumerate(rows)) for split, rows in splits.items()}
    monkeypatch.setattr(cls, '_split_generators', lambda self, manager: generators)
    cls(config=name.partition('/')[2] or None, data_dir=data_dir).download_and_prepare()


# Not copa and dpr: TFDS imports all of its older data sets for them, which takes a minute.
@pytest.mark.parametrize(
    'name',
    [name for name, dataset in REGISTRY.items() if dataset.uri.startswith('tfds:') and name not in ('copa', 'dpr')],
)
def test_fields_and_labels_are_those_of_tfds(name):
    dataset = REGISTRY[name]
    for uri in dataset.uri.removeprefix('tfds:').split(','):
        features = tfds.builder(uri).info.features
        of_one_entry = {'race': {'article', 'questions', 'options', 'answers'}}  # see adapters.race
        assert of_one_entry.get(name, {*dataset.fields, dataset.label_field}) <= features.keys()
        if 'label' in features and hasattr(features['label'], 'names'):
            assert tuple(features['label'].names) == dataset.labels


def test_sst2(data_dir, monkeypatch):
    def rows(labels):
        return [{'sentence': f'caf\u00e9 number {i}', 'label': label, 'idx': i} for i, label in enumerate(labels)]

    prepare(
        data_dir,
        monkeypatch,
        'glue/sst2',
        {'train': rows([1, 0, 1]), 'validation': rows([0, 1]), 'test': rows([-1, -1])},
    )
    assert available_splits(REGISTRY['sst2'], '') == ['train', 'dev', 'test']
    for split, labels in (('train', [1, 0, 1]), ('dev', [0, 1]), ('test', None)):
        examples = load_examples(REGISTRY['sst2'], '', split)  # the default source is tfds:glue/sst2
        assert (None if examples.labels is None else examples.labels.tolist()) == labels
        assert sorted(zip(examples.ids, examples.fields['sentence'])) == [
            (str(i), f'caf\u00e9 number {i}') for i in range(len(examples))
        ]


def test_race_is_two_sets_with_several_questions_an_entry(data_dir, monkeypatch):
    passage = lambda level, *answers: {
        'article': f'{level} text',
        'example_id': f'{level}1.txt',
        'answers': list(answers),
        'questions': [f'{level} question {i}' for i in range(len(answers))],
        'options': [[f'{level} {i} {letter}' for letter in 'abcd'] for i in range(len(answers))],
    }
    prepare(data_dir, monkeypatch, 'race/high', {'train': [passage('high', 'D', 'A')], 'dev': [passage('high', 'C')]})
    with pytest.raises(UserError, match=r"tfds.load\('race/middle'\); tfds.load\('race/high'\)"):
        load_examples(REGISTRY['race'], '', 'train')
    assert available_splits(REGISTRY['race'], '') == []
    prepare(data_dir, monkeypatch, 'race/middle', {'train': [passage('middle', 'B')], 'test': [passage('middle', 'C')]})
    assert available_splits(REGISTRY['race'], '') == ['train']

    examples = load_examples(REGISTRY['race'], '', 'train')
    assert examples.subsets == ['middle', 'high', 'high'] and examples.labels.tolist() == [1, 3, 0]
    assert examples.fields == {
        'article': ['middle text', 'high text', 'high text'],
        'question': ['middle question 0', 'high question 0', 'high question 1'],
        'options': [[f'{which} {letter}' for letter in 'abcd'] for which in ('middle 0', 'high 0', 'high 1')],
    }


def test_what_is_not_there():
    with pytest.raises(UserError, match=r"tfds.load\('glue/sst2'\).*TFDS_DATA_DIR.*files:/dir"):
        load_examples(REGISTRY['sst2'], 'tfds:glue/sst2', 'train')
    with pytest.raises(UserError, match='no_such_set'):
        load_examples(REGISTRY['sst2'], 'tfds:no_such_set', 'train')
    assert available_splits(REGISTRY['sst2'], 'tfds:no_such_set') == []
