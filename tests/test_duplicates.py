"""Copies of texts, however they are written, and what only looks like copies."""

import random

import numpy as np
import pytest

from gpt1_jax.data.corpus import duplicates

WORDS = 'harbour captain morning letter widow garden candle winter bridge summer doctor silence'.split()


def make_book(seed, paragraphs=20):
    rng = random.Random(seed)
    return [' '.join(rng.choices(WORDS, k=rng.randint(8, 150))).capitalize() + '.' for _ in range(paragraphs)]


def wrapped(paragraphs, width=70):
    text = ''
    for paragraph in paragraphs:
        length = 0
        for word in paragraph.split():
            if length + len(word) > width:
                text, length = text.rstrip() + '\n', 0
            text += f'{word} '
            length += len(word) + 1
        text = text.rstrip() + '\n\n'
    return text


def groups(texts, limit=2**64):
    prints = [duplicates.fingerprint(text, limit) for text in texts]
    contents = np.array([np.frombuffer(one.content, np.uint64)[0] for one in prints])
    owners = np.repeat(np.arange(len(texts)), [len(one.paragraphs) for one in prints])
    return duplicates.group(contents, owners, np.concatenate([one.paragraphs for one in prints])).tolist()


def test_one_text_in_many_forms():
    book = make_book(0)
    text = wrapped(book)
    licence, marker = wrapped(make_book(99, 40)), ' OF THE PROJECT GUTENBERG EBOOK A ***\n'
    forms = [
        text,
        '\ufeff' + text.replace('\n', '\r\n'),
        text.replace('\n', '\r'),
        wrapped(book, 40).upper(),
        '\n\n'.join(book),
        text.replace('.', ' _."').replace(' ', '  '),
        f'header\n*** START{marker}{text}\n*** END{marker}{licence}',
        wrapped(book[1:] + ['A new end.']),
        wrapped(make_book(1)),
    ]
    assert groups(forms) == [0] * 8 + [8]
    assert len({duplicates.fingerprint(form).content for form in forms[:7]}) == 1


def test_paragraphs_count_whole_if_they_are_short_and_by_sentences_if_long():
    sentence = 'The captain walked along the quay until the bell rang. '
    of = lambda *texts: duplicates.fingerprint('\n\n'.join(texts)).paragraphs.tolist()
    different = [sentence.replace('captain', word) for word in WORDS * 2][:20]
    assert len(of(*map(''.join, (different[:5], different[5:10])))) == 2
    assert len(''.join(different)) > 1000 and len(of(''.join(different))) == len(WORDS)
    book = of(*make_book(0))
    marker = 'OF THE PROJECT GUTENBERG EBOOK A ***'
    assert of(f'*** START {marker}', *make_book(0), f'*** END {marker}', *make_book(99)) == book and len(book) == 20


@pytest.mark.parametrize('shared, together', [(20, True), (17, True), (16, False), (10, False), (0, False)])
def test_more_than_four_fifths_of_the_shorter_one(shared, together):
    book, other = make_book(0), make_book(1)
    texts = [wrapped(book), wrapped(book[:shared] + other[shared:]), wrapped(make_book(2))]
    assert groups(texts) == [0, 0 if together else 1, 2]
    longer = [wrapped(make_book(3, 200) + book), wrapped(book[:shared] + other[shared:])]
    assert groups(longer) == [0, 0 if together else 1]


def test_what_very_many_documents_have_joins_nothing():
    licence = make_book(99, 60)
    texts = [wrapped(make_book(i, 3) + licence) for i in range(30)]
    assert groups(texts) == list(range(30))
    assert groups([*texts, wrapped(make_book(4, 3) + ['Another end.'] + licence)])[-1] == 4
    assert groups(texts + texts) == [*range(30)] * 2


def test_many_copies_are_one_text():
    book = make_book(0)
    assert groups([*[wrapped(book)] * 20, wrapped(book[:19]), wrapped(make_book(1))]) == [0] * 21 + [21]


def test_a_text_without_blank_lines_is_taken_by_sentences():
    book = make_book(0, 60)
    assert groups(['\n'.join(book), ' '.join(book[:50]), '\n'.join(make_book(1, 60))]) == [0, 0, 2]
    chinese = ['今天天气很好我们去海边' * 3 + f'{i}。' for i in range(60)]
    assert groups([''.join(chinese), ''.join(chinese[:50]), ''.join(reversed(chinese))]) == [0, 0, 0]


def test_line_ends_of_all_systems_part_paragraphs():
    text = wrapped(map(' '.join, zip(make_book(0), make_book(1))))  # two sentences in each
    prints = [duplicates.fingerprint(text.replace('\n', end)).paragraphs.tolist() for end in ('\n', '\r\n', '\r')]
    assert 20 < len(prints[0]) < 40 and prints[0] == prints[1] == prints[2]


def test_copies_are_found_where_documents_between_them_share_their_halves():
    book = make_book(0)
    halves = [wrapped(half + make_book(seed, 50)) for seed, half in ((1, book[:10]), (2, book[10:]))]
    assert groups([wrapped(book), *halves, wrapped([*book, 'A new end.'])]) == [0, 1, 2, 0]


@pytest.mark.parametrize(('others', 'together'), [(8, True), (9, False)])
def test_what_more_than_ten_documents_have_is_not_counted(others, together):
    """Two of them have nothing else but a paragraph each."""
    licence = make_book(99, 9)
    texts = [wrapped(make_book(seed, 1) + licence) for seed in range(2)]
    texts += [wrapped(make_book(seed, 50) + licence) for seed in range(2, 2 + others)]
    assert (groups(texts)[1] == 0) == together


def test_short_paragraphs_do_not_count():
    assert groups(['Yes.\n\nNo.\n\nYes.\n', 'Yes.\n\nNo.\n\nNo.\n', 'Yes.\n\nNo.\n\nYes.']) == [0, 1, 0]


def test_a_paragraph_in_two_blocks_of_a_document_counts_once():
    book, other = make_book(0, 5), make_book(1, 1)
    whole, most = (duplicates.fingerprint(wrapped(text)).paragraphs for text in (book, book[:4] + other))
    owners = np.repeat([0, 0, 1], [5, 5, 5])
    paragraphs = np.concatenate([whole, whole, most])
    assert duplicates.group(np.array([1, 2], np.uint64), owners, paragraphs).tolist() == [0, 1]


def test_chains_are_one_group():
    book = make_book(0, 40)
    texts = [wrapped(book[i : i + 20]) for i in range(0, 12, 3)]  # each shares 17 of 20 with the next
    assert groups([*texts, wrapped(make_book(5))]) == [0, 0, 0, 0, 4]


def test_a_sample_of_the_paragraphs_finds_the_same():
    books = [make_book(seed, 400) for seed in range(6)]
    texts = [wrapped(book) for book in books] + [wrapped(book[:390]) for book in books]
    assert groups(texts, limit=2**64 // 8) == [*range(6)] * 2
    half = duplicates.fingerprint(texts[0], 2**63).paragraphs
    assert 150 < len(half) < 250 and half.max() < 2**63


def test_no_documents_with_paragraphs():
    assert groups(['a', 'b', 'a']) == [0, 1, 0]
