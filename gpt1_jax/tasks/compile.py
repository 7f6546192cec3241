"""The training programs compiled for an absent TPU slice: what they need, and an estimate of the time."""

import collections
import time

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from gpt1_jax.config import check_choice
from gpt1_jax.errors import UserError
from gpt1_jax.meter import slices, work
from gpt1_jax.meter.collectives import collectives
from gpt1_jax.meter.memory import NoRoomError, in_memory
from gpt1_jax.meter.places import table
from gpt1_jax.meter.search import advice, search
from gpt1_jax.meter.step import roofline
from gpt1_jax.model.architecture import Architecture, build
from gpt1_jax.model.classifier import Classifier, ClassifierHead
from gpt1_jax.model.sizes import SIZES
from gpt1_jax.progress import Progress, waiting
from gpt1_jax.report.results import Result, record
from gpt1_jax.report.tables import format_table, publish
from gpt1_jax.saved_models import store
from gpt1_jax.training import program
from gpt1_jax.training.partitioning import STRATEGIES, Partitioner
from gpt1_jax.training.state import abstract_params
from gpt1_jax.training.throughput import mfu, peak_flops
from gpt1_jax.workdir import open_workdir

# At XLA's default effort its estimate is negative, and bytes count prefetching copies; at -1 neither is so.
_CLEAN = {'exec_time_optimization_effort': -1.0}
_GIB = 2**30
_SMALLER = 'Lower data.batch_size, raise optimizer.accumulation or set model.remat; --config.sweep=True tries these.'


def run(config: ConfigDict, workdir: epath.Path) -> Result:
    """Compiles as configs/compile.py says; prints a table and writes it to WORKDIR/table.txt.

    Facts: `slice`, `programs` (name -> `_figures`), and, with `sweep`, what was tried and recommended.
    """
    started = time.monotonic()
    jax.config.update('jax_platforms', 'cpu')  # a TPU of this machine stays free
    described = slices.named(config.slice)
    for name in config.works:
        check_choice('works', name, ('pretrain', *work.SETS))
    settled = work.sized(config, config.size)
    open_workdir(config, workdir, write=True)
    devices = described.devices()
    partitioner = Partitioner(config.mesh.strategy, config.mesh.shape, devices)
    model = build(settled.model, SIZES[config.size].vocab_size, 0, partitioner.platform)
    summary = store.summary(model, abstract_params(Classifier(model), partitioner), 0)
    facts = {
        'slice': {'name': described.name, 'chips': described.chips, 'chip': described.generation.kind},
        'measured': 'nothing: estimates',
        'programs': {},
    }
    try:
        for number, name in enumerate(config.works, 1):
            logging.info('compile: %s, %d of %d', name, number, len(config.works))
            try:
                with waiting(f'compiling {name}'), in_memory():
                    facts['programs'][name] = _compile(settled, name, described, partitioner, config.as_run)
            except NoRoomError as error:
                if not config.sweep:
                    raise UserError(
                        f'{name}: It does not fit into the memory of a chip ({error}). {_SMALLER}'
                    ) from None
                logging.warning('%s: It does not fit into the memory of a chip (%s).', name, error)
        if config.sweep:
            _sweep(settled, described, devices, facts)
    finally:
        if facts['programs']:
            publish(workdir, _table(facts, summary, config))
    return record(config, workdir, started, facts=facts, model=summary)


def _made(config, name, partitioner):
    """(program, its batch, tokens or examples in a batch)"""
    vocab_size, config = SIZES[config.size].vocab_size, config.copy_and_resolve_references()
    if config.model.scan is None:
        config.model.scan = name != 'pretrain'
    if name == 'pretrain':
        made = program.pretraining(config, vocab_size, work.TOTAL_STEPS, partitioner)
        model = made.classifier.model
        amount = config.data.batch_size * model.n_positions
        return made, program.pretraining_batch(config, model, partitioner), amount
    config.data.batch_size, config.optimizer.accumulation = config.data.finetune_batch_size, 1
    of_set = work.SETS[name]
    model = build(config.model, vocab_size, 0, partitioner.platform)
    examples = of_set.make(vocab_size, of_set.batches * config.data.batch_size, model.n_positions)
    head = ClassifierHead(of_set.kind, of_set.classes, config.model.head_dropout)
    made = work.finetuning(config, Architecture.of(model), vocab_size, head, examples, partitioner)
    return made.program, partitioner.abstract_batch(made.batches.batch_at(0)), config.data.batch_size


def _compile(config, name, described, partitioner, as_run):
    """The figures of one program. as_run: also the memory and compile time of a run, which compiles longer for a faster
    program."""
    made, batch, amount = _made(config, name, partitioner)
    lowered = made.train_step.lower(made.abstract, batch)
    compiled = lowered.compile(_CLEAN)
    figures = _figures(compiled, made, described)
    if config.entries:
        figures['instructions'] = table(compiled.as_text(), config.entries)
    figures['batch'] = amount
    figures['rows'] = list(batch['tokens'].shape)
    step_s = figures['step_ms'] / 1e3
    if name == 'pretrain':
        model = made.classifier.model
        peak = peak_flops(described.generation.kind, model.dtype)
        figures['tokens_per_s'] = amount / step_s
        figures['mfu'] = mfu(amount / step_s, model.flops_per_token(), peak, described.chips)
    else:
        figures['examples_per_s'] = amount / step_s
    if as_run:
        began = time.monotonic()
        analysis = lowered.compile().memory_analysis()
        figures |= {'compile_s': time.monotonic() - began, 'memory_gib': analysis.peak_memory_in_bytes / _GIB}
    figures['fits'] = figures['memory_gib'] <= described.generation.memory_gib
    return figures


def _figures(compiled, made, described):
    """What one chip needs for a step.

    'memory_gib'; 'gflop', 'gb': as XLA counts them, with what kernels declare; 'collectives': kind -> how many, and
    gigabytes that a chip sends inside its slice and to others; 'computation_ms': XLA's estimate; 'sending_ms': of the
    collectives, one after the other; 'step_ms': both, as if nothing overlapped. XLA counts one round of a loop:
    `roofline` adds the others.
    """
    generation, cost = described.generation, compiled.cost_analysis()
    found, sending = collections.defaultdict(lambda: {'times': 0, 'gb': 0.0, 'gb_between_slices': 0.0}), 0.0
    for one in collectives(compiled.as_text()):
        inside, between = one.sent(described.chips // described.slices)
        entry = found[one.kind]
        entry['times'] += one.times
        entry['gb'] += one.times * inside / 1e9
        entry['gb_between_slices'] += one.times * between / 1e9
        seconds = inside / (generation.ici_gb_per_s / 2 * 1e9) + between / (generation.dcn_gb_per_s * 1e9)
        sending += one.times * seconds * 1e3
    ceilings = peak_flops(generation.kind, 'bfloat16'), generation.memory_gb_per_s * 1e9
    every, one = (roofline(compiled.as_text(), *ceilings, rounds=rounds) for rounds in (True, False))
    more = {name: every[name] - one[name] for name in ('least_ms', 'gflop', 'gb')}
    estimate = cost.get('optimal_seconds', -1)  # below 0: XLA does not know the cost of every instruction
    computing = every['least_ms'] if estimate < 0 else estimate * 1e3 + more['least_ms']
    return {
        'memory_gib': compiled.memory_analysis().peak_memory_in_bytes / _GIB,
        'gflop': cost['flops'] / 1e9 + more['gflop'],
        'gb': cost['bytes accessed'] / 1e9 + more['gb'],
        'collectives': dict(found),
        'computation_ms': computing,
        'sending_ms': sending,
        'step_ms': computing + sending,
    }


def _sweep(config, described, devices, facts):
    """Tries settings of pre-training in turn, see meter.search."""
    base = {
        'mesh.strategy': config.mesh.strategy,
        'optimizer.accumulation': config.optimizer.accumulation,
        'model.remat': config.model.remat,
        'model.scan': bool(config.model.scan),
    }
    axes = {
        'mesh.strategy': list(STRATEGIES),
        'optimizer.accumulation': (1, 2, 4),
        'model.remat': (False, True),
        'model.scan': (False, True),
    }

    def measure(settings):
        candidate = config.copy_and_resolve_references()
        candidate.update_from_flattened_dict(settings)
        candidate.mesh.shape = config.mesh.shape if settings['mesh.strategy'] == config.mesh.strategy else ()
        partitioner = Partitioner(candidate.mesh.strategy, candidate.mesh.shape, devices)
        with waiting('compiling with ' + ', '.join(f'{key}={value}' for key, value in settings.items())):
            with in_memory():
                figures = _compile(candidate, 'pretrain', described, partitioner, as_run=False)
        if not figures['fits']:
            raise NoRoomError(
                f'{figures["memory_gib"]:.1f} GiB are needed, a chip has {described.generation.memory_gib}'
            )
        rate = figures['tokens_per_s']
        return {
            'tokens_per_s': {'median': rate, 'min': rate, 'max': rate},
            'planned_gb': figures['memory_gib'] * _GIB / 1e9,
            'mfu': figures['mfu'],
        }

    tried = facts['tried'] = []
    progress = Progress(1 + sum(len(set(values) - {base[key]}) for key, values in axes.items()), 0, 'sweep', unit='try')
    for entry in search(base, axes, measure):
        tried.append(entry)
        progress.update(len(tried))
        logging.info('compile: sweep: %s', entry)
        facts['recommended'], facts['advice'] = advice(tried, config.data.batch_size)


_LINES = (
    ('batch', lambda one: f'{one["batch"]:,}'),
    ('rows of tokens', lambda one: ' x '.join(map(str, one['rows']))),
    ('memory of a chip', lambda one: f'{one["memory_gib"]:.2f} GiB, {"fits" if one["fits"] else "does not fit"}'),
    ('FLOPs', lambda one: f'{one["gflop"] / 1e3:.2f} TFLOP'),
    ('bytes moved', lambda one: f'{one["gb"]:.2f} GB'),
    ('computation', lambda one: f'{one["computation_ms"]:.2f} ms'),
    ('sending, if nothing overlaps', lambda one: f'{one["sending_ms"]:.2f} ms'),
    ('tokens/s', lambda one: f'{one["tokens_per_s"]:,.0f}' if 'tokens_per_s' in one else None),
    ('examples/s', lambda one: f'{one["examples_per_s"]:,.0f}' if 'examples_per_s' in one else None),
    ('MFU', lambda one: f'{one["mfu"]:.0%}' if one.get('mfu') else None),
    ('compiling as a run', lambda one: f'{one["compile_s"]:.0f} s' if 'compile_s' in one else None),
)


def _table(facts, summary, config):
    programs, described = facts['programs'], facts['slice']
    kinds = sorted({kind for one in programs.values() for kind in one['collectives']})
    lines = list(_LINES)
    lines[5:5] = [(f'sent, {kind}', lambda one, kind=kind: _sent(one['collectives'].get(kind))) for kind in kinds]
    entries = [(label, *map(text, programs.values())) for label, text in lines]
    return '\n'.join(
        [
            f'{described["chips"]} x {described["chip"]} ({described["name"]}), {config.mesh.strategy}; '
            f'{summary["parameters"]:,} parameters; figures of one chip and step',
            format_table([('', 32, ''), *((name, 26, '') for name in programs)], entries),
            'Times are estimates from the compiled programs; nothing was run.',
            *(f'\n{name}, {one["instructions"]}' for name, one in programs.items() if 'instructions' in one),
            *facts.get('advice', ()),
        ]
    )


def _sent(found):
    if found is None:
        return None
    between = found['gb_between_slices']
    return f'{found["times"]} x, {found["gb"]:.3f} GB' + (f', {between:.3f} between slices' if between else '')
