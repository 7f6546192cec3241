"""Sections: figure 2 of the paper (layer transfer, zero-shot scores), and the studies that it leaves open."""

import re
from collections.abc import Iterable, Sequence

from gpt1_jax.evaluation.paper import ZERO_SHOT
from gpt1_jax.report import rows
from gpt1_jax.report.blocks import Block, Figure, Gap, Heading, Paper, Table, Text, fixed, percent, whole
from gpt1_jax.report.collect import Line, Run, origin, other_vocabularies
from gpt1_jax.report.figures import Axes, Curve, panel
from gpt1_jax.report.statistics import Spread, accuracy_error

_LAYERS = re.compile(r'layers(\d+)')
_HEURISTICS = {'start_token': False, 'length_normalised': True, 'condition': 'given'}  # as the paper has them
_LAMBDA = re.compile(r'lambda([\d.e+-]+)')
_SHARE = re.compile(r'share([\d.e+-]+)')
_SHARE_SCRATCH = re.compile(r'share([\d.e+-]+)_scratch')


def layer_transfer(lines: Sequence[Line]) -> list[Block]:
    """Figure 2, left: scores over the number of layers that are transferred."""
    groups = {}
    for line in lines:
        if line.owner.task == 'layer_transfer' and _LAYERS.fullmatch(line.variant):
            run = next(iter(line.finished or line.runs), line.owner)  # the owner's config may be of a later command
            groups.setdefault((run.setting('init_from', ''), run.setting('rest', '')), []).append(line)
    blocks = []
    words = [f'from {source.rstrip("/").rpartition("/")[2]}, other layers {rest}' for source, rest in groups]
    owners = [dict.fromkeys(line.owner.label for line in of) for of in groups.values()]
    for number, (title, of) in enumerate(zip(_titles(words, owners), groups.values())):
        blocks += _layers_figure(f'layers{number}', title, of)
    if groups and not blocks:
        blocks = [Gap('No run of it is finished.')]
    return [Heading('Layer transfer (figure 2, left)'), *blocks] if blocks else []


def _titles(words, labels) -> list[str]:
    """Titles of figures or panels: the words, with the labels of the runs if others have the same words."""
    return [f'{one}: {", ".join(of)}' if words.count(one) > 1 else one for one, of in zip(words, labels)]


def _layers_figure(name, words, lines) -> Iterable[Block]:
    entries, curves, by_set, pairs = [], [], {}, []
    for line in sorted(lines, key=lambda line: _number(_LAYERS, line)):
        by_set.setdefault((line.dataset, line.owner.label), []).append(line)
    several = len(by_set) > len({dataset for dataset, _ in by_set})  # runs of one set
    for look, ((dataset, owner), of) in enumerate(by_set.items()):
        dataset = f'{dataset} ({owner})' if several else dataset
        points = {split: _points(of, _LAYERS, split) for split in ('dev', 'train')}
        for split, found in points.items():
            if found:
                curves.append(_curve(f'{dataset} {split}', found, look, dashed=split == 'train'))
        for line in of:
            n = _number(_LAYERS, line)
            dev, train = (points[split].get(n) for split in ('dev', 'train'))
            entries.append((dataset, whole(n), *rows.spread_cells(dev), *rows.spread_cells(train), *_seeds(line)))
        done = [line for line in of if line.finished]
        pairs += [(done[-1], other) for other in done[:-1]]
    if not curves:
        return
    numbers = Table(
        '',
        ('set', 'layers', 'dev', 'dev, spread', 'train', 'train, spread', 'seeds'),
        entries,
        (
            f'Medians over seeds, the lowest to the highest; in per cent{rows.of_mnli(lines)}. Train: on a part of the '
            'training examples.',
        ),
    )
    axes = Axes(words, 'layers transferred', 'score, per cent')
    yield Figure(
        f'Scores over the number of layers transferred, {words}: dev solid, train dashed; the median over seeds, and '
        "as a band the lowest to the highest. The paper's figure has RACE and MultiNLI over 0 to 12 layers.",
        [panel(name, axes, curves)],
        numbers,
    )
    yield from rows.comparisons('All layers that were tried, less fewer', pairs)


def _number(pattern, line):
    return float(pattern.fullmatch(line.variant)[1])


def _points(lines, pattern, split='dev') -> dict[float, Spread]:
    found = {_number(pattern, line): rows.first_metric(line, split) for line in lines}
    return {x: one for x, one in sorted(found.items()) if one}


def _curve(label, points, look, dashed=False):
    """A curve in per cent. points: x -> Spread."""
    of = lambda name: [100 * getattr(one, name) for one in points.values()]
    return Curve(label, list(points), of('median'), look, of('low'), of('high'), dashed)


def _seeds(line):
    return (f'{len(line.finished)} of {line.planned}',)


# ----------------------------------------------------------------- zero-shot


def zero_shot(runs: Sequence[Run]) -> list[Block]:
    """Figure 2, right: scaled scores over updates; and the raw scores of the last checkpoint."""
    tried = [run for run in runs if run.task == 'zero_shot']
    found = [run for run in tried if run.result and run.result.scores]
    blocks = [Heading('Zero-shot scores (figure 2, right)')]
    if not found:
        return [*blocks, Gap('No run of them is finished.')] if tried else []
    blocks.append(
        Text(
            'Scaled: 0 is chance, 1 the best supervised result of the time; if none is known, only the raw score is '
            'given. The threshold of CoLA is chosen on its train split; the other sets need no labels.'
        )
    )
    names = list(dict.fromkeys(score.dataset for run in found for score in run.result.select(metric='scaled')))
    panels = []
    groups = _panels(found)
    titles = _titles([words for words, _ in groups], [[run.label for run in of] for of in groups.values()])
    for number, (title, of) in enumerate(zip(titles, groups.values())):
        curves = [curve for run in of for curve in _zero_shot_curves(run, names)]
        if any(len(curve.x) > 1 for curve in curves):
            axes = Axes(title, 'updates', 'scaled score', log=True, levels=((0, 'chance'), (1, 'best supervised')))
            panels.append(panel(f'zero{number}', axes, curves))
    numbers = _scaled_table(found, names)
    caption = (
        'Scaled zero-shot scores over updates of pre-training (log axis): transformer solid, LSTM dashed, a colour a '
        f'set. {_models(found, runs)}'
    )
    blocks.append(Figure(caption, panels, numbers) if panels else numbers)
    return [*blocks, _raw_table(found)]


def _models(found, runs):
    """Which models they are, and whether they share a vocabulary."""
    vocabularies = [first.vocabulary if (first := origin(run, runs)) else '' for run in found]
    words = [f'{run.label}: {run.model_words}, vocabulary {of or "unknown"}' for run, of in zip(found, vocabularies)]
    return f'{"; ".join(words)}.{other_vocabularies(vocabularies)}'


def _panels(runs) -> dict[tuple, list[Run]]:
    """Runs with the same heuristics share a panel, but no two with the same kind of model. Other differences, such as
    data.limit, are in the tables."""
    groups = {}
    for run in runs:
        other = [
            f'{name.replace("_", " ")}: {run.setting(name)}' for name in _HEURISTICS if run.setting(name) is not None
        ]
        usual = all(run.setting(name) == value for name, value in _HEURISTICS.items())
        words, number = "the paper's heuristics" if usual else ', '.join(other), 0
        while any(one.model.get('kind') == run.model.get('kind') for one in groups.get((words, number), [])):
            number += 1
        groups.setdefault((words, number), []).append(run)
    return groups


def _zero_shot_curves(run, names) -> Iterable[Curve]:
    kind = run.model.get('kind', '')
    for look, dataset in enumerate(names):
        scores = run.result.select(dataset=dataset, metric='scaled')
        points = sorted((score.step, score.value) for score in scores if score.step)
        if points:
            yield Curve(f'{dataset} {kind}', *zip(*points), look, dashed=kind == 'lstm')


def _scaled_table(runs, names):
    entries = []
    for run in runs:
        checkpoints = {one['step']: one for one in run.facts.get('checkpoints', ())}
        for step in dict.fromkeys(score.step for score in run.result.scores):
            of = {score.dataset: score.value for score in run.result.select(metric='scaled', step=step)}
            checkpoint = checkpoints.get(step, {})
            known = whole(step), whole(checkpoint.get('tokens_seen'))
            threshold = fixed(checkpoint.get('cola_threshold'), 3)
            entries.append((run.label, *known, *(fixed(of.get(name), 2) for name in names), threshold))
    columns = ('run', 'updates', 'tokens', *names, 'threshold of CoLA, nats')
    return Table('Scaled scores', columns, entries, tuple(_limits(runs)))


def _limits(runs) -> Iterable[str]:
    for run in runs:
        if limit := run.setting('data.limit'):
            yield f'{run.label}: of no split more than {limit:,} examples.'


def _raw_table(runs):
    """The raw scores of the last checkpoint of each run."""
    entries = []
    for run in runs:
        for score in run.result.select(step=run.result.scores[-1].step):
            if score.metric == 'scaled' or score.dataset not in ZERO_SHOT:
                continue
            _, chance, best = ZERO_SHOT[score.dataset]
            error = accuracy_error(score.value, score.examples) if score.metric == 'accuracy' else None
            entries.append(
                (
                    *(run.label, score.dataset, score.split, score.metric, whole(score.examples), percent(score.value)),
                    *(percent(error) or '', percent(chance), Paper(percent(best)) if best else ''),
                    whole((run.facts.get('cut') or {}).get(score.dataset)),
                )
            )
    return Table(
        'Raw scores of the last checkpoint, in per cent',
        ('run', 'set', 'split', 'metric', 'examples', 'score', 'standard error', 'chance', 'best supervised', 'cut'),
        entries,
        (
            'Two runs here can be compared only by their standard errors: predictions for single examples are not '
            'kept. Cut: examples whose text is longer than the model can read, so that it saw only the end.',
            *_limits(runs),
        ),
    )


# ----------------------------------------------------------------- what the paper leaves open


def studies(lines: Sequence[Line]) -> list[Block]:
    """The weight of the auxiliary loss, and the share of the training examples."""
    blocks = []
    for study, (title, *_) in _STUDIES.items():
        of = [line for line in lines if line.study == study]
        blocks += [Heading(title, 3), *_study(of, study)] if of else []
    return [Heading('What the paper leaves open'), *blocks] if blocks else []


def _study(lines, study) -> list[Block]:
    """One panel per set and owner; a curve for each pattern that variants fit."""
    if not any(line.finished for line in lines):
        return [Gap('No run of it is finished.')]
    _, patterns, unit, factor, pairs_of = _STUDIES[study]
    groups, panels, entries, pairs = {}, [], [], []
    for line in lines:
        groups.setdefault((line.owner.label, line.dataset), []).append(line)
    titles = _titles([dataset for _, dataset in groups], [[label] for label, _ in groups])
    for number, ((label, dataset), of) in enumerate(groups.items()):
        curves = []
        for look, (words, pattern) in enumerate(patterns.items()):
            fitting = {_number(pattern, line): line for line in of if pattern.fullmatch(line.variant)}
            points = _points(fitting.values(), pattern)
            curves += [_curve(words, {factor * x: one for x, one in points.items()}, look)] if points else []
            for x, line in sorted(fitting.items()):
                which = (words,) if len(patterns) > 1 else ()
                entries.append(
                    (label, dataset, *which, f'{factor * x:g}', *rows.spread_cells(points.get(x)), *_seeds(line))
                )
        if curves:
            axes = Axes(titles[number], unit, 'dev score, per cent', log=study == 'share')
            panels.append(panel(f'{study}{number}', axes, curves))
        pairs += pairs_of(of)
    which = ('start',) if len(patterns) > 1 else ()
    columns = ('run', 'set', *which, unit, 'dev', 'spread', 'seeds')
    notes = (f'The first metric of each set, median over seeds, in per cent{rows.of_mnli(lines)}.',)
    numbers = Table('', columns, entries, notes)
    caption = f'Dev score over the {unit}: the median over seeds, and as a band the lowest to the highest.'
    return [Figure(caption, panels, numbers), *rows.comparisons('Differences', pairs)]


def _lambda_pairs(lines):
    """Each weight against the smallest that is finished."""
    done = sorted((line for line in lines if line.finished), key=lambda line: _number(_LAMBDA, line))
    return [(line, done[0]) for line in done[1:]]


def _share_pairs(lines):
    """With and without pre-training, of each share."""
    of = {line.variant: line for line in lines if line.finished}
    return [(of[name], of[f'{name}_scratch']) for name in of if f'{name}_scratch' in of]


# Study -> its title; what its curves are, by the form of the variants; what is varied; its factor; what is compared.
_STUDIES = {
    'lambda': ('Weight of the auxiliary loss', {'': _LAMBDA}, 'weight of the auxiliary loss', 1, _lambda_pairs),
    'share': (
        'Share of the training examples',
        {'pre-trained': _SHARE, 'from scratch': _SHARE_SCRATCH},
        'share of the training examples, per cent',
        100,
        _share_pairs,
    ),
}
