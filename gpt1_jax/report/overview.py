"""Sections: what was run on which data and what was not; speed and cost."""

import fractions
import math
from collections.abc import Iterable, Sequence

from gpt1_jax.config import compare, is_place
from gpt1_jax.data.labelled.registry import REGISTRY
from gpt1_jax.evaluation.paper import TABLE_5
from gpt1_jax.progress import duration
from gpt1_jax.report.blocks import Block, Gap, Heading, Paper, Table, Text, significant, whole, whole_span
from gpt1_jax.report.collect import Line, Run, model_name, natural, split_step
from gpt1_jax.training.metric_writer import median_speed

_PETAFLOPS_DAY = 1e15 * 86_400  # floating-point operations
_PAPERS_COST = '0.96'  # petaFLOP/s-days, on 8 GPUs for one month (OpenAI's post on the paper, 2018)
STUDIES = ('ablation', 'layer_transfer')  # tasks that have sections of their own
_FIGURE_2_LEFT = ('mnli', 'race')
_FIGURE_2_RIGHT = ('cola', 'sst2', 'race', 'dpr')


def summary(runs: Sequence[Run], lines: Sequence[Line]) -> list[Block]:
    """What is there, and what of the paper is not."""
    blocks = [
        Heading('What was run'),
        Text(
            'Every number here is from a run in this folder, except those in italics, in columns or lines that say '
            '"paper", "before" or "best supervised": these are of Radford et al. (2018), on test sets, and of the best '
            'systems before, as that paper gives them or, for DPR, Peng et al. (2015). A dash is a gap: nothing has '
            'been run there, it is not finished, or what the number needs was not kept.'
        ),
        _runs_table(runs, lines),
    ]
    blocks += [Gap(f'{run.label} is damaged. {sentence}') for run in runs for sentence in run.damage]
    blocks += [*_unfinished(runs, lines), *_mixed(lines)]
    blocks += [Gap(f'{name} is left out in {", ".join(labels)}: {why}') for (name, why), labels in _left_out(runs)]
    blocks += [*_corpora(runs), *_labelled(lines), *_made_with(runs)]
    missing = list(_not_run(runs, lines))
    blocks += [Heading('What of the paper is missing', 3)]
    return blocks + (list(map(Gap, missing)) or [Text('Nothing.')])


def _runs_table(runs, lines):
    """One entry for each run or sweep, not for the runs of a sweep."""
    of_sweeps, entries = _of_sweeps(lines), []
    for run in runs:
        if run.name in of_sweeps:
            continue
        planned = sum(line.planned for line in lines if line.owner is run and run.plan)
        finished = sum(len(line.finished) for line in lines if line.owner is run)
        entries.append(
            (
                run.label,
                run.task or None,
                run.state + (f', {finished} of {planned} runs' if planned else ''),
                run.model_words,
                run.vocabulary,
                _data(run, runs),
                duration(run.result.seconds) if run.result else None,
            )
        )
    return Table(
        'Runs, by folder',
        ('run', 'task', 'state', 'model', 'vocabulary', 'from', 'time'),
        entries,
        ('Vocabulary: the fingerprint of the tokenizer. Time: of the process that ended the run.',),
    )


def _of_sweeps(lines) -> dict[str, Run]:
    """The name of each run that is one of a sweep -> the sweep."""
    return {run.name: line.owner for line in lines for run in line.runs if line.owner is not run}


def _data(run, runs):
    """The run that its model is from, with the checkpoint or the layers that it takes; and its data."""
    _, step = split_step(run.setting('init_from', ''))
    name, layers = model_name(run, runs) + f'@{step}' * bool(step), run.setting('n_transfer')
    if name and layers is not None:
        name = (
            f'{layers} layer{"s" * (layers != 1)} of {name}' if layers >= 0 else f'from scratch (tokenizer of {name})'
        )
    return ', '.join(filter(None, (name, run.setting('data.source'))))


def _unfinished(runs, lines) -> Iterable[Block]:
    of_sweeps, shown = _of_sweeps(lines), {run.name for line in lines for run in line.runs}
    for run in runs:
        if not run.result and not run.damage and not run.plan and run.name not in of_sweeps:
            yield Gap(f'{run.label} is not finished, so it has no scores here.')
    for run in runs:
        if run.task == 'finetune' and run.name not in shown:
            yield Gap(f'{run.label} is in the folder of a sweep but not one of its runs, so its scores are not shown.')
    gaps = {}
    for line in lines:
        if line.owner.plan and len(line.finished) < line.planned:
            there = f'{len(line.finished)} of {line.planned} runs'
            gaps.setdefault((line.label, there), []).append(line.dataset)
    for (label, there), names in gaps.items():
        each = ' each' if len(names) > 1 else ''
        yield Gap(f'{label}, {", ".join(names)}: {there}{each} are finished.')


def _mixed(lines) -> Iterable[Block]:
    """Lines whose runs differ in more than their seeds, as when folders were copied together."""
    for line in lines:
        first, *others = [run.config for run in line.finished] or [{}]
        keys = {key for other in others for key in compare(first, other) if key != 'seed' and not is_place(key)}
        if keys:
            yield Gap(
                f'{line.label}, {line.dataset}: The runs differ not only in their seeds ({", ".join(sorted(keys))}), '
                'so their median and spread are not those of one setting.'
            )


def _left_out(runs) -> Iterable[tuple[tuple[str, str], list[str]]]:
    """((data set, or a run's path in its sweep; why it is left out), the runs that say so)..."""
    found = {}
    for run in runs:
        for name, why in run.facts.get('left_out', {}).items():
            found.setdefault((name, why), []).append(run.label)
    return found.items()


def _corpora(runs) -> Iterable[Block]:
    entries = [
        (
            run.label,
            run.setting('data.source', ''),
            *(
                whole(run.facts.get(what, {}).get(split))
                for what in ('documents', 'tokens')
                for split in ('train', 'valid')
            ),
            whole(run.facts.get('vocab_size')),
        )
        for run in runs
        if run.task == 'prepare' and run.result
    ]
    if entries:
        columns = ('documents', 'held out', 'tokens', 'held-out tokens', 'vocabulary')
        yield Table('Texts for pre-training', ('run', 'source', *columns), entries)


def _labelled(lines) -> Iterable[Block]:
    """The sets and how much of them was used."""
    entries, groups = [], {}
    for line in lines:
        groups.setdefault((line.dataset, line.owner.label), []).append(line)
    for (dataset, label), group in sorted(groups.items(), key=lambda item: (natural(item[0][0]), natural(item[0][1]))):
        runs = [run for line in group for run in line.runs]
        finished = [run for run in runs if run.result]
        numbers = lambda fact: whole_span(run.facts[fact] for run in finished if fact in run.facts)
        entries.append(
            (
                dataset,
                label,
                numbers('train_examples'),
                _part(runs),
                *(numbers('dev_examples'), numbers('cut_sequences')),
                ', '.join(map(str, sorted({run.setting('seed', 0) for run in finished}))) or None,
                f'{len(finished)} of {sum(line.planned for line in group)}',
            )
        )
    if entries:
        yield Table(
            'Labelled sets',
            ('set', 'runs', 'training examples', 'which', 'dev examples', 'cut', 'seeds', 'finished'),
            entries,
            (
                'If only a part was used, the scores are those of a partial training set. A source may itself hold '
                'only a part of a set. Cut: how many sequences of train and dev were longer than the model can read, '
                'so that it saw only a part of their text; a multiple-choice example has a sequence per answer.',
            ),
        )


def part_of(run: Run) -> str:
    """Which of its source's training examples a run used: "all of the source's", or which part."""
    limit, share = run.setting('data.limit'), run.setting('data.share', 1.0)
    used, parts = run.facts.get('train_examples'), []
    if limit is not None and used in (None, math.ceil(fractions.Fraction(str(share)) * limit)):  # else there are fewer
        parts.append(f'the first {limit:,}')
    if share < 1:
        parts.append(f'{100 * share:g} %')
    return f'partial: {", of these ".join(parts)}' if parts else "all of the source's"


def _part(runs):
    found = sorted({part_of(run) for run in runs}, key=natural)
    return '; '.join(found) if len(found) < 3 else f'{found[0]}, ..., {found[-1]}' if found else None


def _made_with(runs) -> Iterable[Block]:
    """The programs and devices, with the number of runs of each combination."""
    counted = {}
    for run in runs:
        if run.versions:
            key = run.device_words, ', '.join(f'{name} {version}' for name, version in sorted(run.versions.items()))
            counted[key] = counted.get(key, 0) + 1
    if counted:
        entries = [(device or 'none used', versions, whole(n)) for (device, versions), n in sorted(counted.items())]
        yield Table('Devices and programs', ('device', 'versions', 'runs'), entries)


def _not_run(runs, lines) -> Iterable[str]:
    """Sentences: what the paper has and no finished run here has."""
    finished = [run for run in runs if run.result]
    pretrained = {run.model.get('kind') for run in finished if run.task == 'pretrain'}
    for kind, words in (('transformer', 'a transformer'), ('lstm', 'an LSTM')):
        if kind not in pretrained:
            yield f'Pre-training of {words}.'
    for kind in ('transformer', 'lstm'):
        scored = {
            score.dataset
            for run in finished
            if run.task == 'zero_shot' and run.model.get('kind') == kind
            for score in run.result.scores
        }
        if missing := [name for name in _FIGURE_2_RIGHT if name not in scored]:
            yield f'Zero-shot scores (figure 2, right) of the {kind} on {_listed(missing)}.'
    tuned = {line.dataset for line in lines if line.finished and line.owner.task not in STUDIES}
    if missing := [name for name, dataset in REGISTRY.items() if dataset.paper and name not in tuned]:
        yield f'Fine-tuning (tables 2 to 4) on {_listed(missing)}.'
    of = lambda task: [line for line in lines if line.owner.task == task and line.finished]
    moved = {line.dataset for line in of('layer_transfer')}
    if missing := [name for name in _FIGURE_2_LEFT if name not in moved]:
        yield f'Layer transfer (figure 2, left) on {_listed(missing)}.'
    ablated = {(line.variant, line.dataset) for line in of('ablation') if line.study == 'table5'}
    if not ablated:
        yield 'The ablations of table 5.'
    for row, sets in TABLE_5.items() if ablated else ():
        if missing := [name for name in sets if (row, name) not in ablated]:
            yield f'The row {row!r} of table 5 on {_listed(missing)}.'


def _listed(names):
    return ', '.join(names)


def cost(runs: Sequence[Run], lines: Sequence[Line]) -> list[Block]:
    """Speed and cost of pre-training, beside the paper's; the time of all else."""
    trained = [run for run in runs if run.task == 'pretrain' and run.result]
    entries = [
        (
            run.label,
            run.model_words,
            whole(run.facts.get('tokens')),
            significant(run.facts['flops'] / _PETAFLOPS_DAY) if run.facts.get('flops') else None,
            whole(median_speed(run.metrics)),
            duration(run.result.seconds),
            run.device_words or None,
        )
        for run in trained
    ]
    entries.append(
        ('paper', Paper('transformer, 12 layers, 768 wide'), '', Paper(_PAPERS_COST), '', '', Paper('8 GPUs'))
    )
    blocks = [
        Heading('Speed and cost'),
        Table(
            'Pre-training',
            ('run', 'model', 'tokens', 'petaFLOP/s-days', 'tokens/s', 'time', 'device'),
            entries,
            (
                'petaFLOP/s-days: all operations of the training, as gpt1_jax/model/flops.py counts them; one is '
                "8.64e19. The paper's are from OpenAI's post on it (2018). Time: of the process that ended the run, so "
                'less than all if it was resumed.',
            ),
        ),
    ]
    if not trained:
        blocks.append(Gap('No run of pre-training is finished.'))
    return blocks + _other_times(runs, lines)


def _other_times(runs, lines) -> list[Block]:
    """The time of all runs except pre-training, summed over the runs of each sweep."""
    times = {}
    of_sweeps = _of_sweeps(lines)
    for run in runs:
        owner = of_sweeps.get(run.name, run)
        if run.result and run.task != 'pretrain' and not run.plan:
            of = times.setdefault((owner.label, owner.task), [])
            of.append((run.result.seconds, run.device_words))
    entries = [
        (label, task, whole(len(of)), duration(sum(s for s, _ in of)), ', '.join(sorted({d for _, d in of if d})))
        for (label, task), of in times.items()
    ]
    return [Table('All else', ('run', 'task', 'finished runs', 'time', 'device'), entries)] if entries else []
