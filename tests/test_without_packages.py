"""The whole chain where TensorFlow, TFDS, tensorboardX, tqdm, huggingface_hub, pyarrow, spaCy, ftfy and tokenizers are
not installed."""

import json
import random
import subprocess
import sys

import pytest
from etils import epath

import helpers
from configs.common import data_defaults
from gpt1_jax.data.corpus.preparation import prepare
from gpt1_jax.data.labelled import encoding
from gpt1_jax.data.labelled.loading import load_examples
from gpt1_jax.data.labelled.registry import custom_dataset
from gpt1_jax.data.labelled.token_folder import write_tokens
from gpt1_jax.data.tokenizers.loading import load_tokenizer
from gpt1_jax.report import results
from helpers import ENVIRONMENT, HIDDEN, SITECUSTOMIZE, checksums, sentence

pytestmark = pytest.mark.slow

CLASSIFY = ['--config.data.kind=classification', '--config.data.fields=text', '--config.data.labels=sea,farm']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Shards, a data set as text and as tokens, made where all packages are; and what hides the packages."""
    folder, rng = tmp_path_factory.mktemp('chain'), random.Random(0)
    (folder / 'hide').mkdir()
    (folder / 'hide' / 'sitecustomize.py').write_text(SITECUSTOMIZE)
    (folder / 'book.txt').write_text('\n'.join(sentence(rng, ('sea', 'farm')[i // 9 % 2]) for i in range(1500)))
    prepare(data_defaults(source=f'text:{folder / "book.txt"}', vocab_size=400, workers=1), folder / 'shards')
    (folder / 'text').mkdir()
    for split, n in (('train', 120), ('dev', 40)):
        rows = [{'text': sentence(rng, label), 'label': label} for label in rng.choices(('sea', 'farm'), k=n)]
        (folder / 'text' / f'{split}.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    dataset = custom_dataset(
        kind='classification',
        fields=('text',),
        labels=('sea', 'farm'),
        metrics=(),
        label_field='label',
        uri=f'files:{folder / "text"}',
        max_score=0,
    )
    tokenizer = load_tokenizer(folder / 'shards' / 'tokenizer')
    splits = {
        split: encoding.encode(dataset, load_examples(dataset, f'files:{folder / "text"}', split), tokenizer, 32)
        for split in ('train', 'dev')
    }
    write_tokens(
        folder / 'tokens', dataset.name, splits, fingerprint=tokenizer.fingerprint, max_length=32, rule=dataset.rule
    )
    return folder


def run(folder, config, *flags, hide=True, status=0):
    output, errors = helpers.run(config, *flags, status=status, path=str(folder / 'hide') if hide else '')
    assert 'Traceback' not in errors, errors
    return output, errors


def pretrain_flags(folder, name):
    return (
        'pretrain.py:tiny',
        f'--config.data.source=shards:{folder / "shards"}',
        f'--workdir={folder / name}',
        '--config.model.layers=1',
        '--config.model.width=32',
        '--config.model.mlp_width=128',
        '--config.model.n_positions=32',
        '--config.data.batch_size=8',
        '--config.data.tokens=5120',
        '--config.optimizer.warmup_steps=5',
        '--config.log.eval_every=10',
    )


@pytest.fixture(scope='module')
def language_model(folder):
    _, errors = run(folder, *pretrain_flags(folder, 'books'))
    assert errors.count('TensorFlow is not installed: threads read the batches ahead') == 1
    assert errors.count('tensorboardX is not installed') == 1
    return folder / 'books'


def test_pretraining_has_the_bits_that_it_has_with_all_packages(folder, language_model):
    assert not (language_model / 'tensorboard').exists()
    run(folder, *pretrain_flags(folder, 'with'), hide=False)
    assert (folder / 'with' / 'tensorboard').exists()
    assert checksums(language_model, 20) == checksums(folder / 'with', 20)


def result_of(workdir):
    return results.read(epath.Path(workdir))


def test_finetuning_evaluation_generation_and_conversion(folder, language_model):
    run(
        folder,
        'finetune.py:custom',
        f'--config.init_from={language_model}',
        f'--workdir={folder / "subject"}',
        f'--config.data.source=tokens:{folder / "tokens"}',
        *CLASSIFY,
        '--config.optimizer.learning_rate=0.01',
    )
    # The same from text that needs no package: plain ASCII.
    run(
        folder,
        'finetune.py:custom',
        f'--config.init_from={language_model}',
        f'--workdir={folder / "from-text"}',
        f'--config.data.source=files:{folder / "text"}',
        *CLASSIFY,
        '--config.optimizer.learning_rate=0.01',
        '--config.data.cache=off',
    )
    subject, from_text = result_of(folder / 'subject'), result_of(folder / 'from-text')
    assert (subject.scores, subject.facts, subject.model) == (from_text.scores, from_text.facts, from_text.model)
    assert subject.facts['train_examples'] == 120 and len(subject.scores) == 2
    run(
        folder,
        'evaluate.py:custom',
        f'--config.init_from={folder / "subject"}',
        f'--workdir={folder / "dev"}',
        f'--config.data.source=tokens:{folder / "tokens"}',
        *CLASSIFY,
    )
    assert result_of(folder / 'dev').value(split='dev', metric='accuracy') == subject.value(checkpoint='best')
    for form in ('openai', 'hf'):
        run(
            folder,
            'convert.py',
            f'--config.source={language_model}',
            f'--config.target={form}:{folder / form}',
            f'--workdir={folder / "converted"}',
        )
    texts = [
        run(
            folder,
            'generate.py',
            f'--config.init_from={uri}',
            '--config.prompt=the ship and the',
            '--config.max_tokens=8',
            '--config.temperature=0',
            f'--workdir={folder / "texts"}{i}',
        )[0]
        for i, uri in enumerate((language_model, f'openai:{folder / "openai"}', f'hf:{folder / "hf"}'))
    ]
    assert len(set(texts)) == 1 and texts[0].startswith('the ship and the ')


@pytest.mark.parametrize(
    ('config', 'flags', 'message'),
    [
        (
            'finetune.py:sst2',
            ('--config.data.source=tfds:glue/sst2',),
            'tensorflow_datasets: This package is not installed',
        ),
        (
            'pretrain.py:tiny',
            ('--config.init_from=', '--config.data.source=tfds:pg19'),
            'tensorflow_datasets: This package is not installed',
        ),
        ('generate.py', ('--config.prompt=caf\u00e9',), 'ftfy: This package is not installed'),
        ('generate.py', ('--config.init_from=hf:someone/model',), 'huggingface_hub: This package is not installed'),
        (
            'finetune.py:sst2',
            ('--config.data.source=hf:nyu-mll/glue:sst2',),
            'huggingface_hub: This package is not installed',
        ),
    ],
)
def test_what_needs_a_package_says_so(folder, language_model, config, flags, message):
    init_from = () if any('init_from' in flag for flag in flags) else (f'--config.init_from={language_model}',)
    _, error = run(folder, config, *init_from, *flags, f'--workdir={folder / "refused"}', status=2)
    assert message in error.splitlines()[-1] and 'pip install' in error.splitlines()[-1]


def test_the_packages_are_hidden(folder):
    code = f'import importlib.util as u; print([u.find_spec(name) for name in {HIDDEN}])'
    done = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | {'PYTHONPATH': str(folder / 'hide')},
    )
    assert done.stdout.strip() == str([None] * len(HIDDEN))
