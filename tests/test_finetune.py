"""One fine-tuning run: which scores it gives, of which checkpoint. Whole programs are in test_main.py."""

import json
import shutil

import jax
import numpy as np
import pytest
import sklearn.metrics
from etils import epath

import runs
from configs import common
from gpt1_jax.data.labelled import packing
from gpt1_jax.errors import UserError
from gpt1_jax.saved_models import store
from gpt1_jax.tasks import evaluate, finetune, pretrain
from gpt1_jax.training.partitioning import Partitioner


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
    # A rate at which a later epoch undoes what an earlier one has learnt; with which seed, the processor decides.
    config.optimizer.learning_rate, config.data.epochs, config.checkpoint.keep_latest = 0.3, 4.0, 1
    for config.seed in range(10):
        result = finetune.run(config, folder / 'run')
        best, last = (result.value(split='dev', checkpoint=checkpoint) for checkpoint in ('best', 'last'))
        if best > last:  # else the checkpoints could be mixed up
            return config, result
        (folder / 'run').rmtree()
    pytest.fail('the last checkpoint is the best with every seed')


class Stop(Exception):
    """Instead of training."""


def trained_on(config, workdir):
    """The examples that a run would train on. Raises what the run raises before that."""

    def stop(encoded, **arguments):
        make(encoded, **arguments)
        raise Stop(encoded)

    make = packing.FinetuningBatches
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop) as stopped:
        patch.setattr(packing, 'FinetuningBatches', stop)
        finetune.run(config, workdir)
    return stopped.value.args[0]


def log(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def test_the_scores_are_those_of_the_last_and_the_best_checkpoint(folder, finished):
    config, result = finished
    evaluations = [(line['step'], line['dev_accuracy']) for line in log(folder / 'run') if 'dev_accuracy' in line]
    assert [step for step, _ in evaluations] == [5, 10, 15, 20] and result.facts['steps'] == 20
    best = max(evaluations, key=lambda evaluation: evaluation[1])  # the first of equal ones
    found = {(score.split, score.checkpoint): (score.step, score.value) for score in result.scores}
    assert found == {('dev', 'last'): evaluations[-1], ('dev', 'best'): best, ('test', 'best'): best}
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


def test_what_is_finished_is_no_other_run_without_its_checkpoints(folder, finished, tmp_path):
    config, result = finished
    workdir = epath.Path(tmp_path / 'run')
    shutil.copytree(folder / 'run', workdir)
    shutil.rmtree(workdir / 'checkpoints')
    assert finetune.run(config, workdir).scores == result.scores
    before, other = (workdir / 'config.json').read_text(), config.copy_and_resolve_references()
    other.optimizer.learning_rate = 0.5
    with pytest.raises(UserError, match=r'another config \(optimizer.learning_rate: 0.3 there, 0.5 now\)'):
        finetune.run(other, workdir)
    assert (workdir / 'config.json').read_text() == before


def test_what_another_task_found_is_not_taken_for_a_run(folder, finished, tmp_path):
    evaluate.run(runs.evaluation(folder, folder / 'run'), epath.Path(tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(UserError, match=r"another config \(task: 'evaluate' there, 'finetune' now\)"):
        finetune.run(runs.finetuning(folder, folder / 'lm'), epath.Path(tmp_path))
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}


@pytest.mark.parametrize('split', ['train', 'dev', 'test'])
def test_a_run_does_not_go_on_with_other_examples(folder, finished, tmp_path, split):
    """With other ones to predict it does: nothing of what it has done depends on them."""
    config, _ = finished
    shutil.copytree(folder / 'run', tmp_path / 'run')
    (tmp_path / 'run' / 'results.json').unlink()
    shutil.move(folder / 'labelled', folder / 'put away')
    try:
        shutil.copytree(folder / 'put away', folder / 'labelled')
        path = folder / 'labelled' / f'{split}.jsonl'
        lines = path.read_text().splitlines()
        labels = {json.loads(line)['label'] for line in lines}
        first = json.loads(lines[0])
        first['label'] = min(labels - {first['label']})
        path.write_text('\n'.join([json.dumps(first), *lines[1:]]))
        if split == 'test':
            finetune.run(config, epath.Path(tmp_path / 'run'))
        else:
            with pytest.raises(UserError, match='Its run began with other data: the content of files:'):
                finetune.run(config, epath.Path(tmp_path / 'run'))
    finally:
        shutil.rmtree(folder / 'labelled')
        shutil.move(folder / 'put away', folder / 'labelled')


def test_the_best_checkpoint_is_damaged_before_the_last_evaluation(folder, finished, tmp_path):
    """What is lost is lost; the best is then another one, in its scores and in its predictions."""
    config, result = finished
    workdir, best = epath.Path(tmp_path / 'run'), next(result.select(split='test')).step
    shutil.copytree(folder / 'run', workdir)
    (workdir / 'results.json').unlink()
    shutil.rmtree(workdir / 'checkpoints' / str(best) / 'params')
    again = finetune.run(config, workdir)
    for score in again.select(checkpoint='best'):
        assert score.step == 20 and score.value == result.value(split='dev', checkpoint='last')
    labels = [json.loads(line)['label'] for line in (folder / 'labelled' / 'test.jsonl').read_text().splitlines()]
    lines = (workdir / 'predictions' / 'custom_test.tsv').read_text().splitlines()[1:]
    right = sum(line.split('\t')[1] == label for line, label in zip(lines, labels, strict=True))
    assert right / 16 == again.value(split='test', checkpoint='best')


@pytest.mark.parametrize(('limit', 'expected'), [(None, 40), (9, 9)])
def test_the_limit_is_for_training_examples(folder, tmp_path, limit, expected):
    config = runs.finetuning(folder, folder / 'lm')
    config.data.limit, config.data.epochs = limit, 0.2
    facts = finetune.run(config, epath.Path(tmp_path)).facts
    assert (facts['train_examples'], facts['dev_examples']) == (expected, 16)


def test_the_log_tells_of_the_labels_and_of_one_answer_to_all(folder, tmp_path, caplog):
    """Two labels in three of train, none of them in dev; and half of dev is in train."""
    train = [{'text': f'the {word}', 'label': 'sea'} for word in ('ship', 'sail', 'wave', 'anchor')] * 2
    dev = [entry | {'label': 'farm'} for entry in train[:2]] + [
        {'text': f'the {word}', 'label': 'farm'} for word in 'ab'
    ]
    for split, lines in (('train', train), ('dev', dev)):
        (tmp_path / f'{split}.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    config = runs.finetuning(folder, folder / 'lm')
    config.data.update(source=f'files:{tmp_path}', epochs=1.0, metrics='accuracy,f1')
    with caplog.at_level('INFO', logger='absl'):
        result = finetune.run(config, epath.Path(tmp_path) / 'run')
    told = [record.message for record in caplog.records if record.levelname == 'WARNING']
    assert told == [
        'custom: The train split has no example of 1 of the 2 labels: farm. Check that it is whole, and how its labels '
        'are named.',
        'custom: The dev split has no example of 1 of the 2 labels: sea. Check that it is whole, and how its labels '
        'are named.',
        'custom: 2 of the 4 dev examples are training examples too, whatever their labels. A score on these says '
        'nothing about others.',
    ]
    assert 'custom, train split: 8 examples: sea 8, farm 0' in caplog.text
    assert caplog.text.count("custom: F1 is that of the label 'farm'") == 1
    assert result.facts['dev_constant'] == 1.0 and '; always the same answer scores 1.0000' in caplog.text


def test_texts_without_any_word_give_no_nan(folder, tmp_path, caplog):
    lines = [{'text': ' ' * (i % 3), 'label': ('sea', 'farm')[i % 2]} for i in range(8)]
    for split in ('train', 'dev'):
        (tmp_path / f'{split}.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    config = runs.finetuning(folder, folder / 'lm')
    config.data.source = f'files:{tmp_path}'
    result = finetune.run(config, epath.Path(tmp_path) / 'run')
    assert result.value(checkpoint='best') == 0.5
    assert all(np.isfinite(line['loss']) for line in log(tmp_path / 'run') if 'loss' in line)
    assert 'train split of 8 examples: examples without any text: 8.' in caplog.text


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


def test_a_source_that_could_not_tell_its_splits_is_not_taken_for_one_without_a_test_split(
    folder, tmp_path, monkeypatch
):
    """As where a server fails once, and then gives train and dev."""
    monkeypatch.setattr(finetune, 'available_splits', lambda *_: [])
    with pytest.raises(UserError, match='Its splits could not be listed'):
        finetune.run(runs.finetuning(folder, folder / 'lm'), epath.Path(tmp_path) / 'run')


def entries(folder, split):
    return [json.loads(line) for line in (folder / 'labelled' / f'{split}.jsonl').read_text().splitlines()]


def test_the_kept_logits_give_the_best_dev_score(folder, finished):
    _, result = finished
    with np.load(folder / 'run' / 'dev.npz', allow_pickle=False) as file:
        labels, logits = file['labels'], file['logits']
        assert set(file) == {'labels', 'logits'}  # the set has no subsets
    assert logits.shape == (16, 2) and logits.dtype == np.float32
    assert labels.tolist() == [['sea', 'farm'].index(entry['label']) for entry in entries(folder, 'dev')]
    score = sklearn.metrics.accuracy_score(labels, logits.argmax(1))
    assert score == result.value(split='dev', checkpoint='best') != result.value(split='dev', checkpoint='last')


def test_the_kept_errors_are_all_wrong_ones(folder, finished):
    with np.load(folder / 'run' / 'dev.npz', allow_pickle=False) as file:
        predicted = [['sea', 'farm'][label] for label in file['logits'].argmax(1)]
    assert [json.loads(line) for line in (folder / 'run' / 'dev_errors.jsonl').read_text().splitlines()] == [
        {'index': i, 'texts': [entry['text']], 'label': entry['label'], 'prediction': predicted[i]}
        for i, entry in enumerate(entries(folder, 'dev'))
        if predicted[i] != entry['label']
    ]


def test_a_share_is_drawn_with_the_seed_and_kept_in_order(folder, tmp_path):
    config = runs.finetuning(folder, folder / 'lm')
    config.data.batch_size = 4
    known = [(entry['text'], entry['label']) for entry in entries(folder, 'train')]
    tokenizer = store.open_model(str(folder / 'lm')).tokenizer

    def drawn(seed, share, **changes):
        config.seed, config.data.share = seed, share
        config.update(changes)
        encoded = trained_on(config, epath.Path(tmp_path))
        chosen = list(map(int, encoded.ids))
        assert [sequence[1:-1].tolist() for (sequence,) in encoded.sequences] == [
            list(tokenizer.encode_batch([known[i][0]])[0]) for i in chosen
        ]
        assert [['sea', 'farm'][label] for label in encoded.labels] == [known[i][1] for i in chosen]
        return chosen

    half = drawn(3, 0.5)
    assert half == sorted(np.random.RandomState(3).permutation(40)[:20].tolist())
    assert set(drawn(3, 0.3)) < set(half) and drawn(4, 0.5) != half == drawn(3, 0.5, n_transfer=-1)
    with pytest.raises(UserError, match='^data.batch_size: 4 is more than the 2 training examples'):
        drawn(3, 0.05)
    config.data.limit = 10
    assert drawn(3, 0.5) == sorted(np.random.RandomState(3).permutation(10)[:5].tolist())


def test_training_examples_are_scored_too(folder, tmp_path):
    """Against one unpacked sequence at a time."""
    config = runs.finetuning(folder, folder / 'lm')
    config.data.update(share=0.5, score_train=7, epochs=2.0)
    config.optimizer.learning_rate = 0.1
    workdir = epath.Path(tmp_path) / 'run'
    encoded, result = trained_on(config, workdir), finetune.run(config, workdir)
    assert result.facts['train_examples'] == len(encoded.ids) == 20
    partitioner = Partitioner('dp', (1, 1, 1), jax.devices()[:1])
    classifier, params = store.load_model(store.open_model(str(workdir)), common.model_defaults(), partitioner)
    read, right = jax.jit(classifier.read), []
    for i in [0, 2, 5, 8, 11, 14, 17]:  # 20 * 0 / 7, 20 * 1 / 7, ..., rounded down
        (tokens,) = encoded.sequences[i]
        hidden = read(params, np.pad(tokens, (0, 32 - len(tokens)))[None]).hidden
        logits = classifier.classify(params, hidden[:, len(tokens) - 1][None])
        right.append(int(logits.argmax()) == encoded.labels[i])
    (score,) = result.select(split='train')
    assert (score.value, score.examples, score.checkpoint) == (np.mean(right), 7, 'best')
    assert score.step == next(result.select(split='dev', checkpoint='best')).step
    assert 0 < score.value < 1  # else a wrong order of the examples would not show


def test_a_run_of_no_layers(folder, tmp_path):
    """Its workdir says that it has none, and opens so."""
    workdir = epath.Path(tmp_path) / 'run'
    config = runs.finetuning(folder, folder / 'lm')
    config.update(n_transfer=0, rest='absent')
    result = finetune.run(config, workdir)
    assert json.loads((workdir / 'model.json').read_text())['architecture'] == runs.TINY | {'layers': 0}
    assert store.open_model(str(workdir)).architecture.sizes == result.model['sizes'] == runs.TINY | {'layers': 0}
    rows = store.open_model(str(workdir)).vocab_size + 3 + 32
    assert result.model['parameters'] == rows * 16 + 16 * 2 + 2
    again = evaluate.run(runs.evaluation(folder, workdir), epath.Path(tmp_path) / 'evaluate')
    assert again.value(split='dev') == result.value(split='dev', checkpoint='best')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'n_transfer': 2}, '^n_transfer: 2 layers cannot be transferred from .*lm'),
        ({'n_transfer': -1, 'rest': 'absent'}, '^n_transfer: With -1 nothing is transferred'),
    ],
)
def test_layers_that_cannot_be_are_refused_before_there_is_a_workdir(folder, tmp_path, changes, message):
    config = runs.finetuning(folder, folder / 'lm')
    config.update(changes)
    with pytest.raises(UserError, match=message):
        finetune.run(config, epath.Path(tmp_path) / 'run')
    assert not (tmp_path / 'run').exists()
