"""Runs that go back to a checkpoint, against the lists of batches that they must have read, made by hand."""

import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from configs import pretrain as pretrain_config
from gpt1_jax.errors import STOPPED_EXIT_STATUS, UserError
from gpt1_jax.training import divergence, loop
from gpt1_jax.training.job import Evaluator, Job
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.state import TrainState
from helpers import assert_well_put

STEPS = 20


def test_which_batch_an_update_reads():
    """Against a list from which the batches are taken out one rollback after the other."""
    left, rollbacks = list(range(100)), []
    for step, end in ((5, 8), (5, 20), (30, 60)):  # the second begins where the first has ended
        first = left[step]
        assert divergence.position(step, rollbacks) == first
        rollbacks.append({'step': step, 'times': 1, 'batches': [first, end]})
        left = [batch for batch in left if not first <= batch < end]
        assert [divergence.position(step, rollbacks) for step in range(len(left))] == left


def test_spikes_are_seven_standard_deviations_above_the_mean():
    losses = np.random.default_rng(0).normal(3, 0.1, 400)
    trend = divergence.Trend()
    for number, loss in enumerate(losses):
        trend = trend.observe(loss, True)
        np.testing.assert_allclose(trend[:3], [losses[: number + 1].mean(), losses[: number + 1].var(), number + 1])
    edge = trend.mean + 7 * math.sqrt(trend.variance)
    assert trend.observe(edge - 1e-9, True).bad == 0 and trend.observe(-9.0, True).bad == 0
    bad = trend.observe(edge + 1e-9, True).observe(math.nan, False).observe(3.0, False).observe(math.inf, False)
    assert bad == trend._replace(bad=4)  # what is bad does not count for the mean
    assert bad.observe(3.0, True).bad == 0
    level = divergence.Trend()
    for _ in range(300):
        level = level.observe(5.0, True)
    assert level.bad == 0  # a loss that does not change is no spike
    few = divergence.Trend()
    for loss in losses[:99]:
        few = few.observe(loss, True)
    assert few.observe(1e9, True).bad == 0  # it takes 100 to know
    for _ in range(20_000):
        trend = trend.observe(3.5, True)
    assert trend.mean == pytest.approx(3.5) and trend.observe(3.501, True).bad  # the old ones are forgotten


class Batches:
    """Each holds its own number."""

    from_shards = False

    def batch_at(self, step):
        return {'number': np.full((1, 1), step, np.int32)}

    def count_tokens(self, batch):
        return 1

    def describe(self, step):
        return f'batch {step}'


PARTITIONER = Partitioner('dp', (1, 1, 1), jax.devices()[:1])
MODEL = types.SimpleNamespace(dtype='float32')
STATE = TrainState(
    step=np.int32(0),
    skipped=np.int32(0),
    params={'sum': np.zeros(1000, np.int32)},
    opt_state=optax.ScaleByScheduleState(count=np.int32(0)),
    key=np.zeros(2, np.uint32),
)


def job(workdir, bad, losses=None, on_divergence='rollback'):
    """20 steps that add their batch's number, and one, to each of 1,000 parameters; a checkpoint every 5, ranked every
    10. A batch of `bad` has a loss that is not finite, and changes nothing; losses: batch -> its loss."""
    config = pretrain_config.get_config('tiny')
    config.optimizer.update(max_skipped=3, on_divergence=on_divergence)
    config.checkpoint.update(every=5, keep_latest=2)
    config.log.every = 1
    table = jnp.array([(losses or {}).get(batch, 1.0) for batch in range(100)])
    is_bad = jnp.isin(jnp.arange(100), jnp.array(sorted(bad) or [-1]))

    def step(state, batch):
        number = batch['number'][0, 0]
        finite = ~is_bad[number]
        skipped = jnp.where(finite, 0, state.skipped + 1)
        state = state.replace(
            step=state.step + 1,
            skipped=skipped,
            params={'sum': state.params['sum'] + jnp.where(finite, number + 1, 0)},
            opt_state=optax.ScaleByScheduleState(state.opt_state.count + finite),
        )
        return state, {'loss': jnp.where(finite, table[number], jnp.nan), 'skipped': skipped}

    sharding = PARTITIONER.sharding()
    program = types.SimpleNamespace(
        classifier=types.SimpleNamespace(model=MODEL),
        flops_per_token=1,
        partitioner=PARTITIONER,
        abstract=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), STATE),
        create_state=lambda seed: jax.device_put(STATE, sharding),
        check_room=lambda: None,
        start_compiling=lambda batch: lambda: None,
        train_step=jax.jit(step, in_shardings=sharding, out_shardings=sharding, donate_argnums=0),
    )
    ranking = Evaluator(lambda params, should_stop: {'sum': total(params)}, 10, ranks_by='sum', mode='max')
    return Job(config, workdir, program, Batches(), STEPS, [ranking])


def total(params):
    (value,) = set(np.asarray(params['sum']).tolist())
    return value


def outcome_of(outcome):
    return total(outcome.state.params), int(outcome.state.step), outcome.evaluations, outcome.rollbacks


def metrics(workdir):
    lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    return [{name: value for name, value in line.items() if name in ('step', 'loss', 'sum')} for line in lines]


def checkpoints(workdir):
    return sorted(int(path.name) for path in (workdir / 'checkpoints').iterdir() if path.name.isdigit())


# What is bad, how long a stretch it makes, and which batches the run must have read in the end.
CASES = {
    'within': ({7, 8, 9}, [*range(5), *range(10, 25)]),
    'before the first checkpoint': ({1, 2, 3}, [*range(4, 24)]),
    'over a checkpoint': ({9, 10, 11}, [*range(5), *range(12, 27)]),  # that of step 10 is deleted
    'a few': ({3, 4, 12}, [*range(20)]),  # not enough in a row: only skipped
    'twice, at one checkpoint': ({7, 8, 9, 11, 12, 13}, [*range(5), *range(14, 29)]),
    'at two checkpoints': ({7, 8, 9, 17, 18, 19}, [*range(5), *range(10, 15), *range(20, 30)]),
    'at the end': ({17, 18, 19}, [*range(15), *range(20, 25)]),
}


@pytest.mark.parametrize('name', CASES)
def test_the_batches_that_led_there_are_left_out(tmp_path, monkeypatch, name):
    bad, read = CASES[name]
    workdir, given, held, restore = (
        epath.Path(tmp_path),
        job(epath.Path(tmp_path), bad),
        [],
        loop.Checkpointer.restore_latest,
    )
    count = lambda *args: held.append(sum(array.size for array in jax.live_arrays())) or restore(*args)
    monkeypatch.setattr(loop.Checkpointer, 'restore_latest', count)
    outcome = loop.fit(given)
    assert total(outcome.state.params) == sum(batch + 1 for batch in read if batch not in bad)
    assert int(outcome.state.step) == STEPS and checkpoints(workdir) == [15, 20]
    assert given.program.train_step._cache_size() == 1  # nothing is compiled again
    assert [line['step'] for line in metrics(workdir) if 'loss' in line] == list(range(1, 21))
    sums = np.cumsum([0 if batch in bad else batch + 1 for batch in read])
    assert outcome.evaluations == [{'step': step, 'sum': int(sums[step - 1])} for step in (10, 20)]
    left_out = {batch for first, end in (one['batches'] for one in outcome.rollbacks) for batch in range(first, end)}
    assert left_out == set(range(read[-1] + 1)) - set(read)
    assert [one['times'] for one in outcome.rollbacks] == {'a few': [], 'twice, at one checkpoint': [2]}.get(
        name, [1] * len(outcome.rollbacks)
    )
    assert max(held) < held[0] + 1000  # the state is gone before that of the checkpoint comes


NAMES, STOPS = ('over a checkpoint', 'twice, at one checkpoint', 'at two checkpoints'), ((8,), (6,), (5, 13, 16), (11,))


@pytest.mark.parametrize(
    ('name', 'stops'),
    [
        pytest.param(name, stops, marks=[pytest.mark.rehearsal] * (i != j))
        for i, name in enumerate(NAMES)
        for j, stops in enumerate(STOPS)
    ],
)
def test_where_such_a_run_is_stopped_makes_no_difference(tmp_path, monkeypatch, name, stops):
    workdir, bad, still = epath.Path(tmp_path), CASES[name][0], list(stops)
    whole = loop.fit(job(workdir / 'whole', bad))

    def should_stop(self, step):
        return step in still and (still.remove(step) or True)

    with monkeypatch.context() as patch:
        patch.setattr(loop.PreemptionGuard, 'should_stop', should_stop)
        for _ in stops:
            with pytest.raises(SystemExit) as caught:
                loop.fit(job(workdir / 'stopped', bad))
            assert caught.value.code == STOPPED_EXIT_STATUS
    assert outcome_of(loop.fit(job(workdir / 'stopped', bad))) == outcome_of(whole)
    assert metrics(workdir / 'stopped') == metrics(workdir / 'whole')


@pytest.mark.parametrize(
    ('name', 'kill'),
    [
        ('over a checkpoint', 13),
        ('within', 9),
        *(pytest.param('within', step, marks=pytest.mark.rehearsal) for step in (6, 8)),
    ],
)
def test_such_a_run_that_is_killed(tmp_path, monkeypatch, name, kill):
    """Before the loss diverges, while it does, after it went back (it goes back again), and after the next save."""
    workdir, bad, asked = epath.Path(tmp_path), CASES[name][0], []

    def should_stop(self, step):
        asked.append(step)
        if asked.count(kill) == (2 if kill == 9 else 1):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.PreemptionGuard, 'should_stop', should_stop)
        with pytest.raises(KeyboardInterrupt):
            loop.fit(job(workdir / 'killed', bad))
    if kill == 13:  # step 10 was saved before it went back, too
        record = json.loads((workdir / 'killed' / 'checkpoints' / '10' / 'record' / 'metadata').read_text())['record']
        assert record['meta']['rollbacks'] == [{'step': 5, 'times': 1, 'batches': [5, 12]}]
    assert outcome_of(loop.fit(job(workdir / 'killed', bad))) == outcome_of(loop.fit(job(workdir / 'whole', bad)))
    assert metrics(workdir / 'killed') == metrics(workdir / 'whole')


def test_it_goes_back_three_times_at_most(tmp_path):
    for _ in range(2):  # called again, it does the same
        with pytest.raises(UserError, match='3 steps in a row, up to step .* going back to step 5 3 times') as caught:
            loop.fit(job(epath.Path(tmp_path), range(7, 90)))
        assert_well_put(str(caught.value))
    assert checkpoints(tmp_path) == [5]


def test_a_run_that_may_not_go_back_stops_and_may_be_told_to_later(tmp_path):
    bad, read = CASES['within']
    with pytest.raises(UserError, match='not finite for 3 steps in a row, up to step 10 .batch 9.*rollback') as caught:
        loop.fit(job(epath.Path(tmp_path), bad, on_divergence='stop'))
    assert_well_put(str(caught.value))
    outcome = loop.fit(job(epath.Path(tmp_path), bad))
    assert total(outcome.state.params) == sum(batch + 1 for batch in read)


def test_spikes_in_a_row_are_left_out_too(tmp_path, monkeypatch):
    """After enough steps to know one; on a run that may not go back they have no effect."""
    monkeypatch.setattr(divergence, '_FEWEST', 4)
    losses = {batch: 1 + 0.01 * (batch % 3) for batch in range(100)} | {7: 9.0, 11: 9.0, 12: 9.0, 13: 9.0}
    outcome = loop.fit(job(epath.Path(tmp_path / 'a'), (), losses))
    assert total(outcome.state.params) == sum(batch + 1 for batch in (*range(10), *range(14, 24)))
    assert outcome.rollbacks == [{'step': 10, 'times': 1, 'batches': [10, 14]}]
    outcome = loop.fit(job(epath.Path(tmp_path / 'b'), (), losses, on_divergence='stop'))
    assert total(outcome.state.params) == sum(range(1, 21)) and outcome.rollbacks == []


def test_a_checkpoint_without_trouble_has_no_word_of_it(tmp_path):
    """As before there was a choice."""
    outcome = loop.fit(job(epath.Path(tmp_path), {3}, on_divergence='stop'))
    record = json.loads((tmp_path / 'checkpoints' / '15' / 'record' / 'metadata').read_text())['record']
    assert record['meta'] == {'evaluations': outcome.evaluations[:1]}
    assert outcome.facts() == {'skipped_steps': 1, 'rollbacks': []}
