"""Perplexity of running text, and log-probabilities of sentences."""

import json
import math
import time

from absl import logging
from etils import epath
from ml_collections import ConfigDict

from gpt1_jax import peers
from gpt1_jax.data.corpus.sources import TEXT_OPTIONS, open_corpus
from gpt1_jax.errors import DivergedError, UserError
from gpt1_jax.evaluation import journal, perplexity
from gpt1_jax.files import write_atomically
from gpt1_jax.report.results import Result, Score, record
from gpt1_jax.saved_models import store
from gpt1_jax.training.partitioning import Partitioner, is_writer
from gpt1_jax.workdir import open_workdir


def run(config: ConfigDict, workdir: epath.Path) -> Result:
    """Scores `config.data.source` with `config.init_from`; configs/evaluate_text.py says what the result holds.

    WORKDIR/evaluation.journal, which is deleted at the end, keeps finished batches, so that the command can be resumed.
    """
    started = time.monotonic()
    partitioner = Partitioner(config.mesh.strategy, config.mesh.shape)
    saved = store.open_model(config.init_from)
    context, tokenizer = saved.architecture.sizes['n_positions'], saved.tokenizer
    stride = context // 2 if config.stride is None else config.stride
    if not 1 <= stride <= context:
        raise UserError(
            f'stride: With {stride}, some tokens would be left out, or have no context. It must be from 1 '
            f"to {context}, the model's positions."
        )
    options = {name: config.data[name] for name in (*TEXT_OPTIONS, 'download')}
    corpus = open_corpus(config.data.source, **options)
    peers.check_same(f'{corpus.documents} {corpus.size}', config.data.source)
    open_workdir(config, workdir, write=is_writer())
    classifier, params = store.load_model(saved, config.model, partitioner)

    texts = (perplexity.sentences if config.sentences else perplexity.documents)(corpus, tokenizer)
    with journal.resumable(workdir) as watch:
        of_model = journal.fingerprint(classifier, params, partitioner)
        found = list(
            perplexity.score_texts(
                texts,
                classifier,
                params,
                partitioner,
                batch_size=config.data.batch_size,
                start_id=tokenizer.end_id,
                stride=stride,
                watch=watch('evaluating', corpus.size, 'B', model=of_model),
            )
        )
        scores, facts = _judge(config, found, stride)
        if config.sentences and is_writer():
            write_atomically(workdir / 'sentences.jsonl', map(_line, found))
        model = store.summary(classifier.model, params, saved.tokens_seen())
        return record(config, workdir, started, scores=scores, facts=facts, model=model)


def _line(score):
    mean = score.log_probability / score.tokens if score.tokens else None
    line = {'log_probability': score.log_probability, 'tokens': score.tokens, 'unknown': score.unknown, 'mean': mean}
    return json.dumps(line).encode() + b'\n'


def _judge(config, found, stride):
    """(scores, facts) of the result."""
    tokens, unknown, words = (sum(getattr(one, name) for one in found) for name in ('tokens', 'unknown', 'words'))
    if not tokens:
        raise UserError(f'{config.data.source}: The source holds nothing but white space. Name another data.source.')
    total = math.fsum(one.log_probability for one in found)
    if not math.isfinite(total):
        raise DivergedError(f'{config.init_from}: Its log-probabilities are not finite: it has diverged. Name another.')
    metrics = {
        'log_probability': total,
        'loss': -total / tokens,
        'perplexity': perplexity.perplexity(-total / tokens),
        'word_perplexity': perplexity.perplexity(-total / words),
    }
    logging.info(
        '%s tokens, %s words: perplexity %.2f a token, %.2f a word',
        f'{tokens:,}',
        f'{words:,}',
        metrics['perplexity'],
        metrics['word_perplexity'],
    )
    if unknown:
        logging.warning(
            '%s of the %s scored tokens (%.3g %%) are the unknown piece, one token for any text that the '
            'vocabulary lacks: the perplexities are not comparable with those of another vocabulary',
            f'{unknown:,}',
            f'{tokens:,}',
            100 * unknown / tokens,
        )
    facts = {
        'sentences' if config.sentences else 'documents': len(found),
        'tokens': tokens,
        'unknown_tokens': unknown,
        'comparable': not unknown,
        'words': words,
        'stride': stride,
    }
    return [Score(config.data.source, 'text', name, value, tokens) for name, value in metrics.items()], facts
