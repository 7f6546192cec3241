"""The whole method in miniature: pre-trains once, fine-tunes with each input transformation with and without that."""

import json
import math
import statistics
import time
from collections.abc import Iterator

from etils import epath
from ml_collections import ConfigDict

from gpt1_jax.data.labelled.docstring_sets import training_text
from gpt1_jax.data.labelled.loading import load_examples
from gpt1_jax.data.labelled.registry import REGISTRY
from gpt1_jax.evaluation import bag_of_words
from gpt1_jax.files import make_directory
from gpt1_jax.progress import waiting
from gpt1_jax.report import behaviour, curves, page
from gpt1_jax.report.blocks import Heading, Table, Text
from gpt1_jax.report.collect import collect, lines
from gpt1_jax.report.results import Result, Score, record
from gpt1_jax.report.statistics import accuracy_error
from gpt1_jax.report.tables import format_table
from gpt1_jax.tasks import finetune, generate, pretrain, sweep
from gpt1_jax.training.partitioning import is_writer
from gpt1_jax.workdir import open_workdir

STARTS = ('pretrained', 'scratch')  # variants of the fine-tuning runs, and keys of the config
BASELINES = ('bag_of_words', 'last_text')  # variants of the scores of bags of words: of all texts, of the last one
_COLUMNS = (
    'data set',
    'input',
    'pre-trained',
    'epochs',
    'from scratch',
    'epochs',
    'bag of words',
    'last text',
    'chance',
)


def run(config: ConfigDict, workdir: epath.Path) -> Result:
    """Runs `config.pretrain` and `config.generate`, then `config.finetune` on each of `config.datasets`, from the
    pre-trained model and from scratch, and bags of words; prints a table and writes WORKDIR/report.html.

    The scores are those of pre-training and, with the variants STARTS, of fine-tuning; with BASELINES, the accuracies
    on test of bags of words on the same training examples. What an earlier call finished in `workdir` is not done
    again.
    """
    started = time.monotonic()
    open_workdir(config, workdir, write=is_writer())
    parts = config.copy_and_resolve_references()
    with parts.unlocked():
        parts.pretrain.seed = parts.generate.seed = parts.finetune.seed = config.seed
        parts.pretrain.data.source, packages = f'text:{workdir / "text"}', parts.finetune.data.source
        parts.finetune.data.source = f'files:{workdir / "data"}'
        parts.generate.init_from = parts.finetune.init_from = str(workdir / 'pretrain')
    if is_writer():
        with waiting('reading documentation strings'):
            _write_text(packages, workdir / 'text')
            for name in config.datasets:
                _write_examples(name, packages, workdir / 'data' / name)
    language_model = pretrain.run(parts.pretrain, workdir / 'pretrain')
    generate.run(parts.generate, workdir / 'generate')
    variants = {start: config[start].to_dict() for start in STARTS}
    runs = sweep.with_variants(
        parts.finetune, variants, without=(), datasets=config.datasets, seeds=config.seeds, workers=config.workers
    )
    tuned = sweep.fine_tune_all(runs, workdir)
    with waiting('fitting bags of words', show=is_writer()):
        baselines = list(_baselines(runs))
    result = record(
        config,
        workdir,
        started,
        scores=language_model.scores + tuned.scores + baselines,
        facts=language_model.facts | tuned.facts,
        model=language_model.model,
    )
    if is_writer():
        _report(result, workdir)
    return result


def _write_text(source: str, folder: epath.Path) -> None:
    """Writes the text to pre-train on, a file for each documented source file."""
    make_directory(folder)
    for path, text in training_text(source.removeprefix('docs:')).items():
        (folder / f'{path.replace("/", ".")}.txt').write_text(text)


def _write_examples(name, source, folder):
    """Writes the splits of a data set as files, which people can read, and several processes at the same time."""
    make_directory(folder)
    dataset = REGISTRY[name]
    for split in dataset.splits:
        examples = load_examples(dataset, source, split)
        columns = (
            {'id': examples.ids} | examples.fields | {'label': [dataset.labels[label] for label in examples.labels]}
        )
        entries = (dict(zip(columns, row)) for row in zip(*columns.values()))
        (folder / f'{split}.jsonl').write_text(''.join(f'{json.dumps(entry)}\n' for entry in entries))


def _baselines(config) -> Iterator[Score]:
    """Bags of words on the training examples of each run of a sweep."""
    for name in config.datasets:
        dataset = REGISTRY[name]
        splits = {
            split: load_examples(dataset, f'{config.data.source}/{name}', split) for split in ('train', 'dev', 'test')
        }
        for seed in range(config.seed, config.seed + config.seeds):
            train = splits['train'].take(finetune.drawn(seed, config.data, len(splits['train'])))
            for variant, fields in zip(BASELINES, (dataset.fields, dataset.fields[-1:])):
                if variant == BASELINES[0] or fields != dataset.fields:
                    found = bag_of_words.fit(splits | {'train': train}, fields)
                    yield Score(name, 'test', 'accuracy', found.test, len(splits['test']), variant=variant, seed=seed)


def _report(result, workdir):
    """Prints the table, and writes it with the learning curves and a sample to WORKDIR/report.html and report.md."""
    before, entries, after = describe(result)
    table = format_table(
        [(_COLUMNS[0], 14, ''), (_COLUMNS[1], 17, ''), *((name, 12, '>') for name in _COLUMNS[2:])], entries
    )
    print('\n'.join(['', before, '', table, '', *after]))
    found = collect(workdir)
    blocks = [
        Heading('Accuracy on test'),
        Text(before),
        Table('', _COLUMNS, entries, after),
        *curves.fine_tuning(lines(found)),
        *curves.pretraining(found),
        *behaviour.samples(found),
    ]
    page.write_blocks('The quickstart', blocks, workdir)
    print(f'Report, with the learning curves and a generated sample: {workdir / "report.html"}')


def describe(result: Result) -> tuple[str, list[tuple], list[str]]:
    """A sentence, the entries of the table of `run`'s result, and sentences below it."""
    entries, better, not_better, errors = [], [], [], [0.0]
    for name in dict.fromkeys(score.dataset for score in result.select(split='test', variant=STARTS[0])):
        scores = {variant: _on_test(result, name, variant) for variant in (*STARTS, *BASELINES)}
        if not scores['scratch']:
            continue  # it has diverged, and is among those left out
        entries.append(
            (name, REGISTRY[name].kind, *_cells(result, name, scores), f'{1 / len(REGISTRY[name].labels):.3f}')
        )
        medians = {variant: statistics.median(score.value for score in of) for variant, of in scores.items() if of}
        error = {variant: accuracy_error(value, scores[variant][0].examples) for variant, value in medians.items()}
        errors.append(max(error.values()))
        beaten = all(
            medians['pretrained'] - medians[other] > 2 * math.hypot(error['pretrained'], error[other])
            for other in ('scratch', 'bag_of_words')
        )
        (better if beaten else not_better).append(name)
    examples = sorted({number for of in result.facts['train_examples'].values() for number in of.values()})
    before = (
        f'Pre-trained on {result.facts["tokens"]:,} tokens of documentation: held-out perplexity '
        f'{result.value(split="valid", metric="perplexity", checkpoint="last"):.1f}. Accuracy on test after '
        f'{" to ".join(map(str, examples))} labelled examples:'
    )
    after = [
        f'Epochs: at the best dev score, and in all: a run ends after {result.config["finetune"]["data"]["patience"]} '
        'without a better one.',
        f'The standard error of a score is at most {max(errors):.3f}.',
        f'Pre-training beats both other models by two standard errors or more on: {", ".join(better) or "none"}.',
        f'It does not on: {", ".join(not_better) or "none"}.',
        *(f'{name}: left out: {reason}' for name, reason in result.facts['left_out'].items()),
    ]
    return before, entries, after


def _on_test(result, name, variant) -> list[Score]:
    return list(result.select(dataset=name, variant=variant, split='test', metric='accuracy', subset=''))


def _cells(result, name, scores) -> Iterator[str]:
    """Accuracies, and the epochs of the runs: medians over seeds, and the lowest to the highest."""
    for variant, of in scores.items():
        values = sorted(score.value for score in of)
        spread = f' ({values[0]:.3f} to {values[-1]:.3f})' if len(values) > 1 else ''
        yield f'{statistics.median(values):.3f}{spread}' if values else ''
        if variant in STARTS:
            yield ' of '.join(f'{_epochs(result, name, variant, checkpoint):.0f}' for checkpoint in ('best', 'last'))


def _epochs(result, name, variant, checkpoint):
    """The number of epochs up to a checkpoint, the median over seeds."""
    steps = result.facts['train_examples'][name][variant] // result.config['finetune']['data']['batch_size']
    of = result.select(dataset=name, variant=variant, split='dev', metric='accuracy', subset='', checkpoint=checkpoint)
    return statistics.median(score.step / steps for score in of)
