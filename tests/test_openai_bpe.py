"""The released vocabulary's rules against a plain reading of them, on a vocabulary made here and on the real one."""

import collections
import concurrent.futures
import functools
import json
import math
import pathlib
import random
import sys

import ml_collections
import numpy as np
import pytest
import spacy

from gpt1_jax.data.corpus import preparation
from gpt1_jax.data.tokenizers import openai_bpe
from gpt1_jax.data.tokenizers.loading import load_tokenizer
from gpt1_jax.errors import UserError
from helpers import plain_standardise
from models import write_vocabulary

TEXT = """the president is a very good man . " i 'm sure he is , " said the other man . do n't they say that
again and again ? it 's half past ten ; the lady ( she can not wait ) went over the water to the house of the
captain ... no ! mr. smith , whose letter - from his brother - lay there , would go there in the morning with 12 &
3 other sailors : é"""

# What ftfy, the standardisation, spaCy and the merges treat each in its own way, and what the vocabulary lacks.
PARTS = [
    'the',
    'The',
    'morning',
    'MAN',
    'whether',
    ' ',
    '  ',
    '\n',
    '\n \n',
    '\r\n',
    '\t',
    '\x0b',
    '\x0c',
    '\x1f',
    '\x85',
    '\xa0',
    '\u2003',
    '\u2028',
    '\u200b',
    '\x00',
    '\x07',
    '\x1b[1m',
    '\x7f',
    '\ufeff',
    '\ud83d',
    '&amp;',
    '&lt;',
    '<b>',
    '--',
    '!!',
    '...',
    '.',
    ',',
    '?!',
    '"',
    "'",
    '\u2018',
    '\u2019',
    '\u201c',
    '\u2014',
    '\u2015',
    '\u2026',
    '\u00b4',
    "don't",
    "I'm",
    "it's",
    'CANNOT',
    "can't.",
    'a.m.',
    '10p.m.',
    'Mr.',
    'wait...Mr.',
    'e.g.',
    'U.S.',
    'o.O',
    ':3',
    ':-)',
    "'s",
    '°C.',
    '8)',
    '(',
    ')',
    ':',
    '<',
    '<3',
    '=',
    '_',
    '*',
    '\\',
    '/',
    '^',
    '#',
    '$5',
    '10km',
    'x@y.com',
    'and/or',
    'http://a.org/b?c=1',
    'é',
    'É',
    'e\u0301',
    'schÃ¶n',
    'ﬁ',
    'İ',
    'ΣΑΣ',
    'ß',
    '日本',
    '日本語',
    '😀',
    '👩\u200d👧',
    '½',
    '£',
    'ü.',
    'жук',
    '\u202e',
    '\U000e0061',
]


def merge_pair(pieces, pair):
    merged, i = [], 0
    while i < len(pieces):
        found = (*pieces[i : i + 2],) == pair
        merged.append(''.join(pair) if found else pieces[i])
        i += 2 if found else 1
    return merged


def symbols(word):
    return [*word[:-1], word[-1] + '</w>']


def make_vocabulary(directory, n_merges=100):
    """Learns merges from TEXT as Sennrich et al. (2016) do, and writes the release's two files."""
    words = collections.Counter(TEXT.split())
    pieces = {word: symbols(word) for word in words}
    merges = []
    for _ in range(n_merges):
        counts = collections.Counter()
        for word, n in words.items():
            for pair in zip(pieces[word], pieces[word][1:]):
                counts[pair] += n
        merges.append(max(counts, key=lambda pair: (counts[pair], pair)))
        pieces = {word: merge_pair(pieces[word], merges[-1]) for word in words}
    characters = sorted(set(''.join(TEXT.split())) | set('xyz0#'))
    entries = ['<unk>', *characters, *(c + '</w>' for c in characters), *map(''.join, merges), '\n</w>']
    (directory / openai_bpe.RELEASE_NAMES[0]).write_text(json.dumps({entry: i for i, entry in enumerate(entries)}))
    lines = ['#version: 0.2', *map(' '.join, merges), '']
    (directory / openai_bpe.RELEASE_NAMES[1]).write_text('\n'.join(lines))


class PlainTokenizer:
    """One step after the other, with the least of code; nothing of the package, no cache."""

    def __init__(self, directory):
        self.vocabulary = json.loads((directory / openai_bpe.RELEASE_NAMES[0]).read_text())
        lines = (directory / openai_bpe.RELEASE_NAMES[1]).read_text().split('\n')[1:-1]
        self.ranks = {tuple(line.split()): rank for rank, line in enumerate(lines)}

    @functools.cached_property
    def nlp(self):
        return spacy.blank('en')

    def merge(self, token):
        pieces = symbols(token)
        while len(pieces) > 1:
            pair = min(zip(pieces, pieces[1:]), key=lambda pair: self.ranks.get(pair, math.inf))
            if pair not in self.ranks:
                break
            pieces = merge_pair(pieces, pair)
        return ['\n</w>'] if pieces == ['\n', ' </w>'] else pieces

    def encode(self, text):
        tokens = [token.text.lower() for token in self.nlp(plain_standardise(text))]
        return [self.vocabulary.get(piece, 0) for token in tokens for piece in self.merge(token)]


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp('vocabulary')
    make_vocabulary(folder)
    return folder


@pytest.fixture(scope='module')
def released(request):
    if not request.config.getoption('--openai-bpe'):
        pytest.skip('needs --openai-bpe=DIR')
    return pathlib.Path(request.config.getoption('--openai-bpe'))


@pytest.fixture(scope='module', params=['made', 'released'])
def directory(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope='module')
def plain(directory):
    return PlainTokenizer(directory)


@pytest.fixture(scope='module')
def tokenizer(directory):
    return load_tokenizer(directory)


def random_texts(n, seed):
    rng = random.Random(seed)
    words = TEXT.split() + PARTS
    for _ in range(n):
        yield ''.join(rng.choice(words) + rng.choice(['', '', ' ']) for _ in range(rng.randint(0, 30)))


def assert_equal(tokenizer, plain, texts):
    batch = tokenizer.encode_batch(texts)
    assert len(batch) == len(texts)
    for text, ids in zip(texts, batch):
        assert ids.dtype == np.int32 and ids.flags.writeable
        assert ids.tolist() == plain.encode(text), repr(text[:200])


def test_the_published_check_sentence(released):
    tokenizer = load_tokenizer(released)
    text = 'the president is a very good man. " \n " i\'m sure he is, " said the'
    ids = [481, 4735, 544, 246, 963, 870, 762, 239, 244, 40477, 244, 249, 719, 881, 487, 544, 240, 244, 603, 481]
    assert tokenizer.encode_batch([text])[0].tolist() == ids
    assert (tokenizer.vocab_size, tokenizer.newline_id) == (40478, 40477)
    assert [tokenizer.start_id, tokenizer.delimiter_id, tokenizer.extract_id] == [40478, 40479, 40480]


def test_random_text_equals_the_plain_path(tokenizer, plain):
    texts = list(random_texts(1000, seed=0))
    assert_equal(tokenizer, plain, [*texts, TEXT, ' '.join(texts[:50])])


def test_characters_of_all_kinds_equal_the_plain_path(tokenizer, plain):
    """Alone, inside a word and at its end."""
    characters = [chr(i) for i in (*range(0x180), *range(0x180, 0x30000, 97))]
    assert_equal(tokenizer, plain, [' '.join(f'{c} a{c}b b{c}' for c in characters[i::9]) for i in range(9)])


@pytest.mark.parametrize(
    'text',
    [
        '',
        ' ',
        '\n',
        ' \n\t\n ',
        '\x00\x07\x7f',
        '\u200b',
        '\n\nthe\n \n\n man\n',
        'the\n\x1b[1m\nman',
        '\r',
        '\ufeffthe',
        '日本語',
        'x日y',
        '日</w>',
        '</w>',
        '<unk>',
        '\\n</w> the',
        'a' * 30000,
        '日' * 3000,
        'theman' * 5000,
        '.' * 5000,
        '-' * 5000,
        'do' * 3000 + "n't",
        "the'" * 300,
        'a.b' * 3000,
        '( :3<<',
        ': o.Ox _',
        '\n'.join(["don't"] * 50),
    ],
)
def test_single_texts_equal_the_plain_path(tokenizer, plain, text):
    assert_equal(tokenizer, plain, [text])


def test_special_cases_depend_on_the_text_around(tokenizer):
    """Why a text cannot be split chunk by chunk: spaCy takes '( :' for the start of a smiley, and leaves ':3' apart."""
    (whole,) = tokenizer.encode_batch(['( :3<<'])
    parts = np.concatenate(tokenizer.encode_batch(['(', ':3<<']))
    assert whole.tolist() != parts.tolist()


def test_full_caches_change_nothing(tokenizer, plain, monkeypatch):
    monkeypatch.setattr(openai_bpe, '_MAX_CHUNKS', 40)
    assert_equal(tokenizer, plain, list(random_texts(12, seed=1)))
    assert len(tokenizer._chunks) <= 40


def test_several_threads_may_encode(directory, plain, monkeypatch):
    monkeypatch.setattr(openai_bpe, '_MAX_CHUNKS', 40)
    fresh, texts = load_tokenizer(directory), list(random_texts(48, seed=2))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: fresh.encode_batch([text])[0].tolist(), texts))
    assert found == [plain.encode(text) for text in texts]


def test_interface_and_decoding(tokenizer, directory):
    v = tokenizer.vocab_size
    assert v == len(json.loads((directory / openai_bpe.RELEASE_NAMES[0]).read_text()))
    assert tokenizer.newline_id == tokenizer.end_id == v - 1
    assert [tokenizer.start_id, tokenizer.delimiter_id, tokenizer.extract_id] == [v, v + 1, v + 2]
    ids, empty = tokenizer.encode_batch(['The MAN said:\n\n"don\'t wait, sailors!"  ', ''])
    assert tokenizer.decode(ids) == 'the man said :\n" do n\'t wait , sailors ! "'
    assert tokenizer.decode([v, *ids, v + 1, *ids[:2], v + 2]) == tokenizer.decode(ids) + ' the man'
    assert tokenizer.decode([v - 1, *ids[:1], v - 1]) == '\nthe\n'
    assert tokenizer.decode(empty) == tokenizer.decode([]) == ''
    assert tokenizer.decode(tokenizer.encode_batch(['the 日'])[0]) == 'the <unk>'


def test_saved_and_loaded_under_both_pairs_of_names(tokenizer, tmp_path):
    tokenizer.save(tmp_path / 'a')
    names = sorted(path.name for path in (tmp_path / 'a').iterdir())
    assert names == sorted([*openai_bpe.RELEASE_NAMES, 'tokenizer.json'])
    tokenizer.save_vocabulary(tmp_path / 'b', openai_bpe.HUGGING_FACE_NAMES)
    assert sorted(path.name for path in (tmp_path / 'b').iterdir()) == sorted(openai_bpe.HUGGING_FACE_NAMES)
    for folder in ('a', 'b'):
        loaded = load_tokenizer(tmp_path / folder, threads=1)
        assert loaded.fingerprint == tokenizer.fingerprint
        np.testing.assert_array_equal(loaded.encode_batch([TEXT])[0], tokenizer.encode_batch([TEXT])[0])
    (tmp_path / 'b' / 'tokenizer.json').write_text('{"version": "1.0", "model": {"type": "BPE"}}')  # Hugging Face's
    assert load_tokenizer(tmp_path / 'b').fingerprint == tokenizer.fingerprint


def test_prepare_gives_the_same_bytes_for_any_number_of_workers(made, tmp_path, monkeypatch):
    plain = PlainTokenizer(made)
    (tmp_path / 'books').mkdir()
    documents = ['\n'.join(random_texts(80, seed)).encode(errors='replace').decode() for seed in range(4)]
    for i, text in enumerate(documents):
        (tmp_path / 'books' / f'{i}.txt').write_bytes(text.encode())
    data = ml_collections.ConfigDict(
        dict(
            source=f'text:{tmp_path}/books',
            output='',
            vocab_size=320,
            tokenizer=str(made),
            tokenizer_sample_mb=1,
            text_column='',
            strip_gutenberg=False,
            unwrap=False,
            download=True,
            held_out=0.0,
            tokens_per_shard=4000,
            workers=1,
        )
    )
    loaded = preparation.prepare(data, tmp_path / 'one')
    monkeypatch.setattr('gpt1_jax.data.corpus.documents._GROUP', 2000)
    data.workers = 2
    preparation.prepare(data, tmp_path / 'two')
    one, two = (
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob('*') if p.is_file()}
        for name in ('one', 'two')
    )
    assert one == two and len(one) > 4
    newline = len(plain.vocabulary) - 1
    expected = [i for text in documents for i in [*plain.encode(text), newline]]
    assert loaded.splits['train'].read(np.array([0]), loaded.splits['train'].tokens)[0].tolist() == expected
    assert loaded.vocab_size == newline + 1
    assert loaded.tokenizer_fingerprint == load_tokenizer(made).fingerprint


@pytest.mark.parametrize('package', ['ftfy', 'spacy', 'tokenizers'])
def test_a_missing_package_is_named(made, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    tokenizer = load_tokenizer(made)  # for text that is encoded already
    with pytest.raises(UserError, match=f'{package}: This package is not installed'):
        tokenizer.encode_batch(['plain'])


def rewrite(path, change):
    path.write_text(change(path.read_text()))


def without(entry, text):
    vocabulary = json.loads(text)
    del vocabulary[entry]
    return json.dumps(vocabulary)


@pytest.mark.parametrize(
    'change_vocabulary, change_merges, message',
    [
        (lambda text: text[:-20], None, 'encoder_bpe_40000.json: The file is damaged'),
        (lambda text: '[1, 2]', None, 'is not a vocabulary'),
        (lambda text: '{"<unk>": "0"}', None, 'is not a vocabulary'),
        (lambda text: without('the</w>', text), None, 'The ids of its .* entries are not 0 to'),
        (
            lambda text: json.dumps(json.loads(text) | {'more</w>': 10**6}),
            None,
            'The ids of its .* entries are not 0 to',
        ),
        (lambda text: text.replace('<unk>', '<UNK>'), None, "'<unk>' is the first entry"),
        (lambda text: text.replace('"the</w>"', '"teh</w>"'), None, r"vocab_40000.bpe: Line \d+, '.+', does not make"),
        (None, lambda text: text.rsplit('\n', 2)[0] + '\n', r'the 99 merges of .*vocab_40000.bpe make'),
        (None, lambda text: text + 'z z</w>\n', r'the 101 merges of .*vocab_40000.bpe make'),
        (None, lambda text: text.replace('\n', '\nth e</w>', 1), 'vocab_40000.bpe: Line 2,'),
        (None, lambda text: text + 'one\n', "vocab_40000.bpe: Line 102, 'one', is not two pieces"),
        (None, lambda text: text + 'a b c\n', "Line 102, 'a b c', is not two pieces"),
        (None, lambda text: text + '\n', "Line 102, '', is not two pieces"),
        (None, lambda text: text.split('\n', 1)[1], 'vocab_40000.bpe: Line 1,'),
        (None, lambda text: '', "vocab_40000.bpe: Line 1, ''"),
    ],
)
def test_damaged_files_are_named(made, tmp_path, change_vocabulary, change_merges, message):
    make_vocabulary(tmp_path)
    for name, change in zip(openai_bpe.RELEASE_NAMES, (change_vocabulary, change_merges)):
        if change:
            rewrite(tmp_path / name, change)
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)


def test_a_merge_of_a_later_entry_is_refused(tmp_path):
    """Such a merge could be made before or after another of the same rank: then the pieces are not defined."""
    entries = ['<unk>', 'a', 'b', 'a</w>', 'b</w>', 'abb</w>', 'ab', '\n</w>']
    (tmp_path / 'vocab.json').write_text(json.dumps({entry: i for i, entry in enumerate(entries)}))
    (tmp_path / 'merges.txt').write_text('#version: 0.2\nab b</w>\na b\n')
    with pytest.raises(UserError, match="merges.txt: Line 2, 'ab b</w>', does not make entry 5 .* from earlier"):
        load_tokenizer(tmp_path)


def test_missing_files_and_other_fingerprints(tmp_path):
    make_vocabulary(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.save(tmp_path / 'other')
    rewrite(tmp_path / 'other' / 'tokenizer.json', lambda text: text.replace(tokenizer.fingerprint, '0' * 16))
    with pytest.raises(UserError, match='do not match the fingerprint 0000'):
        load_tokenizer(tmp_path / 'other')
    (tmp_path / openai_bpe.RELEASE_NAMES[1]).write_bytes(b'#version: 0.2\n\xff')
    with pytest.raises(UserError, match='vocab_40000.bpe: The file is damaged, it is not UTF-8'):
        load_tokenizer(tmp_path)
    (tmp_path / openai_bpe.RELEASE_NAMES[1]).unlink()
    with pytest.raises(UserError, match='has encoder_bpe_40000.json and lacks vocab_40000.bpe'):
        load_tokenizer(tmp_path)
    (tmp_path / openai_bpe.RELEASE_NAMES[0]).unlink()
    with pytest.raises(UserError, match='The folder holds no tokenizer. .*encoder_bpe_40000.json and vocab_40000.bpe'):
        load_tokenizer(tmp_path)


# ----------------------------------------------------------------- transformers' one file


def write_tokenizer_json(folder, change=lambda model: None, as_strings=False):
    """What transformers 5 writes in place of vocab.json and merges.txt, of the same vocabulary."""
    write_vocabulary(folder / 'two', 60)
    merges = [line.split(' ') for line in (folder / 'two' / 'merges.txt').read_text().splitlines()[1:]]
    model = {
        'type': 'BPE',
        'dropout': None,
        'unk_token': '<unk>',
        'continuing_subword_prefix': '',
        'end_of_word_suffix': '</w>',
        'vocab': json.loads((folder / 'two' / 'vocab.json').read_text()),
        'merges': [' '.join(halves) for halves in merges] if as_strings else merges,
    }
    change(model)
    (folder / 'one').mkdir()
    (folder / 'one' / 'tokenizer.json').write_text(json.dumps({'version': '1.0', 'added_tokens': [], 'model': model}))
    return folder / 'one'


@pytest.mark.parametrize('as_strings', [False, True])
def test_one_file_is_as_good_as_two(tmp_path, as_strings):
    one = load_tokenizer(write_tokenizer_json(tmp_path, as_strings=as_strings))
    two = load_tokenizer(tmp_path / 'two')
    assert one.fingerprint == two.fingerprint and one.vocab_size == 60
    for mine, theirs in zip(one.encode_batch(['ab abc\nabba']), two.encode_batch(['ab abc\nabba']), strict=True):
        assert mine.tolist() == theirs.tolist()


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (lambda model: model.update(type='WordPiece'), "not of GPT-1's kind"),
        (lambda model: model.update(end_of_word_suffix=None), "not of GPT-1's kind"),  # GPT-2's
        (lambda model: model.update(unk_token='[UNK]'), "not of GPT-1's kind"),
        (lambda model: model.update(vocab=None), 'not a vocabulary'),
        (lambda model: model['vocab'].pop('\n</w>'), 'not in the format of the release'),
        (lambda model: model['merges'].reverse(), r"Merge 1, 'a r', does not make entry 41 of .*tokenizer.json"),
        (lambda model: model['merges'].pop(), '60 entries, and the 17 merges of'),
        (lambda model: model.update(merges=None), '60 entries, and the 0 merges of'),
        (lambda model: model.update(merges=['a b c']), 'Some of its merges are not two pieces'),
        (lambda model: model.update(merges=[['a', 3]]), 'Some of its merges are not two pieces'),
        (lambda model: model.update(merges=[3]), 'Some of its merges are not two pieces'),
    ],
)
def test_another_tokenizer_is_named(tmp_path, change, match):
    with pytest.raises(UserError, match=f'one/tokenizer.json: .*{match}'):
        load_tokenizer(write_tokenizer_json(tmp_path, change))
