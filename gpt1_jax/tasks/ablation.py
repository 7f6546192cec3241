"""Parts of the method left out or varied, over many data sets (Radford et al. 2018, table 5)."""

import statistics
from collections.abc import Sequence

from absl import logging
from etils import epath
from ml_collections import ConfigDict

from gpt1_jax.config import check_choice
from gpt1_jax.data.labelled.registry import REGISTRY
from gpt1_jax.errors import UserError
from gpt1_jax.evaluation.paper import TABLE_5, in_every_row, table_5_average
from gpt1_jax.report.blocks import whole_span
from gpt1_jax.report.results import Result, first_metric, of_mnli, of_runs
from gpt1_jax.report.tables import format_table
from gpt1_jax.saved_models import store
from gpt1_jax.tasks import sweep


def run(config: ConfigDict, workdir: epath.Path) -> Result:
    """Fine-tunes on each of `config.datasets` in each variant of `config.study`; prints a table.

    Scores, facts and files are those of `sweep.fine_tune_all`. More facts: `averaged`, the sets that every variant has;
    `averages`, variant -> its average over these; `notes`, what a reader of the table must know. WORKDIR/table.txt is
    the table.
    """
    runs = _runs(config)
    notes = _compare_models(config) if config.study == 'table5' else []
    result = sweep.fine_tune_all(runs, workdir, config)
    rows = {variant: {name: median for name, (median, _) in of.items()} for variant, of in of_sets(result).items()}
    averaged = in_every_row(rows)
    result.facts |= {
        'averaged': averaged,
        # By the rule of table 5: each set counts once, with its first metric.
        'averages': {
            variant: statistics.mean(map(of.get, averaged)) if averaged else None for variant, of in rows.items()
        },
        'notes': notes,
    }
    return sweep.finish(config, workdir, result, format_scores(result, list(runs.variants)))


def check(config: ConfigDict, names: Sequence[str], workdir: epath.Path) -> None:
    """See sweep.check_runs."""
    sweep.check_runs(_runs(config), names, workdir)


def _runs(config):
    """The config for `sweep.fine_tune_all`."""
    check_choice('study', config.study, _STUDIES)
    without = ('study', 'lstm_from', 'coefficients', 'shares')
    return sweep.with_variants(config, _STUDIES[config.study](config), without=without, n_transfer=None, rest='fresh')


def _table5(config):
    variants = {'full': {}, 'no_pretraining': {'n_transfer': -1}, 'no_auxiliary': {'lm_coefficient': 0.0}}
    return variants | ({'lstm': {'init_from': config.lstm_from}} if config.lstm_from else {})


def _lambda(config):
    named = _named('coefficients', config.coefficients)
    return {f'lambda{name}': {'lm_coefficient': float(value)} for name, value in named.items()}


def _share(config):
    variants = {}
    for name, share in _named('shares', config.shares).items():
        data = {'share': float(share)}
        variants |= {f'share{name}': {'data': data}, f'share{name}_scratch': {'data': data, 'n_transfer': -1}}
    return variants


def _named(key, values):
    """Name -> value."""
    if not values:
        raise UserError(f'{key}: It is empty. Give at least one, such as 0.5.')
    named = {}
    for value in values:
        if named.setdefault(f'{value:g}', value) != value:
            raise UserError(f'{key}: {named[f"{value:g}"]} and {value} are too similar. Leave one of them out.')
    return named


_STUDIES = {'table5': _table5, 'lambda': _lambda, 'share': _share}  # config -> variant -> changed keys of its runs


def _compare_models(config) -> list[str]:
    """What a reader of table 5 must know. Raises UserError if a model is not of the kind of its row."""
    transformer = _open('init_from', config, 'transformer')
    if not config.lstm_from:
        return ['lstm: left out: lstm_from is empty.']
    lstm = _open('lstm_from', config, 'lstm')
    if lstm.tokenizer.fingerprint == transformer.tokenizer.fingerprint:
        return []
    note = 'lstm: Its vocabulary is not that of the other rows, so they are not fully comparable.'
    logging.warning('%s: %s', config.lstm_from, note)
    return [note]


def _open(key, config, kind):
    saved = store.open_model(config[key])
    if saved.architecture.kind != kind:
        raise UserError(
            f'{key}: {config[key]} is a model of kind {saved.architecture.kind}. Name a run with one of kind {kind}.'
        )
    return saved


def of_sets(result: Result) -> dict[str, dict[str, tuple[float, float]]]:
    """Variant -> data set -> (median over the seeds, best less worst) of the first metric on dev (`first_metric`)."""
    values, found = {}, {}
    for (name, variant, _), scores in of_runs(result.scores).items():
        values.setdefault((name, variant), []).append(first_metric(scores, REGISTRY[name].metrics[0]))
    for (name, variant), of in values.items():
        found.setdefault(variant, {})[name] = statistics.median(of), max(of) - min(of)
    return found


def format_scores(result: Result, variants: Sequence[str]) -> str:
    """A row per variant, scores in per cent, with the spread over seeds and the paper's row of table 5 below it.

    variants: all of them, in their order.
    """
    found, averaged = of_sets(result), result.facts['averaged']
    names, mnli = list(result.facts['train_examples']), of_mnli(of_runs(result.scores).values())
    percent = lambda value: None if value is None else 100 * value
    entries, counted = [], whole_span(of['runs'] for of in sweep.summary(result.scores).values()) or 0
    for variant in variants:
        of = found.get(variant, {})
        medians, spreads = ([percent(of[name][i]) if name in of else None for name in names] for i in range(2))
        entries.append((variant, percent(result.facts['averages'].get(variant)), *medians))
        if result.config['seeds'] > 1:
            entries.append(('  best - worst', None, *spreads))
        if published := TABLE_5.get(variant):
            entries.append(('  paper, test', table_5_average(variant, averaged), *map(published.get, names)))
    columns = [('', 18, ''), ('average', 9, '.1f'), *((name, 8, '.1f') for name in names)]
    return '\n'.join(
        [
            format_table(columns, entries),
            f'On dev, medians of {counted} run(s) at their best epoch; the first metric of each set{mnli}.',
            f'The average is over the sets that every row has: {", ".join(averaged) or "none"}.',
            *result.facts['notes'],
            *(f'{path}: left out: {reason}' for path, reason in result.facts['left_out'].items()),
        ]
    )
