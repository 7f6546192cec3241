"""The six data sets of the zero-shot evaluation, made of a few words, and what their tests share."""

import random

import jax

from gpt1_jax.evaluation import zero_shot
from gpt1_jax.evaluation.zero_shot import Variant
from gpt1_jax.training.partitioning import Partitioner
from helpers import some_words, write_lines

N_POSITIONS, PAPER = 32, Variant()
NAMES = ('cola', 'sst2', 'race', 'dpr', 'story_cloze', 'copa')
FILES = {  # name -> (split, the split's name in the files)
    'cola': {'train': 'train', 'dev': 'dev'},
    'sst2': {'dev': 'dev'},
    'race': {'dev': 'dev'},
    'dpr': {'dev': 'train'},
    'story_cloze': {'dev': 'validation'},
    'copa': {'dev': 'dev'},
}


def write(folder, name, entries, split='dev'):
    """FOLDER/NAME/SPLIT.jsonl"""
    (folder / name).mkdir(parents=True, exist_ok=True)
    write_lines(folder / name / f'{FILES[name].get(split, split)}.jsonl', entries)


def entry(name, rng, number):
    """A random one. Texts of one to thirty words."""
    words = lambda most, least=1: some_words(rng, rng.randint(least, most))
    label = rng.randrange(4 if name == 'race' else 2)
    return {'idx': number} | {
        'cola': lambda: {'sentence': words(20, 2), 'label': label},
        'sst2': lambda: {'sentence': words(20), 'label': label},
        'race': lambda: {
            'article': '\n'.join(words(9) for _ in range(3)),
            'question': words(5) + '?',
            'options': [words(6) for _ in range(4)],
            'answer': 'ABCD'[label],
        },
        'dpr': lambda: {
            'sentence': f'{words(6)} because it {words(6)}.',
            'pronoun': 'it',
            'candidates': [words(3), words(3)],
            'label': label,
        },
        'story_cloze': lambda: {'context': words(30), 'endings': [words(9), words(9)], 'label': label + 1},
        'copa': lambda: {
            'premise': words(9),
            'question': rng.choice(['cause', 'effect']),
            'choice1': words(9),
            'choice2': words(9),
            'label': label,
        },
    }[name]()


def write_all(folder, n=12, seed=0):
    """n examples of each split."""
    rng = random.Random(seed)
    for name in NAMES:
        for split in FILES[name]:
            write(folder, name, [entry(name, rng, number) for number in range(n)], split)


def load(folder, name, tokenizer, variant=PAPER, n_positions=N_POSITIONS, limit=None):
    """The questions of one set in a folder of sets."""
    (questions,), left_out = zero_shot.load((name,), f'files:{folder}', limit, tokenizer, n_positions, variant)
    assert not left_out and questions.name == name
    return questions


def one_device():
    return Partitioner('dp', (1, 1, 1), jax.devices()[:1])
