"""The runs below a folder: found, and joined over seeds."""

import json
import os
import shutil

import numpy as np
import pytest
from etils import epath

import recorded
from gpt1_jax.errors import UserError
from gpt1_jax.report import collect


@pytest.fixture
def folder(tmp_path):
    return recorded.write_few(epath.Path(tmp_path) / 'runs')


def test_all_runs_are_found_with_what_they_left(folder):
    runs = recorded.named(folder)
    assert list(runs) == ['pretrain', 'samples', 'tuned', 'tuned/sst2/seed0', 'tuned/sst2/seed1']
    run = runs['tuned/sst2/seed1']
    assert (run.task, run.state, run.label) == ('finetune', 'finished', 'tuned/sst2/seed1')
    assert run.setting('seed') == 1 and run.setting('data.dataset') == 'sst2' and run.setting('data.none', 3) == 3
    assert run.vocabulary == 'a' * 16 and run.device['platform'] == 'cpu' and 'jax' in run.versions
    assert run.model_words == 'transformer, 4 layers, 128 wide, 1.32 M parameters'
    stored = json.loads((folder / 'tuned/sst2/seed1/results.json').read_text())
    assert [score.value for score in run.result.scores] == [one['value'] for one in stored['scores']]
    with np.load(folder / 'tuned/sst2/seed1/dev.npz') as file:
        np.testing.assert_array_equal(run.dev['logits'], file['logits'])
    assert len(run.errors) == 15 and run.errors[1]['index'] == 4
    assert runs['samples'].generations[2]['sample'] == 2
    assert len(runs['pretrain'].metrics) == 110 and runs['pretrain'].metrics[0]['step'] == 10
    assert [entry['path'] for entry in runs['tuned'].plan] == ['sst2/seed0', 'sst2/seed1']


def test_the_folder_itself_may_be_a_run(folder):
    (run,) = collect.collect(folder / 'pretrain')
    assert (run.name, run.label, run.state) == ('.', 'pretrain', 'finished')
    (line,) = collect.lines(collect.collect(folder / 'tuned'))
    assert line.label == 'tuned' and len(line.finished) == 2


def test_lines_join_the_seeds_of_a_sweep_and_leave_other_runs_alone(folder):
    shutil.copytree(folder / 'tuned/sst2/seed0', folder / 'single')
    shutil.rmtree(folder / 'tuned/sst2/seed1')
    plan = json.loads((folder / 'tuned/runs.json').read_text())
    (folder / 'tuned/runs.json').write_text(
        json.dumps([*plan, {'dataset': 'cola', 'variant': 'odd', 'seed': 0, 'path': 'cola/odd/seed0'}])
    )
    sst2, cola, single = collect.lines(collect.collect(folder))
    assert (sst2.label, sst2.dataset, sst2.planned, len(sst2.runs), len(sst2.finished)) == ('tuned', 'sst2', 2, 1, 1)
    assert (cola.label, cola.dataset, cola.planned, cola.runs) == ('tuned: odd', 'cola', 1, ())
    assert (single.label, single.dataset, single.planned, len(single.finished)) == ('single', 'sst2', 1, 1)


def test_unfinished_runs_are_told_from_finished_ones(folder):
    (folder / 'tuned/sst2/seed0/results.json').unlink()
    recorded.write_pretraining(folder / 'half', 'tiny', recorded.MODEL, 6.0, finished=False)
    runs = recorded.named(folder)
    (line,) = collect.lines(list(runs.values()))
    assert [run.name for run in line.finished] == ['tuned/sst2/seed1'] and len(line.runs) == 2
    assert runs['tuned/sst2/seed0'].state == runs['half'].state == 'unfinished'
    assert runs['half'].facts == runs['half'].model == {}
    assert runs['half'].model_words == 'transformer, 4 layers, 128 wide'  # of its config


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda entry: entry.pop('variant'), "[0] lacks 'variant'"),
        (lambda entry: entry.update(path='sst2/\ud800'), r"[0].path is 'sst2/\ud800'"),
    ],
)
def test_without_its_plan_a_sweep_has_its_runs_by_their_paths(folder, change, words):
    plan = json.loads((folder / 'tuned/runs.json').read_text())
    change(plan[0])
    (folder / 'tuned/runs.json').write_text(json.dumps(plan))
    runs = collect.collect(folder)
    assert words in recorded.named(folder)['tuned'].damage[0]
    (line,) = collect.lines(runs)
    assert (line.label, line.dataset, line.variant, len(line.finished)) == ('tuned', 'sst2', '', 2)


def test_runs_in_the_folder_of_a_sweep_are_never_runs_of_their_own(folder):
    """It was run with two seeds, and with a variant, then with one seed; and something was copied into it."""
    for place in ('sst2/odd/seed0', 'mine', 'cola/seed0'):
        shutil.copytree(folder / 'tuned/sst2/seed0', folder / 'tuned' / place)
    plan = json.loads((folder / 'tuned/runs.json').read_text())
    (folder / 'tuned/runs.json').write_text(json.dumps(plan[:1]))
    found = collect.lines(collect.collect(folder))
    assert [(line.owner.name, line.dataset, line.variant, line.planned) for line in found] == [
        ('tuned', 'sst2', '', 2),
        ('tuned', 'sst2', 'odd', 1),
    ]
    assert [run.name for line in found for run in line.runs] == [
        *('tuned/sst2/seed0', 'tuned/sst2/seed1', 'tuned/sst2/odd/seed0')
    ]
    inside = collect.lines(collect.collect(folder / 'tuned'))
    assert [(line.owner.name, len(line.runs)) for line in inside] == [('.', 2), ('.', 1)]


def test_checkpoints_are_not_searched_and_links_that_run_round_end(folder):
    shutil.copytree(folder / 'samples', folder / 'pretrain/checkpoints/10')
    os.symlink(folder, folder / 'samples/again')
    assert len(recorded.named(folder)) == 5
    shutil.copytree(folder / 'pretrain', folder.parent / 'elsewhere')
    os.symlink(folder.parent / 'elsewhere', folder / 'linked')
    assert len(recorded.named(folder)) == 6  # runs may be linked into one folder


def test_a_run_with_a_link_to_it_counts_once(folder):
    before = list(recorded.named(folder))
    os.symlink('tuned', folder / 'latest')
    os.symlink('../pretrain', folder / 'samples/of')
    assert list(recorded.named(folder)) == before
    shutil.move(folder / 'tuned/sst2/seed1', folder / 'moved')
    os.symlink(folder / 'moved', folder / 'tuned/sst2/seed1')
    (line,) = collect.lines(collect.collect(folder))
    assert [run.name for run in line.runs] == ['tuned/sst2/seed0', 'moved']
    plan = [{'dataset': 'sst2', 'variant': '', 'seed': 0, 'path': 'a\0b'}]
    (folder / 'tuned/runs.json').write_text(json.dumps(plan))
    (line, moved) = collect.lines(collect.collect(folder))
    assert [run.name for run in line.runs] == ['tuned/sst2/seed0'] and moved.label == 'moved'


def test_reports_and_the_paper_task_are_no_runs(folder):
    for task in ('report', 'paper'):
        (folder / task).mkdir()
        (folder / task / 'config.json').write_text(json.dumps({'task': task}))
    assert len(recorded.named(folder)) == 5


def test_where_there_are_no_runs_it_says_so(tmp_path):
    for path, words in ((tmp_path / 'none', 'is not a folder'), (tmp_path, 'holds no runs')):
        with pytest.raises(UserError, match=rf'^runs: {path} {words}.*[.] Name the one that holds the workdirs'):
            collect.collect(epath.Path(path))


def test_numbers_in_names_are_sorted_by_value():
    names = ['layers10', 'layers2', 'lambda0.5', 'lambda0.25', 'lambda', '3x', 'x']
    assert sorted(names, key=collect.natural) == [
        *('3x', 'lambda', 'lambda0.25', 'lambda0.5', 'layers2', 'layers10', 'x')
    ]


@pytest.mark.parametrize(
    ('uri', 'parts'),
    [
        ('runs/a', ('runs/a', '')),
        ('runs/a/@10', ('runs/a', '10')),
        ('/home/me@here/a@all', ('/home/me@here/a', 'all')),
        ('/home/me@here/a', ('/home/me@here/a', '')),
        ('', ('', '')),
    ],
)
def test_the_step_of_a_uri(uri, parts):
    assert collect.split_step(uri) == parts


def test_the_origin_of_a_model_is_found_also_when_all_was_moved(folder, tmp_path):
    runs = collect.collect(folder)
    origin = {run.name: collect.origin(run, runs) for run in runs}
    assert origin['samples'].name == origin['tuned/sst2/seed0'].name == 'pretrain' and origin['pretrain'] is None
    (folder / 'other').mkdir()
    shutil.copytree(folder / 'pretrain', folder / 'other/pretrain')
    shutil.move(folder, tmp_path / 'moved')
    runs = collect.collect(epath.Path(tmp_path) / 'moved')
    sample = next(run for run in runs if run.name == 'samples')
    assert collect.origin(sample, runs).name == collect.model_name(sample, runs) == 'pretrain'
    assert collect.model_name(sample, []) == 'pretrain'  # it is elsewhere
    recorded.write_pretraining(folder / 'pretrain', 'tiny', recorded.MODEL, 6.0)
    assert collect.origin(sample, runs) is None  # another run has its name
    assert collect.origin(collect.Run('a', folder, {'init_from': 'a\0b'}), runs) is None  # no path
    elsewhere = [collect.Run('hf', epath.Path('gs://bucket/hf'), {})]
    assert collect.origin(collect.Run('a', folder, {'init_from': 'hf:gs://bucket/hf'}), elsewhere) == elsewhere[0]


def test_a_run_that_starts_from_no_model_is_not_from_that_of_the_current_folder(folder, monkeypatch):
    runs = recorded.named(folder)
    monkeypatch.chdir(folder / 'pretrain')
    assert collect.origin(runs['pretrain'], list(runs.values())) is None


@pytest.mark.parametrize(
    ('vocabularies', 'words'),
    [
        ([], ''),
        ([''], ''),
        (['a', 'a'], ''),
        (['a', 'b'], 'The vocabularies differ: '),
        (['a', 'b', ''], 'The vocabularies differ: '),
        (['a', ''], 'Not all vocabularies are known to be the same: '),
        (['', ''], 'Not all vocabularies are known to be the same: '),
    ],
)
def test_vocabularies_differ_only_where_that_is_known(vocabularies, words):
    found = collect.other_vocabularies(vocabularies)
    assert found.startswith(f' {words}') if words else found == ''


def test_an_exported_model_among_the_runs_is_no_run(folder):
    """As `convert` writes it, with a config.json of its own."""
    (folder / 'hf').mkdir()
    (folder / 'hf' / 'config.json').write_text('{"model_type": "openai-gpt", "n_embd": 768}')
    for name, text in (('other', '{"seed": 1}'), ('broken', '{')):
        (folder / name).mkdir()
        (folder / name / 'config.json').write_text(text)
    runs = recorded.named(folder)
    assert 'hf' not in runs and runs['other'].damage and runs['broken'].damage


def test_a_folder_that_cannot_be_read_is_named_and_the_rest_is_read(folder, monkeypatch):
    before, kind = list(recorded.named(folder)), type(folder)
    (folder / 'lost+found').mkdir()
    read = kind.iterdir

    def refuse(path):
        if path.name == 'lost+found':  # as for a user who is not root
            raise PermissionError(13, 'Permission denied', str(path))
        return read(path)

    monkeypatch.setattr(kind, 'iterdir', refuse)
    runs = recorded.named(folder)
    assert runs.pop('lost+found').damage == ('The folder cannot be read (Permission denied).',)
    assert list(runs) == before


def test_a_folder_of_runs_may_be_called_checkpoints(folder):
    for name in ('checkpoints', 'compiled', 'tensorboard'):
        shutil.copytree(folder / 'samples', folder / name / 'mine')
        shutil.copytree(folder / 'samples', folder / 'pretrain' / name / 'mine')
    assert {name for name in recorded.named(folder) if 'mine' in name} == {
        *('checkpoints/mine', 'compiled/mine', 'tensorboard/mine')
    }


@pytest.mark.parametrize(
    ('task', 'variant', 'study'),
    [
        ('ablation', 'lambda0.25', 'lambda'),
        ('ablation', 'lambda1e-05', 'lambda'),
        ('ablation', 'share0.1_scratch', 'share'),
        ('ablation', 'full', 'table5'),
        ('ablation', 'lambda1_copy', 'table5'),
        ('ablation', 'lambda1-2', 'table5'),
        ('sweep', 'lambda0', ''),
        ('layer_transfer', 'layers2', ''),
    ],
)
def test_the_study_of_a_line(task, variant, study):
    owner = collect.Run('a', epath.Path('a'), {'task': task, 'study': 'table5'})
    assert collect.Line(owner, 'sst2', variant, (), 1).study == study
