"""The whole method at a small scale: pre-train once, fine-tune each input transformation with and without it."""

import time

from etils import epath
from ml_collections import ConfigDict

from gpt1_jax.config import cache_compiled_steps, open_workdir
from gpt1_jax.data.labelled.registry import REGISTRY
from gpt1_jax.report.results import Result, record
from gpt1_jax.report.tables import format_table
from gpt1_jax.tasks import pretrain, sweep
from gpt1_jax.training.partitioning import is_writer


def run(config: ConfigDict, workdir: epath.Path) -> Result:
    """Runs `config.pretrain`, then `config.finetune` on each of `config.datasets`, from the pre-trained model and from
    scratch; prints one table.

    The scores are those of pre-training and, with the variants 'pretrained' and 'scratch', of fine-tuning. What an
    earlier call finished in `workdir` is not done again.
    """
    started = time.monotonic()
    with config.unlocked():
        config.pretrain.seed = config.seed
    open_workdir(config, workdir, write=is_writer())
    # The runs with and without pre-training, and of a later call, share their compiled steps.
    cache_compiled_steps(workdir / 'compiled')
    language_model = pretrain.run(config.pretrain, workdir / 'pretrain')
    pairs = config.finetune.copy_and_resolve_references()
    with pairs.unlocked():
        pairs.update(
            seed=config.seed,
            init_from=str(workdir / 'pretrain'),
            datasets=config.datasets,
            seeds=1,
            variants=ConfigDict({'pretrained': {}, 'scratch': {'n_transfer': -1}}),
        )
    fine_tuning = sweep.fine_tune_all(pairs, workdir)
    result = record(
        config,
        workdir,
        started,
        scores=language_model.scores + fine_tuning.scores,
        facts=language_model.facts | fine_tuning.facts,
        model=language_model.model,
    )
    if is_writer():
        print(f'\n{format_scores(result)}')
    return result


def format_scores(result: Result) -> str:
    """The table of `run`'s result, after the last step of each run, between two sentences."""
    dev = {
        (score.dataset, score.variant): score
        for score in result.select(split='dev', subset='', checkpoint='last')
        if score.metric == REGISTRY[score.dataset].metrics[0]
    }
    names = list(dict.fromkeys(name for name, _ in dev))
    entries = [
        (
            name,
            REGISTRY[name].kind,
            dev[name, 'pretrained'].value,
            dev[name, 'scratch'].value,
            1 / len(REGISTRY[name].labels),
        )
        for name in names
    ]
    table = format_table(
        [
            ('data set', 20, ''),
            ('input', 18, ''),
            ('pre-trained', 12, '.3f'),
            ('from scratch', 14, '.3f'),
            ('chance', 8, '.3f'),
        ],
        entries,
    )
    left_out = [f'{name}: left out: {reason}' for name, reason in result.facts['left_out'].items()]
    perplexity = result.value(split='valid', metric='perplexity', checkpoint='last')
    before = (
        f'Pre-trained on {result.facts["tokens"]:,} tokens of documentation: held-out perplexity '
        f'{perplexity:.1f}. Dev {dev[names[0], "pretrained"].metric} after fine-tuning:'
    )
    better = sum(pretrained > scratch for _, _, pretrained, scratch, _ in entries)
    examples = dev[names[-1], 'scratch'].examples
    after = (
        f'Pre-training helps on {better} of {len(entries)}. One dev set has {examples} examples: the standard '
        f'error of a score is about {(0.25 / examples) ** 0.5:.3f}.'
    )
    return '\n'.join([before, '', table, *left_out, '', after])
