"""The plan of several runs: commands that mean the same configs, what is done, and what is left."""

import json
import shlex
import sys

import pytest
from absl import flags
from etils import epath
from ml_collections import config_flags

from configs import ablation, finetune, generate, layer_transfer, pretrain, report, zero_shot
from gpt1_jax.config import as_json
from gpt1_jax.errors import UserError
from gpt1_jax.report.plan import STEP, Part, PlannedRun, difference, estimated, format_plan, made_from, seconds_left
from gpt1_jax.report.results import Result, Score
from gpt1_jax.training import cost
from gpt1_jax.training.cost import LabelledSet
from helpers import ROOT


def changed(module, argument, **changes):
    config = module.get_config(argument)
    config.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return config


RUNS = [
    PlannedRun(
        'pretrain:tiny', changed(pretrain, 'tiny', data__source='text:/my books', optimizer__learning_rate=2e-3), 'a'
    ),
    PlannedRun(
        'finetune:all', changed(finetune, 'all', datasets=('rte', 'sst2'), data__limit=7, log__wandb=True), 'b c'
    ),
    PlannedRun('ablation:lambda', changed(ablation, 'lambda', datasets=('rte',), coefficients=(0.0, 0.5)), 'd'),
    PlannedRun('pretrain', pretrain.get_config(), 'e'),
]


@pytest.mark.parametrize('run', RUNS, ids=lambda run: run.file)
def test_the_command_means_the_same_config(run, monkeypatch):
    """As the program's own flags read it; it has no more than what differs from the config file."""
    python, *argv = shlex.split(run.command())
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, 'argv', argv[1:])  # where config_flags looks for keys
    assert [python, *argv[:2]] == ['python', '-m', 'gpt1_jax.main']
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file('config', flag_values=values)
    workdir = flags.DEFINE_string('workdir', None, 'folder', flag_values=values)
    values(argv[1:])
    assert as_json(config.value) == as_json(run.config) and config.value.task == run.config.task
    assert workdir.value == run.workdir
    numbers = {'pretrain:tiny': 2, 'finetune:all': 3, 'ablation:lambda': 2, 'pretrain': 0}
    assert len(argv) == 4 + numbers[run.file]


def run_in(folder, file='pretrain:tiny', config=None):
    return PlannedRun(file, config or pretrain.get_config('tiny'), epath.Path(folder))


def finish(run, seconds, folder=None, config=None):
    Result('any', [], {}, None, config or as_json(run.config), seconds).write(folder or run.workdir)


def test_a_run_is_done_if_its_result_is_of_this_config(tmp_path):
    run = run_in(tmp_path / 'lm')
    part = Part('lm', (run,))
    assert part.state() == 'to do' and not part.is_done()
    run.workdir.mkdir()
    (run.workdir / 'config.json').write_text('{}')
    assert part.state() == 'begun'
    finish(run, 1.0, config=as_json(run.config) | {'seed': 1})
    assert part.state() == 'begun'
    earlier = as_json(run.config)  # of a version that had fewer keys
    del earlier['data']['unwrap'], earlier['model']['attention']
    finish(run, 1.0, config=earlier)
    assert part.state() == 'done' and part.is_done()
    assert Part('two', (run, run_in(tmp_path / 'other'))).state() == 'begun'
    assert Part('x', (run_in(tmp_path / 'no'),), left_out='It cannot.').state() == 'left out'


def test_pretraining_is_as_far_as_its_log(tmp_path):
    """Of 8 steps 6, each of 16 * 128 tokens, at 100 tokens/s."""
    run = run_in(tmp_path)
    run.config.data.batch_size = 16
    lines = [{'step': 2, 'tokens_per_second': 10}, {'step': 4, 'tokens_per_second': 100}, {'step': 4, 'valid_loss': 3}]
    lines.append({'step': 6, 'tokens_per_second': 900})
    (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    assert Part('lm', (run,), units=8).progress() == (0.75, 6 * 16 * 128 / 100)
    assert Part('lm', (run_in(tmp_path / 'new'),), units=8).progress() == (0.0, None)


def test_zero_shot_scores_are_as_far_as_their_checkpoints(tmp_path):
    run = run_in(tmp_path, 'zero_shot', finetune.get_config('rte'))
    (tmp_path / 'zero_shot.json').write_text(json.dumps([{'step': 1}, {'step': 10}]))
    part = Part('zero_shot', (run,), units=8)
    assert part.progress() == (0.25, None)
    finish(run, 7.0)
    assert part.progress() == (1.0, 7.0)


def sweep(folder, seconds, planned):
    """A part with a run for each of `seconds`, of `planned`."""
    run = run_in(folder, 'finetune:all', changed(finetune, 'all', seeds=planned))
    run.workdir.mkdir()
    entries = [{'dataset': 'rte', 'variant': '', 'seed': i, 'path': f'rte/seed{i}'} for i in range(planned)]
    (run.workdir / 'runs.json').write_text(json.dumps(entries))
    for i, of_run in enumerate(seconds):
        finish(run, of_run, run.workdir / f'rte/seed{i}')
    return run


def test_a_sweep_is_as_far_as_its_runs(tmp_path):
    run = sweep(tmp_path / 'sweep', [3.0, 5.0], 8)
    assert Part('sweep', (run,), units=8).progress() == (0.25, 8.0)
    assert Part('sweep', (run,), units=8, together=2).progress() == (0.25, 4.0)
    finish(run, 1.0)  # of the process that ended it: the runs know better
    assert Part('sweep', (run,), units=8).progress() == (1.0, 8.0)


def test_a_sweep_that_is_asked_for_more_or_less_counts_the_runs_that_it_is_to_have(tmp_path):
    """Two of rte are finished: of two sets with three seeds that is a third, of one with one seed only the first."""
    run = sweep(tmp_path / 'sweep', [3.0, 5.0], 2)
    more = changed(finetune, 'all', seeds=3, datasets=('rte', 'sst2'))
    assert Part('sweep', (run_in(run.workdir, config=more),), units=6).progress() == (2 / 6, 8.0)
    less = changed(finetune, 'all', seeds=1, datasets=('sst2', 'rte'))
    assert Part('sweep', (run_in(run.workdir, config=less),), units=2).progress() == (0.5, 3.0)


def test_what_is_left_is_corrected_by_what_like_work_took(tmp_path):
    """8 s for a quarter of what was to take 64 s: half as long as was thought."""
    begun = Part('begun', (sweep(tmp_path / 'begun', [3.0, 5.0], 8),), seconds=64.0, work='fine-tuning', units=8)
    parts = [
        begun,
        Part('alike', (run_in(tmp_path / 'a'),), seconds=10.0, work='fine-tuning'),
        Part('other', (run_in(tmp_path / 'b'),), seconds=10.0, work='pretrain'),
        Part('none', (run_in(tmp_path / 'c'),), seconds=10.0, work='pretrain', left_out='No data.'),
    ]
    assert seconds_left(parts) == {'begun': 0.75 * 64 / 2, 'alike': 5.0, 'other': 10.0, 'none': 0.0}


def test_the_plan_as_text(tmp_path):
    done, left = run_in(tmp_path / 'lm'), {'lm': 0.0, 'scores': 3725.0, 'transfer': 0.0}
    done.workdir.mkdir()
    finish(done, 1.0)
    scores = run_in(tmp_path / 'scores')
    parts = [
        Part('lm', (done,), lacks=('cola: Gone.',)),
        Part('scores', (scores, scores), lacks=('race: No folder.', 'dpr: No labels.')),
        Part('transfer', (scores,), lacks=('mnli: No.',), left_out='No mnli.'),
    ]
    assert format_plan(parts, left).splitlines() == [
        'part                  state      time left, about',
        'lm                    done                       ',
        'scores                to do               1:02:05',
        'transfer              left out                   ',
        'all                                       1:02:05',
        'scores will leave out race: No folder.',
        'scores will leave out dpr: No labels.',
        'transfer is left out: No mnli.',
        '',
        'lm:',
        f'  {done.command()}',
        '',
        'scores:',
        *2 * [f'  {scores.command()}'],
    ]


def test_how_what_a_part_was_made_from_has_changed():
    before = {'config': {'seed': 0, 'data': {'source': 'text:/a'}, 'mesh': {'strategy': 'dp'}}, 'result': 'x'}
    moved = {'config': {'seed': 0, 'data': {'source': 'text:/b'}, 'mesh': {'strategy': 'tp'}}, 'result': 'x'}
    assert difference(before, moved) is None
    assert difference(before, moved | {'result': ''}) is None  # not known yet
    assert difference(before, moved | {'result': 'y'}) == ''
    assert difference(before, {'config': {}, 'result': 'x'}) is None
    assert difference(before, before | {'config': before['config'] | {'seed': 1}}) == ' (seed: 0 there, 1 now)'


def test_a_folder_tells_what_its_parts_were_made_from(tmp_path):
    assert made_from(tmp_path) == {}
    kept = {'finetune': {'pretrain': {'config': {'seed': 0}, 'result': 'x'}}}
    (tmp_path / 'parts.json').write_text(json.dumps(kept))
    assert made_from(tmp_path) == kept
    (tmp_path / 'parts.json').write_text('{"finetune": 3}')
    with pytest.raises(UserError, match='parts.json: .* Delete it'):
        made_from(tmp_path)


def test_what_a_run_found_is_known_by_its_scores(tmp_path):
    run = run_in(tmp_path / 'lm')
    run.workdir.mkdir()
    assert run.content() == ''
    found = {}
    for name, uri, value, seconds in (('a', 'x', 2.0, 1.0), ('moved, slower', 'y', 2.0, 9.0), ('other', 'x', 2.5, 1.0)):
        score = Score(uri, 'valid', 'loss', value, 10)
        Result('pretrain', [score], {}, None, as_json(run.config), seconds).write(run.workdir)
        found[name] = run.content()
    assert found['a'] == found['moved, slower'] != found['other']


def test_a_key_that_the_file_lacks_is_shown():
    config = changed(finetune, 'all')
    config.variants = {'short': {'data': {'limit': 7}}}
    command = PlannedRun('finetune:all', config, 'x').command()
    assert [flag for flag in shlex.split(command) if 'variants' in flag] == [
        '--config.variants.short={"data": {"limit": 7}}'
    ]


def estimate(module, argument='', *, folders=('x',), **changes):
    """Of a part, at one token a second: what `estimated` finds. Of RTE 96 examples of 10 tokens can be trained on, of
    CoLA and SST-2 some splits are not there."""
    model = changed(pretrain, 'tiny', checkpoint__keep_log=2, checkpoint__keep_latest=3, model__layers=4)
    config = changed(module, argument, **changes)
    sets = {
        'rte': LabelledSet({'train': 96, 'dev': 30, 'test': 60}, 10.0, 20.0, ''),
        'cola': LabelledSet({'dev': 9}, 10.0, 20.0, 'train.tsv is missing.'),
        'sst2': LabelledSet({'dev': 9}, 10.0, 20.0, 'train.tsv is missing'),
    }
    runs = tuple(PlannedRun('', config, epath.Path(folder)) for folder in folders)
    return estimated(Part('part', runs), model, 1000, sets, cost.flops_per_token(model))


def test_the_time_of_pretraining_is_that_of_its_tokens():
    part = estimate(pretrain, 'tiny', data__batch_size=7)
    assert (part.seconds, part.work, part.units) == (10 + 1000 * 7 * 128, 'part', 1000)


def test_the_time_of_texts_and_of_the_report_does_not_depend_on_the_model():
    known, unknown = estimate(generate, folders=('10', '100')), estimate(generate, folders=(STEP,))
    assert (known.seconds, unknown.seconds) == (2 * 15, (2 + 3) * 15)  # 1, 10, 100, 1,000 and the best
    assert estimate(report).seconds == 20 and {known.work, estimate(report).work} == {'part'}


def test_the_time_of_zero_shot_scores_is_that_of_all_checkpoints():
    """Two checkpoints in each tenfold and the last three; of CoLA the train split is lacking, of SST-2 not needed."""
    part = estimate(zero_shot, datasets=('sst2', 'cola'))
    checkpoints = 1 + 2 * 3 + 3
    assert (part.work, part.units, part.left_out) == ('zero_shot', checkpoints, '')
    assert part.seconds == pytest.approx(2 * checkpoints + checkpoints * 9 * 2 * 20 / 3)
    assert part.lacks == ('cola: train.tsv is missing.',)
    assert estimate(zero_shot, datasets=('cola',)).left_out == 'cola: train.tsv is missing.'


def test_the_time_of_fine_tuning_is_that_of_its_runs():
    """Each trains for three epochs; dev is read after each and once more, test once, for a third of the time."""
    usual = dict(datasets=('rte', 'sst2'), seeds=2, workers=1, data__epochs=3, data__batch_size=32, data__score_train=0)
    one = 10 * (3 * 96 + (4 * 30 + 60) / 3)
    part = estimate(finetune, 'all', **usual)
    assert part.seconds == pytest.approx(2 * (10 + one)) and (part.work, part.units) == ('fine-tuning', 2)
    assert part.lacks == ('sst2: train.tsv is missing.',) and not part.left_out and part.together == 1
    part = estimate(ablation, 'table5', **usual)
    assert part.seconds == pytest.approx(8 * (10 + one)) and part.units == 8
    part = estimate(ablation, 'lambda', coefficients=(0.0, 0.5, 1.0), **usual)
    assert part.seconds == pytest.approx(6 * (10 + one)) and part.units == 6
    part = estimate(ablation, 'share', shares=(0.1, 0.5, 1.0), **usual)  # a tenth is not a batch
    half = one - 10 * 3 * 48
    assert part.seconds == pytest.approx(4 * (20 + one + half)) and part.units == 8
    part = estimate(finetune, 'all', **usual | {'datasets': ('sst2',)})
    assert part.left_out == 'sst2: train.tsv is missing.' and (part.seconds, part.units) == (0, 1)


def test_the_time_of_layer_transfer_is_that_of_a_run_of_each_number_of_layers():
    usual = dict(data__source='x', seeds=2, workers=1, data__epochs=3, data__score_train=0)
    one = 10 * (3 * 96 + (4 * 30 + 60) / 3)
    assert estimate(layer_transfer, 'rte', **usual).seconds == pytest.approx(2 * 5 * (10 + one))
    part = estimate(layer_transfer, 'rte', layers=(0, 2, 2), **usual)
    assert part.seconds == pytest.approx(2 * 2 * (10 + one)) and part.units == 4
