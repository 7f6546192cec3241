"""The training steps on meshes of eight host devices: the numbers of one device, and what the devices send each other.

Every pair of a mesh, accumulation, scan, remat and model stands in one row at least (an orthogonal array).
"""

import functools
import re
from typing import NamedTuple

import jax
import numpy as np
import pytest

import models
from configs import finetune, pretrain
from gpt1_jax.data.corpus.windows import PretrainingBatches
from gpt1_jax.data.labelled.packing import FinetuningBatches, Rows
from gpt1_jax.data.labelled.sequences import Encoded
from gpt1_jax.meter.collectives import collectives
from gpt1_jax.model.architecture import Architecture
from gpt1_jax.model.classifier import ClassifierHead
from gpt1_jax.training import partitioning, program
from gpt1_jax.training.partitioning import Partitioner

VOCAB = 37  # with the positions too, which no axis divides
SIZES = {
    'transformer': dict(layers=2, width=16, heads=4, mlp_width=32, n_positions=16),
    'lstm': dict(layers=1, width=16, units=32, n_positions=16),
}
HEADS = {  # work: (sequences an example, loss, head)
    'classification': (1, 'classification', ClassifierHead('classification', 3, 0.0)),
    'similarity': (2, 'ordinal', ClassifierHead('similarity', 6, 0.0)),
    'multiple_choice': (3, 'multiple_choice', ClassifierHead('multiple_choice', 1, 0.0)),
}


class Mesh(NamedTuple):
    strategy: str
    shape: tuple
    devices: int = 8
    slices: int = 1

    def partitioner(self):
        devices = jax.devices()[: self.devices]
        parts = [devices[i :: self.slices] for i in range(self.slices)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(partitioning, '_slices', lambda devices: parts)
            return Partitioner(self.strategy, self.shape, devices)


ONE = Mesh('dp', (1, 1, 1), devices=1)
MESHES = {
    'dp': Mesh('dp', (8, 1, 1)),
    'fsdp': Mesh('fsdp', (2, 4, 1)),
    'tp': Mesh('tp', (2, 1, 4)),
    'fsdp+tp': Mesh('fsdp+tp', (2, 2, 2)),
    '2 slices': Mesh('dp', (8, 1, 1), slices=2),
    '2 slices, fsdp': Mesh('fsdp', (), slices=2),
    **{f'{n} devices': Mesh('dp', (), devices=n) for n in (3, 5, 6, 7)},
}


class Settings(NamedTuple):
    accumulation: int = 1
    scan: bool = True
    remat: bool = False
    packing: bool = True
    dropout: bool = True
    vocab: int = VOCAB


DROPOUT = 'dropout', 'attention_dropout', 'residual_dropout'  # whose masks depend on the micro-batch


def configured(config, settings):
    config.model.update(scan=settings.scan, remat=settings.remat)
    if not settings.dropout:
        config.model.update(dict.fromkeys(DROPOUT, 0.0))
    config.optimizer.update(learning_rate=0.01, warmup_steps=2, warmup_fraction=0.0, accumulation=settings.accumulation)
    return config


class Split:
    tokens = 2000
    _ids = np.random.default_rng(0).integers(0, VOCAB, tokens).astype(np.uint16)

    def read(self, starts, length):
        return self._ids[starts[:, None] + np.arange(length)]


def examples(sequences, loss):
    """24 of random sequences with special tokens; those of one example begin alike."""
    rng = np.random.default_rng(5)
    own = lambda: rng.integers(0, VOCAB, rng.integers(1, 5))
    shared = [rng.integers(0, VOCAB, rng.integers(1, 8)) for _ in range(24)]
    made = [[np.array([VOCAB, *context, *own(), VOCAB + 2], np.int32) for _ in range(sequences)] for context in shared]
    labels = rng.uniform(0, 5, 24).astype(np.float32) if loss == 'ordinal' else rng.integers(0, 3, 24).astype(np.int32)
    return Encoded(made, labels, [str(i) for i in range(24)], 0, 0)


def made_on(work, mesh, settings):
    """(program, step -> its batch)"""
    partitioner = mesh.partitioner()
    if work in SIZES:
        config = configured(pretrain.get_config({'transformer': 'tiny', 'lstm': 'tiny_lstm'}[work]), settings)
        config.model.update(SIZES[work])
        options = dict(batch_size=16, length=16, seed=0, accumulation=settings.accumulation)
        batches = PretrainingBatches(Split(), **options, placement=partitioner.placement)
        return program.pretraining(config, settings.vocab, 10, partitioner), batches.batch_at
    sequences, loss, head = HEADS[work]
    batches = FinetuningBatches(
        examples(sequences, loss),
        batch_size=8,
        rows=Rows(32),
        placement=partitioner.placement,
        accumulation=settings.accumulation,
        packing=settings.packing,
        share_context=work == 'multiple_choice',
    )
    config = configured(finetune.get_config('sst2'), settings)
    base = Architecture('transformer', SIZES['transformer'])
    return program.finetuning(config, base, VOCAB, head, loss, 10, partitioner), batches.batch_at


def run(work, mesh, settings):
    """(state after two updates, metrics of both, text of the compiled step, mesh)"""
    made, batch_at = made_on(work, mesh, settings)
    state, batch = made.create_state(seed=0), made.partitioner.put_batch(batch_at(0))
    lowered = made.train_step.lower(state, batch)
    # Without the mesh's context, flax would silently leave the constraints out.
    assert mesh == ONE or 'sharding_constraint' in lowered.as_text()
    compiled = lowered.compile()
    state, first = compiled(state, batch)
    state, second = compiled(state, made.partitioner.put_batch(batch_at(1)))
    return *jax.device_get((state, [first, second])), compiled.as_text(), made.partitioner.mesh


def axes_of(groups, mesh):
    """The axes along which the devices of a group differ."""
    places = np.stack(np.unravel_index(groups, mesh.devices.shape), axis=-1)  # [groups, devices, axes]
    differ = (places != places[:, :1]).any(axis=(0, 1))
    return ' '.join(name for name, differs in zip(mesh.axis_names, differ) if differs)


@functools.cache
def on_one_device(work, packing, dropout, vocab):
    return run(work, ONE, Settings(packing=packing, dropout=dropout, vocab=vocab))


# What the devices send each other: kinds of collectives, and the axes of the mesh that they are over. Parameters are
# gathered along the axis along which they are spread ('data' or 'fsdp'), and gradients are summed, as is their norm;
# nothing else, so that looked-up rows and classifier states stay where they are. A tensor axis sums states and parts of
# the softmax, and brings the parts of the table's gradient together.
SPREAD = {('all-gather', 'data'), ('all-reduce', 'data')}
SHARDED = {('all-gather', 'fsdp'), ('all-reduce', 'data fsdp'), ('all-reduce', 'fsdp')}
TENSOR = {('all-reduce', 'tensor'), ('collective-permute', 'tensor')}
SENT = {
    'dp': SPREAD,
    'fsdp': SHARDED,
    'tp': SPREAD | TENSOR | {('all-gather', 'tensor')},
    'fsdp+tp': SHARDED | TENSOR | {('all-to-all', 'tensor'), ('collective-permute', 'fsdp tensor')},
    # Between slices, sums of gradients alone.
    '2 slices': {('all-gather', 'data'), ('all-reduce', 'slice data'), ('all-reduce', 'data')},
    '2 slices, fsdp': {('all-gather', 'fsdp'), ('all-reduce', 'slice fsdp'), ('all-reduce', 'fsdp')},
}
# Nothing is spread where the devices do not divide the width.
SENT |= {name: {('all-reduce', 'data')} for name in MESHES if name.endswith('devices')}

WITHOUT = dict(dropout=False)
ROWS = [
    ('transformer', 'dp', Settings(1, scan=False)),
    ('transformer', 'dp', Settings(2, remat=True, **WITHOUT)),
    ('transformer', 'fsdp', Settings(1, remat=True)),
    ('transformer', 'fsdp', Settings(2, scan=False, **WITHOUT)),
    ('transformer', 'tp', Settings(2, scan=False, remat=True, **WITHOUT)),
    ('transformer', 'tp', Settings(1)),
    ('transformer', 'fsdp+tp', Settings(2, **WITHOUT)),
    ('transformer', 'fsdp+tp', Settings(1, scan=False, remat=True)),
    ('transformer', 'dp', Settings(2, vocab=40, **WITHOUT)),  # the table's rows are spread, not its columns
    ('transformer', '2 slices', Settings(vocab=40)),
    ('transformer', '2 slices', Settings()),
    ('transformer', '2 slices, fsdp', Settings()),
    ('transformer', '3 devices', Settings()),  # with empty places, as in the next four
    ('lstm', '3 devices', Settings()),
    *(('lstm', f'{n} devices', Settings(2, **WITHOUT)) for n in (5, 6, 7)),
    ('lstm', 'dp', Settings(2, **WITHOUT)),
    ('lstm', 'fsdp', Settings()),
    ('lstm', 'tp', Settings()),
    ('lstm', 'fsdp+tp', Settings()),
    ('classification', 'dp', Settings(packing=False, **WITHOUT)),
    ('similarity', 'fsdp+tp', Settings(2, **WITHOUT)),
    ('multiple_choice', 'dp', Settings(scan=False, **WITHOUT)),
    ('multiple_choice', 'dp', Settings(packing=False, **WITHOUT)),
]


@pytest.mark.slow
@pytest.mark.parametrize(('work', 'mesh', 'settings'), ROWS, ids=lambda value: str(value))
def test_a_step_is_that_of_one_device(work, mesh, settings):
    state, metrics, text, devices = run(work, MESHES[mesh], settings)
    expected, expected_metrics, alone, _ = on_one_device(work, settings.packing, settings.dropout, settings.vocab)
    assert not collectives(alone)
    for one, other in zip(metrics, expected_metrics):
        assert one.keys() == other.keys() >= {'loss', 'grad_norm', 'learning_rate'}
        for name in other:
            np.testing.assert_allclose(one[name], other[name], rtol=2e-5, err_msg=name)
    moments, expected_moments = state.opt_state[1], expected.opt_state[1]
    for part, whole in ((moments.mu, expected_moments.mu), (moments.nu, expected_moments.nu)):  # of the gradients
        models.assert_trees_close(models.without_invariant(part), models.without_invariant(whole), 1e-3, 1e-5)
    models.assert_trees_close(
        models.without_invariant(state.params), models.without_invariant(expected.params), 1e-3, 1e-4
    )
    sent = collectives(text)
    kinds = {(one.kind, axes_of(one.groups, devices)) for one in sent}
    states = {('all-gather', 'tensor')} if work == 'lstm' and 'tp' in mesh else set()  # of each time step
    assert kinds == SENT[mesh] | states
    if work == 'lstm':  # of all that moves, only states do in every time step, and only over a tensor axis
        pattern = r'= (.*?)\{.* (?:all-reduce|all-gather|all-to-all|collective-permute)[(-].*LSTM\)+/while/body/'
        rows = 16 // settings.accumulation // (devices.size // devices.shape['tensor'])
        assert re.findall(pattern, text) == [f'f32[{rows},32]'] * 2 * ('tp' in mesh)
