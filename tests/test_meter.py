"""What the benchmark measures with: clocks, ceilings and rooflines against counts by hand, memory, and the search."""

import statistics
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from configs import benchmark, finetune
from gpt1_jax.errors import UserError
from gpt1_jax.meter import ceilings, generation, memory, step, table, timing, training, work
from gpt1_jax.meter.search import fastest, search
from gpt1_jax.model.architecture import Architecture
from gpt1_jax.model.classifier import ClassifierHead
from gpt1_jax.model.decoding import Sampling
from gpt1_jax.tasks.generate import jit_steps
from gpt1_jax.training import program
from gpt1_jax.training.partitioning import Partitioner


def test_rounds_are_as_many_as_the_time_allows_but_three(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(timing.time, 'perf_counter', lambda: now[0])

    def takes(seconds):
        def run():
            now[0] += seconds

        return run

    assert timing.rounds(takes(4.0), seconds=10) == [4.0, 4.0, 4.0]
    assert timing.rounds(takes(2.0), seconds=11) == [2.0] * 6
    assert timing.rounds(takes(0.25), seconds=11, most=7) == [0.25] * 7
    assert timing.rates(6.0, [1.0, 2.0, 4.0]) == {'median': 3.0, 'min': 1.5, 'max': 6.0, 'n': 3}


def test_ceilings(monkeypatch):
    times, calls = [2.0, 1.0, 4.0], []
    monkeypatch.setattr(ceilings, '_repeated', lambda function, x, y: calls.append((function, x, y)))
    monkeypatch.setattr(ceilings, 'rounds', lambda run, seconds: times)
    found = ceilings.product('bfloat16', 1.0)
    # Ten products of n x n, two operations for each of n^3 pairs.
    assert found['tflops']['median'] == pytest.approx(10 * 2 * found['n'] ** 3 / 2.0 / 1e12)
    function, a, b = calls.pop()
    assert a.dtype == b.dtype == jnp.bfloat16 and a.shape == b.shape == (found['n'],) * 2
    assert np.std(np.asarray(function(a, b), np.float32)) == pytest.approx(1, rel=0.05)  # it does not grow
    found = ceilings.copy(1.0)
    function, x, _ = calls.pop()
    assert found['bytes_read_and_written'] == 2 * x.nbytes
    assert found['gb_per_s']['max'] == pytest.approx(10 * 2 * x.nbytes / 1.0 / 1e9)
    text = jax.jit(function).lower(x, None).compile().cost_analysis()
    assert text['bytes accessed'] == pytest.approx(2 * x.nbytes, rel=0.01)


def test_a_ceiling_is_of_ten_calls_one_after_the_other():
    given = []
    run = ceilings._repeated(lambda x, y: given.append((float(x), y)) or x + 1, jnp.float32(0), 'y')
    assert given == [(0.0, 'y')]  # compiled
    run()
    assert given[1:] == [(float(n), 'y') for n in range(10)]


class Machine:
    """A clock, a device that works beside the host, and batches that take time to read."""

    def __init__(self, monkeypatch, *, read, put, launch, compute):
        self.now = self.free = 0.0
        self.times = {'read': read, 'put': put, 'launch': launch, 'compute': compute}
        monkeypatch.setattr(step, 'time', types.SimpleNamespace(perf_counter=lambda: self.now))
        monkeypatch.setattr(step, 'prefetch', lambda batches, start, stop: map(self.read, range(start, stop)))
        monkeypatch.setattr(step.jax, 'device_get', self.wait)
        monkeypatch.setattr(step.jax, 'block_until_ready', self.wait)

    def read(self, number):
        self.now += self.times['read']
        ids = np.where(np.arange(8) < 6, np.arange(8), -1)
        return {'segment_ids': np.ones((2, 50)), 'example_ids': ids, 'number': number}

    def put_batch(self, batch):
        self.now += self.times['put']
        return batch

    def launch(self, state, batch):
        assert state == batch['number']
        self.now += self.times['launch']
        self.free = max(self.free, self.now) + self.times['compute']
        return state + 1, self.free

    def wait(self, free):
        self.now = max(self.now, free)

    def work(self):
        partitioner = types.SimpleNamespace(put_batch=self.put_batch)
        batches = types.SimpleNamespace(count_tokens=lambda batch: 100, from_shards=False)
        return types.SimpleNamespace(program=types.SimpleNamespace(partitioner=partitioner), batches=batches)


@pytest.mark.parametrize(
    'read, compute, period, waiting',
    [
        (0.05, 0.2, 0.2, 0.12),  # the device is busy all the time
        (0.4, 0.2, 0.43, 0.0),  # it waits for input: read, put and launch one after the other
    ],
)
def test_the_loop_on_a_known_machine(monkeypatch, read, compute, period, waiting):
    machine = Machine(monkeypatch, read=read, put=0.01, launch=0.02, compute=compute)
    turns = step.loop(machine.work(), machine.launch, 0, seconds=20.0)
    found = step.summary(turns)
    assert found['tokens_per_s']['median'] == pytest.approx(100 / period)
    assert found['tokens_per_s']['min'] == pytest.approx(found['tokens_per_s']['max'])
    assert found['examples_per_s']['median'] == pytest.approx(6 / period)
    assert found['step_ms'] == pytest.approx(1e3 * period)
    expected = {'input': read, 'placing': 0.01, 'dispatch': 0.02, 'waiting': waiting}
    assert found['host_ms'] == pytest.approx({name: 1e3 * seconds for name, seconds in expected.items()}, abs=1e-6)
    assert found['host_share'] == pytest.approx({name: part / period for name, part in expected.items()}, abs=1e-6)
    assert sum(found['host_share'].values()) == pytest.approx(1)
    assert 20.0 <= machine.now < 21.0 and found['tokens_per_s']['n'] in (9, 10)


def test_a_slow_step_is_measured_three_times_and_the_first_left_out(monkeypatch):
    machine = Machine(monkeypatch, read=0.0, put=0.0, launch=0.0, compute=100.0)
    found = step.summary(step.loop(machine.work(), machine.launch, 0, seconds=1.0))
    assert found['steps'] == 3 and found['tokens_per_s'] == {'median': 1.0, 'min': 1.0, 'max': 1.0, 'n': 3}


def test_rounds_of_the_loop_have_their_own_rates():
    """Six turns, the first left out: five rounds of one step, of 1 to 5 seconds."""
    ends = [10.0, 11.0, 13.0, 16.0, 20.0, 25.0]
    turns = [step.Step(0.25, 0.25, 0.25, 0.25, end, 60, 0) for end in ends]
    found = step.summary(turns)
    assert found['tokens_per_s'] == {'median': 20.0, 'min': 12.0, 'max': 60.0, 'n': 5}
    assert found['step_ms'] == 3000.0 and found['host_ms']['input'] == 250.0 and 'examples_per_s' not in found
    assert found['host_share']['waiting'] == pytest.approx(5 * 0.25 / 15)


def test_the_first_fifth_of_a_loop_is_left_out():
    ends = [*range(0, 300, 100), *range(201, 213)]  # three slow ones of 15
    found = step.summary([step.Step(0.0, 0.0, 0.0, 1.0, float(end), 60, 6) for end in ends])
    assert found['tokens_per_s'] == {'median': 60.0, 'min': 60.0, 'max': 60.0, 'n': 6} and found['steps'] == 12


def test_steps_that_change_nothing_are_not_measured():
    of = types.SimpleNamespace(new_state=lambda: 0, put=lambda number: number)
    step_of = lambda skipped: lambda state, batch: (state + 1, {'skipped': np.float32(skipped)})
    run, state = step.training_rounds(of, step_of(0), 5)
    assert state == [5] and run() == {'skipped': 0} and state == [10]
    with pytest.raises(FloatingPointError, match='not finite'):
        step.training_rounds(of, step_of(1), 5)


def test_mfu(monkeypatch):
    monkeypatch.setattr(step, 'peak_flops', lambda kind, dtype: {('TPU', 'bfloat16'): 1e12}[kind, dtype])
    devices = np.array([types.SimpleNamespace(device_kind='TPU')] * 4).reshape(2, 2, 1)
    of = types.SimpleNamespace(
        model=types.SimpleNamespace(dtype='bfloat16'),
        program=types.SimpleNamespace(
            partitioner=types.SimpleNamespace(mesh=types.SimpleNamespace(devices=devices)), flops_per_token=2e9
        ),
    )
    found = step.with_mfu(of, {'median': 500.0})
    assert found['model_flops_per_s'] == 1e12 and found['mfu'] == 0.25  # a quarter of four devices
    found = step.speed(of, 5 * 300, [1.0, 3.0, 5.0])  # seconds of five steps
    assert found['tokens_per_s']['median'] == 500 and found['step_ms'] == pytest.approx(600)


PROGRAM = """HloModule jit_step

%body (carry: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %carry = (s32[], f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %x = f32[8,8]{1,0} get-tuple-element(%carry), index=1
  %product = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %next = (s32[], f32[8,8]{1,0}) tuple(%i, %product)
}

%wrapped (y: f32[16,16]) -> f32[16,16] {
  %y = f32[16,16]{1,0} parameter(0)
  ROOT %sum = f32[16,16]{1,0} all-reduce(%y), to_apply=%add
}

ENTRY %main (x: f32[8,8], y: f32[16,16]) -> f32[16,16] {
  %x = f32[8,8]{1,0} parameter(0)
  %y = f32[16,16]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,8]{1,0}) tuple(%zero, %x)
  %loop = (s32[], f32[8,8]{1,0}) while(%start), condition=%none, body=%body, \
    backend_config={"known_trip_count":{"n":"5"}}
  %sum-start = (f32[16,16]{1,0}, f32[16,16]{1,0}) all-reduce-start(%y), to_apply=%add
  %sum-done = f32[16,16]{1,0} all-reduce-done(%sum-start)
  %again = f32[16,16]{1,0} fusion(%sum-done), kind=kCustom, calls=%wrapped
  ROOT %out = f32[16,16]{1,0} negate(%again)
}
"""


def test_the_roofline_adds_the_longer_time_of_each_instruction():
    product, moved, square = 2 * 8**3, 3 * 8 * 8 * 4, 16 * 16 * 4
    for flops_per_s, bytes_per_s in ((1e6, 1e9), (1e9, 1e6)):
        found = step.roofline(PROGRAM, flops_per_s, bytes_per_s)
        assert found['gflop'] == pytest.approx(5 * product / 1e9)
        # Two reductions and the last instruction each read and write a square; `done` moves nothing.
        assert found['gb'] == pytest.approx((5 * moved + 3 * 2 * square) / 1e9)
        assert found['arithmetic_ms'] == pytest.approx(5 * product / flops_per_s * 1e3)
        assert found['memory_ms'] == pytest.approx((5 * moved + 6 * square) / bytes_per_s * 1e3)
        loop = 5 * max(product / flops_per_s, moved / bytes_per_s)
        assert found['least_ms'] == pytest.approx((loop + 6 * square / bytes_per_s) * 1e3)
        assert found['collectives'] == 2 and found['collectives_gb'] == pytest.approx(4 * square / 1e9)


def test_what_a_loop_sends_counts_in_each_round():
    sums = PROGRAM.replace('dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}', 'all-reduce(%x)')
    found = step.roofline(sums, 1e9, 1e9)
    assert found['collectives'] == 2 + 5
    assert found['collectives_gb'] == pytest.approx((2 * 2 * 16 * 16 * 4 + 5 * 2 * 8 * 8 * 4) / 1e9)


def test_what_does_not_fit_is_said():
    device = lambda **stats: types.SimpleNamespace(memory_stats=lambda: stats or None, platform='cpu')
    memory.check_room(1.9, [device(bytes_limit=2e9)])
    with pytest.raises(memory.NoRoomError, match='^2.10 GB are needed, 2.00 GB are there$'):
        memory.check_room(2.1, [device(bytes_limit=2e9)])
    with pytest.raises(memory.NoRoomError, match='^1000000000.00 GB are needed'):
        memory.check_room(1e9, [device()])  # this machine says how much it has
    with pytest.raises(memory.NoRoomError, match='^RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.$'):
        with memory.in_memory():
            raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of\nmemory allocating 9 bytes.')
    with pytest.raises(memory.NoRoomError), memory.in_memory():
        raise MemoryError
    with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'), memory.in_memory():
        raise jax.errors.JaxRuntimeError('INTERNAL: something else')


def test_peak_memory_is_the_devices_own_count_where_it_rose():
    devices = [types.SimpleNamespace(memory_stats=lambda n=n: {'peak_bytes_in_use': n}) for n in (3_000, 5_000)]
    assert memory.peak_bytes(devices) == 5_000
    assert memory.peak(devices, 4_000, 1.0) == {'peak_gb': 5e-6, 'peak_from': 'the device'}
    assert memory.peak(devices, 5_000, 1.0) == {'peak_gb': 1.0, 'peak_from': 'the compiler'}
    compiled = jax.jit(lambda x: x + 1, donate_argnums=0).lower(jnp.zeros((256, 1024))).compile()
    assert memory.planned(compiled)['memory_gb'] == pytest.approx(256 * 1024 * 4 / 1e9)  # donated: once


def speeds(settings):
    """Tokens/s by settings; what needs more than 8 rows at a time does not fit, and 3 is refused."""
    if settings['rows'] / settings['parts'] > 8:
        raise memory.NoRoomError('12 GB are needed')
    if settings['rows'] == 3:
        raise UserError('rows: 3 is not valid. Give 4.')
    value = settings['rows'] / settings['parts'] * (2 if settings['fast'] else 1)
    return {'tokens_per_s': {'median': value}}


def test_the_search_finds_what_fits_and_keeps_the_fastest():
    axes = {'parts': (1, 2, 4), 'fast': (True, False), 'rows': (3, 16, 32)}
    tried = list(search({'parts': 1, 'fast': False, 'rows': 16}, axes, speeds))
    order = [tuple(one['settings'].values()) for one in tried]
    assert order == [  # the base, which does not fit; then around the fastest so far
        *[(1, False, 16), (2, False, 16), (4, False, 16)],
        (2, True, 16),
        *[(2, True, 3), (2, True, 32)],
    ]
    skipped = [one.get('skipped') for one in tried]
    assert skipped[0] == skipped[5] == 'does not fit into the memory: 12 GB are needed'
    assert skipped[4] == 'rows: 3 is not valid. Give 4.' and skipped.count(None) == 3
    assert fastest(tried) is tried[3] and fastest(tried, parts=4) is tried[2]
    assert fastest(tried, rows=32) is None and fastest([]) is None


def test_the_search_ends_where_its_measure_says_so():
    def measure(settings):
        if settings['rows'] == 2:
            raise TimeoutError
        return speeds(settings)

    found = search({'parts': 1, 'fast': False, 'rows': 1}, {'rows': (2, 4)}, measure)
    assert next(found)['tokens_per_s']['median'] == 1
    with pytest.raises(TimeoutError):
        next(found)


def test_random_examples_have_the_lengths_of_the_sets():
    sentences, questions = (work.SETS[name].make(1000, 4000, 512) for name in ('sst2', 'race'))
    lengths = [len(one) for [one] in sentences.sequences]
    assert statistics.median(lengths) == pytest.approx(10, abs=1) and min(lengths) == 3 and 60 < max(lengths) <= 67
    assert np.quantile(lengths, 0.9) == pytest.approx(27, abs=2)
    of_question = questions.sequences[0]
    assert len(of_question) == 4 and len(questions.sequences) == 4000
    shared = min(map(len, of_question)) - 12 - 1
    assert all((one[:shared] == of_question[0][:shared]).all() for one in of_question)
    longest = [max(map(len, questions.sequences[i])) for i in range(4000)]
    assert max(longest) <= 512 and statistics.median(longest) == pytest.approx(386 + 3 + 12, abs=15)


@pytest.fixture(scope='module')
def partitioner():
    return Partitioner('dp', (2, 1, 1), jax.devices()[:2])


def pretraining(partitioner, rows=8):
    config = benchmark.get_config()
    config.model.update(runs.TINY, scan=False)
    config.data.batch_size = rows
    made = program.pretraining(config, 300, work.TOTAL_STEPS, partitioner)
    shapes = program.pretraining_batch(config, made.classifier.model, partitioner)
    batches = types.SimpleNamespace(
        from_shards=False,
        batch_at=lambda step: {
            'tokens': np.random.default_rng(step).integers(0, 300, shapes['tokens'].shape).astype(np.uint16),
            'weights': np.full(shapes['weights'].shape, 1 / (rows * 32), np.float32),
        },
        count_tokens=lambda batch: batch['weights'].size,
    )
    return work.Work(made, batches)


@pytest.mark.slow
def test_training_on_two_devices(partitioner):
    of = pretraining(partitioner)
    found = training.measure(of, seconds=0.3, ceilings=(1e9, 1e9))
    rate = found['tokens_per_s']
    assert rate['min'] <= rate['median'] <= rate['max'] and found['mfu'] is None and found['steps'] >= 3
    assert found['model_flops_per_s'] == rate['median'] * of.model.flops_per_token()
    assert sum(found['host_ms'].values()) == pytest.approx(found['step_ms'], rel=0.5)  # medians, of a noisy machine
    roof = found['roofline']
    # Of a device, half of the batch: the products of the forward and the backward pass.
    flops = of.model.flops_per_token() * 8 * 32 / 2
    assert 0.9 * flops < roof['gflop'] * 1e9 < 1.5 * flops  # attention is computed whole, and counted half
    assert roof['collectives'] > 0 and found['collectives_ms'] > 0
    assert roof['of_step'] == pytest.approx(roof['least_ms'] / found['step_ms'])
    assert roof['of_alone'] == pytest.approx(roof['least_ms'] / found['alone_ms']['median'])
    assert found['peak_gb'] == found['planned_gb'] > 0 and found['peak_from'] == 'the compiler'


def test_each_shape_is_compiled_once_and_what_was_read_is_said(monkeypatch):
    """Steps 0 and 2 have the same shape; the second compilation is read from the cache."""
    compiled, hit = [], '/jax/compilation_cache/cache_hits'
    shapes = [(1, 2), (1, 3), (1, 2), (1, 4)]

    def compile(step):
        compiled.append(step)
        if step == 1:
            jax.monitoring.record_event(hit)
        rows = shapes[step][1]
        return jax.jit(lambda x: x + rows).lower(jnp.zeros((rows * 250, 1000))).compile(), 1.5

    of = types.SimpleNamespace(
        batches=types.SimpleNamespace(batch_at=lambda step: {'tokens': np.zeros(shapes[step])}), compile=compile
    )
    facts, texts, first = training._compile(of, 3, jax.devices())
    assert compiled == first == [0, 1] and texts[0] == texts[2] != texts[1]
    assert facts == {'compile_s': 3.0, 'from_cache': True, 'planned_gb': pytest.approx(2 * 750 * 1000 * 4 / 1e9)}
    jax.monitoring.record_event(hit)  # of another program
    assert not training._compile(of, 1, jax.devices())[0]['from_cache']
    monkeypatch.setattr(training, 'check_room', lambda planned_gb, devices: memory.check_room(1e9, devices))
    with pytest.raises(memory.NoRoomError):
        training._compile(of, 1, jax.devices())


@pytest.mark.parametrize('make', [work.sentences, work.questions])
def test_more_random_examples_than_fit_are_refused(make):
    with pytest.raises(
        UserError, match='^data.batch_size: Batches of this size need [0-9,]+00,000,000 random examples.'
    ):
        make(300, 10**9, 32)


def test_an_lstm_is_measured_without_shared_contexts(partitioner):
    examples, head = work.questions(300, 64, 32), ClassifierHead('multiple_choice', 1, 0.1)
    base = Architecture('lstm', {'layers': 1, 'width': 16, 'units': 24, 'n_positions': 32})
    of = work.finetuning(finetune.get_config(), base, 300, head, examples, partitioner)
    assert 'context_ids' not in of.batches.batch_at(0)


def test_a_cycle_repeats_the_first_batches(partitioner):
    examples, head = work.questions(300, 64, 32), ClassifierHead('multiple_choice', 1, 0.1)
    config = finetune.get_config()
    config.data.batch_size = 8
    base = Architecture('transformer', runs.TINY)
    of = work.finetuning(config, base, 300, head, examples, partitioner)
    cycle = work.Cycle(of.batches, 2)
    for number in range(5):
        again, expected = cycle.batch_at(number), of.batches.batch_at(number % 2)
        assert all((again[name] == expected[name]).all() for name in expected) and 'context_ids' in again
    first, second = (cycle.batch_at(i)['example_ids'] for i in range(2))
    assert (first != second).any() and cycle.count_tokens(again) == np.count_nonzero(again['segment_ids'])


def test_generation(partitioner, monkeypatch):
    model = pretraining(partitioner).model
    prefill, decode = jit_steps(model, partitioner, 16, Sampling())
    asked, states = [], []

    def counted(params, state, sampling, stop_id, n_tokens):
        asked.append(n_tokens)
        states.append(decode(params, state, sampling, stop_id, n_tokens))
        return states[-1]

    counted.lower = decode.lower
    seconds = iter(([0.5, 0.25, 1.0], [4.0, 2.0, 8.0]))  # to the first token, and for all

    def rounds(run, **limits):
        run()
        return next(seconds)

    monkeypatch.setattr(generation, 'rounds', rounds)
    params = generation.random_parameters(model, partitioner)
    found, text = generation.measure(model, params, partitioner, (prefill, counted), batch=3, seconds=1.0)
    assert found['batch'] == 4 and found['prompt'] == found['new'] == 8  # rows on both devices; 32 positions
    assert asked == [1, 1, 8] and np.asarray(states[-1].lengths).tolist() == [16] * 4
    assert found['tokens_per_s'] == {'median': 8.0, 'min': 4.0, 'max': 16.0, 'n': 3}
    assert found['first_token_ms']['median'] == 500 and found['token_ms'] == pytest.approx((4 - 0.5) / 7 * 1e3)
    assert 0 < step.roofline(text, 1e9, 1e9)['gflop'] < 1


def test_the_table_leaves_out_what_was_not_measured():
    report = {
        'machine': {'devices': 2, 'device': 'TPU v5e', 'platform': 'tpu', 'versions': {'jax': '0.10.2'}},
        'measured': {'work': 'pretrain', 'size': 'gpt1'},
    }
    assert table.table(report) == 'work pretrain, size gpt1\non 2 x TPU v5e (tpu), jax 0.10.2'
    report['training'] = {
        'a': {'mfu': 0.456, 'step_ms': 20.0, 'alone_ms': {'median': 15.0}},
        'b': {'skipped': 'no time'},
    }
    lines = [line.split() for line in table.table(report).splitlines()[3:]]
    assert lines == [
        *[['a', 'b'], ['MFU', '45.6%'], ['step', 'in', 'the', 'loop', '20.00', 'ms', '100%']],
        *[['step', 'alone', '15.00', 'ms', '75%'], ['b:', 'no', 'time']],
    ]
