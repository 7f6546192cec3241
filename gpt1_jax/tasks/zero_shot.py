"""Zero-shot scores over checkpoints (Radford et al. 2018, section 5 and figure 2, right)."""

import functools
import time

from absl import logging
from etils import epath
from ml_collections import ConfigDict

from gpt1_jax import peers
from gpt1_jax.config import check_choice
from gpt1_jax.errors import DamagedError, UserError
from gpt1_jax.evaluation import journal, zero_shot
from gpt1_jax.evaluation.paper import ZERO_SHOT, scaled
from gpt1_jax.evaluation.perplexity import make_scorer
from gpt1_jax.files import exists, read_json, write_json
from gpt1_jax.report.results import Result, Score, record
from gpt1_jax.report.tables import format_table, publish
from gpt1_jax.saved_models import store
from gpt1_jax.training.partitioning import Partitioner, is_writer
from gpt1_jax.workdir import open_workdir

_NONE = type(None)
_FORM = {  # of each checkpoint's entry in zero_shot.json
    'step': (int, _NONE),
    'model': {'tokens_seen': (int, _NONE)},
    'findings': {str: {'value': float, 'ties': int, 'threshold': (float, _NONE)}},
}


def run(config: ConfigDict, workdir: epath.Path) -> Result:
    """Scores the checkpoints that `config.init_from` names on `config.datasets`; prints a table.

    WORKDIR/zero_shot.json keeps the findings for each checkpoint, and WORKDIR/evaluation.journal the finished batches
    of the one that is being scored, so that the command can be resumed. WORKDIR/table.txt is the table.

    Scores, each with its step: the metric of paper.ZERO_SHOT, and 'scaled', see paper.scaled. Facts: `checkpoints`, a
    list of {'step', 'tokens_seen', 'cola_threshold', 'ties'}; `examples` and `cut`, data set -> number; `left_out`,
    data set -> why.
    """
    started = time.monotonic()
    check(config)
    partitioner = Partitioner(config.mesh.strategy, config.mesh.shape)
    models = list(map(store.open_model, _checkpoints(config.init_from)))
    questions, left_out = zero_shot.load(
        list(dict.fromkeys(config.datasets)),
        config.data.source,
        config.data.limit,
        models[0].tokenizer,
        models[0].architecture.sizes['n_positions'],
        zero_shot.Variant(config.start_token, config.length_normalised, config.condition),
        config.data.download,
    )
    open_workdir(config, workdir, write=is_writer())
    content = {one.name: one.fingerprint() for one in questions}
    peers.check_same(repr(content), config.data.source)
    found = _find(config, workdir, models, questions, content, partitioner)
    scores, checkpoints = [], []
    for of_one in found:
        findings = {one.name: zero_shot.Finding(**of_one['findings'][one.name]) for one in questions}
        for one in questions:
            value = findings[one.name].value
            for metric, number in ((ZERO_SHOT[one.name][0], value), ('scaled', scaled(one.name, value))):
                if number is not None:
                    scores.append(Score(one.name, one.split, metric, number, len(one.labels), step=of_one['step']))
        checkpoints.append(
            {
                'step': of_one['step'],
                'tokens_seen': of_one['model']['tokens_seen'],
                'cola_threshold': findings['cola'].threshold if 'cola' in findings else None,
                'ties': {name: finding.ties for name, finding in findings.items()},
            }
        )
    facts = {
        'checkpoints': checkpoints,
        'examples': {one.name: len(one.labels) for one in questions},
        'cut': {one.name: one.cut for one in questions},
        'left_out': left_out,
    }
    result = record(config, workdir, started, scores=scores, facts=facts, model=found[-1]['model'])
    if is_writer():
        publish(workdir, format_scores(result))
    return result


def check(config: ConfigDict) -> None:
    """Raises UserError for what can be refused before the models and the data are read."""
    check_choice('condition', config.condition, zero_shot.CONDITIONS)
    zero_shot.check_names(config.datasets, 'datasets')


def _checkpoints(init_from) -> list[str]:
    """The single checkpoints that `init_from` names. RUN@all: every checkpoint that the run has kept, by step."""
    run = init_from.removesuffix('@all')
    if run == init_from:
        return [init_from]
    saved = store.open_model(run)
    steps = [] if store.split_uri(run)[0] else store.kept_steps(saved.directory)
    if not steps:
        raise UserError(f'{init_from}: There is no checkpoint. Name a run that has saved one, or leave @all out.')
    return [f'{run}@{step}' for step in steps]


def _find(config, workdir, models, questions, content, partitioner) -> list[dict]:
    """For each model: its 'step', its 'model' of the record, and 'findings', data set -> zero_shot.Finding as a dict;
    also what they depend on: 'checkpoint', a fingerprint, and 'content', data set -> fingerprint. Those that are in
    WORKDIR/zero_shot.json for the same checkpoint and content are taken from there."""
    path, score = workdir / 'zero_shot.json', None
    found = {of_one['step']: of_one for of_one in (read_json(path, [_FORM]) if exists(path) else [])}
    origins = [{'checkpoint': saved.fingerprint(), 'content': content} for saved in models]
    steps = [saved.step() for saved in models]
    todo = [
        number for number, step in enumerate(steps) if step not in found or not _is_of(found[step], origins[number])
    ]
    sequences = sum(one.scored() for one in questions) * len(todo)
    with journal.resumable(workdir) as watching:
        watch = watching('zero-shot', sequences, 'sequence')
        for number in todo:
            saved, step = models[number], steps[number]
            try:
                if len(models) > 1 and step not in store.kept_steps(saved.directory):
                    raise DamagedError(f'{saved.directory}: The checkpoint of step {step} was deleted meanwhile.')
                classifier, params = store.load_model(saved, config.model, partitioner)
            except DamagedError as error:
                found.pop(step, None)
                if number == todo[-1] and found.keys().isdisjoint(steps):
                    raise
                logging.warning('%s It is left out.', error)
                continue
            score = score or make_scorer(classifier, params, partitioner, config.data.batch_size)  # compiled once
            watch.model = journal.fingerprint(classifier, params, partitioner)
            seen = functools.partial(score, params, watch=watch)
            findings = {one.name: zero_shot.answer(one, seen, config.length_normalised)._asdict() for one in questions}
            model = store.summary(classifier.model, params, saved.tokens_seen())
            found[step] = {'step': step, 'model': model, 'findings': findings} | origins[number]
            if is_writer():
                write_json(path, list(found.values()))
            watch.journal.remove()
            values = ', '.join(f'{name} {finding["value"]:.3f}' for name, finding in findings.items())
            logging.info('checkpoint %d of %d, step %s: %s', number + 1, len(models), step, values)
    return [found[step] for step in steps if step in found]


def _is_of(of_one, origin):
    """Whether an entry has all findings that are wanted, for the same checkpoint and content. Earlier versions did not
    write these two, and then they pass. Models of other programs never do: nothing tells whether they are the same."""
    checkpoint, content = origin['checkpoint'], of_one.get('content', {})
    if not checkpoint or of_one.get('checkpoint', checkpoint) != checkpoint:
        return False
    return all(
        name in of_one['findings'] and content.get(name, value) == value for name, value in origin['content'].items()
    )


def format_scores(result: Result) -> str:
    """A line per checkpoint: raw scores in per cent, and scaled ones; above them chance, below them the best supervised
    results of the time."""
    of_set = {score.dataset: score for score in result.scores}
    columns = [('step', 8, ''), ('tokens', 16, ',d')]
    chance, best = ['chance', None], ['best', None]
    for name in of_set:
        columns.append((name, 9, '.1f'))
        _, lowest, highest = ZERO_SHOT[name]
        chance.append(100 * lowest)
        best.append(None if highest is None else 100 * highest)
        if highest is not None:
            columns.append(('scaled', 8, '.2f'))
            chance.append(0.0)
            best.append(1.0)
        if name == 'cola':
            columns.append(('threshold', 11, '.3f'))
            chance.append(None)
            best.append(None)
    entries = [chance, *(_entry(result, checkpoint, of_set) for checkpoint in result.facts['checkpoints']), best]
    used = ', '.join(f'{name} {of_set[name].split} {number:,}' for name, number in result.facts['examples'].items())
    return '\n'.join(
        [
            format_table(columns, entries),
            f'examples: {used}',
            *(f'{name}: left out: {reason}' for name, reason in result.facts['left_out'].items()),
        ]
    )


def _entry(result, checkpoint, names):
    step = checkpoint['step']
    entry = ['-' if step is None else str(step), checkpoint['tokens_seen']]
    for name in names:
        values = {score.metric: score.value for score in result.select(dataset=name, step=step)}
        entry.append(100 * values[ZERO_SHOT[name][0]])
        if 'scaled' in values:
            entry.append(values['scaled'])
        if name == 'cola':
            entry.append(checkpoint['cola_threshold'])
    return entry
