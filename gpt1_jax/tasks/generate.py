"""Text from a language model: samples or the most probable continuation of prompts, with a key-value cache."""

import functools
import json
import os
import sys
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import PartitionSpec

from gpt1_jax import config as common
from gpt1_jax.errors import UserError
from gpt1_jax.model import decoding
from gpt1_jax.model.transformer import Cache
from gpt1_jax.training import transfer
from gpt1_jax.training.partitioning import Partitioner

_CHUNK = 8  # tokens made between two looks at them, where they are shown as they are made


class Row(NamedTuple):
    """One sample to make. ids: the prompt's, int32 [n], n >= 1; limit: the most tokens, prompt included; end: what
    ends it if no stop token does, 'max_tokens' or 'context'."""

    prompt: str
    ids: np.ndarray
    sample: int
    limit: int
    end: str


def run(config, workdir) -> list[dict]:
    """Generates as configs/generate.py says; returns what it writes to workdir/generations.jsonl (interactive: [])."""
    _check(config)
    prompts = _read_prompts(config)
    _keep_compiled()
    partitioner = Partitioner(config.mesh.strategy, config.mesh.shape)
    source = transfer.open_source(config.init_from)
    context = source.architecture['n_positions']
    rows_of = functools.partial(make_rows, tokenizer=source.tokenizer, context=context, samples=config.samples,
                                max_tokens=config.max_tokens)
    name = 'line {} of ' + config.prompts if config.prompts else 'the prompt'
    rows = [row for i, prompt in enumerate(prompts, 1) for row in rows_of(prompt, name.format(i))]
    common.save_or_compare(config, workdir, write=jax.process_index() == 0)
    model, _, params = transfer.load_model(source, config.model, partitioner)
    with partitioner.activate():
        make = maker(model, params['decoder'], source.tokenizer, partitioner, config,
                     places=max((row.limit for row in rows), default=context),
                     size=min(config.batch_size, len(rows) or config.samples))
        if config.interactive:
            _converse(make, rows_of, config)
            return []
        return _generate(make, rows, config, workdir)


def make_rows(prompt: str, name: str, *, tokenizer, context: int, samples: int, max_tokens: int) -> list[Row]:
    """The samples to make for one prompt. Raises UserError, which calls the prompt `name`, where it is too long."""
    ids = tokenizer.encode_batch([prompt])[0]
    if not len(ids):
        logging.info('%s is empty: it is taken for the end of a text, after which another begins', name)
        ids = np.array([tokenizer.end_id], np.int32)
    if len(ids) >= context:
        raise UserError(f'{name} has {len(ids)} tokens, and the model has {context} positions: shorten it to at most '
                        f'{context - 1} tokens, so that one can follow')
    limit = min(len(ids) + max_tokens, context)
    if limit < len(ids) + max_tokens:
        logging.warning('%s has %d tokens, and the model has %d positions: at most %d tokens can follow, fewer than '
                        'max_tokens=%d', name, len(ids), context, context - len(ids), max_tokens)
    end = 'context' if limit < len(ids) + max_tokens else 'max_tokens'
    return [Row(prompt, ids, sample, limit, end) for sample in range(samples)]


def maker(model, params: dict, tokenizer, partitioner: Partitioner, config, *, places: int, size: int):
    """make(rows, show=None) -> one dict a row: 'prompt', 'sample', 'text' (what follows the prompt), 'tokens' (their
    number), 'ended_by' ('stop', 'max_tokens' or 'context').

    Call both inside `partitioner.activate`. show(text): is given the first row's text piece by piece, as it is made.

    Args:
      params: the decoder's; they are copied layer by layer, so let go of them afterwards.
      places: at least every row's limit; size: at least the number of rows of any call.
    """
    places = decoding.bucket(places, model.n_positions)
    size = -(-size // partitioner.groups) * partitioner.groups
    sampling = decoding.Sampling(config.temperature, config.top_k, config.top_p)
    stop_id = _stop_id(config.stop, tokenizer)
    params = jax.jit(decoding.unstack_layers)(params)
    prefill, decode = jit_steps(model, partitioner, places, sampling)
    look = jax.jit(lambda state: (state.tokens, state.lengths, state.limits), out_shardings=partitioner.replicated())

    def make(rows, show=None):
        padded = rows + [rows[0]._replace(limit=0)] * (size - len(rows))  # at its end before it begins
        prompts = np.zeros((size, decoding.bucket(max(len(row.ids) for row in rows), model.n_positions)), np.int32)
        for place, row in zip(prompts, padded):
            place[:len(row.ids)] = row.ids
        columns = dict(prompts=prompts, lengths=[len(row.ids) for row in padded],
                       limits=[row.limit for row in padded], samples=[row.sample for row in padded])
        batch = {name: partitioner.local_rows(np.asarray(column, np.int32)) for name, column in columns.items()}
        state = prefill(params, **partitioner.put_batch(batch))
        shown, finished = '', False
        while not finished:
            state = decode(params, state, sampling, config.seed, stop_id, _CHUNK if show else places)
            tokens, lengths, limits = jax.device_get(look(state))
            finished = np.all(lengths >= limits)
            if show:
                text = continuation(tokenizer, rows[0].ids, tokens[0, :lengths[0]], stop_id)
                if not finished:
                    text = text.rstrip('\ufffd')  # what may be the first bytes of a character
                show(text[len(shown):])
                shown = text
        results = []
        for row, ids, length in zip(rows, tokens, lengths):
            made = ids[len(row.ids):length]
            results.append({
                'prompt': row.prompt, 'sample': row.sample,
                'text': continuation(tokenizer, row.ids, ids[:length], stop_id), 'tokens': len(made),
                'ended_by': 'stop' if stop_id in made[-1:] else row.end})
        return results

    return make


def jit_steps(model, partitioner: Partitioner, places: int, sampling: decoding.Sampling):
    """`decoding.prefill` and `decoding.decode`, jitted for this kind of sampling; decode reuses its state."""
    rows = partitioner.batch_sharding()
    heads = nn.logical_to_mesh_sharding(PartitionSpec('batch', 'heads'), partitioner.mesh, partitioner.rules)
    # Both leave a state in the same layout: else the second piece of a text would be compiled again.
    state = decoding.State(rows, rows, rows, rows, Cache(heads, heads, rows))
    prefill = functools.partial(decoding.prefill, model, places=places)
    decode = functools.partial(decoding.decode, model, greedy=sampling.temperature == 0,
                               truncated=sampling.top_k > 0 or sampling.top_p < 1)
    return jax.jit(prefill, out_shardings=state), jax.jit(decode, out_shardings=state, donate_argnums=1)


def continuation(tokenizer, prompt: np.ndarray, ids: np.ndarray, stop_id: int) -> str:
    """The text that follows the prompt (with the space between, if there is one) in `ids`, which begin with it. The
    stop token leaves nothing."""
    if len(ids) > len(prompt) and ids[-1] == stop_id:
        ids = ids[:-1]
    return tokenizer.decode(ids).removeprefix(tokenizer.decode(prompt))


def _generate(make, rows, config, workdir):
    """Makes all rows, batch by batch; prints them and writes them to workdir/generations.jsonl."""
    first = jax.process_index() == 0
    say = _print if first else lambda text: None
    streamed = config.stream and len(rows) == 1 and not config.prompts
    results = []
    with epath.Path(workdir / 'generations.jsonl' if first else os.devnull).open('w') as file:
        for start in range(0, len(rows), config.batch_size):
            if streamed:
                say(rows[0].prompt)
            made = make(rows[start:start + config.batch_size], say if streamed else None)
            for result in made:
                line = json.dumps(result, ensure_ascii=False) + '\n'
                file.write(line)
                say(line if config.prompts else '\n' if streamed else _with_number(result, config, result['prompt']))
            file.flush()
            results += made
    return results


def _converse(make, rows_of, config):
    """Answers the lines of standard input until it ends; a mistake ends only its line."""
    if jax.process_count() > 1:
        raise UserError('interactive=True has one standard input, and this run several processes: start one, or give '
                        'prompts=FILE')
    invite = lambda: _print('> ') if sys.stdin.isatty() else None
    invite()
    for line in sys.stdin:
        try:
            rows = rows_of(line, 'the prompt')
        except UserError as error:
            _print(f'error: {error}\n')
        else:
            if config.stream and len(rows) == 1:
                make(rows, _print)
                _print('\n')
            else:
                for start in range(0, len(rows), config.batch_size):
                    for result in make(rows[start:start + config.batch_size]):
                        _print(_with_number(result, config, ''))
        invite()


def _with_number(result, config, before):
    number = f'[{result["sample"]}] ' if config.samples > 1 else ''
    return f'{number}{before}{result["text"]}\n'


def _print(text):
    print(text, end='', flush=True)


def _check(config):
    if not config.init_from:
        raise UserError('init_from is empty: name the --workdir of a pre-training run with --config.init_from=DIR, or '
                        'released weights with openai:DIR or hf:DIR')
    if bool(config.prompt) + bool(config.prompts) + config.interactive > 1:
        raise UserError('give one of prompt, prompts and interactive, not several')
    if config.temperature < 0:
        raise UserError(f'temperature={config.temperature} is negative: give 0 for the most probable token, or more to '
                        'sample')
    if not 0 < config.top_p <= 1:
        raise UserError(f'top_p={config.top_p} is not a probability: give more than 0 and at most 1 (all tokens)')
    if config.temperature == 0 and config.samples > 1:
        raise UserError(f'samples={config.samples} would all be the same at temperature=0: give a temperature above 0, '
                        'or samples=1')
    for name, least in dict(top_k=0, samples=1, max_tokens=1, batch_size=1).items():
        if config[name] < least:
            raise UserError(f'{name}={config[name]} is too small: give at least {least}')
    common.check_choice('stop', config.stop, ('end', 'newline', 'never'))


def _read_prompts(config):
    """The prompts given, [] for an interactive run."""
    if config.interactive or not config.prompts:
        return [] if config.interactive else [config.prompt]
    try:
        text = epath.Path(config.prompts).expanduser().read_text()
    except UnicodeDecodeError as error:
        raise UserError(f'prompts={config.prompts} is not UTF-8 at byte {error.start:,}: convert it') from None
    except OSError as error:
        raise UserError(f'prompts={config.prompts} cannot be read ({error.strerror or error}): name a text file with '
                        'one prompt a line') from None
    if not text.strip():
        raise UserError(f'prompts={config.prompts} is empty: give it one prompt a line')
    return text.removesuffix('\n').split('\n')


def _stop_id(stop, tokenizer):
    """The token that ends a row, or -1."""
    if stop == 'end' and tokenizer.end_id == tokenizer.newline_id:  # the release's vocabulary
        logging.info('the vocabulary has no token of its own for the end of a text: stop=newline stops at a line\'s')
        return -1
    return {'end': tokenizer.end_id, 'newline': tokenizer.newline_id, 'never': -1}[stop]


def _keep_compiled():
    """Compiled steps are kept in the user's cache folder, unless JAX has been told another."""
    if not jax.config.jax_compilation_cache_dir:
        folder = epath.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'gpt1_jax' / 'compiled'
        common.cache_compiled_steps(folder)
