"""The task: what it writes, and what it refuses."""

import json
import re

import pytest
from etils import epath

import recorded
from configs import report as report_config
from gpt1_jax import main
from gpt1_jax.errors import UserError
from gpt1_jax.report import page, results


@pytest.fixture
def folder(tmp_path):
    recorded.write_evaluation(epath.Path(tmp_path) / 'runs/evaluation')
    (tmp_path / 'runs/begun').mkdir()
    (tmp_path / 'runs/begun/config.json').write_text(json.dumps({'task': 'pretrain'}))
    return epath.Path(tmp_path) / 'runs'


def config(runs):
    made = report_config.get_config()
    made.runs = str(runs)
    return made


def test_it_writes_the_pages_and_a_record(folder, tmp_path):
    out = epath.Path(tmp_path) / 'out'
    result = main.run_task(config(folder), str(out))
    page.write(folder, epath.Path(tmp_path) / 'same')
    for name in ('report.html', 'report.md'):
        assert (out / name).read_text() == (tmp_path / 'same' / name).read_text()
    states = {'finished': ['evaluation'], 'unfinished': ['begun'], 'damaged': []}
    assert results.read(out).facts == result.facts == {'runs': states}
    assert json.loads((out / 'config.json').read_text()) == {'task': 'report', 'runs': str(folder)}


def test_again_in_the_same_place_it_writes_the_same(folder):
    main.run_task(config(folder), str(folder / 'report'))
    before = (folder / 'report/report.html').read_bytes()
    main.run_task(config(folder), str(folder / 'report'))
    assert (folder / 'report/report.html').read_bytes() == before


@pytest.mark.parametrize(
    ('runs', 'workdir', 'message'),
    [
        ('', 'out', r'runs: It is empty\. Name the folder .* --config\.runs=DIR\.'),
        ('none', 'out', r'runs: .*none is not a folder\. Name the one that holds the workdirs, --config\.runs=DIR\.'),
        ('.', 'evaluation', r'.*evaluation: This is the workdir of another task\. Give the report .* of its own\.'),
    ],
)
def test_what_it_refuses(folder, runs, workdir, message):
    before = (folder / 'evaluation/results.json').read_bytes()
    with pytest.raises(UserError) as caught:
        main.run_task(config(runs and folder / runs), str(folder / workdir))
    assert re.fullmatch(message, str(caught.value)), caught.value
    assert (folder / 'evaluation/results.json').read_bytes() == before
    assert not (folder / 'out/report.html').exists()


def test_an_argument_is_refused():
    with pytest.raises(UserError, match='It takes no argument'):
        report_config.get_config('all')
