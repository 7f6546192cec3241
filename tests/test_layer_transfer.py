"""Layer transfer: which runs it makes, its table, and what it does again when it was stopped between two of them."""

import json
import shutil

import numpy as np
import pytest
from etils import epath

import runs
from configs import layer_transfer as layer_transfer_config
from gpt1_jax.errors import UserError
from gpt1_jax.report import results
from gpt1_jax.report.results import Result, Score
from gpt1_jax.saved_models import store
from gpt1_jax.tasks import finetune, layer_transfer
from models import make, make_model, released_tokenizer, write_workdir


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """The workdir of a model of two layers, and a folder of data sets with sst2."""
    folder = epath.Path(tmp_path_factory.mktemp('source'))
    tokenizer, draw = released_tokenizer(folder / 'vocabulary', 50), lambda rng, shape: rng.normal(0, 0.1, shape)
    write_workdir(make(folder / 'lm'), *make_model(np.random.default_rng(0), tokenizer, draw=draw))
    (folder / 'data' / 'SST-2').mkdir(parents=True)
    for split in ('train', 'dev'):
        entries = [{'sentence': f'the {"barn" if i % 3 else "ship"} {i}', 'label': int(i % 3 > 0)} for i in range(40)]
        (folder / 'data' / 'SST-2' / f'{split}.jsonl').write_text('\n'.join(map(json.dumps, entries)))
    return folder


def config(folder, name='sst2', **changes):
    config = layer_transfer_config.get_config(name)
    config.update({'init_from': f'{folder}/lm'} | changes)
    config.data.update(source=f'files:{folder}/data', cache='off')
    return config


@pytest.fixture
def trained(monkeypatch):
    """{path: config} of the runs, which are not done: with n layers and seed s their scores are (50 + 10 n + s^2) %
    on dev, 20 points more on training examples, where these are scored, and nonsense elsewhere."""
    configs = {}

    def run(config, workdir):
        configs[workdir] = config
        value = (50 + 10 * config.n_transfer + config.seed**2) / 100
        scores = [
            Score('sst2', 'dev', 'accuracy', 0.01, 40, checkpoint='last', seed=config.seed),
            Score('sst2', 'dev', 'accuracy', value, 40, checkpoint='best', seed=config.seed),
            Score('sst2', 'test', 'accuracy', 0.02, 40, checkpoint='best', seed=config.seed),
        ]
        if config.data.score_train:
            scores.append(Score('sst2', 'train', 'accuracy', value + 0.2, 9, checkpoint='best', seed=config.seed))
        return Result('finetune', scores, {'train_examples': 40}, {'layers': config.n_transfer}, {}, 1.0)

    monkeypatch.setattr(finetune, 'run', run)
    return configs


def test_the_table_has_every_number_of_layers(source, tmp_path, trained, capsys):
    result = layer_transfer.run(config(source, seeds=3), epath.Path(tmp_path))
    table = [
        'sst2, accuracy         train                    dev           ',
        '  layers  runs  median    best   worst  median    best   worst',
        '       0     3    71.0    74.0    70.0    51.0    54.0    50.0',
        '       1     3    81.0    84.0    80.0    61.0    64.0    60.0',
        '       2     3    91.0    94.0    90.0    71.0    74.0    70.0',
        'From 0 to 2 layers the median on dev changes by +20.0 points.',
    ]
    printed = capsys.readouterr().out.splitlines()[1:]
    assert printed == (tmp_path / 'table.txt').read_text().splitlines() == [*table, printed[-1]]
    assert printed[-1].startswith('The paper') and 'all 12' in printed[-1] and '9 points' in printed[-1]
    stored = results.read(epath.Path(tmp_path))
    assert stored.scores == result.scores and stored.task == 'layer_transfer' and stored.config['rest'] == 'fresh'
    assert stored.value(variant='layers1', split='train', seed=2) == pytest.approx(0.84)
    assert stored.facts == {
        'train_examples': {'sst2': {f'layers{n}': 40 for n in range(3)}},
        'glue_average': {},
        'left_out': {},
    }


def test_the_runs_are_those_of_finetune(source, tmp_path, trained):
    layer_transfer.run(config(source, seeds=2, layers=(2, 0), rest='fresh', seed=7), epath.Path(tmp_path))
    paths = [f'sst2/layers{n}/seed{s}' for n in (0, 2) for s in (0, 1)]
    assert [str(path.relative_to(tmp_path)) for path in trained] == paths
    assert json.loads((tmp_path / 'runs.json').read_text()) == [
        {'dataset': 'sst2', 'variant': f'layers{n}', 'seed': 7 + s, 'path': f'sst2/layers{n}/seed{s}'}
        for n in (0, 2)
        for s in (0, 1)
    ]
    alone = layer_transfer_config.finetune.get_config('sst2')
    alone.update(init_from=f'{source}/lm', n_transfer=2, seed=8)
    alone.data.update(source=f'files:{source}/data/SST-2', cache='off', score_train=1000)
    assert trained[tmp_path / paths[-1]].to_dict() == alone.to_dict()


def test_without_training_scores_their_cells_are_empty(source, tmp_path, trained, capsys):
    values = config(source, layers=(1,))
    values.data.score_train = 0
    layer_transfer.run(values, epath.Path(tmp_path))
    assert capsys.readouterr().out.splitlines()[3].split() == ['1', '1', '60.0', '60.0', '60.0']


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'init_from': ''}, '^init_from: It is empty'),
        ({'init_from': '/nowhere'}, '^/nowhere: There is no such folder'),
        (
            {'layers': (0, 3)},
            '^layers: 3 layers cannot be transferred from .*, which has 2. Give numbers from 0 to 2.$',
        ),
        ({'layers': (-1,)}, '^layers: -1 layers'),
        ({'layers': (0.5,)}, '^layers: 0.5 layers'),
    ],
)
def test_what_cannot_be_is_refused_before_training(source, tmp_path, trained, changes, message):
    with pytest.raises(UserError, match=message):
        layer_transfer.run(config(source, **changes), epath.Path(tmp_path))
    assert not trained


def test_a_set_that_is_not_there_is_refused(source, tmp_path, trained):
    with pytest.raises(UserError, match=r'^datasets: None of them can be used .race: \S*data has no folder for it.'):
        layer_transfer.run(config(source, 'race'), epath.Path(tmp_path))


def test_an_lstm_has_one_layer(source, tmp_path, trained, monkeypatch):
    sizes = {'layers': 1, 'width': 16, 'units': 24, 'n_positions': 16}
    saved = store.open_model(f'{source}/lm')
    lstm = saved._replace(architecture=type(saved.architecture)('lstm', sizes))
    monkeypatch.setattr(store, 'open_model', lambda uri: lstm)
    with pytest.raises(UserError, match='^n_transfer: A model of kind lstm cannot have 0 layers .*rest=fresh'):
        layer_transfer.run(config(source, rest='absent'), epath.Path(tmp_path))
    layer_transfer.run(config(source), epath.Path(tmp_path))
    assert [values.n_transfer for values in trained.values()] == [0, 1]


@pytest.mark.parametrize('rest', ['fresh', 'absent'])
def test_it_goes_on_between_two_points(source, tmp_path, rest):
    values, workdir = config(source, layers=(0, 1), rest=rest), epath.Path(tmp_path)
    values.data.update(batch_size=8, epochs=1.0, score_train=8)
    values.optimizer.learning_rate = 0.01
    points = [workdir / 'sst2' / f'layers{n}' / 'seed0' for n in (0, 1)]
    logs = lambda: [(point / 'metrics.jsonl').read_text() for point in points]  # a run that trains again has new times
    with runs.on_one_device(finetune):
        whole = layer_transfer.run(values, workdir)
        before = logs()
        shutil.rmtree(points[0])
        again = layer_transfer.run(values, workdir)
    assert again.scores == whole.scores and len(whole.scores) == 2 * 3
    assert [one == other for one, other in zip(before, logs())] == [False, True]
    for n, point in enumerate(points):
        sizes, whole = (store.open_model(run).architecture.sizes for run in (str(point), f'{source}/lm'))
        assert sizes == (whole if rest == 'fresh' else whole | {'layers': n})


def test_of_mnli_both_dev_sets_count(capsys):
    """As in the report's figure: with all layers matched is 80 and mismatched 60, with none both are 50."""
    values = {'layers0': {'dev': 0.5, 'dev_mismatched': 0.5}, 'layers2': {'dev': 0.8, 'dev_mismatched': 0.6}}
    scores = [
        Score('mnli', split, 'accuracy', value, 9, checkpoint='best', variant=variant)
        for variant, of in values.items()
        for split, value in of.items()
    ]
    facts = {'train_examples': {'mnli': dict.fromkeys(values, 9)}, 'left_out': {}}
    *_, first, last, change, _ = layer_transfer.format_scores(
        Result('layer_transfer', scores, facts, None, {}, 1.0)
    ).splitlines()
    assert first.split() == ['0', '1', *['50.0'] * 3] and last.split() == ['2', '1', *['70.0'] * 3]
    assert change.endswith('changes by +20.0 points; of MNLI the mean of matched and mismatched.')
    scores = [score for score in scores if score.split == 'dev']
    alone = layer_transfer.format_scores(Result('layer_transfer', scores, facts, None, {}, 1.0))
    assert 'changes by +30.0 points; of MNLI matched.' in alone


def test_the_table_of_hand_made_scores():
    """Three seeds with 10 layers, two with 2, one of them without a score on train."""
    values = {
        'layers10': {'dev': (0.5, 0.9, 0.6), 'train': (0.7, 1.0, 0.8)},
        'layers2': {'dev': (0.25, 0.35), 'train': (0.5,)},
    }
    scores = [
        Score('rte', split, 'accuracy', value, 9, checkpoint='best', variant=variant, seed=seed)
        for variant, of in values.items()
        for split, of_seeds in of.items()
        for seed, value in enumerate(of_seeds)
    ]
    facts = {'train_examples': {'rte': dict.fromkeys(values, 9)}, 'left_out': {'rte/layers4/seed0': 'It diverged.'}}
    table = layer_transfer.format_scores(Result('layer_transfer', scores, facts, None, {}, 1.0))
    _, names, few, many, change, _, left_out = table.splitlines()
    assert names.split() == ['layers', 'runs', *2 * ('median', 'best', 'worst')]
    assert few.split() == ['2', '2', '30.0', '35.0', '25.0']
    assert many.split() == ['10', '3', '80.0', '100.0', '70.0', '60.0', '90.0', '50.0']
    assert change == 'From 2 to 10 layers the median on dev changes by +30.0 points.'
    assert left_out == 'rte/layers4/seed0: left out: It diverged.'
