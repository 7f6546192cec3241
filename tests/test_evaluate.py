"""One evaluation: its numbers again, from the predictions that it writes. Other data sets are in test_sweep.py."""

import json

import numpy as np
import pytest
from etils import epath

import runs
from configs import convert as convert_config
from gpt1_jax.errors import UserError
from gpt1_jax.evaluation import classification, journal
from gpt1_jax.tasks import convert, evaluate, finetune, pretrain


@pytest.fixture(scope='module', autouse=True)
def _one_device():
    with runs.on_one_device(evaluate, finetune, pretrain):
        yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Data with a test split that has no labels; `run`, a classifier of one epoch."""
    folder = epath.Path(tmp_path_factory.mktemp('evaluate'))
    runs.write_data(folder)
    lines = (folder / 'labelled' / 'dev.jsonl').read_text().splitlines()
    (folder / 'labelled' / 'test.jsonl').write_text(
        '\n'.join(json.dumps({'text': json.loads(line)['text']}) for line in lines)
    )
    pretrain.run(runs.pretraining(folder), folder / 'lm')
    finetune.run(runs.finetuning(folder, folder / 'lm'), folder / 'run')
    return folder


def predictions(workdir, split):
    lines = (workdir / 'predictions' / f'custom_{split}.tsv').read_text().splitlines()
    return [line.split('\t')[1] for line in lines[1:]]


@pytest.mark.parametrize('split', ['train', 'dev'])
def test_the_numbers_are_those_of_the_predictions(folder, tmp_path, capsys, split):
    config = runs.evaluation(folder, folder / 'run')
    config.split = split
    result = evaluate.run(config, epath.Path(tmp_path))
    labels = [json.loads(line)['label'] for line in (folder / 'labelled' / f'{split}.jsonl').read_text().splitlines()]
    pairs = list(zip(labels, predictions(tmp_path, split), strict=True))
    (score,) = result.scores
    assert score.value == sum(one == other for one, other in pairs) / len(pairs)
    assert result.facts['constant'] == max(labels.count('sea'), labels.count('farm')) / len(labels)
    assert (score.dataset, score.split, score.examples) == ('custom', split, len(pairs)) and not score.checkpoint
    for name, of in result.facts['classes'].items():
        right, said = (sum(pair == (name, name) for pair in pairs), sum(other == name for _, other in pairs))
        assert of['examples'] == labels.count(name)
        assert of['recall'] == pytest.approx(right / labels.count(name))
        assert of['precision'] == pytest.approx(right / said if said else 0)
        assert of['f1'] == pytest.approx(2 * right / (said + labels.count(name)))
    assert f'  accuracy, one answer    {result.facts["constant"]:8.4f}\n' in capsys.readouterr().out
    assert set(result.facts['classes']) == {'sea', 'farm'} and result.facts['predictions'].startswith(str(tmp_path))


def test_a_split_without_examples_is_named(folder, tmp_path, monkeypatch):
    encode_split = evaluate.encode_split
    monkeypatch.setattr(evaluate, 'encode_split', lambda *arguments: encode_split(*arguments).take(np.arange(0)))
    with pytest.raises(UserError, match='The dev split has no examples'):
        config = runs.evaluation(folder, folder / 'run')
        config.split = 'dev'
        evaluate.run(config, epath.Path(tmp_path))


def test_without_labels_there_are_predictions_alone(folder, tmp_path):
    """The texts are those of dev."""
    for split in ('dev', 'test'):
        config = runs.evaluation(folder, folder / 'run')
        config.split = split
        result = evaluate.run(config, epath.Path(tmp_path) / split)
        assert bool(result.scores) == ('classes' in result.facts) == ('constant' in result.facts) == (split == 'dev')
    assert predictions(tmp_path / 'test', 'test') == predictions(tmp_path / 'dev', 'dev')


def test_labels_in_another_order_are_the_same_labels(folder, tmp_path):
    """Of a run, and of what it is exported as; of other labels nothing can be said."""
    values = convert_config.get_config()
    values.update(source=str(folder / 'run'), target=f'hf:{tmp_path}/hf')
    convert.run(values, epath.Path(tmp_path) / 'converted')
    assert json.loads((tmp_path / 'hf/config.json').read_text())['id2label'] == {'0': 'sea', '1': 'farm'}
    said = {}
    for name, init_from, labels in (
        ('same', folder / 'run', 'sea,farm'),
        ('other', folder / 'run', 'farm,sea'),
        ('exported', f'hf:{tmp_path}/hf', 'farm,sea'),
    ):
        config = runs.evaluation(folder, init_from)
        config.split, config.data.labels = 'dev', labels
        evaluate.run(config, epath.Path(tmp_path) / name)
        said[name] = predictions(tmp_path / name, 'dev')
    assert said['same'] == said['other'] == said['exported']
    config.data.labels = 'sea,mountain'
    with pytest.raises(UserError, match='trained on the labels sea, farm, but .* set --config.data.labels=sea,farm'):
        evaluate.run(config, epath.Path(tmp_path) / 'refused')


def test_a_stopped_run_ends_with_the_bits_of_one_that_was_not(folder, tmp_path, monkeypatch):
    """The logits too, of which the scores are only counts."""
    computed, logits, predictor, steps = [], [], evaluate.make_predictor, classification.prediction
    keep = lambda *args: lambda *more: logits.append(predictor(*args)(*more)) or logits[-1]
    count = lambda *args: lambda *more: computed.append(1) or steps(*args)(*more)
    monkeypatch.setattr(evaluate, 'make_predictor', keep)
    monkeypatch.setattr(classification, 'prediction', count)
    config = runs.evaluation(folder, folder / 'run')
    config.split, config.data.eval_batch_size = 'train', 8
    whole = evaluate.run(config, epath.Path(tmp_path) / 'whole')
    with monkeypatch.context() as patch:
        patch.setattr(journal.PreemptionGuard, 'should_stop', lambda self, step: len(computed) == 7)
        with pytest.raises(SystemExit):
            evaluate.run(config, epath.Path(tmp_path) / 'stopped')
    assert evaluate.run(config, epath.Path(tmp_path) / 'stopped').scores == whole.scores
    assert len(computed) == 2 * 5 and logits[0].tobytes() == logits[1].tobytes()
    assert {path.name for path in (tmp_path / 'stopped').iterdir()} == {
        path.name for path in (tmp_path / 'whole').iterdir()
    }


def test_the_results_of_a_run_are_not_replaced(folder):
    before = (folder / 'run' / 'results.json').read_text()
    with pytest.raises(UserError, match='This is the workdir of a training run'):
        evaluate.run(runs.evaluation(folder, folder / 'run'), folder / 'run')
    assert (folder / 'run' / 'results.json').read_text() == before
