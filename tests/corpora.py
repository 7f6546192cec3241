"""What several test files of corpora share: texts, folders of them, what is held out, options of `prepare`."""

import concurrent.futures
import gzip
import random

import ml_collections

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


def options(source, **values):
    """Of a small preparation."""
    return ml_collections.ConfigDict(
        dict(
            source=source,
            output='',
            vocab_size=320,
            tokenizer='',
            tokenizer_sample_mb=1,
            text_column='',
            strip_gutenberg=False,
            unwrap=False,
            download=True,
            held_out=0.2,
            tokens_per_shard=8000,
            workers=2,
        )
        | values
    )


def content(directory):
    """Path in a folder -> bytes."""
    paths = [path for path in directory.rglob('*') if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}
