"""Sections: what the models confuse, examples that they got wrong, and samples of generated text."""

from collections.abc import Iterable, Sequence

import numpy as np

from gpt1_jax.report import rows
from gpt1_jax.report.blocks import Block, Gap, Heading, Quote, Shaded, Table, Text, whole
from gpt1_jax.report.collect import Line, Run, model_name, split_step

_VARIED = ('lambda', 'share')  # studies of the task ablation that show nothing new here
_MOST_LABELS = 12
_ERRORS = 5  # examples of a set
_SAMPLES = 3  # texts of a checkpoint


def mistakes(lines: Sequence[Line]) -> list[Block]:
    """The confusion matrix of one row of each set, and some of its errors on dev."""
    chosen = [(line, _middle(line)) for line in _first_rows(lines)]
    matrices = [block for line, run in chosen for block in _matrix(line, run)]
    errors = [block for line, run in chosen for block in _errors(line, run)]
    blocks = [Heading('Confusion matrices'), *matrices] if matrices else []
    return blocks + ([Heading('Examples that the model got wrong'), *errors] if errors else [])


def _first_rows(lines) -> Iterable[Line]:
    """The first row of each set (one of an ablation only if there is no other), and every row of a user's own sets."""
    seen = set()
    for line in sorted(lines, key=lambda line: line.owner.task == 'ablation'):
        varied = line.owner.task == 'layer_transfer' or line.study in _VARIED
        key = line.dataset, line.owner.name if line.dataset == 'custom' else ''
        if line.finished and not varied and key not in seen:
            seen.add(key)
            yield line


def _middle(line) -> Run:
    """The run whose score is the median over seeds; of two such, the lower."""
    return sorted(line.finished, key=lambda run: rows.first_metric_of(run) or 0.0)[(len(line.finished) - 1) // 2]


def _matrix(line, run) -> Iterable[Block]:
    dataset, found = rows.dataset_of_run(run), rows.predictions(run)
    if dataset is None or dataset.labels is None:
        return
    where = f'{line.label}, {line.dataset}, seed {run.setting("seed", 0)}'
    if found is None:
        yield Gap(f'{where}: the predictions for dev were not kept.')
    elif len(dataset.labels) > _MOST_LABELS:
        yield Gap(f'{where}: a matrix of {len(dataset.labels)} labels is too large to show.')
    else:
        labels, predicted = found
        counts = np.zeros((len(dataset.labels),) * 2, int)
        np.add.at(counts, (labels.astype(int), predicted), 1)
        entries = [
            (name, *(Shaded(whole(n), n / max(row.sum(), 1)) for n in row), whole(row.sum()))
            for name, row in zip(dataset.labels, counts)
        ]
        entries.append(('all', *map(whole, counts.sum(0)), whole(counts.sum())))
        caption = f'{where}: dev examples by label (down) and prediction (across)'
        yield Table(caption, ('label', *dataset.labels, 'all'), entries)


def _errors(line, run) -> Iterable[Block]:
    if not run.errors:
        return
    n = min(_ERRORS, len(run.errors))
    yield Heading(f'{line.dataset}, {line.label}, seed {run.setting("seed", 0)}', 3)
    for i in range(n):
        one = run.errors[i * len(run.errors) // n]
        caption = (
            f'Example {one["index"]}: labelled {_word(one.get("label"))}, predicted {_word(one.get("prediction"))}'
        )
        yield Quote(caption, list(map(str, one['texts'])))


def _word(label):
    return f'{label:.2f}' if isinstance(label, float) else repr(label) if isinstance(label, str) else str(label)


def samples(runs: Sequence[Run]) -> list[Block]:
    """Generated texts, by model and checkpoint."""
    groups = {}
    for run in runs:
        if run.task == 'generate' and run.generations:
            _, step = split_step(run.setting('init_from', ''))
            groups.setdefault(model_name(run, runs), []).append((int(step) if step.isdecimal() else None, run))
    if not groups:
        unfinished = any(run.task == 'generate' for run in runs)
        return [Heading('Samples'), Gap('No samples are finished.')] if unfinished else []
    blocks = [
        Heading('Samples'),
        Text(f'The first {_SAMPLES} of each checkpoint; the prompt, if there is one, begins the text.'),
    ]
    for label, of in groups.items():
        blocks.append(Heading(f'Samples of {label}', 3))
        for step, run in sorted(of, key=lambda one: (one[0] is None, one[0] or 0, one[1].name)):
            after = 'the best checkpoint' if step is None else f'after {step:,} updates'
            settings = ', '.join(f'{name} {run.setting(name)}' for name in ('temperature', 'top_k', 'top_p', 'seed'))
            texts = [one['prompt'] + one['text'] for one in run.generations[:_SAMPLES]]
            blocks.append(Quote(f'{run.label}: {after}; {settings}', texts))
    return blocks
