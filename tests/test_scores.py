"""The tables of fine-tuning scores, and table 5, number by number against the files of the runs."""

import dataclasses

import numpy as np
import pytest

import recorded
from gpt1_jax.data.labelled.registry import REGISTRY, SUITES
from gpt1_jax.evaluation import metrics
from gpt1_jax.evaluation.paper import TABLE_5
from gpt1_jax.report import scores
from gpt1_jax.report.blocks import Gap, Heading, Paper
from gpt1_jax.report.collect import Line, Run
from gpt1_jax.report.results import Result, Score
from recorded import entry, value

GAP = None


@pytest.fixture(scope='module')
def tables():
    return recorded.tables(scores.fine_tuning(*recorded.collected()))


@pytest.fixture(scope='module')
def table_5():
    return recorded.tables(scores.table_5(recorded.collected()[1]))


def of_seeds(path, n, **wanted):
    wanted = dict(checkpoint='best', split='dev', subset='') | wanted
    return np.array([value(f'{path}/seed{i}', **wanted) for i in range(n)])


def recorded_labels(dataset):
    with np.load(recorded.everything() / 'finetune' / dataset / 'seed0' / 'dev.npz') as file:
        return file['labels']


def per_cent(number):
    return f'{100 * number:.1f}'.replace('-', '\N{MINUS SIGN}')


@pytest.mark.parametrize(
    ('table', 'dataset', 'metric', 'wanted'),
    [
        ('Natural language inference (table 2)', 'mnli', 'accuracy', dict(metric='accuracy')),
        ('Natural language inference (table 2)', 'mnli', 'mismatched_accuracy', dict(split='dev_mismatched')),
        ('Question answering and commonsense reasoning (table 3)', 'race', 'accuracy', dict(metric='accuracy')),
        ('Question answering and commonsense reasoning (table 3)', 'race', 'accuracy_middle', dict(subset='middle')),
        ('Classification and similarity (table 4)', 'cola', 'matthews', dict(metric='matthews')),
        ('Classification and similarity (table 4)', 'stsb', 'pearson', dict(metric='pearson')),
    ],
)
def test_a_row_has_the_scores_of_its_runs_and_the_papers(tables, table, dataset, metric, wanted):
    row = entry(tables[table], set=dataset, metric=metric)  # and no gap beside it
    values = of_seeds(f'finetune/{dataset}', 3, **wanted)
    assert row['median'] == per_cent(np.median(values))
    assert row['spread'] == f'{per_cent(values.min())} to {per_cent(values.max())}'
    constant = metrics.constant(metric, recorded_labels(dataset)) if metric == REGISTRY[dataset].metrics[0] else ''
    assert row['one answer'] == (constant if constant == '' else per_cent(constant))
    assert row['seeds'] == '3' and row['training examples'] == '640' + ' \N{DAGGER}' * (dataset != 'race')
    if 'accuracy' in metric:
        n = recorded.DEV // 2 if 'subset' in wanted else recorded.DEV
        middle = np.median(values)
        assert row['standard error'] == per_cent(np.sqrt(middle * (1 - middle) / n))
    ours, before = REGISTRY[dataset].paper[metric]
    assert (row['paper'], row['before']) == (f'{ours:.1f}', f'{before:.1f}')


def test_a_set_of_ones_own_has_its_one_answer_too():
    data = dict(kind='classification', fields='text', labels='a,b', metrics='matthews,accuracy')
    config = {'task': 'finetune', 'data': {'dataset': 'custom', 'label_field': 'label', 'max_score': 0} | data}
    config['data']['source'] = 'files:/data/mine'
    values = {'matthews': 0.4, 'accuracy': 0.7}
    of_run = [Score('custom', 'dev', metric, one, 50, checkpoint='best') for metric, one in values.items()]
    facts = {'train_examples': 100, 'dev_examples': 50, 'dev_constant': 0.125}
    run = Run('mine', None, config, Result('finetune', of_run, facts, None, config, 1.0))
    table = recorded.tables(scores.fine_tuning([run], [Line(run, 'custom', '', (run,), 1)]))['Other sets']
    assert [(row['metric'], row['median'], row['one answer']) for row in table] == [
        ('matthews', '40.0', '12.5'),
        ('accuracy', '70.0', ''),
    ]


def test_where_test_has_labels_its_score_stands_beside_the_papers():
    """The median over seeds of the checkpoints that dev chose, of RACE's levels too."""

    def run(seed, dev, test, high):
        made = (('dev', '', dev), ('test', '', test), ('dev', 'high', dev), ('test', 'high', high))
        of = [Score('race', split, 'accuracy', one, 50, subset, checkpoint='best') for split, subset, one in made]
        of.append(Score('race', 'test', 'accuracy', 0.99, 50, checkpoint='last'))
        config = {'task': 'finetune', 'seed': seed, 'data': {'dataset': 'race'}}
        return Run(f'race/seed{seed}', None, config, Result('finetune', of, {}, None, config, 1.0))

    runs = [run(0, 0.61, 0.51, 0.41), run(1, 0.62, 0.59, 0.42), run(2, 0.63, 0.52, 0.40)]
    table = recorded.tables(scores.fine_tuning(runs, [Line(runs[0], 'race', '', tuple(runs), 3)]))
    rows = {row['metric']: row for row in table['Question answering and commonsense reasoning (table 3)']}
    assert [(row['median'], row['test']) for row in map(rows.get, ('accuracy', 'accuracy_high'))] == [
        ('62.0', '52.0'),
        ('62.0', '41.0'),
    ]
    assert rows['accuracy_middle']['test'] is GAP  # no run has it


def test_what_was_not_run_is_a_gap_beside_the_papers_number(tables):
    for table, names in zip(list(tables)[:3], (('snli', 'scitail', 'qnli'), ('story_cloze',), ('mrpc', 'qqp'))):
        for name in names:
            row = entry([one for one in tables[table] if one['run'] is None], set=name)
            columns = ('run', 'training examples', 'seeds', 'median', 'spread', 'one answer')
            assert [row[column] for column in columns] == [GAP] * 6
            assert row['paper'] == f'{next(iter(REGISTRY[name].paper.values()))[0]:.1f}'
    assert entry(tables['Classification and similarity (table 4)'], set='GLUE')['median'] is GAP


def test_a_half_finished_sweep_shows_what_is_finished(tables):
    row = entry(tables['Natural language inference (table 2)'], set='rte', run='half')
    assert row['seeds'] == '1 of 2' and row['median'] == per_cent(
        value('half/rte/seed0', checkpoint='best', split='dev')
    )
    assert row['spread'] == ''
    assert not any(one['run'] == 'half' for one in tables['Classification and similarity (table 4)'])


def test_a_table_without_runs_is_left_out():
    lines = [line for line in recorded.collected()[1] if line.dataset == 'sst2' and line.owner.name == 'finetune']
    assert list(recorded.tables(scores.fine_tuning([], lines))) == ['Classification and similarity (table 4)']


def test_the_papers_numbers_are_marked():
    blocks = scores.fine_tuning(*recorded.collected())
    for table in (block for block in blocks if hasattr(block, 'entries') and 'paper' in block.columns):
        for one in table.entries:
            assert all(isinstance(cell, Paper) or cell == '' for cell in one[-2:])
            assert not any(isinstance(cell, Paper) for cell in one[:-2])


def test_glues_average_is_of_all_nine_tasks():
    one = recorded.collected()[1][0]
    line = lambda name, value: _line(name, value, one)
    glue = [line(name, 0.5 + 0.01 * i) for i, name in enumerate(SUITES['glue'])]
    runs = *line('sst2', 0.0).runs, *glue[1].runs, *line('sst2', 0.6).runs
    glue[1] = dataclasses.replace(glue[1], runs=runs)  # of three seeds, whose median is that of the one
    (found,) = scores._glue(glue)
    assert found[5] == per_cent(np.mean([0.5 + 0.01 * i for i in range(9)])) and found[2] == 'some sweep'
    (found,) = scores._glue(glue[:-1])
    assert found[5] is None


def test_glues_average_says_of_which_examples_and_seeds_it_is():
    one, partial = recorded.collected()[1][0], {'data': {'limit': 640}}
    facts = {'wnli': {'train_examples': 635}}
    lines = [_line(name, 0.5, one) for name in SUITES['glue']]

    def changed(run):
        result = dataclasses.replace(run.result, facts=facts.get(run.name, {'train_examples': 640}))
        return dataclasses.replace(run, config=partial, result=result)

    lines = [dataclasses.replace(line, runs=tuple(map(changed, line.runs))) for line in lines]
    (found,) = scores._glue(lines)
    assert found[3:5] == ('635 to 640 \N{DAGGER}', '1')
    lines[0] = dataclasses.replace(lines[0], planned=3)
    (found,) = scores._glue(lines)
    assert found[4] == '1 of 3, 1'


def _line(name, value, like):
    """One finished run that scores the same in all of its metrics but in CoLA's second, which is not GLUE's."""
    given = [
        Score(name, split, metric, 0.0 if (name, metric) == ('cola', 'accuracy') else value, 10, checkpoint='best')
        for split in ('dev', *(['dev_mismatched'] if name == 'mnli' else []))
        for metric in REGISTRY[name].metrics
    ]
    result = Result('finetune', given, {}, {}, {}, 1.0)
    run = Run(name, like.owner.folder, {}, result)
    return Line(Run('some sweep', like.owner.folder, {}), name, '', (run,), 1)


def test_variants_of_a_sweep_are_compared_with_its_first():
    _, lines = recorded.collected()
    lines = [line for line in lines if line.owner.name == 'ablation_table5' and line.dataset == 'cola']
    sweep = dataclasses.replace(lines[0].owner, config={'task': 'sweep'})
    lines = [dataclasses.replace(line, owner=sweep) for line in lines]
    blocks = scores.fine_tuning([], lines)
    assert Heading('Differences between variants', level=3) in blocks
    differences = recorded.tables(blocks)['']
    assert [row['rows'] for row in differences] == [
        f'full less {name}' for name in ('no_pretraining', 'no_auxiliary', 'lstm')
    ]
    medians = [
        np.median(of_seeds(f'ablation_table5/cola/{name}', 3, metric='matthews')) for name in ('full', 'no_pretraining')
    ]
    assert differences[0]['difference'].strip('+*') == per_cent(medians[0] - medians[1])


def test_other_evaluations(tables):
    assert tables[''] == [
        dict(run='evaluation', set='sst2', split='test', metric='accuracy', examples='1,821', score='76.5')
    ]


def test_each_row_of_table_5_stands_above_the_papers(table_5):
    entries = table_5['ablation_table5, in per cent']
    *entries, one_answer = entries
    constants = {name: metrics.constant(REGISTRY[name].metrics[0], recorded_labels(name)) for name in ('cola', 'mnli')}
    assert [one_answer[name] for name in ('', 'cola', 'stsb', 'mnli', 'sst2', 'average')] == [
        'one answer to all',
        *(per_cent(constants['cola']), '0.0', per_cent(constants['mnli']), None),
        per_cent(sum(constants.values()) / 3),
    ]
    assert [row[''].startswith('paper: ') for row in entries] == [False, True] * 4
    for row, ours, papers in zip(TABLE_5, entries[::2], entries[1::2]):
        medians = {}
        for name in ('cola', 'stsb', 'mnli'):
            splits = ('dev', 'dev_mismatched') if name == 'mnli' else ('dev',)
            metric = REGISTRY[name].metrics[0]
            values = [of_seeds(f'ablation_table5/{name}/{row}', 3, split=split, metric=metric) for split in splits]
            low, medians[name], high = np.sort(np.mean(values, axis=0))
            assert ours[name] == f'{per_cent(medians[name])} ({per_cent(low)} to {per_cent(high)})'
        assert ours['average'] == per_cent(np.mean(list(medians.values())))
        assert papers['average'] == f'{np.mean([TABLE_5[row][name] for name in medians]):.1f}'
        for name, number in TABLE_5[row].items():
            assert papers[name] == f'{number:.1f}'
            assert (ours[name] is GAP) == (name not in medians)


def test_the_papers_average_stands_beside_ours():
    assert scores._papers_difference('lstm', 'average', TABLE_5['lstm']).text == '\N{MINUS SIGN}5.6'


def test_differences_from_the_full_method(table_5):
    entries = table_5['ablation_table5: differences from the full method']
    assert [row['set'] for row in entries] == ['cola', 'stsb', 'mnli, matched', 'average, of mnli matched'] * 3
    row = entry(entries, rows='no pre-training less full', set='cola')
    cola = [np.median(of_seeds(f'ablation_table5/cola/{name}', 3, metric='matthews')) for name in TABLE_5]
    assert row['difference'] == per_cent(cola[1] - cola[0]) + '*' and row['seeds'] == '3'
    assert row['paper'] == per_cent((18.9 - 45.4) / 100)
    row = entry(entries, rows='no pre-training less full', set='average, of mnli matched')
    assert row['paper'] == per_cent((18.9 + 30.9 + 75.7 - 45.4 - 82.0 - 81.8) / 300)
    number = lambda cell: float(cell.strip('*+').replace('\N{MINUS SIGN}', '-'))
    for one in entries:  # every difference is that of the numbers beside it
        ours, full = map(number, one['medians'].split(' less '))
        assert number(one['difference']) == pytest.approx(ours - full, abs=0.11)
    single = [number(one['difference']) for one in entries[:3]]
    assert number(row['difference']) == pytest.approx(np.mean(single), abs=0.07)
    low, high = map(number, row['95 %, examples'].split(' to '))
    assert low < number(row['difference']) < high


def test_rows_of_another_vocabulary_are_named():
    lines = [line for line in recorded.collected()[1] if line.owner.name == 'ablation_table5']
    (note,) = [note for note in scores.table_5(lines)[1].notes if note.startswith('Models.')]
    assert 'vocabularies differ' not in note and note.count('a' * 16) == 4 and 'lstm, 1 layer' in note
    other = [dataclasses.replace(run, vocabulary='b' * 16) for run in lines[-1].runs]
    changed = [dataclasses.replace(line, runs=tuple(other)) if line.variant == 'lstm' else line for line in lines]
    (note,) = [note for note in scores.table_5(changed)[1].notes if note.startswith('Models.')]
    assert note.endswith('. The vocabularies differ: these models differ by that too.')
    other = [dataclasses.replace(run, vocabulary='') for run in lines[-1].runs]
    changed = [dataclasses.replace(line, runs=tuple(other)) if line.variant == 'lstm' else line for line in lines]
    (note,) = [note for note in scores.table_5(changed)[1].notes if note.startswith('Models.')]
    assert 'differ:' not in note and 'Not all vocabularies are known to be the same: these models may differ' in note


def test_sections_without_runs_are_left_out_and_unfinished_ones_are_gaps():
    _, lines = recorded.collected()
    assert scores.table_5([]) == [] and scores.fine_tuning([], []) == []
    unfinished = [dataclasses.replace(line, runs=()) for line in lines if line.owner.name == 'ablation_table5']
    assert recorded.texts(scores.table_5(unfinished), Gap) == ['ablation_table5: no run of it is finished.']


def test_a_row_of_table_5_that_has_not_begun_is_a_gap_and_the_others_are_compared(table_5):
    lines = [line for line in recorded.collected()[1] if line.owner.name == 'ablation_table5']
    lines = [dataclasses.replace(line, runs=()) if line.variant == 'lstm' else line for line in lines]
    blocks = scores.table_5(lines)
    (_, ours), (_, before) = (of.popitem() for of in (recorded.tables(blocks), dict(table_5)))
    assert ours == [row for row in before if not row['rows'].startswith('LSTM')] and len(ours) == 8
    caption = 'ablation_table5, in per cent'
    for row in recorded.tables(blocks)[caption]:
        if row[''] == 'LSTM, auxiliary LM':
            assert all(cell is GAP for name, cell in row.items() if name)
        else:
            assert row == entry(table_5[caption], **{'': row['']})
    (note,) = [note for note in blocks[1].notes if note.startswith('Models.')]
    assert 'LSTM' not in note and note.count('a' * 16) == 3
    assert not recorded.texts(blocks, Gap)  # the table shows it


def test_table_5_says_which_dev_sets_of_mnli_it_has():
    lines = [line for line in recorded.collected()[1] if line.owner.name == 'ablation_table5']
    note = lambda lines: scores.table_5(lines)[1].notes[0]
    assert 'the first metric of each set; of MNLI the mean of matched and mismatched. The paper' in note(lines)

    def matched(run):
        kept = [score for score in run.result.scores if score.split != 'dev_mismatched']
        return dataclasses.replace(run, result=dataclasses.replace(run.result, scores=kept))

    alone = [dataclasses.replace(line, runs=tuple(map(matched, line.runs))) for line in lines]
    assert 'the first metric of each set; of MNLI matched. The paper' in note(alone)
    assert 'of each set. The paper' in note([line for line in lines if line.dataset != 'mnli'])
