"""The passes over a corpus on many machines, as jobs of Apache Beam, with the bytes that passes.py makes on one.

Each pass is a job: a file in the folder `journal` of the output lists its tasks, one per unit of the corpus, and the
workers write their results beside it. The process that starts the jobs joins these in the order of the units, so that
neither the number of workers or bundles matters, nor which of them fail and are tried again. Tokens go through files as
well, not through Beam's shuffle: some runners hold all that belongs to one key, here a shard, in memory.
"""

import contextlib
import functools
import hashlib
import io
import itertools
import json
import logging as standard_logging
import os
import shlex
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from absl import logging
from etils import epath

from gpt1_jax.data.corpus import shards
from gpt1_jax.data.corpus.passes import Passes, check_tokens, lowest
from gpt1_jax.data.corpus.shard_index import SPLITS, dtype_of, write_index
from gpt1_jax.data.corpus.survey import conclude, gather_here, paragraph_limit, together
from gpt1_jax.data.corpus.units import cut, facts_of, result_of, units, work
from gpt1_jax.errors import UserError
from gpt1_jax.files import import_package, is_local, make_directory, write_atomically

RUNNERS = {  # name -> options of Beam
    # There are no triggers, but without this flag Beam would first fetch another runner, which does the same.
    'direct': ('--runner=DirectRunner', '--allow_unsafe_triggers', '--default_sdk_harness_log_level=CRITICAL'),
    'dataflow': ('--runner=DataflowRunner',),
    'spark': ('--runner=SparkRunner',),
    'flink': ('--runner=FlinkRunner',),
}
_IMPOSSIBLE = 'config.runner has nothing to run on'
_INSTALL = 'pip install -r launch/beam.txt, in an environment of its own'
_SPARE = 4  # excerpts that are first looked at for each that is wanted: a character may have several bytes
_THREADS = 32  # that read or delete results, in a remote store

# Calls the function on each of the elements, anywhere, in any order; calling it more than once does no harm.
Run = Callable[[Callable, Sequence], None]


def passes(run: Run) -> Passes:
    """The passes as jobs that `run` does."""
    return Passes(*(functools.partial(one, run) for one in (_survey, _sample, _encode)))


def _survey(run, corpus, data, output):
    del data
    limit = paragraph_limit(corpus)
    if not corpus.documents:  # only files that cannot be read
        return conclude(corpus, gather_here(corpus, limit))
    facts = together(map(facts_of, _do(run, output, 'check', units(corpus, {}), limit=limit)))
    try:
        return conclude(corpus, facts)
    except UserError:  # the next attempt looks again: a file that was fixed may still have the same size
        with ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(lambda path: path.unlink(), (output / 'journal').glob('check-*')))
        raise


def _sample(run, corpus, data, output, held_out):
    wanted = data['tokenizer_sample_mb'] * 2**20
    share = min(1, _SPARE * wanted / corpus.size)  # of all ranks: those that are probably low enough
    while True:
        limit = int(share * 2**64)
        found = _do(run, output, 'sample', units(corpus, held_out), characters=wanted, limit=limit)
        texts = [text for _, text in lowest(itertools.chain.from_iterable(found), wanted)]
        if share == 1 or sum(map(len, texts)) >= wanted:
            return texts
        share = min(1, 8 * share)


def _encode(run, corpus, data, output, held_out, tokenizer):
    done = list(_do(run, output, 'encode', units(corpus, held_out), tokenizer=tokenizer.fingerprint))
    total = lambda name: {split: sum(unit['splits'][split][name] for unit in done) for split in SPLITS}
    tokens, documents = total('tokens'), total('documents')
    check_tokens(corpus, data['held_out'], tokens)
    files = [
        {'split': split, 'number': number, 'parts': parts}
        for split in SPLITS
        for number, parts in enumerate(cut(_pieces(done, split), data['tokens_per_shard']))
    ]
    dtype = dtype_of(tokenizer.vocab_size).str
    attempt = uuid.uuid4().hex  # writes all files anew: another preparation may have replaced some since
    written = list(zip(files, _do(run, output, 'write', files, dtype=dtype, attempt=attempt)))
    entries = {split: [entry for file, entry in written if file['split'] == split] for split in SPLITS}
    splits = {
        split: {'tokens': tokens[split], 'documents': documents[split], 'shards': entries[split]} for split in SPLITS
    }
    options = shards.read_journal(output)['preparation']
    characters = sum(unit['characters'] for unit in done)
    write_index(output, options, tokenizer.vocab_size, tokenizer.fingerprint, splits, characters)
    shards.remove_journal(output)


def _pieces(done, split):
    """The units' files of a split, in order: ((path below the journal, SHA-256), number of tokens)."""
    for unit in done:
        for entry in unit['splits'][split]['shards']:
            yield (f'{unit["folder"]}/{entry["file"]}', entry['sha256']), entry['tokens']


def _do(run: Run, output: epath.Path, name: str, tasks: Iterable[dict], **shared) -> Iterator:
    """The results of a job, in the order of its tasks; those that an interrupted job has left are used again."""
    lines = [json.dumps({'work': name, **shared, **task}).encode() + b'\n' for task in tasks]
    journal = output / 'journal'
    # The name depends on all tasks, so that files of other attempts are never taken for it.
    path = journal / f'{name}-{hashlib.sha256(b"".join(lines)).hexdigest()[:16]}.jsonl'
    make_directory(journal)
    there = {one.name for one in journal.iterdir()}  # of gs:// a listing is cached until something is written
    write_atomically(path, lines)
    ends = [0, *itertools.accumulate(map(len, lines))]
    left = [
        (number, ends[number], ends[number + 1])
        for number in range(len(lines))
        if result_of(path, number).name not in there
    ]
    before = f', {len(lines) - len(left):,} of them before' if len(left) < len(lines) else ''
    logging.info('%s: a job of %s tasks%s', _TITLES[name], f'{len(lines):,}', before)
    if left:
        run(functools.partial(work, os.path.abspath(path) if is_local(path) else os.fspath(path)), left)
    with ThreadPoolExecutor(_THREADS) as threads:
        yield from threads.map(_read, (result_of(path, number) for number in range(len(lines))))


_TITLES = {'check': 'checking', 'sample': 'sampling', 'encode': 'encoding', 'write': 'writing'}


def _read(path):
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        with contextlib.suppress(FileNotFoundError):
            raise UserError(path.with_suffix('.error').read_text()) from None
        raise UserError(
            f'{path}: The job has ended without this result. See what its runner says, and run the same command again.'
        ) from error
    except ValueError as error:
        raise UserError(f'{path}: The file is damaged ({error}). Delete it, and run the same command again.') from error


# Apache Beam.


def on_beam(name: str, options: str, source: str, output: epath.PathLike) -> Passes:
    """The passes as jobs on one of RUNNERS.

    Args:
      options: of Beam's pipelines, as on a command line.
      source, output: of the preparation.
    Raises:
      UserError: Beam is not installed; an option, a source or an output does not suit this runner.
    """
    if not source.startswith('text:'):
        raise UserError(f'data.source: {source!r} is read on one machine. Use text:, or --config.runner=local.')
    for key, place in (('source', source.removeprefix('text:')), ('output', os.fspath(output))):
        if name == 'dataflow' and is_local(place):
            raise UserError(
                f'data.{key}: {place} is on this machine, where no worker of Dataflow is. Use a gs:// path.'
            )
    # Failures are told below in one sentence; but the messages of a remote service are its only sign of life.
    level = standard_logging.INFO if name == 'dataflow' else standard_logging.CRITICAL
    standard_logging.getLogger('apache_beam').setLevel(level)
    beam = import_package('apache_beam', _IMPOSSIBLE, _INSTALL)
    options_of = import_package('apache_beam.options.pipeline_options', _IMPOSSIBLE, _INSTALL).PipelineOptions
    parsed = _parse(options_of, name, options)

    def run(function, elements):
        try:
            pipeline = beam.Pipeline(options=parsed)
            _ = pipeline | beam.Create(elements) | beam.Reshuffle() | beam.Map(function)
            result = pipeline.run()
            try:
                state = result.wait_until_finish()
            except BaseException:  # this process is stopped: the job must not go on
                with contextlib.suppress(Exception):
                    result.cancel()
                raise
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
            raise UserError(f'runner: The job on {name} has failed ({reason}). {_AGAIN}') from error
        if state != 'DONE':
            raise UserError(f'runner: The job on {name} has ended as {state}. {_AGAIN}')

    return passes(run)


_AGAIN = 'Fix that, and run the same command again: what is done is kept.'


def _parse(options_of, name, options):
    """The pipeline's options. Raises UserError if there is no such option, or a value is wrong."""
    message = io.StringIO()
    try:
        flags = [*RUNNERS[name], *shlex.split(options)]
        with contextlib.redirect_stderr(message):
            known = options_of([]).get_all_options().keys()
            given = options_of(flags).get_all_options(retain_unknown_options=True).keys()
    except (SystemExit, ValueError) as error:
        reason = message.getvalue().rpartition('error: ')[2].strip() or error
        raise UserError(f'runner_options: {options!r} cannot be read ({reason}). Correct it.') from error
    # The other runners get options from the cluster's job server, too.
    if name in ('direct', 'dataflow') and (unknown := sorted(given - known)):
        raise UserError(f'runner_options: Beam has no option --{unknown[0]}. Correct it, or leave it out.')
    return options_of(flags)
