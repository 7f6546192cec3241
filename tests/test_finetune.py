"""One fine-tuning run: which scores it gives, of which checkpoint. Whole programs are in test_main.py."""

import json

import pytest
from etils import epath

import runs
from gpt1_jax.errors import UserError
from gpt1_jax.tasks import evaluate, finetune, pretrain


@pytest.fixture(scope='module', autouse=True)
def _one_device():
    with runs.on_one_device(evaluate, finetune, pretrain):
        yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Data with a labelled test split, which is dev in another order, and a language model `lm`."""
    folder = epath.Path(tmp_path_factory.mktemp('finetune'))
    runs.write_data(folder)
    lines = (folder / 'labelled' / 'dev.jsonl').read_text().splitlines()
    (folder / 'labelled' / 'test.jsonl').write_text('\n'.join(reversed(lines)))
    pretrain.run(runs.pretraining(folder), folder / 'lm')
    return folder


@pytest.fixture(scope='module')
def finished(folder):
    config = runs.finetuning(folder, folder / 'lm')
    # A rate at which a later epoch undoes what an earlier one has learnt.
    config.optimizer.learning_rate, config.data.epochs, config.checkpoint.keep_latest = 0.3, 4.0, 1
    return config, finetune.run(config, folder / 'run')


def log(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def test_the_scores_are_those_of_the_last_and_the_best_checkpoint(folder, finished):
    config, result = finished
    evaluations = [(line['step'], line['dev_accuracy']) for line in log(folder / 'run') if 'dev_accuracy' in line]
    assert [step for step, _ in evaluations] == [5, 10, 15, 20] and result.facts['steps'] == 20
    best = max(evaluations, key=lambda evaluation: evaluation[1])  # the first of equal ones
    found = {(score.split, score.checkpoint): (score.step, score.value) for score in result.scores}
    assert found == {('dev', 'last'): evaluations[-1], ('dev', 'best'): best, ('test', 'best'): best}
    assert best[0] < 20 and best[1] > evaluations[-1][1]  # else the checkpoints could be mixed up
    assert {score.examples for score in result.scores} == {16}


def test_the_predictions_are_those_of_the_best_checkpoint(folder, finished):
    _, result = finished
    labels = [json.loads(line)['label'] for line in (folder / 'labelled' / 'test.jsonl').read_text().splitlines()]
    lines = (folder / 'run' / 'predictions' / 'custom_test.tsv').read_text().splitlines()
    predicted = [line.split('\t')[1] for line in lines[1:]]
    right = sum(one == other for one, other in zip(predicted, labels, strict=True))
    assert right / 16 == result.value(split='test', checkpoint='best')


def test_what_is_finished_is_not_trained_again(folder, finished):
    config, result = finished
    before = log(folder / 'run')
    assert finetune.run(config, folder / 'run').scores == result.scores
    (folder / 'run' / 'results.json').unlink()
    assert finetune.run(config, folder / 'run').scores == result.scores  # evaluated again, from the checkpoints
    assert log(folder / 'run') == before


@pytest.mark.parametrize(('limit', 'expected'), [(None, 40), (9, 9)])
def test_the_limit_is_for_training_examples(folder, tmp_path, limit, expected):
    config = runs.finetuning(folder, folder / 'lm')
    config.data.limit, config.data.epochs = limit, 0.2
    facts = finetune.run(config, epath.Path(tmp_path)).facts
    assert (facts['train_examples'], facts['dev_examples']) == (expected, 16)


@pytest.mark.parametrize('split', ['train', 'dev'])
def test_a_split_without_labels_is_refused_before_training(folder, tmp_path, split):
    for name in ('train', 'dev'):
        entries = [json.loads(line) for line in (folder / 'labelled' / f'{name}.jsonl').read_text().splitlines()]
        if name == split:
            entries = [{'text': entry['text']} for entry in entries]
        (tmp_path / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, entries)))
    config = runs.finetuning(folder, folder / 'lm')
    config.data.source = f'files:{tmp_path}'
    with pytest.raises(UserError, match=f"{split}.jsonl.*'label'"):
        finetune.run(config, epath.Path(tmp_path) / 'run')
    assert not (tmp_path / 'run' / 'checkpoints').exists()
