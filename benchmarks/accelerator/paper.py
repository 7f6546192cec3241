"""Part 6, the paper in minutes: pre-trains for a given time, then fine-tunes from that model, from scratch, and
without the auxiliary loss, with as many seeds as fit."""

import dataclasses
import json
import shutil
import time

from benchmarks.accelerator import program
from benchmarks.accelerator.measure import Context
from benchmarks.accelerator.pack import SETS
from configs import finetune as finetune_config, pretrain as pretrain_config
from gpt1_jax.data.labelled.registry import REGISTRY
from gpt1_jax.meter.ceilings import machine
from gpt1_jax.meter.step import training_rounds
from gpt1_jax.meter.timing import STEPS, rounds, spread
from gpt1_jax.tasks import finetune, pretrain

# A few minutes allow few tokens; with a smaller batch than the paper's they give more updates.
BATCH_SIZES = {'gpt1': 16, 'small': 16, 'tiny': 8}
RATES = {'gpt1': 2.5e-4, 'small': 1e-3, 'tiny': 2e-3}
EXAMPLES = 3000  # most training examples of a set
VARIANTS = {'pre-trained': {}, 'from scratch': {'n_transfer': -1}, 'no auxiliary loss': {'lm_coefficient': 0.0}}
_PRETRAINING = 0.5  # of the time
_OVERHEAD = 0.8  # part of the measured rate that remains with evaluations, checkpoints and the start


def run(context: Context) -> None:
    if context.data is None or not (context.data / 'shards' / 'index.json').exists():
        context.report['skipped'] = 'skipped: no --data with shards'
        context.save()
        return
    context.report['machine'] = machine()
    pretrain_for(context, _PRETRAINING * context.left())
    if 'error' not in context.report['pretrain'] and 'skipped' not in context.report['pretrain']:
        finetune_all(context)


def pretrain_for(context: Context, seconds: float) -> None:
    with context.attempt('pretrain') as piece:
        context.need(60)
        started, batch_size = time.time(), BATCH_SIZES[context.size]
        made = program.pretraining(context.size, batch_size=batch_size)
        compiled, _ = made.compile()
        one_round, state = training_rounds(made, compiled)
        per_step = spread(rounds(one_round, seconds=5))['median'] / STEPS
        state.clear()
        left = seconds - (time.time() - started)
        steps = max(20, int(left * _OVERHEAD / per_step))
        config = pretrain_config.get_config(context.size)
        config.data.update(
            source=f'shards:{context.data / "shards"}',
            batch_size=batch_size,
            tokens=steps * batch_size * made.model.n_positions,
        )
        config.optimizer.update(learning_rate=RATES[context.size], warmup_steps=steps // 10)
        config.checkpoint.update(every=0, keep_latest=1)
        config.log.update(eval_every=max(1, steps // 6), eval_windows=200)
        workdir = _workdir(context, 'pretrain')
        began = time.time()
        result = pretrain.run(config, workdir)
        lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
        curve = [
            (line['step'] * batch_size * made.model.n_positions, round(line['valid_perplexity'], 2))
            for line in lines
            if 'valid_perplexity' in line
        ]
        took = time.time() - began
        piece |= {'result': dataclasses.asdict(result), 'curve': curve, 'seconds': round(took, 1)}
        piece['said'] = (
            f'{result.model["parameters"]:,} parameters, {result.facts["tokens"]:,} tokens in {took:.0f} s; held-out '
            'perplexity by million tokens: ' + ', '.join(f'{tokens / 1e6:.1f}: {value}' for tokens, value in curve)
        )


def finetune_all(context: Context) -> None:
    """By seed, variant and set, while there is time for a run as long as the longest of its set."""
    report = context.report['finetune'] = {}
    names = [name for name in SETS if (context.data / 'tokens' / name).exists()]
    took, seed = {}, 0
    while names:
        begun = 0
        for variant, changes in VARIANTS.items():
            for name in names:
                if context.left() < 10 + 1.2 * took.get(name, 20):
                    continue
                started = time.time()
                try:
                    result = finetune_one(context, name, changes, seed)
                except Exception as error:  # the other sets go on
                    fault = f'{name}, {variant}: {type(error).__name__}: {error}'
                    context.report.setdefault('faults', []).append(fault)
                    context.save()
                    continue
                took[name] = max(took.get(name, 0), time.time() - started)
                begun += 1
                report.setdefault(name, {}).setdefault(variant, []).append(
                    result | {'seed': seed, 'seconds': round(time.time() - started, 1)}
                )
                context.save()
        seed += 1
        if not begun:
            return


def finetune_one(context: Context, name: str, changes: dict, seed: int) -> dict:
    config = finetune_config.get_config(name)
    config.update(init_from=str(context.out / 'runs' / 'pretrain'), seed=seed, **changes)
    config.data.update(source=f'tokens:{context.data / "tokens" / name}', limit=EXAMPLES)
    config.optimizer.learning_rate = 6.25e-5 if context.size == 'gpt1' else 5e-4
    config.checkpoint.update(every=0, keep_latest=1)
    workdir = _workdir(context, 'finetune')
    result = finetune.run(config, workdir)
    shutil.rmtree(workdir)  # a checkpoint is three times as large as the parameters
    metric = REGISTRY[name].metrics[0]
    scores = {
        checkpoint: result.value(split='dev', metric=metric, subset='', checkpoint=checkpoint)
        for checkpoint in ('best', 'last')
    }
    return {'metric': metric, **scores, **{name: result.facts[name] for name in ('train_examples', 'dev_examples')}}


def _workdir(context, name):
    workdir = context.out / 'runs' / name
    shutil.rmtree(workdir, ignore_errors=True)
    return workdir
