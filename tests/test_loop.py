"""The training loop where it is told to stop, or goes wrong: nothing is lost, and nothing depends on it."""

import dataclasses
import functools
import itertools
import json
import random
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from configs import prepare as prepare_config, pretrain as pretrain_config
from gpt1_jax import lock
from gpt1_jax.data.corpus.preparation import prepare
from gpt1_jax.errors import STOPPED_EXIT_STATUS, Stopped, UserError
from gpt1_jax.tasks import pretrain
from gpt1_jax.training import clock, loop, program, room
from gpt1_jax.training.job import Evaluator, Job
from gpt1_jax.training.partitioning import Partitioner

WORDS = 'ship sail wave anchor harbour captain the and'.split()


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp('loop'), random.Random(0)
    (folder / 'text').mkdir()
    for number in range(3):
        text = '\n'.join(' '.join(rng.choices(WORDS, k=9)) for _ in range(100))
        (folder / 'text' / f'{number}.txt').write_text(text)
    config = prepare_config.get_config()
    config.data.update(source=f'text:{folder / "text"}', vocab_size=290, held_out=0.3, workers=1)
    prepare(config.data, folder / 'shards')
    return folder / 'shards'


def config(shards):
    """12 steps, evaluated every 4, saved every 3; dropout on."""
    config = pretrain_config.get_config('tiny')
    config.model.update(layers=1, width=16, heads=2, mlp_width=32, n_positions=16)
    config.data.update(source=f'shards:{shards}', batch_size=8, tokens=8 * 16 * 12)
    config.optimizer.update(warmup_steps=2, learning_rate=0.01)
    config.log.update(every=1, eval_every=4)
    config.checkpoint.every = 3
    return config


def metrics(workdir):
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name not in ('time', 'tokens_per_second')} for line in lines
    ]


def checkpoints(workdir):
    return {int(path.name) for path in (workdir / 'checkpoints').iterdir()}


@pytest.fixture(scope='module')
def whole(shards, tmp_path_factory):
    workdir = epath.Path(tmp_path_factory.mktemp('whole'))
    return workdir, without_time(pretrain.run(config(shards), workdir))


def without_time(result):
    return dataclasses.replace(result, seconds=0)


@pytest.mark.slow
@pytest.mark.parametrize('steps', [(4,), (5,), (12,), (1, 2, 8, 9)])
def test_where_a_run_is_stopped_makes_no_difference(shards, whole, tmp_path, monkeypatch, steps):
    """At an evaluation, between two, at the last step, and several times."""
    workdir = epath.Path(tmp_path)
    for stop in steps:
        monkeypatch.setattr(loop.PreemptionGuard, 'should_stop', lambda self, step: step == stop)
        with pytest.raises(SystemExit) as caught:
            pretrain.run(config(shards), workdir)
        assert caught.value.code == STOPPED_EXIT_STATUS
    monkeypatch.undo()
    assert without_time(pretrain.run(config(shards), workdir)) == whole[1]
    assert metrics(workdir) == metrics(whole[0])
    assert checkpoints(workdir) == checkpoints(whole[0])


def test_damaged_shards_are_not_trained_on(shards, tmp_path):
    shutil.copytree(shards, tmp_path / 'shards')
    path = tmp_path / 'shards' / 'train-00000.bin'
    path.write_bytes(b'\xff\xff' + path.read_bytes()[2:])
    with pytest.raises(UserError, match='train-00000.bin: The file is damaged'):
        pretrain.run(config(tmp_path / 'shards'), epath.Path(tmp_path / 'run'))


@pytest.mark.slow
def test_a_loss_that_stays_infinite_ends_the_run_with_its_batch(shards, tmp_path):
    bad = config(shards)
    bad.optimizer.update(learning_rate=1e38, max_grad_norm=0.0, max_skipped=3)
    with pytest.raises(UserError, match='not finite for 3 steps in a row, up to step .*windows at tokens'):
        pretrain.run(bad, epath.Path(tmp_path))


# Evaluators with periods of their own


class Batches:
    """All alike."""

    from_shards = False

    def batch_at(self, step):
        return {'tokens': np.zeros((1, 1, 1, 17), np.uint16), 'weights': np.ones((1, 1, 1, 16), np.float32)}

    def count_tokens(self, batch):
        return 16


RANK = {5: 1.0, 10: 3.0, 12: 2.0}  # step -> value of the metric that ranks
OTHER = {3: -3.0, 6: -6.0, 9: 91.0, 12: -12.0}
EVALUATIONS = [
    {'step': 3, 'other': -3.0},
    {'step': 5, 'rank': 1.0},
    {'step': 6, 'other': -6.0},
    {'step': 9, 'other': 91.0},
    {'step': 10, 'rank': 3.0},
    {'step': 12, 'rank': 2.0, 'other': -12.0, 'at_the_end': 12.0},  # the one that ranks is asked first
]
# The line of an evaluation comes after that of its step.
LINES = sorted(
    [{'step': step, 'loss': 16.0, 'skipped': 0.0} for step in range(1, 13)] + EVALUATIONS, key=lambda line: line['step']
)


@functools.cache
def counting_program():
    """12 steps that count themselves in a bias."""
    made = program.pretraining(config('nowhere'), 40, 12, Partitioner('dp', (1, 1, 1), jax.devices()[:1]))

    def count(state, batch):
        state = state.replace(step=state.step + 1, params=jax.tree.map(lambda leaf: leaf + 1, state.params))
        return state, {'loss': jnp.sum(batch['weights']), 'skipped': jnp.zeros((), jnp.int32)}

    state, counting = made.create_state(0), dataclasses.replace(made, train_step=jax.jit(count))
    object.__setattr__(counting, 'create_state', lambda seed: state)  # which takes longer than all the steps
    return counting


def counting_job(workdir, mode, seen, **keep):
    """The program above. It is ranked every 5, and has another metric every 3; nothing else saves, except what `keep`
    asks for."""
    run = config('nowhere')
    run.checkpoint.update(every=0, keep_latest=1, keep_best=1, **keep)

    def evaluator(name, value_of, **options):
        def evaluate(params, should_stop):
            seen.append((name, steps_of(params)))
            return {name: value_of(steps_of(params))}

        return Evaluator(evaluate, **options)

    return Job(
        run,
        workdir,
        counting_program(),
        Batches(),
        12,
        [
            evaluator('other', OTHER.get, every=3),
            evaluator('rank', RANK.get, every=5, ranks_by='rank', mode=mode),
            evaluator('at_the_end', float, every=0),
        ],
    )


def steps_of(params):
    return int(params['decoder']['blocks']['mlp']['out']['bias'][0, 0])


@pytest.mark.parametrize(
    ('mode', 'best', 'stops'),
    [('min', 5, ()), ('min', 5, (6,)), ('min', 5, (5, 9)), ('max', 10, ()), ('max', 10, (1, 10))],
)
@pytest.mark.parametrize('recent', [1e6, 0.0])
def test_evaluators_have_periods_of_their_own(tmp_path, monkeypatch, mode, best, stops, recent):
    """Each is asked when it is due and after the last step; the one that ranks says what is saved and what is best.
    Where all saves are recent, step 10 is saved only if it is the best."""
    monkeypatch.setattr(clock, '_RECENT', recent)
    seen, saved, workdir, save = [], [], epath.Path(tmp_path), loop.Checkpointer.save
    recording = lambda self, step, *values: (saved.append(step), save(self, step, *values))
    monkeypatch.setattr(loop.Checkpointer, 'save', recording)
    for stop in stops:
        monkeypatch.setattr(loop.PreemptionGuard, 'should_stop', lambda self, step: step == stop)
        with pytest.raises(SystemExit):
            loop.fit(counting_job(workdir, mode, seen))
        assert stop in checkpoints(workdir)
    monkeypatch.setattr(loop.PreemptionGuard, 'should_stop', lambda self, step: False)
    job = counting_job(workdir, mode, seen)
    outcome = loop.fit(job)

    assert outcome.evaluations == EVALUATIONS
    assert seen == [(name, evaluation['step']) for evaluation in EVALUATIONS for name in evaluation if name != 'step']
    assert outcome.best == {'step': best, 'rank': RANK[best]} and steps_of(loop.best_params(job, outcome)[0]) == best
    evaluated = {5, best} if recent else {5, 10}
    assert saved == sorted({*evaluated, 12, *stops}) and checkpoints(workdir) == {best, 12}
    assert metrics(workdir) == LINES


def test_a_killed_run_ends_as_one_that_was_not(tmp_path, monkeypatch):
    """It goes on from step 5: what it had told of steps 6 to 8 is told once."""
    workdir = epath.Path(tmp_path)

    def kill(self, step):
        if step == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.PreemptionGuard, 'should_stop', kill)
        with pytest.raises(KeyboardInterrupt):
            loop.fit(counting_job(workdir, 'min', []))
    assert EVALUATIONS[2] in metrics(workdir) and checkpoints(workdir) == {5}
    assert loop.fit(counting_job(workdir, 'min', [])).evaluations == EVALUATIONS
    assert metrics(workdir) == LINES and checkpoints(workdir) == {5, 12}


@pytest.mark.parametrize(
    ('keep', 'kept'),
    [
        (dict(keep_every=4), {4, 8}),
        (dict(keep_log=1), {1, 10}),
        (dict(keep_log=3), {1, 2, 5, 10}),  # 10^(1/3) = 2.15, 10^(2/3) = 4.64
        (dict(keep_log=1, keep_every=7), {1, 7, 10}),
    ],
)
@pytest.mark.parametrize('stop', [None, 3, 7])
def test_steps_are_kept_for_good(tmp_path, monkeypatch, keep, kept, stop):
    """Beside the best and the newest, wherever the run is stopped; each can be read back."""
    workdir, job = epath.Path(tmp_path), counting_job(epath.Path(tmp_path), 'min', [], **keep)
    with monkeypatch.context() as patch:
        patch.setattr(loop.PreemptionGuard, 'should_stop', lambda self, step: step == stop)
        if stop:
            with pytest.raises(SystemExit):
                loop.fit(job)
    loop.fit(job)
    assert checkpoints(workdir) == kept | {5, 12}
    for step in kept:
        restored = loop.Checkpointer(workdir / 'checkpoints').restore(step, {'params': job.program.abstract.params})
        assert steps_of(restored[1]['params']) == step


# The end of a run that runs out of patience

VALUES = [3.0, 2.0, 2.0, 4.0, 1.0, 1.0, 5.0, 2.0, 0.0, 0.0, 0.0, 0.0]  # after the steps 1 to 12


def impatient_job(workdir, patience, mode='min'):
    """A counting job that is ranked after each step, by VALUES or their negatives."""
    job, sign = counting_job(workdir, mode, []), 1 if mode == 'min' else -1
    value_of = lambda params, should_stop: {'rank': sign * VALUES[steps_of(params) - 1]}
    ranking = dataclasses.replace(job.ranking, evaluate=value_of, every=1, patience=patience)
    return dataclasses.replace(job, evaluators=[job.evaluators[-1], ranking])


@pytest.mark.parametrize(
    ('patience', 'last', 'best', 'mode'),
    [
        *((0, 12, 9, 'min'), (1, 3, 2, 'min'), (2, 4, 2, 'min'), (3, 8, 5, 'min'), (4, 12, 9, 'min')),
        (3, 8, 5, 'max'),  # an equal value is no new best one
    ],
)
def test_a_run_ends_out_of_patience(tmp_path, patience, last, best, mode):
    """With all that belongs to its last step; called again, it does nothing more."""
    workdir, values = epath.Path(tmp_path), VALUES if mode == 'min' else [-value for value in VALUES]
    for _ in range(2):
        outcome = loop.fit(impatient_job(workdir, patience, mode))
        assert int(outcome.state.step) == steps_of(outcome.state.params) == last
        assert [evaluation['rank'] for evaluation in outcome.evaluations] == values[:last]
        assert outcome.best['step'] == best and outcome.best['rank'] == values[best - 1]
        assert [evaluation['step'] for evaluation in outcome.evaluations if 'at_the_end' in evaluation] == [last]
        assert checkpoints(workdir) == {best, last} and metrics(workdir)[-1]['step'] == last


@pytest.mark.parametrize('stops', [(1,), (5, 6), (7,), (8,), (2, 8)])
def test_the_patience_of_a_run_that_is_stopped(tmp_path, monkeypatch, stops):
    """It ends where it would have ended, also when it is told to stop at that step."""
    workdir = epath.Path(tmp_path)
    with monkeypatch.context() as patch:
        for stop in stops:
            patch.setattr(loop.PreemptionGuard, 'should_stop', lambda self, step: step == stop)
            with pytest.raises(SystemExit):
                loop.fit(impatient_job(workdir, 3))
    outcome = loop.fit(impatient_job(workdir, 3))
    whole = loop.fit(impatient_job(workdir / 'whole', 3))
    assert outcome.evaluations == whole.evaluations and outcome.best == whole.best
    assert int(outcome.state.step) == int(whole.state.step) == 8
    assert metrics(workdir) == metrics(workdir / 'whole')


# What may become of a workdir


def test_the_best_checkpoint_is_damaged(tmp_path, caplog):
    """Then the next best is the best, with its evaluation; at last the state in memory."""
    job, folder = counting_job(epath.Path(tmp_path), 'min', []), tmp_path / 'checkpoints'
    job.config.checkpoint.keep_best = 2
    ranking = dataclasses.replace(job.ranking, evaluate=lambda params, *_: {'rank': float(steps_of(params))})
    job = dataclasses.replace(job, evaluators=[ranking])
    loop.fit(job)
    outcome = loop.fit(job)  # as a run that had only its results.json to write
    for damaged, best in (('5', 10), ('10', 12)):
        assert loop.best_params(job, outcome)[1]['step'] == int(damaged)
        shutil.rmtree(folder / damaged / 'params')
        params, evaluation = loop.best_params(job, outcome)
        assert steps_of(params) == best and evaluation == {'step': best, 'rank': float(best)}
    assert f'{folder}/5: The checkpoint is damaged' in caplog.text


def test_a_checkpoint_by_the_clock(tmp_path, monkeypatch):
    """Nothing else asks for one before step 5; a minute is a step."""
    saved, save, minutes = [], loop.Checkpointer.save, itertools.count(0, 60)
    recording = lambda self, step, *values: (saved.append(step), save(self, step, *values))
    monkeypatch.setattr(loop.Checkpointer, 'save', recording)
    monkeypatch.setattr(clock, 'time', types.SimpleNamespace(monotonic=lambda: next(minutes)))
    loop.fit(counting_job(epath.Path(tmp_path), 'min', [], every_minutes=3))
    assert saved == [3, 5, 8, 10, 12] and checkpoints(tmp_path) == {5, 12}


def test_a_workdir_that_is_removed_is_noticed_and_not_made_anew(tmp_path):
    for every in (1, 100):  # at the next line of metrics, or the next save
        workdir = epath.Path(tmp_path) / 'run'
        job = counting_job(workdir, 'min', [])
        job.config.log.every = every
        other = job.evaluators[0]
        removing = dataclasses.replace(other, evaluate=lambda *_: (shutil.rmtree(workdir), {})[1])
        job = dataclasses.replace(job, evaluators=[removing, *job.evaluators[1:]])
        with pytest.raises(UserError, match='run: .*(removed|replaced)'), lock.hold(workdir):
            loop.fit(job)
        assert not workdir.exists()


@pytest.mark.parametrize(('at', 'asked'), [(10, 1), (12, 3)])
def test_an_evaluation_that_is_stopped_is_done_again(tmp_path, monkeypatch, at, asked):
    """At its `asked`-th question; the state is saved before, and ranked as if nothing had been."""
    workdir, questions = epath.Path(tmp_path), []
    monkeypatch.setattr(loop.PreemptionGuard, 'should_stop', lambda self, step: False)
    job, stops = counting_job(workdir, 'max', []), [at]

    def questioned(evaluator):
        def evaluate(params, should_stop):
            questions.append(steps_of(params))
            if questions.count(at) == asked and stops:
                stops.clear()
                raise Stopped
            return evaluator.evaluate(params, should_stop)

        return dataclasses.replace(evaluator, evaluate=evaluate)

    job = dataclasses.replace(job, evaluators=list(map(questioned, job.evaluators)))
    with pytest.raises(SystemExit) as caught:
        loop.fit(job)
    assert caught.value.code == STOPPED_EXIT_STATUS and at in checkpoints(workdir)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # killed after it, before the next save
        patch.setattr(loop.Checkpointer, 'describe', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        loop.fit(job)
    outcome = loop.fit(job)
    assert outcome.evaluations == EVALUATIONS and outcome.best == {'step': 10, 'rank': 3.0}
    assert metrics(workdir) == LINES and checkpoints(workdir) == {10, 12}
    record = json.loads((workdir / 'checkpoints' / '12' / 'record' / 'metadata').read_text())['record']
    assert record['meta'] == {'evaluations': EVALUATIONS}


def test_a_run_that_does_not_fit_ends_before_it_makes_anything(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(room, 'memory', lambda devices, *names: 1)
    monkeypatch.setattr(program.Program, 'create_state', None)
    with pytest.raises(UserError, match='^model: The parameters, their moments and gradients take'):
        pretrain.run(config(shards), epath.Path(tmp_path))
    assert not (tmp_path / 'checkpoints').exists()


def test_the_metrics_of_a_step_that_is_computed_in_the_call_are_written_before_the_next(tmp_path, monkeypatch):
    job, order = counting_job(tmp_path, 'max', []), []
    count, write = job.program.train_step, loop.MetricWriter.write

    def train_step(state, batch):
        order.append('step')
        return jax.block_until_ready(count(state, batch))

    train_step.lower = count.lower

    def written(writer, step, values):
        order.append(step)
        write(writer, step, values)

    monkeypatch.setattr(loop.MetricWriter, 'write', written)
    at_the_end = Evaluator(lambda params, should_stop: {'rank': 1.0}, every=0, ranks_by='rank', mode='max')
    program = dataclasses.replace(job.program, train_step=train_step)
    loop.fit(dataclasses.replace(job, program=program, evaluators=[at_the_end]))
    assert order == [each for step in range(1, 13) for each in ('step', step)] + [12]  # the evaluation at the end


def test_a_step_is_compiled_for_the_batch_that_comes_first(tmp_path, monkeypatch):
    """Batches may have several shapes. A run that has ended compiles nothing, nor does one of several processes."""
    begun, job = [], counting_job(epath.Path(tmp_path), 'min', [])
    weights = lambda step: {'weights': np.full((1, 1, 1, 16), step, np.float32)}
    monkeypatch.setattr(job.batches, 'batch_at', lambda step: Batches().batch_at(step) | weights(step))
    start_compiling = lambda self, batch: begun.append(batch['weights'].max()) or dict
    monkeypatch.setattr(program.Program, 'start_compiling', start_compiling)
    with monkeypatch.context() as patch:
        patch.setattr(loop.PreemptionGuard, 'should_stop', lambda self, step: step == 5)
        with pytest.raises(SystemExit):
            loop.fit(job)
    with monkeypatch.context() as patch:
        patch.setattr(jax, 'process_count', lambda: 2)
        loop._start_compiling(job, loop.Checkpointer(job.workdir / 'checkpoints'))()
    assert begun == [0]
    for _ in range(2):
        loop.fit(job)
        assert begun == [0, 5]


def test_memory_is_released_after_what_compiles(tmp_path, monkeypatch):
    """After the first step, and after each evaluator's first evaluation."""
    seen, released = [], []
    job = counting_job(tmp_path, 'max', seen)
    monkeypatch.setattr(loop, 'release_freed_memory', lambda: released.append(len(seen)))
    loop.fit(job)
    assert [name for name, _ in seen][:3] == ['other', 'rank', 'other'] and len(seen) > 5
    first = {name: index + 1 for index, (name, _) in reversed(list(enumerate(seen)))}
    assert released == [0, *sorted(first.values())]
