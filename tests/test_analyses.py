"""Figure 2 and the studies: the curves that are drawn and the numbers below them, against the files of the runs."""

import dataclasses

import numpy as np
import pytest

import recorded
from gpt1_jax.evaluation.paper import ZERO_SHOT
from gpt1_jax.report import analyses
from gpt1_jax.report.blocks import Figure, Gap, Heading
from recorded import entry, value


@pytest.fixture
def drawn(monkeypatch):
    """Name of a panel -> (axes, curves), in place of drawing them."""
    panels = {}
    monkeypatch.setattr(analyses, 'panel', lambda name, *rest: str(panels.setdefault(name, rest) and name))
    return panels


def runs_and_lines():
    return recorded.collected()


def medians(path, n, split='dev'):
    values = [value(f'{path}/seed{i}', split=split, checkpoint='best', subset='') for i in range(n)]
    return np.median(values), min(values), max(values)


def with_settings(line, owner, **settings):
    """The line with other settings of its runs, and another name of its owner."""
    runs = tuple(dataclasses.replace(run, config=run.config | settings) for run in line.runs)
    return dataclasses.replace(line, owner=dataclasses.replace(line.owner, name=owner), runs=runs)


def test_layer_transfer_has_a_solid_and_a_dashed_curve(drawn):
    blocks = analyses.layer_transfer(runs_and_lines()[1])
    ((axes, (dev, train)),) = drawn.values()
    assert (axes.x, axes.log, axes.title) == ('layers transferred', False, 'from pretrain, other layers fresh')
    assert (dev.label, dev.dashed, train.label, train.dashed) == ('race dev', False, 'race train', True)
    assert dev.x == train.x == [0, 1, 2, 3, 4] and dev.look == train.look
    for curve, split in ((dev, 'dev'), (train, 'train')):
        expected = [medians(f'layer_transfer_race/race/layers{n}', 2, split) for n in range(5)]
        np.testing.assert_allclose(np.transpose([curve.y, curve.low, curve.high]), 100 * np.array(expected))
    entries = recorded.tables(blocks)['']
    assert [row['layers'] for row in entries] == list('01234')
    assert entries[2]['dev'] == f'{100 * medians("layer_transfer_race/race/layers2", 2)[0]:.1f}'
    assert entries[2]['train'] == '66.0' and entries[2]['seeds'] == '2 of 2'
    differences = recorded.tables(blocks)['All layers that were tried, less fewer']
    assert [row['rows'] for row in differences] == [f'layers4 less layers{n}' for n in range(4)]


def test_a_number_of_layers_that_is_not_finished_is_a_gap(drawn):
    lines = [line for line in runs_and_lines()[1] if line.owner.task == 'layer_transfer']
    lines[1] = dataclasses.replace(lines[1], runs=())
    blocks = analyses.layer_transfer(lines)
    ((_, (dev, _)),) = drawn.values()
    assert dev.x == [0, 2, 3, 4]
    row = entry(recorded.tables(blocks)[''], layers='1')
    assert row['dev'] is row['train'] is None and row['seeds'] == '0 of 2'
    nothing = [dataclasses.replace(line, runs=()) for line in lines]
    assert recorded.texts(analyses.layer_transfer(nothing), Gap) == ['No run of it is finished.']
    assert analyses.layer_transfer([]) == []


def test_two_sweeps_of_one_set_are_two_curves(drawn):
    lines = [line for line in runs_and_lines()[1] if line.owner.task == 'layer_transfer']
    owner = dataclasses.replace(lines[0].owner, name='again')
    analyses.layer_transfer(lines + [dataclasses.replace(line, owner=owner) for line in lines[:2]])
    ((_, curves),) = drawn.values()
    assert [(curve.label, len(curve.x)) for curve in curves] == [
        *(('race (layer_transfer_race) dev', 5), ('race (layer_transfer_race) train', 5)),
        *(('race (again) dev', 2), ('race (again) train', 2)),
    ]


def test_other_layers_absent_and_fresh_are_two_figures(drawn):
    lines = [line for line in runs_and_lines()[1] if line.owner.task == 'layer_transfer']
    absent = [with_settings(line, line.owner.name, rest='absent') for line in lines]
    analyses.layer_transfer(lines + absent)
    titles = [axes.title for axes, _ in drawn.values()]
    assert titles == ['from pretrain, other layers fresh', 'from pretrain, other layers absent']


def test_zero_shot_curves_are_solid_for_the_transformer_and_dashed_for_the_lstm(drawn):
    blocks = analyses.zero_shot(runs_and_lines()[0])
    ((axes, curves),) = drawn.values()
    assert axes.log and axes.x == 'updates' and axes.levels == ((0, 'chance'), (1, 'best supervised'))
    assert axes.title == "the paper's heuristics"
    names = [name for name, (*_, best) in ZERO_SHOT.items() if best is not None]
    assert [curve.label for curve in curves] == [f'{n} {kind}' for kind in ('transformer', 'lstm') for n in names]
    for curve in curves:
        dataset, kind = curve.label.rsplit(' ', 1)
        path = 'zero_shot' if kind == 'transformer' else 'zero_shot_lstm'
        assert curve.x == recorded.STEPS and curve.dashed == (kind == 'lstm')
        expected = [value(path, dataset=dataset, metric='scaled', step=step) for step in curve.x]
        assert list(curve.y) == expected
        assert curve.look == names.index(dataset)
    (figure,) = [block for block in blocks if isinstance(block, Figure)]
    assert 'zero_shot: transformer, 4 layers' in figure.caption and 'a' * 16 in figure.caption
    assert 'vocabularies' not in figure.caption


def test_zero_shot_numbers(drawn):
    tables = recorded.tables(analyses.zero_shot(runs_and_lines()[0]))
    row = entry(tables['Scaled scores'], run='zero_shot_lstm', updates='100')
    assert row['tokens'] == f'{204_800:,}' and row['threshold of CoLA, nats'] == '\N{MINUS SIGN}5.250'
    assert row['dpr'] == f'{value("zero_shot_lstm", dataset="dpr", metric="scaled", step=100):.2f}'
    assert 'copa' not in row  # its best supervised result is unknown
    raw = tables['Raw scores of the last checkpoint, in per cent']
    row = entry(raw, run='zero_shot', set='copa')
    score = value('zero_shot', dataset='copa', metric='accuracy', step=1000)
    assert (row['score'], row['chance'], row['best supervised']) == (f'{100 * score:.1f}', '50.0', '')
    assert row['standard error'] == f'{100 * np.sqrt(score * (1 - score) / recorded.DEV):.1f}'
    row = entry(raw, run='zero_shot', set='cola')
    assert (row['metric'], row['standard error'], row['best supervised']) == ('matthews', '', '35.0')
    assert row['cut'] == '0' and entry(raw, run='zero_shot', set='race')['cut'] == '190'
    notes = [note for block in analyses.zero_shot(runs_and_lines()[0]) for note in getattr(block, 'notes', ())]
    assert f'zero_shot_lstm: of no split more than {recorded.DEV} examples.' in notes


def test_other_heuristics_and_a_second_model_have_panels_of_their_own(drawn):
    runs = runs_and_lines()[0]
    run = next(run for run in runs if run.name == 'zero_shot')
    other = dataclasses.replace(run, config=run.config | {'condition': 'alone'})
    blocks = analyses.zero_shot([*runs, other, run])
    assert [(axes.title, len(curves)) for axes, curves in drawn.values()] == [
        ("the paper's heuristics: zero_shot, zero_shot_lstm", 10),
        ('start token: False, length normalised: True, condition: alone', 5),
        ("the paper's heuristics: zero_shot", 5),
    ]
    alone = [one for one in runs if one.task == 'zero_shot']  # without the runs of pre-training
    (figure,) = [block for block in analyses.zero_shot(alone) if isinstance(block, Figure)]
    assert 'vocabulary unknown' in figure.caption and 'Not all vocabularies are known' in figure.caption
    assert blocks


def test_models_of_two_vocabularies_are_said_to_be(drawn):
    runs = runs_and_lines()[0]
    changed = [dataclasses.replace(run, vocabulary='b' * 16) if run.name == 'pretrain_lstm' else run for run in runs]
    (figure,) = [block for block in analyses.zero_shot(changed) if isinstance(block, Figure)]
    assert figure.caption.endswith(' The vocabularies differ: these models differ by that too.')


def test_one_checkpoint_is_a_table_without_a_figure(drawn):
    run = next(run for run in runs_and_lines()[0] if run.name == 'zero_shot')
    scores = [dataclasses.replace(score, step=None) for score in run.result.select(step=1000)]
    facts = {'checkpoints': [{'step': None, 'tokens_seen': None, 'cola_threshold': -4.0}]}
    run = dataclasses.replace(run, result=dataclasses.replace(run.result, scores=scores, facts=facts))
    blocks = analyses.zero_shot([run])
    assert not drawn and not [block for block in blocks if isinstance(block, Figure)]
    (row,) = recorded.tables(blocks)['Scaled scores']
    assert row['updates'] is row['tokens'] is None and row['threshold of CoLA, nats'] == '\N{MINUS SIGN}4.000'
    unfinished = dataclasses.replace(run, result=None)
    assert recorded.texts(analyses.zero_shot([unfinished]), Gap) == ['No run of them is finished.']
    assert analyses.zero_shot([]) == []


def test_a_run_without_scores_is_as_if_it_were_not_finished(drawn):
    run = next(run for run in runs_and_lines()[0] if run.name == 'zero_shot')
    run = dataclasses.replace(run, result=dataclasses.replace(run.result, scores=[]))
    assert recorded.texts(analyses.zero_shot([run]), Gap) == ['No run of them is finished.']


def test_a_heuristic_that_a_run_does_not_tell_is_not_in_the_title(drawn):
    run = next(run for run in runs_and_lines()[0] if run.name == 'zero_shot')
    config = {name: value for name, value in run.config.items() if name != 'condition'}
    analyses.zero_shot([dataclasses.replace(run, config=config)])
    assert [axes.title for axes, _ in drawn.values()] == ['start token: False, length normalised: True']


def test_the_weight_of_the_auxiliary_loss(drawn):
    blocks = analyses.studies(runs_and_lines()[1])
    axes, (curve,) = drawn['lambda1']
    assert (axes.title, axes.log) == ('sst2', False) and curve.x == [0, 0.1, 0.5, 1, 2]
    expected = [medians(f'ablation_lambda/sst2/lambda{x:g}', 2) for x in curve.x]
    np.testing.assert_allclose(np.transpose([curve.y, curve.low, curve.high]), 100 * np.array(expected))
    assert recorded.texts(blocks, Heading) == [
        *('What the paper leaves open', 'Weight of the auxiliary loss', 'Share of the training examples')
    ]
    rows = [row for row in recorded.tables(blocks)['Differences'] if row['set'] == 'cola']
    assert [row['rows'] for row in rows] == [f'lambda{x} less lambda0' for x in ('0.1', '0.5', '1', '2')]


def test_small_values_have_an_exponent_in_the_variant(drawn):
    line = next(line for line in runs_and_lines()[1] if line.variant == 'lambda0' and line.dataset == 'cola')
    analyses.studies([dataclasses.replace(line, variant=f'lambda{x:g}') for x in (0.00001, 0)])
    assert drawn['lambda0'][1][0].x == [0, 0.00001]


def test_the_share_of_examples_has_a_curve_with_and_one_without_pre_training(drawn):
    blocks = analyses.studies(runs_and_lines()[1])
    axes, (pretrained, scratch) = drawn['share0']
    assert axes.log and axes.x == 'share of the training examples, per cent'
    assert (pretrained.label, scratch.label) == ('pre-trained', 'from scratch')
    assert pretrained.x == scratch.x == [1, 10, 100]
    assert scratch.y[1] == pytest.approx(100 * medians('ablation_share/sst2/share0.1_scratch', 2)[0])
    rows = [row['rows'] for row in recorded.tables(blocks)['Differences'] if row['rows'].startswith('share')]
    assert rows == [f'share{x} less share{x}_scratch' for x in ('0.01', '0.1', '1')]
    lines = [dataclasses.replace(line, runs=()) for line in runs_and_lines()[1] if 'share' in line.variant]
    assert recorded.texts(analyses.studies(lines), Gap) == ['No run of it is finished.']
    assert analyses.studies([]) == []


def test_of_mnli_every_number_says_which_dev_sets_it_is_of(drawn):
    lines = [line for line in runs_and_lines()[1] if line.owner.name == 'ablation_table5' and line.dataset == 'mnli']
    owner = dataclasses.replace(lines[0].owner, config={'task': 'layer_transfer', 'init_from': 'x'})
    lines = [dataclasses.replace(line, owner=owner, variant=f'layers{4 - i}') for i, line in enumerate(lines[:2])]
    blocks = analyses.layer_transfer(lines)
    (figure,) = [block for block in blocks if isinstance(block, Figure)]
    assert 'of MNLI the mean of matched and mismatched' in figure.numbers.notes[0]
    (row,) = recorded.tables(blocks)['All layers that were tried, less fewer']
    of = [medians(f'ablation_table5/mnli/{name}', 3)[0] for name in ('full', 'no_pretraining')]
    assert row['set'] == 'mnli, matched' and row['medians'] == f'{100 * of[0]:.1f} less {100 * of[1]:.1f}'


def test_figures_from_two_models_of_one_name_are_two(drawn):
    lines = [line for line in runs_and_lines()[1] if line.owner.task == 'layer_transfer']
    of = {'a/moved': '/a/pretrain', 'b/moved': '/b/pretrain', 'early': '/a/pretrain@10'}
    changed = [with_settings(line, name, init_from=path) for name, path in of.items() for line in lines]
    blocks = analyses.layer_transfer(changed)
    assert [axes.title for axes, _ in drawn.values()] == [
        'from pretrain, other layers fresh: a/moved',
        'from pretrain, other layers fresh: b/moved',
        'from pretrain@10, other layers fresh',
    ]
    rows = recorded.tables(blocks)['All layers that were tried, less fewer']
    assert [row['run'] for row in rows] == [name for name in of for _ in range(4)]


def test_panels_of_one_set_are_told_apart(drawn):
    lines = [line for line in runs_and_lines()[1] if line.owner.name == 'ablation_lambda' and line.dataset == 'sst2']
    owner = dataclasses.replace(lines[0].owner, name='again')
    blocks = analyses.studies([*lines, *(dataclasses.replace(line, owner=owner) for line in lines)])
    assert [axes.title for axes, _ in drawn.values()] == ['sst2: ablation_lambda', 'sst2: again']
    rows = recorded.tables(blocks)['Differences']
    assert [row['run'] for row in rows] == ['ablation_lambda'] * 4 + ['again'] * 4


def test_other_variants_in_the_folder_of_a_study_are_left_out_of_it(drawn):
    lines = [line for line in runs_and_lines()[1] if line.owner.name == 'ablation_lambda' and line.dataset == 'cola']
    lines[0] = dataclasses.replace(lines[0], variant='')
    rows = recorded.tables(analyses.studies(lines))['Differences']
    assert [row['rows'] for row in rows] == [f'lambda{x} less lambda0.1' for x in ('0.5', '1', '2')]


def test_what_layers_are_from_is_told_by_their_runs(drawn):
    """The config of the study may be that of a later command, which was refused."""
    lines = [line for line in runs_and_lines()[1] if line.owner.task == 'layer_transfer']
    owner = dataclasses.replace(lines[0].owner, config={'task': 'layer_transfer', 'init_from': 'b', 'rest': 'absent'})
    analyses.layer_transfer([dataclasses.replace(line, owner=owner) for line in lines])
    assert [axes.title for axes, _ in drawn.values()] == ['from pretrain, other layers fresh']


def test_the_runs_of_a_study_are_shown_also_when_its_folder_was_used_for_another(drawn):
    lines = [line for line in runs_and_lines()[1] if line.owner.name == 'ablation_lambda']
    owner = dataclasses.replace(lines[0].owner, config=lines[0].owner.config | {'study': 'share'})
    blocks = analyses.studies([dataclasses.replace(line, owner=owner) for line in lines])
    assert recorded.texts(blocks, Heading) == ['What the paper leaves open', 'Weight of the auxiliary loss']
    assert len(drawn) == 2 and drawn['lambda1'][1][0].x == [0, 0.1, 0.5, 1, 2]
