"""The files of a workdir: what is damaged is named while the rest is read."""

import json

import numpy as np
import pytest
from etils import epath

import recorded


@pytest.fixture
def folder(tmp_path):
    return recorded.write_few(epath.Path(tmp_path) / 'runs')


def corrupt_archive(path):
    data = bytearray(path.read_bytes())
    data[60:200] = bytes(140)
    path.write_bytes(data)


def not_finite(path):
    np.savez(path, labels=np.zeros(2, int), logits=np.array([[np.nan, 0], [0, 1]], np.float32))


def other_length(path):
    np.savez(path, labels=np.zeros(3, int), logits=np.zeros((2, 2), np.float32))


def pickled(path):
    np.savez(path, labels=np.array([{}, {}], object), logits=np.zeros((2, 2), np.float32))


@pytest.mark.parametrize(
    ('file', 'content', 'words'),
    [
        ('results.json', '{"format_version": 1, "sco', 'results.json: The file is damaged'),
        ('results.json', '{"format_version": 1}', "results.json: The file is damaged (it lacks 'task')"),
        ('results.json', '[1]', 'results.json: The file is damaged (it is '),
        ('results.json', '{"format_version": 99}', 'results.json: It is of another version of the program.'),
        ('config.json', '{"seed": 1}', 'config.json: It names no task.'),
        ('config.json', '', 'config.json: The file is damaged'),
        ('metrics.jsonl', '{"loss": 2}\n', 'metrics.jsonl: A line has no step.'),
        ('metrics.jsonl', '[2]\n', 'metrics.jsonl: The file is damaged ('),
        ('dev_errors.jsonl', '{"index": 3}\n{}\n', 'dev_errors.jsonl: Line 1 is damaged.'),
        ('dev.npz', 'no archive', 'dev.npz: The file is damaged ('),
        ('dev.npz', corrupt_archive, 'dev.npz: The file is damaged ('),
        ('dev.npz', not_finite, 'dev.npz: The logits are not finite.'),
        ('dev.npz', other_length, 'dev.npz: Labels and logits do not fit each other.'),
        ('dev.npz', pickled, 'dev.npz: The file is damaged (ValueError'),
        ('tokenizer/tokenizer.json', '[]', 'tokenizer/tokenizer.json: The file is damaged (it is '),
    ],
)
def test_what_is_damaged_is_named_and_the_rest_is_read(folder, file, content, words):
    before = recorded.named(folder)
    path = folder / 'tuned/sst2/seed0' / file
    content(path) if callable(content) else path.write_text(content)
    runs = recorded.named(folder)
    damaged = runs.pop('tuned/sst2/seed0')
    assert damaged.state == 'damaged' and damaged.damage[0].startswith(words), damaged.damage
    assert str(folder) not in damaged.damage[0]
    if file != 'results.json':
        assert len(damaged.result.scores) == 3
    if file == 'config.json':
        assert damaged.task == 'finetune'  # results.json has it too
    assert [(run.name, run.state, run.result) for run in runs.values()] == [
        (run.name, run.state, run.result) for run in before.values() if run.name in runs
    ]


def test_a_score_that_is_no_number_is_damage(folder):
    path = folder / 'tuned/sst2/seed0/results.json'
    stored = json.loads(path.read_text())
    stored['scores'][0]['value'] = 'high'
    path.write_text(json.dumps(stored))
    assert (
        recorded.named(folder)['tuned/sst2/seed0']
        .damage[0]
        .startswith("results.json: The file is damaged (scores[0].value is 'high').")
    )


@pytest.mark.parametrize('changes', [{'value': 1.5}, {'value': -0.1}, {'examples': 0}])
def test_a_score_that_is_not_possible_is_damage(folder, changes):
    path = folder / 'tuned/sst2/seed0/results.json'
    stored = json.loads(path.read_text())
    stored['scores'][0] |= changes
    del stored['sha256']  # as an earlier version wrote it
    path.write_text(json.dumps(stored))
    assert recorded.named(folder)['tuned/sst2/seed0'].damage == ('results.json: A score of sst2 is not valid.',)


def test_rollbacks_that_are_not_possible_are_damage(folder):
    path = folder / 'tuned/sst2/seed0/results.json'
    stored = json.loads(path.read_text())
    del stored['sha256']  # as an earlier version wrote it
    for batches, words in (([1, 2], ()), ([1], ('results.json: The batches of a rollback are not valid.',))):
        stored['facts']['rollbacks'] = [{'step': 1, 'times': 1, 'batches': batches}]
        path.write_text(json.dumps(stored))
        assert recorded.named(folder)['tuned/sst2/seed0'].damage == words


def test_a_last_line_that_was_cut_short_is_no_damage(folder):
    for file in ('metrics.jsonl', 'dev_errors.jsonl'):
        path = folder / 'tuned/sst2/seed0' / file
        path.write_text(path.read_text() + '{"step": 61, "lo')
    run = recorded.named(folder)['tuned/sst2/seed0']
    assert run.state == 'finished' and len(run.errors) == 15 and run.metrics[-1]['step'] == 60


def test_the_config_of_a_result_counts_and_not_that_of_a_later_command(folder):
    path = folder / 'tuned/config.json'
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {'init_from': 'other', 'seeds': 9}))
    assert recorded.named(folder)['tuned'].config == config
    (folder / 'tuned/results.json').unlink()
    assert recorded.named(folder)['tuned'].setting('init_from') == 'other'
