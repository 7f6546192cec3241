"""Discriminative fine-tuning with the auxiliary LM loss (Radford et al. 2018, sections 3.2 and 3.3)."""

import jax
import numpy as np
from absl import logging

from gpt1_jax import config as common
from gpt1_jax.analysis import metrics
from gpt1_jax.data import datasets, packing, transforms
from gpt1_jax.data.stream import stream
from gpt1_jax.errors import UserError
from gpt1_jax.model.heads import ClassifierHead
from gpt1_jax.model.transformer import model_from_config
from gpt1_jax.training import loop, steps, transfer
from gpt1_jax.training.optimizer import make_optimizer
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.state import abstract_state, params_initialiser
from gpt1_jax.training.telemetry import decoder_flops_per_token

N_SPECIAL = 3  # start, delimiter, extract


def run(config, workdir) -> dict:
    """Fine-tunes the model of `config.init_from` on `config.data`; returns what it writes to results.json.

    Results: after the last epoch, and as `best_...` of the best one, `dev_<metric>` for the data set's metrics and
    `dev_score`, the first of them; the numbers of examples; how many sequences were cut, by how many tokens.
    """
    if not config.init_from:
        raise UserError('init_from is empty: name the --workdir of a pre-training run with --config.init_from=DIR (to '
                        'start from scratch with its tokenizer and size, add --config.n_transfer=-1)')
    partitioner = Partitioner(config.mesh.strategy, config.mesh.shape)
    source = transfer.open_source(config.init_from)
    dataset = _dataset(config.data)
    common.save_or_compare(config, workdir, write=jax.process_index() == 0)

    model = model_from_config({**config.model, **source.architecture}, source.vocab_size, N_SPECIAL)
    head = ClassifierHead(dataset.kind, dataset.classes, config.model.head_dropout)
    train, dev = (_encode(config.data, dataset, split, source.tokenizer, model.n_positions)
                  for split in ('train', 'dev'))
    hosts = dict(groups=partitioner.groups, process_index=jax.process_index(), process_count=jax.process_count())
    batches = packing.FinetuningBatches(
        train, batch_size=config.data.batch_size, row_length=packing.auto_row_length(train, model.n_positions),
        accumulation=config.optimizer.accumulation, seed=config.seed, **hosts)
    total_steps = max(1, round(config.data.epochs * batches.steps_per_epoch))
    optimizer, learning_rate = make_optimizer(config.optimizer, total_steps)

    init_params = params_initialiser(model, head)
    abstract = abstract_state(init_params, optimizer, partitioner)
    n_layers = model.layers if config.n_transfer is None else config.n_transfer
    if not -1 <= n_layers <= model.layers:
        raise UserError(f'n_transfer={n_layers} is not between -1 (nothing) and {model.layers} (all layers)')
    logging.info('%s: %d training and %d dev examples; %d updates; %d of %d layers from %s', dataset.name,
                 len(train.ids), len(dev.ids), total_steps, max(n_layers, 0), model.layers, source.directory)
    transfer.describe_run(workdir, model, source.tokenizer, head)
    outcome = loop.fit(loop.Job(
        config=config, workdir=workdir, partitioner=partitioner, abstract=abstract, init_params=init_params,
        load=transfer.loader(source, model, n_layers, partitioner),
        optimizer=optimizer, learning_rate=learning_rate,
        loss_fn=steps.finetune_loss_fn(model, head, dataset.loss, config.lm_coefficient), batches=batches,
        total_steps=total_steps,
        count_tokens=lambda batch: int(np.count_nonzero(batch['segment_ids'])) * jax.process_count(),
        flops_per_token=decoder_flops_per_token(model),
        evaluate=_evaluator(config, dataset, dev, model, head, abstract, partitioner, hosts),
        eval_every=batches.steps_per_epoch, best_metric='dev_score', best_mode='max',
        describe_batch=lambda step: 'examples ' + ', '.join(train.ids[i] for i in batches.members(step))))
    results = {'dataset': dataset.name, 'train_examples': len(train.ids), 'dev_examples': len(dev.ids),
               'cut_sequences': train.cut_sequences + dev.cut_sequences,
               'cut_tokens': train.cut_tokens + dev.cut_tokens, **outcome.results()}
    if jax.process_index() == 0:
        common.write_json(workdir / 'results.json', results)
    logging.info('%s: dev %s %.4f after the last epoch, best %.4f at step %d', dataset.name, dataset.metrics[0],
                 results['dev_score'], results['best_dev_score'], results['best_step'])
    return results


def _dataset(data):
    if data.dataset == 'custom':
        names = lambda text: tuple(name.strip() for name in text.split(',') if name.strip())
        return datasets.custom_dataset(
            kind=data.kind, fields=names(data.fields), labels=names(data.labels) or None,
            metrics=names(data.metrics), label_field=data.label_field, source=data.source,
            score_range=(0, data.max_score) if data.max_score else None)
    common.check_choice('data.dataset', data.dataset, (*datasets.REGISTRY, 'custom'))
    return datasets.REGISTRY[data.dataset]


def _encode(data, dataset, split, tokenizer, max_length):
    limit = data.limit if split == 'train' else None
    examples = datasets.load_examples(dataset, data.source, split, limit)
    encoded = transforms.encode(dataset, examples, tokenizer, data.max_length or max_length)
    if encoded.labels is None:
        raise UserError(f'the {split} split of {data.source or dataset.source} has no labels: name a source that has '
                        'them')
    if encoded.cut_sequences:
        logging.warning('%s: %d sequences of the %s split are longer than %d tokens and were cut, by %d tokens '
                        'together', dataset.name, encoded.cut_sequences, split, data.max_length or max_length,
                        encoded.cut_tokens)
    return encoded


def _evaluator(config, dataset, dev, model, head, abstract, partitioner, hosts):
    """params -> {'dev_score', 'dev_<metric>'...} over every dev example once."""
    batches = packing.EvaluationBatches(dev, batch_size=config.data.eval_batch_size,
                                        row_length=packing.auto_row_length(dev, model.n_positions), **hosts)
    step = steps.jit_eval_step(steps.predict_step(model, head), abstract.params, partitioner)

    def evaluate(params):
        outputs = jax.device_get([step(params, partitioner.put_batch(batch))
                                  for batch in stream(batches, 0, batches.steps)])
        ids = np.concatenate([output['ids'] for output in outputs])
        logits = np.concatenate([output['logits'] for output in outputs])[ids >= 0]
        labels = dev.labels[ids[ids >= 0]]
        values = metrics.compute(dataset.metrics, labels, metrics.predictions(dataset.loss, logits))
        return {'dev_score': values[dataset.metrics[0]]} | {f'dev_{name}': value for name, value in values.items()}

    return evaluate
