"""Part 2: are the numbers right here? Every piece states what it compared, the error, and the error allowed."""

import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator import program
from benchmarks.accelerator.measure import Context, relative_error
from gpt1_jax.meter import work
from gpt1_jax.model import attention
from gpt1_jax.model.classifier import Classifier
from gpt1_jax.model.dropout import keep_mask
from gpt1_jax.model.sizes import SIZES
from gpt1_jax.model.transformer import Decoder
from gpt1_jax.saved_models import parameters
from gpt1_jax.training import checksums, steps
from gpt1_jax.training.checkpoint import Checkpointer
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.state import TrainState, abstract_params

GOLDEN = pathlib.Path(__file__).parents[2] / 'tests' / 'golden' / 'openai_gpt.npz'
ROWS = 8  # of a batch here, because the reference in float32 needs more memory than a training step
# ||a - b|| / ||b|| over all gradients. bfloat16 has 8 bits: 2**-8 = 0.004 for one product, and there are a few dozen in
# a row. A float32 product may use TF32 (10 bits) on a GPU, and three bfloat16 parts on a TPU.
ALLOWED = {'bfloat16': 0.05, 'float32': 0.005, 'golden': 1e-4, 'packed': 1e-4, 'mesh': 1e-3}
NO_DROPOUT = dict(dropout=0.0, attention_dropout=0.0, residual_dropout=0.0)
_UPDATES = 4  # of a run that is stopped halfway


def run(context: Context) -> None:
    masks(context)
    kernels(context)
    golden(context)
    packed(context)
    precision(context)
    resumed(context)
    mesh(context)


def masks(context: Context) -> None:
    """Compares dropout masks of the device and of the host's processor, bit by bit."""
    with context.attempt('dropout_masks') as piece:
        context.need(10)
        length = SIZES[context.size].sizes['n_positions']
        shapes = [(2, 12, length, length), (64, length, 768), (40990, 768), (5, 1, 7)]
        host = jax.local_devices(backend='cpu')[0]
        different = 0
        for i, shape in enumerate(shapes):
            one = lambda shape=shape, i=i: keep_mask(jax.random.key(i), shape, 0.1)
            with jax.default_device(host):
                expected = np.asarray(jax.jit(one)())
            different += int(np.sum(np.asarray(jax.jit(one)()) != expected))
        piece |= {
            'compared': f'{sum(int(np.prod(s)) for s in shapes):,} bits with those of the host',
            'different': different,
            'ok': different == 0,
        }


def kernels(context: Context) -> None:
    """Compares the device's kernels with XLA: the attention's dropout mask bit by bit, and all gradients."""
    with context.attempt('kernels') as piece:
        context.need(50)
        platform, sizes = jax.default_backend(), SIZES[context.size].sizes
        length, heads = sizes['n_positions'], sizes['heads']
        head_dim = sizes['width'] // heads
        if why_not := attention.obstacle(platform, ROWS, length, heads, head_dim):
            raise TimeoutError(f'skipped: {why_not}')
        key, all_seen = jax.random.key(0), attention.Visible(None, None)

        @jax.jit
        def kept(first):
            """[ROWS, T, H, D]: for every query, whether it keeps the keys [first, first + D)."""
            # Queries and keys of 0 give equal probabilities; a value of 1 in a column of its own shows each of them.
            value = jnp.tile(jnp.eye(length, head_dim, -first, jnp.bfloat16), heads)
            qkv = jnp.zeros((3, ROWS, length, sizes['width']), jnp.bfloat16).at[2].set(value)
            bias = jnp.zeros((3, sizes['width']))
            mixed = attention.attend_in_kernel(qkv, bias, all_seen, heads, 0.1, key, platform)
            return mixed.reshape(ROWS, length, heads, head_dim) != 0

        mask = np.tril(keep_mask(key, (ROWS, heads, length, length), 0.1)).swapaxes(1, 2)
        blocks = [kept(first) for first in range(0, length, head_dim)]
        different = int(np.sum(np.concatenate(blocks, axis=-1)[..., :length] != mask))
        gradients = []
        with jax.default_matmul_precision('highest'):
            for chosen in ('kernel', 'xla'):
                made = program.pretraining(
                    context.size,
                    batch_size=ROWS,
                    devices=jax.devices()[:1],
                    dtype='float32',
                    scan=True,
                    attention=chosen,
                )
                batch = {key: jnp.asarray(value[0]) for key, value in made.batches.batch_at(0).items()}
                by_xla = steps.pretrain_loss_fn(made.program.classifier)
                loss_fn = made.program.loss_fn if chosen == 'kernel' else by_xla
                gradient = jax.jit(jax.grad(loss_fn, has_aux=True))
                gradients.append(gradient(made.new_state().params, batch, jax.random.key(1))[0])
        error = relative_error(*gradients)
        piece |= {
            'compared': f'the kernels with XLA: {mask.size:,} bits of the mask, gradients of {ROWS} rows in float32',
            'different': different,
            **error,
            'allowed': ALLOWED['float32'],
            'ok': different == 0 and error['relative'] < ALLOWED['float32'],
        }


def golden(context: Context) -> None:
    """Compares hidden states, logits, loss and gradients with arrays of Hugging Face transformers in float64."""
    with context.attempt('golden') as piece, jax.default_matmul_precision('highest'):
        context.need(15)
        with np.load(GOLDEN, allow_pickle=False) as file:
            arrays = dict(file)
        sizes = dict(layers=2, width=16, heads=4, mlp_width=64, n_positions=16)
        model = Decoder(**sizes, **NO_DROPOUT, vocab_size=50, n_special=0, softmax_rows='tokens')
        partitioner = Partitioner('dp', devices=jax.devices()[:1])
        classifier = Classifier(model)
        params = parameters.read_parameters(
            GOLDEN, lambda name: arrays[f'weights/{name}'], abstract_params(classifier, partitioner)
        )
        tokens = arrays['tokens'].reshape(-1, 12)
        output = jax.jit(lambda p, t: model.apply({'params': p['decoder']}, t))(params, tokens)
        batch = {'tokens': tokens[None], 'weights': np.full((1, len(tokens), 11), 1 / (len(tokens) * 11), np.float32)}
        (loss, _), gradients = jax.jit(jax.value_and_grad(steps.pretrain_loss_fn(classifier), has_aux=True))(
            params, batch, jax.random.key(0)
        )
        ours = parameters.name_parameters(jax.device_get(gradients), sizes)
        theirs = {name: arrays[f'lm_gradients/{name}'].reshape(array.shape) for name, array in ours.items()}
        errors = {
            'hidden': relative_error(output.hidden, arrays['hidden_states'][-1])['relative'],
            'logits': relative_error(output.hidden @ output.embedding.T, arrays['logits'])['relative'],
            'loss': abs(float(loss) / float(arrays['lm_loss']) - 1),
            'gradients': relative_error(ours, theirs)['relative'],
        }
        piece |= {
            'compared': 'with transformers in float64',
            **errors,
            'allowed': ALLOWED['golden'],
            'ok': all(error < ALLOWED['golden'] for error in errors.values()),  # none of a NaN
        }


def precision(context: Context) -> None:
    """Compares loss and gradients at full size, dropout on, with those in float32 at the highest precision."""
    results = {}
    for name, dtype, product in (
        ('highest', 'float32', 'highest'),
        ('bfloat16', 'bfloat16', None),
        ('float32', 'float32', None),
    ):
        with context.attempt(f'gradients_{name}') as piece, jax.default_matmul_precision(product):
            context.need(30)
            made = program.pretraining(context.size, batch_size=ROWS, devices=jax.devices()[:1], dtype=dtype, scan=True)
            params = made.new_state().params
            batch = {key: jnp.asarray(value[0]) for key, value in made.batches.batch_at(0).items()}
            (loss, _), gradients = jax.jit(jax.value_and_grad(made.program.loss_fn, has_aux=True))(
                params, batch, jax.random.key(1)
            )
            results[name] = float(loss), jax.device_get(gradients)
            piece |= {'loss': results[name][0]}
            if name != 'highest':
                loss, gradients = results[name]
                error = relative_error(gradients, results['highest'][1])
                piece |= {
                    'compared': f'{dtype} with float32 at highest precision, {ROWS} rows',
                    'loss_error': abs(loss / results['highest'][0] - 1),
                    **error,
                    'allowed': ALLOWED[name],
                    'ok': error['relative'] < ALLOWED[name],
                }


def packed(context: Context) -> None:
    """Compares fine-tuning on packed rows with one sequence per row."""
    with context.attempt('packed') as piece, jax.default_matmul_precision('highest'):
        context.need(40)
        vocab_size, longest = SIZES[context.size].vocab_size, SIZES[context.size].sizes['n_positions']
        encoded = work.sentences(vocab_size, 64, longest)
        results = []
        for packing in (True, False):
            made = program.finetuning(
                context.size,
                'classification',
                2,
                encoded,
                batch_size=16,
                packing=packing,
                devices=jax.devices()[:1],
                dtype='float32',
                scan=True,
                head_dropout=0.0,
                **NO_DROPOUT,
            )
            params = made.new_state().params
            batch = {key: jnp.asarray(value[0]) for key, value in made.batches.batch_at(0).items()}
            (loss, _), gradients = jax.jit(jax.value_and_grad(made.program.loss_fn, has_aux=True))(
                params, batch, jax.random.key(1)
            )
            results.append((float(loss), gradients))
        error = relative_error(results[0][1], results[1][1])
        piece |= {
            'compared': 'packed rows with one sequence per row, float32',
            'loss_error': abs(results[0][0] / results[1][0] - 1),
            **error,
            'allowed': ALLOWED['packed'],
            'ok': error['relative'] < ALLOWED['packed'],
        }


def resumed(context: Context) -> None:
    """Compares a run that was saved, stopped and resumed with one that was not, bit by bit; also two equal runs, which
    may differ if sums on the device have no fixed order."""
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
                    state, metrics = step(state, made.put(i))
                    if metrics['skipped']:
                        raise ValueError(f'update {i} was skipped: its loss or gradient is not finite')
                return state

            ends = [checksums.compute(train(made.new_state(), 0, _UPDATES).items()) for _ in range(2)]
            half = train(made.new_state(), 0, _UPDATES // 2)
            checkpointer = Checkpointer(folder)
            checkpointer.save(_UPDATES // 2, half.items(), {})
            checkpointer.close()
            del half
            _, items, _ = Checkpointer(folder).restore_latest(made.program.abstract.items())
            end = checksums.compute(train(TrainState.from_items(items), _UPDATES // 2, _UPDATES).items())
            shutil.rmtree(folder, ignore_errors=True)
            piece |= {
                'compared': f'{_UPDATES} updates with {_UPDATES // 2}, a checkpoint, and {_UPDATES // 2} more',
                'two_equal_runs_are_equal': ends[0] == ends[1],
                'ok': end == ends[0],
            }


def mesh(context: Context) -> None:
    """Compares an update on all local devices with one on a single device, in float32."""
    with context.attempt('mesh') as piece:
        context.need(60)
        if jax.local_device_count() == 1:
            raise TimeoutError('skipped: there is only one device')
        ends = []
        with jax.default_matmul_precision('highest'):
            for devices in (jax.local_devices()[:1], jax.local_devices()):
                made = program.pretraining(context.size, batch_size=ROWS, devices=devices, dtype='float32', scan=True)
                step, _ = made.compile()
                state = made.new_state()
                before = jax.device_get(state.params)
                for i in range(2):  # the first update has rate 0
                    state, _ = step(state, made.put(i))
                ends.append(jax.tree.map(np.subtract, jax.device_get(state.params), before))
        error = relative_error(ends[1], ends[0])
        piece |= {
            'compared': f'an update on {jax.local_device_count()} devices with one',
            **error,
            'allowed': ALLOWED['mesh'],
            'ok': error['relative'] < ALLOWED['mesh'],
        }
