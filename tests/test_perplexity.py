"""The windows that slide over a text (test_evaluate_text.py tests their scores)."""

import json
import random
import types

import numpy as np

from gpt1_jax.data.corpus import sources
from gpt1_jax.data.tokenizers.sentence_piece import train_sentencepiece
from gpt1_jax.evaluation import perplexity
from helpers import some_words


def test_windows_score_every_token_once_with_context_enough():
    rng = np.random.default_rng(0)
    for length in (0, 1, 7, 8, 9, 10, 40, 41):
        for stride in (1, 3, 8):
            ids = rng.integers(1, 99, length)
            pieces = [perplexity.Piece(part, 1) for part in np.array_split(ids, 3)]
            windows = list(perplexity.slide(5, pieces, start_id=0, context=8, stride=stride))
            assert np.concatenate([w.tokens[w.first :] for w in windows]).tolist() == ids.tolist()
            assert all(w.first >= 8 - stride for w in windows[1:]) and all(len(w.tokens) <= 9 for w in windows)
            assert sum(w.words for w in windows) == 3 and {w.text for w in windows} == {5}


def test_documents_and_sentences_of_any_block_size(tmp_path, monkeypatch):
    rng = random.Random(0)
    texts = ['\n'.join(some_words(rng, rng.randint(0, 30)) for _ in range(40)), 'one line', ' \n\n', 'ship \n\n sail\n']
    texts += ['ship sail\r\nwave\r\n', texts[0].replace('\n', '\r'), 'ship\r\rwave\r', texts[0].replace('\n', '\r\n')]
    for number, text in enumerate(texts):
        (tmp_path / f'{number}.txt').write_bytes(text.encode())
    tokenizer = train_sentencepiece([' \n '.join(some_words(rng, 9) for _ in range(99))], 290)
    corpus, encode = sources.open_corpus(f'text:{tmp_path}'), tokenizer.encode_batch
    for size in (2**20, 300):
        monkeypatch.setattr('gpt1_jax.data.corpus.documents.BLOCK_BYTES', size)
        documents = [list(pieces) for pieces in perplexity.documents(corpus, tokenizer)]
        assert (len(documents[0]) > 1) == (size == 300)
        assert [np.concatenate([piece.ids for piece in pieces]).tolist() for pieces in documents] == [
            ids.tolist() for ids in encode(texts)
        ]
        assert [sum(piece.words for piece in pieces) for pieces in documents] == [len(text.split()) for text in texts]
        universal = [text.replace('\r\n', '\n').replace('\r', '\n') for text in texts]
        lines = [line for text in universal for line in text.removesuffix('\n').split('\n')]
        sentences = [piece for (piece,) in perplexity.sentences(corpus, tokenizer)]
        assert [piece.ids.tolist() for piece in sentences] == [ids.tolist() for ids in encode(lines)]


def test_a_line_end_in_two_blocks_is_one(sentencepiece):
    parts = ['ship\r', '\nsail\r', 'wave', ' anchor\r']
    blocks = [types.SimpleNamespace(text=text, document=0, size=len(text)) for text in parts]
    corpus = types.SimpleNamespace(blocks=lambda: blocks, documents=1, is_row=None)
    found = [piece for (piece,) in perplexity.sentences(corpus, sentencepiece)]
    expected = sentencepiece.encode_batch(['ship', 'sail', 'wave anchor'])
    assert [piece.ids.tolist() for piece in found] == [ids.tolist() for ids in expected]
    assert sum(piece.size for piece in found) == sum(map(len, parts))


def test_an_empty_row_of_a_table_is_an_empty_line(tmp_path, sentencepiece):
    rows = ['', 'ship', None, 'sail\nwave', '', '']
    for name, lines in (('a', rows), ('c', ['', 'anchor']), ('d', [''])):
        (tmp_path / f'{name}.jsonl').write_text(''.join(json.dumps({'text': text}) + '\n' for text in lines) + ' \n')
    (tmp_path / 'b.txt').write_text('')  # has no line
    (tmp_path / 'e.txt').write_text('\nwheat')
    corpus = sources.open_corpus(f'text:{tmp_path}')
    lines = ['', 'ship', '', 'sail', 'wave', '', '', '', '', 'anchor', '', '', '', '', 'wheat']
    found = [piece.ids.tolist() for (piece,) in perplexity.sentences(corpus, sentencepiece)]
    assert found == [ids.tolist() for ids in sentencepiece.encode_batch(lines)]
