"""Runs that a version before 0.2 left: resumed to the same bits, fine-tuned from, evaluated, read and converted."""

import json
import pathlib
import shutil

import jax
import pytest
from etils import epath

import runs
from configs import convert as convert_config, generate as generate_config
from gpt1_jax.report import results
from gpt1_jax.tasks import convert, evaluate, evaluate_text, finetune, generate, pretrain
from gpt1_jax.training.partitioning import Partitioner
from helpers import checksums
from models import edit

pytestmark = pytest.mark.slow

# All is on one device: meshes are tested elsewhere.
TASKS = (evaluate, evaluate_text, finetune, generate, pretrain)


@pytest.fixture(autouse=True)
def _one_device(monkeypatch):
    for task in TASKS:
        monkeypatch.setattr(task, 'Partitioner', lambda *_: Partitioner('dp', (1, 1, 1), jax.devices()[:1]))


def known_keys(values, like):
    """Those of `values` that `like` has too, at any depth."""
    return {
        key: known_keys(value, like[key]) if isinstance(value, dict) else value
        for key, value in values.items()
        if key in like
    }


def make_earlier(workdir, fixture):
    """Puts what is in a workdir into the form of before; its last checkpoint was never saved, nor a result."""
    like = json.loads((pathlib.Path(__file__).parent / 'fixtures' / f'config_{fixture}.json').read_text())
    edit(workdir / 'config.json', lambda now: known_keys(now, like))
    edit(
        workdir / 'model.json',
        lambda now: known_keys(
            now, {'architecture': now['architecture'], 'vocab_size': 0, 'n_special': 0, 'head': now['head']}
        ),
    )
    return workdir


def generation(init_from):
    config = generate_config.get_config()
    config.update(init_from=str(init_from), prompt='the ship', max_tokens=5, stream=False)
    return config


def uses(folder, workdir):
    """What is made of the language model and of the classifier in `workdir`."""
    language_model, classifier = workdir / 'lm', workdir / 'classifier'
    config = convert_config.get_config()
    config.update(source=str(classifier), target=f'hf:{workdir}/hf')
    convert.run(config, workdir / 'convert')
    return [
        evaluate.run(runs.evaluation(folder, classifier), workdir / 'dev').scores,
        evaluate_text.run(runs.text_evaluation(folder, language_model), workdir / 'text').scores,
        generate.run(generation(language_model), workdir / 'generate'),
        (workdir / 'hf' / 'model.safetensors').read_bytes(),
    ]


def start(folder, workdir):
    """Trains both in `workdir`, or goes on; their results."""
    made = [
        pretrain.run(runs.pretraining(folder), workdir / 'lm'),
        finetune.run(runs.finetuning(folder, folder / 'now' / 'lm'), workdir / 'classifier'),
    ]
    return [(result.scores, result.facts) for result in made]


def test_what_an_earlier_version_left_is_used_as_today_s(tmp_path, monkeypatch):
    folder = epath.Path(tmp_path)
    runs.write_data(folder)
    expected = start(folder, folder / 'now'), uses(folder, folder / 'now')
    (folder / 'before').mkdir()
    for name, fixture, last in (('lm', 'pretrain', 8), ('classifier', 'finetune', 10)):
        shutil.copytree(folder / 'now' / name, folder / 'before' / name)
        workdir = make_earlier(folder / 'before' / name, fixture)
        (workdir / 'checkpoints' / str(last)).rmtree()
        results_then = {'steps': last, 'parameters': 7, 'best_step': last}  # the form of before is not read
        (workdir / 'results.json').write_text(json.dumps(results_then))
        description = (workdir / 'model.json').read_text()
        assert 'kind' not in json.loads(description) and 'format_version' not in description
    assert 'kind' not in json.loads((folder / 'before' / 'lm' / 'config.json').read_text())['model']
    before = json.loads((folder / 'before' / 'lm' / 'config.json').read_text())

    # Used while they are unfinished, then finished, then used again as they are when one of before has finished them.
    assert evaluate_text.run(runs.text_evaluation(folder, folder / 'before' / 'lm'), folder / 'early').scores
    assert start(folder, folder / 'before') == expected[0]
    for name, step in (('lm', 8), ('classifier', 10)):
        assert checksums(folder / 'before' / name, step) == checksums(folder / 'now' / name, step)
    assert json.loads((folder / 'before' / 'lm' / 'config.json').read_text()) == before
    for name, fixture in (('lm', 'pretrain'), ('classifier', 'finetune')):
        make_earlier(folder / 'before' / name, fixture)
    assert uses(folder, folder / 'before') == expected[1]
    # From a model of before: the same run but for what is known of its past.
    again = finetune.run(runs.finetuning(folder, folder / 'before' / 'lm'), folder / 'again')
    assert [again.scores, again.facts] == list(expected[0][1])
    known = results.read(folder / 'now' / 'classifier').model
    assert again.model == known | {'tokens_seen': None} != known
