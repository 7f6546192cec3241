"""Sections: the scores of fine-tuning beside tables 2 to 4 of the paper, and table 5."""

import statistics as plain
from collections.abc import Iterable, Sequence

from gpt1_jax.data.labelled.registry import REGISTRY, SUITES
from gpt1_jax.evaluation.paper import GLUE_AVERAGE, TABLE_5, glue_average, in_every_row, table_5_average
from gpt1_jax.report import rows
from gpt1_jax.report.blocks import (
    Block,
    Gap,
    Heading,
    Paper,
    Table,
    Text,
    fixed,
    percent,
    signed,
    span,
    whole,
    whole_span,
)
from gpt1_jax.report.collect import Line, Run, other_vocabularies
from gpt1_jax.report.overview import STUDIES, part_of
from gpt1_jax.report.results import paper_key
from gpt1_jax.report.statistics import Difference, mean_difference, spread

# Table of the paper -> its sets; other sets come after these.
_TABLES = {
    'Natural language inference (table 2)': ('mnli', 'snli', 'scitail', 'qnli', 'rte'),
    'Question answering and commonsense reasoning (table 3)': ('story_cloze', 'race'),
    'Classification and similarity (table 4)': ('cola', 'sst2', 'mrpc', 'stsb', 'qqp'),
}
_NOTES = {
    'Natural language inference (table 2)': (
        'QNLI: the paper used its first version, with other pairs and splits; only the second is distributed today.',
    )
}
_ROWS_OF_TABLE_5 = {
    'full': 'full (transformer, auxiliary LM)',
    'no_pretraining': 'no pre-training',
    'no_auxiliary': 'no auxiliary LM',
    'lstm': 'LSTM, auxiliary LM',
}
_PARTIAL = '\N{DAGGER}'


def fine_tuning(runs: Sequence[Run], lines: Sequence[Line]) -> list[Block]:
    """Tables 2 to 4, other sets, differences of the variants of a sweep, and other evaluations."""
    lines = [line for line in lines if line.owner.task not in STUDIES]
    if not lines:
        return _evaluations(runs)
    blocks = [
        Heading('Fine-tuning scores beside the paper'),
        Text(
            'In per cent. Ours: on dev, of the best epoch by the first metric of each set, the median over seeds and '
            'the lowest to the highest; and "test", the median of the same epochs on test, where its labels are known. '
            'The paper: on test, which a score on dev is not: the epoch was chosen on that dev set. "Before": the best '
            'system before the paper, as it gives it.'
        ),
    ]
    others = tuple(
        dict.fromkeys(line.dataset for line in lines if not any(line.dataset in t for t in _TABLES.values()))
    )
    for caption, names in {**_TABLES, 'Other sets': others}.items():
        if not any(line.dataset in names for line in lines):
            continue
        entries = [entry for name in names for entry in _entries(name, [ln for ln in lines if ln.dataset == name])]
        blocks.append(_table(caption, entries + list(_glue(lines) if caption.endswith('(table 4)') else [])))
    pairs = []
    for first, *rest in _by_set(lines).values():
        pairs += [(first, other) for other in rest]
    if pairs:
        blocks += [Heading('Differences between variants', 3), *rows.comparisons('', pairs)]
    return blocks + _evaluations(runs)


def _table(caption, entries):
    return Table(
        caption,
        (
            *('set', 'metric', 'run', 'training examples', 'seeds', 'median', 'spread', 'standard error'),
            *('one answer', 'test', 'paper', 'before'),
        ),
        entries,
        (
            f'{_PARTIAL}: a partial training set. Standard error: of one score, if the dev examples were drawn anew; '
            'by the formula for an accuracy, by the bootstrap for other metrics. One answer: the best score of one and '
            'the same answer to all dev examples.',
            *_NOTES.get(caption, ()),
        ),
    )


def _by_set(lines) -> dict[tuple[str, str], list[Line]]:
    """The finished rows of each sweep and set."""
    groups = {}
    for line in lines:
        if line.finished:
            groups.setdefault((line.owner.name, line.dataset), []).append(line)
    return groups


def _entries(name, lines) -> Iterable[tuple]:
    """The entries of one set: each metric of each row; the paper's metrics that no run has, as gaps."""
    published = REGISTRY[name].paper if name in REGISTRY else {}
    seen = set()
    for line in lines:
        dataset = rows.dataset_of_run(line.finished[0]) if line.finished else None  # each custom set differs
        on_test = rows.best_scores(line, 'test')
        for key, scores in rows.best_scores(line).items():
            metric = paper_key(*key)
            seen.add(metric)
            values = spread([score.value for score in scores])
            error = rows.standard_error(line, scores)
            first = dataset is not None and key == ('dev', dataset.metrics[0], '')
            tested = on_test.get((key[0].replace('dev', 'test', 1), *key[1:]))
            yield (
                *(name, metric, line.label, _examples([line]), _seeds(values.runs, line)),
                *(*rows.spread_cells(values), percent(error), percent(rows.constant(line)) if first else ''),
                percent(plain.median(score.value for score in tested)) if tested else '',
                *_papers(published.get(metric)),
            )
    for metric in published:
        if metric not in seen:
            yield (name, metric, *[None] * 8, *_papers(published[metric]))


def _seeds(runs, line):
    """How many runs have a score, and of how many if others are still to come."""
    return f'{runs} of {line.planned}' if runs < line.planned else whole(runs)


def _examples(lines):
    """How many training examples were used, with a mark if these are not all."""
    runs = [run for line in lines for run in line.finished]
    numbers = whole_span(run.facts['train_examples'] for run in runs if 'train_examples' in run.facts)
    mark = any(part_of(run).startswith('partial') for run in runs)
    return numbers and numbers + f' {_PARTIAL}' * mark


def _papers(numbers):
    """Cells of the paper's numbers, in per cent."""
    return ['' if value is None else Paper(fixed(value, 1)) for value in numbers or (None, None)]


def _glue(lines) -> Iterable[tuple]:
    """GLUE's average of the medians, for each variant of a sweep that has all nine tasks."""
    groups = {}
    for line in lines:
        if line.finished:
            groups.setdefault((line.owner.name, line.variant), []).append(line)
    found = False
    for of in groups.values():
        medians = {
            line.dataset: {
                paper_key(*key): plain.median(score.value for score in scores)
                for key, scores in rows.best_scores(line).items()
            }
            for line in of
        }
        average = glue_average(medians)
        if average is not None:
            found = True
            of = [line for line in of if line.dataset in SUITES['glue']]
            seeds = ', '.join(dict.fromkeys(_seeds(len(line.finished), line) for line in of))
            row = 'GLUE', 'average', of[0].label, _examples(of), seeds, percent(average), '', '', '', ''
            yield *row, *_papers(GLUE_AVERAGE)
    if not found:
        yield 'GLUE', 'average', *[None] * 8, *_papers(GLUE_AVERAGE)


def _evaluations(runs) -> list[Block]:
    """Scores of the task evaluate, which are of one checkpoint on one split."""
    entries = [
        (run.label, score.dataset, score.split, paper_key('', score.metric, score.subset), whole(score.examples))
        + (percent(score.value),)
        for run in runs
        if run.task == 'evaluate' and run.result
        for score in run.result.scores
    ]
    columns = ('run', 'set', 'split', 'metric', 'examples', 'score')
    return [Heading('Other evaluations'), Table('', columns, entries)] if entries else []


# ----------------------------------------------------------------- table 5


def table_5(lines: Sequence[Line]) -> list[Block]:
    """Each ablation beside the paper's, and the difference of each row from the full method."""
    studies = {}
    for line in lines:
        if line.study == 'table5':
            studies.setdefault(line.owner.name, []).append(line)
    blocks = []
    for of in studies.values():
        finished = any(line.finished for line in of)
        blocks += _ablation(of) if finished else [Gap(f'{of[0].owner.label}: no run of it is finished.')]
    return [Heading('Ablations (table 5)'), *blocks] if blocks else []


def _ablation(lines) -> Iterable[Block]:
    table = {}
    for line in lines:
        table.setdefault(line.variant, {})[line.dataset] = line
    columns = [*TABLE_5['full'], *dict.fromkeys(line.dataset for line in lines if line.dataset not in TABLE_5['full'])]
    found = {row: {name: rows.first_metric(line) for name, line in of.items()} for row, of in table.items()}
    found = {row: {name: one for name, one in of.items() if one} for row, of in found.items()}
    shared = in_every_row({row: of for row, of in found.items() if of})
    averaged = [name for name in columns if name in shared]
    entries = []
    for row in dict.fromkeys([*TABLE_5, *found]):
        of = found.get(row, {})
        average = plain.mean(of[name].median for name in averaged) if averaged and of else None
        text = lambda one: f'{percent(one.median)} ({span(one.low, one.high)})' if one.runs > 1 else percent(one.median)
        words = _ROWS_OF_TABLE_5.get(row, row)
        entries.append((words, percent(average), *(text(of[name]) if name in of else None for name in columns)))
        if published := TABLE_5.get(row):
            average = table_5_average(row, averaged)
            entries.append((f'paper: {words}', *_papers((average, *map(published.get, columns)))))
    constants = {line.dataset: one for line in lines if (one := rows.constant(line)) is not None}
    average = (
        plain.mean(constants[name] for name in averaged) if averaged and constants.keys() >= set(averaged) else None
    )
    entries.append(('one answer to all', percent(average), *(percent(constants.get(name)) for name in columns)))
    yield Table(
        f'{lines[0].owner.label}, in per cent',
        ('', 'average', *columns),
        entries,
        (
            'Ours: on dev, medians over seeds (and the lowest to the highest), the first metric of each set'
            f'{rows.of_mnli(lines)}. The paper: on test, of MNLI the mean of matched and mismatched. Averages: over '
            f'the sets that every row of ours has, each once: {", ".join(averaged) or "none"}. One answer: the best '
            'score of one and the same answer to all dev examples, of MNLI the matched ones.',
            _models(lines),
        ),
    )
    yield from _against_full(f'{lines[0].owner.label}: differences from the full method', table, columns)


def _models(lines):
    """What the rows' models are, and whether they share a vocabulary."""
    runs = {_ROWS_OF_TABLE_5.get(line.variant, line.variant): line.finished[0] for line in lines if line.finished}
    words = [f'{row}: {run.model_words}, vocabulary {run.vocabulary or "unknown"}' for row, run in runs.items()]
    return f'Models. {"; ".join(words)}.{other_vocabularies([run.vocabulary for run in runs.values()])}'


def _against_full(caption, table, columns) -> Iterable[Block]:
    """Each row less the full one, with the paper's difference."""
    full, entries, gaps = table.get('full', {}), [], []
    for row in [name for name in table if name != 'full']:
        found = {}
        for name in columns:
            pair = table[row].get(name), full.get(name)
            if all(line and line.finished for line in pair):
                one = rows.compare(*pair)
                if isinstance(one, Difference):
                    found[name] = one
                else:
                    gaps.append(Gap(f'{pair[0].label}, {name}: no difference from full: {one}.'))
        if not found:
            continue
        words = f'{_ROWS_OF_TABLE_5.get(row, row)} less full'
        for name, one in (*found.items(), ('average', mean_difference(list(found.values())))):
            on = 'average' + ', of mnli matched' * ('mnli' in found) if name == 'average' else rows.compared_set(name)
            entries.append((words, on, *rows.cells(one), _papers_difference(row, name, found)))
    if entries:
        yield Table(
            caption,
            ('rows', 'set', *rows.COLUMNS, 'paper'),
            entries,
            (rows.HOW, "The average is over the sets above it. The paper's is of both test sets of MNLI."),
        )
    yield from gaps


def _papers_difference(row, name, found):
    """The paper's row less its full one, on a set or on the average of those in `found`."""
    ours, full = (table_5_average(one, found if name == 'average' else [name]) for one in (row, 'full'))
    return '' if ours is None else Paper(signed((ours - full) / 100))
