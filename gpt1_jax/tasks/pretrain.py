"""Generative pre-training: shards -> language model (Radford et al. 2018, section 3.1)."""

import functools
import time

import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from gpt1_jax import peers
from gpt1_jax.data.corpus.preparation import prepare
from gpt1_jax.data.corpus.shards import load_shards, shards_fingerprint
from gpt1_jax.data.corpus.windows import HeldOutBatches, PretrainingBatches
from gpt1_jax.data.prefetch import prefetch
from gpt1_jax.data.tokenizers.loading import load_tokenizer
from gpt1_jax.errors import UserError
from gpt1_jax.evaluation import zero_shot
from gpt1_jax.evaluation.journal import Watch
from gpt1_jax.evaluation.perplexity import make_scorer, perplexity
from gpt1_jax.model import architecture
from gpt1_jax.model.sizes import SIZES
from gpt1_jax.report.results import Result, Score, record
from gpt1_jax.saved_models import layers, store
from gpt1_jax.training import loop
from gpt1_jax.training.cost import whole_steps
from gpt1_jax.training.job import Evaluator, Job
from gpt1_jax.training.metric_writer import import_wandb
from gpt1_jax.training.optimizer import make_optimizer
from gpt1_jax.training.partitioning import Partitioner, is_writer
from gpt1_jax.training.program import pretraining, text_evaluation
from gpt1_jax.workdir import open_workdir


def run(config: ConfigDict, workdir: epath.Path) -> Result:
    """Trains in `workdir`, or resumes training there; writes and returns the result.

    Scores: `loss` (nats per token, vocabulary rows only) and `perplexity` on the split 'valid', of the last checkpoint
    and of the best one. Facts: `steps`, `tokens` trained on, `flops` of that, and `loop.Outcome.facts`.
    """
    started = time.monotonic()
    partitioner = Partitioner(config.mesh.strategy, config.mesh.shape)
    saved = _open_model(config) if config.init_from else None
    if not config.data.source.startswith('shards:'):
        check(config, partitioner.platform)  # before the text is prepared, which can take hours
    open_workdir(config, workdir, write=is_writer(), fingerprint=shards_fingerprint)
    shards = _open_shards(config.data, workdir)
    batches, total_steps, program = _training(config, shards, partitioner)
    held_out, evaluate = _held_out(config, program, shards)
    evaluator = Evaluator(evaluate, config.log.eval_every, ranks_by='valid_loss', mode='min')
    tokens_before = saved.tokens_seen() if saved else 0
    tokens_per_step = config.data.batch_size * config.model.n_positions
    store.describe_run(
        workdir,
        program.classifier,
        load_tokenizer(shards.directory / 'tokenizer'),
        best_metric=evaluator.ranks_by,
        best_mode=evaluator.mode,
        tokens_before=tokens_before,
        tokens_per_step=tokens_per_step,
    )
    outcome = loop.fit(
        Job(
            config=config,
            workdir=workdir,
            program=program,
            batches=batches,
            total_steps=total_steps,
            evaluators=[evaluator, *_zero_shot(config, program, shards)],
            load=saved and layers.loader(saved, program, program.classifier.model.layers),
        )
    )

    tokens = total_steps * tokens_per_step
    tokens_seen = None if tokens_before is None else tokens_before + tokens
    logging.info(
        'held-out perplexity %.2f (%.4f nats a token); best %.2f at step %d',
        outcome.evaluations[-1]['valid_perplexity'],
        outcome.evaluations[-1]['valid_loss'],
        outcome.best['valid_perplexity'],
        outcome.best['step'],
    )
    return record(
        config,
        workdir,
        started,
        scores=_scores(config, outcome, held_out.targets),
        facts={'steps': total_steps, 'tokens': tokens, 'flops': tokens * program.flops_per_token, **outcome.facts()},
        model=store.summary(program.classifier.model, program.abstract.params, tokens_seen),
    )


def _open_model(config):
    """The model to start from. Raises UserError if the run has another architecture or tokenizer."""
    saved = store.open_model(config.init_from)
    kind, theirs = saved.architecture.kind, saved.architecture.sizes
    if config.model.kind != kind:
        sizes = ', '.join(name for name, size in SIZES.items() if size.kind == kind)
        raise UserError(
            f'model.kind: {config.model.kind} is not that of {config.init_from}. Use --config=configs/pretrain.py:SIZE '
            f'with a size of kind {kind}: {sizes}.'
        )
    if other := [name for name in architecture.KINDS[kind].SIZES if config.model[name] != theirs[name]]:
        flags = ' '.join(f'--config.model.{name}={theirs[name]}' for name in other)
        raise UserError(f'model.{other[0]}: {config.model[other[0]]} is not that of {config.init_from}. Set {flags}.')
    scheme, _, path = config.data.source.partition(':')
    if scheme == 'shards':
        given, fingerprint = f'the tokenizer of {path}', load_shards(path).tokenizer_fingerprint
    elif config.data.tokenizer:
        given, fingerprint = config.data.tokenizer, load_tokenizer(config.data.tokenizer).fingerprint
    else:
        given, fingerprint = 'a newly trained tokenizer', None
    if fingerprint != saved.tokenizer.fingerprint:
        raise UserError(
            f'data.tokenizer: {given} (fingerprint {fingerprint}) is not the tokenizer of '
            f'{config.init_from} ({saved.tokenizer.fingerprint}). Prepare the text with '
            '--config.data.tokenizer=DIR, the folder of that one.'
        )
    return saved


def check(config: ConfigDict, platform: str) -> None:
    """Raises UserError for what can be refused before the text is read."""
    architecture.build(config.model, config.data.vocab_size, 0, platform)
    make_optimizer(config.optimizer, 2**31)  # how many steps there will be is not known yet
    if config.log.wandb:
        import_wandb()
    if config.log.zero_shot.every:
        zero_shot.check_names(config.log.zero_shot.datasets, 'log.zero_shot.datasets')


def _open_shards(data, workdir):
    scheme, _, path = data.source.partition(':')
    output = path if scheme == 'shards' else data.output or workdir / 'shards'
    if is_writer():
        if scheme != 'shards':
            prepare(data, output, needs_held_out=True)
        load_shards(output).verify()  # reads all tokens once, which is cheap compared with training on them
    peers.meet()
    peers.check_same(shards_fingerprint(f'shards:{output}'), str(output))
    return load_shards(output)


def _training(config, shards, partitioner):
    """(the batches, how many updates to make of them, the program that makes them)"""
    length, batch_size = config.model.n_positions, config.data.batch_size
    batches = PretrainingBatches(
        shards.splits['train'],
        batch_size=batch_size,
        length=length,
        seed=config.seed,
        accumulation=config.optimizer.accumulation,
        placement=partitioner.placement,
    )
    windows = config.data.tokens / length or config.data.epochs * batches.windows_per_epoch
    total_steps = whole_steps(windows / batch_size)
    program = pretraining(config, shards.vocab_size, total_steps, partitioner)
    logging.info(
        'model: %s parameters; data: %s training tokens; %d updates of %d tokens (%.2f epochs)',
        f'{program.parameters:,}',
        f'{shards.splits["train"].tokens:,}',
        total_steps,
        batch_size * length,
        total_steps * batch_size / batches.windows_per_epoch,
    )
    return batches, total_steps, program


def _held_out(config, program, shards):
    """(the held-out batches, of at most `log.eval_windows` windows; (params, should_stop) -> {'valid_loss',
    'valid_perplexity'})"""
    if 'valid' not in shards.splits:
        raise UserError(
            f'{shards.directory}: These shards have no held-out split. Prepare them with data.held_out above 0.'
        )
    partitioner = program.partitioner
    n_shards = partitioner.placement.shards
    batches = HeldOutBatches(
        shards.splits['valid'],
        batch_size=max(1, config.data.batch_size // n_shards) * n_shards,
        length=config.model.n_positions,
        limit=config.log.eval_windows,
        placement=partitioner.placement,
    )
    step = text_evaluation(program.classifier, program.abstract.params, partitioner)

    def evaluate(params, should_stop):
        nll = Watch('evaluating', batches.steps, 'batch', should_stop=should_stop).each(
            lambda batch: step(params, partitioner.put_batch(batch)),
            lambda start: prefetch(batches, start, batches.steps),
            keep=lambda number, nll: nll,
        )
        loss = np.sum(list(nll), dtype=np.float64) / batches.targets
        return {'valid_loss': loss, 'valid_perplexity': perplexity(loss)}

    return batches, evaluate


def _zero_shot(config, program, shards) -> list[Evaluator]:
    """The evaluator that `log.zero_shot` asks for, which gives {'zero_shot_DATASET': score}; none if `every` is 0."""
    wanted = config.log.zero_shot
    if not wanted.every:
        return []
    questions, _ = zero_shot.load(
        wanted.datasets,
        wanted.source,
        wanted.limit,
        load_tokenizer(shards.directory / 'tokenizer'),
        config.model.n_positions,
        zero_shot.Variant(),
        config.data.download,
        key='log.zero_shot.',
    )
    score = make_scorer(program.classifier, program.abstract.params, program.partitioner, config.data.batch_size)

    def evaluate(params, should_stop):
        watch = Watch('zero-shot', sum(one.scored() for one in questions), 'sequence', should_stop=should_stop)
        seen = functools.partial(score, params, watch=watch)
        answer = functools.partial(zero_shot.answer, score=seen, length_normalised=True)
        return {f'zero_shot_{one.name}': answer(one).value for one in questions}

    return [Evaluator(evaluate, wanted.every)]


def _scores(config, outcome: loop.Outcome, targets: int) -> list[Score]:
    """The scores on the held-out split of the last checkpoint, then of the best one. targets: that were predicted."""
    return [
        Score(
            config.data.source,
            'valid',
            metric,
            evaluation[f'valid_{metric}'],
            targets,
            checkpoint=checkpoint,
            step=evaluation['step'],
            seed=config.seed,
        )
        for checkpoint, evaluation in (('last', outcome.evaluations[-1]), ('best', outcome.best))
        for metric in ('loss', 'perplexity')
    ]
