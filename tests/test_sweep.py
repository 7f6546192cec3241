"""Sweeps from a language model to the table: hand-made scores, real runs, resumed ones, and evaluate on these."""

import json
import pathlib
import random
import shutil
import types
import weakref

import numpy as np
import pytest
import scipy.special
import scipy.stats
from etils import epath

from configs import evaluate as evaluate_config, finetune as finetune_config, pretrain as pretrain_config
from gpt1_jax import peers
from gpt1_jax.data.labelled.registry import REGISTRY
from gpt1_jax.data.labelled.sequences import Encoded
from gpt1_jax.data.labelled.token_folder import write_tokens
from gpt1_jax.errors import DivergedError, UserError
from gpt1_jax.report import collect, results
from gpt1_jax.report.results import Result, Score
from gpt1_jax.saved_models import store
from gpt1_jax.tasks import evaluate, finetune, pretrain, sweep
from gpt1_jax.training import side_by_side
from helpers import SUBJECTS

pytestmark = pytest.mark.slow

TINY = dict(layers=1, width=16, heads=2, mlp_width=32, n_positions=64)


def phrase(rng, subject, n=4):
    return ' '.join(rng.choices(SUBJECTS[subject], k=n))


def pair(rng):
    first, second = rng.choices(list(SUBJECTS), k=2)
    return {'sentence1': phrase(rng, first), 'sentence2': phrase(rng, second)}, int(first == second)


def write(folder, split, entries):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f'{split}.jsonl').write_text('\n'.join(map(json.dumps, entries)))


def sst2(rng):
    subject = rng.choice(list(SUBJECTS))
    return {'sentence': phrase(rng, subject), 'label': int(subject == 'sea')}


def mnli(rng):
    fields, same = pair(rng)
    return {'premise': fields['sentence1'], 'hypothesis': fields['sentence2'], 'label': 0 if same else 2}


def race(rng):
    answer, subject = rng.randrange(4), rng.choice(list(SUBJECTS))
    other = 'farm' if subject == 'sea' else 'sea'
    return {
        'article': phrase(rng, subject, 20),
        'question': 'which one fits?',
        'level': rng.choice(['middle', 'high']),
        'options': [phrase(rng, subject if i == answer else other) for i in range(4)],
        'answer': 'ABCD'[answer],
    }


def stsb(rng):
    fields, same = pair(rng)
    return fields | {'label': 5.0 * same}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Books, a language model pre-trained on them, and the folders of four data sets."""
    folder, rng = epath.Path(tmp_path_factory.mktemp('suite')), random.Random(0)
    (folder / 'books').mkdir()
    for i in range(4):
        text = '\n'.join(f'the {phrase(rng, rng.choice(list(SUBJECTS)))} which one fits?' for _ in range(300))
        (folder / 'books' / f'{i}.txt').write_text(text)
    config = pretrain_config.get_config('tiny')
    config.model.update(TINY)
    config.data.update(
        source=f'text:{folder}/books', vocab_size=320, batch_size=8, tokens=8192, held_out=0.25, workers=1
    )
    config.optimizer.update(warmup_steps=2, learning_rate=0.01)
    config.log.eval_every = 0
    pretrain.run(config, folder / 'lm')
    data = folder / 'data'
    for name, make, kinds in (
        ('SST-2', sst2, ''),
        ('stsb', stsb, ''),
        ('race', race, ''),
        ('mnli', mnli, '_matched _mismatched'),
    ):
        for split, n in (('train', 40), ('dev', 19), ('test', 17)):
            for kind in kinds.split() if split != 'train' and kinds else ['']:
                entries = [make(rng) | {'idx': i} for i in range(n)]
                if split == 'test' and name != 'race':
                    for entry in entries:
                        entry['label'] = -1
                write(data / name, split + kind, entries)
    return folder


def config(folder, name='glue', **changes):
    config = finetune_config.get_config(name)
    config.update(init_from=str(folder / 'lm'), **changes)
    config.data.update(source=f'files:{folder}/data', batch_size=16, epochs=4.0, cache='off')
    config.optimizer.learning_rate = 0.03
    return config


@pytest.fixture(scope='module')
def two_seeds(folder):
    return sweep.run(config(folder, datasets=('sst2',), seeds=2), folder / 'two')


@pytest.fixture(scope='module')
def finished(folder):
    return sweep.run(config(folder, datasets=('wnli', 'stsb', 'mnli', 'race')), folder / 'suite')


def lines(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def logs(workdir):
    """Each line has a time: a run that trains again has another log."""
    return {path: path.read_text() for path in pathlib.Path(workdir).rglob('metrics.jsonl')}


def scores(name, metric, best, last=(), variant='', split='dev', subset=''):
    """One seed a value."""
    return [
        Score(name, split, metric, value, 10, subset, checkpoint, 5, variant, seed)
        for checkpoint, values in (('best', best), ('last', last))
        for seed, value in enumerate(values)
    ]


def table(scores, examples, averages=(), left_out=()):
    facts = {'train_examples': examples, 'glue_average': dict(averages), 'left_out': dict(left_out)}
    return sweep.format_scores(Result('sweep', scores, facts, None, {}, 0.0)).splitlines()


def test_the_summary_of_hand_made_scores():
    given = [
        *scores('rte', 'accuracy', [0.5, 0.9, 0.6], [0.4, 0.8, 0.1]),
        *scores('rte', 'accuracy', [0.3, 0.2], [0.4, 0.1], variant='scratch'),
        *scores('mnli', 'accuracy', [0.7, 0.5], split='dev_mismatched'),
        *scores('race', 'accuracy', [0.25], [0.125], subset='high'),
        *scores('race', 'accuracy', [0.99], split='test'),  # not a dev set
    ]
    assert sweep.summary(given) == {
        ('rte', '', 'dev', '', 'accuracy'): {'median': 0.6, 'best': 0.9, 'worst': 0.5, 'last': 0.4, 'runs': 3},
        ('rte', 'scratch', 'dev', '', 'accuracy'): {'median': 0.25, 'best': 0.3, 'worst': 0.2, 'last': 0.25, 'runs': 2},
        ('mnli', '', 'dev_mismatched', '', 'accuracy'): {
            'median': pytest.approx(0.6),
            'best': 0.7,
            'worst': 0.5,
            'last': None,
            'runs': 2,
        },
        ('race', '', 'dev', 'high', 'accuracy'): {
            'median': 0.25,
            'best': 0.25,
            'worst': 0.25,
            'last': 0.125,
            'runs': 1,
        },
    }


def test_the_table_of_hand_made_scores_beside_the_papers():
    """Tables 2 to 4 of the paper: RTE 56.0 (before 61.7), MNLI-mm 81.4 (80.1), RACE-m 62.9 (60.2), GLUE 72.8 (68.9)."""
    given = [
        *scores('rte', 'accuracy', [0.5, 0.9, 0.6], [0.4, 0.8, 0.1]),
        *scores('mnli', 'accuracy', [0.7], split='dev_mismatched'),
        *scores('race', 'accuracy', [0.25], [0.125], subset='middle'),
    ]
    assert table(given, {'rte': {'': 2490}, 'mnli': {'': 7}, 'race': {'': 8}}, {'': 0.5}, {'copa': 'why'}) == [
        '                                            dev, best epoch             last         paper, test',
        'data set     metric                 train runs  median    best   worst  median     GPT  before',
        'rte          accuracy                2490    3    60.0    90.0    50.0    40.0    56.0    61.7',
        'mnli         mismatched_accuracy        7    1    70.0    70.0    70.0            81.4    80.1',
        'race         accuracy_middle            8    1    25.0    25.0    25.0    12.5    62.9    60.2',
        'GLUE         average                              50.0                            72.8    68.9',
        'copa: left out: why',
    ]


def test_the_table_names_the_variants():
    given = [*scores('dpr', 'accuracy', [0.5], [0.5]), *scores('dpr', 'accuracy', [0.25], [0.25], variant='scratch')]
    assert [line[:59].split() for line in table(given, {'dpr': {'': 4, 'scratch': 2}}, {'scratch': 0.5})[1:]] == [
        ['data', 'set', 'variant', 'metric', 'train', 'runs'],
        ['dpr', 'accuracy', '4', '1'],
        ['dpr', 'scratch', 'accuracy', '2', '1'],
        ['GLUE', 'scratch', 'average'],
    ]


def test_the_table_holds_what_the_runs_say(folder, two_seeds):
    logged = [
        [line['dev_accuracy'] for line in lines(path) if 'dev_accuracy' in line]
        for path in sorted((folder / 'two' / 'sst2').iterdir())
    ]
    (row,) = sweep.summary(two_seeds.scores).values()
    assert [len(values) for values in logged] == [4, 4]  # epochs
    values = [max(values) for values in logged]
    assert row == {
        'median': pytest.approx(sum(values) / 2),
        'best': max(values),
        'worst': min(values),
        'runs': 2,
        'last': pytest.approx(sum(values[-1] for values in logged) / 2),
    }
    assert row['worst'] < row['best']  # otherwise this shows little
    assert [score.seed for score in two_seeds.select(checkpoint='best')] == [0, 1]
    assert two_seeds.facts == {'train_examples': {'sst2': {'': 40}}, 'glue_average': {}, 'left_out': {}}


def test_all_metrics_are_there_and_what_is_left_out_is_named(folder, finished):
    assert list(sweep.summary(finished.scores)) == [
        ('stsb', '', 'dev', '', 'pearson'),
        ('stsb', '', 'dev', '', 'spearman'),
        ('mnli', '', 'dev', '', 'accuracy'),
        ('mnli', '', 'dev_mismatched', '', 'accuracy'),
        ('race', '', 'dev', '', 'accuracy'),
        ('race', '', 'dev', 'high', 'accuracy'),
        ('race', '', 'dev', 'middle', 'accuracy'),
    ]
    assert list(finished.facts['left_out']) == ['wnli'] and finished.facts['glue_average'] == {}
    text = (folder / 'suite' / 'table.txt').read_text()
    assert 'wnli: left out' in text and 'GLUE' not in text
    assert results.read(folder / 'suite').scores == finished.scores


def test_glue_has_an_average_when_all_its_tasks_are_there(folder, tmp_path, monkeypatch):
    """By hand: CoLA at its first metric alone, 0.3; of two F1 and accuracy, 0.3 and 0.5; STS-B likewise; MNLI 0.3 and
    1.0; the other four 0.3: (0.3 + 3 * 0.4 + 0.65 + 4 * 0.3) / 9."""

    def run(run_config, path):
        name = run_config.data.dataset
        values = zip(REGISTRY[name].metrics, (0.3, 0.5))
        given = [one for metric, value in values for one in scores(name, metric, [value])]
        if name == 'mnli':
            given += scores(name, 'accuracy', [1.0], split='dev_mismatched')
        return Result('finetune', given, {'train_examples': 3}, None, {}, 0.0)

    monkeypatch.setattr(finetune, 'run', run)
    monkeypatch.setattr(sweep, '_uris', lambda config: ({name: '' for name in config.datasets}, {}))
    result = sweep.run(config(folder), epath.Path(tmp_path))
    assert result.facts['glue_average'] == {'': pytest.approx(3.35 / 9)}
    assert (tmp_path / 'table.txt').read_text().splitlines()[-1].startswith('GLUE         average' + ' ' * 30 + '37.2')


def test_the_kept_logits_of_dev_give_the_best_scores(folder, finished):
    """By scipy and by counting: of scores, and of a set with subsets."""
    arrays = {}
    for name in ('stsb', 'race', 'mnli'):
        with np.load(folder / 'suite' / name / 'seed0' / 'dev.npz', allow_pickle=False) as file:
            arrays[name] = dict(file)
    value = lambda **wanted: finished.value(split='dev', checkpoint='best', **wanted)
    predicted = scipy.special.softmax(arrays['stsb']['logits'].astype(float), axis=1) @ np.arange(6)
    for metric, function in (('pearson', scipy.stats.pearsonr), ('spearman', scipy.stats.spearmanr)):
        statistic = function(arrays['stsb']['labels'], predicted).statistic
        assert statistic == pytest.approx(value(dataset='stsb', metric=metric), abs=1e-6)
    assert 'subsets' not in arrays['stsb'] and arrays['mnli']['logits'].shape == (19, 3)
    right = arrays['race']['logits'].argmax(1) == arrays['race']['labels']
    for level in ('', 'middle', 'high'):
        members = arrays['race']['subsets'] == level if level else slice(None)
        assert right[members].mean() == value(dataset='race', subset=level)
    errors = [json.loads(line) for line in (folder / 'suite/race/seed0/dev_errors.jsonl').read_text().splitlines()]
    assert [error['index'] for error in errors] == np.flatnonzero(~right).tolist()


def test_a_run_that_diverges_is_left_out_and_the_others_go_on(folder, tmp_path, monkeypatch):
    states = []  # of runs that diverged

    def run(run_config, path):
        if run_config.seed in broken:
            state = np.zeros(3)
            states.append(weakref.ref(state))
            raise DivergedError(f'{path}: The loss was not finite. Lower the rate.')
        assert not any(state() is not None for state in states)
        return Result('finetune', scores('sst2', 'accuracy', [0.8], [0.7]), {'train_examples': 40}, None, {}, 0.0)

    monkeypatch.setattr(finetune, 'run', run)
    broken = {0}
    result = sweep.run(config(folder, datasets=('sst2',), seeds=3), epath.Path(tmp_path))
    assert list(result.facts['left_out']) == ['sst2/seed0'] and len(result.scores) == 4
    assert 'sst2/seed0: left out: ' in (tmp_path / 'table.txt').read_text()
    assert sweep.summary(result.scores)['sst2', '', 'dev', '', 'accuracy']['runs'] == 2
    broken = {0, 1, 2}
    with pytest.raises(UserError, match=r'^datasets: Every run has diverged .\S*seed2: The loss was .* rate.. Lower'):
        sweep.run(config(folder, datasets=('sst2',), seeds=3), epath.Path(tmp_path))


def test_a_base_that_may_train_on_is_told_of(folder, tmp_path, monkeypatch, caplog):
    result = Result('finetune', scores('sst2', 'accuracy', [0.8], [0.7]), {'train_examples': 40}, None, {}, 0.0)
    monkeypatch.setattr(finetune, 'run', lambda run_config, path: result)
    shutil.copytree(folder / 'lm', tmp_path / 'lm')
    values = config(folder, datasets=('sst2',))
    values.init_from = str(tmp_path / 'lm')
    sweep.run(values, epath.Path(tmp_path / 'one'))
    assert 'is not finished' not in caplog.text
    (tmp_path / 'lm' / 'results.json').unlink()
    sweep.run(values, epath.Path(tmp_path / 'two'))
    assert f'{tmp_path}/lm is not finished' in caplog.text


def test_what_one_of_several_processes_cannot_use_is_left_out_by_all(folder, tmp_path, monkeypatch):
    result = Result('finetune', scores('sst2', 'accuracy', [0.8], [0.7]), {'train_examples': 40}, None, {}, 0.0)
    monkeypatch.setattr(finetune, 'run', lambda run_config, path: result)
    monkeypatch.setattr(peers, 'agree', lambda value: [value, {'stsb': 'the hub did not answer'}])
    facts = sweep.run(config(folder, datasets=('sst2', 'stsb', 'wnli')), epath.Path(tmp_path)).facts
    assert list(facts['train_examples']) == ['sst2'] and list(facts['left_out']) == ['wnli', 'stsb']


def test_fewer_examples_than_a_batch_are_found_before_training(folder, tmp_path):
    values = config(folder, datasets=('sst2', 'stsb'))
    values.data.limit = 15
    reason = r'its 15 training examples are fewer than data\.batch_size=16'
    smaller = r'Lower --config\.data\.batch_size, or use more examples\.'
    with pytest.raises(UserError, match=rf'None of them can be used \(sst2, stsb: {reason}\)\. {smaller}$'):
        sweep.run(values, epath.Path(tmp_path))
    values.datasets = ('sst2', 'wnli')  # of which one is not there
    with pytest.raises(UserError, match=rf'sst2: {reason}.* Set --config.data.source to the folder that holds them'):
        sweep.run(values, epath.Path(tmp_path))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'data.rule': 'release'}, "data.rule: The rule 'release' does not fit the data set 'race'"),
        ({'data.score_loss': 'mae'}, "data.score_loss: 'mae' is unknown"),
        ({'seed': 2**32 - 1, 'seeds': 2}, 'seed: 4294967296 is not valid'),
    ],
)
def test_mistakes_of_later_runs_are_told_before_the_first(folder, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(finetune, 'run', lambda *_: pytest.fail('a run has started'))
    values = config(folder, datasets=('mnli', 'race'))
    values.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=f'^{message}'):
        sweep.run(values, epath.Path(tmp_path))


def test_tokens_that_no_run_can_use_are_left_out(folder, tmp_path, monkeypatch):
    """Of the three sets one has no dev split, one is of another set."""
    encoded = Encoded([[[1, 2]]] * 16, np.arange(16) % 2, list(map(str, range(16))), 0, 0)
    for name, of, splits in (('cola', 'cola', 'train dev'), ('rte', 'rte', 'train'), ('mrpc', 'qqp', 'train dev')):
        splits = dict.fromkeys(splits.split(), encoded)
        write_tokens(tmp_path / name, of, splits, fingerprint='', max_length=32, rule='longest')
    result = Result('finetune', scores('cola', 'matthews', [0.8], [0.7]), {'train_examples': 16}, None, {}, 0.0)
    monkeypatch.setattr(finetune, 'run', lambda *_: result)
    values = config(folder, datasets=('cola', 'rte', 'mrpc'))
    values.data.source = f'tokens:{tmp_path}'
    left_out = sweep.run(values, epath.Path(tmp_path / 'out')).facts['left_out']
    assert list(left_out) == ['rte', 'mrpc'], left_out
    assert "There is no split 'dev', only train" in left_out['rte'] and "of the data set 'qqp'" in left_out['mrpc']


def test_predictions_are_of_the_best_seed(folder, two_seeds, finished):
    names = {path.name for path in (folder / 'suite' / 'predictions').iterdir()}
    assert names == {'STS-B.tsv', 'MNLI-m.tsv', 'MNLI-mm.tsv', 'race_test.csv'}
    best = [score.value for score in two_seeds.select(checkpoint='best')]
    written = (folder / 'two' / 'predictions' / 'SST-2.tsv').read_text()
    path = folder / 'two' / 'sst2' / f'seed{best.index(max(best))}' / 'predictions' / 'SST-2.tsv'
    assert written == path.read_text() and len(written.splitlines()) == 18


def test_a_run_has_the_config_of_finetune_alone(folder, two_seeds):
    """So the runs of a suite of earlier versions are resumed: theirs had it too."""
    alone = config(folder, 'sst2', seed=1)
    alone.data.source = f'files:{folder}/data/SST-2'
    stored = json.loads((folder / 'two' / 'sst2' / 'seed1' / 'config.json').read_text())
    assert stored == json.loads(alone.to_json_best_effort())


def test_a_second_call_does_nothing_again(folder, two_seeds):
    times = lambda: {path: path.stat().mtime for path in (folder / 'two').glob('sst2/seed*/results.json')}
    before = times()
    again = sweep.run(config(folder, datasets=('sst2',), seeds=2), folder / 'two')
    assert again.scores == two_seeds.scores and len(before) == 2 and times() == before


def contents(workdir):
    return {path: path.read_bytes() for path in pathlib.Path(workdir).rglob('*.json')}


def test_a_command_that_is_refused_changes_nothing(folder, two_seeds, tmp_path):
    """One run of it is there with other settings; an earlier one and the next would be new."""
    shutil.copytree(folder / 'two', tmp_path / 'two')
    before = contents(tmp_path)
    other = config(folder, datasets=('stsb', 'sst2', 'mnli'), seeds=1)
    other.data.epochs = 2.0
    with pytest.raises(UserError, match=r'two/sst2/seed0: .* another config \(data.epochs: 4.0 there, 2.0 now\)'):
        sweep.run(other, epath.Path(tmp_path / 'two'))
    other = config(folder, datasets=('wnli',))
    with pytest.raises(UserError, match='None of them can be used'):
        sweep.run(other, epath.Path(tmp_path / 'two'))
    assert contents(tmp_path) == before


def test_earlier_runs_stay_in_the_list_while_they_are_there(folder, two_seeds, tmp_path, monkeypatch):
    """The table is of what was asked for; the report reads the list, and shows all runs of the study as such."""
    trained = []

    def run(run_config, path):
        trained.append(str(path.relative_to(tmp_path)))
        path.mkdir(parents=True, exist_ok=True)
        (path / 'config.json').write_text(run_config.to_json_best_effort())
        given = scores(run_config.data.dataset, 'pearson', [0.8], [0.7])
        return Result('finetune', given, {'train_examples': 40}, None, {}, 0.0)

    workdir = epath.Path(tmp_path / 'two')
    shutil.copytree(folder / 'two', workdir)
    monkeypatch.setattr(finetune, 'run', run)
    listed = lambda: [entry['path'] for entry in json.loads((workdir / 'runs.json').read_text())]
    result = sweep.run(config(folder, datasets=('stsb',)), workdir)
    assert listed() == ['stsb/seed0', 'sst2/seed0', 'sst2/seed1'] and trained == ['two/stsb/seed0']
    assert {score.dataset for score in result.scores} == {'stsb'}
    assert 'sst2' not in (workdir / 'table.txt').read_text()
    shutil.rmtree(workdir / 'sst2' / 'seed1')
    sweep.run(config(folder, datasets=('stsb',), seeds=2), workdir)
    assert listed() == ['stsb/seed0', 'stsb/seed1', 'sst2/seed0']
    owner = [line for line in collect.lines(collect.collect(workdir)) if line.owner.task == 'sweep']
    assert [(line.dataset, line.planned) for line in owner] == [('stsb', 2), ('sst2', 1)]


@pytest.mark.parametrize('path', ['sst2/\0', 'sst2/\ud800'])
def test_a_list_of_runs_with_what_is_no_path_is_named(folder, tmp_path, path):
    listed = [{'dataset': 'sst2', 'variant': '', 'seed': 1, 'path': path}]
    (tmp_path / 'runs.json').write_text(json.dumps(listed))
    with pytest.raises(UserError, match=r'runs.json: The file is damaged \(\[0\].path is .* Delete it'):
        sweep.run(config(folder, datasets=('sst2',)), epath.Path(tmp_path))
    assert list(tmp_path.iterdir()) == [tmp_path / 'runs.json']


def test_runs_of_another_model_are_not_mixed_with_these(folder, two_seeds, tmp_path):
    shutil.copytree(folder / 'two', tmp_path / 'two')
    shutil.copytree(folder / 'lm', tmp_path / 'lm')
    other = config(folder, datasets=('stsb',))
    other.init_from = str(tmp_path / 'lm')
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r'two: It holds runs that do not belong with these \(init_from: .*/lm. now\)'):
        sweep.run(other, epath.Path(tmp_path / 'two'))
    assert contents(tmp_path) == before


def test_runs_side_by_side_are_those_of_one_after_the_other(folder, two_seeds):
    again = sweep.run(config(folder, datasets=('sst2',), seeds=2, workers=2), folder / 'side_by_side')
    assert again.scores == two_seeds.scores and again.facts == two_seeds.facts and again.model == two_seeds.model
    log = lambda name: (folder / name / 'sst2' / 'seed1' / 'metrics.jsonl').read_text().splitlines()
    losses = lambda name: [line['loss'] for line in map(json.loads, log(name)) if 'loss' in line]
    assert losses('side_by_side') == losses('two')


def test_the_widest_model_says_whether_runs_go_side_by_side(tmp_path, monkeypatch):
    widths, found = {'narrow': 128, 'wide': 768, 'middle': 256}, []
    sizes = lambda base: types.SimpleNamespace(architecture=types.SimpleNamespace(sizes={'width': widths[base]}))
    monkeypatch.setattr(store, 'open_model', sizes)
    monkeypatch.setattr(side_by_side, 'number', lambda workers, runs, width: found.append((workers, runs, width())))
    monkeypatch.setattr(side_by_side, 'each', lambda *arguments: [])
    sweep._run_all({base: types.SimpleNamespace(init_from=base) for base in widths}, tmp_path, 0)
    assert found == [(0, 3, 768)]


def test_a_suite_of_an_earlier_version_is_evaluated_again_but_not_trained(folder, two_seeds):
    """Its results.json had another form, which is not read: the values here are wrong. Its top had no config.json."""
    for seed in range(2):
        (folder / 'two' / 'sst2' / f'seed{seed}' / 'results.json').write_text(
            json.dumps({'dataset': 'sst2', 'train_examples': 7, 'dev_score': 0.01, 'best_dev_accuracy': 0.02})
        )
    (folder / 'two' / 'results.json').write_text(json.dumps({'table': {}, 'left_out': {}}))
    (folder / 'two' / 'config.json').unlink()
    before = logs(folder / 'two')
    again = sweep.run(config(folder, datasets=('sst2',), seeds=2), folder / 'two')
    assert again.scores == two_seeds.scores and again.facts == two_seeds.facts
    assert logs(folder / 'two') == before and results.read(folder / 'two').scores == again.scores


def test_variants_are_runs_of_their_own(folder):
    variants = {'half': {'data': {'limit': 20}}, 'scratch': {'n_transfer': -1}}
    result = sweep.run(config(folder, datasets=('sst2',), variants=variants), folder / 'variants')
    assert sorted(str(path.parent.relative_to(folder)) for path in logs(folder / 'variants')) == [
        'variants/sst2/half/seed0',
        'variants/sst2/scratch/seed0',
    ]
    assert result.facts['train_examples'] == {'sst2': {'half': 20, 'scratch': 40}}
    for variant in ('half', 'scratch'):
        own = results.read(folder / 'variants' / 'sst2' / variant / 'seed0')
        assert own.value(checkpoint='best') == result.value(checkpoint='best', variant=variant)
    assert results.read(folder / 'variants' / 'sst2' / 'scratch' / 'seed0').config['n_transfer'] == -1


@pytest.mark.parametrize(
    'overrides', [{'n_transfr': -1}, {'data': {'limt': 3}}, {'data': {'epochs': 'all'}}, {'data': 3}, -1]
)
def test_a_variant_that_does_not_fit_is_an_error(folder, tmp_path, overrides):
    with pytest.raises(UserError, match='^variants.wrong: .*does not fit'):
        sweep.run(config(folder, datasets=('sst2',), variants={'right': {}, 'wrong': overrides}), epath.Path(tmp_path))
    assert not list(tmp_path.glob('sst2'))  # nothing was trained


@pytest.mark.parametrize(
    ('overrides', 'key'),
    [
        ({'n_transfer': 'x'}, 'n_transfer'),
        ({'n_transfer': 2.0}, 'n_transfer'),
        ({'n_transfer': {'layers': 2}}, 'n_transfer'),
        ({'data': {'max_length': 'x'}}, 'data.max_length'),
        ({'data': {'limit': 1.5}}, 'data.limit'),
    ],
)
def test_a_variant_that_gives_anything_to_a_key_that_may_be_none_is_an_error(tmp_path, overrides, key):
    (tmp_path / 'data' / 'sst2').mkdir(parents=True)
    with pytest.raises(UserError, match=rf'(?s)^{key}: .* is not valid\. It must be a whole number\.$'):
        sweep.check_runs(
            config(tmp_path, variants={'right': {'n_transfer': -1}, 'wrong': overrides}), ['sst2'], tmp_path
        )


def evaluation(folder, name, split, run):
    values = evaluate_config.get_config(name)
    values.update(init_from=str(folder / 'suite' / run), split=split)
    values.data.update(source=f'files:{folder}/data/{name}', cache='off')
    return values


@pytest.mark.parametrize(
    ('name', 'split'), [('mnli', 'dev'), ('mnli', 'dev_mismatched'), ('stsb', 'dev'), ('race', 'test')]
)
def test_evaluate_gives_the_runs_best_scores(folder, finished, tmp_path, capsys, name, split):
    result = evaluate.run(evaluation(folder, name, split, f'{name}/seed0'), epath.Path(tmp_path))
    of_run = list(finished.select(dataset=name, split=split, checkpoint='best'))
    assert [(score.metric, score.subset, score.examples) for score in result.scores] == [
        (score.metric, score.subset, score.examples) for score in of_run
    ]
    assert [score.value for score in result.scores] == pytest.approx([score.value for score in of_run], abs=1e-9)
    printed = capsys.readouterr().out
    assert all(f'{score.value:.4f}' in printed and score.metric in printed for score in of_run)
    assert sum(entry['examples'] for entry in result.facts.get('classes', {}).values()) in (0, result.facts['examples'])


def test_evaluate_refuses_what_does_not_fit(folder, finished, tmp_path):
    for changes, message in (
        (dict(init_from=str(folder / 'lm')), 'without a task head'),
        (dict(init_from=''), 'It is empty'),
        (dict(split='tset'), "'tset' is unknown"),
    ):
        values = evaluation(folder, 'mnli', 'dev', 'mnli/seed0')
        values.update(changes)
        with pytest.raises(UserError, match=message):
            evaluate.run(values, epath.Path(tmp_path))
    with pytest.raises(UserError, match='This is the workdir of a training run'):
        evaluate.run(evaluation(folder, 'mnli', 'dev', 'mnli/seed0'), folder / 'suite' / 'mnli' / 'seed0')
    with pytest.raises(UserError, match='for entailment with 3 outputs, but rte is entailment with 2'):
        values = evaluation(folder, 'mnli', 'dev', 'mnli/seed0')
        values.data.dataset = 'rte'
        evaluate.run(values, epath.Path(tmp_path))


def test_nothing_to_read_is_an_error(folder, tmp_path):
    with pytest.raises(UserError, match=r'None of them can be used \(wnli, cola: .* has no folder for it\)'):
        sweep.run(config(folder, datasets=('wnli', 'cola')), epath.Path(tmp_path))


def test_all_mistakes_of_all_sets_are_told_before_the_first_run(tmp_path, monkeypatch, caplog):
    """One set has two, one has none, and one folder is of no set."""
    data, rng = tmp_path / 'data', random.Random(0)
    for split in ('train', 'dev', 'test'):
        write(data / 'SST-2', split, [sst2(rng) for _ in range(20)])
        write(data / 'stsb', split, [stsb(rng) for _ in range(20)])
    write(data / 'stsb', 'test', [{'sentence1': 'a'}])
    write(data / 'stsb', 'dev', [stsb(rng) | {'label': 7}])
    write(data / 'QQP', 'train', [{'question1': 'a', 'question2': 'b', 'is_duplicate': 1}] * 20)
    write(data / 'books', 'train', [])
    monkeypatch.setattr(sweep, '_run_config', lambda *_: config(tmp_path, 'sst2'))  # of runs, which must not start
    monkeypatch.setattr(finetune, 'run', lambda *_: pytest.fail('a run has started'))
    with caplog.at_level('INFO', logger='absl'):
        uris, left_out = sweep._uris(config(tmp_path, datasets=('rte', 'sst2', 'stsb', 'qqp')))
        sweep._log_left_out(left_out)
    assert list(uris) == ['sst2'] and list(left_out) == ['rte', 'stsb', 'qqp']
    assert 'dev.jsonl, line 1' in left_out['stsb'] and 'test.jsonl, line 1' in left_out['stsb']
    assert 'There is no dev' in left_out['qqp'] and 'data has no folder for it' in left_out['rte']
    *_, folders, together = [record.message for record in caplog.records if record.levelname == 'WARNING']
    assert folders == f'{data}: No known data set has the folder books. Name each after its data set.'
    lines = together.splitlines()
    assert lines[0] == '3 data sets, or variants of one, are left out:'
    assert [line.split(':')[0] for line in lines[1:]] == ['  stsb', '  qqp', '  rte']
    assert 'looking for mistakes in the data: qqp, 4 of 4' in caplog.text


def test_of_many_mistakes_ten_are_told_and_the_others_counted(caplog):
    sweep._log_left_out({f'set{i}': 'why' for i in range(12)})
    assert '12 data sets' in caplog.text and '  set9: why\n  and 2 more' in caplog.text and 'set10' not in caplog.text
    sweep._log_left_out({})
    assert len(caplog.records) == 1
