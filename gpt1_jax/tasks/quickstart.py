"""The whole method at a small scale: pre-train once, fine-tune each input transformation with and without it."""

import jax
from absl import logging

from gpt1_jax import config as common
from gpt1_jax.data.datasets import REGISTRY
from gpt1_jax.tasks import finetune, pretrain


def run(config, workdir) -> dict:
    """Runs `config.pretrain`, then `config.finetune` on each of `config.datasets`, from the pre-trained model and from
    scratch; prints and returns one table, {data set: {'metric', 'pretrained', 'scratch', 'chance'}}.

    What an earlier call finished in `workdir` is not done again.
    """
    # The runs with and without pre-training, and of a later call, share their compiled steps.
    common.cache_compiled_steps(workdir / 'compiled')
    with config.unlocked():
        for part in (config.pretrain, config.finetune):
            part.seed = config.seed
    language_model = pretrain.run(config.pretrain, workdir / 'pretrain')
    table = {}
    for name in config.datasets:
        scores = {}
        for start, n_transfer in (('pretrained', None), ('scratch', -1)):
            logging.info('fine-tuning on %s, %s', name, start)
            run_config = config.finetune.copy_and_resolve_references()
            run_config.update(init_from=str(workdir / 'pretrain'), n_transfer=n_transfer)
            run_config.data.dataset = name
            results = finetune.run(run_config, workdir / name / start)
            scores[start] = results['dev_score']
        dataset = REGISTRY[name]
        table[name] = {'kind': dataset.kind, 'metric': dataset.metrics[0], **scores, 'chance': 1 / len(dataset.labels),
                       'dev_examples': results['dev_examples']}
    if jax.process_index() == 0:
        common.write_json(workdir / 'results.json',
                          {'valid_perplexity': language_model['valid_perplexity'], 'table': table})
        _print_table(table, language_model)
    return table


def _print_table(table, language_model):
    print(f'\nPre-trained on {language_model["tokens"]:,} tokens of documentation: held-out perplexity '
          f'{language_model["valid_perplexity"]:.1f}. Dev {next(iter(table.values()))["metric"]} after fine-tuning:\n')
    print(f'{"data set":<20}{"input":<18}{"pre-trained":>12}{"from scratch":>14}{"chance":>8}')
    for name, row in table.items():
        print(f'{name:<20}{row["kind"]:<18}{row["pretrained"]:>12.3f}{row["scratch"]:>14.3f}{row["chance"]:>8.3f}')
    better = sum(row['pretrained'] > row['scratch'] for row in table.values())
    print(f'\nPre-training helps on {better} of {len(table)}. One dev set has {row["dev_examples"]} examples: the '
          f'standard error of a score is about {(0.25 / row["dev_examples"]) ** 0.5:.3f}.')
