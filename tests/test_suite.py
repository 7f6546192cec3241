"""A suite of data sets from a language model to the table, resumed, and what evaluate says of its runs."""

import json
import random

import pytest
from etils import epath

from configs import evaluate as evaluate_config
from configs import finetune as finetune_config
from configs import pretrain as pretrain_config
from gpt1_jax.errors import UserError
from gpt1_jax.tasks import evaluate, pretrain, suite

WORDS = {'sea': 'ship sail wave anchor harbour captain'.split(), 'farm': 'cow field plough barn wheat fence'.split()}
TINY = dict(layers=1, width=16, heads=2, mlp_width=32, n_positions=64)


def phrase(rng, subject, n=4):
    return ' '.join(rng.choices(WORDS[subject], k=n))


def pair(rng):
    first, second = rng.choices(list(WORDS), k=2)
    return {'sentence1': phrase(rng, first), 'sentence2': phrase(rng, second)}, int(first == second)


def write(folder, split, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f'{split}.jsonl').write_text('\n'.join(map(json.dumps, rows)))


def sst2(rng):
    subject = rng.choice(list(WORDS))
    return {'sentence': phrase(rng, subject), 'label': int(subject == 'sea')}


def mnli(rng):
    fields, same = pair(rng)
    return {'premise': fields['sentence1'], 'hypothesis': fields['sentence2'], 'label': 0 if same else 2}


def race(rng):
    answer, subject = rng.randrange(4), rng.choice(list(WORDS))
    other = 'farm' if subject == 'sea' else 'sea'
    return {'article': phrase(rng, subject, 20), 'question': 'which one fits?', 'level': rng.choice(['middle', 'high']),
            'options': [phrase(rng, subject if i == answer else other) for i in range(4)], 'answer': 'ABCD'[answer]}


def stsb(rng):
    fields, same = pair(rng)
    return fields | {'label': 5.0 * same}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Books, a language model pre-trained on them, and the folders of four data sets."""
    folder, rng = epath.Path(tmp_path_factory.mktemp('suite')), random.Random(0)
    (folder / 'books').mkdir()
    for i in range(4):
        text = '\n'.join(f'the {phrase(rng, rng.choice(list(WORDS)))} which one fits?' for _ in range(300))
        (folder / 'books' / f'{i}.txt').write_text(text)
    config = pretrain_config.get_config('tiny')
    config.model.update(TINY)
    config.data.update(source=f'text:{folder}/books', vocab_size=320, batch_size=8, tokens=8192, held_out=0.25,
                       workers=1)
    config.optimizer.update(warmup_steps=2, learning_rate=0.01)
    config.log.eval_every = 0
    pretrain.run(config, folder / 'lm')
    data = folder / 'data'
    for name, make, kinds in (('SST-2', sst2, ''), ('stsb', stsb, ''), ('race', race, ''),
                              ('mnli', mnli, '_matched _mismatched')):
        for split, n in (('train', 40), ('dev', 19), ('test', 17)):
            for kind in kinds.split() if split != 'train' and kinds else ['']:
                rows = [make(rng) | {'idx': i} for i in range(n)]
                if split == 'test' and name != 'race':
                    for row in rows:
                        row['label'] = -1
                write(data / name, split + kind, rows)
    return folder


def config(folder, name='glue', **changes):
    config = finetune_config.get_config(name)
    config.update(init_from=str(folder / 'lm'), **changes)
    config.data.update(source=f'files:{folder}/data', batch_size=16, epochs=2.0, cache='off')
    config.optimizer.learning_rate = 0.01
    return config


@pytest.fixture(scope='module')
def two_seeds(folder):
    return suite.run(config(folder, datasets=('sst2',), seeds=2), folder / 'two')


@pytest.fixture(scope='module')
def finished(folder):
    return suite.run(config(folder, datasets=('wnli', 'stsb', 'mnli', 'race')), folder / 'suite')


def runs(workdir, name):
    return [json.loads(path.read_text()) for path in sorted((workdir / name).glob('seed*/results.json'))]


def test_the_table_holds_what_the_runs_say(folder, two_seeds):
    (row,) = two_seeds['table']['sst2'].values()
    one, two = runs(folder / 'two', 'sst2')
    values = [one['best_dev_accuracy'], two['best_dev_accuracy']]
    assert (row['best'], row['worst'], row['runs']) == (max(values), min(values), 2)
    assert row['median'] == pytest.approx(sum(values) / 2)
    assert row['last'] == pytest.approx((one['dev_accuracy'] + two['dev_accuracy']) / 2)
    assert row['best'] > 0.6
    for seed, run in enumerate((one, two)):  # the best of all epochs
        scores = [line['dev_score'] for line in lines(folder / 'two' / 'sst2' / f'seed{seed}') if 'dev_score' in line]
        assert run['best_dev_score'] == max(scores) and run['dev_score'] == scores[-1] and len(scores) == 2


def test_all_metrics_are_there_and_what_is_left_out_is_named(folder, finished):
    metrics = {name: list(rows) for name, rows in finished['table'].items()}
    assert metrics == {'stsb': ['pearson', 'spearman'], 'mnli': ['accuracy', 'mismatched_accuracy'],
                       'race': ['accuracy', 'accuracy_high', 'accuracy_middle']}
    assert list(finished['left_out']) == ['wnli'] and finished['glue_average'] is None
    (race,) = runs(folder / 'suite', 'race')
    assert finished['table']['race']['accuracy_high']['median'] == race['best_dev_accuracy_high']
    text = (folder / 'suite' / 'table.txt').read_text()
    assert 'wnli: left out' in text and '82.1' in text and 'GLUE' not in text


def lines(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def test_predictions_are_of_the_best_seed(folder, two_seeds, finished):
    names = {path.name for path in (folder / 'suite' / 'predictions').iterdir()}
    assert names == {'STS-B.tsv', 'MNLI-m.tsv', 'MNLI-mm.tsv', 'race_test.csv'}
    scores = [run['best_dev_score'] for run in runs(folder / 'two', 'sst2')]
    written = (folder / 'two' / 'predictions' / 'SST-2.tsv').read_text()
    best = folder / 'two' / 'sst2' / f'seed{scores.index(max(scores))}' / 'predictions' / 'SST-2.tsv'
    assert written == best.read_text() and len(written.splitlines()) == 18


def test_a_second_call_does_nothing_again(folder, two_seeds):
    times = lambda: {path: path.stat().mtime for path in (folder / 'two').glob('*/seed*/metrics.jsonl')}
    before = times()
    again = suite.run(config(folder, datasets=('sst2',), seeds=2), folder / 'two')
    assert again == two_seeds and len(before) == 2 and times() == before


def evaluation(folder, name, split, run):
    values = evaluate_config.get_config(name)
    values.update(init_from=str(folder / 'suite' / run), split=split)
    values.data.update(source=f'files:{folder}/data/{name}', cache='off')
    return values


@pytest.mark.parametrize(('name', 'split', 'keys'), [
    ('mnli', 'dev', ['accuracy']), ('mnli', 'dev_mismatched', ['accuracy']), ('stsb', 'dev', ['pearson', 'spearman']),
    ('race', 'test', ['accuracy', 'accuracy_middle'])])
def test_evaluate_gives_the_runs_best_scores(folder, finished, tmp_path, capsys, name, split, keys):
    results = evaluate.run(evaluation(folder, name, split, f'{name}/seed0'), epath.Path(tmp_path))
    run = json.loads((folder / 'suite' / name / 'seed0' / 'results.json').read_text())
    for key in keys:
        assert results[f'{split}_{key}'] == pytest.approx(run[f'best_{split}_{key}'], abs=1e-9)
        assert key in capsys.readouterr().out or key != keys[0]
    assert sum(row['examples'] for row in results.get('classes', {}).values()) in (0, results['examples'])


def test_evaluate_refuses_what_does_not_fit(folder, finished, tmp_path):
    for changes, message in ((dict(init_from=str(folder / 'lm')), 'without a task head'),
                             (dict(init_from=''), 'is empty'), (dict(split='tset'), "split='tset'")):
        values = evaluation(folder, 'mnli', 'dev', 'mnli/seed0')
        values.update(changes)
        with pytest.raises(UserError, match=message):
            evaluate.run(values, epath.Path(tmp_path))
    with pytest.raises(UserError, match='is the workdir of a training run'):
        evaluate.run(evaluation(folder, 'mnli', 'dev', 'mnli/seed0'), folder / 'suite' / 'mnli' / 'seed0')
    with pytest.raises(UserError, match='is for entailment with 3 outputs, but rte is entailment with 2'):
        values = evaluation(folder, 'mnli', 'dev', 'mnli/seed0')
        values.data.dataset = 'rte'
        evaluate.run(values, epath.Path(tmp_path))


def test_nothing_to_read_is_an_error(folder, tmp_path):
    with pytest.raises(UserError, match='none of the data sets can be used'):
        suite.run(config(folder, datasets=('wnli', 'cola')), epath.Path(tmp_path))
