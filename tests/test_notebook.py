"""The notebook, cell by cell, on this machine, with the smallest sizes."""

import json
import os
import subprocess
import sys
import types

import matplotlib.pyplot
import pytest

from helpers import ENVIRONMENT, ROOT

NOTEBOOK = json.loads((ROOT / 'launch/colab.ipynb').read_text())
BACKEND = 'module://matplotlib_inline.backend_inline'  # what ipykernel tells every program that a notebook starts
CODE = [''.join(cell['source']) for cell in NOTEBOOK['cells'] if cell['cell_type'] == 'code']


def test_it_is_a_notebook_without_outputs():
    assert NOTEBOOK['nbformat'] == 4
    for cell in NOTEBOOK['cells']:
        assert cell['cell_type'] in ('code', 'markdown') and not cell.get('outputs')
    for source in CODE:
        compile(source, 'cell', 'exec')
        assert max(map(len, source.splitlines())) <= 120


@pytest.mark.rehearsal
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch, capfd):
    """With a pre-trained run in the place of the released weights; their name on the hub is tested elsewhere."""
    shown, figures = [], []
    display = types.SimpleNamespace(HTML=lambda text: text, display=shown.append)
    monkeypatch.setitem(
        sys.modules, 'IPython', types.SimpleNamespace(display=display, get_ipython=lambda: None, version_info=(9,))
    )
    monkeypatch.setitem(sys.modules, 'IPython.display', display)
    monkeypatch.setattr(matplotlib.pyplot, 'show', lambda: figures.append(matplotlib.pyplot.gca().get_lines()))
    monkeypatch.chdir(ROOT / 'launch')
    for name, value in (ENVIRONMENT | {'PYTHONUNBUFFERED': '1', 'MPLBACKEND': BACKEND}).items():
        monkeypatch.setenv(name, value)
    for name, value in dict(PYTHON=sys.executable, RUNS=tmp_path, TEST='1', RELEASED=tmp_path / 'pretrained').items():
        monkeypatch.setenv(f'GPT1_JAX_{name}', str(value))
    cells = {}
    for source in CODE:
        exec(source, cells)
    assert cells['root'] == ROOT and len(figures) == 1 and len(figures[0]) >= 2
    assert '<iframe' in shown[0] and 'docs_number' in shown[0]
    printed = capfd.readouterr().out
    for workdir in ('scratch', 'finetuned', 'released'):
        scores = json.loads((tmp_path / workdir / 'results.json').read_text())['scores']
        assert {one['split'] for one in scores} >= {'dev', 'test'} and f'\n{workdir} [(' in printed
    assert os.listdir(tmp_path / 'text')


def test_figures_are_drawn_without_the_backend_of_the_notebook():
    code = 'from gpt1_jax import main; main._set_up(); import matplotlib.figure; print("drawn")'
    environment = ENVIRONMENT | {'MPLBACKEND': BACKEND}
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == 'drawn\n', done.stderr


def test_a_failed_command_ends_the_cell(monkeypatch):
    monkeypatch.setenv('GPT1_JAX_PYTHON', sys.executable)
    monkeypatch.chdir(ROOT)
    cells = {}
    for source in CODE[:2]:
        exec(source, cells)
    with pytest.raises(SystemExit, match='status 3'):
        cells['run'](sys.executable, '-c', 'import sys; sys.exit(3)')


def test_without_the_code_a_sentence(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match='Give the git URL'):
        exec(CODE[0], {})


def test_the_code_is_that_of_the_repository_that_is_named(monkeypatch, tmp_path):
    """Also where the notebook lies in another one."""
    other, cells = tmp_path / 'other', {}
    (other / 'gpt1_jax').mkdir(parents=True)
    (other / 'gpt1_jax/main.py').write_text('')
    git = ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', '-c', 'commit.gpgsign=false', '-C', str(other)]
    for command in (['init', '-q'], ['add', '.'], ['commit', '-qm', 'Code']):
        subprocess.run([*git, *command], check=True)
    here = tmp_path / 'here'
    (here / 'gpt1_jax').mkdir(parents=True)
    (here / 'gpt1_jax/main.py').write_text('')
    monkeypatch.chdir(here)
    for repository in (f'file://{other}', f'file://{other}', str(other), ''):
        monkeypatch.setenv('GPT1_JAX_REPOSITORY', repository)
        exec(CODE[0], cells)
        root, is_clone = cells['root'], repository.startswith('file:')
        assert root.is_absolute() and (root / 'gpt1_jax/main.py').exists()
        assert (root.parent == here and root != here) if is_clone else root == (other if repository else here)
