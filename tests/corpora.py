"""What several test files of corpora share: texts, folders of them, and what is held out of a corpus."""

import concurrent.futures
import gzip
import random

from gpt1_jax.data.corpus.held_out import hold_out
from gpt1_jax.data.corpus.survey import survey


def make_text(seed, lines=60):
    rng = random.Random(seed)
    words = ['word', 'héllo', '日本', 'x' * 30, 'ok']
    return ''.join(' '.join(rng.choices(words, k=rng.randint(0, 15))) + '\n' for _ in range(lines))


def make_folder(folder, count=30):
    """Files .txt and .txt.gz in two folders: their names and texts, in order."""
    texts = {}
    for i in range(count):
        name = f'{"ab"[i % 2]}/book{i:02d}.txt' + ('.gz' if i % 3 == 0 else '')
        texts[name] = make_text(i)
        path = folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        data = texts[name].encode()
        path.write_bytes(gzip.compress(data) if name.endswith('.gz') else data)
    (folder / 'notes.md').write_text('not a text')
    return dict(sorted(texts.items()))


def joined(blocks):
    """Name -> text."""
    texts = {}
    for block in blocks:
        texts[block.name] = texts.get(block.name, '') + block.text
    return texts


class InProcess:
    """A pool that does the work itself, at once."""

    def submit(self, function, *arguments):
        future = concurrent.futures.Future()
        future.set_result(function(*arguments))
        return future

    def map(self, function, items, chunksize):
        del chunksize
        return map(function, items)


def held_out(corpus, fraction):
    """What `prepare` holds out of a text: corpus."""
    found = survey(corpus, InProcess(), 4)
    return hold_out(corpus.names(), found.sizes, found.groups, fraction)
