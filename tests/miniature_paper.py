"""The whole paper in miniature: a text, labelled sets, and the config, for its tests."""

import random
import re
import shlex

import runs
import zero_shot_sets
from configs import paper as config_file
from helpers import some_words, write_lines

PARTS = [
    *('prepare', 'pretrain', 'pretrain_lstm', 'zero_shot', 'zero_shot_lstm', 'samples', 'finetune'),
    *('layer_transfer_mnli', 'layer_transfer_race', 'ablation_table5', 'ablation_lambda', 'ablation_share', 'report'),
]
TINY_LSTM = dict(layers=1, width=16, units=24, n_positions=32)


def write_books_and_sets(folder):
    """FOLDER/books, and FOLDER/data with sets of all kinds: those of zero-shot scores, mnli and stsb; no qqp."""
    rng = random.Random(0)
    runs.write_data(folder)
    for name in zero_shot_sets.NAMES:
        for split in dict.fromkeys(('train', *zero_shot_sets.FILES[name])):
            entries = [zero_shot_sets.entry(name, rng, number) for number in range(24)]
            zero_shot_sets.write(folder / 'data', name, entries, split)
    for name, fields, label in (
        ('mnli', ('premise', 'hypothesis'), lambda: rng.randrange(3)),
        ('stsb', ('sentence1', 'sentence2'), lambda: rng.randrange(11) / 2),
    ):
        (folder / 'data' / name).mkdir()
        for split in ('train', 'dev', 'dev_matched'):
            entries = [{**{field: some_words(rng, 4) for field in fields}, 'label': label()} for _ in range(24)]
            write_lines(folder / 'data' / name / f'{split}.jsonl', entries)


def miniature(folder, **changes):
    """A few steps of each part."""
    config = config_file.get_config('tiny')
    config.update(dict(text=f'text:{folder}/books', source=f'files:{folder}/data', seeds=1) | changes)
    config.prepare.data.update(vocab_size=320, held_out=0.25, workers=1)
    for part, sizes in ((config.pretrain, runs.TINY), (config.pretrain_lstm, TINY_LSTM)):
        part.model.update(sizes)
        part.data.update(batch_size=8, tokens=10 * 8 * 32)
        part.optimizer.warmup_steps = 2
        part.log.update(every=1, eval_every=4)
        part.checkpoint.update(every=4, keep_log=2)
    for name in PARTS[6:-1]:
        config[name].data.update(cache='off', batch_size=8, epochs=1.0, limit=16)
    config.finetune.datasets = ('sst2', 'mnli', 'race', 'stsb', 'qqp')
    config.ablation_table5.datasets = ('stsb',)
    config.ablation_lambda.update(datasets=('sst2',), coefficients=(0.0, 0.5))
    config.ablation_share.update(datasets=('cola',), shares=(0.5, 1.0))
    config.samples.update(prompt='the ship', samples=2, max_tokens=4)
    return config


def commands(printed):
    """Part -> its commands."""
    return {
        name: [shlex.split(line) for line in lines.splitlines()]
        for name, lines in re.findall(r'^(\w+):\n((?:  python .*\n?)+)', printed, re.MULTILINE)
    }
