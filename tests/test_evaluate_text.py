"""Scores of texts and sentences against the float64 reference, token by token."""

import io
import json
import math
import random
import re

import numpy as np
import pytest
import sentencepiece
from etils import epath

import models
import reference
from configs.evaluate_text import get_config
from gpt1_jax.data.tokenizers.sentence_piece import SentencePieceTokenizer
from gpt1_jax.errors import STOPPED_EXIT_STATUS, DivergedError, UserError
from gpt1_jax.evaluation import journal, perplexity
from gpt1_jax.report import results
from gpt1_jax.tasks import evaluate_text
from helpers import some_words
from models import SIZES_32 as SIZES, save_run

CONTEXT = SIZES['n_positions']


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp('run')
    return directory, *save_run(directory)


@pytest.fixture(scope='module')
def books(tmp_path_factory):
    """Three documents: longer than several windows, a few lines, nothing but white space."""
    folder, rng = tmp_path_factory.mktemp('books'), random.Random(2)
    (folder / 'a.txt').write_text('\n'.join(some_words(rng, 7) for _ in range(6)) + '\n')
    (folder / 'b.txt').write_text('Ship sail!\n\nbarn\n')
    (folder / 'c.txt').write_text(' \n')
    return folder


def expected(saved, ids, stride):
    """Log-probability of each token: one forward pass for each, over the window that the definition gives it."""
    _, tokenizer, params = saved
    tokens = [tokenizer.end_id, *ids]
    result = []
    for place in range(1, len(tokens)):
        start = max(0, math.ceil((place - CONTEXT) / stride)) * stride
        context = tokens[start:place]
        assert len(context) <= CONTEXT and (start == 0 or len(context) >= CONTEXT - stride)
        hidden = reference.forward(params, context, SIZES['heads'], n_positions=CONTEXT)[-1]
        result.append(reference.log_softmax(params['table'][: tokenizer.vocab_size] @ hidden)[tokens[place]])
    return result


def run(saved, workdir, source, **changes):
    config = get_config()
    config.update(init_from=str(saved[0]), **changes)
    config.data.update(source=f'text:{source}', batch_size=3)
    result = evaluate_text.run(config, epath.Path(workdir))
    assert {(score.dataset, score.split, score.examples) for score in result.scores} == {
        (f'text:{source}', 'text', result.facts['tokens'])
    }
    stored = results.read(epath.Path(workdir))
    assert (stored.scores, stored.facts, stored.model) == (result.scores, result.facts, result.model)
    return result.facts | {score.metric: score.value for score in result.scores}


@pytest.mark.parametrize('stride', [None, 1, 5, CONTEXT])
def test_documents_equal_the_reference(saved, books, tmp_path, stride):
    scored = run(saved, tmp_path, books, stride=stride)
    _, tokenizer, _ = saved
    texts = [(books / name).read_text() for name in ('a.txt', 'b.txt', 'c.txt')]
    each = [expected(saved, tokenizer.encode_batch([text])[0], stride or CONTEXT // 2) for text in texts]
    total = sum(map(sum, each))
    assert scored['documents'] == 3 and scored['tokens'] == sum(map(len, each)) > 3 * CONTEXT
    assert scored['words'] == 6 * 7 + 4  # 'ship', 'sail', '!', 'barn'
    np.testing.assert_allclose(scored['log_probability'], total, rtol=1e-5)
    np.testing.assert_allclose(scored['loss'], -total / scored['tokens'], rtol=1e-5)
    np.testing.assert_allclose(scored['perplexity'], math.exp(-total / scored['tokens']), rtol=1e-4)
    np.testing.assert_allclose(scored['word_perplexity'], math.exp(-total / scored['words']), rtol=1e-4)
    assert scored['unknown_tokens'] == 0 and scored['comparable'] is True


def test_sentences_equal_the_reference_in_order(saved, tmp_path):
    rng = random.Random(3)
    words = lambda n: some_words(rng, n)
    lines = [words(n) for n in (1, 4, 30, 2)] + ['', 'Barn, wheat?', words(60), ' ', words(3)]
    (tmp_path / 'lines.txt').write_text('\n'.join(lines))
    scored = run(saved, tmp_path / 'out', tmp_path / 'lines.txt', sentences=True)
    found = [json.loads(line) for line in (tmp_path / 'out' / 'sentences.jsonl').read_text().splitlines()]
    assert scored['sentences'] == len(found) == len(lines)
    for line, row in zip(lines, found):
        scores = expected(saved, saved[1].encode_batch([line])[0], CONTEXT // 2)
        assert row['tokens'] == len(scores)
        np.testing.assert_allclose(row['log_probability'], sum(scores), rtol=1e-5)
        assert row['mean'] == (pytest.approx(sum(scores) / len(scores), rel=1e-5) if scores else None)
    assert scored['tokens'] == sum(row['tokens'] for row in found)
    np.testing.assert_allclose(scored['log_probability'], sum(row['log_probability'] for row in found), rtol=1e-12)


def without_byte_pieces(texts, vocab_size):
    """A vocabulary that spells nothing in bytes, as the released one: what it lacks is unknown."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type='bpe',
        vocab_size=vocab_size - 256,
        control_symbols=['<nl>', '<end>'],
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        minloglevel=2,
    )
    return SentencePieceTokenizer(model.getvalue())


@pytest.mark.parametrize('sentences', [False, True])
def test_unknown_pieces_are_counted_and_the_figures_called_not_comparable(tmp_path, monkeypatch, sentences):
    monkeypatch.setattr(models, 'train_sentencepiece', without_byte_pieces)
    save_run(tmp_path / 'run')
    rng = random.Random(5)
    foreign = lambda: ''.join(rng.choices('日本語жук', k=rng.randint(1, 4)))
    lines = [' '.join(rng.choice((foreign(), some_words(rng, 1))) for _ in range(n)) for n in (60, 1, 9)]
    lines.append('ship sail')
    (tmp_path / 'text.txt').write_text('\n'.join(lines))
    warnings = []
    monkeypatch.setattr(evaluate_text.logging, 'warning', lambda message, *values: warnings.append(message % values))
    scored = run((tmp_path / 'run',), tmp_path / 'out', tmp_path / 'text.txt', sentences=sentences)
    expected = [len(re.findall('[日本語жук]+', line)) for line in lines]  # SentencePiece: a piece for all that it lacks
    assert scored['unknown_tokens'] == sum(expected) > 20 and scored['comparable'] is False
    share = float(re.search(rf'^{sum(expected)} of the {scored["tokens"]:,} scored tokens \((.*) %\)', *warnings)[1])
    assert share == pytest.approx(100 * sum(expected) / scored['tokens'], rel=0.01)
    assert 'not comparable' in warnings[0]
    if sentences:
        rows = [json.loads(line) for line in (tmp_path / 'out' / 'sentences.jsonl').read_text().splitlines()]
        assert [row['unknown'] for row in rows] == expected


def test_blocks_and_chunks_of_windows_leave_no_trace(saved, tmp_path, monkeypatch):
    """The same text read in small blocks, and scored a few windows at a time."""
    rng = random.Random(4)
    (tmp_path / 'book.txt').write_text('\n'.join(some_words(rng, 9) for _ in range(80)) + '\n')
    changes = [dict(sentences=False), dict(sentences=True)]
    whole = [run(saved, tmp_path / f'w{i}', tmp_path / 'book.txt', **c) for i, c in enumerate(changes)]
    monkeypatch.setattr('gpt1_jax.data.corpus.documents.BLOCK_BYTES', 300)
    monkeypatch.setattr(perplexity, '_WINDOWS', 7)
    cut = [run(saved, tmp_path / f'c{i}', tmp_path / 'book.txt', **c) for i, c in enumerate(changes)]
    for a, b in zip(whole, cut):
        assert a.keys() == b.keys()
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-6)
    assert whole[1]['sentences'] == 80


@pytest.mark.parametrize('sentences', [False, True])
def test_a_stopped_run_ends_with_the_bits_of_one_that_was_not(saved, books, tmp_path, monkeypatch, sentences):
    """Stopped twice; no batch is computed again."""
    monkeypatch.setattr(perplexity, '_WINDOWS', 2)
    made, make, stops = [], perplexity._batch, []
    monkeypatch.setattr(perplexity, '_batch', lambda *args: made.append(1) or make(*args))
    monkeypatch.setattr(journal.PreemptionGuard, 'should_stop', lambda self, step: len(made) in stops)
    changes = dict(stride=5, sentences=sentences)
    whole = run(saved, tmp_path / 'whole', books, **changes)
    number, files = len(made), {path.name for path in (tmp_path / 'whole').iterdir()}
    made.clear()
    stops[:] = [3, 5]
    for expected_journals in (1, 1, 0):
        try:
            assert run(saved, tmp_path / 'stopped', books, **changes) == whole
        except SystemExit as stopped:
            assert stopped.code == STOPPED_EXIT_STATUS
        assert len(list((tmp_path / 'stopped').glob('*.journal'))) == expected_journals
    assert len(made) == number + 2 and number > 4  # those that were made when it was told to stop
    assert {path.name for path in (tmp_path / 'stopped').iterdir()} == files
    if sentences:
        one, other = ((tmp_path / name / 'sentences.jsonl').read_bytes() for name in ('whole', 'stopped'))
        assert one == other


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(stride=0), 'stride: With 0, '),
        (dict(stride=33), 'stride: With 33, .* from 1 to 32'),
        (dict(init_from=''), 'init_from: It is empty'),
    ],
)
def test_mistakes(saved, books, tmp_path, changes, message):
    config = get_config()
    config.update(dict(init_from=str(saved[0])) | changes)
    config.data.source = f'text:{books}'
    with pytest.raises(UserError, match=message):
        evaluate_text.run(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_that_has_diverged_is_named(saved, books, tmp_path, monkeypatch):
    score_texts = evaluate_text.perplexity.score_texts
    diverged = lambda *arguments, **options: [
        one._replace(log_probability=math.nan) for one in score_texts(*arguments, **options)
    ]
    monkeypatch.setattr(evaluate_text.perplexity, 'score_texts', diverged)
    with pytest.raises(DivergedError, match='log-probabilities are not finite'):
        run(saved, tmp_path, books, sentences=True)
    assert not [path for path in tmp_path.iterdir() if path.name in ('results.json', 'sentences.jsonl')]


def test_a_source_of_white_space_is_named(saved, books, tmp_path):
    with pytest.raises(UserError, match='nothing but white space'):
        run(saved, tmp_path, books / 'c.txt')
