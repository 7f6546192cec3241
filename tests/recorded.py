"""Runs as the tasks leave them, without running any, and the report's tables: for tests of the report."""

import functools
import json
import tempfile

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from configs import ablation, evaluate, evaluate_text, finetune, generate, layer_transfer, prepare, pretrain, zero_shot
from gpt1_jax.config import as_json
from gpt1_jax.data.labelled.registry import REGISTRY
from gpt1_jax.evaluation import metrics
from gpt1_jax.evaluation.paper import ZERO_SHOT, scaled
from gpt1_jax.report import collect
from gpt1_jax.report.blocks import Figure, Table
from gpt1_jax.report.results import Result, Score

MODEL = {
    'kind': 'transformer',
    'sizes': {'layers': 4, 'width': 128, 'heads': 4, 'mlp_width': 512, 'n_positions': 128},
    'parameters': 1_321_216,
    'tokens_seen': 2_048_000,
}
LSTM = {
    'kind': 'lstm',
    'sizes': {'layers': 1, 'width': 128, 'units': 344, 'n_positions': 128},
    'parameters': 1_290_752,
    'tokens_seen': 2_048_000,
}
STEPS = (1, 10, 100, 1000)
DEV = 200  # examples
HOSTILE = '<script>alert("wrong & loud")</script> | `code` **bold** </blockquote>'


_folder = tempfile.TemporaryDirectory(prefix='gpt1_jax_recorded_')


@functools.cache
def everything():
    """A folder that `write_all` has filled. Copy it before you change it."""
    folder = epath.Path(_folder.name) / 'all'
    write_all(folder)
    return folder


@functools.cache
def collected():
    """(the runs of `everything`, their lines)"""
    runs = collect.collect(everything())
    return runs, collect.lines(runs)


def stored(path):
    """A results.json of `everything`, as JSON."""
    return json.loads((everything() / path / 'results.json').read_text())


def value(path, **wanted):
    """The value of the one score of a results.json of `everything` that has these attributes."""
    (score,) = (one for one in stored(path)['scores'] if all(one[name] == v for name, v in wanted.items()))
    return score['value']


def tables(blocks):
    """The tables of some blocks, with those of the figures, by caption: a list of dicts, column -> text of the cell."""
    found = {}
    for block in blocks:
        table = block.numbers if isinstance(block, Figure) else block
        if isinstance(table, Table):
            text = lambda cell: cell if isinstance(cell, str | None) else cell.text
            entries = [dict(zip(table.columns, map(text, entry), strict=True)) for entry in table.entries]
            found.setdefault(table.caption, []).extend(entries)
    return found


def entry(entries, **wanted):
    """The one entry of a table with these cells; spaces in the columns' names are underscores."""
    (found,) = (one for one in entries if all(one[name.replace('_', ' ')] == text for name, text in wanted.items()))
    return found


def texts(blocks, kind):
    """The sentences of all blocks of a kind."""
    return [block.text for block in blocks if isinstance(block, kind)]


def write_all(folder):
    """A folder with runs of every task, some of them unfinished."""
    folder.mkdir(parents=True, exist_ok=True)
    prepared = Result('prepare', [], _PREPARED, None, as_json(prepare.get_config()), 61.0)
    _write(folder / 'prepare', prepared)
    write_pretraining(folder / 'pretrain', 'tiny', MODEL, 6.0)
    write_pretraining(folder / 'pretrain_lstm', 'tiny_lstm', LSTM, 6.5)
    write_pretraining(folder / 'pretrain_other', 'small', MODEL | {'parameters': 6_843_392}, 5.0, vocabulary='b' * 16)
    write_pretraining(folder / 'pretrain_half', 'tiny', MODEL, 6.2, finished=False)
    write_zero_shot(folder / 'zero_shot', folder / 'pretrain', MODEL, 0.5)
    write_zero_shot(folder / 'zero_shot_lstm', folder / 'pretrain_lstm', LSTM, 0.3)
    write_text(folder / 'text', folder / 'pretrain')
    write_evaluation(folder / 'evaluation')
    for step in (10, 1000):
        write_samples(folder / 'samples' / str(step), folder / 'pretrain', step)
    sets = ('cola', 'sst2', 'stsb', 'mnli', 'race')
    write_sweep(folder / 'finetune', finetune.get_config('all'), sets, {'': 0.8}, seeds=3)
    write_sweep(folder / 'half', finetune.get_config('all'), ('rte', 'mrpc'), {'': 0.6}, seeds=2, unfinished=3)
    layers = {f'layers{n}': 0.4 + 0.08 * n for n in range(5)}
    write_sweep(folder / 'layer_transfer_race', layer_transfer.get_config('race'), ('race',), layers, seeds=2)
    table5 = {'full': 0.8, 'no_pretraining': 0.6, 'no_auxiliary': 0.79, 'lstm': 0.7}
    write_sweep(folder / 'ablation_table5', ablation.get_config('table5'), ('cola', 'stsb', 'mnli'), table5, seeds=3)
    weights = {f'lambda{x:g}': 0.7 + 0.1 * x for x in (0, 0.1, 0.5, 1, 2)}
    write_sweep(folder / 'ablation_lambda', ablation.get_config('lambda'), ('cola', 'sst2'), weights, seeds=2)
    shares = {
        f'share{x:g}{start}': 0.5 + 0.3 * x - 0.1 * bool(start) for x in (0.01, 0.1, 1) for start in ('', '_scratch')
    }
    write_sweep(folder / 'ablation_share', ablation.get_config('share'), ('sst2',), shares, seeds=2)


_PREPARED = {
    'documents': {'train': 440, 'valid': 15},
    'tokens': {'train': 41_234_567, 'valid': 1_345_678},
    'vocab_size': 4000,
    'characters_per_token': 4.1,
}


def _write(folder, result):
    result.write(folder)
    (folder / 'config.json').write_text(json.dumps(result.config))


def _write_metrics(folder, lines):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps({'time': 1.7e9} | line) + '\n' for line in lines))


def write_pretraining(folder, size, model, loss, *, vocabulary='a' * 16, finished=True):
    """1,000 updates, logged every 10, evaluated every 100."""
    config = pretrain.get_config(size)
    config.data.update(source='text:/books', batch_size=16, tokens=2_048_000)
    rng, lines = np.random.default_rng(3), []
    for step in range(10, 1001 if finished else 501, 10):
        value = loss + 3 * np.exp(-step / 150)
        lines.append(
            {'step': step, 'loss': value + 0.05 * rng.normal(), 'tokens_per_second': 12_345.0 + step, 'skipped': 0.0}
        )
        if step % 100 == 0:
            evaluated = {'valid_loss': value + 0.1, 'valid_perplexity': float(np.exp(value + 0.1))}
            lines.append({'step': step} | evaluated | {'zero_shot_cola': 0.01 * step / 100, 'zero_shot_sst2': 0.5})
    _write_metrics(folder, lines)
    (folder / 'tokenizer').mkdir()
    (folder / 'tokenizer' / 'tokenizer.json').write_text(json.dumps({'kind': 'x', 'fingerprint': vocabulary}))
    (folder / 'config.json').write_text(json.dumps(as_json(config)))
    if finished:
        scores = [
            Score('text:/books', 'valid', metric, value, 65_536, checkpoint=checkpoint, step=1000)
            for checkpoint in ('last', 'best')
            for metric, value in (('loss', evaluated['valid_loss']), ('perplexity', evaluated['valid_perplexity']))
        ]
        facts = {'steps': 1000, 'tokens': 2_048_000, 'flops': 1.234e15}
        _write(folder, Result('pretrain', scores, facts, model, as_json(config), 166.0))


def write_zero_shot(folder, model_folder, model, strength):
    config = zero_shot.get_config()
    config.init_from = f'{model_folder}@all'
    config.data.limit = DEV
    scores, checkpoints = [], []
    for i, step in enumerate(STEPS):
        for j, (name, (metric, chance, _)) in enumerate(ZERO_SHOT.items()):
            value = chance + strength * (i + 1) * (j + 1) / 60
            for of, number in ((metric, value), ('scaled', scaled(name, value))):
                if number is not None:
                    scores.append(Score(name, 'dev', of, number, DEV, step=step))
        checkpoints.append(
            {'step': step, 'tokens_seen': 2048 * step, 'cola_threshold': -5.25, 'ties': dict.fromkeys(ZERO_SHOT, 0)}
        )
    facts = {'checkpoints': checkpoints, 'examples': dict.fromkeys(ZERO_SHOT, DEV), 'left_out': {}}
    facts['cut'] = dict.fromkeys(ZERO_SHOT, 0) | {'race': 190}
    _write(folder, Result('zero_shot', scores, facts, model, as_json(config), 45.0))


def write_text(folder, model_folder):
    config = evaluate_text.get_config()
    config.init_from = str(model_folder)
    values = {'log_probability': -6543.21, 'loss': 5.4321, 'perplexity': 228.63, 'word_perplexity': 1234.5}
    scores = [Score('text:/other', 'text', name, value, 1205) for name, value in values.items()]
    _write(folder, Result('evaluate_text', scores, {'tokens': 1205}, MODEL, as_json(config), 5.0))


def write_evaluation(folder):
    config = evaluate.get_config('sst2')
    config.split = 'test'
    scores = [Score('sst2', 'test', 'accuracy', 0.7654, 1821)]
    _write(folder, Result('evaluate', scores, {'examples': 1821}, MODEL, as_json(config), 7.0))


def write_samples(folder, model_folder, step):
    config = generate.get_config()
    config.update(init_from=f'{model_folder}@{step}', temperature=0.9)
    made = [{'prompt': 'the sea', 'sample': i, 'text': f' was {step} times {HOSTILE}', 'tokens': 9} for i in range(4)]
    _write(folder, Result('generate', [], {'samples': 4, 'tokens': 36}, MODEL, as_json(config), 3.0))
    (folder / 'generations.jsonl').write_text(''.join(json.dumps(one | {'ended_by': 'stop'}) + '\n' for one in made))


def write_sweep(folder, config, sets, variants, *, seeds, unfinished=0):
    """The runs of a task that is built on the sweep. The last `unfinished` of them have not ended, nor has the sweep.

    variants: name -> how often its runs are right, about.
    """
    config = ConfigDict(as_json(config))
    config.update(init_from=str(folder.parent / 'pretrain'), seeds=seeds)
    config.data.source = 'files:/data'
    folder.mkdir(parents=True)
    plan = [
        {
            'dataset': name,
            'variant': variant,
            'seed': seed,
            'path': '/'.join(filter(None, (name, variant, f'seed{seed}'))),
        }
        for name in sets
        for variant in variants
        for seed in range(seeds)
    ]
    (folder / 'runs.json').write_text(json.dumps(plan))
    (folder / 'config.json').write_text(json.dumps(as_json(config)))
    for i, one in enumerate(plan):
        finished = i < len(plan) - unfinished
        of_all = dict(finished=finished, rest=config.get('rest', 'fresh'))
        write_run(folder / one['path'], one, variants[one['variant']], folder.parent / 'pretrain', **of_all)
    if not unfinished:
        _write(folder, Result(config.task, [], {'left_out': {'wnli': 'no folder for it'}}, None, as_json(config), 90.0))


def write_few(folder):
    """A sweep of two runs, the model that it starts from, and samples of that; returns the folder."""
    write_pretraining(folder / 'pretrain', 'tiny', MODEL, 6.0)
    write_samples(folder / 'samples', folder / 'pretrain', 10)
    write_sst2(folder / 'tuned', seeds=2)
    return folder


def named(folder):
    """Name -> run, of those that the report finds."""
    return {run.name: run for run in collect.collect(folder)}


def write_sst2(folder, *, seeds):
    """The smallest sweep."""
    write_sweep(folder, finetune.get_config('all'), ('sst2',), {'': 0.8}, seeds=seeds)


def write_run(folder, one, share, model_folder, *, finished=True, rest='fresh'):
    """A fine-tuning run of three epochs of 20 updates."""
    dataset = REGISTRY[one['dataset']]
    config = finetune.get_config(dataset.name)
    config.update(seed=one['seed'], init_from=str(model_folder), rest=rest)
    config.data.update(source=f'files:/data/{dataset.name}', limit=None if dataset.name == 'race' else 640)
    rng = np.random.default_rng([len(one['path']), one['seed']])
    lines = [{'step': step, 'task_loss': 1 / step + share, 'loss': 2.0} for step in range(1, 61 if finished else 31)]
    lines += [{'step': step, 'dev_score': share * step / 60} for step in ((20, 40, 60) if finished else (20,))]
    _write_metrics(folder, sorted(lines, key=lambda line: line['step']))
    (folder / 'config.json').write_text(json.dumps(as_json(config)))
    (folder / 'tokenizer').mkdir()
    (folder / 'tokenizer' / 'tokenizer.json').write_text(json.dumps({'kind': 'x', 'fingerprint': 'a' * 16}))
    if not finished:
        return
    labels, logits = _predict(dataset, share, rng)
    subsets = ['middle', 'high'] * (DEV // 2) if dataset.subset_field else None
    scores = []
    for split in ('dev', 'dev_mismatched') if dataset.name == 'mnli' else ('dev',):
        for metric, subset, value, n in metrics.score(dataset.metrics, dataset.loss, labels, logits, subsets):
            for checkpoint in ('last', 'best'):
                of = dict(subset=subset, checkpoint=checkpoint, step=60, seed=one['seed'])
                scores.append(Score(dataset.name, split, metric, value - 0.01 * (split != 'dev'), n, **of))
    scores.append(
        Score(
            dataset.name, 'train', dataset.metrics[0], min(1.0, share + 0.1), 100, checkpoint='best', seed=one['seed']
        )
    )
    facts = {'dataset': dataset.name, 'steps': 60, 'train_examples': 640, 'dev_examples': DEV, 'cut_sequences': 1234}
    facts['dev_constant'] = metrics.constant(dataset.metrics[0], labels)
    model = LSTM if one['variant'] == 'lstm' else MODEL
    _write(folder, Result('finetune', scores, facts, model, as_json(config), 12.0))
    arrays = {'labels': labels, 'logits': logits.astype(np.float32)} | ({} if subsets is None else {'subsets': subsets})
    np.savez_compressed(folder / 'dev.npz', **arrays)
    names = dataset.labels or ('0.00', '5.00')
    wrong = [
        {'index': i, 'texts': [f'text {i} {HOSTILE}', 'second\ntext'], 'label': names[0], 'prediction': names[1]}
        for i in range(0, 60, 4)
    ]
    (folder / 'dev_errors.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in wrong))


def _predict(dataset, share, rng):
    """Labels, the same for every run of a set, and logits that are right about so often."""
    fixed = np.random.default_rng(7)
    if dataset.labels is None:
        labels = fixed.integers(0, 11, DEV) / 2
        said = labels + (2.5 * (1 - share) + 0.1) * rng.normal(size=DEV)
        return labels.astype(np.float32), -2.0 * (np.arange(6) - said[:, None]) ** 2
    labels = fixed.integers(len(dataset.labels), size=DEV).astype(np.int32)
    said = np.where(rng.random(DEV) < share, labels, rng.integers(len(dataset.labels), size=DEV))
    return labels, 3.0 * np.eye(len(dataset.labels))[said] + 0.1 * rng.normal(size=(DEV, len(dataset.labels)))
