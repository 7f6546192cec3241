"""The task: what it measures and writes, its sweep, and what an interruption leaves."""

import json
import re

import jax
import numpy as np
import pytest
from etils import epath

import runs
from configs import benchmark as config_file
from gpt1_jax import main
from gpt1_jax.errors import UserError
from gpt1_jax.meter import step, training, work
from gpt1_jax.report import results
from gpt1_jax.tasks import benchmark
from gpt1_jax.training.partitioning import Partitioner

SPREAD = {'median': 0.02, 'min': 0.01, 'max': 0.03, 'n': 3}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """One device, short measurements, a small corpus, and ceilings that are known."""
    monkeypatch.setattr(benchmark, 'Partitioner', lambda *_: Partitioner('dp', (1, 1, 1), jax.devices()[:1]))
    monkeypatch.setattr(benchmark, '_FEWEST', 0.05)
    monkeypatch.setattr(benchmark, '_TOKENS', 2**14)
    monkeypatch.setattr(benchmark, '_CYCLE', 1)
    monkeypatch.setattr(benchmark.ceilings, 'product', lambda dtype, seconds: {'n': 8, 'tflops': SPREAD})
    monkeypatch.setattr(benchmark.ceilings, 'copy', lambda seconds: {'gb_per_s': SPREAD})


def config(argument, **changes):
    made = config_file.get_config(argument)
    made.model.update(runs.TINY)
    made.minutes = 1e-4  # the first part is measured in any case
    made.update_from_flattened_dict(changes)
    return made


def report(folder):
    return json.loads((folder / 'benchmark.json').read_text())


@pytest.mark.slow
def test_pretraining(tmp_path):
    result = main.run_task(config('pretrain', **{'data.batch_size': 4}), str(tmp_path))
    found = report(tmp_path)
    assert result.facts == results.read(epath.Path(tmp_path)).facts == found
    assert result.model['sizes'] == runs.TINY and found['measured']['parameters'] == f'{result.model["parameters"]:,}'
    assert found['measured'] | {'work': 'pretrain', 'size': 'tiny', 'dtype': 'float32'} == found['measured']
    [(name, one)] = found['training'].items()
    assert name == '4 x 32 tokens' and one['steps'] >= 3
    # Tokens of a batch over the time of a step; the median round is not the mean.
    assert one['tokens_per_s']['min'] * 0.99 <= 4 * 32 / one['step_ms'] * 1e3 <= one['tokens_per_s']['max'] * 1.01
    roof = one['roofline']
    assert roof['arithmetic_ms'] == pytest.approx(roof['gflop'] / 20 * 1e3)  # 0.02 TFLOP/s
    assert roof['memory_ms'] == pytest.approx(roof['gb'] / 0.02 * 1e3)
    both = roof['arithmetic_ms'], roof['memory_ms']
    assert 0.999 * max(both) <= roof['least_ms'] <= 1.001 * sum(both)
    assert one['collectives_ms'] == 0
    text = (tmp_path / 'table.txt').read_text()
    for line in ('tokens/s', 'MFU', 'waiting for input', 'step alone', 'least time at the ceilings', 'peak memory'):
        assert re.search(rf'^ *{line}.* \S', text, re.MULTILINE), line
    shards = benchmark.load_shards(tmp_path / 'shards-4000')
    assert shards.splits['train'].tokens == 2**14 and shards.splits['train'].read(np.array([0]), 2**14).max() == 3999


def test_pretraining_on_shards_of_ones_own(tmp_path, monkeypatch):
    runs.write_data(tmp_path)
    seen = []
    monkeypatch.setattr(training, 'measure', lambda of, **_: seen.append(of) or {})
    made = config('pretrain', **{'data.batch_size': 4, 'data.source': f'shards:{tmp_path}/shards'})
    main.run_task(made, str(tmp_path / 'run'))
    shards = benchmark.load_shards(tmp_path / 'shards')
    assert seen[0].model.vocab_size == shards.vocab_size < 4000 and not (tmp_path / 'run/shards-4000').exists()
    starts = seen[0].batches.window_starts(3)
    expected = shards.splits['train'].read(starts, 33)
    assert (seen[0].batches.batch_at(3)['tokens'].reshape(-1, 33) == expected).all()


@pytest.mark.slow
def test_fine_tuning(tmp_path):
    main.run_task(config('finetune', sets=('race',)), str(tmp_path))
    one = report(tmp_path)['training']['race']
    trained, evaluated = one['examples_per_s']['median'], one['evaluation_examples_per_s']['median']
    seconds = 87_866 / trained + 4_887 / evaluated
    assert one['epoch_examples_per_s'] == pytest.approx(87_866 / seconds)
    examples = work.questions(4000, 640, 32)
    assert one['tokens_per_s']['median'] / trained == pytest.approx(
        np.mean([len(examples.sequences[i][0]) + 3 * 3 for i in range(640)]), rel=0.5
    )


def test_what_there_is_no_time_for_is_said(tmp_path):
    main.run_task(config('generate', batches=(2, 3)), str(tmp_path))
    found = report(tmp_path)['generation']
    assert found['batch 2']['tokens_per_s']['median'] > 0 and found['batch 2']['roofline']['gb'] > 0
    assert found['batch 3'] == {'skipped': 'no time is left (minutes=0.0001)'}
    assert 'batch 3: no time is left' in (tmp_path / 'table.txt').read_text()


@pytest.mark.slow
def test_a_model_of_two_positions_generates_a_token(tmp_path):
    main.run_task(config('generate', batches=(2,), **{'model.n_positions': 2}), str(tmp_path))
    found = report(tmp_path)['generation']['batch 2']
    assert found['prompt'] == found['new'] == 1 and found['tokens_per_s']['median'] > 0 and 'token_ms' not in found
    text = (tmp_path / 'table.txt').read_text()
    assert 'first token' in text and 'following token' not in text


def machine(monkeypatch, seconds_of):
    """Nothing is compiled or run: a step takes seconds_of(work)."""
    facts = {'compile_s': 1.0, 'from_cache': False, 'planned_gb': 2.0}
    monkeypatch.setattr(training, '_compile', lambda *_: (facts, ['text'], []))
    monkeypatch.setattr(work.Work, 'new_state', lambda self: None)

    def loop(of, step_, state, *, seconds):
        batch = of.batches.batch_at(0)
        taken, tokens = seconds_of(of, batch), of.batches.count_tokens(batch)
        return [step.Step(0.0, 0.0, 0.0, taken, (i + 1) * taken, tokens, 0) for i in range(6)]

    monkeypatch.setattr(training, 'loop', loop)
    monkeypatch.setattr(
        training, '_alone', lambda *_: {'alone_ms': dict.fromkeys(('median', 'min', 'max'), 1.0), 'collectives_ms': 0.0}
    )
    monkeypatch.setattr(training, 'roofline', lambda *_: {'least_ms': 1.0, 'collectives': 0})


def test_the_sweep_skips_what_does_not_fit_and_recommends_the_fastest(tmp_path, monkeypatch):
    def seconds_of(of, batch):
        micro_batches, _, rows, _ = batch['tokens'].shape
        if rows > 8:
            raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.')
        together = micro_batches * rows
        seconds = 0.05 * micro_batches + (0.1 if together > 8 else 0.09) * together
        return seconds * (0.5 if of.model.scan else 1.0) * (2.0 if of.model.remat else 1.0)

    machine(monkeypatch, seconds_of)
    made = config('pretrain', **{'data.batch_size': 16, 'sweep': True, 'minutes': 5.0})
    main.run_task(made, str(tmp_path))
    found = report(tmp_path)
    [first] = found['training'].values()
    assert first['skipped'].startswith('does not fit into the memory: RESOURCE_EXHAUSTED')
    tried = {tuple(one['settings'].values()): one for one in found['sweep']['tried']}
    assert list(tried) == [  # accumulation, scan, remat, batch size
        *[(1, False, False, 16), (2, False, False, 16), (4, False, False, 16), (8, False, False, 16)],
        *[(2, True, False, 16), (2, True, True, 16)],
        *[(2, True, False, 4), (2, True, False, 8), (2, True, False, 32), (2, True, False, 64)],
    ]
    skipped = [settings for settings, one in tried.items() if 'skipped' in one]
    assert skipped == [(1, False, False, 16), (2, True, False, 32), (2, True, False, 64)]
    assert tried[2, True, False, 16]['tokens_per_s']['median'] == pytest.approx(16 * 32 / (0.5 * 1.7))
    overrides = '--config.optimizer.accumulation=2 --config.model.scan=True --config.model.remat=False'
    assert found['sweep']['recommended'] == [*overrides.split(), '--config.data.batch_size=8']
    text = (tmp_path / 'table.txt').read_text()
    assert f'Fastest of what was tried: 624 tokens/s\n    {overrides} --config.data.batch_size=8\n' in text
    assert f': 602 tokens/s\n    {overrides} --config.data.batch_size=16\n' in text.split('with batches of 16')[1]
    assert text.count('RESOURCE_EXHAUSTED') == 4


def test_a_sweep_without_time_says_so(tmp_path, monkeypatch):
    machine(monkeypatch, lambda of, batch: 1.0)
    main.run_task(config('pretrain', **{'data.batch_size': 16, 'sweep': True}), str(tmp_path))
    assert report(tmp_path)['sweep']['tried'] == []
    assert 'The sweep ended before all was tried: no time is left' in (tmp_path / 'table.txt').read_text()


def test_what_does_not_fit_without_a_sweep_is_an_error(tmp_path, monkeypatch):
    def seconds_of(of, batch):
        raise MemoryError

    machine(monkeypatch, seconds_of)
    with pytest.raises(UserError, match='^data.batch_size: A step of 16 does not fit .* Lower it, .*sweep=True'):
        main.run_task(config('pretrain', **{'data.batch_size': 16}), str(tmp_path))


def test_an_interruption_leaves_what_was_measured(tmp_path, monkeypatch):
    def measure(of, *, seconds, distinct, ceilings):
        if 'context_ids' in of.batches.batch_at(0):  # of RACE
            raise KeyboardInterrupt
        return {'tokens_per_s': SPREAD, 'examples_per_s': SPREAD}

    monkeypatch.setattr(training, 'measure', measure)
    monkeypatch.setattr(benchmark, '_evaluated', lambda bench, make, of_set, found: found)
    with pytest.raises(KeyboardInterrupt):
        main.run_task(config('finetune', minutes=5.0), str(tmp_path))
    assert list(report(tmp_path)['training']) == ['sst2'] and not (tmp_path / 'results.json').exists()
    assert 'sst2' in (tmp_path / 'table.txt').read_text()


@pytest.mark.parametrize(
    'argument, changes, message',
    [
        ('pretrain', {'size': 'huge'}, "size: 'huge' is unknown. Choose one of tiny"),
        ('pretrain', {'data.source': 'text:/books'}, "data.source: 'text:/books' cannot be measured. Name prepared"),
        ('pretrain', {'minutes': 0.0}, 'minutes: 0.0 is not valid. It must be more than 0.'),
        ('finetune', {'sets': ('mnli',)}, "sets: 'mnli' is unknown. Choose one of sst2, race."),
        ('finetune', {'sets': (), 'sweep': True}, 'sets: It is empty. Give at least one, such as sst2,race.'),
        ('generate', {'batches': ()}, 'batches: It is empty. Give at least one, such as 1,8.'),
        ('generate', {'model.n_positions': 1}, 'model.n_positions: 1 has no room for a prompt and a token. It must be'),
        ('pretrain', {'data.batch_size': 7, 'optimizer.accumulation': 2}, 'data.batch_size: 7 does not divide into 2'),
        ('finetune', {'data.batch_size': 2, 'optimizer.accumulation': 4}, 'optimizer.accumulation: 4 micro-batches'),
        ('pretrain', {'model.mlp_width': 2**17, 'model.width': 2**17, 'model.layers': 96}, 'model: The parameters, '),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, argument, changes, message):
    """Before anything is measured."""
    monkeypatch.delattr(benchmark.ceilings, 'product')
    with pytest.raises(UserError) as caught:
        main.run_task(config(argument, **changes), str(tmp_path))
    assert str(caught.value).startswith(message)


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    with pytest.raises(UserError, match='Start one, on one host'):
        main.run_task(config('pretrain'), str(tmp_path))


def test_the_size_follows_the_platform():
    made = config_file.get_config()
    on_tpu, on_cpu = (benchmark._settle(made, platform) for platform in ('tpu', 'cpu'))
    assert (on_tpu.size, on_tpu.data.batch_size, on_tpu.model.layers) == ('gpt1', 64, 12)
    assert (on_cpu.size, on_cpu.data.batch_size, on_cpu.model.layers) == ('tiny', 8, 4)
    made.size, made.model.width, made.model.scan = 'small_lstm', 64, True
    settled = benchmark._settle(made, 'cpu')
    assert (settled.model.kind, settled.model.width, settled.model.scan) == ('lstm', 64, True)
    assert made.size == 'small_lstm' and made.model.layers is None  # the given config is not changed
