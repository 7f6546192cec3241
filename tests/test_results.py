"""The record of a result: written and read back, searched, and what an older version wrote."""

import json

import pytest
from etils import epath

from gpt1_jax import lock
from gpt1_jax.errors import UserError
from gpt1_jax.report import results
from gpt1_jax.report.results import Result, Score

SCORES = [
    Score('race', 'dev', 'accuracy', 0.5, 10, checkpoint='last', step=20),
    Score('race', 'dev', 'accuracy', 0.75, 10, checkpoint='best', step=10),
    Score('race', 'dev', 'accuracy', 0.25, 4, subset='high', checkpoint='best', step=10, variant='half', seed=3),
]
RESULT = Result(
    task='finetune',
    scores=SCORES,
    facts={'train_examples': 40, 'left_out': {}},
    model={'kind': 'decoder', 'parameters': 7},
    config={'seed': 3, 'data': {'limit': None}},
    seconds=1.5,
)


@pytest.fixture
def workdir(tmp_path):
    RESULT.write(epath.Path(tmp_path) / 'run')
    return epath.Path(tmp_path) / 'run'


def test_what_is_written_is_read_back(workdir):
    assert results.read(workdir) == RESULT


def test_the_file_says_what_made_it(workdir):
    stored = json.loads((workdir / 'results.json').read_text())
    assert stored['format_version'] == 1
    assert {'gpt1_jax', 'jax', 'numpy'} <= set(stored['versions'])
    assert stored['device']['platform'] == 'cpu' and stored['device']['count'] == 8  # conftest.py's
    assert stored['scores'][2] == {
        'dataset': 'race',
        'split': 'dev',
        'metric': 'accuracy',
        'value': 0.25,
        'examples': 4,
        'subset': 'high',
        'checkpoint': 'best',
        'step': 10,
        'variant': 'half',
        'seed': 3,
    }


def test_scores_are_found_by_their_attributes():
    assert list(RESULT.select(split='dev', checkpoint='best')) == SCORES[1:]
    assert RESULT.value(checkpoint='last') == 0.5 and RESULT.value(subset='high', seed=3) == 0.25
    for several_or_none in ({'split': 'dev'}, {'split': 'test'}):
        with pytest.raises(ValueError, match='unpack'):
            RESULT.value(**several_or_none)


def test_nothing_and_an_older_form_are_no_record(workdir):
    assert results.read(workdir / 'elsewhere') is None
    (workdir / 'results.json').write_text('{"dataset": "race", "step": 20, "dev_score": 0.5, "best_dev_score": 0.75}')
    assert results.read(workdir) is None


def test_a_damaged_file_is_named(workdir):
    (workdir / 'results.json').write_text('{"format_version": 1, "sco')
    with pytest.raises(UserError, match=r'results\.json'):
        results.read(workdir)


def test_a_value_that_was_changed_in_the_file_is_found_by_its_seal(workdir):
    stored = (workdir / 'results.json').read_text()
    (workdir / 'results.json').write_text(stored.replace('"value": 0.75', '"value": 0.76', 1))
    with pytest.raises(UserError, match=r'results\.json: .*name another --workdir'):
        results.read(workdir)


def test_a_folder_that_was_removed_is_not_made_anew_for_the_result(tmp_path):
    folder = epath.Path(tmp_path) / 'run'
    with lock.hold(folder):
        folder.rmtree()
        with pytest.raises(UserError, match='run: The folder was removed'):
            RESULT.write(folder)
        assert not folder.exists()


def test_only_the_process_that_writes_leaves_a_result(tmp_path, monkeypatch):
    monkeypatch.setattr(results, 'is_writer', lambda: False)
    RESULT.write(epath.Path(tmp_path) / 'run')
    assert not (tmp_path / 'run').exists()


def test_the_fingerprint_is_of_the_values_alone():
    config = {'seed': 3, 'data': {'limit': None, 'source': 'docs:'}}
    assert results.fingerprint(config) == results.fingerprint(dict(reversed(config.items())))
    assert results.fingerprint(config) != results.fingerprint(config | {'seed': 4})
    assert len(results.fingerprint(config)) == 16 == len(f'{int(results.fingerprint(config), 16):016x}')


@pytest.mark.parametrize(
    ('split', 'metric', 'subset', 'key'),
    [
        ('dev', 'accuracy', '', 'accuracy'),
        ('dev_mismatched', 'accuracy', '', 'mismatched_accuracy'),
        ('dev', 'accuracy', 'middle', 'accuracy_middle'),
    ],
)
def test_the_papers_key_of_a_score(split, metric, subset, key):
    assert results.paper_key(split, metric, subset) == key


def test_the_first_metric_is_of_the_best_checkpoint_and_of_mnli_the_mean():
    score = lambda value, split='dev', metric='accuracy', checkpoint='best', dataset='mnli', **more: Score(
        dataset, split, metric, value, 9, checkpoint=checkpoint, **more
    )
    matched, mismatched = score(0.8), score(0.6, 'dev_mismatched')
    others = [score(0.1, checkpoint='last'), score(0.2, metric='f1'), score(0.3, 'test'), score(0.4, subset='high')]
    assert results.first_metric([*others, matched, mismatched], 'accuracy') == pytest.approx(0.7)
    assert results.first_metric([*others, matched], 'accuracy') == 0.8
    assert results.first_metric(others, 'accuracy') is None
    assert results.first_metric([score(0.9, 'train'), matched], 'accuracy', 'train') == 0.9
    assert results.of_mnli([[score(0.5, dataset='sst2')]]) == results.of_mnli([]) == ''
    mean = '; of MNLI the mean of matched and mismatched'
    assert results.of_mnli([[matched, mismatched], [score(0.5, dataset='sst2')]]) == mean
    assert results.of_mnli([[matched]]) == '; of MNLI matched'
    assert results.of_mnli([[matched], [matched, mismatched]]) == f'{mean} where a run has both, else matched'
