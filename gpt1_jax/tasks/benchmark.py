"""The speed of this machine: pre-training, fine-tuning or generation, where the time goes, and the best settings."""

import dataclasses
import functools
import gc
import time

import jax
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from gpt1_jax.config import check_choice
from gpt1_jax.data.corpus.shards import Shards, ShardWriter, load_shards, start_journal
from gpt1_jax.data.corpus.windows import PretrainingBatches
from gpt1_jax.errors import UserError
from gpt1_jax.evaluation.classification import make_predictor
from gpt1_jax.files import write_json
from gpt1_jax.meter import ceilings, generation, training, work
from gpt1_jax.meter.memory import NoRoomError
from gpt1_jax.meter.search import advice, overrides, search
from gpt1_jax.meter.step import roofline
from gpt1_jax.meter.table import table
from gpt1_jax.meter.timing import rates, rounds
from gpt1_jax.model import architecture, decoding
from gpt1_jax.model.classifier import Classifier, ClassifierHead
from gpt1_jax.model.sizes import SIZES
from gpt1_jax.progress import duration, waiting
from gpt1_jax.report.results import Result, record
from gpt1_jax.report.tables import publish
from gpt1_jax.saved_models import store
from gpt1_jax.tasks.generate import jit_steps
from gpt1_jax.training import program
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.state import abstract_params
from gpt1_jax.training.throughput import peak_flops
from gpt1_jax.workdir import open_workdir

_TOKENS = 2**23  # of the random corpus
_CYCLE = 4  # fine-tuning batches, whose shapes may differ, after which they begin again
_DEV = 2  # evaluation batches
_FEWEST = 2.0  # seconds of a measurement


@dataclasses.dataclass
class _Bench:
    """The input of all parts.

    Attributes:
      config: with the size and all that depends on it filled in.
      shards: of pre-training, else None.
      report: all figures so far; `save` writes it to WORKDIR/benchmark.json.
      deadline: as time.monotonic() counts.
    """

    config: ConfigDict
    partitioner: Partitioner
    workdir: epath.Path
    shards: Shards | None
    report: dict
    deadline: float

    @property
    def vocab_size(self) -> int:
        return self.shards.vocab_size if self.shards else SIZES[self.config.size].vocab_size

    def seconds(self, parts: int, most: float = 30.0) -> float:
        """Seconds for one of `parts` parts that are still to come."""
        return min(most, max(_FEWEST, (self.deadline - time.monotonic()) / parts))

    def left(self) -> str:
        """The time that is left, in words."""
        return duration(max(0.0, self.deadline - time.monotonic()))

    def check_time(self, seconds: float = 0.0) -> None:
        """Raises TimeoutError if fewer seconds are left."""
        if time.monotonic() + seconds > self.deadline:
            raise TimeoutError(f'no time is left (minutes={self.config.minutes:g})')

    def ceilings(self) -> tuple[float, float]:
        """The device's measured (FLOP/s, bytes/s)."""
        found = self.report['ceilings']
        return found['product']['tflops']['median'] * 1e12, found['copy']['gb_per_s']['median'] * 1e9

    def save(self) -> None:
        write_json(self.workdir / 'benchmark.json', self.report)


def run(config: ConfigDict, workdir: epath.Path) -> Result:
    """Measures as configs/benchmark.py says; prints a table and writes it to WORKDIR/table.txt.

    WORKDIR/benchmark.json has all figures, after each part; an interruption leaves it and the table. They are also the
    facts of the result.
    """
    started = time.monotonic()
    if jax.process_count() > 1:
        raise UserError('benchmark: Several processes cannot be measured together. Start one, on one host.')
    for name in config.get('sets', ()):
        check_choice('sets', name, work.SETS)
    partitioner = Partitioner(config.mesh.strategy, config.mesh.shape)
    settled = _settle(config, partitioner.platform)
    open_workdir(config, workdir, write=True)
    shards = _open_shards(settled, workdir) if config.work == 'pretrain' else None
    bench = _Bench(settled, partitioner, workdir, shards, {}, started + 60 * config.minutes)
    model = architecture.build(settled.model, bench.vocab_size, 0, partitioner.platform)
    summary = store.summary(model, abstract_params(Classifier(model), partitioner), 0)
    bench.report |= {
        'machine': ceilings.machine(),
        'measured': {
            'work': config.work,
            'size': settled.size,
            'parameters': f'{summary["parameters"]:,}',
            'dtype': str(model.dtype),
            'attention': getattr(model, 'attention', 'none'),
        },
    }
    try:
        {'pretrain': _pretrain, 'finetune': _finetune, 'generate': _generate}[config.work](bench, model)
    finally:
        bench.save()
        publish(workdir, table(bench.report))
    return record(config, workdir, started, facts=bench.report, model=summary)


def _settle(config, platform):
    """The config with all keys filled in that depend on the size or on the platform."""
    on_cpu = platform == 'cpu'
    config = work.sized(config, config.size or ('tiny' if on_cpu else 'gpt1'))
    if 'data' in config and config.data.batch_size is None:
        config.data.batch_size = 8 if on_cpu else 64
    return config


def _open_shards(config, workdir):
    """The shards of `data.source`, or of random tokens."""
    scheme, _, path = config.data.source.partition(':')
    if config.data.source:
        if scheme != 'shards':
            raise UserError(
                f'data.source: {config.data.source!r} cannot be measured. Name prepared shards with shards:DIR, or '
                'leave it empty for random tokens.'
            )
        return load_shards(path)
    vocab_size = SIZES[config.size].vocab_size
    directory = workdir / f'shards-{vocab_size}'
    if not (directory / 'index.json').exists():
        start_journal(directory, {'source': 'random tokens'})
        writer = ShardWriter(directory, vocab_size, _TOKENS)
        writer.start_document('train')
        writer.append('train', np.random.default_rng(0).integers(0, vocab_size, _TOKENS))
        writer.finish('random tokens')
    return load_shards(directory)


def _ceilings(bench, dtype):
    """Measures the ceilings. Each kind of work calls it first, after its checks."""
    logging.info('benchmark: ceilings of the device')
    seconds = bench.seconds(20, most=5.0)
    bench.report['ceilings'] = {
        'dtype': str(dtype),
        'product': ceilings.product(str(dtype), seconds),
        'copy': ceilings.copy(seconds),
    }
    peak = peak_flops(bench.report['machine']['device'], dtype)
    bench.report['vendors_peak_tflops'] = peak and peak / 1e12
    bench.save()


def _pretrain(bench, model):
    def make(config):
        batches = PretrainingBatches(
            bench.shards.splits['train'],
            batch_size=config.data.batch_size,
            length=config.model.n_positions,
            seed=0,
            accumulation=config.optimizer.accumulation,
            placement=bench.partitioner.placement,
        )
        made = program.pretraining(config, bench.vocab_size, work.TOTAL_STEPS, bench.partitioner)
        return work.Work(made, batches)

    make(bench.config).program.check_room()
    _ceilings(bench, model.dtype)
    name = f'{bench.config.data.batch_size} x {model.n_positions} tokens'
    _in_turn(bench, 'training', [name], lambda _, parts: _measure(bench, make, 1, parts))
    if bench.config.sweep:
        _sweep(bench, make, 1, model)


def _finetune(bench, model):
    make = lambda name: functools.partial(_finetuning, bench, model, work.SETS[name])
    measure = lambda name, parts: _evaluated(
        bench, make(name), work.SETS[name], _measure(bench, make(name), _CYCLE, parts)
    )
    make(bench.config.sets[0])(bench.config).program.check_room()
    _ceilings(bench, model.dtype)
    _in_turn(bench, 'training', bench.config.sets, measure)
    if bench.config.sweep:
        _sweep(bench, make(bench.config.sets[0]), _CYCLE, model)


def _in_turn(bench, part, names, measure):
    """Puts measure(name, parts still to come) into the report, the first in any case, the others while time is left."""
    found = bench.report[part] = {}
    for number, name in enumerate(names):
        logging.info('benchmark: %s, %d of %d; at most %s left', name, number + 1, len(names), bench.left())
        try:
            if number:
                bench.check_time()
            with waiting(f'compiling and measuring {name}'):
                found[name] = measure(name, len(names) - number + 1)
        except TimeoutError as error:
            found[name] = {'skipped': str(error)}
        except NoRoomError as error:
            found[name] = {'skipped': f'does not fit into the memory: {error}'}
        bench.save()


def _finetuning(bench, model, of_set, config):
    examples = of_set.make(bench.vocab_size, of_set.batches * config.data.batch_size, model.n_positions)
    head = ClassifierHead(of_set.kind, of_set.classes, config.model.head_dropout)
    base = architecture.Architecture.of(model)
    made = work.finetuning(config, base, bench.vocab_size, head, examples, bench.partitioner)
    return dataclasses.replace(made, batches=work.Cycle(made.batches, _CYCLE))


def _evaluated(bench, make, of_set, found):
    """`found`, with the rate of evaluation, and that of an epoch as long as the real set's with its evaluation."""
    made, size = make(bench.config), bench.config.data.eval_batch_size
    predict = make_predictor(made.program.classifier, made.program.abstract.params, made.program.partitioner, size)
    dev, params = of_set.make(bench.vocab_size, _DEV * size, made.model.n_positions), made.new_state().params
    predict(params, dev)  # compiles
    rate = rates(len(dev.ids), rounds(lambda: predict(params, dev), seconds=bench.seconds(8, most=5.0)))
    seconds = of_set.train / found['examples_per_s']['median'] + of_set.dev / rate['median']
    return found | {'evaluation_examples_per_s': rate, 'epoch_examples_per_s': of_set.train / seconds}


def _generate(bench, model):
    architecture.Architecture.of(model).require('generate', f'size {bench.config.size}')
    if model.n_positions < 2:
        raise UserError('model.n_positions: 1 has no room for a prompt and a token. It must be at least 2.')
    _ceilings(bench, model.dtype)
    params = generation.random_parameters(model, bench.partitioner)
    steps = jit_steps(model, bench.partitioner, 2 * generation.prompt_length(model), decoding.Sampling())
    batches = {f'batch {batch}': batch for batch in bench.config.batches}

    def measure(name, parts):
        seconds = bench.seconds(parts)
        found, text = generation.measure(model, params, bench.partitioner, steps, batch=batches[name], seconds=seconds)
        return found | {'roofline': roofline(text, *bench.ceilings())}

    _in_turn(bench, 'generation', list(batches), measure)


def _measure(bench, make, distinct, parts):
    """One column of the table. Raises UserError if it does not fit into the memory and no sweep follows."""
    config = bench.config
    seconds = bench.seconds(parts + 2 * config.sweep)
    try:
        return training.measure(make(config), seconds=seconds, distinct=distinct, ceilings=bench.ceilings())
    except NoRoomError as error:
        if config.sweep:
            raise
        raise UserError(
            f'data.batch_size: A step of {config.data.batch_size} does not fit into the memory ({error}). Lower it, '
            'raise optimizer.accumulation, or add --config.sweep=True, which finds what fits.'
        ) from None


def _sweep(bench, make, distinct, model):
    """Tries settings in turn, see meter.search, and puts overrides into the report."""
    config, batch_size, taken = bench.config, bench.config.data.batch_size, 0.0
    base = {
        'optimizer.accumulation': config.optimizer.accumulation,
        'model.attention': getattr(model, 'attention', None),
        'model.scan': config.model.scan,
        'model.remat': config.model.remat,
        'data.batch_size': batch_size,
    }
    axes = {
        'optimizer.accumulation': (1, 2, 4, 8),
        'model.attention': ('xla', 'kernel'),
        'model.scan': (True, False),
        'model.remat': (False, True),
        'data.batch_size': [
            size for size in (batch_size // 4, batch_size // 2, 2 * batch_size, 4 * batch_size) if size
        ],
    }
    known = {key for key in axes if hasattr(model, key.removeprefix('model.')) or not key.startswith('model.')}
    if bench.partitioner.platform == 'cpu':
        known -= {'model.attention'}  # its kernels are only interpreted there
    base, axes = ({key: value for key, value in keys.items() if key in known} for keys in (base, axes))

    def measure(settings):
        nonlocal taken
        bench.check_time(taken)
        began = time.monotonic()
        candidate = config.copy_and_resolve_references()
        candidate.update_from_flattened_dict(settings)
        try:
            with waiting('compiling and measuring ' + ' '.join(overrides(settings))):
                found = training.measure(make(candidate), seconds=bench.seconds(40, most=5.0), distinct=distinct)
        finally:
            taken = time.monotonic() - began
            gc.collect()  # an error's traceback holds arrays
        return {name: found[name] for name in ('tokens_per_s', 'planned_gb', 'compile_s')}

    tried = []
    bench.report['sweep'] = {'tried': tried}
    try:
        for entry in search(base, axes, measure):
            tried.append(entry)
            what = entry.get('skipped') or f'{entry["tokens_per_s"]["median"]:,.0f} tokens/s'
            settings = ' '.join(overrides(entry['settings']))
            logging.info('benchmark: sweep: %s: %s; at most %s left', settings, what, bench.left())
            bench.report['sweep']['recommended'], bench.report['advice'] = advice(tried, batch_size)
            bench.save()
    except TimeoutError as error:
        bench.report['advice'] = [
            *bench.report.get('advice', ()),
            f'The sweep ended before all was tried: {error}. Give it more time with --config.minutes.',
        ]
