"""What was run and what was not, and what it cost, against the files of the runs."""

import dataclasses
import re

import numpy as np
import pytest

import recorded
from gpt1_jax.data.labelled.registry import REGISTRY
from gpt1_jax.report import overview
from gpt1_jax.report.blocks import Gap, Paper, Text
from recorded import entry, stored


@pytest.fixture(scope='module')
def tables():
    return recorded.tables(overview.summary(*recorded.collected()))


def test_each_run_is_listed_and_the_runs_of_a_sweep_counted(tables):
    rows = tables['Runs, by folder']
    assert [row['run'] for row in rows] == [
        *('ablation_lambda', 'ablation_share', 'ablation_table5', 'evaluation', 'finetune', 'half'),
        *('layer_transfer_race', 'prepare', 'pretrain', 'pretrain_half', 'pretrain_lstm', 'pretrain_other'),
        *('samples/10', 'samples/1000', 'text', 'zero_shot', 'zero_shot_lstm'),
    ]
    assert entry(rows, run='half')['state'] == 'unfinished, 1 of 4 runs'
    assert entry(rows, run='ablation_table5')['state'] == 'finished, 36 of 36 runs'
    row = entry(rows, run='pretrain_lstm')
    assert (row['task'], row['time'], row['vocabulary']) == ('pretrain', '0:02:46', 'a' * 16)
    assert row['model'] == 'lstm, 1 layer, 128 wide, 344 units, 1.29 M parameters' and row['from'] == 'text:/books'
    assert entry(rows, run='samples/10')['from'] == 'pretrain@10'
    assert entry(rows, run='zero_shot')['from'] == 'pretrain@all'
    assert entry(rows, run='pretrain_half')['time'] is None


def test_gaps_are_named():
    gaps = recorded.texts(overview.summary(*recorded.collected()), Gap)
    assert {
        'pretrain_half is not finished, so it has no scores here.',
        'half, rte: 1 of 2 runs are finished.',
        'half, mrpc: 0 of 2 runs are finished.',
        'wnli is left out in ablation_lambda, ablation_share, ablation_table5, finetune, layer_transfer_race: '
        'no folder for it',
    } == set(gaps[:4])
    assert not any('ablation_table5,' in gap for gap in gaps if 'are finished' in gap)


def test_gaps_of_one_row_are_one():
    runs, lines = recorded.collected()
    lines = [dataclasses.replace(line, runs=()) if line.owner.name == 'half' else line for line in lines]
    gaps = recorded.texts(overview.summary(runs, lines), Gap)
    assert 'half, rte, mrpc: 0 of 2 runs each are finished.' in gaps
    assert sum(gap.startswith('half,') for gap in gaps) == 1


def test_a_damaged_run_is_named():
    runs, lines = recorded.collected()
    broken = [dataclasses.replace(run, damage=('dev.npz: Bad.',)) if run.name == 'text' else run for run in runs]
    blocks = overview.summary(broken, lines)
    assert 'text is damaged. dev.npz: Bad.' in recorded.texts(blocks, Gap)
    assert entry(recorded.tables(blocks)['Runs, by folder'], run='text')['state'] == 'damaged'


def test_the_data(tables):
    (row,) = tables['Texts for pre-training']
    facts = stored('prepare')['facts']
    for column, what, split in (
        ('documents', 'documents', 'train'),
        ('held out', 'documents', 'valid'),
        ('tokens', 'tokens', 'train'),
        ('held-out tokens', 'tokens', 'valid'),
    ):
        assert row[column] == f'{facts[what][split]:,}'
    row = entry(tables['Labelled sets'], set='cola', runs='ablation_table5')
    assert (row['training examples'], row['dev examples'], row['seeds']) == ('640', '200', '0, 1, 2')
    assert (row['which'], row['finished']) == ('partial: the first 640', '12 of 12')
    assert row['cut'] == '1,234'
    assert entry(tables['Labelled sets'], set='mrpc')['training examples'] is None
    assert entry(tables['Labelled sets'], set='race', runs='finetune')['which'] == "all of the source's"


@pytest.mark.parametrize(
    ('data', 'used', 'words'),
    [
        ({}, 1000, "all of the source's"),
        ({'limit': 1000, 'share': 1.0}, 1000, 'partial: the first 1,000'),
        ({'limit': 1000}, None, 'partial: the first 1,000'),  # not finished
        ({'limit': 1000}, 635, "all of the source's"),  # which has no more
        ({'share': 0.03}, 30, 'partial: 3 %'),
        ({'limit': 100, 'share': 0.07}, 7, 'partial: the first 100, of these 7 %'),  # 0.07 * 100 is more than 7
        ({'limit': 1000, 'share': 0.1}, 64, 'partial: 10 %'),
    ],
)
def test_which_part_of_a_set_a_run_used(data, used, words):
    run = recorded.collected()[0][0]
    result = run.result and dataclasses.replace(run.result, facts={} if used is None else {'train_examples': used})
    assert overview.part_of(dataclasses.replace(run, config={'data': data}, result=result)) == words


@pytest.mark.parametrize(
    ('shares', 'words'),
    [((0.1, 0.03, 0.1), 'partial: 3 %; partial: 10 %'), ((0.1, 0.5, 0.03), 'partial: 3 %, ..., partial: 50 %')],
)
def test_of_several_parts_of_a_set_the_smallest_and_the_largest_are_told(shares, words):
    runs, lines = recorded.collected()
    line = next(line for line in lines if line.owner.name == 'finetune' and line.dataset == 'race')
    parts = [
        dataclasses.replace(run, config=run.config | {'seed': 7 - i, 'data': {'share': share}})
        for i, (run, share) in enumerate(zip(line.runs, shares, strict=True))
    ]
    line = dataclasses.replace(line, runs=tuple(parts), planned=5)
    (row,) = recorded.tables(overview.summary(runs, [line]))['Labelled sets']
    assert (row['which'], row['seeds'], row['finished']) == (words, '5, 6, 7', '3 of 5')


def test_devices_and_versions(tables):
    rows = tables['Devices and programs']
    runs = [run for run in recorded.collected()[0] if run.result]
    assert sum(int(row['runs']) for row in rows) == len(runs)
    with_device, *_ = [row for row in rows if row['device'] != 'none used']
    assert (
        with_device['device'] == '8 x cpu' and f'jax {stored("pretrain")["versions"]["jax"]}' in with_device['versions']
    )


def not_run(runs, lines):
    blocks = overview.summary(runs, lines)
    start = next(i for i, block in enumerate(blocks) if getattr(block, 'text', '') == 'What of the paper is missing')
    return recorded.texts(blocks[start:], Gap), recorded.texts(blocks[start:], Text)


def test_what_of_the_paper_was_not_run():
    gaps, _ = not_run(*recorded.collected())
    runs, lines = recorded.collected()
    studies = [line for line in lines if line.owner.task in ('ablation', 'layer_transfer')]
    named = 'mnli, cola, sst2, stsb, race'
    assert set(named.split(', ')) <= set(re.split(' on |, |[.]', not_run(runs, studies)[0][0]))
    assert gaps[0] == 'Fine-tuning (tables 2 to 4) on mrpc, qqp, qnli, wnli, snli, scitail, story_cloze.'
    assert gaps[1] == 'Layer transfer (figure 2, left) on mnli.'
    assert gaps[2:] == [
        f'The row {row!r} of table 5 on sst2, mrpc, qqp, qnli, rte.'
        for row in ('full', 'no_pretraining', 'no_auxiliary', 'lstm')
    ]


def test_of_nothing_all_is_missing():
    runs, _ = recorded.collected()
    gaps, _ = not_run([run for run in runs if run.name == 'prepare'], [])
    published = ', '.join(name for name, dataset in REGISTRY.items() if dataset.paper)
    assert gaps[:6] == [
        'Pre-training of a transformer.',
        'Pre-training of an LSTM.',
        'Zero-shot scores (figure 2, right) of the transformer on cola, sst2, race, dpr.',
        'Zero-shot scores (figure 2, right) of the lstm on cola, sst2, race, dpr.',
        f'Fine-tuning (tables 2 to 4) on {published}.',
        'Layer transfer (figure 2, left) on mnli, race.',
    ]
    assert gaps[6:] == ['The ablations of table 5.']


def test_cost_stands_beside_the_papers():
    blocks = overview.cost(*recorded.collected())
    tables = recorded.tables(blocks)
    facts, lines = stored('pretrain')['facts'], (recorded.everything() / 'pretrain' / 'metrics.jsonl').read_text()
    speeds = [float(speed) for speed in re.findall('"tokens_per_second": ([0-9.]+)', lines)]
    row = entry(tables['Pre-training'], run='pretrain')
    assert row['tokens'] == f'{facts["tokens"]:,}' and row['tokens/s'] == f'{np.median(speeds):,.0f}'
    assert float(row['petaFLOP/s-days']) == pytest.approx(facts['flops'] / 8.64e19, rel=5e-3)
    assert (row['time'], row['device']) == ('0:02:46', '8 x cpu')
    (table,) = [block for block in blocks if getattr(block, 'caption', '') == 'Pre-training']
    assert tables['Pre-training'][-1]['petaFLOP/s-days'] == '0.96' and isinstance(table.entries[-1][3], Paper)
    assert not any(row['run'] == 'pretrain_half' for row in tables['Pre-training'])


def test_the_time_of_all_else_is_a_sum_over_the_runs_of_a_sweep():
    rows = recorded.tables(overview.cost(*recorded.collected()))['All else']
    row = entry(rows, run='ablation_table5')
    seconds = 36 * 12
    assert row['finished runs'] == '36' and row['time'] == f'0:{seconds // 60:02}:{seconds % 60:02}'
    assert entry(rows, run='half')['finished runs'] == '1'
    assert entry(rows, run='prepare')['time'] == '0:01:01' and not any(row['run'] == 'pretrain' for row in rows)


def test_no_finished_pre_training_is_a_gap():
    runs, lines = recorded.collected()
    blocks = overview.cost([run for run in runs if run.name == 'pretrain_half'], [])
    assert recorded.texts(blocks, Gap) == ['No run of pre-training is finished.']


@pytest.mark.parametrize(
    ('n_transfer', 'words'),
    [
        (None, 'pretrain@10, files:/data'),
        (-1, 'from scratch (tokenizer of pretrain@10), files:/data'),
        (1, '1 layer of pretrain@10, files:/data'),
        (0, '0 layers of pretrain@10, files:/data'),
    ],
)
def test_what_of_a_model_a_run_starts_from(n_transfer, words):
    runs, _ = recorded.collected()
    start = str(recorded.everything() / 'pretrain@10')
    config = {'task': 'finetune', 'init_from': start, 'n_transfer': n_transfer, 'data': {'source': 'files:/data'}}
    run = dataclasses.replace(runs[0], name='mine', config=config, plan=())
    rows = recorded.tables(overview.summary([*runs, run], []))['Runs, by folder']
    assert entry(rows, run='mine')['from'] == words


def test_seeds_of_other_settings_are_named():
    runs, lines = recorded.collected()
    (line,) = [line for line in lines if (line.owner.name, line.dataset) == ('finetune', 'sst2')]
    assert len(line.finished) > 1 and 'not only' not in ' '.join(recorded.texts(overview.summary(runs, lines), Gap))
    *others, last = line.runs
    data = last.config['data'] | {'epochs': 9.0}
    changed = last.config | {'lm_coefficient': 7.0, 'init_from': '/moved', 'data': data}
    mixed = dataclasses.replace(line, runs=(*others, dataclasses.replace(last, config=changed)))
    gaps = recorded.texts(overview.summary(runs, [mixed]), Gap)
    assert [gap for gap in gaps if 'not only' in gap] == [
        'finetune, sst2: The runs differ not only in their seeds (data.epochs, lm_coefficient), so their median and '
        'spread are not those of one setting.'
    ]


def test_a_run_that_is_in_the_folder_of_a_sweep_by_chance_is_named():
    runs, lines = recorded.collected()
    run = next(run for run in runs if run.name == 'finetune/sst2/seed0')
    stray = dataclasses.replace(run, name='finetune/mine')
    gaps = recorded.texts(overview.summary([*runs, stray], lines), Gap)
    assert [gap for gap in gaps if 'not one of its runs' in gap] == [
        'finetune/mine is in the folder of a sweep but not one of its runs, so its scores are not shown.'
    ]
