"""A text, labelled sets and configs for runs of a few seconds in this process, which several test files need."""

import contextlib
import json
import random

import jax
import pytest

from configs import common, evaluate, finetune, pretrain
from gpt1_jax.data.corpus.preparation import prepare
from gpt1_jax.training.partitioning import Partitioner
from helpers import SUBJECTS, sentence, some_words

TINY = dict(layers=1, width=16, heads=2, mlp_width=64, n_positions=32)


def write_data(folder):
    """folder/books, and folder/shards of them; folder/labelled (which subject?); folder/story_cloze (two endings)."""
    rng = random.Random(0)
    (folder / 'books').mkdir()
    for i in range(4):
        text = '\n'.join(sentence(rng, rng.choice(list(SUBJECTS))) for _ in range(150))
        (folder / 'books' / f'{i}.txt').write_text(text)
    prepare(
        common.data_defaults(source=f'text:{folder}/books', vocab_size=320, held_out=0.25, workers=1), folder / 'shards'
    )
    for name, make, split, n in (
        ('labelled', _subject, 'train', 40),
        ('labelled', _subject, 'dev', 16),
        ('story_cloze', _story, 'validation', 60),
    ):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / f'{split}.jsonl').write_text('\n'.join(json.dumps(make(rng)) for _ in range(n)))


def _subject(rng):
    subject = rng.choice(list(SUBJECTS))
    return {'text': sentence(rng, subject), 'label': subject}


def _story(rng):
    return {
        'context': some_words(rng, 4),
        'endings': [some_words(rng, 1), some_words(rng, 1)],
        'label': rng.randint(1, 2),
    }


def pretraining(folder, size='tiny'):
    """Eight updates, an evaluation and a checkpoint after every four."""
    config = pretrain.get_config(size)
    if size == 'tiny':
        config.model.update(TINY)
    config.data.update(source=f'shards:{folder}/shards', batch_size=8, tokens=8 * 8 * 32)
    config.optimizer.update(warmup_steps=2, learning_rate=0.01)
    config.checkpoint.every = config.log.eval_every = 4
    config.log.every = 1
    return config


def _labelled(config, folder, init_from):
    config.init_from = str(init_from)
    config.data.update(
        source=f'files:{folder}/labelled', kind='classification', fields='text', labels='sea,farm', cache='off'
    )
    return config


def finetuning(folder, init_from):
    """Ten updates, an evaluation after every five."""
    config = _labelled(finetune.get_config('custom'), folder, init_from)
    config.data.update(batch_size=8, epochs=2.0)
    config.optimizer.learning_rate = 0.01
    config.log.every = 1
    return config


def stories(folder, init_from):
    """The same of multiple choice."""
    config = finetune.get_config('story_cloze')
    config.init_from = str(init_from)
    config.data.update(source=f'files:{folder}/story_cloze', cache='off', batch_size=8, epochs=2.0)
    return config


def evaluation(folder, init_from):
    return _labelled(evaluate.get_config('custom'), folder, init_from)


def text_evaluation(folder, init_from):
    config = evaluate.get_config('text')
    config.init_from = str(init_from)
    config.data.source = f'text:{folder}/books/0.txt'
    return config


def losses(workdir):
    """Of every update, from the log."""
    lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    return [line['loss'] for line in lines if 'loss' in line]


@contextlib.contextmanager
def on_one_device(*tasks):
    """These tasks compute on one device: many would only take longer here."""
    with pytest.MonkeyPatch.context() as patch:
        for task in tasks:
            patch.setattr(task, 'Partitioner', lambda *_: Partitioner('dp', (1, 1, 1), jax.devices()[:1]))
        yield
