"""The task `compile`, with host devices in the place of a slice's chips, and, where libtpu is installed, for TPUs."""

import importlib.util

import jax
import pytest
from etils import epath

import runs
from configs import compile as compile_config
from gpt1_jax.errors import UserError
from gpt1_jax.meter import slices
from gpt1_jax.tasks import compile as compile_task
from gpt1_jax.training import partitioning


def config_of(name='v5e-8', **changes):
    config = compile_config.get_config(name)
    config.update(size='tiny', works=('pretrain',), as_run=False)
    config.model.update(runs.TINY)
    config.data.batch_size = 16
    config.update(changes)
    return config


@pytest.fixture
def on_host(monkeypatch):
    monkeypatch.setattr(slices.Slice, 'devices', lambda self: jax.devices()[: self.chips])


@pytest.mark.parametrize(
    ('strategy', 'works'),
    [
        ('dp', ('pretrain',)),
        pytest.param('fsdp', ('pretrain',), marks=pytest.mark.slow),
        pytest.param('dp', ('sst2', 'race'), marks=pytest.mark.slow),
    ],
)
def test_figures(on_host, tmp_path, capsys, strategy, works):
    """Each chip sends what a ring of eight sends of the gradients; the estimate is the sum of its parts."""
    config = config_of(works=works, as_run=True)
    config.mesh.strategy = strategy
    result = compile_task.run(config, epath.Path(tmp_path))
    assert list(result.facts['programs']) == list(works)
    parameters = result.model['parameters']
    for name, one in result.facts['programs'].items():
        assert one['fits'] and one['compile_s'] > 0 and 0 < one['memory_gib'] < 1 and one['computation_ms'] > 0
        assert one['step_ms'] == pytest.approx(one['computation_ms'] + one['sending_ms'])
        reduced = 2 * 7 / 8 * 4 * parameters / 1e9
        sent = sum(kind['gb'] for kind in one['collectives'].values())
        assert 0.9 * reduced < sent < (3 if name == 'pretrain' else 6) * reduced
        assert sum(kind['gb_between_slices'] for kind in one['collectives'].values()) == 0
        rate = one['tokens_per_s'] if name == 'pretrain' else one['examples_per_s']
        amount = 16 * runs.TINY['n_positions'] if name == 'pretrain' else 32
        assert rate == pytest.approx(amount / one['step_ms'] * 1e3)
    printed = capsys.readouterr().out
    assert 'v5e-8' in printed and 'sent, all-reduce' in printed and 'nothing was run' in printed
    assert (tmp_path / 'table.txt').read_text().strip() == printed.strip()


def test_slices_send_each_other_sums_of_gradients_alone(on_host, tmp_path, monkeypatch):
    """Of its part of the parameters each chip sends what a ring of two sends, of the table's once too."""
    monkeypatch.setattr(partitioning, '_slices', lambda devices: [devices[:4], devices[4:]])
    result = compile_task.run(config_of('2xv5e-4'), epath.Path(tmp_path))
    figures = result.facts['programs']['pretrain']['collectives']
    between = {name: kind['gb_between_slices'] for name, kind in figures.items() if kind['gb_between_slices']}
    assert between.keys() == {'all-reduce'}
    assert 0.95 < between['all-reduce'] / (result.model['parameters'] / 1e9) < 1.05


def test_what_does_not_fit(on_host, tmp_path, monkeypatch, capsys):
    generation = slices.Generation('TPU v5 lite', 1e-6, 819, 400, 3.125, 1, slices.GENERATIONS['v5e'].grids)
    monkeypatch.setitem(slices.GENERATIONS, 'v5e', generation)
    result = compile_task.run(config_of(entries=3), epath.Path(tmp_path))
    assert not result.facts['programs']['pretrain']['fits']
    printed = capsys.readouterr().out
    assert 'does not fit' in printed and len(printed.partition('by instruction')[2].strip().splitlines()) == 4


@pytest.mark.slow
def test_the_sweep_recommends_the_fastest_that_fits(on_host, tmp_path, monkeypatch):
    config = config_of(sweep=True)
    needed = compile_task.run(config_of(), epath.Path(tmp_path / 'one')).facts['programs']['pretrain']['memory_gib']
    grids = slices.GENERATIONS['v5e'].grids
    generation = slices.Generation('TPU v5 lite', 1.01 * needed, 819, 400, 3.125, 1, grids)
    monkeypatch.setitem(slices.GENERATIONS, 'v5e', generation)
    facts = compile_task.run(config, epath.Path(tmp_path / 'two')).facts
    measured = [one for one in facts['tried'] if 'skipped' not in one]
    skipped = {one['settings']['mesh.strategy']: one['skipped'] for one in facts['tried'] if 'skipped' in one}
    assert "'heads'" in skipped['tp'] and any('does not fit' in reason for reason in skipped.values())
    best = max(measured, key=lambda one: one['tokens_per_s']['median'])
    assert {one['settings']['mesh.strategy'] for one in measured} >= {'dp', 'fsdp'}
    assert facts['recommended'] == [f'--config.{key}={value}' for key, value in best['settings'].items()]


def test_every_round_of_a_loop_counts(on_host, tmp_path):
    """XLA counts one: a scan over layers, or micro-batches, would seem to need less than what it stands for."""
    found = {}
    for scan, accumulation in ((False, 1), (True, 1), (True, 2)):
        config = config_of()
        config.model.update(layers=4, scan=scan)
        config.optimizer.accumulation = accumulation
        facts = compile_task.run(config, epath.Path(tmp_path / f'{scan} {accumulation}')).facts['programs']['pretrain']
        found[scan, accumulation] = facts
    for looped in (found[True, 1], found[True, 2]):
        assert looped['gb'] == pytest.approx(found[False, 1]['gb'], rel=0.2)
        assert looped['gflop'] > 0.67 * found[False, 1]['gflop']  # of rounds only matrix products are added


@pytest.mark.parametrize('sweep', [False, True])
def test_what_xla_does_not_compile_for_lack_of_memory_is_left_out(on_host, tmp_path, monkeypatch, sweep):
    config = config_of(sweep=sweep)

    def compile_some(candidate, *arguments, **options):
        if candidate.optimizer.accumulation < 4:
            raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Ran out of memory on HBM (32.00G of 15.75G)')
        return {'fits': True, 'tokens_per_s': 1e6 / candidate.optimizer.accumulation, 'memory_gib': 3.0, 'mfu': 0.4}

    monkeypatch.setattr(compile_task, '_compile', compile_some)
    if not sweep:
        with pytest.raises(UserError, match=r'pretrain: It does not fit into the memory of a chip .RESOURCE_EXHAUSTED'):
            compile_task.run(config, epath.Path(tmp_path))
        return
    facts = compile_task.run(config, epath.Path(tmp_path)).facts
    assert facts['programs'] == {} and '--config.optimizer.accumulation=4' in facts['recommended']
    assert sum('does not fit' in one.get('skipped', '') for one in facts['tried']) >= 3


@pytest.mark.parametrize(
    ('changes', 'words'), [({'slice': 'v5e-9'}, 'v5e-8'), ({'works': ('cola',)}, 'works'), ({'size': 'huge'}, 'size')]
)
def test_mistakes(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        compile_task.run(config_of(**changes), epath.Path(tmp_path))


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is not None, reason='libtpu is installed')
def test_without_libtpu(tmp_path):
    with pytest.raises(UserError, match=r'slice: libtpu.*\[tpu\]'):
        compile_task.run(config_of(), epath.Path(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['v5e-8', '2xv5e-8', 'v4-8'])
def test_for_tpus(tmp_path, name):
    pytest.importorskip('libtpu', reason='libtpu, which compiles for TPUs, is not installed')
    config = config_of(name, works=('pretrain', 'sst2'))
    config.model.update(width=128, heads=2, mlp_width=512, n_positions=128)
    for figures in compile_task.run(config, epath.Path(tmp_path)).facts['programs'].values():
        assert figures['fits'] and figures['computation_ms'] > 0
        between = sum(kind['gb_between_slices'] for kind in figures['collectives'].values())
        assert bool(between) == name.startswith('2x')
