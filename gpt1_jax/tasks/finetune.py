"""Discriminative fine-tuning with the auxiliary LM loss (Radford et al. 2018, sections 3.2 and 3.3)."""

import dataclasses
import functools
import time

import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from gpt1_jax import peers
from gpt1_jax.config import check_choice
from gpt1_jax.data.labelled import checks, packing
from gpt1_jax.data.labelled.encoding import check_rule, encode_split
from gpt1_jax.data.labelled.loading import available_splits, load_examples
from gpt1_jax.data.labelled.registry import Dataset, dataset_of
from gpt1_jax.data.labelled.sequences import Encoded
from gpt1_jax.errors import UserError
from gpt1_jax.evaluation import metrics
from gpt1_jax.evaluation.classification import (
    flat_metrics,
    make_predictor,
    named_scores,
    score_split,
    spread,
    write_errors,
    write_logits,
)
from gpt1_jax.evaluation.journal import Watch, digest, fingerprint, resumable
from gpt1_jax.evaluation.prediction_files import write_predictions
from gpt1_jax.model.architecture import KINDS
from gpt1_jax.model.classifier import ClassifierHead
from gpt1_jax.report.results import Result, Score, read, record
from gpt1_jax.saved_models import layers, store
from gpt1_jax.training import loop
from gpt1_jax.training.cost import used_examples, whole_steps
from gpt1_jax.training.job import Evaluator, Job
from gpt1_jax.training.partitioning import Partitioner, is_writer
from gpt1_jax.training.program import finetuning
from gpt1_jax.workdir import keep_content, open_workdir


def run(config: ConfigDict, workdir: epath.Path) -> Result:
    """Fine-tunes the model of `config.init_from` on `config.data`; writes and returns the result.

    Scores: the data set's metrics on dev, of the last checkpoint and of the best one (by the first metric), and of the
    best one on the other labelled splits and on `config.data.score_train` of the training examples, evenly spread.
    Facts: the numbers of examples and steps; `loop.Outcome.facts`; `dev_constant`, the first metric on dev if every
    answer were the same label, the best one; how many sequences were cut, and by how many tokens, among all training
    and dev examples. The predictions for the test splits go to workdir/predictions. Of the best checkpoint's
    predictions for dev, workdir/dev.npz holds the logits (`write_logits`) and workdir/dev_errors.jsonl wrong ones
    (`write_errors`). A run that is finished is not done again.
    """
    started = time.monotonic()
    if not config.init_from:
        raise UserError(
            'init_from: It is empty. Name the --workdir of a pre-training run with --config.init_from=DIR '
            '(to start from scratch with its tokenizer and size, add --config.n_transfer=-1).'
        )
    dataset = dataset_of(config.data)
    check(config, dataset)
    partitioner = Partitioner(config.mesh.strategy, config.mesh.shape)
    saved = store.open_model(config.init_from)
    n_layers = layers.number(config.n_transfer, saved)
    architecture = layers.architecture(saved, n_layers, config.rest)
    open_workdir(config, workdir, write=is_writer())
    if finished := read(workdir):
        logging.info('%s is finished; delete its results.json to do its last evaluation again', workdir)
        return finished

    encoded = _encode_all(config, dataset, saved)
    source = config.data.source or dataset.uri
    content = {split: digest(of_split.content()) for split, of_split in encoded.items()}
    peers.check_same(repr(content), source)
    keep_content(workdir, source, f'{content["train"]} {content["dev"]}', write=is_writer())
    batches = _batches(config, dataset, encoded['train'], architecture.kind, partitioner)
    total_steps = whole_steps(config.data.epochs * batches.steps_per_epoch)
    loss, classes = _loss(config.data, dataset)
    head = ClassifierHead(dataset.kind, classes, config.model.head_dropout)
    program = finetuning(config, architecture, saved.vocab_size, head, loss, total_steps, partitioner)
    _log_work(dataset, encoded, total_steps, n_layers, saved)
    predict = make_predictor(
        program.classifier, program.abstract.params, program.partitioner, config.data.eval_batch_size
    )
    evaluate = _dev_evaluation(dataset, loss, encoded['dev'], predict)
    evaluator = Evaluator(
        evaluate, batches.steps_per_epoch, ranks_by='dev_score', mode='max', patience=config.data.patience
    )
    tokens_seen = saved.tokens_seen() if n_layers >= 0 else 0
    store.describe_run(
        workdir,
        program.classifier,
        saved.tokenizer,
        best_metric=evaluator.ranks_by,
        best_mode=evaluator.mode,
        tokens_before=tokens_seen,
        labels=dataset.outputs,
    )
    job = Job(
        config=config,
        workdir=workdir,
        program=program,
        batches=batches,
        total_steps=total_steps,
        evaluators=[evaluator],
        load=layers.loader(saved, program, n_layers),
    )
    outcome = loop.fit(job)

    params, best = loop.best_params(job, outcome)
    outcome = dataclasses.replace(outcome, best=best)
    facts = _facts(dataset, encoded, outcome, batches.steps_per_epoch)
    encoded['train'] = encoded['train'].take(spread(len(encoded['train'].ids), config.data.score_train))
    with resumable(workdir) as watching:
        watching = functools.partial(watching, model=fingerprint(program.classifier, params, program.partitioner))
        of_best = _evaluate_splits(
            config.data, workdir, dataset, loss, encoded, functools.partial(predict, params), watching
        )
        scores = _dev_scores(dataset, encoded['dev'], outcome)
        scores += [dataclasses.replace(one, checkpoint='best', step=best['step']) for one in of_best]
        logging.info(
            '%s: dev %s %.4f after the last epoch, best %.4f at step %d; always the same answer scores %.4f',
            dataset.name,
            dataset.metrics[0],
            outcome.evaluations[-1]['dev_score'],
            best['dev_score'],
            best['step'],
            facts['dev_constant'],
        )
        scores = [dataclasses.replace(one, seed=config.seed) for one in scores]
        model = store.summary(program.classifier.model, program.abstract.params, tokens_seen)
        return record(config, workdir, started, scores=scores, facts=facts, model=model)


def check(config: ConfigDict, dataset: Dataset) -> None:
    """Raises UserError for what can be refused before the model and the data are read."""
    if not 0 <= config.seed < 2**32:  # of the generator that draws and shuffles examples
        raise UserError(f'seed: {config.seed} is not valid. It must be from 0 to {2**32 - 1:,}.')
    if not config.data.source.startswith('tokens:'):  # these refuse any rule but their own
        check_rule(config.data.rule, dataset)
    _loss(config.data, dataset)


def drawn(seed: int, data: ConfigDict, number: int) -> np.ndarray:
    """Which of `number` training examples a run takes, in their order: int [used_examples]."""
    return np.sort(np.random.RandomState(seed).permutation(number)[: used_examples(data, number)])


def _encode_all(config, dataset: Dataset, saved) -> dict[str, Encoded]:
    """Every split that the source has, by name: a mistake in a test file should not show after days of training.

    Raises UserError if train or dev have no labelled examples, or the source's splits cannot be listed.
    """
    data, where, encoded = config.data, config.data.source or dataset.uri, {}
    names = available_splits(dataset, data.source, data.download)
    for split in dict.fromkeys(('train', 'dev', *names)):
        encoded[split] = encode_split(data, dataset, split, saved.tokenizer, saved.architecture.sizes['n_positions'])
        if split in ('train', 'dev') and (encoded[split].labels is None or not encoded[split].ids):
            raise UserError(f'{where}: The {split} split has no labelled examples. Name a source that has them.')
    if not names:  # else a test split that is there would be left out
        raise UserError(f'{where}: Its splits could not be listed. Run the same command again to resume.')
    encoded['train'] = encoded['train'].take(drawn(config.seed, data, len(encoded['train'].ids)))
    for split, of_split in encoded.items():
        checks.log_labels(dataset, split, of_split.labels, len(of_split.ids))
    checks.log_shared(dataset, encoded['train'], encoded['dev'])
    checks.log_subsets(dataset, encoded['train'], encoded['dev'])
    return encoded


def _batches(config, dataset: Dataset, train: Encoded, kind: str, partitioner) -> packing.FinetuningBatches:
    """The training batches of a model of this kind."""
    return packing.FinetuningBatches(
        train,
        batch_size=config.data.batch_size,
        accumulation=config.optimizer.accumulation,
        seed=config.seed,
        placement=partitioner.placement,
        share_context=_shares_context(config.data, dataset, kind),
        rows=packing.rows_for(partitioner.platform),
    )


def _log_work(dataset, encoded, total_steps, n_layers, saved):
    logging.info(
        '%s: %d training and %d dev examples; %d updates; %d of %d layers from %s',
        dataset.name,
        len(encoded['train'].ids),
        len(encoded['dev'].ids),
        total_steps,
        max(n_layers, 0),
        saved.architecture.sizes['layers'],
        saved.directory,
    )
    if 'f1' in dataset.metrics:
        logging.info('%s: F1 is that of the label %r', dataset.name, dataset.labels[1])


def _dev_evaluation(dataset, loss, dev: Encoded, predict):
    """(params, should_stop) -> {'dev_score' and the other metrics on dev}, for `Evaluator`."""

    def evaluate(params, should_stop):
        watch = Watch('evaluating dev', len(dev.ids), should_stop=should_stop)
        return flat_metrics(score_split(dataset, loss, 'dev', dev, predict(params, dev, watch)))

    return evaluate


def _facts(dataset, encoded, outcome: loop.Outcome, steps_per_epoch) -> dict:
    """The facts of the result, with all training examples in `encoded`."""
    train, dev, steps = encoded['train'], encoded['dev'], int(outcome.state.step)
    return {
        'dataset': dataset.name,
        'steps': steps,
        'epochs': steps / steps_per_epoch,
        'train_examples': len(train.ids),
        'dev_examples': len(dev.ids),
        'dev_constant': metrics.constant(dataset.metrics[0], dev.labels),
        'cut_sequences': train.cut_sequences + dev.cut_sequences,
        'cut_tokens': train.cut_tokens + dev.cut_tokens,
        **outcome.facts(),
    }


def _evaluate_splits(data, workdir, dataset, loss, encoded, predict, watching) -> list[Score]:
    """Writes the predictions for every split that has examples; returns the scores on the labelled ones but dev, whose
    score is known. predict: (encoded, watch) -> logits."""
    scores = []
    for split, of_split in encoded.items():
        if not of_split.ids:
            continue
        logits = predict(of_split, watching(f'evaluating {split}', len(of_split.ids)))
        if split != 'dev' and of_split.labels is not None:
            scores += score_split(dataset, loss, split, of_split, logits)
        if is_writer():
            _write_outputs(data, workdir, dataset, split, of_split, (loss, logits))
    return scores


def _write_outputs(data, workdir, dataset, split, encoded, outputs):
    """Writes the best checkpoint's predictions. outputs: (kind of loss, logits)."""
    predicted = metrics.predictions(*outputs)
    if split == 'dev':
        texts = None
        if not data.source.startswith('tokens:'):
            texts = load_examples(dataset, data.source, split, download=data.download)
        write_logits(workdir / 'dev.npz', encoded, outputs[1])
        write_errors(workdir / 'dev_errors.jsonl', dataset, texts, encoded.labels, predicted)
    elif split.startswith('test'):
        path = write_predictions(workdir / 'predictions', dataset, split, predicted, encoded.ids)
        logging.info('predictions of the best epoch for %s: %s', split, path)


def _dev_scores(dataset, dev: Encoded, outcome: loop.Outcome) -> list[Score]:
    """The scores on dev of the last checkpoint, then of the best one."""
    return [
        dataclasses.replace(one, checkpoint=checkpoint, step=evaluation['step'])
        for checkpoint, evaluation in (('last', outcome.evaluations[-1]), ('best', outcome.best))
        for one in named_scores(dataset, 'dev', dev, evaluation)
    ]


def _shares_context(data, dataset: Dataset, kind: str) -> bool:
    """Whether the choices' common text is read once: if it is wanted, and the model can do it."""
    return dataset.kind == 'multiple_choice' and data.share_context and 'share_context' not in KINDS[kind].CANNOT


def _loss(data, dataset):
    """(loss kind, number of outputs of the linear layer)."""
    check_choice('data.score_loss', data.score_loss, ('ordinal', 'mse'))
    return ('mse', 1) if dataset.loss == 'ordinal' and data.score_loss == 'mse' else (dataset.loss, dataset.classes)
