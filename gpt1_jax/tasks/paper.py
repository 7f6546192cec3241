"""The whole paper as one command: each part is an ordinary run, in a folder of its own."""

import dataclasses
import time

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from gpt1_jax import lock, peers
from gpt1_jax.config import as_json, check_choice
from gpt1_jax.data.corpus.shards import load_shards, shards_fingerprint
from gpt1_jax.data.corpus.sources import open_corpus
from gpt1_jax.data.labelled.registry import REGISTRY
from gpt1_jax.errors import UserError
from gpt1_jax.files import explain, write_json
from gpt1_jax.processes import cores
from gpt1_jax.progress import duration
from gpt1_jax.report import plan
from gpt1_jax.report.plan import Part, PlannedRun, difference, format_plan, made_from, seconds_left
from gpt1_jax.report.results import Result
from gpt1_jax.report.tables import format_table
from gpt1_jax.saved_models import store
from gpt1_jax.tasks import ablation, generate, layer_transfer, prepare, pretrain, report, sweep, zero_shot
from gpt1_jax.training import cost
from gpt1_jax.training.partitioning import is_writer
from gpt1_jax.workdir import open_workdir

_TASKS = {
    'prepare': prepare,
    'pretrain': pretrain,
    'zero_shot': zero_shot,
    'generate': generate,
    'sweep': sweep,
    'layer_transfer': layer_transfer,
    'ablation': ablation,
    'report': report,
}
# The parts in order, and the parts that each needs: it starts from the model of the first of these.
_NEEDS = {
    'prepare': (),
    'pretrain': ('prepare',),
    'pretrain_lstm': ('prepare',),
    'zero_shot': ('pretrain',),
    'zero_shot_lstm': ('pretrain_lstm',),
    'samples': ('pretrain',),
    'finetune': ('pretrain',),
    'layer_transfer_mnli': ('pretrain',),
    'layer_transfer_race': ('pretrain',),
    'ablation_table5': ('pretrain', 'pretrain_lstm'),
    'ablation_lambda': ('pretrain',),
    'ablation_share': ('pretrain',),
    'report': (),
}
_BYTES = 3.9e6  # of text that one core prepares in a second


def run(config: ConfigDict, workdir: epath.Path) -> Result:
    """Runs those of `config.parts` that are not finished, one after the other, each in WORKDIR/PART; prints the plan
    first, and at the end what is done. The report is written anew each time.

    A part that needs missing data is left out, and so is one that fails, unless others need it. WORKDIR/parts.json
    keeps what each part was made from. With `config.dry_run` nothing is run and nothing written.

    Facts: `parts`, name -> {'state': see Part.state, or 'failed'; 'seconds': that it took, None if unknown};
    `left_out`, PART or PART/PATH of a data set or run -> why.

    Raises UserError for an unknown part, one that needs an unfinished one, one that was made from another text or model
    than there is now, and at the end if one has failed.
    """
    started = time.monotonic()
    chosen = _chosen(config.parts)
    _check_origins(config, workdir)
    parts = _plan(config, workdir, chosen)
    _say(format_plan([parts[name] for name in chosen], seconds_left(list(parts.values()))))
    if config.dry_run:
        return Result(config.task, [], _facts(parts, {}), None, as_json(config), time.monotonic() - started)
    open_workdir(config, workdir, write=is_writer())
    failed = {}
    for name in chosen:
        part = parts[name] = dataclasses.replace(parts[name], runs=_runs(name, config, workdir), waits_for='')
        if part.left_out:
            continue
        _check_origins(config, workdir)
        if is_writer() and _NEEDS[name] and not (workdir / name).exists():
            write_json(workdir / 'parts.json', made_from(workdir) | {name: _origins(name, config, workdir)})
        logging.info('paper: %s; about %s left', name, duration(sum(seconds_left(list(parts.values())).values())))
        try:
            for one in part.runs:
                if peers.agree(name == 'report' or not one.result())[0]:  # one that comes late may find it
                    _start(name, one)
        except Exception as error:
            message = str(error) if isinstance(error, UserError) else explain(error)
            # With several processes, others may be in the middle of this part.
            if not message or peers.current or any(name in needs for needs in _NEEDS.values()):
                raise
            failed[name] = message
            logging.error('%s: %s', name, message)
    return _finish(config, workdir, started, _facts(parts, failed))


def _chosen(names: str) -> list[str]:
    """The parts in their order. names: separated by commas, or empty."""
    wanted = [name.strip() for name in names.split(',') if name.strip()]
    for name in wanted:
        check_choice('parts', name, _NEEDS)
    return [name for name in _NEEDS if name in wanted or not wanted]


def _start(name, one):
    _say(f'\n{name}:\n  {one.command()}')
    if one.config.task != 'prepare' or is_writer():
        with lock.hold(one.workdir, write=is_writer()):
            _TASKS[one.config.task].run(one.config, one.workdir)
    peers.meet()  # the others must see what the writer has written


def _finish(config, workdir, started, facts) -> Result:
    result = Result(config.task, [], facts, None, as_json(config), time.monotonic() - started)
    if is_writer():
        result.write(workdir)
    _say(f'\n{format_parts(facts)}')
    page = workdir / 'report' / 'report.html'
    if page.exists():
        _say(f'\nThe report is {page}')
    if failed := [name for name, part in facts['parts'].items() if part['state'] == 'failed']:
        reasons = ' '.join(f'{name}: {facts["left_out"][name]}' for name in failed)
        raise UserError(
            f'parts: Not all could be finished. {reasons} Then run the same command again. The other parts are done.'
        )
    return result


def _facts(parts, failed):
    """The facts of the result. failed: part -> why."""
    states, left_out = {}, dict(failed)
    for name, part in parts.items():
        states[name] = {'state': 'failed' if name in failed else part.state(), 'seconds': part.progress()[1]}
        if part.left_out:
            left_out[name] = part.left_out
        for one in part.runs:
            of_sets = result.facts.get('left_out', {}) if (result := one.result()) else {}
            left_out |= {f'{name}/{path}': reason for path, reason in of_sets.items()}
    return {'parts': states, 'left_out': left_out}


def format_parts(facts: dict) -> str:
    """The facts of the result: a table of the parts, then what is left out."""
    entries = [
        (name, part['state'], None if part['seconds'] is None else duration(part['seconds']))
        for name, part in facts['parts'].items()
    ]
    table = format_table([('part', 22, ''), ('state', 10, ''), ('time', 9, '>')], entries)
    return '\n'.join([table, *(f'{name} is left out: {reason}' for name, reason in facts['left_out'].items())])


def _say(text):
    if is_writer():
        print(text, flush=True)


# ----------------------------------------------------------------- the runs of each part


def _runs(name, config, workdir) -> tuple[PlannedRun, ...]:
    """The runs of a part: its config, with the keys that join it to the others filled in."""
    part, file, folder = config[name].copy_and_resolve_references(), dict(config.files)[name], workdir / name
    models = [str(workdir / need) for need in _NEEDS[name]]
    if part.task == 'prepare':
        part.data.source = config.text
    elif part.task == 'pretrain':
        part.data.source = config.text if _is_prepared(config) else f'shards:{_shards(config, workdir)}'
    elif part.task == 'report':
        part.runs = str(workdir)
    elif part.task == 'generate':
        return tuple(
            PlannedRun(file, _with(part, init_from=f'{models[0]}@{step}'), folder / str(step))
            for step in _sampled_steps(config, workdir)
        )
    else:
        part.init_from = models[0] + '@all' * (part.task == 'zero_shot')
        part.data.source = config.source
        if 'seeds' in part:
            part.seeds = config.seeds
        if 'lstm_from' in part and len(models) > 1:
            part.lstm_from = models[1]
    return (PlannedRun(file, part, folder),)


def _with(config, **changes):
    config = config.copy_and_resolve_references()
    config.update(changes)
    return config


def _is_prepared(config):
    return config.text.startswith('shards:')


def _shards(config, workdir):
    if _is_prepared(config):
        return epath.Path(config.text.removeprefix('shards:')).expanduser()
    return epath.Path(config.prepare.data.output or workdir / 'prepare' / 'shards')


def _sampled_steps(config, workdir):
    """The steps to sample from: of the kept checkpoints, the first at or after each power of ten, and the last. If none
    is kept, the steps of which there are samples."""
    (language_model,) = _runs('pretrain', config, workdir)
    if not language_model.result():
        return [plan.STEP]
    if not (steps := store.kept_steps(str(language_model.workdir))):
        samples = workdir / 'samples'
        found = [int(path.name) for path in samples.iterdir() if path.name.isdecimal()] if samples.exists() else []
        return sorted(found) or [plan.STEP]
    powers = [10**i for i in range(len(str(steps[-1])))]
    return sorted({min(step for step in steps if step >= power) for power in powers} | {steps[-1]})


# ----------------------------------------------------------------- what the parts are made from


def _origins(name, config, workdir) -> dict[str, dict]:
    """What a part would be made from now, see plan.made_from."""
    found = {}
    for need in _NEEDS[name]:
        (one,) = _runs(need, config, workdir)
        if need == 'prepare':
            content = shards_fingerprint(f'shards:{_shards(config, workdir)}')
        else:
            content = one.content()
        settings = {} if need == 'prepare' and _is_prepared(config) else as_json(one.config)
        found[need] = {'config': settings, 'result': content}
    return found


def _check_origins(config, workdir):
    """Raises UserError if some parts were made from parts that have changed since."""
    others, recorded = {}, made_from(workdir)
    for name in _NEEDS:
        there = recorded.get(name, {}) if (workdir / name).exists() else {}
        now = _origins(name, config, workdir) if there else {}
        for need in [need for need in now if need in there]:
            how = difference(there[need], now[need])
            if need in others or how is not None:
                others[name] = f'{name} from another {need}{how or ""}'
    if others:
        folders = ', '.join(str(workdir / name) for name in others)
        raise UserError(
            f'parts: Some were made from parts that have changed since: {"; ".join(others.values())}. Go back to the '
            f'earlier parts, or delete {folders} to make them anew.'
        )


# ----------------------------------------------------------------- the plan


def _plan(config, workdir, chosen) -> dict[str, Part]:
    """All parts, with estimates for those that are chosen or done, and with why some cannot be run."""
    parts = {name: Part(name, _runs(name, config, workdir)) for name in _NEEDS}
    if _is_prepared(config):
        parts['prepare'] = dataclasses.replace(parts['prepare'], left_out=f'{config.text} is prepared already')
    recorded, done = made_from(workdir), set()
    for name, part in parts.items():
        waits_for = next((need for need in recorded.get(name, ()) if need in chosen and need not in done), '')
        part = parts[name] = dataclasses.replace(part, waits_for=waits_for if name in chosen else '')
        if part.is_done() or part.left_out:
            done.add(name)
    for name in chosen:
        for need in _NEEDS[name]:
            if name not in done and need not in done.union(chosen):
                raise UserError(
                    f'parts: {name} needs {need}, which is not finished in {workdir}. Run that part first, or give '
                    f'--config.parts={need},{name}.'
                )
    if not set(chosen) - done - {'report'}:
        return parts
    if not config.text and 'prepare' not in done:
        raise UserError('text: It is empty. Name the corpus, for example --config.text=text:DIR.')
    counted = [name for name in _NEEDS if name in done.union(chosen)]
    wanted = dict.fromkeys(of_set for name in counted for of_set in plan.datasets(config[name]) if of_set in REGISTRY)
    sets = {
        name: cost.labelled_set(name, config.source, config.pretrain.model.n_positions, config.finetune.data.download)
        for name in wanted
    }
    for name in chosen:
        if name not in done:
            _check(name, parts[name].runs[0], config, sets)
    speed = cost.training_speed(config.pretrain.model.width)
    steps = {name: _steps(parts[name].runs[0], config, workdir) for name in counted if name.startswith('pretrain')}
    for name in counted:
        part, need = parts[name], next(iter(_NEEDS[name]), '')
        if name == 'prepare' and not part.left_out:
            seconds = 0.0 if part.is_done() else _size(config) / _BYTES / (config.prepare.data.workers or cores())
            parts[name] = dataclasses.replace(part, seconds=seconds, work=name)
        elif name != 'prepare':
            of = name if name in steps else need
            parts[name] = plan.estimated(part, config.get(of), steps.get(of, 0), sets, speed)
    return parts


def _check(name, one, config, sets):
    """Raises UserError, with the full name of the key, for what the part's own task would refuse before it begins."""
    part = one.config
    usable = [of_set for of_set in plan.datasets(part) if of_set not in sets or not sets[of_set].problem]
    try:
        if part.task == 'pretrain':
            pretrain.check(part, jax.default_backend())
        elif part.task == 'layer_transfer':
            layer_transfer.check(part, usable, one.workdir, config[_NEEDS[name][0]].model.layers)
        elif part.task in ('sweep', 'ablation'):
            {'sweep': sweep.check_runs, 'ablation': ablation.check}[part.task](part, usable, one.workdir)
        elif part.task in ('zero_shot', 'generate'):
            _TASKS[part.task].check(part)
    except UserError as error:
        if not str(error).startswith(str(one.workdir)):
            raise UserError(f'{name}.{error}') from None
        raise UserError(f'{name}: {error}') from None


def _size(config) -> int:
    """Bytes of the corpus."""
    return open_corpus(config.text, download=config.prepare.data.download).size


def _steps(one, config, workdir) -> int:
    """The number of updates of a pre-training run."""
    if result := one.result():
        return result.facts['steps']
    data, tokens = one.config.data, one.config.data.tokens
    if not tokens:
        shards = _shards(config, workdir)
        prepared = (shards / 'index.json').exists()
        whole = load_shards(shards).splits['train'].tokens if prepared else _size(config) / cost.CHARACTERS
        tokens = data.epochs * whole
    return cost.whole_steps(tokens / (data.batch_size * one.config.model.n_positions))
