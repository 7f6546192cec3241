"""Generative pre-training: shards -> language model (Radford et al. 2018, section 3.1)."""

import math

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from gpt1_jax import config as common
from gpt1_jax.data.shards import load_shards
from gpt1_jax.data.prefetch import prefetch
from gpt1_jax.data.tokenizers import load_tokenizer
from gpt1_jax.data.windows import HeldOutBatches, PretrainingBatches
from gpt1_jax.errors import UserError
from gpt1_jax.model.transformer import model_from_config
from gpt1_jax.tasks.prepare import prepare
from gpt1_jax.training import loop, steps, transfer
from gpt1_jax.training.optimizer import make_optimizer
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.state import abstract_state, params_initialiser
from gpt1_jax.training.telemetry import decoder_flops_per_token


def run(config, workdir) -> dict:
    """Trains, or goes on training, in `workdir`; returns what it writes to results.json.

    Results: `steps`, `tokens` trained on, `valid_loss` (nats a token, vocabulary rows only), `valid_perplexity`, of the
    last step and as `best_...` of the best one.
    """
    partitioner = Partitioner(config.mesh.strategy, config.mesh.shape)
    source = _open_source(config) if config.init_from else None
    common.save_or_compare(config, workdir, write=jax.process_index() == 0)
    shards = _open_shards(config.data, workdir)
    model = model_from_config(config.model, shards.vocab_size, n_special=0)
    length, batch_size = model.n_positions, config.data.batch_size
    batches = PretrainingBatches(
        shards.splits['train'], batch_size=batch_size, length=length, seed=config.seed,
        accumulation=config.optimizer.accumulation, groups=partitioner.groups, local_groups=partitioner.local_groups)
    windows = config.data.tokens / length or config.data.epochs * batches.windows_per_epoch
    total_steps = max(1, round(windows / batch_size))
    optimizer, learning_rate = make_optimizer(config.optimizer, total_steps)

    init_params = params_initialiser(model)
    abstract = abstract_state(init_params, optimizer, partitioner)
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract.params))
    logging.info('model: %s parameters; data: %s training tokens; %d updates of %d tokens (%.2f epochs)',
                 f'{parameters:,}', f'{shards.splits["train"].tokens:,}', total_steps, batch_size * length,
                 total_steps * batch_size / batches.windows_per_epoch)
    transfer.describe_run(workdir, model, load_tokenizer(shards.directory / 'tokenizer'))
    outcome = loop.fit(loop.Job(
        config=config, workdir=workdir, partitioner=partitioner, abstract=abstract, init_params=init_params,
        load=source and transfer.loader(source, model, model.layers, partitioner),
        optimizer=optimizer, learning_rate=learning_rate,
        loss_fn=steps.pretrain_loss_fn(model, partitioner.groups, batch_size), batches=batches, total_steps=total_steps,
        count_tokens=lambda batch: batch_size * length, flops_per_token=decoder_flops_per_token(model),
        evaluate=_evaluator(config, model, shards, abstract, partitioner), eval_every=config.log.eval_every,
        best_metric='valid_loss', best_mode='min',
        describe_batch=lambda step: f'windows at tokens {batches.window_starts(step).tolist()}'))
    results = {'steps': total_steps, 'tokens': total_steps * batch_size * length, 'parameters': parameters,
               **outcome.results()}
    if jax.process_index() == 0:
        common.write_json(workdir / 'results.json', results)
    logging.info('held-out perplexity %.2f (%.4f nats a token); best %.2f at step %d', results['valid_perplexity'],
                 results['valid_loss'], results['best_valid_perplexity'], results['best_step'])
    return results


def _open_source(config):
    """The model to go on from. Raises UserError where the run is of another architecture or tokenizer."""
    source = transfer.open_source(config.init_from)
    for name in transfer.ARCHITECTURE:
        if config.model[name] != source.architecture[name]:
            raise UserError(f'model.{name}={config.model[name]} is not that of {config.init_from}: set '
                            f'--config.model.{name}={source.architecture[name]}')
    scheme, _, place = config.data.source.partition(':')
    if scheme == 'shards':
        given, fingerprint = f'the tokenizer of {place}', load_shards(place).tokenizer_fingerprint
    elif config.data.tokenizer:
        given, fingerprint = config.data.tokenizer, load_tokenizer(config.data.tokenizer).fingerprint
    else:
        given, fingerprint = 'a newly trained tokenizer', None
    if fingerprint != source.tokenizer.fingerprint:
        raise UserError(f'{given} (fingerprint {fingerprint}) is not the tokenizer of {config.init_from} '
                        f'({source.tokenizer.fingerprint}): prepare the text with --config.data.tokenizer=DIR, the '
                        'folder of that one')
    return source


def _open_shards(data, workdir):
    scheme, _, place = data.source.partition(':')
    output = place if scheme == 'shards' else data.output or workdir / 'shards'
    if jax.process_index() == 0:
        if scheme != 'shards':
            prepare(data, output)
        load_shards(output).verify()  # reading all once is cheap beside training on it
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices('prepared')
    return load_shards(output)


def _evaluator(config, model, shards, abstract, partitioner):
    """params -> {'valid_loss', 'valid_perplexity'} over at most `log.eval_windows` held-out windows."""
    if 'valid' not in shards.splits:
        raise UserError(f'the shards in {shards.directory} have no held-out split: prepare them with data.held_out > 0')
    size = max(1, config.data.batch_size // partitioner.groups) * partitioner.groups
    batches = HeldOutBatches(
        shards.splits['valid'], batch_size=size, length=model.n_positions, limit=config.log.eval_windows,
        groups=partitioner.groups, local_groups=partitioner.local_groups)
    step = steps.jit_eval_step(steps.nll_step(model, partitioner.groups), abstract.params, partitioner)

    def evaluate(params):
        nll = [step(params, partitioner.put_batch(batch)) for batch in prefetch(batches, 0, batches.steps)]
        loss = np.sum(jax.device_get(nll), dtype=np.float64) / batches.targets
        return {'valid_loss': loss, 'valid_perplexity': common.perplexity(loss)}

    return evaluate
