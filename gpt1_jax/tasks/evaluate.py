"""A fine-tuned model on one split: metrics, per class too, and a file of predictions."""

import time

from absl import logging
from etils import epath
from ml_collections import ConfigDict

from gpt1_jax import peers
from gpt1_jax.config import check_choice
from gpt1_jax.data.labelled.encoding import encode_split
from gpt1_jax.data.labelled.registry import dataset_of
from gpt1_jax.errors import UserError
from gpt1_jax.evaluation import journal, metrics
from gpt1_jax.evaluation.classification import make_predictor, score_split
from gpt1_jax.evaluation.prediction_files import write_predictions
from gpt1_jax.files import exists
from gpt1_jax.report.results import Result, record
from gpt1_jax.report.tables import format_table
from gpt1_jax.saved_models import store
from gpt1_jax.training.partitioning import Partitioner, is_writer
from gpt1_jax.workdir import open_workdir


def run(config: ConfigDict, workdir: epath.Path) -> Result:
    """Evaluates the best checkpoint of `config.init_from` on `config.split`; writes and returns the result.

    Scores: the data set's metrics. Facts: `examples`; `constant`, the first metric if every answer were the same label,
    the best one; `cut_sequences`, `cut_tokens`; `classes` (precision, recall, F1, number of examples by label); the
    path of the predictions. A split without labels gives predictions only. WORKDIR/evaluation.journal, which is deleted
    at the end, keeps finished batches, so that the command can be resumed.
    """
    started = time.monotonic()
    if exists(workdir / 'checkpoints'):
        raise UserError(
            f'{workdir}: This is the workdir of a training run, and its results.json would be replaced. '
            'Give another --workdir.'
        )
    partitioner = Partitioner(config.mesh.strategy, config.mesh.shape)
    saved = store.open_model(config.init_from)
    dataset = dataset_of(config.data)
    check_choice('split', config.split, dataset.splits)
    head = saved.head
    if head is None:
        raise UserError(
            f'{config.init_from}: It holds a language model without a task head. Name the --workdir of a '
            f'fine-tuning run on {dataset.name}.'
        )
    loss = 'mse' if dataset.loss == 'ordinal' and head.classes == 1 else dataset.loss
    if head.kind != dataset.kind or head.classes != (1 if loss == 'mse' else dataset.classes):
        raise UserError(
            f'{config.init_from}: Its head is for {head.kind} with {head.classes} outputs, but '
            f'{dataset.name} is {dataset.kind} with {dataset.classes}. Name a run on {dataset.name}.'
        )
    outputs = _outputs(config.init_from, saved.labels, dataset)
    open_workdir(config, workdir, write=is_writer())
    classifier, params = store.load_model(saved, config.model, partitioner)
    encoded = encode_split(config.data, dataset, config.split, saved.tokenizer, classifier.model.n_positions)
    if not encoded.ids:
        raise UserError(f'{config.data.source}: The {config.split} split has no examples. Name another --config.split.')
    peers.check_same(journal.digest(encoded.content()), config.data.source or dataset.uri)
    predict = make_predictor(classifier, params, partitioner, config.data.eval_batch_size)
    with journal.resumable(workdir) as watch:
        of_model = journal.fingerprint(classifier, params, partitioner)
        logits = predict(params, encoded, watch(f'evaluating {config.split}', len(encoded.ids), model=of_model))
        logits = logits if outputs is None else logits[:, outputs]
        scores, facts = _judge(config, workdir, dataset, loss, encoded, logits)
        model = store.summary(classifier.model, params, saved.tokens_seen())
        result = record(config, workdir, started, scores=scores, facts=facts, model=model)
    if is_writer():
        _print(result)
    return result


def _outputs(init_from, trained, dataset):
    """For each label of the data set, the number of the head's output; None if they have the same order, or it is
    unknown. trained: the labels that the head was trained on, or None.

    Raises UserError if it was trained on other labels.
    """
    wanted = dataset.outputs
    if trained is None or wanted is None or trained == wanted:
        return None
    if sorted(trained) != sorted(wanted):
        fix = f', or set --config.data.labels={",".join(trained)}' if dataset.name == 'custom' else ''
        raise UserError(
            f'{init_from}: Its head was trained on the labels {", ".join(trained)}, but those of {dataset.name} are '
            f'{", ".join(wanted)}. Name a run on {dataset.name}{fix}.'
        )
    logging.info('%s has the labels of %s in another order: %s', init_from, dataset.name, ', '.join(trained))
    return [trained.index(label) for label in wanted]


def _judge(config, workdir, dataset, loss, encoded, logits):
    """(scores, facts) of the result; also writes the predictions."""
    predicted = metrics.predictions(loss, logits)
    facts = {
        'dataset': dataset.name,
        'split': config.split,
        'examples': len(encoded.ids),
        'cut_sequences': encoded.cut_sequences,
        'cut_tokens': encoded.cut_tokens,
    }
    scores = []
    if encoded.labels is not None:
        scores = score_split(dataset, loss, config.split, encoded, logits)
        facts['constant'] = metrics.constant(dataset.metrics[0], encoded.labels)
        if dataset.labels is not None:
            facts['classes'] = metrics.per_class(encoded.labels, predicted, dataset.labels)
    if is_writer():
        facts['predictions'] = str(
            write_predictions(workdir / 'predictions', dataset, config.split, predicted, encoded.ids)
        )
    return scores, facts


def _print(result):
    facts = result.facts
    print(f'\n{facts["dataset"]}, {facts["split"]}: {facts["examples"]:,} examples')
    for score in result.scores:
        print(f'  {"_".join(filter(None, (score.metric, score.subset))):<24}{score.value:8.4f}')
    if 'constant' in facts:
        print(f'  {result.scores[0].metric + ", one answer":<24}{facts["constant"]:8.4f}')
    if 'classes' in facts:
        columns = [
            ('  class', 26, ''),
            ('precision', 10, '.4f'),
            ('recall', 8, '.4f'),
            ('F1', 8, '.4f'),
            ('examples', 10, '.0f'),
        ]
        print('\n' + format_table(columns, [(f'  {name}', *row.values()) for name, row in facts['classes'].items()]))
    logging.info('predictions: %s', facts['predictions'])
