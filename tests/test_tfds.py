"""Data sets of TensorFlow Datasets: prepared ones are read without a network, others are downloaded first."""

import hashlib
import os
import sys
import threading

import pytest

from gpt1_jax import hub, network
from gpt1_jax.data import tfds as sets
from gpt1_jax.data.labelled.loading import available_splits, load_examples
from gpt1_jax.data.labelled.registry import REGISTRY, custom_dataset
from gpt1_jax.errors import UserError
from helpers import write_parquet
from servers import Server, running

tfds = pytest.importorskip('tensorflow_datasets')


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    monkeypatch.setattr(network, '_faults', {})
    return tmp_path


@pytest.fixture
def no_network(monkeypatch):
    asked = []
    monkeypatch.setattr(
        network, '_ask', lambda server, _: asked.append(server) or f'{server} cannot be reached: no route'
    )
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', '/nowhere')
    hub.open_repository.cache_clear()
    return asked


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


def test_sst2(data_dir, monkeypatch, no_network, caplog):
    caplog.set_level('INFO', logger='absl')

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
    assert sets.count('glue/sst2', 'train') == 3
    with pytest.raises(
        UserError, match="tfds:glue/sst2: There is no split 'dev', only train, validation, test. Prepare"
    ):
        sets.count('glue/sst2', 'dev')
    assert no_network == []  # what is prepared needs none
    assert caplog.text.count('data.source is empty, so tfds:glue/sst2 is read') == 1
    key = dict(kind='classification', fields=('sentence',), labels=('negative', 'positive'), metrics=())
    mine = custom_dataset(**key, label_field='label', uri='tfds:glue/sst2', max_score=0)
    assert available_splits(mine, '') == ['train', 'dev', 'test']
    assert sorted(load_examples(mine, '', 'dev').labels.tolist()) == [0, 1]


def test_race_is_two_sets_with_several_questions_an_entry(data_dir, monkeypatch, no_network):
    passage = lambda level, *answers: {
        'article': f'{level} text',
        'example_id': f'{level}1.txt',
        'answers': list(answers),
        'questions': [f'{level} question {i}' for i in range(len(answers))],
        'options': [[f'{level} {i} {letter}' for letter in 'abcd'] for i in range(len(answers))],
    }
    prepare(data_dir, monkeypatch, 'race/high', {'train': [passage('high', 'D', 'A')], 'dev': [passage('high', 'C')]})
    with pytest.raises(UserError, match=r'tfds:race/middle: The set is not in .*tfds build race/middle'):
        load_examples(REGISTRY['race'], 'tfds:race/middle,race/high', 'train')
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


def test_what_is_not_there(no_network):
    with pytest.raises(
        UserError, match=r'cannot be downloaded \(.*no route\).*tfds build glue/sst2.*TFDS_DATA_DIR.*files:/dir'
    ):
        load_examples(REGISTRY['sst2'], 'tfds:glue/sst2', 'train')
    with pytest.raises(UserError, match='no_such_set: TensorFlow Datasets has no such set'):
        load_examples(REGISTRY['sst2'], 'tfds:no_such_set', 'train')
    with pytest.raises(UserError, match='sci_tail: The set is not in .* and data.download is False'):
        load_examples(REGISTRY['scitail'], 'tfds:sci_tail', 'train', download=False)
    for uri in ('tfds:no_such_set', 'tfds:glue/sst2', ''):
        assert available_splits(REGISTRY['sst2'], uri) == []


def test_no_network_is_found_out_once(no_network):
    """A suite of fifteen sets does not wait fifteen times."""
    for _ in range(3):
        for name in ('sst2', 'snli', 'scitail', 'race'):
            with pytest.raises(UserError) as error:
                load_examples(REGISTRY[name], '', 'train')
    assert len(no_network) == len(set(no_network)) > 3
    message = str(error.value)
    assert message.startswith('race: data.source is empty') and '\n' not in message
    for words in ('TensorFlow Datasets:', 'hub:', 'hf download ehovy/race --repo-type dataset', 'files:DIR'):
        assert words in message


def test_a_set_without_an_open_copy_on_the_hub(no_network):
    with pytest.raises(UserError, match='story_cloze: data.source is empty.*by hand.*has no open copy'):
        load_examples(REGISTRY['story_cloze'], '', 'train')


def test_the_hub_stands_in_for_tfds(hub_server, tmp_path, monkeypatch, caplog):
    caplog.set_level('INFO', logger='absl')
    columns = {'sentence': ['a good one', 'a bad one', 'another good one'], 'label': [1, 0, 1]}
    data = write_parquet(tmp_path / 'one.parquet', columns).read_bytes()
    files = {f'sst2/{split}-00000-of-00001.parquet': data for split in ('train', 'validation')}
    hub_server.add('nyu-mll/glue', files, kind='dataset')
    ask = network._ask
    monkeypatch.setattr(
        network, '_ask', lambda server, seconds: ask(server, seconds) if server == hub_server.url else 'no route'
    )
    assert load_examples(REGISTRY['sst2'], '', 'train').labels.tolist() == [1, 0, 1]
    assert available_splits(REGISTRY['sst2'], '') == ['train', 'dev']
    assert caplog.text.count('data.source is empty, so hf:nyu-mll/glue:sst2 is read') == 1
    assert 'no route' in caplog.text


# ----------------------------------------------------------------- downloads

FILES = {'/one.txt': b'a first text\nand one more\n' * 500, '/two.txt': b'the second\n'}


class Letters(tfds.core.GeneratorBasedBuilder):
    """Two files of a server, a line an example."""

    VERSION = tfds.core.Version('1.0.0')
    url = ''
    url_infos = {}

    def _info(self):
        return self.create_dataset_info(tfds.features.FeaturesDict({'text': tfds.features.Text()}))

    def create_dataset_info(self, features):
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, manager):
        paths = [manager.download(f'{self.url}{file}') for file in FILES]  # one after the other
        return {
            'train': (
                (f'{i} {number}', {'text': line.decode()})
                for i, path in enumerate(paths)
                for number, line in enumerate(path.read_bytes().splitlines())
            )
        }

    def _generate_examples(self):
        pass


@pytest.fixture
def host(monkeypatch):
    with running(Server()) as server:
        server.files = dict(FILES)
        info = tfds.core.download.checksums.UrlInfo
        monkeypatch.setattr(Letters, 'url', server.url)
        infos = {
            f'{server.url}{file}': info(
                size=len(data), checksum=hashlib.sha256(data).hexdigest(), filename=file.strip('/')
            )
            for file, data in FILES.items()
        }
        monkeypatch.setattr(Letters, 'url_infos', infos)
        monkeypatch.setattr(network, 'SECONDS', 0.5)
        yield server


def texts():
    return sorted(entry['text'] for _, entry in sets.entries('letters', 'train'))


def is_prepared():
    return bool(tfds.builder('letters', data_dir=os.environ['TFDS_DATA_DIR']).info.splits)


EXPECTED = sorted(line for data in FILES.values() for line in data.decode().splitlines())


def test_a_set_is_downloaded_prepared_and_then_read(host, data_dir, caplog):
    caplog.set_level('INFO', logger='absl')
    assert not is_prepared()
    assert texts() == EXPECTED and sets.splits('letters') == {'train'}
    assert is_prepared()
    assert host.fetched() == list(FILES)
    assert texts() == EXPECTED and host.fetched() == list(FILES)
    assert 'tfds:letters: downloading and preparing it in' in caplog.text
    (shard,) = data_dir.glob('letters/*/*train*.tfrecord*')
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match='tfds:letters: The files in .*letters.* are damaged. Delete that folder'):
        texts()


@pytest.mark.parametrize('fault', ['silent', 'dead', 'cut', 'changed', 404, 503])
def test_a_download_that_fails_is_named_and_goes_on_later(host, fault):
    host.faults['/two.txt'] = (99, fault)
    with pytest.raises(
        UserError, match=r'^tfds:letters: The set cannot be downloaded and prepared \(.+\)\. Run the command'
    ) as error:
        texts()
    assert '\n' not in str(error.value) and 'tfds build letters' in str(error.value)
    assert not is_prepared()
    host.faults.clear()
    host.asked.clear()
    assert texts() == EXPECTED
    assert host.fetched() == ['/two.txt']  # the file that was whole is kept


def test_a_host_that_refuses(host):
    host.shutdown()
    host.server_close()
    with pytest.raises(UserError, match=r'tfds:letters: The set is not in .*Connection refused.*tfds build letters'):
        texts()


def test_of_two_at_once_one_downloads(host):
    builders = []
    threads = [threading.Thread(target=lambda: builders.append(sets.open_builder('letters'))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builders) == 2 and host.fetched() == list(FILES)


def test_a_set_that_is_downloaded_by_hand(host, data_dir, monkeypatch):
    monkeypatch.setattr(Letters, 'MANUAL_DOWNLOAD_INSTRUCTIONS', 'Ask its author\n  for the file.')
    monkeypatch.setattr(Letters, '_split_generators', lambda self, manager: {'train': [(0, manager.manual_dir / 'x')]})
    with pytest.raises(UserError, match='must be downloaded by hand. Ask its author for the file. .*/downloads/manual'):
        texts()


def test_a_folder_that_cannot_be_written(host, tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'file'))
    with pytest.raises(UserError, match='file: The folder cannot be written'):
        texts()


def test_a_prepared_set_makes_nothing_be_imported(tmp_path, monkeypatch):
    """A features.json names classes, which TFDS would import from wherever they are."""
    (tmp_path / 'evil_features.py').write_text('raise SystemExit("it ran")\n')
    monkeypatch.syspath_prepend(tmp_path)
    feature = sets._import_tfds().core.features.FeatureConnector
    with pytest.raises(ValueError, match='Could not import evil_features'):
        feature.cls_from_name('evil_features.Text')
    assert 'evil_features' not in sys.modules
    assert feature.cls_from_name('tensorflow_datasets.core.features.text_feature.Text').__name__ == 'Text'
