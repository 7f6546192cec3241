"""Data sets x variants x seeds in one resumable command; one table beside the paper's (Radford et al. 2018)."""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Sequence

from absl import logging
from etils import epath
from ml_collections import ConfigDict

from gpt1_jax import lock, peers
from gpt1_jax.config import as_json, check, check_choice, compare
from gpt1_jax.data.labelled.loading import count_training_examples, none_usable, unknown_folders, uri_of
from gpt1_jax.data.labelled.registry import REGISTRY
from gpt1_jax.errors import DivergedError, UserError
from gpt1_jax.evaluation import paper
from gpt1_jax.files import exists, make_directory, read_json, write_json
from gpt1_jax.progress import Progress
from gpt1_jax.report.results import RUN, Result, Score, paper_key
from gpt1_jax.report.tables import format_table, publish
from gpt1_jax.saved_models import store
from gpt1_jax.tasks import finetune
from gpt1_jax.training import cost, side_by_side
from gpt1_jax.training.partitioning import is_writer
from gpt1_jax.workdir import check_workdir, open_workdir

_MOST_NAMED = 10
_ABSENT = 'has no folder for it'
_IN_COMMON = ('task', 'init_from', 'rest')  # keys that all runs of a folder have in common


def run(config: ConfigDict, workdir: epath.Path) -> Result:
    """Fine-tunes on each of `config.datasets`, in each of `config.variants`, with `config.seeds` seeds; prints a table.

    See `fine_tune_all`. WORKDIR/table.txt is the table.
    """
    result = fine_tune_all(config, workdir, config)
    return finish(config, workdir, result, format_scores(result))


def finish(config: ConfigDict, workdir: epath.Path, result: Result, table: str) -> Result:
    """Writes the result with its task's config, and WORKDIR/table.txt; prints the table; returns the result."""
    result = dataclasses.replace(result, task=config.task, config=as_json(config))
    if is_writer():
        result.write(workdir)
        publish(workdir, table)
    return result


def with_variants(
    config: ConfigDict, variants: dict[str, dict], *, without: tuple[str, ...], **added: object
) -> ConfigDict:
    """Turns the config of a task that is built on sweeps into one for `fine_tune_all`.

    Args:
      variants: name -> changed keys of a run's config, in the order of the runs.
      without: keys of the task alone.
      added: keys that the task's config lacks.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for name in without:
            del config[name]
        config.update(added)
        config.variants = ConfigDict(variants, allow_dotted_keys=True, sort_keys=False)
    return config


def fine_tune_all(config: ConfigDict, workdir: epath.Path, task: ConfigDict | None = None) -> Result:
    """The runs of a sweep, without a table or a results.json of their own.

    WORKDIR/NAME[/VARIANT]/seedN are the runs. WORKDIR/runs.json lists them before the first one starts, as {'dataset',
    'variant', 'seed', 'path'}, and after them those of earlier commands that are still there. WORKDIR/predictions has
    the predictions of each set's run with the best dev score. A data set that cannot be used is left out and named, and
    so is a run that diverges; the others go on.

    Args:
      task: the config with which the workdir is opened, once all checks are passed; None: it is open.

    Returns:
      The scores of all runs; facts `train_examples`, data set -> variant -> number; `glue_average`, variant -> average
      of the medians, if all nine tasks are there; `left_out`, data set, or path of its variant or run -> why.

    Raises:
      UserError: no data set can be used, a variant does not fit the config, or the workdir holds one of the runs with
        another config, or those of another task or model; before anything is trained or written.
    """
    started = time.monotonic()
    found, left_out = _uris(config)
    left_out = {path: why for of_process in peers.agree(left_out) for path, why in of_process.items()}
    uris = {name: uri for name, uri in found.items() if name not in left_out}
    _log_left_out(left_out)
    configs = {  # all, before one is trained
        _path(name, variant, f'seed{seed}'): (name, variant, _run_config(config, name, uri, variant, seed))
        for name, uri in uris.items()
        for variant in config.variants or ['']
        for seed in range(config.seeds)
        if _path(name, variant) not in left_out
    }
    if not configs:
        too_small = found.keys() == {*config.datasets}  # all are there
        raise none_usable(left_out, fix='Lower --config.data.batch_size, or use more examples.' if too_small else '')
    for path, (*_, run_config) in configs.items():
        check_workdir(run_config, workdir / path)
    earlier = [entry for entry in _earlier_runs(workdir) if entry['path'] not in configs]
    if task:
        _check_earlier(task, workdir, earlier)
        open_workdir(task, workdir, write=is_writer())
    if is_writer():
        entries = [
            {'dataset': name, 'variant': variant, 'seed': run_config.seed, 'path': path}
            for path, (name, variant, run_config) in configs.items()
        ]
        write_json(workdir / 'runs.json', entries + earlier)
    outcomes = _run_all({path: one for path, (*_, one) in configs.items()}, workdir, config.workers)
    runs = {}
    for path, (name, variant, _) in configs.items():
        if isinstance(outcome := outcomes[path], DivergedError):
            left_out[path] = str(outcome)
        else:
            runs[name, variant, workdir / path] = outcome
    if not runs:
        reason = next(reversed(left_out.values())).rstrip('.')
        raise UserError(f'datasets: Every run has diverged ({reason}). Lower optimizer.learning_rate.')
    if is_writer():
        _copy_predictions(runs, workdir)
    scores, examples = [], {}
    for (name, variant, _), result in runs.items():
        scores += [dataclasses.replace(score, variant=variant) for score in result.scores]
        examples.setdefault(name, {})[variant] = result.facts['train_examples']
    first, *others = (result.model for result in runs.values())
    return Result(
        task=config.task,
        scores=scores,
        model=first if all(model == first for model in others) else None,
        facts={'train_examples': examples, 'glue_average': _glue_averages(scores), 'left_out': left_out},
        config=as_json(config),
        seconds=time.monotonic() - started,
    )


def check_runs(config: ConfigDict, names: Sequence[str], workdir: epath.Path) -> None:
    """Raises UserError for what can be refused before models and data are read; checks the runs on `names` only."""
    if not config.datasets:
        raise none_usable({})
    for name in config.datasets:
        check_choice('datasets', name, REGISTRY)
    for name, variant, seed in itertools.product(names, config.variants or [''], {0, config.seeds - 1}):
        one = _run_config(config, name, uri_of(REGISTRY[name], config.data.source) or '', variant, seed)
        check_workdir(one, workdir / _path(name, variant, f'seed{seed}'))


def _earlier_runs(workdir):
    """The entries of runs.json whose runs have begun."""
    path = workdir / 'runs.json'
    entries = read_json(path, [RUN], 'Delete it: it is written anew.') if exists(path) else []
    return [entry for entry in entries if exists(workdir / entry['path'] / 'config.json')]


def _check_earlier(config, workdir, earlier):
    """Raises UserError if the earlier runs, which the report shows together with those of this config, do not belong
    with these. The report shows their other settings beside them."""
    in_common = lambda of: {key: of[key] for key in _IN_COMMON if key in of}
    path = workdir / 'config.json'
    if earlier and exists(path) and (found := compare(in_common(read_json(path)), in_common(as_json(config)))):
        words = '; '.join(f'{key}: {old!r} there, {new!r} now' for key, (old, new) in found.items())
        raise UserError(f'{workdir}: It holds runs that do not belong with these ({words}). Name another --workdir.')


def _run_all(configs, workdir, workers):
    """Path -> result of the run, or DivergedError. configs: path -> config."""
    progress = Progress(len(configs), 0, 'fine-tuning', unit='run', show=is_writer())
    progress.update(0)
    outcomes = {}
    for path in configs:
        if exists(workdir / path / 'results.json'):
            outcomes[path] = _fine_tune(configs[path], workdir / path, False)
            progress.resume(len(outcomes))
    left = {path: (one, workdir / path, is_writer()) for path, one in configs.items() if path not in outcomes}
    bases = {one.init_from for one, *_ in left.values()}
    for base in bases:
        store.warn_unless_finished(base)
    models = lambda: map(store.open_model, bases)
    workers = side_by_side.number(workers, len(left), lambda: max(one.architecture.sizes['width'] for one in models()))
    for path, outcome in side_by_side.each(_fine_tune, left, workers):
        outcomes[path] = outcome
        if isinstance(outcome, DivergedError):
            logging.error('%s is left out: %s', path, outcome)
        progress.update(len(outcomes))
    progress.close()
    return outcomes


def _fine_tune(config, folder, write):
    """The result, or DivergedError. write: whether this process writes there."""
    logging.info('fine-tuning in %s', folder)
    try:
        with lock.hold(folder, write=write):
            return finetune.run(config, folder)
    except DivergedError as error:
        return error.with_traceback(None)  # the traceback would keep the run's state in memory


def _log_left_out(left_out):
    """Logs all that is left out at once: first mistakes, then what is not there."""
    if left_out:
        ordered = sorted(left_out.items(), key=lambda item: item[1].endswith(_ABSENT))
        reasons = [f'{name}: {reason}' for name, reason in ordered[:_MOST_NAMED]]
        more = len(left_out) - len(reasons)
        reasons += [f'and {more} more'] if more else []
        logging.warning('%d data sets, or variants of one, are left out:\n  %s', len(left_out), '\n  '.join(reasons))


def _path(*parts):
    """NAME[/VARIANT[/seedN]], or NAME/seedN without variants."""
    return '/'.join(filter(None, parts))


def _uris(config):
    """(data set -> its source URI; data set or path of its variant -> why it cannot be used), found out before anything
    is trained."""
    uris, left_out, directory, unknown = {}, {}, config.data.source.partition(':')[2], []
    check_runs(config, (), epath.Path())
    for number, name in enumerate(config.datasets, 1):
        logging.info('looking for mistakes in the data: %s, %d of %d', name, number, len(config.datasets))
        dataset = REGISTRY[name]
        uri = uri_of(dataset, config.data.source)
        if uri is None:
            left_out[name] = f'{directory} {_ABSENT}'
            unknown = unknown_folders(directory)
            continue
        try:
            examples = count_training_examples(dataset, uri, config.data.download)
        except UserError as error:
            left_out[name] = str(error)
            continue
        uris[name] = uri
        for variant in config.variants or ['']:
            if why := cost.too_few(_run_config(config, name, uri, variant, 0).data, examples):
                left_out[_path(name, variant)] = why
    if unknown:
        names = ', '.join(unknown[:_MOST_NAMED])
        logging.warning('%s: No known data set has the folder %s. Name each after its data set.', directory, names)
    return uris, left_out


def _run_config(config, name, uri, variant, seed):
    """The config of one run, equal to one that `finetune` alone would be given."""
    overrides, run_config = config.variants.to_dict().get(variant, {}), config.copy_and_resolve_references()
    with run_config.unlocked():
        del run_config.datasets, run_config.seeds, run_config.variants, run_config.workers
    run_config.update(task='finetune', seed=config.seed + seed, data=dict(dataset=name, source=uri))
    run_config.lock()  # no new keys
    try:
        run_config.update(overrides)
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            f'variants.{variant}: {overrides} does not fit the config of a run. Use its keys and their types.'
        ) from None
    check(run_config)
    finetune.check(run_config, REGISTRY[name])
    return run_config


def _copy_predictions(runs, workdir):
    """Copies the predictions of each data set's run with the best dev score, the first of equal ones."""
    for name in dict.fromkeys(name for name, _, _ in runs):
        dev = {
            path: result.value(split='dev', subset='', metric=REGISTRY[name].metrics[0], checkpoint='best')
            for (dataset, _, path), result in runs.items()
            if dataset == name
        }
        for source in (max(dev, key=dev.get) / 'predictions').glob('*'):
            make_directory(workdir / 'predictions')
            source.copy(workdir / 'predictions' / source.name, overwrite=True)


def _glue_averages(scores):
    """Variant -> GLUE's average of the medians, if all of its tasks are there."""
    medians = {}
    for (name, variant, split, subset, metric), of in summary(scores).items():
        medians.setdefault(variant, {}).setdefault(name, {})[paper_key(split, metric, subset)] = of['median']
    return {variant: average for variant, of in medians.items() if (average := paper.glue_average(of)) is not None}


def summary(scores: list[Score], split: str = 'dev') -> dict[tuple[str, str, str, str, str], dict]:
    """The scores of all seeds: (dataset, variant, split, subset, metric) -> {'median', 'best', 'worst', 'last',
    'runs'}: of each run's best checkpoint, but 'last' is the median at the last checkpoint, or None.

    split: beginning of the names of the splits.
    """
    values = {}
    for score in scores:
        if score.split.startswith(split):
            key = (score.dataset, score.variant, score.split, score.subset, score.metric)
            values.setdefault(key, {'best': [], 'last': []})[score.checkpoint].append(score.value)
    return {
        key: {
            'median': statistics.median(of['best']),
            'best': max(of['best']),
            'worst': min(of['best']),
            'last': statistics.median(of['last']) if of['last'] else None,
            'runs': len(of['best']),
        }
        for key, of in values.items()
    }


def format_scores(result: Result) -> str:
    """The table of a sweep, scores in per cent."""
    percent = lambda value: None if value is None else 100 * value
    entries = []
    for (name, variant, split, subset, metric), of in summary(result.scores).items():
        label = paper_key(split, metric, subset)
        entries.append(
            (
                name,
                variant,
                label,
                result.facts['train_examples'][name][variant],
                of['runs'],
                *(percent(of[key]) for key in ('median', 'best', 'worst', 'last')),
                *REGISTRY[name].paper.get(label, (None, None)),
            )
        )
    for variant, average in result.facts['glue_average'].items():
        entries.append(
            ('GLUE', variant, 'average', None, None, percent(average), None, None, None, *paper.GLUE_AVERAGE)
        )
    columns = [
        ('data set', 13, ''),
        ('variant', 13, ''),
        ('metric', 21, ''),
        ('train', 7, 'd'),
        ('runs', 5, 'd'),
        *((name, 8, '.1f') for name in ('median', 'best', 'worst', 'median', 'GPT', 'before')),
    ]
    if not any(entry[1] for entry in entries):
        columns, entries = columns[:1] + columns[2:], [entry[:1] + entry[2:] for entry in entries]
    table = format_table(columns, entries)
    above = f'{"dev, best epoch":^32}{"last":>8}{"paper, test":>20}'
    return '\n'.join(
        [
            f'{above:>{table.index(chr(10)) + 2}}',
            table,
            *(f'{name}: left out: {reason}' for name, reason in result.facts['left_out'].items()),
        ]
    )
