"""Programs from configs and shapes alone: their states, their batches, and the type that they compute in."""

import re
import threading
import types

import jax
import ml_collections
import numpy as np
import pytest

from configs import finetune as finetune_config, pretrain as pretrain_config
from gpt1_jax import stopping
from gpt1_jax.data.corpus import shards
from gpt1_jax.data.corpus.windows import PretrainingBatches
from gpt1_jax.data.labelled.packing import FinetuningBatches, Rows
from gpt1_jax.data.labelled.sequences import Encoded
from gpt1_jax.data.tokenizers import N_SPECIAL
from gpt1_jax.errors import UserError
from gpt1_jax.model import architecture
from gpt1_jax.model.architecture import Architecture
from gpt1_jax.model.classifier import ClassifierHead
from gpt1_jax.training import partitioning, program, room, steps
from gpt1_jax.training.checkpoint import Checkpointer
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.state import TrainState

MESHES = [('dp', (1, 1, 1), 1), ('fsdp', (1, 4, 1), 4), ('fsdp+tp', (2, 2, 2), 8)]  # strategy, shape, devices
BASE = Architecture('transformer', dict(layers=2, width=16, heads=4, mlp_width=32, n_positions=16))
HEAD = ClassifierHead('similarity', 6)


def partitioner_of(strategy, shape, n_devices):
    return Partitioner(strategy, shape, jax.devices()[:n_devices])


def pretraining_config(accumulation=1):
    config = pretrain_config.get_config('tiny')
    config.model.update(BASE.sizes)
    config.optimizer.update(warmup_steps=2, accumulation=accumulation)
    config.data.batch_size = 16
    return config


def pretraining(partitioner, vocab_size=40, accumulation=1):
    return program.pretraining(pretraining_config(accumulation), vocab_size, 10, partitioner)


def finetuning(partitioner):
    return program.finetuning(finetune_config.get_config('stsb'), BASE, 40, HEAD, 'ordinal', 10, partitioner)


def described(tree):
    return [
        (jax.tree_util.keystr(path), leaf.shape, leaf.dtype, leaf.sharding)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


@pytest.mark.parametrize('mesh', MESHES, ids=[mesh[0] for mesh in MESHES])
@pytest.mark.parametrize('make', [pretraining, finetuning])
def test_the_abstract_state_is_that_of_a_new_one(make, mesh):
    made = make(partitioner_of(*mesh))
    state = made.create_state(seed=0)
    assert jax.tree.structure(made.abstract) == jax.tree.structure(state)
    assert described(made.abstract) == described(state)
    assert made.parameters == sum(np.size(leaf) for leaf in jax.tree.leaves(jax.device_get(state.params)))


def test_data_parallel_groups_update_a_part_each():
    """And read parameters whole, gathered in the step."""
    partitioner = partitioner_of('dp', (8, 1, 1), 8)
    made = pretraining(partitioner)
    state = made.create_state(seed=0)
    kept = lambda tree: sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(tree))
    large = re.compile(r"(kernel|table)'\]$")
    spread = sum(np.prod(shape) for name, shape, *_ in described(state.params) if large.search(name))
    whole = made.parameters - spread
    assert whole < spread and kept(state.params) == spread // 8 + whole
    _, moments, *_ = state.opt_state
    assert kept(moments.mu) == kept(moments.nu) == kept(state.params)
    batch = program.pretraining_batch(pretraining_config(), made.classifier.model, partitioner)
    compiled = made.train_step.lower(made.abstract, batch).compile()
    assert re.search(r' all-gather(-start)?\(', compiled.as_text())
    assert re.search(r' (all-reduce|reduce-scatter)(-start)?\(', compiled.as_text())
    assert compiled.memory_analysis().argument_size_in_bytes < 3.2 * 4 * kept(state.params)


@pytest.mark.parametrize(
    ('before', 'after'),
    [
        (('dp', (8, 1, 1), 8), ('dp', (1, 1, 1), 1)),
        (('dp', (2, 1, 1), 2), ('dp', (8, 1, 1), 8)),
        (('fsdp+tp', (2, 2, 2), 8), ('dp', (3, 1, 1), 3)),
    ],
)
def test_a_state_is_restored_however_it_was_spread(tmp_path, before, after):
    """`whole`: as versions wrote it that did not spread the state."""
    made, other = (pretraining(partitioner_of(*mesh)) for mesh in (before, after))
    spread = made.create_state(seed=3)
    whole = jax.device_put(spread, partitioner_of(*before).sharding())
    for name, state in {'spread': spread, 'whole': whole}.items():
        checkpointer = Checkpointer(tmp_path / name)
        checkpointer.save(1, state.items(), {})
        _, items, _ = checkpointer.restore_latest(other.abstract.items())
        checkpointer.close()
        restored = TrainState.from_items(items)
        assert described(restored) == described(other.abstract)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), jax.device_get(state))


def compiled_while(action):
    """(the names of the functions that JAX compiles in it, of those that it traces)"""
    found = [], []

    def listen(event, seconds, **named):
        del seconds
        if event == '/jax/core/compile/backend_compile_duration':
            found[0].append(named['fun_name'])
        elif event == '/jax/core/compile/jaxpr_trace_duration':
            found[1].append(named['fun_name'])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        action()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return found


@pytest.mark.parametrize('mesh', MESHES, ids=[mesh[0] for mesh in MESHES])
def test_a_step_is_compiled_beside_other_work_and_not_again(mesh, monkeypatch):
    loss_fn, losses = steps.pretrain_loss_fn, []
    counted = lambda loss: lambda *arguments: losses.append(1) or loss(*arguments)
    monkeypatch.setattr(steps, 'pretrain_loss_fn', lambda *arguments: counted(loss_fn(*arguments)))
    made = pretraining(partitioner_of(*mesh), accumulation=2)
    split = types.SimpleNamespace(tokens=100, read=lambda starts, length: np.zeros((len(starts), length), np.uint16))
    placement = made.partitioner.placement
    batch = PretrainingBatches(split, batch_size=16, length=16, seed=0, placement=placement, accumulation=2).batch_at(0)
    compiled, traced = compiled_while(lambda: made.start_compiling(batch)())
    assert compiled == ['jit(step)'] and traced == ['step'] and len(losses) == 1
    state, batch = made.create_state(seed=0), made.partitioner.put_batch(batch)
    assert compiled_while(lambda: made.train_step(state, batch)) == ([], [])


def test_runs_whose_learning_rates_alone_differ_share_a_step():
    config, partitioner = pretraining_config(), partitioner_of(*MESHES[0])
    batch = {'tokens': np.zeros((1, 1, 16, 17), np.uint16), 'weights': np.full((1, 1, 16, 16), 1 / 256, np.float32)}
    texts, rates, biases = [], [], []
    for peak, warmup, total in ((0.01, 2, 10), (0.03, 5, 20)):
        config.optimizer.update(learning_rate=peak, warmup_steps=warmup)
        made = program.pretraining(config, 40, total, partitioner)
        texts.append(made.train_step.lower(made.abstract, partitioner.abstract_batch(batch)).as_text())
        state = made.create_state(seed=0).replace(step=jax.numpy.int32(warmup))
        state, metrics = made.train_step(state, partitioner.put_batch(batch))
        rates.append(float(metrics['learning_rate']))
        biases.append(np.abs(state.params['decoder']['blocks']['norm_2']['bias']).max())
    assert texts[0] == texts[1]
    np.testing.assert_allclose(rates, [0.01, 0.03], rtol=1e-5)  # at the end of the warm-up
    np.testing.assert_allclose(biases[1], 3 * biases[0], rtol=1e-4)


def test_what_goes_wrong_in_compiling_is_told_to_who_waits(monkeypatch):
    made = pretraining(partitioner_of(*MESHES[0]))
    printed = []
    monkeypatch.setattr(threading, 'excepthook', printed.append)
    wait = made.start_compiling({'tokens': np.zeros((1, 1, 16, 17), np.uint16)})  # without weights
    with pytest.raises(KeyError, match='weights'):
        wait()
    assert not printed
    thread = stopping.dispensable[-1]
    assert thread.name == 'compile' and not thread.daemon  # Python would abort where it ended one inside XLA


def test_nothing_is_computed_before_it_is_asked_for():
    """Not even the parameters, of which a large model may have more than fit here."""
    partitioner, before = partitioner_of(*MESHES[2]), {id(array) for array in jax.live_arrays()}
    made = [pretraining(partitioner), finetuning(partitioner)]
    smallest = min(leaf.size for leaf in jax.tree.leaves(made[0].abstract.params))
    assert all(array.size < smallest for array in jax.live_arrays() if id(array) not in before)


def test_a_finetuned_model_is_its_base_with_special_rows_and_the_config_s_dropout():
    config = finetune_config.get_config('stsb')
    with config.unlocked():  # as in a config of `pretrain`
        config.model.update(dropout=0.25, layers=7)
    made = program.finetuning(config, BASE, 40, HEAD, 'ordinal', 10, partitioner_of(*MESHES[0]))
    model = made.classifier.model
    assert Architecture.of(model) == BASE and model.vocab_size == 40 and model.n_special == N_SPECIAL
    assert model.dropout == 0.25 and made.classifier.head == HEAD


def test_the_language_model_s_head_costs_nothing_where_its_loss_has_no_weight():
    config, found = finetune_config.get_config('stsb'), []
    for config.lm_coefficient in (0.5, 0.0):
        found.append(program.finetuning(config, BASE, 40, HEAD, 'ordinal', 10, partitioner_of(*MESHES[0])))
    rows = 40 + N_SPECIAL + BASE.sizes['n_positions']
    assert found[0].flops_per_token == found[0].classifier.model.flops_per_token()
    assert found[0].flops_per_token - found[1].flops_per_token == 3 * 2 * rows * BASE.sizes['width']


# Batches


def split_of(directory, vocab_size):
    shards.start_journal(directory, {})
    writer = shards.ShardWriter(directory, vocab_size, 1000)
    writer.start_document('train')
    writer.append('train', np.arange(2000) % 40)
    writer.commit(None)
    writer.finish('')
    return shards.load_shards(directory).splits['train']


@pytest.mark.parametrize('mesh', MESHES, ids=[mesh[0] for mesh in MESHES])
@pytest.mark.parametrize('accumulation', [1, 2])
@pytest.mark.parametrize('vocab_size', [40, 2**16, 2**16 + 1])
def test_a_pretraining_batch_is_what_the_reader_makes(tmp_path, mesh, accumulation, vocab_size):
    partitioner = partitioner_of(*mesh)
    config = pretraining_config(accumulation)
    batches = PretrainingBatches(
        split_of(tmp_path, vocab_size),
        batch_size=16,
        length=16,
        seed=0,
        accumulation=accumulation,
        placement=partitioner.placement,
    )
    model = architecture.build(config.model, vocab_size, 0, 'cpu')
    shapes = program.pretraining_batch(config, model, partitioner)
    assert described(shapes) == described(partitioner.put_batch(batches.batch_at(0)))


def encoded_of(sequences, label_dtype):
    rng = np.random.default_rng(5)
    one = lambda context: np.append(context, rng.integers(0, 43, rng.integers(2, 5))).astype(np.int32)
    examples = [[one(context) for _ in range(sequences)] for context in rng.integers(0, 43, (40, 9))]
    return Encoded(examples, rng.integers(0, 2, 40).astype(label_dtype), list(map(str, range(40))), 0, 0)


FINETUNING = [(1, np.int32, False), (2, np.float32, False), (3, np.int32, True)]  # sequences, labels, share_context


@pytest.mark.parametrize('mesh', MESHES, ids=[mesh[0] for mesh in MESHES])
@pytest.mark.parametrize('accumulation', [1, 2])
@pytest.mark.parametrize(('sequences', 'label_dtype', 'share_context'), FINETUNING)
def test_an_abstract_batch_is_what_is_put(mesh, accumulation, sequences, label_dtype, share_context):
    partitioner = partitioner_of(*mesh)
    batch = FinetuningBatches(
        encoded_of(sequences, label_dtype),
        batch_size=16,
        rows=Rows(32),
        placement=partitioner.placement,
        accumulation=accumulation,
        share_context=share_context,
    ).batch_at(0)
    assert described(partitioner.abstract_batch(batch)) == described(partitioner.put_batch(batch))


@pytest.mark.parametrize('make', [pretraining, finetuning])
def test_a_step_is_traced_from_shapes_alone(make):
    """What comes out has the form of what goes in, so that the next step takes it."""
    partitioner = partitioner_of(*MESHES[2])
    made = make(partitioner)
    batches = FinetuningBatches(encoded_of(2, np.float32), batch_size=16, placement=partitioner.placement)
    batch = partitioner.abstract_batch(batches.batch_at(0))
    if make is pretraining:
        batch = program.pretraining_batch(pretraining_config(), made.classifier.model, partitioner)
    state, metrics = made.train_step.lower(made.abstract, batch).out_info
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), made.abstract
    )
    assert {'loss', 'grad_norm', 'learning_rate', 'skipped'} <= metrics.keys()
    assert all(metric.shape == () for metric in metrics.values())


# The type of computation


@pytest.mark.parametrize(
    ('dtype', 'platform', 'expected'),
    [
        ('auto', 'cpu', 'float32'),
        ('auto', 'tpu', 'bfloat16'),
        ('auto', 'gpu', 'bfloat16'),
        ('float32', 'tpu', 'float32'),
        ('bfloat16', 'cpu', 'bfloat16'),
    ],
)
def test_the_type_follows_the_platform_that_is_named(dtype, platform, expected):
    """And not the one that this runs on; parameters are float32 everywhere."""
    config = pretraining_config()
    config.model.dtype = dtype
    model = architecture.build(config.model, 40, 0, platform)
    output = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), np.zeros((1, 4), np.int32)))
    assert model.dtype == output[0].hidden.dtype == expected
    assert {leaf.dtype for leaf in jax.tree.leaves(output[1])} == {np.dtype(np.float32)}


class Device:
    """Of a machine that is not here."""

    platform, device_kind, process_index = 'tpu', 'TPU v9', 0

    def __init__(self, number):
        self.id = number


def test_the_type_follows_the_devices_of_the_mesh(monkeypatch):
    monkeypatch.setattr(
        partitioning.mesh_utils,
        'create_device_mesh',
        lambda shape, devices, **options: np.array(devices, dtype=object).reshape(shape),
    )
    partitioner = Partitioner('fsdp', devices=[Device(number) for number in range(4)])
    for make in (pretraining, finetuning):
        assert make(partitioner).classifier.model.dtype == 'bfloat16'
        assert make(partitioner_of(*MESHES[0])).classifier.model.dtype == 'float32'


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'kind': 'perceptron'}, "model.kind: 'perceptron' is unknown. Choose one of transformer"),
        (
            {'kind': 'lstm'},
            'model.kind: This config has no units, which a model of kind lstm needs. Use configs/pretrain.py with one '
            'of :tiny_lstm, :small_lstm, :lstm.',
        ),
        ({'heads': 3}, 'model: The sizes do not fit together (model.width=16 is not a multiple of model.heads=3).'),
    ],
)
def test_a_model_that_cannot_be_built(changes, words):
    with pytest.raises(UserError) as caught:
        architecture.build(ml_collections.ConfigDict(pretraining_config().model.to_dict() | changes), 40, 0, 'cpu')
    assert str(caught.value).startswith(words)


# The memory


@pytest.mark.parametrize('mesh', MESHES, ids=[mesh[0] for mesh in MESHES])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_state_and_its_gradients_must_fit_and_no_more(monkeypatch, mesh, dtype):
    """On one device; its gradients may be in the type of the computation."""
    config = pretraining_config()
    config.model.dtype = dtype
    made = program.pretraining(config, 40, 10, partitioner_of(*mesh))
    held = lambda tree: sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))
    state = made.create_state(0)
    needed = held(state) + held(state.params) // (1 if dtype == 'float32' else 2)
    monkeypatch.setattr(room, 'memory', lambda devices, *names: needed)
    made.check_room()
    monkeypatch.setattr(room, 'memory', lambda devices, *names: needed - 1)
    with pytest.raises(UserError, match='^model: The parameters, their moments and gradients take'):
        made.check_room()


def test_a_monster_is_refused_at_once():
    """On any machine of today."""
    config = pretraining_config()
    config.model.update(width=2**17, mlp_width=2**17, layers=96)
    with pytest.raises(UserError, match=r'take 158,[0-9]{3}\.[0-9] GB on each device, which has'):
        program.pretraining(config, 40, 10, partitioner_of(*MESHES[0])).check_room()
