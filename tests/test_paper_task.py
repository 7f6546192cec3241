"""The whole paper: its plan, the commands, and which parts run, with stand-ins for the tasks."""

import json
import random
import re
import shlex
import shutil
import types

import pytest
from etils import epath

import zero_shot_sets
from configs import paper as config_file
from gpt1_jax.config import as_json
from gpt1_jax.errors import UserError
from gpt1_jax.report import results
from gpt1_jax.report.results import Result, Score
from gpt1_jax.tasks import layer_transfer, paper, sweep
from gpt1_jax.training import cost, side_by_side
from helpers import write_lines
from miniature_paper import PARTS, commands, miniature, write_books_and_sets


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = epath.Path(tmp_path_factory.mktemp('paper'))
    write_books_and_sets(folder)
    return folder


def plan(folder, workdir, capsys, **changes):
    """(the result of a dry run, what it printed)"""
    capsys.readouterr()
    result = paper.run(miniature(folder, dry_run=True, **changes), epath.Path(workdir))
    return result, capsys.readouterr().out


def test_a_dry_run_prints_the_plan_and_writes_nothing(folder, tmp_path, capsys):
    result, printed = plan(folder, tmp_path / 'new', capsys)
    table = [line.split() for line in printed.splitlines()]
    states = {line[0]: line[1:-1] for line in table[1 : 1 + len(PARTS)]}
    assert states == {name: ['to', 'do'] for name in PARTS}
    assert {name: part['state'] for name, part in result.facts['parts'].items()} == dict.fromkeys(PARTS, 'to do')
    seconds = lambda text: sum(int(number) * 60**i for i, number in enumerate(reversed(text.split(':'))))
    times = [seconds(line[-1]) for line in table[1 : 2 + len(PARTS)]]
    assert table[1 + len(PARTS)][0] == 'all' and abs(sum(times[:-1]) - times[-1]) <= len(PARTS)  # rounded
    assert all(times[1:-1])
    assert [*commands(printed)] == PARTS
    assert commands(printed)['ablation_table5'][0][3:] == [
        '--config=configs/ablation.py:table5',
        '--config.data.batch_size=8',
        '--config.data.cache=off',
        '--config.data.epochs=1.0',
        '--config.data.limit=16',
        f'--config.data.source=files:{folder}/data',
        '--config.datasets=("stsb",)',
        f'--config.init_from={tmp_path}/new/pretrain',
        f'--config.lstm_from={tmp_path}/new/pretrain_lstm',
        '--config.optimizer.learning_rate=0.0005',
        f'--workdir={tmp_path}/new/ablation_table5',
    ]
    assert not (tmp_path / 'new').exists()


def test_runs_side_by_side_take_less_time(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(paper.cost, 'training_speed', lambda width: 1e9)
    plans = []
    for together in (1, 2):
        monkeypatch.setattr(side_by_side, 'number', lambda workers, runs, width, n=together: n)
        plans.append(paper._plan(miniature(folder), epath.Path(tmp_path), PARTS))
    ratios = {name: plans[1][name].seconds / plans[0][name].seconds for name in PARTS if plans[0][name].seconds}
    sweeps = [name for name in PARTS if name.startswith(('finetune', 'layer_transfer', 'ablation'))]
    assert {name for name, ratio in ratios.items() if ratio != 1} == {*sweeps}
    assert all(0.5 < ratios[name] < 0.9 and plans[1][name].together == 2 for name in sweeps)


def test_models_of_fewer_layers_take_less_time(folder, tmp_path, monkeypatch):
    """With the layers alone that are transferred: of 0 to 8 of 8, four in the mean."""
    monkeypatch.setattr(paper.cost, 'training_speed', lambda width: 1.0)  # the start of a run takes no time beside
    config, seconds = miniature(folder), {}
    config.pretrain.model.layers = 8
    for config.layer_transfer_mnli.rest in ('fresh', 'absent'):
        part = paper._plan(config, epath.Path(tmp_path), PARTS)['layer_transfer_mnli']
        seconds[config.layer_transfer_mnli.rest] = part.seconds
    flops = {}
    for config.pretrain.model.layers in (4, 8):
        flops[config.pretrain.model.layers] = cost.flops_per_token(config.pretrain)
    assert seconds['absent'] / seconds['fresh'] == pytest.approx(flops[4] / flops[8], rel=1e-3)


def test_the_paper_is_the_default_and_its_values_are_not_changed():
    config = config_file.get_config()
    assert dict(config.files)['pretrain_lstm'] == 'pretrain:lstm' and config.pretrain.data.vocab_size == 40000
    changes = [
        flag.removeprefix('--config.')
        for one in (paper._runs(name, config, epath.Path('W')) for name in PARTS)
        for flag in shlex.split(one[0].command())[4:]
    ]
    joined = ('data.source', 'init_from', 'lstm_from', 'runs', 'seeds', '--workdir', 'prompt', 'samples', 'max_tokens')
    assert {change.partition('=')[0] for change in changes} - {*joined} == {'checkpoint.keep_log'}
    with pytest.raises(UserError, match="^argument: 'huge' is unknown. Choose one of tiny, small, gpt1"):
        config_file.get_config('huge')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(parts='pretrain,fine'), f"^parts: 'fine' is unknown. Choose one of {', '.join(PARTS)}"),
        (dict(parts='zero_shot,report'), '^parts: zero_shot needs pretrain, which is not finished in .*/new. Run that'),
        (dict(parts='pretrain'), '^parts: pretrain needs prepare'),
        (dict(parts='pretrain,prepare,ablation_table5'), '^parts: ablation_table5 needs pretrain_lstm'),
        (dict(text=''), '^text: It is empty. Name the corpus'),
        (dict(text='text:/nowhere'), '^text:/nowhere: There is no text'),
        (dict(source='files:/nowhere'), '^/nowhere: This is not a directory'),
    ],
)
def test_what_cannot_be_planned_is_refused(folder, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        paper.run(miniature(folder, **changes), epath.Path(tmp_path) / 'new')
    assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize(
    ('part', 'changes', 'message'),
    [
        ('finetune', {'datasets': ('sst', 'mnli')}, "datasets: 'sst' is unknown"),
        ('finetune', {'datasets': ()}, 'datasets: The list is empty'),
        ('finetune', {'data': {'rule': 'foo'}}, 'data.rule: '),
        ('finetune', {'variants': {'one': {'no_rate': 1}}}, "variants.one: {'no_rate': 1} does not fit"),
        ('zero_shot', {'datasets': ('mnli',)}, "datasets: 'mnli' is unknown"),
        ('zero_shot_lstm', {'condition': 'none'}, "condition: 'none' is unknown"),
        ('layer_transfer_mnli', {'layers': (0, 99)}, 'layers: 99 layers cannot be transferred from .*, which has 1. '),
        ('layer_transfer_mnli', {'data': {'dataset': 'custom'}}, "data.dataset: 'custom' is unknown"),
        ('ablation_lambda', {'coefficients': ()}, 'coefficients: It is empty'),
        ('ablation_share', {'shares': ()}, 'shares: It is empty'),
        ('samples', {'stop': 'never ever'}, "stop: 'never ever' is unknown"),
        ('pretrain', {'log': {'zero_shot': {'every': 1, 'datasets': ('rte',)}}}, "log.zero_shot.datasets: 'rte' is"),
    ],
)
def test_what_a_part_would_refuse_later_is_refused_at_once(folder, tmp_path, capsys, part, changes, message):
    config = miniature(folder, dry_run=True)
    config[part].update(changes)
    with pytest.raises(UserError, match=f'^{part}.{message}'):
        paper.run(config, epath.Path(tmp_path) / 'new')
    assert not capsys.readouterr().out and not (tmp_path / 'new').exists()


def test_a_part_that_was_begun_with_other_settings_is_refused_at_once(folder, tmp_path):
    config, part = miniature(folder, dry_run=True), tmp_path / 'layer_transfer_mnli'
    begun = miniature(folder)
    begun.layer_transfer_mnli.rest = 'absent'
    (one,) = paper._runs('layer_transfer_mnli', begun, epath.Path(tmp_path))
    runs = layer_transfer._runs(one.config, 1)
    of_run = sweep._run_config(runs, 'mnli', f'files:{folder}/data/mnli', 'layers0', runs.seed)
    for where, of in ((part, one.config), (part / 'mnli' / 'layers0' / 'seed0', of_run)):
        where.mkdir(parents=True)
        (where / 'config.json').write_text(of.to_json_best_effort())
    state = lambda: paper.run(config, epath.Path(tmp_path)).facts['parts']['layer_transfer_mnli']['state']
    assert state() == 'begun'  # no run has kept anything: they begin anew
    (part / 'mnli' / 'layers0' / 'seed0' / 'checkpoints').mkdir()
    message = (
        rf"^layer_transfer_mnli: {part}/mnli/layers0/seed0: It holds a run with another config \(rest: 'absent' there, "
        r"'fresh' now\)\."
    )
    with pytest.raises(UserError, match=message):
        paper.run(config, epath.Path(tmp_path))
    config.layer_transfer_mnli.rest = 'absent'
    assert state() == 'begun'


def test_what_leaves_too_few_examples_is_left_out_and_named(folder, tmp_path, capsys):
    """24 examples, of which at most 16 are used, in batches of 8."""
    config = miniature(folder, dry_run=True)
    config.finetune.data.limit, config.ablation_share.shares = 4, (0.001, 0.01)
    result = paper.run(config, epath.Path(tmp_path) / 'new')
    printed = capsys.readouterr().out
    assert result.facts['left_out'].keys() == {'finetune', 'ablation_share'}
    few = '{} is left out: {}: its {} training examples are fewer than data.batch_size=8.'
    assert few.format('ablation_share', 'cola', 1) in printed
    assert few.format('finetune', 'sst2', 4) + ' mnli: its 4 training ' in printed


@pytest.fixture
def lacking(folder, tmp_path):
    """A source with too few examples of race, no labels of mnli to train on, no cola, only dev of sst2, and stsb."""
    source = tmp_path / 'data'
    for name in ('mnli', 'sst2', 'race'):
        (source / name).mkdir(parents=True)
    (source / 'stsb').symlink_to(folder / 'data' / 'stsb')
    for split, label in (('train', -1), ('dev_matched', 1)):
        write_lines(source / 'mnli' / f'{split}.jsonl', [{'premise': 'a', 'hypothesis': 'b', 'label': label}])
    write_lines(source / 'sst2' / 'dev.jsonl', [{'sentence': 'a', 'label': 1}])
    for split in ('train', 'dev'):
        write_lines(source / 'race' / f'{split}.jsonl', [zero_shot_sets.entry('race', random.Random(0), 0)])
    return f'files:{source}'


LACKED = {'layer_transfer_mnli', 'layer_transfer_race', 'ablation_lambda', 'ablation_share'}


def test_what_the_source_lacks_is_left_out_and_named(folder, lacking, tmp_path, capsys):
    sets = dict(datasets=('cola', 'sst2'))  # zero-shot scores need no labels of sst2's train
    result, printed = plan(folder, tmp_path / 'new', capsys, source=lacking, zero_shot=sets)
    left_out = result.facts['left_out']
    assert set(left_out) == LACKED
    assert left_out['layer_transfer_race'] == 'race: its 1 training examples are fewer than data.batch_size=8.'
    assert left_out['ablation_share'] == f'cola: {lacking} has no folder for it.'
    assert 'label' in left_out['layer_transfer_mnli'] and left_out['ablation_lambda'].startswith('sst2: ')
    assert all(f'{name} is left out: {reason}' in printed for name, reason in left_out.items())
    assert f'zero_shot will leave out cola: {lacking} has no folder for it.' in printed
    assert not commands(printed).keys() & left_out.keys()


def test_shards_that_are_there_are_not_prepared(folder, tmp_path, capsys):
    shards = f'shards:{folder}/shards'
    result, printed = plan(folder, tmp_path, capsys, text=shards, parts='prepare,pretrain')
    assert result.facts['left_out'] == {'prepare': f'{shards} is prepared already'}
    assert f'--config.data.source={shards}' in commands(printed)['pretrain'][0]


# ----------------------------------------------------------------- with stand-ins for the tasks


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """`made`: the folders of the runs that began, with their configs; those named in `broken` fail with
    `broken_by`. `loss`: the score of those that begin. `text`: tells the content of the shards."""
    calls = types.SimpleNamespace(made={}, broken=set(), broken_by=UserError, loss=2.0, text='a')

    def run(config, workdir):
        name = str(workdir.relative_to(tmp_path))
        calls.made[name] = config
        if name in calls.broken:
            raise calls.broken_by(f'{name}: It is broken. Repair it.')
        facts = {'steps': 40, 'left_out': {'qqp': 'no folder'} if name == 'finetune' else {}}
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / 'config.json').write_text(config.to_json_best_effort())
        scores = [Score('', 'valid', 'loss', calls.loss, 10)]
        Result(config.task, scores, facts, None, as_json(config), 2.0).write(workdir)

    for task in paper._TASKS.values():
        monkeypatch.setattr(task, 'run', run)
    monkeypatch.setattr(paper.store, 'kept_steps', lambda folder: [1, 3, 12, 32, 36, 40])
    monkeypatch.setattr(cost, 'training_speed', lambda width: 1e9)
    monkeypatch.setattr(paper, 'shards_fingerprint', lambda uri: calls.text)
    return calls


def test_each_part_has_the_models_and_data_of_others(folder, tmp_path, calls, capsys):
    result = paper.run(miniature(folder, seeds=2), epath.Path(tmp_path))
    samples = [f'samples/{step}' for step in (1, 12, 40)]
    assert [*calls.made] == [*PARTS[:5], *samples, *PARTS[6:]]
    made = calls.made
    assert made['prepare'].data.source == f'text:{folder}/books'
    assert made['pretrain'].data.source == made['pretrain_lstm'].data.source == f'shards:{tmp_path}/prepare/shards'
    init_from = {
        name: config.init_from.removeprefix(f'{tmp_path}/') for name, config in made.items() if 'init_from' in config
    }
    assert init_from == {
        **{'pretrain': '', 'pretrain_lstm': '', 'zero_shot': 'pretrain@all', 'zero_shot_lstm': 'pretrain_lstm@all'},
        **{f'samples/{step}': f'pretrain@{step}' for step in (1, 12, 40)},
        **{name: 'pretrain' for name in PARTS[6:-1]},
    }
    assert made['ablation_table5'].lstm_from == f'{tmp_path}/pretrain_lstm' and made['report'].runs == f'{tmp_path}'
    assert {made[name].data.source for name in PARTS[3:5] + PARTS[6:-1]} == {f'files:{folder}/data'}
    assert {made[name].seeds for name in PARTS[6:-1]} == {2}
    stored = results.read(epath.Path(tmp_path))
    assert stored.facts == result.facts and stored.task == 'paper'
    assert stored.facts['left_out'] == {'finetune/qqp': 'no folder'}
    assert {part['state'] for part in stored.facts['parts'].values()} == {'done'}
    assert stored.facts['parts']['samples']['seconds'] == 6.0
    assert 'finetune/qqp is left out: no folder' in capsys.readouterr().out


def test_what_is_finished_is_not_done_again_but_shown_anew(folder, tmp_path, calls):
    config, workdir = miniature(folder), epath.Path(tmp_path)
    paper.run(config, workdir)
    (workdir / 'zero_shot' / 'results.json').unlink()
    (workdir / 'samples' / '12' / 'results.json').unlink()
    calls.made.clear()
    paper.run(config, workdir)
    assert [*calls.made] == ['zero_shot', 'samples/12', 'report']
    calls.made.clear()
    paper.run(config, workdir)
    assert [*calls.made] == ['report']
    calls.made.clear()
    config.finetune.data.limit = 17
    config.parts = 'finetune'
    paper.run(config, workdir)
    assert [*calls.made] == ['finetune']


def test_without_checkpoints_the_report_can_be_made_anew(folder, tmp_path, calls, monkeypatch, capsys):
    """They are large, and who has all results may delete them."""
    config, workdir = miniature(folder), epath.Path(tmp_path)
    paper.run(config, workdir)
    monkeypatch.setattr(paper.store, 'kept_steps', lambda folder: [])
    calls.made.clear()
    paper.run(config, workdir)
    assert [*calls.made] == ['report'] and re.search('samples +done', capsys.readouterr().out)


def test_a_part_that_fails_is_named_at_the_end(folder, tmp_path, calls):
    calls.broken = {'zero_shot', 'ablation_lambda'}
    with pytest.raises(UserError, match='^parts: .* zero_shot: It is broken. Repair it. ablation_lambda: .* Then run'):
        paper.run(miniature(folder), epath.Path(tmp_path))
    assert [*calls.made][-1] == 'report'
    stored = results.read(epath.Path(tmp_path)).facts
    assert stored['parts']['zero_shot'] == {'state': 'failed', 'seconds': None}
    assert stored['left_out']['ablation_lambda'] == 'ablation_lambda: It is broken. Repair it.'
    calls.broken.clear()
    calls.made.clear()
    paper.run(miniature(folder), epath.Path(tmp_path))
    assert [*calls.made] == ['zero_shot', 'ablation_lambda', 'report']


def test_what_the_system_refuses_is_a_failure_too_and_a_bug_is_not(folder, tmp_path, calls):
    calls.broken, calls.broken_by = {'zero_shot'}, lambda message: OSError(28, 'No space left on device', '/x')
    with pytest.raises(UserError, match='^parts: .* zero_shot: /x: .*No space left on device'):
        paper.run(miniature(folder), epath.Path(tmp_path))
    assert [*calls.made][-1] == 'report'
    calls.broken_by = ValueError
    with pytest.raises(ValueError):
        paper.run(miniature(folder), epath.Path(tmp_path))


def test_where_several_processes_do_a_part_its_failure_ends_all(folder, tmp_path, calls, monkeypatch):
    """The others wait in it for this one."""
    others = types.SimpleNamespace(current=object(), meet=lambda: None, agree=lambda own: [own])
    monkeypatch.setattr(paper, 'peers', others)
    calls.broken = {'zero_shot'}
    with pytest.raises(UserError, match='^zero_shot: It is broken'):
        paper.run(miniature(folder), epath.Path(tmp_path))


def test_of_several_processes_all_begin_what_the_first_begins(folder, tmp_path, calls, monkeypatch):
    """One that comes late may find the result there, as that of the text, which the first prepares alone."""
    config, workdir = miniature(folder), epath.Path(tmp_path)
    paper.run(config, workdir)
    calls.made.clear()
    monkeypatch.setattr(paper.peers, 'agree', lambda own: [True, own])
    config.parts = 'prepare,zero_shot'
    paper.run(config, workdir)
    assert [*calls.made] == ['prepare', 'zero_shot']


def test_what_is_left_out_is_not_run(folder, lacking, tmp_path, calls):
    result = paper.run(miniature(folder, source=lacking), epath.Path(tmp_path))
    assert {name.partition('/')[0] for name in calls.made} == {*PARTS} - LACKED
    assert {name for name, part in result.facts['parts'].items() if part['state'] == 'left out'} == LACKED


def test_a_part_that_others_need_ends_the_run(folder, tmp_path, calls):
    calls.broken = {'pretrain_lstm'}
    with pytest.raises(UserError, match='^pretrain_lstm: It is broken'):
        paper.run(miniature(folder), epath.Path(tmp_path))
    assert [*calls.made] == PARTS[:3]


OF_PRETRAIN = [name for name in PARTS if 'pretrain' in paper._NEEDS[name]]


def refused(config, workdir):
    """The sentence."""
    with pytest.raises(UserError, match='^parts: Some were made from parts that have changed since: ') as caught:
        paper.run(config, workdir)
    return str(caught.value)


def test_what_was_made_from_a_model_of_other_settings_is_refused(folder, tmp_path, calls):
    config, workdir = miniature(folder), epath.Path(tmp_path)
    paper.run(config, workdir)
    (workdir / 'pretrain').rmtree()
    calls.made.clear()
    config.pretrain.optimizer.learning_rate = 0.5
    for config.dry_run in (True, False):
        message = refused(config, workdir)
        words = ' from another pretrain (optimizer.learning_rate: 0.002 there, 0.5 now)'
        assert '; '.join(name + words for name in OF_PRETRAIN) in message
        folders = ', '.join(f'{workdir}/{name}' for name in OF_PRETRAIN)
        assert message.endswith(f'. Go back to the earlier parts, or delete {folders} to make them anew.')
    assert not calls.made and (workdir / 'finetune' / 'results.json').exists()
    for name in OF_PRETRAIN:
        (workdir / name).rmtree()
    paper.run(config, workdir)
    assert [name.partition('/')[0] for name in calls.made if '/' not in name or name.endswith('/1')] == [
        *('pretrain', *OF_PRETRAIN, 'report')
    ]


def test_what_was_made_from_a_model_that_is_made_again_stays_if_that_is_the_same(folder, tmp_path, calls, capsys):
    config, workdir = miniature(folder), epath.Path(tmp_path)
    paper.run(config, workdir)
    (workdir / 'pretrain').rmtree()
    result, printed = plan(folder, workdir, capsys)
    states = {name: part['state'] for name, part in result.facts['parts'].items()}
    expected = {name: 'begun' for name in OF_PRETRAIN} | {'pretrain': 'to do', 'samples': 'to do'}
    assert {name: state for name, state in states.items() if state != 'done'} == expected
    assert 'finetune is there, and stays if pretrain comes out as it was before.' in printed.splitlines()
    calls.made.clear()
    result = paper.run(config, workdir)
    assert [*calls.made] == ['pretrain', 'report']
    assert {part['state'] for part in result.facts['parts'].values()} == {'done'}
    (workdir / 'pretrain').rmtree()
    calls.made.clear()
    calls.loss = 3.0
    message = refused(config, workdir)
    assert [*calls.made] == ['pretrain'] and 'zero_shot from another pretrain; samples from' in message
    assert refused(miniature(folder, parts='report', dry_run=True), workdir) == message


def test_what_was_made_from_another_text_is_refused(folder, tmp_path, calls):
    config, workdir = miniature(folder), epath.Path(tmp_path)
    paper.run(config, workdir)
    calls.made.clear()
    calls.text = 'b'  # the shards were deleted, and prepared from another
    message = refused(config, workdir)
    assert not calls.made and 'pretrain from another prepare; pretrain_lstm from another prepare; zero_shot ' in message
    assert 'ablation_table5 from another pretrain_lstm' in message and f'{workdir}/prepare,' not in message
    calls.text = ''  # they were deleted to save space
    paper.run(config, workdir)
    assert [*calls.made] == ['report']


def test_what_parts_are_made_from_is_known_wherever_the_folder_lies(folder, tmp_path, calls):
    config, workdir = miniature(folder), epath.Path(tmp_path / 'paper')
    paper.run(config, workdir)
    shutil.copytree(workdir, tmp_path / 'copy')
    paper._check_origins(config, epath.Path(tmp_path / 'copy'))
    config.text = 'text:/elsewhere'
    paper._check_origins(config, workdir)
    config.prepare.runner = 'direct'  # which prepares the same
    paper._check_origins(config, workdir)
    config.prepare.data.vocab_size = 321
    assert 'pretrain from another prepare (data.vocab_size: 320 there, 321 now)' in refused(config, workdir)


def test_a_part_that_was_killed_before_it_began_binds_nothing(folder, tmp_path, calls):
    config, workdir = miniature(folder), epath.Path(tmp_path)
    paper.run(config, workdir)
    kept = json.loads((workdir / 'parts.json').read_text())
    assert kept.keys() == {*PARTS} - {'prepare', 'report'}
    edited = json.loads(json.dumps(kept))
    edited['zero_shot']['pretrain']['result'] = 'of another model'
    (workdir / 'parts.json').write_text(json.dumps(edited))
    (workdir / 'zero_shot').rmtree()
    paper.run(config, workdir)
    assert json.loads((workdir / 'parts.json').read_text()) == kept


def test_what_an_earlier_version_made_counts_as_before(folder, tmp_path, calls):
    config, workdir = miniature(folder), epath.Path(tmp_path)
    paper.run(config, workdir)
    (workdir / 'parts.json').unlink()
    (workdir / 'pretrain').rmtree()
    calls.made.clear()
    calls.loss, config.pretrain.optimizer.learning_rate = 3.0, 0.5
    paper.run(config, workdir)
    assert [*calls.made] == ['pretrain', 'report']
