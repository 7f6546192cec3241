"""The quickstart: which runs it makes, what it prints, which README.md shows, and its report."""

import dataclasses
import json

import numpy as np
import pytest
from etils import epath

import runs
from configs import quickstart as quickstart_config
from gpt1_jax.data.labelled.docstring_sets import SIZES
from gpt1_jax.data.labelled.examples import Examples
from gpt1_jax.data.labelled.loading import load_examples
from gpt1_jax.data.labelled.registry import REGISTRY
from gpt1_jax.errors import DivergedError
from gpt1_jax.evaluation.bag_of_words import Baseline
from gpt1_jax.report import results
from gpt1_jax.report.results import Result, Score
from gpt1_jax.tasks import finetune, generate, pretrain, quickstart, sweep
from helpers import ROOT

pytestmark = pytest.mark.slow

# Accuracy on test and epochs, at the best dev score and in all: from the pre-trained model and from scratch.
TEST = {
    'docs_number': ((0.787, 12, 17), (0.573, 8, 13)),
    'docs_same': ((0.503, 2, 7), (0.523, 2, 7)),
    'docs_next': ((0.693, 14, 19), (0.499, 3, 8)),
    'docs_cloze': ((0.543, 16, 21), (0.346, 17, 22)),
}
# Accuracy on test: a bag of all words, and of the words of the last text.
BAGS = {'docs_number': (0.687, None), 'docs_next': (0.583, 0.5), 'docs_same': (0.498, 0.5), 'docs_cloze': (0.426, 0.25)}
PRINTED = """
Pre-trained on 1,300,000 tokens of documentation: held-out perplexity 55.5. Accuracy on test after \
200 labelled examples:

data set      input             pre-trained      epochs from scratch      epochs bag of words   last text      chance
docs_number   classification          0.787    12 of 17        0.573     8 of 13        0.687                   0.500
docs_same     similarity              0.503      2 of 7        0.523      2 of 7        0.498       0.500       0.500
docs_next     entailment              0.693    14 of 19        0.499      3 of 8        0.583       0.500       0.500
docs_cloze    multiple_choice         0.543    16 of 21        0.346    17 of 22        0.426       0.250       0.250

Epochs: at the best dev score, and in all: a run ends after 10 without a better one.
The standard error of a score is at most 0.016.
Pre-training beats both other models by two standard errors or more on: docs_number, docs_next, docs_cloze.
It does not on: docs_same.
Report, with the learning curves and a generated sample: """


@pytest.fixture
def ran(monkeypatch):
    """Workdir of a run -> its config, and under 'bags' what bags of words were fitted to. Nothing is trained: the
    scores are those above, with seed 1 higher by 0.02, and wrong ones for what is not to be shown."""
    made = {'bags': []}

    def pretrain_run(config, workdir):
        made[workdir] = config
        scores = [
            Score('docs:', 'valid', 'perplexity', value, 9, checkpoint=checkpoint)
            for checkpoint, value in (('last', 55.54), ('best', 50.0))
        ]
        return Result('pretrain', scores, {'tokens': 1_300_000}, {'parameters': 7}, {}, 1.0)

    def finetune_run(config, workdir):
        made[workdir] = config
        value, best, last = TEST[config.data.dataset][config.n_transfer == -1]
        scores = [
            Score(config.data.dataset, split, metric, value, 1000, checkpoint=checkpoint, step=12 * epochs)
            for split, metric, value, checkpoint, epochs in (
                ('test', 'accuracy', value + 0.02 * config.seed, 'best', best),
                ('test', 'f1', 0.3, 'best', best),
                ('dev', 'accuracy', 0.9, 'best', best),
                ('dev', 'accuracy', 0.1, 'last', last),
            )
        ]
        scores = [dataclasses.replace(score, seed=config.seed) for score in scores]
        return Result('finetune', scores, {'train_examples': 200}, {'parameters': 8}, {}, 1.0)

    def load_examples(dataset, source, split):
        rows = [f'{dataset.name} {split} {i}' for i in range(SIZES[split])]
        return Examples(dict.fromkeys(dataset.fields, rows), np.arange(len(rows)) % 2, rows)

    def fit(splits, fields):
        made['bags'].append((splits, fields))
        all_fields = [*fields] == [*splits['train'].fields]
        return Baseline(0.9, BAGS[splits['test'].ids[0].split()[0]][not all_fields], 'words', 1.0)

    for owner, name, stand_in in (
        (pretrain, 'run', pretrain_run),
        (generate, 'run', lambda config, workdir: made.update({workdir: config})),
        (finetune, 'run', finetune_run),
        (quickstart, 'training_text', lambda packages: {'numpy/a.py': 'one\ntwo', 'jax/b.py': packages}),
        (quickstart, 'load_examples', load_examples),
        (quickstart.bag_of_words, 'fit', fit),
        (sweep, '_uris', lambda config: (dict.fromkeys(config.datasets, config.data.source), {})),  # slow
    ):
        monkeypatch.setattr(owner, name, stand_in)
    return made


def table_of(text):
    """The heading of the table in `text`, and the cells of its rows."""
    lines = [line.split() for line in text.splitlines()]
    return [line for line in lines if line[:2] == ['data', 'set']], [
        line for line in lines if line and line[0].startswith('docs_')
    ]


def test_the_printed_table_has_the_form_of_the_readme(ran, tmp_path, capsys):
    quickstart.run(quickstart_config.get_config(), epath.Path(tmp_path))
    assert capsys.readouterr().out == f'{PRINTED}{tmp_path}/report.html\n'
    heading, table = table_of(PRINTED)
    heading_shown, shown = table_of((ROOT / 'README.md').read_text())
    # The README's figures are those of a real run: names, inputs, chance and the number of columns are the same.
    assert len(table) == 4 and heading_shown == heading
    assert [(*row[:2], row[-1], len(row)) for row in shown] == [(*row[:2], row[-1], len(row)) for row in table]
    page = (tmp_path / 'report.html').read_text()
    assert all(f'<td class="number">{cell}' in page or f'>{cell}<' in page for line in table for cell in line[-2:])


def test_both_starts_and_the_bags_get_the_same_examples(ran, tmp_path):
    config = quickstart_config.get_config()
    config.seed, config.seeds = 5, 2
    result = quickstart.run(config, epath.Path(tmp_path))
    bags = ran.pop('bags')
    assert [str(path.relative_to(tmp_path)) for path in ran] == [
        'pretrain',
        'generate',
        *(f'{name}/{start}/seed{i}' for name in TEST for start in ('pretrained', 'scratch') for i in (0, 1)),
    ]
    language_model, sample, *classifiers = ran.values()
    assert [config.n_transfer for config in classifiers] == 4 * [None, None, -1, -1]
    assert {config.init_from for config in [sample, *classifiers]} == {str(tmp_path / 'pretrain')}
    assert [config.seed for config in classifiers] == 8 * [5, 6] and {language_model.seed, sample.seed} == {5}
    assert language_model.data.source == f'text:{tmp_path}/text'
    assert {path.name: path.read_text() for path in (tmp_path / 'text').iterdir()} == {
        'numpy.a.py.txt': 'one\ntwo',
        'jax.b.py.txt': config.finetune.data.source.removeprefix('docs:'),
    }
    assert [fields for _, fields in bags] == [
        fields
        for name in TEST
        for _ in range(2)
        for fields in dict.fromkeys([REGISTRY[name].fields, REGISTRY[name].fields[-1:]])
    ]
    for splits, _ in bags:
        assert {split: len(examples) for split, examples in splits.items()} == SIZES | {'train': 200}
    drawn = {seed: np.sort(np.random.RandomState(seed).permutation(1000)[:200]) for seed in (5, 6)}
    for (splits, _), seed in zip(bags, (5, 6, 5, 5, 6, 6, 5, 5, 6, 6, 5, 5, 6, 6), strict=True):
        assert [int(row.split()[2]) for row in splits['train'].ids] == drawn[seed].tolist()
    stored = results.read(epath.Path(tmp_path))
    assert stored.scores == result.scores and len(stored.scores) == 2 + 4 * 2 * 2 * 4 + 14
    of = stored.select(dataset='docs_next', variant='last_text', split='test', metric='accuracy')
    assert [(score.value, score.seed, score.examples) for score in of] == [(0.5, 5, 1000), (0.5, 6, 1000)]
    assert stored.model == {'parameters': 7} and stored.config['seed'] == 5


def test_several_seeds_give_medians_and_the_spread(ran, tmp_path, capsys):
    config = quickstart_config.get_config()
    config.seeds, config.datasets = 3, ('docs_same',)
    quickstart.run(config, epath.Path(tmp_path))
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith('docs_same'))
    assert '0.523 (0.503 to 0.543)' in line and '0.543 (0.523 to 0.563)' in line and '0.498 (0.498 to 0.498)' in line


def test_it_does_not_say_that_pretraining_wins_by_chance(ran, tmp_path, capsys, monkeypatch):
    """0.60 and 0.56 of 1,000 differ by 1.8 standard errors, 0.60 and 0.55 by 2.3; a better bag of words counts too."""
    config = quickstart_config.get_config()
    config.datasets = ('docs_number', 'docs_next', 'docs_same')
    epochs = (1, 2)
    monkeypatch.setitem(TEST, 'docs_number', ((0.60, *epochs), (0.56, *epochs)))
    monkeypatch.setitem(TEST, 'docs_next', ((0.60, *epochs), (0.55, *epochs)))
    monkeypatch.setitem(TEST, 'docs_same', ((0.60, *epochs), (0.50, *epochs)))
    for name, bag in (('docs_number', 0.5), ('docs_next', 0.5), ('docs_same', 0.57)):
        monkeypatch.setitem(BAGS, name, (bag, 0.5))
    quickstart.run(config, epath.Path(tmp_path))
    printed = capsys.readouterr().out
    assert 'by two standard errors or more on: docs_next.' in printed
    assert 'It does not on: docs_number, docs_same.' in printed


def test_what_is_left_out_is_named(ran, tmp_path, capsys, monkeypatch):
    run = finetune.run

    def diverges(config, workdir):
        if config.data.dataset == 'docs_same' and config.n_transfer == -1:
            raise DivergedError('The loss was not finite.')
        return run(config, workdir)

    monkeypatch.setattr(finetune, 'run', diverges)
    quickstart.run(quickstart_config.get_config(), epath.Path(tmp_path))
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines() if line.startswith('docs_')] == [
        'docs_number',
        'docs_next',
        'docs_cloze',
        'docs_same/scratch/seed0:',
    ]


def test_a_real_run_ends_with_its_report(tmp_path):
    """A few steps of everything, nothing replaced."""
    config = quickstart_config.get_config()
    config.finetune.data.source = 'docs:numpy,scipy'
    config.pretrain.data.update(vocab_size=1000, tokens=20_000)
    config.pretrain.optimizer.warmup_steps = 5
    config.pretrain.log.eval_every = 20
    config.datasets = ('docs_number',)
    config.finetune.data.epochs = 2.0
    config.generate.max_tokens = 4
    with runs.on_one_device(pretrain, generate, finetune):
        result = quickstart.run(config, epath.Path(tmp_path))
    for name in config.datasets:
        for split in SIZES:
            there, made = (
                load_examples(REGISTRY[name], source, split)
                for source in (f'files:{tmp_path}/data/{name}', 'docs:numpy,scipy')
            )
            assert (
                there.fields == made.fields and there.ids == made.ids and there.labels.tolist() == made.labels.tolist()
            )
        for start in ('pretrained', 'scratch'):
            alone = results.read(epath.Path(tmp_path / name / start / 'seed0'))
            assert alone.facts['train_examples'] == 200
            assert alone.value(split='test', metric='accuracy') == result.value(
                dataset=name, variant=start, split='test', metric='accuracy'
            )
    page, text = (tmp_path / 'report.html').read_text(), (tmp_path / 'report.md').read_text()
    assert page.count('<svg') >= 2  # the curves of fine-tuning and of pre-training
    sample = (tmp_path / 'generate' / 'generations.jsonl').read_text()
    assert json.loads(sample.splitlines()[0])['text'].split()[-1] in text
