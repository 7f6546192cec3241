"""Sections: learning curves of pre-training and fine-tuning, and how well the language models predict text."""

import statistics
from collections.abc import Iterable, Sequence

from gpt1_jax.report.blocks import Block, Figure, Gap, Heading, Paper, Table, fixed, percent, whole
from gpt1_jax.report.collect import Line, Run, origin, other_vocabularies
from gpt1_jax.report.figures import Axes, Curve, panel, thin

_POINTS = 60  # of a curve
_ENTRIES = 10  # of a curve in a table
_PAPERS_PERPLEXITY = '18.4'  # of a token, on BooksCorpus (Radford et al. 2018, section 4.1)


def pretraining(runs: Sequence[Run]) -> list[Block]:
    """Losses over tokens, with a panel per vocabulary; perplexities; zero-shot scores during training."""
    trained = [run for run in runs if run.task == 'pretrain' and run.metrics]
    blocks = [*_pretraining_figure(trained), *_setbacks(trained), *_perplexities(runs), *_meanwhile(trained)]
    return [Heading('Pre-training'), *blocks] if blocks else []


def _pretraining_figure(runs) -> Iterable[Block]:
    groups, panels, entries = {}, [], []
    for run in runs:
        groups.setdefault(run.vocabulary, []).append(run)
    for number, (vocabulary, of) in enumerate(groups.items()):
        curves = []
        for look, run in enumerate(of):
            state = '' if run.result else ' (not finished)'
            for key, words in (('valid_loss', 'held out'), ('loss', 'train')):
                x, y = _series(run, key)
                if x:
                    train = key == 'loss'
                    points = thin(x, y, _POINTS, log=True)
                    label = f'{run.label}{state}, {words}'
                    curves.append(Curve(label, *points, look, dashed=train, points=not train))
            entries += _losses_at_evaluations(run)
        title = f'vocabulary {vocabulary or "unknown"}'
        panels.append(panel(f'pretrain{number}', Axes(title, 'tokens', 'loss, nats a token', log=True), curves))
    if panels:
        columns = ('run', 'updates', 'tokens', 'train loss', 'held-out loss', 'held-out perplexity')
        caption = (
            'Pre-training: loss over tokens (log axis), held out solid, train dashed (means of neighbouring updates). '
            'Losses of different vocabularies are of different tokens, so each has a panel.'
        )
        yield Figure(caption, panels, Table('', columns, entries, ('Train loss: of the update nearest before.',)))


def _setbacks(runs) -> Iterable[Block]:
    """Updates of the finished runs that changed nothing, and ranges of batches that were left out."""
    entries = []
    for run in runs:
        rollbacks = run.facts.get('rollbacks') or ()
        back = [(whole(one['step']), f'{one["batches"][0]:,} to {one["batches"][1] - 1:,}') for one in rollbacks]
        if back or run.facts.get('skipped_steps'):
            skipped = whole(run.facts.get('skipped_steps'))
            entries += [(run.label, skipped, *one) for one in back or [('', '')]]
    if entries:
        notes = (
            'Skipped: loss or gradient was not finite, so the update changed nothing. When the loss diverged, the run '
            'went back to a checkpoint and left out the batches that had led there.',
        )
        columns = ('run', 'skipped updates', 'went back to update', 'without batches')
        yield Table('Skipped updates and divergence', columns, entries, notes)


def _tokens_a_step(run):
    return run.setting('data.batch_size', 0) * run.setting('model.n_positions', 0)


def _series(run, key):
    """(tokens, values) of a metric, without those before the first update, which a logarithmic axis cannot show."""
    found = [(line['step'] * _tokens_a_step(run), line[key]) for line in run.metrics if key in line and line['step']]
    return tuple(zip(*found)) or ((), ())


def _losses_at_evaluations(run) -> Iterable[tuple]:
    """At most _ENTRIES evaluations, evenly spread, the last among them."""
    evaluations = [line for line in run.metrics if 'valid_loss' in line]
    logged = [line for line in run.metrics if 'loss' in line]
    for line in _some(evaluations):
        before = [other['loss'] for other in logged if other['step'] <= line['step']]
        perplexity = line.get('valid_perplexity')
        yield (
            *(run.label, whole(line['step']), whole(line['step'] * _tokens_a_step(run))),
            *(fixed(before[-1], 3) if before else None, fixed(line['valid_loss'], 3), fixed(perplexity, 2)),
        )


def _some(items):
    """At most _ENTRIES of them, evenly spread, the last among them."""
    n = min(len(items), _ENTRIES)
    return [items[(i + 1) * len(items) // n - 1] for i in range(n)]


def _perplexities(runs) -> Iterable[Block]:
    """The perplexities of the held-out part and of other texts."""
    entries, vocabularies = [], {}
    for run in runs:
        if run.task not in ('pretrain', 'evaluate_text') or not run.result:
            continue
        first = origin(run, runs) if run.task == 'evaluate_text' else run
        vocabulary = vocabularies[(first or run).name] = first.vocabulary if first else ''
        for score in run.result.select(metric='perplexity'):
            same = dict(split=score.split, checkpoint=score.checkpoint)
            loss, words = (next(run.result.select(metric=name, **same), None) for name in ('loss', 'word_perplexity'))
            entries.append(
                (
                    *(
                        run.label,
                        f'{score.dataset}, {score.split}',
                        score.checkpoint,
                        whole(score.step) if score.checkpoint else '',
                    ),
                    *(whole(score.examples), loss and fixed(loss.value, 3), fixed(score.value, 2)),
                    *(fixed(words.value, 1) if words else '', vocabulary or None),
                )
            )
    if not entries:
        return
    entries.append(('paper', Paper('BooksCorpus'), *[''] * 4, Paper(_PAPERS_PERPLEXITY), '', Paper('40,000 merges')))
    yield Table(
        'How well the models predict text',
        ('run', 'text', 'checkpoint', 'updates', 'tokens', 'loss', 'perplexity', 'of a word', 'vocabulary'),
        entries,
        (
            'A perplexity is per token of its vocabulary: those of two vocabularies or two texts are not comparable, '
            f"and none is comparable with the paper's.{other_vocabularies(list(vocabularies.values()))}",
        ),
    )


def _meanwhile(runs) -> Iterable[Block]:
    """Zero-shot scores that were logged during pre-training."""
    panels, entries = [], []
    for number, run in enumerate(runs):
        names = sorted({key for line in run.metrics for key in line if key.startswith('zero_shot_')})
        curves = []
        for look, key in enumerate(names):
            dataset = key.removeprefix('zero_shot_')
            points = [(line['step'], line[key]) for line in run.metrics if key in line]
            x, y = zip(*points)
            curves.append(Curve(dataset, x, [100 * value for value in y], look))
            entries += [(run.label, dataset, whole(step), percent(value)) for step, value in _some(points)]
        if curves:
            panels.append(panel(f'meanwhile{number}', Axes(run.label, 'updates', 'score, per cent', log=True), curves))
    if panels:
        caption = 'Zero-shot scores during pre-training, raw: of CoLA the Matthews correlation, else the accuracy.'
        yield Figure(caption, panels, Table('', ('run', 'set', 'updates', 'score'), entries))


# ----------------------------------------------------------------- fine-tuning


def fine_tuning(lines: Sequence[Line]) -> list[Block]:
    """Task loss and dev score over updates, for each sweep and set."""
    owners = {}
    for line in lines:
        if any(run.metrics for run in line.runs):
            owners.setdefault(line.owner.name, {}).setdefault(line.dataset, []).append(line)
    blocks = []
    for number, of in enumerate(owners.values()):
        panels, entries = [], []
        for dataset, group in of.items():
            name = f'tune{number}{dataset}'
            panels += _two_panels(name, dataset, group)
            entries += map(_ends, group)
        label = next(iter(of.values()))[0].owner.label
        loss, dev = ('task loss, first', 'task loss, last'), ('dev, first', 'dev, best', 'dev, last')
        columns = ('set', 'row', 'runs', 'updates', *loss, *dev)
        caption = (
            f'{label}: task loss and dev score over updates, the median over seeds, and as a band all seeds, up to '
            'where the first of them ends.'
        )
        mnli = '; of MNLI on matched' * ('mnli' in of)
        notes = (
            'Medians over seeds, each with its own first, best and last; the score is the first metric of the set, in '
            f'per cent{mnli}.',
        )
        blocks.append(Figure(caption, panels, Table('', columns, entries, notes)))
    blocks += _setbacks(run for line in lines for run in line.runs)
    if lines and not blocks:
        blocks = [Gap('No run of fine-tuning has logged anything.')]
    return [Heading('Learning curves of fine-tuning'), *blocks] if blocks else []


def _two_panels(name, dataset, lines) -> Iterable[str]:
    for key, words, factor in (('task_loss', 'task loss', 1), ('dev_score', 'dev score, per cent', 100)):
        curves = []
        for look, line in enumerate(lines):
            over = _over_seeds(line, key)
            if over:
                x, low, middle, high = ([factor * v for v in column] for column in zip(*over))
                x = [step for step, *_ in over]
                (x, low), (_, middle), (_, high) = (thin(x, y, _POINTS) for y in (low, middle, high))
                curves.append(Curve(line.variant or line.label, x, middle, look, low, high, points=key == 'dev_score'))
        if curves:
            yield panel(f'{name}{key}', Axes(dataset, 'updates', words), curves)


def _logged(line, key) -> list[dict[float, float]]:
    """Update -> value, for each run that has logged it: the finished runs, or if there are none the others."""
    found = [{one['step']: one[key] for one in run.metrics if key in one} for run in line.finished or line.runs]
    return [of for of in found if of]


def _over_seeds(line, key) -> list[tuple[float, float, float, float]]:
    """(update, lowest, median, highest), up to where the first of the runs ends: there the median would jump."""
    logged = _logged(line, key)
    end, over = min((max(of) for of in logged), default=0), []
    for step in sorted({step for of in logged for step in of if step <= end}):
        values = [of[step] for of in logged if step in of]
        over.append((step, min(values), statistics.median(values), max(values)))
    return over


def _ends(line):
    """The numbers of a row: medians over the runs of each one's first, last and best value."""
    loss, dev = ([list(of.values()) for of in _logged(line, key)] for key in ('task_loss', 'dev_score'))
    last = max((entry['step'] for run in line.runs for entry in run.metrics), default=None)
    median = lambda runs, of: statistics.median(map(of, runs)) if runs else None
    first, end = (lambda values: values[0]), (lambda values: values[-1])
    return (
        *(line.dataset, line.variant or line.label, f'{len(line.finished)} of {line.planned}', whole(last)),
        *(fixed(median(loss, of), 3) for of in (first, end)),
        *(percent(median(dev, of)) for of in (first, max, end)),
    )
