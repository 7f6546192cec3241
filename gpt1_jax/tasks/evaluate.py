"""A fine-tuned model on one split: metrics, per class too, and a file of predictions."""

import jax
from absl import logging

from gpt1_jax import config as common
from gpt1_jax.analysis import metrics
from gpt1_jax.analysis.predictions import write_predictions
from gpt1_jax.errors import UserError
from gpt1_jax.tasks.finetune import dataset_of, encode_split, score_split
from gpt1_jax.training import transfer
from gpt1_jax.training.partitioning import Partitioner
from gpt1_jax.training.prediction import make_predictor


def run(config, workdir) -> dict:
    """Evaluates the best checkpoint of `config.init_from` on `config.split`; returns what it writes to results.json.

    Results: `<split>_<metric>`, `classes` (precision, recall, F1 and number of examples by label), the path of the
    predictions. A split without labels gives predictions only.
    """
    if not config.init_from:
        raise UserError('init_from is empty: name the --workdir of a fine-tuning run with --config.init_from=DIR')
    if (workdir / 'checkpoints').exists():
        raise UserError(f'{workdir} is the workdir of a training run, whose results.json this would replace: give '
                        'another --workdir')
    partitioner = Partitioner(config.mesh.strategy, config.mesh.shape)
    source = transfer.open_source(config.init_from)
    dataset = dataset_of(config.data)
    common.check_choice('split', config.split, dataset.splits)
    model, head, params = transfer.load_model(source, config.model, partitioner)
    if head is None:
        raise UserError(f'{config.init_from} holds a language model without a task head: name the --workdir of a '
                        f'fine-tuning run on {dataset.name}')
    loss = 'mse' if dataset.loss == 'ordinal' and head.classes == 1 else dataset.loss
    if head.kind != dataset.kind or head.classes != (1 if loss == 'mse' else dataset.classes):
        raise UserError(f'the head in {config.init_from} is for {head.kind} with {head.classes} outputs, but '
                        f'{dataset.name} is {dataset.kind} with {dataset.classes}: name a run on {dataset.name}')
    encoded = encode_split(config.data, dataset, config.split, source.tokenizer, model.n_positions)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
    with partitioner.activate():
        logits = make_predictor(model, head, abstract, partitioner, config.data.eval_batch_size)(params, encoded)
    predicted = metrics.predictions(loss, logits)
    results = {'dataset': dataset.name, 'split': config.split, 'examples': len(encoded.ids),
               'cut_sequences': encoded.cut_sequences, 'cut_tokens': encoded.cut_tokens}
    if encoded.labels is not None:
        results |= score_split(dataset, loss, config.split, encoded, logits)
        if dataset.labels is not None:
            results['classes'] = metrics.per_class(encoded.labels, predicted, dataset.labels)
    if jax.process_index() == 0:
        results['predictions'] = str(
            write_predictions(workdir / 'predictions', dataset, config.split, predicted, encoded.ids))
        common.write_json(workdir / 'results.json', results)
        _print(results)
    return results


def _print(results):
    split = results['split']
    print(f'\n{results["dataset"]}, {split}: {results["examples"]:,} examples')
    for name, value in results.items():
        if name.startswith(f'{split}_') and name != f'{split}_score':
            print(f'  {name.removeprefix(f"{split}_"):<24}{value:8.4f}')
    if 'classes' in results:
        print(f'\n  {"class":<24}{"precision":>10}{"recall":>8}{"F1":>8}{"examples":>10}')
        for name, row in results['classes'].items():
            print(f'  {name:<24}{row["precision"]:10.4f}{row["recall"]:8.4f}{row["f1"]:8.4f}{row["examples"]:10.0f}')
    logging.info('predictions: %s', results['predictions'])
