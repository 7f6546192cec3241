"""Text to a vocabulary and token shards: streaming, on all cores, resumable.

The vocabulary is learned from a sample of the training text, then all text is standardised and encoded. The result
depends on the source and the options, not on the number of workers or on interruptions.
"""

import hashlib
import resource
import sys
import time
from collections.abc import Mapping

import numpy as np
from absl import logging
from etils import epath

from gpt1_jax import lock
from gpt1_jax.data.corpus import shards
from gpt1_jax.data.corpus.held_out import held_out_rule, hold_out
from gpt1_jax.data.corpus.passes import HERE, Passes, largest_worker, worker_pool
from gpt1_jax.data.corpus.sources import TEXT_OPTIONS, open_corpus
from gpt1_jax.data.tokenizers.loading import load_tokenizer
from gpt1_jax.data.tokenizers.sentence_piece import train_sentencepiece
from gpt1_jax.data.tokenizers.standardise import standardise
from gpt1_jax.errors import UserError
from gpt1_jax.files import check_seal, exists, read_json, sealed, write_atomically, write_json
from gpt1_jax.progress import Progress, waiting

_HELD_OUT = 'journal/held_out.json'


def prepare(
    data: Mapping, output: epath.PathLike, passes: Passes | None = None, *, needs_held_out: bool = False
) -> shards.Shards:
    """Turns a corpus into shards; resumes an interrupted call; opens a finished folder.

    Args:
      data: `source`, `download`, `text_column`, `strip_gutenberg`, `unwrap` (see `open_corpus`), `held_out` (fraction
        of the text, see `hold_out`), `tokens_per_shard`, `workers` (0: all cores), `tokenizer` (a folder, see
        `load_tokenizer`; '': train one, with `vocab_size` pieces, on `tokenizer_sample_mb` times 2^20 characters).
      output: the folder to write.
      passes: how the text is read; None: here. The result is the same.
      needs_held_out: whether there must be a held-out split.
    Raises:
      UserError: a source that cannot be read, an output that cannot be written or holds something else; no text
        would be held out, but some must be.
    """
    output, passes = epath.Path(output).expanduser(), passes or HERE
    _check(data)
    options = {name: data[name] for name in ('source', 'held_out', 'tokens_per_shard')}
    options |= {name: data[name] for name in TEXT_OPTIONS if data[name]}
    if data['tokenizer']:
        options['tokenizer'] = load_tokenizer(data['tokenizer']).fingerprint
    else:
        options |= {name: data[name] for name in ('vocab_size', 'tokenizer_sample_mb')}
    if exists(output / 'index.json'):
        finished = shards.load_shards(output)
        # The text itself is not compared: its source may be elsewhere, or may have changed since.
        _require_same(finished.preparation, options, output)
        shards.remove_journal(output)
        logging.info('%s is already prepared in %s', data['source'], output)
        return finished
    with lock.hold(output):
        return _prepare(data, output, passes, options, needs_held_out)


def _prepare(data, output, passes, options, needs_held_out):
    started = time.monotonic()
    largest_worker()  # those of another preparation do not count
    corpus = open_corpus(data['source'], download=data['download'], **{name: data[name] for name in TEXT_OPTIONS})
    if needs_held_out and not data['held_out'] and not corpus.own_held_out:
        raise UserError('data.held_out: It is 0, but pre-training needs held-out text. Set it above 0, such as 0.01.')
    options |= {'documents': corpus.documents, 'fingerprint': corpus.fingerprint}
    if not corpus.own_held_out and not corpus.by_name:
        options['held_out_by'] = 'bytes'
    journal = shards.read_journal(output)
    if journal is None:
        if output.is_dir() and any(path.name not in ('journal', lock.NAME) for path in output.iterdir()):
            raise UserError(f'{output}: The folder is not empty and holds no preparation. Choose another data.output.')
    elif journal['position'] is None and journal['preparation'] != options:
        # Nothing was committed yet: an option was wrong, such as too large a vocabulary, and has been fixed.
        if (output / 'tokenizer').exists():
            (output / 'tokenizer').rmtree()
        for path in output.glob('*.bin*'):  # also .bin.tmp, left by a killed writer
            path.unlink()
        journal = None
    else:
        _require_same(journal['preparation'], options, output)
        logging.info('resuming the preparation in %s', output)
    held_out = _hold_out(corpus, data, output, options, passes)
    lock.check(output)  # else a folder that was removed meanwhile would be made anew
    if journal is None:
        shards.start_journal(output, options)
    _keep_held_out(output, options, held_out)
    tokenizer = _tokenizer(corpus, data, output, held_out, passes)
    lock.check(output)
    passes.encode(corpus, data, output, held_out, tokenizer)
    prepared = shards.load_shards(output)
    _log_summary(prepared, time.monotonic() - started)
    return prepared


def _check(data):
    if not 0 <= data['held_out'] < 1:
        raise UserError(
            f'data.held_out: {data["held_out"]} is not a fraction of the text. It must be from 0 to below 1.'
        )
    least_values = {'tokens_per_shard': 1, 'vocab_size': 1, 'tokenizer_sample_mb': 1, 'workers': 0}
    for name, least in least_values.items():
        if data[name] < least:
            raise UserError(f'data.{name}: {data[name]} is too small. It must be at least {least}.')


def _require_same(earlier, options, output):
    # A finished folder may also know facts about its files. Any other option that only one of them has is a difference.
    of_files = {'documents', 'fingerprint', 'held_out_by'}
    names = sorted((earlier.keys() | options.keys()) - (of_files - options.keys()))
    differing = [name for name in names if earlier.get(name) != options.get(name)]
    if not differing:
        return
    if of_files.issuperset(differing) and 'held_out_by' in differing:
        raise UserError(
            f'{output}: An earlier version of this program began this preparation, and held out other documents. '
            'Choose another data.output, or delete it.'
        )
    if of_files.issuperset(differing):
        raise UserError(
            f'{output}: The preparation in this folder was interrupted, and the files of '
            f'{options["source"]} have changed since. Choose another data.output, or delete it.'
        )
    changes = (
        f'{name} was {earlier.get(name, "not given")}, is {options.get(name, "not given")}'
        for name in differing
        if name not in of_files
    )
    raise UserError(
        f'{output}: The folder holds another preparation ({"; ".join(changes)}). Choose another '
        'data.output, or delete it.'
    )


def _hold_out(corpus, data, output, options, passes) -> dict[int, int]:
    """What is held out beside the source's own split, see `Corpus.blocks`; the same after an interruption."""
    fraction, kept = data['held_out'], _kept_held_out(output, options)
    if kept is not None:
        return kept
    if corpus.own_held_out:
        return {}
    if corpus.by_name and corpus.documents > 1:
        is_held_out = held_out_rule(corpus.names, fraction)
        return {i: 0 for i, name in enumerate(corpus.names()) if is_held_out(name)}
    found = passes.survey(corpus, data, output)
    held_out = hold_out(corpus.names(), found.sizes, found.groups, fraction) if fraction else {}
    share = sum(int(found.sizes[document]) - byte for document, byte in held_out.items()) / found.sizes.sum()
    ends = sum(map(bool, held_out.values()))
    what = [f'{len(held_out) - ends} documents'] * (ends < len(held_out)) + [f'the end of {ends}'] * bool(ends)
    logging.info('%s: held out: %s, %.3g %% of the text', corpus.uri, ' and '.join(what), 100 * share)
    return held_out


def _keep_held_out(output, options, held_out):
    """Keeps what is held out in a file, the documents' numbers and then the bytes: of millions, JSON would be large."""
    table = np.array([np.fromiter(column, '<i8', len(held_out)) for column in (held_out, held_out.values())])
    checksum = hashlib.sha256(table).hexdigest()
    write_atomically(_held_out_file(output, checksum), [table])
    write_json(output / _HELD_OUT, sealed({'preparation': options, 'held_out': checksum}))


def _kept_held_out(output, options):
    """What an earlier attempt at the same preparation has kept; None if there was none."""
    path, fix = output / _HELD_OUT, 'Delete it, and run the same command again.'
    kept = read_json(path, {'preparation': dict, 'held_out': (str, {str: int})}, fix) if exists(path) else {}
    check_seal(path, kept, fix)
    if kept.get('preparation') != options:
        return None
    if isinstance(kept['held_out'], dict):  # of an earlier version
        return {int(document): byte for document, byte in kept['held_out'].items()}
    path = _held_out_file(output, kept['held_out'])
    if not exists(path):
        return None
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != kept['held_out']:
        raise UserError(f'{path}: The file is damaged (it has another checksum). {fix}')
    return dict(zip(*np.frombuffer(data, '<i8').reshape(2, -1).tolist()))


def _held_out_file(output, checksum):
    return output / f'journal/held_out-{checksum[:16]}.bin'


def _tokenizer(corpus, data, output, held_out, passes):
    """The tokenizer in output/tokenizer: there already, copied from the one named, or trained."""
    path = output / 'tokenizer'
    if exists(path / 'tokenizer.json'):
        return load_tokenizer(path)
    if data['tokenizer']:
        load_tokenizer(data['tokenizer']).save(path)
    else:
        sample = passes.sample(corpus, data, output, held_out)
        with worker_pool(data['workers']) as pool:
            texts, progress = [], Progress(len(sample), 0, 'standardising', unit='excerpt', part=True)
            for text in pool.map(standardise, sample, chunksize=64):
                texts.append(text)
                progress.update(len(texts))
            progress.close()
            logging.info(
                'learning a vocabulary of %s pieces from %.1f million characters',
                f'{data["vocab_size"]:,}',
                sum(map(len, texts)) / 1e6,
            )
            # In a worker, which gives its memory back when it ends.
            with waiting('learning the vocabulary'):
                pool.submit(_train, texts, data['vocab_size'], path).result()
    return load_tokenizer(path)


def _train(texts, vocab_size, path):
    train_sentencepiece(texts, vocab_size).save(path)


def _log_summary(prepared, seconds):
    train, valid = prepared.splits['train'], prepared.splits.get('valid')
    held_out = (valid.tokens, valid.documents) if valid else (0, 0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024) / 1e6
    worker = largest_worker()
    logging.info(
        'prepared %s: training: %s tokens of %s documents; held out: %s of %s; vocabulary %s, %.3f characters per '
        'token, %.0f seconds, peak memory %.0f MB%s',
        prepared.directory,
        f'{train.tokens:,}',
        f'{train.documents:,}',
        f'{held_out[0]:,}',
        f'{held_out[1]:,}',
        f'{prepared.vocab_size:,}',
        prepared.characters / (train.tokens + held_out[0]),
        seconds,
        peak,
        f' (largest worker {worker:.0f} MB)' if worker else '',
    )
