"""Discriminative fine-tuning with the auxiliary LM loss (Radford et al. 2018, sections 3.2 and 3.3)."""

import jax
import numpy as np
from absl import logging

from gpt1_jax import config as common
from gpt1_jax.analysis import metrics
from gpt1_jax.analysis.predictions import write_predictions
from gpt1_jax.data import datasets, packing, transforms
from gpt1_jax.data.tokenizers import N_SPECIAL
from gpt1_jax.data.tokens import read_tokens
from gpt1_jax.errors import UserError
from gpt1_jax.model.heads import ClassifierHead
from gpt1_jax.model.transformer import model_from_config
from gpt1_jax.training import loop, steps, transfer
from gpt1_jax.training.optimizer import make_optimizer
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.prediction import make_predictor
from gpt1_jax.training.state import abstract_state, params_initialiser
from gpt1_jax.training.telemetry import decoder_flops_per_token


def run(config, workdir) -> dict:
    """Fine-tunes the model of `config.init_from` on `config.data`; returns what it writes to results.json.

    Results: after the last epoch, and as `best_...` of the best one by `dev_score`, `dev_<metric>` for the data set's
    metrics; with the best one's parameters the metrics of the other labelled splits; the numbers of examples; how many
    sequences were cut, by how many tokens. The predictions for the test splits go to workdir/predictions.
    A run that is finished is not done again.
    """
    if not config.init_from:
        raise UserError('init_from is empty: name the --workdir of a pre-training run with --config.init_from=DIR (to '
                        'start from scratch with its tokenizer and size, add --config.n_transfer=-1)')
    partitioner = Partitioner(config.mesh.strategy, config.mesh.shape)
    source = transfer.open_source(config.init_from)
    dataset = dataset_of(config.data)
    common.save_or_compare(config, workdir, write=jax.process_index() == 0)
    if (workdir / 'results.json').exists():
        logging.info('%s is finished; delete its results.json to do its last evaluation again', workdir)
        return common.read_json(workdir / 'results.json')

    model = model_from_config({**config.model, **source.architecture}, source.vocab_size, N_SPECIAL)
    loss, classes = _loss(config.data, dataset)
    head = ClassifierHead(dataset.kind, classes, config.model.head_dropout)
    n_layers = model.layers if config.n_transfer is None else config.n_transfer
    if not -1 <= n_layers <= model.layers:
        raise UserError(f'n_transfer={n_layers} is not between -1 (nothing) and {model.layers} (all layers)')
    # All of them now: a mistake in a test file should not show after days of training.
    splits = dict.fromkeys(('train', 'dev', *datasets.available_splits(dataset, config.data.source)))
    encoded_splits = {split: encode_split(config.data, dataset, split, source.tokenizer, model.n_positions)
                      for split in splits}
    train, dev = encoded_splits.pop('train'), encoded_splits.pop('dev')
    for split, encoded in (('train', train), ('dev', dev)):
        if encoded.labels is None:
            raise UserError(f'the {split} split of {config.data.source or dataset.source} has no labels: name a source '
                            'that has them')
    batches = packing.FinetuningBatches(
        train, batch_size=config.data.batch_size, groups=partitioner.groups, local_groups=partitioner.local_groups,
        accumulation=config.optimizer.accumulation, seed=config.seed,
        share_context=dataset.kind == 'multiple_choice' and config.data.share_context)
    total_steps = max(1, round(config.data.epochs * batches.steps_per_epoch))
    optimizer, learning_rate = make_optimizer(config.optimizer, total_steps)

    init_params = params_initialiser(model, head)
    abstract = abstract_state(init_params, optimizer, partitioner)
    logging.info('%s: %d training and %d dev examples; %d updates; %d of %d layers from %s', dataset.name,
                 len(train.ids), len(dev.ids), total_steps, max(n_layers, 0), model.layers, source.directory)
    transfer.describe_run(workdir, model, source.tokenizer, head)
    predict = make_predictor(model, head, abstract.params, partitioner, config.data.eval_batch_size)
    job = loop.Job(
        config=config, workdir=workdir, partitioner=partitioner, abstract=abstract, init_params=init_params,
        load=transfer.loader(source, model, n_layers, partitioner),
        optimizer=optimizer, learning_rate=learning_rate,
        loss_fn=steps.finetune_loss_fn(model, head, loss, config.lm_coefficient), batches=batches,
        total_steps=total_steps,
        count_tokens=lambda batch: (
            np.count_nonzero(batch['segment_ids']) * partitioner.groups // len(partitioner.local_groups)),
        flops_per_token=decoder_flops_per_token(model),
        evaluate=lambda params: score_split(dataset, loss, 'dev', dev, predict(params, dev)),
        eval_every=batches.steps_per_epoch, best_metric='dev_score', best_mode='max',
        describe_batch=lambda step: 'examples ' + ', '.join(train.ids[i] for i in batches.members(step)))
    outcome = loop.fit(job)
    results = {'dataset': dataset.name, 'train_examples': len(train.ids), 'dev_examples': len(dev.ids),
               'cut_sequences': train.cut_sequences + dev.cut_sequences,
               'cut_tokens': train.cut_tokens + dev.cut_tokens, **outcome.results()}
    with partitioner.activate():
        params = loop.best_params(job, outcome)
        for split, encoded in encoded_splits.items():
            logits = predict(params, encoded)
            if encoded.labels is not None:
                scores = score_split(dataset, loss, split, encoded, logits)
                results |= {f'best_{name}': value for name, value in scores.items()}
            if split.startswith('test') and jax.process_index() == 0:
                path = write_predictions(workdir / 'predictions', dataset, split, metrics.predictions(loss, logits),
                                         encoded.ids)
                logging.info('predictions of the best epoch for %s: %s', split, path)
    if jax.process_index() == 0:
        common.write_json(workdir / 'results.json', results)
    logging.info('%s: dev %s %.4f after the last epoch, best %.4f at step %d', dataset.name, dataset.metrics[0],
                 results['dev_score'], results['best_dev_score'], results['best_step'])
    return results


def dataset_of(data) -> datasets.Dataset:
    """The data set that `config.data` names: of the registry, or a custom one. Raises UserError."""
    if data.dataset == 'custom':
        names = lambda text: tuple(name.strip() for name in text.split(',') if name.strip())
        return datasets.custom_dataset(
            kind=data.kind, fields=names(data.fields), labels=names(data.labels) or None,
            metrics=names(data.metrics), label_field=data.label_field, source=data.source,
            max_score=data.max_score)
    common.check_choice('data.dataset', data.dataset, (*datasets.REGISTRY, 'custom'))
    return datasets.REGISTRY[data.dataset]


def encode_split(data, dataset, split, tokenizer, n_positions) -> transforms.Encoded:
    """Reads and tokenises one split; `data.limit` is for the train split. Warns of what was cut."""
    limit = data.limit if split == 'train' else None
    max_length = n_positions if data.max_length is None else data.max_length
    if max_length > n_positions:
        raise UserError(f'data.max_length={max_length} is more than the model\'s {n_positions} positions: give at most '
                        'as many')
    scheme, _, place = data.source.partition(':')
    if scheme == 'tokens':
        encoded = read_tokens(place, dataset.name, split, fingerprint=tokenizer.fingerprint, max_length=max_length,
                              rule=data.rule)
        encoded = encoded if limit is None else encoded.first(limit)
    else:
        examples = datasets.load_examples(dataset, data.source, split, limit)
        encoded = transforms.encode(dataset, examples, tokenizer, max_length, data.rule or None, cache=data.cache)
    if encoded.cut_sequences:
        logging.warning('%s: %d sequences of the %s split are longer than %d tokens and were cut, by %d tokens '
                        'together', dataset.name, encoded.cut_sequences, split, max_length, encoded.cut_tokens)
    return encoded


def score_split(dataset, loss, split, encoded, logits) -> dict:
    """{'dev_score', 'dev_<metric>', ...} for the split 'dev'; see `metrics.score`."""
    values = metrics.score(dataset.metrics, loss, encoded.labels, logits, encoded.groups)
    return {f'{split}_{name}': value for name, value in values.items()}


def _loss(data, dataset):
    """(loss kind, number of outputs of the linear layer)."""
    common.check_choice('data.score_loss', data.score_loss, ('ordinal', 'mse'))
    return ('mse', 1) if dataset.loss == 'ordinal' and data.score_loss == 'mse' else (dataset.loss, dataset.classes)
