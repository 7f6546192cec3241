"""What every task leaves in its workdir: the config of the run, and its result in the one form."""

import dataclasses
import importlib
import json
import pkgutil

import jax
import pytest
from absl import logging
from etils import epath

import runs
from configs import (
    ablation as ablation_config,
    benchmark as benchmark_config,
    compile as compile_config,
    convert as convert_config,
    finetune as finetune_config,
    generate as generate_config,
    layer_transfer as layer_transfer_config,
    paper as paper_config,
    prepare as prepare_config,
    quickstart as quickstart_config,
    report as report_config,
    zero_shot as zero_shot_config,
)
from gpt1_jax import main, tasks
from gpt1_jax.meter import slices
from gpt1_jax.report import results
from gpt1_jax.report.results import Result
from gpt1_jax.tasks import generate, pretrain, quickstart, sweep
from gpt1_jax.training.partitioning import Partitioner

pytestmark = pytest.mark.slow

NAMES = [module.name for module in pkgutil.iter_modules(tasks.__path__)]


def configs(folder):
    """One of every task, in an order in which each finds what it needs in the workdir of another: folder/TASK."""
    prepared = prepare_config.get_config()
    prepared.data.update(source=f'text:{folder}/books', vocab_size=320, workers=1)
    generation, conversion = generate_config.get_config(), convert_config.get_config()
    generation.update(init_from=f'{folder}/pretrain', prompt='the ship', max_tokens=3, stream=False)
    conversion.update(source=f'{folder}/finetune', target=f'hf:{folder}/hf')
    sweeping, ablating = finetune_config.get_config('all'), ablation_config.get_config('lambda')
    transferring = layer_transfer_config.get_config('story_cloze')
    for sweep_of in (sweeping, ablating, transferring):
        sweep_of.init_from = f'{folder}/pretrain'
        sweep_of.data.update(source=f'files:{folder}', cache='off', epochs=1.0, batch_size=8)
    sweeping.datasets = ablating.datasets = ('story_cloze',)
    ablating.coefficients, transferring.layers, transferring.rest = (0.25,), (1,), 'fresh'
    without_training, reporting, whole = (of.get_config() for of in (zero_shot_config, report_config, paper_config))
    without_training.update(init_from=f'{folder}/pretrain', datasets=('story_cloze',))
    without_training.data.source, reporting.runs = f'files:{folder}', str(folder)
    whole.update(text=f'text:{folder}/books', parts='prepare')
    whole.prepare.data.update(vocab_size=320, workers=1)
    measuring = benchmark_config.get_config('generate')
    measuring.model.update(runs.TINY)
    measuring.update(minutes=1e-4, batches=(1,))
    compiling = compile_config.get_config()
    compiling.update(size='tiny', works=('pretrain',), as_run=False)
    compiling.model.update(runs.TINY)
    return [
        prepared,
        runs.pretraining(folder),
        runs.finetuning(folder, folder / 'pretrain'),
        runs.evaluation(folder, folder / 'finetune'),
        runs.text_evaluation(folder, folder / 'pretrain'),
        generation,
        conversion,
        sweeping,
        ablating,
        transferring,
        without_training,
        whole,
        reporting,
        measuring,
        compiling,
        quickstart_config.get_config(),
    ]


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
    """Task -> (config as JSON, what it returned, workdir, what was logged). The quickstart's parts are stand-ins."""
    folder, made, messages = epath.Path(tmp_path_factory.mktemp('tasks')), {}, []
    runs.write_data(folder)
    fine_tuned = Result('sweep', [], {'left_out': {}, 'train_examples': {'docs_same': {'scratch': 4}}}, None, {}, 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging, 'info', lambda message, *args: messages.append(str(message) % args))
        for task in map(importlib.import_module, (f'gpt1_jax.tasks.{name}' for name in NAMES)):
            if hasattr(task, 'Partitioner'):  # on one device, which is quicker
                patch.setattr(task, 'Partitioner', lambda *_: Partitioner('dp', (1, 1, 1), jax.devices()[:1]))
        patch.setattr(slices.Slice, 'devices', lambda self: jax.devices()[: self.chips])
        for config in configs(folder):
            if config.task == 'quickstart':
                patch.setattr(pretrain, 'run', lambda *_: results.read(folder / 'pretrain'))
                patch.setattr(generate, 'run', lambda *_: None)
                patch.setattr(sweep, 'fine_tune_all', lambda *_: fine_tuned)
                patch.setattr(quickstart, 'training_text', lambda packages: {})
                patch.setattr(quickstart, '_baselines', lambda runs: [])
            messages.clear()
            as_json, workdir = json.loads(config.to_json_best_effort()), folder / config.task
            made[config.task] = as_json, main.run_task(config, str(workdir)), workdir, list(messages)
    return made


@pytest.mark.parametrize('task', NAMES)
def test_the_config_is_saved_and_logged(ran, task):
    config, _, workdir, messages = ran[task]
    assert config['task'] == task
    assert json.loads((workdir / 'config.json').read_text()) == config
    logged = [message.removeprefix('config: ') for message in messages if message.startswith('config: ')]
    assert json.loads(logged[0]) == config and len(logged) == (
        2 if task in ('sweep', 'ablation', 'layer_transfer', 'paper') else 1
    )


@pytest.mark.parametrize('task', NAMES)
def test_the_result_has_the_one_form(ran, task):
    config, returned, workdir, _ = ran[task]
    stored = json.loads((workdir / 'results.json').read_text())
    assert stored.keys() == {field.name for field in dataclasses.fields(Result)} | {
        'format_version',
        'config_fingerprint',
        'versions',
        'device',
        'sha256',
    }
    assert stored['format_version'] == 1 and stored['task'] == task and stored['seconds'] > 0
    result = results.read(workdir)
    if task != 'generate':  # it returns the texts
        assert json.loads(json.dumps(dataclasses.asdict(returned))) == dataclasses.asdict(result)
    assert result.config == config
    if task in ('prepare', 'report', 'paper'):
        assert result.model is None
    else:
        assert result.model.keys() == {'kind', 'sizes', 'parameters', 'tokens_seen'}
        assert result.model['kind'] == 'transformer' and result.model['tokens_seen'] == (
            0 if task in ('benchmark', 'compile') else 2048
        )
        assert result.model['sizes'] == runs.TINY
    assert bool(result.scores) == (
        task not in ('prepare', 'generate', 'convert', 'report', 'paper', 'benchmark', 'compile')
    )
    assert bool(result.facts) == (task != 'convert')
