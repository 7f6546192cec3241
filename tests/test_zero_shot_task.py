"""The task zero_shot over the checkpoints of a run, and the evaluator of pre-training."""

import json
import random
import re
import shutil
import types

import jax
import numpy as np
import pytest
from etils import epath

import runs
import zero_shot_sets
from configs import convert as convert_config, zero_shot as config_file
from gpt1_jax.data.tokenizers.sentence_piece import train_sentencepiece
from gpt1_jax.errors import DamagedError, UserError
from gpt1_jax.evaluation import journal, paper, perplexity, zero_shot as heuristics
from gpt1_jax.model.classifier import ClassifierHead
from gpt1_jax.report import results
from gpt1_jax.saved_models import store
from gpt1_jax.tasks import convert, pretrain, zero_shot
from gpt1_jax.training import program
from gpt1_jax.training.checkpoint import Checkpointer
from helpers import some_words
from models import classifier_of, edit, make_model

STEPS = {1: 3.0, 4: 1.0, 16: 2.0}  # step -> the metric that ranks: 4 is the best


@pytest.fixture(scope='module', autouse=True)
def _one_device():
    with runs.on_one_device(zero_shot, pretrain):
        yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """`sets`, a few examples each; `lm`, a run with three checkpoints; `classifier`, one with a head."""
    folder, rng = epath.Path(tmp_path_factory.mktemp('zero_shot')), random.Random(0)
    zero_shot_sets.write_all(folder / 'sets')
    tokenizer = train_sentencepiece([some_words(rng, 12) for _ in range(300)], 320)
    normal = lambda rng, shape: rng.normal(0, 0.3, shape).astype(np.float32)
    for name, head in (('lm', None), ('classifier', ClassifierHead('classification', 2))):
        checkpointer = Checkpointer(folder / name / 'checkpoints', keep_latest=None)
        for step, loss in STEPS.items() if head is None else [(9, 1.0)]:
            saved, params = make_model(
                np.random.default_rng(step), tokenizer, 3 if head else 0, head, normal, n_positions=32
            )
            checkpointer.save(step, {'params': jax.device_put(params)}, {}, {'loss': loss})
        checkpointer.close()
        store.describe_run(
            folder / name,
            classifier_of(saved),
            tokenizer,
            best_metric='loss',
            tokens_before=0 if head is None else None,
            tokens_per_step=100,
        )
    return folder


def config(folder, run='lm@all', **changes):
    config = config_file.get_config()
    config.update(dict(init_from=f'{folder}/{run}') | changes)
    config.data.update(source=f'files:{folder}/sets', batch_size=4)
    return config


@pytest.fixture(scope='module')
def finished(folder):
    return zero_shot.run(config(folder), folder / 'all')


def test_every_checkpoint_is_scored(folder, finished):
    for step in STEPS:
        alone = zero_shot.run(config(folder, f'lm@{step}'), folder / f'only{step}')
        assert alone.scores == list(finished.select(step=step))
        assert alone.facts['checkpoints'] == [c for c in finished.facts['checkpoints'] if c['step'] == step]
    metrics = ['accuracy', 'scaled']
    expected = [('cola', 'matthews'), ('cola', 'scaled')]
    expected += [(name, metric) for name in ('sst2', 'race', 'dpr', 'story_cloze') for metric in metrics]
    expected.append(('copa', 'accuracy'))  # the best of the time is not known
    assert [(score.dataset, score.metric, score.step) for score in finished.scores] == [
        (*of_set, step) for step in STEPS for of_set in expected
    ]
    assert {(score.split, score.examples, score.seed, score.variant) for score in finished.scores} == {
        ('dev', 12, 0, '')
    }
    for score in finished.select(metric='scaled'):
        metric, chance, best = paper.ZERO_SHOT[score.dataset]
        raw = finished.value(dataset=score.dataset, metric=metric, step=score.step)
        assert score.value == pytest.approx((raw - chance) / (best - chance))
    assert [(c['step'], c['tokens_seen']) for c in finished.facts['checkpoints']] == [(1, 100), (4, 400), (16, 1600)]
    assert len({c['cola_threshold'] for c in finished.facts['checkpoints']}) == 3
    assert finished.facts['left_out'] == {} and finished.facts['examples'] == dict.fromkeys(zero_shot_sets.NAMES, 12)
    assert finished.facts['cut']['race'] > 0 and finished.model['tokens_seen'] == 1600
    stored = results.read(folder / 'all')
    assert (stored.scores, stored.facts, stored.model) == (finished.scores, finished.facts, finished.model)


def test_the_best_checkpoint_is_that_of_the_run(folder, finished, tmp_path):
    """Without a metric that ranks them it is the latest."""
    best = zero_shot.run(config(folder, 'lm'), epath.Path(tmp_path / 'best'))
    assert best.scores == list(finished.select(step=4)) and best.model['tokens_seen'] == 400
    shutil.copytree(folder / 'lm', tmp_path / 'unranked')
    edit(tmp_path / 'unranked' / 'model.json', lambda described: described | {'best_metric': None})
    latest = zero_shot.run(config(folder, init_from=f'{tmp_path}/unranked'), epath.Path(tmp_path / 'latest'))
    assert latest.scores == list(finished.select(step=16)) and latest.model['tokens_seen'] == 1600


def test_a_model_with_a_head_is_a_language_model_too(folder, tmp_path):
    result = zero_shot.run(config(folder, 'classifier', datasets=('dpr',)), epath.Path(tmp_path))
    assert [(score.metric, score.step) for score in result.scores] == [('accuracy', 9), ('scaled', 9)]
    assert result.facts['checkpoints'] == [{'step': 9, 'tokens_seen': None, 'cola_threshold': None, 'ties': {'dpr': 0}}]


def test_the_variants_reach_the_heuristics(folder, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(zero_shot.zero_shot, 'answer', lambda one, score, normalised: seen.append((one, normalised)))
    with pytest.raises(AttributeError):  # no finding
        zero_shot.run(
            config(folder, 'lm', start_token=True, length_normalised=False, condition='alone', datasets=('copa',)),
            epath.Path(tmp_path),
        )
    ((questions, normalised),) = seen
    assert not normalised and {window.first for window in questions.windows} == {1}


def test_the_table(folder, finished):
    header, chance, *lines, best, used = (folder / 'all' / 'table.txt').read_text().splitlines()
    assert header.split() == (
        'step tokens cola scaled threshold sst2 scaled race scaled dpr scaled story_cloze scaled copa'.split()
    )
    assert chance.split() == 'chance 0.0 0.00 50.0 0.00 25.0 0.00 50.0 0.00 50.0 0.00 50.0'.split()
    assert best.split() == 'best 35.0 1.00 93.2 1.00 53.3 1.00 76.4 1.00 77.6 1.00'.split()
    for line, checkpoint in zip(lines, finished.facts['checkpoints'], strict=True):
        step, tokens, cola, scaled, threshold, *_, copa = line.split()
        assert (int(step), int(tokens.replace(',', ''))) == (checkpoint['step'], checkpoint['tokens_seen'])
        value = lambda name, metric: finished.value(dataset=name, metric=metric, step=checkpoint['step'])
        assert float(cola) == pytest.approx(100 * value('cola', 'matthews'), abs=0.05)
        assert float(scaled) == pytest.approx(value('cola', 'scaled'), abs=0.005)
        assert float(threshold) == pytest.approx(checkpoint['cola_threshold'], abs=5e-4)
        assert float(copa) == pytest.approx(100 * value('copa', 'accuracy'), abs=0.05)
    assert used == 'examples: ' + ', '.join(f'{name} dev 12' for name in zero_shot_sets.NAMES)


def test_a_stopped_run_goes_on_with_the_next_checkpoint(folder, finished, tmp_path, monkeypatch):
    """Compiled once for all checkpoints, encoded once; what is found is not computed again."""
    workdir, loaded, compiled = epath.Path(tmp_path), [], []
    load_model, text_evaluation = store.load_model, program.text_evaluation

    def load(saved, *rest):
        if stop and len(loaded) == 2:
            raise KeyboardInterrupt
        loaded.append(saved.step())
        return load_model(saved, *rest)

    monkeypatch.setattr(zero_shot.store, 'load_model', load)
    monkeypatch.setattr(
        heuristics, 'load', lambda *args, load=heuristics.load: compiled.append('encoded') or load(*args)
    )
    monkeypatch.setattr(program, 'text_evaluation', lambda *args: compiled.append('compiled') or text_evaluation(*args))
    stop = True
    with pytest.raises(KeyboardInterrupt):
        zero_shot.run(config(folder), workdir)
    assert loaded == [1, 4] and compiled == ['encoded', 'compiled'] and not (workdir / 'results.json').exists()
    stop = False
    with pytest.raises(UserError, match='another config .*start_token: False there, True now'):
        zero_shot.run(config(folder, start_token=True), workdir)
    assert loaded == [1, 4]
    result = zero_shot.run(config(folder), workdir)
    assert loaded == [1, 4, 16] and (result.scores, result.facts) == (finished.scores, finished.facts)
    assert zero_shot.run(config(folder), workdir).scores == finished.scores and loaded == [1, 4, 16]


def test_a_run_that_is_stopped_within_a_checkpoint(folder, finished, tmp_path, monkeypatch):
    """The batches that are done are not computed again; what other checkpoints or data gave is not believed."""
    workdir, made, make, stops = epath.Path(tmp_path / 'out'), [], perplexity._batch, [9]
    monkeypatch.setattr(perplexity, '_batch', lambda *args: made.append(1) or make(*args))
    monkeypatch.setattr(journal.PreemptionGuard, 'should_stop', lambda self, step: len(made) in stops)
    with pytest.raises(SystemExit):
        zero_shot.run(config(folder, 'lm'), workdir)
    stops.clear()
    assert (workdir / 'evaluation.journal').exists() and not (workdir / 'zero_shot.json').exists()
    assert zero_shot.run(config(folder, 'lm'), workdir).scores == list(finished.select(step=4))
    number = len(made) - 1  # one was made, but not computed
    assert not (workdir / 'evaluation.journal').exists()
    zero_shot.run(config(folder, 'lm'), workdir)
    assert len(made) == number + 1
    for name, values in (
        ('checkpoint', lambda entry: entry | {'checkpoint': 'other'}),
        ('content', lambda entry: entry | {'content': entry['content'] | {'copa': 'other'}}),
        ('earlier', lambda entry: {key: entry[key] for key in ('step', 'model', 'findings')}),
    ):
        made.clear()
        edit(workdir / 'zero_shot.json', lambda entries: list(map(values, entries)))
        assert zero_shot.run(config(folder, 'lm'), workdir).scores == list(finished.select(step=4))
        assert len(made) == (0 if name == 'earlier' else number)


def test_damaged_checkpoints_of_all_are_left_out(folder, finished, tmp_path, monkeypatch):
    """Also the last ones; but where none is whole, that is an error."""
    warnings, workdir = [], epath.Path(tmp_path / 'out')
    monkeypatch.setattr(zero_shot.logging, 'warning', lambda message, *values: warnings.append(message % values))
    shutil.copytree(folder / 'lm', tmp_path / 'lm')
    values = config(folder, init_from=f'{tmp_path}/lm@all', datasets=('dpr',))

    def damage(step):
        (tmp_path / f'lm/checkpoints/{step}/record/metadata').write_text('')

    damage(4)
    damage(16)
    result = zero_shot.run(values, workdir)
    assert result.scores == list(finished.select(dataset='dpr', step=1)) and result.model['tokens_seen'] == 100
    told = re.findall(r'/(\d+): The checkpoint is damaged .* It is left out\.', '\n'.join(warnings))
    assert told == ['4', '16']
    damage(1)
    with pytest.raises(DamagedError, match='16: The checkpoint is damaged .* No other checkpoint is whole'):
        zero_shot.run(values, epath.Path(tmp_path / 'none'))


def test_a_checkpoint_that_is_deleted_meanwhile_is_left_out(folder, finished, tmp_path, monkeypatch):
    """By the run, which still trains."""
    shutil.copytree(folder / 'lm', tmp_path / 'lm')
    load_model = zero_shot.store.load_model

    def deleting(*arguments):
        shutil.rmtree(tmp_path / 'lm/checkpoints/4', ignore_errors=True)
        return load_model(*arguments)

    warnings = []
    monkeypatch.setattr(zero_shot.logging, 'warning', lambda message, *values: warnings.append(message % values))
    monkeypatch.setattr(zero_shot.store, 'load_model', deleting)
    values = config(folder, init_from=f'{tmp_path}/lm@all', datasets=('dpr',))
    result = zero_shot.run(values, epath.Path(tmp_path / 'out'))
    assert result.scores == [score for score in finished.select(dataset='dpr') if score.step != 4]
    assert [words for words in warnings if 'deleted' in words] == [
        f'{tmp_path}/lm: The checkpoint of step 4 was deleted meanwhile. It is left out.'
    ]


def test_a_set_that_is_there_only_later_is_scored_then(folder, tmp_path):
    sets, entries = tmp_path / 'sets', [zero_shot_sets.entry('dpr', random.Random(0), i) for i in range(3)]
    zero_shot_sets.write(sets, 'dpr', entries)
    values = config(folder, 'lm', datasets=('dpr', 'story_cloze'))
    values.data.source = f'files:{sets}'
    result = zero_shot.run(values, epath.Path(tmp_path / 'out'))
    assert list(result.facts['left_out']) == ['story_cloze']
    assert 'story_cloze: left out: ' in (tmp_path / 'out' / 'table.txt').read_text()
    zero_shot_sets.write(sets, 'story_cloze', [zero_shot_sets.entry('story_cloze', random.Random(0), 0)])
    result = zero_shot.run(values, epath.Path(tmp_path / 'out'))
    assert {score.dataset for score in result.scores} == {'dpr', 'story_cloze'} and not result.facts['left_out']


@pytest.mark.parametrize(
    ('run', 'changes', 'message'),
    [
        ('lm@5', {}, '.*lm@5: There is no checkpoint of step 5. The steps here are 1, 4, 16.'),
        ('none@all', {}, '.*none: There is no such folder. Name'),
        ('empty@all', {}, '.*empty@all: There is no checkpoint. Name a run that has saved one'),
        ('lm', {'condition': 'with'}, "condition: 'with' is unknown. Choose one of given, alone."),
        ('lm', {'datasets': ('cola', 'rte')}, "datasets: 'rte' is unknown"),
        ('lm', {'init_from': ''}, 'init_from: It is empty'),
        ('lm', {'init_from': '@all'}, 'init_from: It is empty'),
    ],
)
def test_mistakes(folder, tmp_path, run, changes, message):
    if not (folder / 'empty').exists():
        for name in ('model.json', 'tokenizer/tokenizer.json', 'tokenizer/tokenizer.model'):
            (folder / 'empty' / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / 'lm' / name).copy(folder / 'empty' / name)
    with pytest.raises(UserError, match=f'^{message}'):
        zero_shot.run(config(folder, run, **changes), epath.Path(tmp_path))
    assert not list(tmp_path.iterdir())


def test_another_program_s_model_has_no_checkpoints(monkeypatch):
    monkeypatch.setattr(zero_shot.store, 'open_model', lambda init_from: None)
    assert zero_shot._checkpoints('hf:/lm') == ['hf:/lm']
    with pytest.raises(UserError, match='^hf:/lm@all: There is no checkpoint. Name a run that has saved one, or leave'):
        zero_shot._checkpoints('hf:/lm@all')


@pytest.mark.slow
def test_another_program_s_model_that_changed_is_scored_again(folder, tmp_path):
    """Nothing but its parameters tells that it is another."""
    values = config(folder, datasets=('dpr',))
    values.init_from = f'hf:{tmp_path}/hf'
    found = []
    for step in (1, 16):
        export = convert_config.get_config()
        export.update(source=f'{folder}/lm@{step}', target=f'hf:{tmp_path}/{step}')
        convert.run(export, epath.Path(tmp_path / f'convert{step}'))
        shutil.copytree(tmp_path / str(step), tmp_path / 'hf', dirs_exist_ok=True)
        zero_shot.run(values, epath.Path(tmp_path / 'out'))
        found.append(json.loads((tmp_path / 'out/zero_shot.json').read_text()))
    assert len(found[1]) == 1 and found[0][0]['findings'] != found[1][0]['findings'], found


def test_the_workdir_of_a_training_run_is_not_taken(folder):
    with pytest.raises(UserError, match='lm: It holds checkpoints but no config.json'):
        zero_shot.run(config(folder, datasets=('dpr',)), folder / 'lm')


def test_pretraining_names_its_own_keys(folder, monkeypatch):
    monkeypatch.setattr(pretrain, 'load_tokenizer', lambda _: None)
    values = runs.pretraining(folder)
    values.log.zero_shot.update(every=1, datasets=())
    with pytest.raises(UserError, match='^log.zero_shot.datasets: The list is empty. Name at least one'):
        pretrain._zero_shot(values, None, types.SimpleNamespace(directory=folder))


@pytest.mark.slow
def test_during_pretraining(folder, tmp_path):
    """The values are those of the task on the same checkpoints; a period of its own, and the last step."""
    work = epath.Path(tmp_path)
    runs.write_data(work)
    values = runs.pretraining(work)
    values.log.eval_every = 4
    values.checkpoint.keep_every = 3
    values.log.zero_shot.update(
        every=3, source=f'files:{folder}/sets', datasets=('cola', 'dpr', 'copa', 'sst2'), limit=10
    )
    (folder / 'sets' / 'sst2').rename(folder / 'sets' / 'hidden')
    try:
        pretrain.run(values, work / 'lm')
        lines = [json.loads(line) for line in (work / 'lm' / 'metrics.jsonl').read_text().splitlines()]
        logged = {line['step']: line for line in lines if 'zero_shot_dpr' in line}
        assert list(logged) == [3, 6, 8]
        assert [line['step'] for line in lines if 'valid_loss' in line] == [4, 8]
        task = config(folder, datasets=('cola', 'dpr', 'copa', 'sst2'), init_from=f'{work}/lm@all')
        task.data.limit = 10
        result = zero_shot.run(task, work / 'zero_shot')
    finally:
        (folder / 'sets' / 'hidden').rename(folder / 'sets' / 'sst2')
    for step, line in logged.items():
        found = {key: value for key, value in line.items() if key.startswith('zero_shot')}
        scores = [score for score in result.select(step=step) if score.metric != 'scaled']
        assert found == {f'zero_shot_{score.dataset}': pytest.approx(score.value) for score in scores}
        assert len(found) == 3 and {score.examples for score in scores} == {10}
