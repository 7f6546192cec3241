"""Text from a language model: samples or the most probable continuation of prompts."""

import contextlib
import functools
import io
import json
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from gpt1_jax import peers
from gpt1_jax.config import as_json, check_choice
from gpt1_jax.data.tokenizers.loading import Tokenizer
from gpt1_jax.errors import UserError
from gpt1_jax.evaluation import journal
from gpt1_jax.model import decoding
from gpt1_jax.progress import Progress
from gpt1_jax.report.results import record
from gpt1_jax.saved_models import store
from gpt1_jax.training.partitioning import Partitioner, is_writer
from gpt1_jax.workdir import open_workdir

_MOST = 1_000_000  # texts of one run, which are all in memory
_CHUNK = 8  # tokens generated between two outputs, when text is shown while it is generated
_LOOK = 64  # tokens generated between two looks at how far it is


class Row(NamedTuple):
    """One sample to generate.

    Attributes:
      ids: of the prompt, int32 [n], n >= 1.
      limit: most tokens, including the prompt.
      end: what ends it without a stop token, 'max_tokens' or 'context'.
    """

    prompt: str
    ids: np.ndarray
    sample: int
    limit: int
    end: str


def run(config: ConfigDict, workdir: epath.Path) -> list[dict]:
    """Generates as configs/generate.py says; returns what it writes to WORKDIR/generations.jsonl (interactive: []).

    WORKDIR/generations.journal, which is deleted at the end, tells which lines of that file are finished, so that the
    command can be resumed.
    """
    started = time.monotonic()
    check(config)
    prompts = _read_prompts(config)
    if max(1, len(prompts)) * config.samples > _MOST:
        raise UserError(
            f'samples: {config.samples:,} of each prompt are too many for one run, which makes up to {_MOST:,} texts. '
            'Run it several times, with other seeds.'
        )
    partitioner = Partitioner(config.mesh.strategy, config.mesh.shape)
    saved = store.open_model(config.init_from)
    saved.architecture.require('generate', config.init_from)
    context = saved.architecture.sizes['n_positions']
    rows_of = functools.partial(
        make_rows, tokenizer=saved.tokenizer, context=context, samples=config.samples, max_tokens=config.max_tokens
    )
    name = lambda line: f'{config.prompts}, line {line}' if config.prompts else 'prompt'
    rows = [row for i, prompt in enumerate(prompts, 1) for row in rows_of(prompt, name(i))]
    peers.check_same(journal.digest(prompt.encode() for prompt in prompts), config.prompts or 'prompt')
    open_workdir(config, workdir, write=is_writer())
    classifier, params = store.load_model(saved, config.model, partitioner)
    store.check_finite(saved, params, partitioner)
    model, key = store.summary(classifier.model, params, saved.tokens_seen()), ''
    if len(rows) > config.batch_size:  # else there is one batch, and nothing to resume
        of_model = journal.fingerprint(classifier, params, partitioner)
        key = journal.digest([of_model.encode(), json.dumps([as_json(config), prompts]).encode()])
    make = maker(
        classifier.model,
        params['decoder'],
        saved.tokenizer,
        partitioner,
        config,
        places=max((row.limit for row in rows), default=context),
        size=min(config.batch_size, len(rows) or config.samples),
    )
    del params  # `maker` has a copy
    if config.interactive:
        _converse(make, rows_of, config)
        return []
    if is_writer():  # that of earlier texts
        (workdir / 'results.json').unlink(missing_ok=True)
    lines = journal.Lines(workdir / 'generations.jsonl', key)
    with contextlib.closing(lines):
        made = _generate(make, rows, config, lines)
    facts = {'samples': len(made), 'tokens': sum(one['tokens'] for one in made)}
    record(config, workdir, started, facts=facts, model=model)
    lines.forget()
    return made


def make_rows(
    prompt: str, name: str, *, tokenizer: Tokenizer, context: int, samples: int, max_tokens: int
) -> list[Row]:
    """The samples to generate for one prompt; white space at its end is not read. Raises UserError, which calls it
    `name`, if it is too long or not text."""
    if not prompt.isascii() and prompt != prompt.encode(errors='replace').decode():
        raise UserError(f'{name}: The text is not UTF-8. Convert it.')
    ids = tokenizer.encode_batch([prompt])[0]
    if not len(ids):
        logging.info('%s: It is empty, so a new text begins.', name)
        ids = np.array([tokenizer.end_id], np.int32)
    if len(ids) >= context:
        raise UserError(
            f'{name}: It has {len(ids)} tokens, but the model has {context} positions. Shorten it to at '
            f'most {context - 1} tokens, so that one can follow.'
        )
    limit = min(len(ids) + max_tokens, context)
    if limit < len(ids) + max_tokens:
        logging.warning(
            '%s: It has %d tokens and the model %d positions. Only %d tokens can follow, fewer than max_tokens=%d.',
            name,
            len(ids),
            context,
            context - len(ids),
            max_tokens,
        )
    end = 'context' if limit < len(ids) + max_tokens else 'max_tokens'
    return [Row(prompt.rstrip(), ids, sample, limit, end) for sample in range(samples)]


def maker(
    model: nn.Module,
    params: dict,
    tokenizer: Tokenizer,
    partitioner: Partitioner,
    config: ConfigDict,
    *,
    places: int,
    size: int,
) -> Callable:
    """make(rows, show=None, tell=None) -> one dict per row: 'prompt', 'sample', 'text' (the continuation), 'tokens' (a
    number), 'ended_by' ('stop', 'max_tokens' or 'context'). `show(text)` gets each new piece of the first row's text,
    `tell(n)` now and then the number of new tokens so far.

    Args:
      params: of the decoder; copied layer by layer, so delete them afterwards.
      places: at least the limit of every row.
      size: at least the number of rows in any call.
    """
    places = decoding.bucket(places, model.n_positions)
    size += -size % partitioner.placement.shards
    sampling = decoding.Sampling(config.temperature, config.top_k, config.top_p, config.seed)
    stop_id = _stop_id(config.stop, tokenizer)
    params = partitioner.jit(decoding.unstack_layers)(params)
    prefill, decode = jit_steps(model, partitioner, places, sampling)
    look = partitioner.jit(
        lambda state: (state.tokens, state.lengths, state.limits), out_shardings=partitioner.sharding()
    )

    def make(rows, show=None, tell=None):
        padded = rows + [rows[0]._replace(limit=0)] * (size - len(rows))  # limit 0: finished from the start
        prompts = np.zeros((size, decoding.bucket(max(len(row.ids) for row in rows), model.n_positions)), np.int32)
        for place, row in zip(prompts, padded):
            place[: len(row.ids)] = row.ids
        columns = dict(
            prompts=prompts,
            lengths=[len(row.ids) for row in padded],
            limits=[row.limit for row in padded],
            samples=[row.sample for row in padded],
        )
        batch = {name: partitioner.placement.take(np.asarray(column, np.int32)) for name, column in columns.items()}
        state = prefill(params, partitioner.put_batch(batch))
        shown, finished = '', False
        while not finished:
            state = decode(params, state, sampling, stop_id, _CHUNK if show else _LOOK)
            tokens, lengths, limits = jax.device_get(look(state))
            finished = np.all(lengths >= limits)
            if tell:
                tell(sum(int(length) - len(row.ids) for row, length in zip(rows, lengths)))
            if show:
                text = continuation(tokenizer, rows[0].ids, tokens[0, : lengths[0]], stop_id)
                if not finished:
                    text = text.rstrip('\ufffd')  # it may be the first bytes of a character
                show(text[len(shown) :])
                shown = text
        results = []
        for row, ids, length in zip(rows, tokens, lengths):
            made = ids[len(row.ids) : length]
            results.append(
                {
                    'prompt': row.prompt,
                    'sample': row.sample,
                    'text': continuation(tokenizer, row.ids, ids[:length], stop_id),
                    'tokens': len(made),
                    'ended_by': 'stop' if stop_id in made[-1:] else row.end,
                }
            )
        return results

    return make


def jit_steps(
    model: nn.Module, partitioner: Partitioner, places: int, sampling: decoding.Sampling
) -> tuple[Callable, Callable]:
    """`decoding.prefill` as a function of (params, batch), and `decoding.decode`, jitted for this kind of sampling;
    `decode` donates its state."""
    rows = partitioner.sharding('batch')
    # Both return a state in the same layout; otherwise the second piece of a text would be compiled again.
    state = decoding.State(rows, rows, rows, rows, model.cache_shardings(partitioner.sharding))

    def prefill(params, batch):
        flat = {name: array.reshape(-1, *array.shape[3:]) for name, array in batch.items()}
        return decoding.prefill(model, params, **flat, places=places)

    decode = functools.partial(
        decoding.decode, model, greedy=sampling.temperature == 0, truncated=sampling.top_k > 0 or sampling.top_p < 1
    )
    return (
        partitioner.jit(prefill, out_shardings=state),
        partitioner.jit(decode, out_shardings=state, donate_argnums=1),
    )


def continuation(tokenizer: Tokenizer, prompt: np.ndarray, ids: np.ndarray, stop_id: int) -> str:
    """The text after the prompt, with the space between them, if any. ids: of the prompt and its continuation; a stop
    token at the end adds no text."""
    if len(ids) > len(prompt) and ids[-1] == stop_id:
        ids = ids[:-1]
    return tokenizer.decode(ids).removeprefix(tokenizer.decode(prompt))


def _generate(make, rows, config, lines):
    """Generates those rows that `lines` lacks, batch by batch, and adds them there; prints and returns all."""
    first = is_writer()
    say = _print if first else lambda text: None
    streamed = config.stream and len(rows) == 1 and not config.prompts
    results, room = [], [row.limit - len(row.ids) for row in rows]

    def take(line):
        result = json.loads(line)
        results.append(result)
        say(line.decode() if config.prompts else '\n' if streamed else _with_number(result, config, result['prompt']))

    progress = Progress(sum(room), 0, 'generating', unit='token', show=first and not streamed, part=True)
    with contextlib.closing(progress):
        if lines.finished:
            logging.info('%d of the %d texts are there already', len(lines.finished), len(rows))
            progress.resume(sum(room[: len(lines.finished)]))
        for line in lines.finished:
            take(line)
        for start in range(len(results), len(rows), config.batch_size):
            if streamed:
                say(rows[0].prompt)
            before = sum(room[:start])
            made = make(
                rows[start : start + config.batch_size],
                say if streamed else None,
                lambda tokens: progress.update(before + tokens),
            )
            batch = [json.dumps(result, ensure_ascii=False).encode() + b'\n' for result in made]
            lines.add(batch)
            for line in batch:
                take(line)
    return results


def _converse(make, rows_of, config):
    """Answers the lines of standard input until it ends; an error ends only its line."""
    if jax.process_count() > 1:
        raise UserError(
            'interactive: A run of several processes cannot share one standard input. Start one process, '
            'or give prompts=FILE.'
        )
    invite = lambda: _print('> ') if sys.stdin.isatty() else None
    invite()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors='surrogateescape')  # a line that is not UTF-8 is then one error
    for line in sys.stdin:
        try:
            rows = rows_of(line, 'prompt')
        except UserError as error:
            _print(f'error: {error}\n')
        else:
            if config.stream and len(rows) == 1:
                make(rows, _print)
                _print('\n')
            else:
                for start in range(0, len(rows), config.batch_size):
                    for result in make(rows[start : start + config.batch_size]):
                        _print(_with_number(result, config, ''))
        invite()


def _with_number(result, config, before):
    number = f'[{result["sample"]}] ' if config.samples > 1 else ''
    return f'{number}{before}{result["text"]}\n'


def _print(text):
    print(text, end='', flush=True)


def check(config: ConfigDict) -> None:
    """Raises UserError for what can be refused before the model and the prompts are read."""
    if bool(config.prompt) + bool(config.prompts) + config.interactive > 1:
        raise UserError('prompt: More than one of prompt, prompts and interactive is given. Give only one of them.')
    if config.temperature == 0 and config.samples > 1:
        raise UserError(
            f'samples: All {config.samples} samples would be the same at temperature=0. Give a higher '
            'temperature, or samples=1.'
        )
    if not -(2**31) <= config.seed < 2**31:  # a device's
        raise UserError(f'seed: {config.seed} is not valid. It must be from {-(2**31):,} to {2**31 - 1:,}.')
    check_choice('stop', config.stop, ('end', 'newline', 'never'))


def _read_prompts(config):
    """The prompts given, [] for an interactive run."""
    if config.interactive or not config.prompts:
        return [] if config.interactive else [config.prompt]
    try:
        text = epath.Path(config.prompts).expanduser().read_text().removeprefix('\ufeff')
    except UnicodeDecodeError as error:
        raise UserError(f'{config.prompts}: The file is not UTF-8 at byte {error.start:,}. Convert it.') from None
    except OSError as error:
        raise UserError(
            f'{config.prompts}: The file cannot be read ({error.strerror or error}). Name a text file '
            'with one prompt per line.'
        ) from None
    if not text:
        raise UserError(f'{config.prompts}: The file is empty. Write one prompt per line into it.')
    return text.removesuffix('\n').split('\n')


def _stop_id(stop, tokenizer):
    """The token that ends a row, or -1."""
    if stop == 'end' and tokenizer.end_id == tokenizer.newline_id:  # the release's vocabulary
        logging.info('The vocabulary has no token for the end of a text. Set stop=newline to stop at a line end.')
        return -1
    return {'end': tokenizer.end_id, 'newline': tokenizer.newline_id, 'never': -1}[stop]
