"""Units of a corpus, each of some consecutive documents, and what a worker on any machine does with one of them."""

import base64
import bisect
import dataclasses
import functools
import hashlib
import itertools
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from etils import epath

from gpt1_jax.data.corpus import shards
from gpt1_jax.data.corpus.documents import Corpus
from gpt1_jax.data.corpus.passes import encode, excerpts, lowest
from gpt1_jax.data.corpus.survey import Facts, gather_here
from gpt1_jax.data.corpus.text_files import reopen_text
from gpt1_jax.data.tokenizers.loading import load_tokenizer
from gpt1_jax.errors import UserError
from gpt1_jax.files import write_atomically

_UNIT = 2**22  # bytes of the source in a unit, at least
_UNITS = 4096  # of a large corpus, about
_CUTS = 8  # of one file, at most: a line of a table is found only by reading those before it
_PIECE = 2**24  # tokens in a file of a unit


def units(corpus: Corpus, held_out: Mapping[int, int]) -> Iterator[dict]:
    """Cuts a corpus of files into units: several small files, or some of the documents of a large one.

    held_out: see `Corpus.blocks`. Yields what `open_unit` takes; JSON types.
    """
    least, held = max(_UNIT, corpus.size // _UNITS), sorted(held_out)
    done = 0  # documents

    def unit(files, first, documents):
        nonlocal done
        begin, done = done, done + documents
        among = held[bisect.bisect_left(held, begin) : bisect.bisect_left(held, done)]
        return {
            'uri': corpus.uri,
            'files': files,
            'first': first,
            'documents': documents,
            'held_out': {document - begin: held_out[document] for document in among},
            'cleaning': {name: getattr(corpus, name) for name in ('strip_gutenberg', 'unwrap')},
        }

    small, size, number = [], 0, 0  # files, their bytes and documents
    for file in corpus.parts():
        cuts = max(1, min(file['size'] // least, file['documents'], _CUTS))
        if small and (cuts > 1 or size >= least):
            yield unit(small, 0, number)
            small, size, number = [], 0, 0
        if cuts == 1:
            small.append(file)
            size, number = size + file['size'], number + file['documents']
        else:
            bounds = [file['documents'] * i // cuts for i in range(cuts + 1)]
            yield from (unit([file], begin, end - begin) for begin, end in itertools.pairwise(bounds))
    if small:
        yield unit(small, 0, number)


def open_unit(unit: Mapping) -> tuple[Corpus, dict[int, int]]:
    """The documents of a unit, and what is held out of them. Raises UserError: a file has changed."""
    corpus = reopen_text(unit['uri'].removeprefix('text:'), unit['files']).part(unit['first'], unit['documents'])
    held_out = {int(document): byte for document, byte in unit['held_out'].items()}
    return dataclasses.replace(corpus, **unit['cleaning']), held_out


# What a worker does.


def work(path: str, element: tuple[int, int, int]) -> None:
    """Does one task of the list in the file at `path`: its line `number`, the bytes from `begin` to `end`.

    Writes beside that file the result, or, in a file .error, what is wrong with the input (see `result_of`): another
    attempt would give the same.
    """
    number, begin, end = element
    path = epath.Path(path)
    with path.open('rb') as file:
        file.seek(begin)
        task = json.loads(file.read(end - begin))
    try:
        result, kind = json.dumps(_WORK[task['work']](task, path.parent)), 'json'
    except UserError as error:
        result, kind = str(error), 'error'
    # A runner may let two workers do one task at the same time.
    write_atomically(result_of(path, number, kind), [result.encode()], f'.{uuid.uuid4().hex}')


def result_of(path: epath.Path, number: int, kind: str = 'json') -> epath.Path:
    """Where `work` writes its result."""
    return path.with_name(f'{path.stem}-{number}.{kind}')


def _check(task, journal):
    del journal
    corpus, _ = open_unit(task)
    facts = gather_here(corpus, task['limit'])
    return [_packed(value) if isinstance(value, np.ndarray) else value for value in facts]


def _packed(array):
    return {'dtype': array.dtype.str, 'base64': base64.b64encode(array.tobytes()).decode()}


def facts_of(result: list) -> Facts:
    """The facts in a result of `work`."""
    unpack = lambda value: np.frombuffer(base64.b64decode(value['base64']), value['dtype'])
    return Facts(*(unpack(value) if isinstance(value, dict) else value for value in result))


def _sample(task, journal):
    del journal
    corpus, held_out = open_unit(task)
    low = (ranked for ranked in excerpts(corpus.blocks(held_out)) if ranked[0] < task['limit'])
    return lowest(low, task['characters'])


def _encode(task, journal):
    corpus, held_out = open_unit(task)
    tokenizer = _load_tokenizer(journal.parent / 'tokenizer', task['tokenizer'])
    folder = journal / uuid.uuid4().hex  # of this attempt: a runner may let two workers do one task
    shards.start_journal(folder, {})
    writer = shards.ShardWriter(folder, tokenizer.vocab_size, _PIECE)
    read = lambda blocks: ([(block, tokenizer.encode_batch([block.text])[0])] for block in blocks)
    characters = encode(corpus, held_out, writer, tokenizer, read, show=False)['characters']
    return {'folder': folder.name, 'splits': writer.finish(tokenizer.fingerprint), 'characters': characters}


@functools.lru_cache(maxsize=1)
def _load_tokenizer(folder, fingerprint):
    del fingerprint  # a key of the cache: a worker may later find another tokenizer in this folder
    return load_tokenizer(folder, threads=1)


def cut(pieces: Iterable[tuple[object, int]], length: int) -> list[list[tuple[object, int, int]]]:
    """Cuts the tokens of pieces, one after the other, into files of this length; the last may be shorter.

    pieces: (name, tokens). Returns the parts of which each file consists: (name, begin, end).
    """
    files, room = [], 0
    for name, tokens in pieces:
        begin = 0
        while begin < tokens:
            if not room:
                files.append([])
                room = length
            end = min(tokens, begin + room)
            files[-1].append((name, begin, end))
            begin, room = end, room - (end - begin)
    return files


def _write(task, journal):
    dtype, parts = np.dtype(task['dtype']), []
    for (name, sha256), begin, end in task['parts']:
        data = (journal / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise UserError(f'{journal / name}: The file is damaged. Delete {journal} and run the same command again.')
        parts.append(np.frombuffer(data, dtype)[begin:end])
    return shards.write_shard(journal.parent, task['split'], task['number'], np.concatenate(parts))


_WORK = {'check': _check, 'sample': _sample, 'encode': _encode, 'write': _write}
