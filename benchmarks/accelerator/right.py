"""Part 2: the same numbers here as elsewhere. Every piece states what it compared, the error, and the error allowed."""

import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator import program
from benchmarks.accelerator.measure import Context, relative_error
from gpt1_jax import config as common
from gpt1_jax import weights
from gpt1_jax.model.dropout import keep_mask
from gpt1_jax.model.transformer import Decoder
from gpt1_jax.training import steps
from gpt1_jax.training.checkpoint import Checkpointer, checksums
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.state import TrainState, abstract_tree, params_initialiser

GOLDEN = pathlib.Path(__file__).parents[2] / 'tests' / 'golden' / 'openai_gpt.npz'
ROWS = 8  # of a batch here: the reference in float32 keeps more than a training step does
# ||a - b|| / ||b|| over all gradients. bfloat16 has 8 bits: 2**-8 = 0.004 for one product, and a few dozen in a row.
# A float32 product may be made of TF32 parts (10 bits) on a GPU, and of three bfloat16 parts on a TPU.
ALLOWED = {'bfloat16': 0.05, 'float32': 0.005, 'golden': 1e-4, 'packed': 1e-4, 'mesh': 1e-3}
NO_DROPOUT = dict(dropout=0.0, attention_dropout=0.0, residual_dropout=0.0)
_UPDATES = 4  # of a run that is stopped in the middle


def run(context: Context) -> None:
    masks(context)
    golden(context)
    precision(context)
    packed(context)
    resumed(context)
    mesh(context)


def masks(context: Context) -> None:
    """Dropout masks here against those of the host's processor, bit by bit."""
    with context.attempt('dropout_masks') as piece:
        context.need(10)
        length = common.SIZES[context.size][4]
        shapes = [(2, 12, length, length), (64, length, 768), (40990, 768), (5, 1, 7)]
        host = jax.local_devices(backend='cpu')[0]
        different = 0
        for i, shape in enumerate(shapes):
            one = lambda shape=shape, i=i: keep_mask(jax.random.key(i), shape, 0.1)
            with jax.default_device(host):
                expected = np.asarray(jax.jit(one)())
            different += int(np.sum(np.asarray(jax.jit(one)()) != expected))
        piece |= {'compared': f'{sum(int(np.prod(s)) for s in shapes):,} bits with those of the host',
                  'different': different, 'ok': different == 0}


def golden(context: Context) -> None:
    """Hidden states, logits, loss and gradients against arrays of Hugging Face transformers in float64."""
    with context.attempt('golden') as piece, jax.default_matmul_precision('highest'):
        context.need(15)
        with np.load(GOLDEN, allow_pickle=False) as file:
            arrays = dict(file)
        sizes = dict(layers=2, width=16, heads=4, mlp_width=64, n_positions=16)
        model = Decoder(**sizes, **NO_DROPOUT, vocab_size=50, n_special=0, softmax_rows='tokens')
        partitioner = Partitioner('dp', devices=jax.devices()[:1])
        boxed = jax.eval_shape(params_initialiser(model), jax.random.key(0))
        params = weights.read_parameters(lambda name: arrays[f'weights/{name}'], abstract_tree(boxed, partitioner))
        tokens = arrays['tokens'].reshape(-1, 12)
        output = jax.jit(lambda p, t: model.apply({'params': p['decoder']}, t))(params, tokens)
        loss_fn = steps.pretrain_loss_fn(model, groups=1, batch_size=len(tokens))
        (loss, _), gradients = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(
            params, {'tokens': tokens}, jax.random.key(0))
        ours = weights.name_parameters(jax.device_get(gradients), sizes)
        theirs = {name: arrays[f'lm_gradients/{name}'].reshape(array.shape) for name, array in ours.items()}
        errors = {'hidden': relative_error(output.hidden, arrays['hidden_states'][-1])['relative'],
                  'logits': relative_error(output.hidden @ output.embedding.T, arrays['logits'])['relative'],
                  'loss': abs(float(loss) / float(arrays['lm_loss']) - 1),
                  'gradients': relative_error(ours, theirs)['relative']}
        piece |= {'compared': 'with transformers in float64', **errors, 'allowed': ALLOWED['golden'],
                  'ok': max(errors.values()) < ALLOWED['golden']}


def precision(context: Context) -> None:
    """Loss and gradients at the full shape, dropout on, against float32 at the highest precision."""
    results = {}
    for name, dtype, product in (('highest', 'float32', 'highest'), ('bfloat16', 'bfloat16', None),
                                 ('float32', 'float32', None)):
        with context.attempt(f'gradients_{name}') as piece, jax.default_matmul_precision(product):
            context.need(30)
            made = program.pretraining(context.size, batch_size=ROWS, devices=jax.devices()[:1], dtype=dtype, scan=True)
            params = made.new_state().params
            with made.partitioner.activate():
                batch = {key: jnp.asarray(value[0]) for key, value in made.batch(0).items()}
                (loss, _), gradients = jax.jit(jax.value_and_grad(made.loss_fn, has_aux=True))(
                    params, batch, jax.random.key(1))
            results[name] = float(loss), jax.device_get(gradients)
            piece |= {'loss': results[name][0]}
            if name != 'highest':
                loss, gradients = results[name]
                error = relative_error(gradients, results['highest'][1])
                piece |= {'compared': f'{dtype} with float32 at highest precision, {ROWS} rows',
                          'loss_error': abs(loss / results['highest'][0] - 1), **error, 'allowed': ALLOWED[name],
                          'ok': error['relative'] < ALLOWED[name]}


def packed(context: Context) -> None:
    """Fine-tuning on packed rows against one sequence a row."""
    with context.attempt('packed') as piece, jax.default_matmul_precision('highest'):
        context.need(40)
        vocab_size, longest = common.SIZES[context.size][-1], common.SIZES[context.size][4]
        encoded = program.sentences(vocab_size, 64, longest)
        results = []
        for packing in (True, False):
            made = program.finetuning(
                context.size, 'classification', 2, encoded, batch_size=16, packing=packing, devices=jax.devices()[:1],
                dtype='float32', scan=True, head_dropout=0.0, **NO_DROPOUT)
            params = made.new_state().params
            with made.partitioner.activate():
                batch = {key: jnp.asarray(value[0]) for key, value in made.batch(0).items()}
                (loss, _), gradients = jax.jit(jax.value_and_grad(made.loss_fn, has_aux=True))(
                    params, batch, jax.random.key(1))
            results.append((float(loss), gradients))
        error = relative_error(results[0][1], results[1][1])
        piece |= {'compared': 'packed rows with a sequence a row, float32', 'loss_error': abs(
            results[0][0] / results[1][0] - 1), **error, 'allowed': ALLOWED['packed'],
            'ok': error['relative'] < ALLOWED['packed']}


def resumed(context: Context) -> None:
    """A run that is saved, stopped and resumed ends with the bits of one that was not; also, whether two equal runs
    have equal bits at all: where sums on the device have no fixed order, they need not."""
    for name, options in (('resumed', {}), ('resumed_deterministic', {'xla_gpu_deterministic_ops': True})):
        if options and (jax.default_backend() != 'gpu' or context.report['resumed'].get('ok')):
            return
        with context.attempt(name) as piece:
            context.need(60)
            made = program.pretraining(context.size, batch_size=ROWS, scan=True)
            step, _ = made.compile(**options)
            folder = context.out / 'resumed'
            shutil.rmtree(folder, ignore_errors=True)

            def train(state, first, last, step=step, made=made):
                for i in range(first, last):
                    state, _ = step(state, made.put(i))
                return state

            with made.partitioner.activate():
                ends = [checksums(train(made.init(0), 0, _UPDATES).items()) for _ in range(2)]
                half = train(made.init(0), 0, _UPDATES // 2)
                checkpointer = Checkpointer(folder)
                checkpointer.save(_UPDATES // 2, half.items(), {})
                checkpointer.close()
                del half
                _, items, _ = Checkpointer(folder).restore_latest(made.abstract.items())
                end = checksums(train(TrainState.from_items(items), _UPDATES // 2, _UPDATES).items())
            shutil.rmtree(folder, ignore_errors=True)
            piece |= {'compared': f'{_UPDATES} updates with {_UPDATES // 2}, a checkpoint, and {_UPDATES // 2} more',
                      'two_equal_runs_are_equal': ends[0] == ends[1], 'ok': end == ends[0]}


def mesh(context: Context) -> None:
    """One update on all local devices against one device, in float32."""
    with context.attempt('mesh') as piece:
        context.need(60)
        if jax.local_device_count() == 1:
            raise TimeoutError('left out: there is one device')
        ends = []
        with jax.default_matmul_precision('highest'):
            for devices in (jax.local_devices()[:1], jax.local_devices()):
                made = program.pretraining(context.size, batch_size=ROWS, devices=devices, dtype='float32', scan=True)
                step, _ = made.compile()
                with made.partitioner.activate():
                    state = made.init(0)
                    before = jax.device_get(state.params)
                    for i in range(2):  # the first has rate 0
                        state, _ = step(state, made.put(i))
                    ends.append(jax.tree.map(np.subtract, jax.device_get(state.params), before))
        error = relative_error(ends[1], ends[0])
        piece |= {'compared': f'an update on {jax.local_device_count()} devices with one', **error,
                  'allowed': ALLOWED['mesh'], 'ok': error['relative'] < ALLOWED['mesh']}
