"""The quickstart: which runs it makes, and the table that it prints, which README.md shows."""

import pytest
from etils import epath

from configs import quickstart as quickstart_config
from gpt1_jax.report import results
from gpt1_jax.report.results import Result, Score
from gpt1_jax.tasks import finetune, pretrain, quickstart, sweep

pytestmark = pytest.mark.slow

# As measured with seed 0: from the pre-trained model, from scratch.
DEV = {
    'docs_package': (0.5625, 0.27),
    'docs_follows': (0.68, 0.5),
    'docs_same': (0.4975, 0.5025),
    'docs_continuation': (0.6125, 0.2625),
}
PRINTED = """
Pre-trained on 1,300,000 tokens of documentation: held-out perplexity 83.2. Dev accuracy after fine-tuning:

data set            input              pre-trained  from scratch  chance
docs_package        classification           0.562         0.270   0.250
docs_follows        entailment               0.680         0.500   0.500
docs_same           similarity               0.497         0.502   0.500
docs_continuation   multiple_choice          0.613         0.263   0.250

Pre-training helps on 3 of 4. One dev set has 400 examples: the standard error of a score is about 0.025.
"""


@pytest.fixture
def runs(monkeypatch):
    """Workdir of a run -> its config; instead of training, it has the scores above, and wrong ones as the best."""
    configs = {}

    def pretrain_run(config, workdir):
        configs[workdir] = config
        scores = [
            Score('docs:', 'valid', 'perplexity', value, 9, checkpoint=checkpoint)
            for checkpoint, value in (('last', 83.24), ('best', 80.0))
        ]
        return Result('pretrain', scores, {'tokens': 1_300_000}, {'parameters': 7}, {}, 1.0)

    def finetune_run(config, workdir):
        configs[workdir] = config
        value = DEV[config.data.dataset][config.n_transfer == -1]
        scores = [
            Score(
                config.data.dataset,
                'dev',
                metric,
                value + (metric == 'f1') + (checkpoint == 'best'),
                400,
                checkpoint=checkpoint,
            )
            for checkpoint in ('last', 'best')
            for metric in ('accuracy', 'f1')
        ]
        return Result('finetune', scores, {'train_examples': 1000}, {'parameters': 8}, {}, 1.0)

    monkeypatch.setattr(pretrain, 'run', pretrain_run)
    monkeypatch.setattr(finetune, 'run', finetune_run)
    monkeypatch.setattr(sweep, '_uris', lambda config: (dict.fromkeys(config.datasets, config.data.source), {}))  # slow
    return configs


def test_the_printed_table_is_that_of_the_readme(runs, tmp_path, capsys):
    quickstart.run(quickstart_config.get_config(), epath.Path(tmp_path))
    assert capsys.readouterr().out == PRINTED


def test_each_set_is_run_with_and_without_pretraining_and_one_seed(runs, tmp_path):
    config = quickstart_config.get_config()
    config.seed = 5
    config.finetune.data.limit = 300
    result = quickstart.run(config, epath.Path(tmp_path))
    assert [str(path.relative_to(tmp_path)) for path in runs] == [
        'pretrain',
        *(f'{name}/{variant}/seed0' for name in DEV for variant in ('pretrained', 'scratch')),
    ]
    language_model, *classifiers = runs.values()
    assert [config.n_transfer for config in classifiers] == 4 * [None, -1]
    assert {config.init_from for config in classifiers} == {str(tmp_path / 'pretrain')}
    assert {config.seed for config in runs.values()} == {5} == {language_model.seed}
    assert {config.data.limit for config in classifiers} == {300}
    stored = results.read(epath.Path(tmp_path))
    assert stored.scores == result.scores and len(stored.scores) == 2 + 4 * 2 * 4
    assert stored.value(dataset='docs_same', variant='scratch', checkpoint='last', metric='accuracy') == 0.5025
    assert stored.model == {'parameters': 7} and stored.config['seed'] == 5
