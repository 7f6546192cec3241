"""Learning curves and perplexities against the files of the runs."""

import dataclasses
import json

import numpy as np
import pytest

import recorded
from gpt1_jax.report import curves
from gpt1_jax.report.blocks import Gap, Paper
from gpt1_jax.report.figures import thin
from gpt1_jax.report.results import Score
from recorded import entry

TOKENS = 16 * 128  # of an update of the tiny models


@pytest.fixture
def drawn(monkeypatch):
    panels = {}
    monkeypatch.setattr(curves, 'panel', lambda name, *rest: str(panels.setdefault(name, rest) and name))
    return panels


def logged(path, key):
    lines = map(json.loads, (recorded.everything() / path / 'metrics.jsonl').read_text().splitlines())
    return [(line['step'], line[key]) for line in lines if key in line]


def test_pretraining_has_a_panel_for_each_vocabulary(drawn):
    curves.pretraining(recorded.collected()[0])
    panels = {axes.title: (axes, of) for name, (axes, of) in drawn.items() if name.startswith('pretrain')}
    assert list(panels) == [f'vocabulary {"a" * 16}', f'vocabulary {"b" * 16}']
    axes, of = panels[f'vocabulary {"a" * 16}']
    assert (axes.x, axes.y, axes.log) == ('tokens', 'loss, nats a token', True)
    assert [(curve.label, curve.dashed) for curve in of] == [
        ('pretrain, held out', False),
        ('pretrain, train', True),
        ('pretrain_half (not finished), held out', False),
        ('pretrain_half (not finished), train', True),
        ('pretrain_lstm, held out', False),
        ('pretrain_lstm, train', True),
    ]
    expected = logged('pretrain', 'valid_loss')
    np.testing.assert_allclose(of[0].x, [step * TOKENS for step, _ in expected])
    np.testing.assert_allclose(of[0].y, [loss for _, loss in expected])
    steps, losses = zip(*logged('pretrain', 'loss'))
    x, y = thin(np.array(steps) * TOKENS, losses, 60, log=True)
    np.testing.assert_array_equal([of[1].x, of[1].y], [x, y])
    assert (of[1].x[0], of[1].y[0]) == (pytest.approx(10 * TOKENS), losses[0])  # not averaged away


def test_the_numbers_of_the_curves(drawn):
    tables = recorded.tables(curves.pretraining(recorded.collected()[0]))
    row = entry([row for row in tables[''] if 'train loss' in row], run='pretrain', updates='300')
    assert row['tokens'] == f'{300 * TOKENS:,}'
    losses, valid = dict(logged('pretrain', 'loss')), dict(logged('pretrain', 'valid_loss'))
    assert (row['train loss'], row['held-out loss']) == (f'{losses[300]:.3f}', f'{valid[300]:.3f}')
    assert row['held-out perplexity'] == f'{np.exp(valid[300]):,.2f}'


def test_skipped_updates_and_rollbacks_are_shown(drawn):
    runs, lines = recorded.collected()
    back = [{'step': 5, 'times': 1, 'batches': [5, 9]}, {'step': 1200, 'times': 2, 'batches': [1300, 1302]}]

    def changed(run, **facts):
        return dataclasses.replace(run, result=dataclasses.replace(run.result, facts=run.result.facts | facts))

    caption = 'Skipped updates and divergence'
    assert caption not in recorded.tables(curves.pretraining(runs)) | recorded.tables(curves.fine_tuning(lines))
    facts = {'pretrain': dict(skipped_steps=7, rollbacks=back), 'pretrain_lstm': dict(skipped_steps=2, rollbacks=[])}
    runs = [changed(run, **facts[run.name]) if run.name in facts else run for run in runs]
    assert [list(row.values()) for row in recorded.tables(curves.pretraining(runs))[caption]] == [
        ['pretrain', '7', '5', '5 to 8'],
        ['pretrain', '7', '1,200', '1,300 to 1,301'],
        ['pretrain_lstm', '2', '', ''],
    ]
    line = next(line for line in lines if line.owner.name == 'ablation_table5')
    line = dataclasses.replace(line, runs=(changed(line.runs[0], skipped_steps=0, rollbacks=back[:1]), *line.runs[1:]))
    assert [list(row.values()) for row in recorded.tables(curves.fine_tuning([line]))[caption]] == [
        ['ablation_table5/cola/full/seed0', '0', '5', '5 to 8']
    ]


def test_perplexities_of_two_vocabularies_are_not_compared_without_saying_so(drawn):
    runs = recorded.collected()[0]
    blocks = curves.pretraining(runs)
    rows = recorded.tables(blocks)['How well the models predict text']
    (table,) = [block for block in blocks if getattr(block, 'caption', '') == 'How well the models predict text']
    assert table.notes[0].endswith(' The vocabularies differ: these models differ by that too.')
    row = entry(rows, run='text')
    assert (row['text'], row['tokens'], row['loss']) == ('text:/other, text', '1,205', '5.432')
    assert (row['perplexity'], row['of a word'], row['vocabulary']) == ('228.63', '1,234.5', 'a' * 16)
    row = entry(rows, run='pretrain_other', checkpoint='best')
    perplexity = recorded.value('pretrain_other', metric='perplexity', checkpoint='best')
    assert (row['perplexity'], row['vocabulary']) == (f'{perplexity:.2f}', 'b' * 16)
    assert rows[-1]['run'] == 'paper' and rows[-1]['perplexity'] == '18.4'
    assert all(cell == '' or isinstance(cell, Paper) for cell in table.entries[-1][1:])
    assert not any(row['run'] == 'pretrain_half' for row in rows)
    same = [run for run in runs if run.name in ('pretrain', 'pretrain_lstm')]
    (table,) = [block for block in curves.pretraining(same) if getattr(block, 'caption', '').startswith('How')]
    assert 'differ' not in table.notes[0]
    elsewhere = [run for run in runs if run.name in ('pretrain_lstm', 'text')]  # without the model of the text
    (table,) = [block for block in curves.pretraining(elsewhere) if getattr(block, 'caption', '').startswith('How')]
    assert 'differ:' not in table.notes[0] and 'Not all vocabularies are known to be the same' in table.notes[0]


def test_the_loss_beside_a_perplexity_is_of_the_same_checkpoint_and_split():
    run = next(run for run in recorded.collected()[0] if run.name == 'pretrain')
    values = {('last', 'valid'): (2.0, 700), ('best', 'valid'): (3.0, 500), ('best', 'text'): (4.0, 500)}
    scores = [
        Score('text:/books', split, metric, of, 65_536, checkpoint=checkpoint, step=step)
        for (checkpoint, split), (loss, step) in values.items()
        for metric, of in (('loss', loss), ('perplexity', 10 * loss), ('word_perplexity', 100 * loss))
    ]
    run = dataclasses.replace(run, metrics=(), result=dataclasses.replace(run.result, scores=scores))
    (*rows, _) = recorded.tables(curves.pretraining([run]))['How well the models predict text']
    columns = ('text', 'checkpoint', 'updates', 'tokens', 'loss', 'perplexity', 'of a word')
    assert [[row[column] for column in columns] for row in rows] == [
        ['text:/books, valid', 'last', '700', '65,536', '2.000', '20.00', '200.0'],
        ['text:/books, valid', 'best', '500', '65,536', '3.000', '30.00', '300.0'],
        ['text:/books, text', 'best', '500', '65,536', '4.000', '40.00', '400.0'],
    ]


def test_zero_shot_scores_during_pretraining(drawn):
    tables = recorded.tables(curves.pretraining(recorded.collected()[0]))
    axes, (cola, sst2) = drawn['meanwhile0']
    assert (axes.title, cola.label, sst2.label) == ('pretrain', 'cola', 'sst2')
    np.testing.assert_allclose(cola.y, [100 * score for _, score in logged('pretrain', 'zero_shot_cola')])
    assert list(cola.x) == [step for step, _ in logged('pretrain', 'zero_shot_cola')]
    row = entry([row for row in tables[''] if 'score' in row], run='pretrain', set='cola', updates='700')
    assert row['score'] == '7.0'


def test_finetuning_has_the_median_of_the_seeds_and_their_band(drawn):
    lines = [line for line in recorded.collected()[1] if line.owner.name == 'ablation_table5']
    changed = dataclasses.replace(
        lines[0].runs[0],
        metrics=tuple(line | ({'task_loss': 9.0} if 'loss' in line else {}) for line in lines[0].runs[0].metrics),
    )
    lines[0] = dataclasses.replace(lines[0], runs=(changed, *lines[0].runs[1:]))
    tables = recorded.tables(curves.fine_tuning(lines))
    axes, of = drawn['tune0colatask_loss']
    assert (axes.title, axes.x, axes.y) == ('cola', 'updates', 'task loss')
    assert [curve.label for curve in of] == ['full', 'no_pretraining', 'no_auxiliary', 'lstm']
    expected = [loss for _, loss in logged('ablation_table5/cola/full/seed1', 'task_loss')]
    np.testing.assert_allclose(of[0].y, expected)
    np.testing.assert_allclose(of[0].low, expected)
    assert set(of[0].high) == {9.0}
    axes, of = drawn['tune0coladev_score']
    np.testing.assert_allclose(of[1].y, [100 * 0.6 * step / 60 for step in (20, 40, 60)])
    row = entry(tables[''], set='cola', row='no_pretraining')
    assert (row['runs'], row['updates'], row['task loss, first']) == ('3 of 3', '60', '1.600')
    assert (row['task loss, last'], row['dev, first'], row['dev, last']) == ('0.617', '20.0', '60.0')
    assert row['dev, best'] == '60.0'


def test_curves_of_unfinished_runs_are_shown(drawn):
    lines = [line for line in recorded.collected()[1] if line.owner.name == 'half']
    row = entry(recorded.tables(curves.fine_tuning(lines))[''], set='mrpc')
    assert row['runs'] == '0 of 2' and row['updates'] == '30' and row['dev, best'] == row['dev, last'] == '20.0'
    (curve,) = drawn['tune0mrpctask_loss'][1]
    assert curve.x[-1] == 30 and curve.label == row['row'] == 'half'  # it has no variants


def test_nothing_logged_is_a_gap_and_no_runs_no_section():
    line = recorded.collected()[1][0]
    silent = dataclasses.replace(line, runs=(dataclasses.replace(line.runs[0], metrics=()),))
    assert recorded.texts(curves.fine_tuning([silent]), Gap) == ['No run of fine-tuning has logged anything.']
    assert curves.fine_tuning([]) == curves.pretraining([]) == []


def test_some_keeps_the_last():
    assert curves._some(list(range(100))) == [9, 19, 29, 39, 49, 59, 69, 79, 89, 99]
    assert curves._some([1, 2, 3]) == [1, 2, 3] and curves._some([]) == []


def test_the_best_score_of_a_row_is_never_below_its_last(drawn):
    """All three are of what is logged, of MNLI of matched alone."""
    lines = [line for line in recorded.collected()[1] if line.owner.name == 'finetune' and line.dataset == 'mnli']

    def lowered(run):
        scores = [
            dataclasses.replace(one, value=one.value - 0.2) if one.split == 'dev_mismatched' else one
            for one in run.result.scores
        ]
        return dataclasses.replace(run, result=dataclasses.replace(run.result, scores=scores))

    (figure,) = curves.fine_tuning([dataclasses.replace(line, runs=tuple(map(lowered, line.runs))) for line in lines])[
        1:
    ]
    (row,) = recorded.tables([figure])['']
    assert row['dev, best'] == row['dev, last'] == '80.0' and 'of MNLI on matched' in figure.numbers.notes[0]


def test_seeds_that_end_at_other_updates_each_have_their_own_last(drawn):
    """Two seeds stop at 40 with 90 %, one goes on to 60 and falls to 50 %."""
    line = next(line for line in recorded.collected()[1] if line.owner.name == 'finetune' and line.dataset == 'sst2')
    of_seeds = [{20: 0.7, 40: 0.7, 60: 0.5}, {20: 0.7, 40: 0.9}, {20: 0.7, 40: 0.9}]
    logged = [tuple({'step': step, 'dev_score': value} for step, value in of.items()) for of in of_seeds]
    runs = tuple(dataclasses.replace(run, metrics=metrics) for run, metrics in zip(line.runs, logged))
    (row,) = recorded.tables(curves.fine_tuning([dataclasses.replace(line, runs=runs)]))['']
    assert [row[f'dev, {which}'] for which in ('first', 'best', 'last')] == ['70.0', '90.0', '90.0']
    (curve,) = drawn['tune0sst2dev_score'][1]
    assert (list(curve.x), list(curve.y)) == ([20, 40], [70, 90])
    drawn.clear()
    begun = dataclasses.replace(runs[0], result=None, metrics=logged[0][:1])
    curves.fine_tuning([dataclasses.replace(line, runs=(begun, *runs[1:]))])  # which hides no finished run
    assert list(drawn['tune0sst2dev_score'][1][0].x) == [20, 40]
