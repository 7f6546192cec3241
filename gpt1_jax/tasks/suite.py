"""Many data sets, several seeds each, in one resumable run; one table beside the paper's (Radford et al. 2018)."""

import statistics

import jax
from absl import logging

from gpt1_jax import config as common
from gpt1_jax.analysis import paper
from gpt1_jax.data import datasets
from gpt1_jax.data.files import make_directory
from gpt1_jax.errors import UserError
from gpt1_jax.tasks import finetune


def run(config, workdir) -> dict:
    """Fine-tunes on each of `config.datasets` with `config.seeds` seeds; prints a table and returns what it writes to
    results.json.

    Results: `table`, data set -> metric -> {'median', 'best', 'worst', 'last', 'runs'}: the dev scores at each run's
    best epoch and, as 'last', the median after the last epoch; the training examples; `glue_average` of the medians,
    where all nine tasks are there; `left_out`, data set -> why. WORKDIR/NAME/seedN are the runs, WORKDIR/predictions
    the predictions of each set's run with the best dev score. A set whose data cannot be used is left out and named.
    """
    if config.seeds < 1:
        raise UserError(f'seeds is {config.seeds}: give at least 1')
    common.cache_compiled_steps(workdir / 'compiled')  # the runs of one set differ in nothing that is compiled
    sources, left_out = _sources(config)
    for name, reason in left_out.items():
        logging.warning('%s is left out: %s', name, reason)
    if not sources:
        raise UserError(f'none of the data sets can be used; the first one: {next(iter(left_out.values()))}')
    table, training = {}, {}
    for name, source in sources.items():
        results = {}
        for seed in range(config.seeds):
            place = workdir / name / f'seed{seed}'
            results[place] = finetune.run(_run_config(config, name, source, config.seed + seed), place)
        table[name] = _rows(datasets.REGISTRY[name], list(results.values()))
        training[name] = next(iter(results.values()))['train_examples']
        best = max(results, key=lambda place: results[place]['best_dev_score'])
        if jax.process_index() == 0 and (best / 'predictions').exists():
            make_directory(workdir / 'predictions')
            for path in (best / 'predictions').iterdir():
                path.copy(workdir / 'predictions' / path.name, overwrite=True)
    medians = {name: [row['median'] for metric, row in rows.items() if not metric.endswith(('_middle', '_high'))]
               for name, rows in table.items()}
    results = {'table': table, 'train_examples': training, 'glue_average': paper.glue_average(medians),
               'left_out': left_out}
    if jax.process_index() == 0:
        common.write_json(workdir / 'results.json', results)
        text = format_table(results)
        (workdir / 'table.txt').write_text(text + '\n')
        print(f'\n{text}')
    return results


def _sources(config):
    """(data set -> its source URI, data set -> why it cannot be used): found out before anything is trained."""
    sources, left_out = {}, {}
    for name in config.datasets:
        common.check_choice('datasets', name, datasets.REGISTRY)
        dataset, source = datasets.REGISTRY[name], config.data.source
        scheme, _, place = source.partition(':')
        if scheme in ('files', 'tokens'):
            folder = datasets.folder_of(dataset, place)
            if folder is None:
                left_out[name] = f'{place} has no folder for it'
                continue
            source = f'{scheme}:{folder}'
        if scheme == 'tokens':  # checked when they are read, which is soon
            sources[name] = source
            continue
        try:
            for split in dict.fromkeys(('train', 'dev', *datasets.available_splits(dataset, source))):
                examples = datasets.load_examples(dataset, source, split)
                if split in ('train', 'dev') and examples.labels is None:
                    raise UserError(f'its {split} split has no labels')
                if split == 'train' and len(examples) < config.data.batch_size:
                    raise UserError(f'its {len(examples)} training examples are fewer than data.batch_size='
                                    f'{config.data.batch_size}')
            sources[name] = source
        except UserError as error:
            left_out[name] = str(error)
    return sources, left_out


def _run_config(config, name, source, seed):
    run_config = config.copy_and_resolve_references()
    with run_config.unlocked():
        del run_config.datasets, run_config.seeds
    run_config.update(task='finetune', seed=seed)
    run_config.data.update(dataset=name, source=source)
    return run_config


def _rows(dataset, results):
    """Metric -> {'median', 'best', 'worst', 'last', 'runs'} of one data set; MNLI's second dev set is one more."""
    rows = {}
    for key in results[0]:
        if key.startswith('best_dev_') and key not in ('best_dev_score', 'best_dev_mismatched_score'):
            values = [result[key] for result in results]
            last = [result[key.removeprefix('best_')] for result in results if key.removeprefix('best_') in result]
            rows[key.removeprefix('best_dev_')] = {
                'median': statistics.median(values), 'best': max(values), 'worst': min(values),
                'last': statistics.median(last) if last else None, 'runs': len(values)}
    # The metric that picks the epoch comes first.
    return dict(sorted(rows.items(), key=lambda row: row[0] != dataset.metrics[0]))


def format_table(results) -> str:
    """The table of `run`'s results, scores in per cent."""
    number = lambda value, scale=100: f'{value * scale:8.1f}' if value is not None else f'{"":>8}'
    lines = [f'{"":<36}{"dev, best epoch":^32}{"last":>8}{"paper, test":>20}',
             f'{"data set":<13}{"metric":<21}{"rows":>7}{"runs":>5}{"median":>8}{"best":>8}{"worst":>8}{"median":>8}'
             f'{"GPT":>8}{"before":>8}']
    for name, rows in results['table'].items():
        for metric, row in rows.items():
            theirs, before = paper.SCORES.get(name, {}).get(metric, (None, None))
            lines.append(f'{name:<13}{metric:<21}{results["train_examples"][name]:>7}{row["runs"]:>5}'
                         f'{number(row["median"])}{number(row["best"])}{number(row["worst"])}{number(row["last"])}'
                         f'{number(theirs, 1)}{number(before, 1)}')
    if results['glue_average'] is not None:
        theirs, before = paper.GLUE_AVERAGE
        lines.append(f'{"GLUE":<13}{"average":<33}{number(results["glue_average"])}{"":24}{number(theirs, 1)}'
                     f'{number(before, 1)}')
    lines += [f'{name}: left out: {reason}' for name, reason in results['left_out'].items()]
    return '\n'.join(lines)
