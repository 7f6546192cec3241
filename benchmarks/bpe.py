r"""Encoding with the released vocabulary: this project and the loop of the release, on the same text and cores.

    python -m benchmarks.bpe --vocabulary=DIR --text='/books/*.txt' [--megabytes=4] [--workers=2] [--rounds=3]

The loop (ftfy, regular expressions, spaCy, BPE in Python with a cache of words) is rewritten here after the release,
where it is one process. Here it runs in one process and in as many as ours, which encodes as the task `prepare` does,
group by group through `process_pool`. Every run starts with empty caches and ends when the last ids have come back; the
start of processes and the loading of packages and vocabulary are not timed. The ids of all runs are compared.
"""

import argparse
import functools
import glob
import json
import pathlib
import re
import statistics
import time

import numpy as np

from benchmarks import arguments
from gpt1_jax.processes import cores, process_pool

_GROUP = 2**19  # characters


class Release:
    """The release's TextEncoder, with spaCy's blank English in place of its English model (the same tokens)."""

    def __init__(self, directory: str):
        import ftfy
        import spacy

        self.fix_text = ftfy.fix_text
        self.nlp = spacy.blank('en')
        self.nlp.max_length = 2**30
        directory = pathlib.Path(directory)
        self.encoder = json.loads((directory / 'encoder_bpe_40000.json').read_text())
        lines = (directory / 'vocab_40000.bpe').read_text().split('\n')[1:-1]
        self.ranks = {tuple(line.split()): rank for rank, line in enumerate(lines)}
        self.cache = {}

    def standardise(self, text: str) -> str:
        for character, replacement in zip('—–―…´', ('-', '-', '-', '...', "'")):
            text = text.replace(character, replacement)
        text = re.sub(r'(-+|~+|!+|"+|;+|\?+|\++|,+|\)+|\(+|\\+|/+|\*+|\[+|\]+|}+|{+|\|+|_+)', r' \1 ', text)
        text = re.sub(r'\s*\n\s*', ' \n ', text)
        return re.sub(r'[^\S\n]+', ' ', text).strip()

    def merge(self, token: str) -> str:
        """The pieces of a token, between spaces."""
        if token in self.cache:
            return self.cache[token]
        word = (*token[:-1], token[-1] + '</w>')
        while len(word) > 1:
            first, second = min(set(zip(word, word[1:])), key=lambda pair: self.ranks.get(pair, float('inf')))
            if (first, second) not in self.ranks:
                break
            merged, i = [], 0
            while i < len(word):
                if word[i] == first and word[i + 1 : i + 2] == (second,):
                    merged.append(first + second)
                    i += 2
                else:
                    merged.append(word[i])
                    i += 1
            word = tuple(merged)
        pieces = ' '.join(word)
        self.cache[token] = '\n</w>' if pieces == '\n  </w>' else pieces
        return self.cache[token]

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        batch = []
        for text in texts:
            ids = []
            for token in self.nlp(self.standardise(self.fix_text(text))):
                ids.extend(self.encoder.get(piece, 0) for piece in self.merge(token.text.lower()).split(' '))
            batch.append(np.array(ids, np.int32))
        return batch


@functools.cache
def load(name: str, directory: str):
    if name == 'release':
        return Release(directory)
    from gpt1_jax.data.tokenizers.loading import load_tokenizer

    return load_tokenizer(directory)


def encode(name: str, directory: str, texts: list[str]) -> list[np.ndarray]:
    return load(name, directory).encode_batch(texts)


def wait_and_load(name: str, directory: str) -> None:
    """Loads and then waits, so that every worker of a pool gets one call."""
    load(name, directory)
    time.sleep(2)


def measure(name: str, directory: str, groups: list[list[str]], workers: int) -> tuple[float, list[np.ndarray]]:
    """(seconds, ids of all texts)."""
    with process_pool(workers) as pool:
        for future in [pool.submit(wait_and_load, name, directory) for _ in range(workers)]:
            future.result()
        started = time.perf_counter()
        futures = [pool.submit(encode, name, directory, group) for group in groups]
        batches = [future.result() for future in futures]
        return time.perf_counter() - started, [ids for batch in batches for ids in batch]


def read_groups(pattern: str, megabytes: float) -> list[list[str]]:
    """At most so many megabytes of documents in groups of half a million characters; long ones are cut at a newline."""
    groups, group, total = [], [], 0
    for path in sorted(glob.glob(pattern)):
        text = pathlib.Path(path).read_text()
        while text and total < megabytes * 1e6:
            cut = text.find('\n', _GROUP) + 1 or len(text)
            group.append(text[:cut])
            total += len(text[:cut].encode())
            text = text[cut:]
            if sum(map(len, group)) >= _GROUP:
                groups.append(group)
                group = []
    return [*groups, group] if group else groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--vocabulary', required=True, help="folder of the release's two files")
    parser.add_argument('--text', required=True, help='glob of text files, one document each')
    parser.add_argument('--megabytes', type=float, default=4)
    parser.add_argument('--workers', type=arguments.count, default=cores(), help='processes; by default one a core')
    parser.add_argument('--rounds', type=arguments.count, default=3)
    options = parser.parse_args()
    workers = options.workers
    if not (pathlib.Path(options.vocabulary) / 'encoder_bpe_40000.json').is_file():
        parser.error(
            f'--vocabulary: {options.vocabulary} has no encoder_bpe_40000.json. Name the folder of the release.'
        )
    groups = read_groups(options.text, options.megabytes)
    if not groups:
        parser.error(f'--text: {options.text} names no file with text. Give a glob in quotes, as in "/books/*.txt".')
    runs = dict.fromkeys([('release', 1), ('release', workers), ('gpt1_jax', workers)])
    rates = {run: [] for run in runs}
    expected = None
    for _ in range(options.rounds):
        for name, n in runs:
            seconds, ids = measure(name, options.vocabulary, groups, n)
            expected = expected or ids
            assert all(map(np.array_equal, ids, expected)), f'the ids of {name} differ'
            rates[name, n].append(sum(map(len, ids)) / seconds)
    megabytes = sum(len(text.encode()) for group in groups for text in group) / 1e6
    print(f'{megabytes:.1f} MB, {sum(map(len, expected)):,} tokens; median (range) of {options.rounds} rounds:')
    ours = rates['gpt1_jax', workers]
    for (name, n), values in rates.items():
        ratios = [mine / other for mine, other in zip(ours, values)]
        print(
            f'{name:8} in {n:2} processes: {spread(values, ",.0f")} tokens/s; gpt1_jax in {workers} is '
            f'{spread(ratios, ".1f")} times as fast'
        )


def spread(values: list[float], form: str) -> str:
    return f'{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})'


if __name__ == '__main__':
    from benchmarks import bpe  # the workers cannot find the functions of __main__

    bpe.main()
