"""What one pass over a corpus finds."""

import itertools
import json
import logging
import os
import zipfile

import numpy as np
import pytest

from corpora import InProcess, held_out, joined, make_folder
from gpt1_jax.data.corpus import documents, survey
from gpt1_jax.data.corpus.sources import open_corpus
from gpt1_jax.errors import UserError
from helpers import assert_well_put


def run(folder, **options):
    return survey.survey(open_corpus(f'text:{folder}', **options), InProcess(), 4)


@pytest.mark.parametrize('size', [500, 2**20])
def test_sizes_and_groups(tmp_path, monkeypatch, caplog, size):
    monkeypatch.setattr(documents, 'BLOCK_BYTES', size)
    texts = make_folder(tmp_path, 8)
    copy = texts['b/book03.txt.gz']
    (tmp_path / 'b' / 'book03-0.txt').write_text(copy)
    (tmp_path / 'blank.txt').write_text('\ufeff \n\t\0')
    (tmp_path / 'blank2.txt').write_text(' \n')  # no copy: there is nothing to copy
    (tmp_path / 'empty.txt').write_text('')
    with caplog.at_level(logging.INFO, 'absl'):
        found = run(tmp_path)
    names = list(open_corpus(f'text:{tmp_path}').names())
    texts |= {'b/book03-0.txt': copy, 'blank.txt': '', 'blank2.txt': '', 'empty.txt': ''}
    assert found.sizes.tolist() == [len(texts[name].encode()) for name in names]
    [a, b] = [names.index('b/book03-0.txt'), names.index('b/book03.txt.gz')]
    assert found.groups[a] == found.groups[b] == a
    others = [group for i, group in enumerate(found.groups) if i not in (a, b) and found.sizes[i]]
    assert len(set(others)) == len(others) == 7 and a not in others
    assert 'without text: 3 of 12 documents' in caplog.text
    assert 'NUL characters, which are left out: in 1 of 12 documents, such as blank.txt' in caplog.text
    assert 'copies of others, or nearly: 1 of 12 documents, such as b/book03-0.txt and b/book03.txt.gz' in caplog.text
    sides = {i in held_out(open_corpus(f'text:{tmp_path}'), 0.4) for i in (a, b)}
    assert len(sides) == 1


def test_counts_have_commas(tmp_path, caplog):
    (tmp_path / 'a.jsonl').write_text(''.join(json.dumps({'text': f'row {i} \0'}) + '\n' for i in range(1234)))
    run(tmp_path)
    assert 'in 1,234 of 1,234 documents, such as a.jsonl:1' in caplog.text


def test_a_document_in_many_blocks_is_one(tmp_path, monkeypatch, caplog):
    """The last of them hold nothing but white space."""
    monkeypatch.setattr(documents, 'BLOCK_BYTES', 500)
    text = 'word \0\n' * 200 + '\n' * 2000
    (tmp_path / 'a.txt').write_text(text)
    assert run(tmp_path).sizes.tolist() == [len(text)]
    assert 'in 1 of 1 documents, such as a.txt' in caplog.text


def test_documents_with_the_same_end_are_no_copies(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, 'BLOCK_BYTES', 500)
    for name in ('A', 'B', 'B2'):
        (tmp_path / f'{name}.txt').write_text(f'{name[0]}\n' * 250 + 'C\n' * 100)
    assert run(tmp_path).groups.tolist() == [0, 1, 1]


def test_all_bad_files_are_named_at_once(tmp_path):
    make_folder(tmp_path, 3)
    for i in range(8):
        (tmp_path / f'latin{i}.txt').write_bytes(b'caf\xe9')
    (tmp_path / 'utf16.txt').write_text('wide', encoding='utf-16')
    (tmp_path / 'gone.txt').symlink_to(tmp_path / 'nowhere')
    (tmp_path / 'cut.txt.gz').write_bytes(b'\x1f\x8b\x08\0')
    (tmp_path / 'z.zip').write_bytes(b'PK\3\4 no archive')
    with pytest.raises(UserError) as caught:
        run(tmp_path)
    message = str(caught.value)
    assert message.startswith(f'text:{tmp_path}: 12 files cannot be read. ') and message.endswith('\n  and 2 more')
    assert len(message.splitlines()) == 12
    assert f'{tmp_path}/gone.txt' in message and f'{tmp_path}/z.zip' in message and 'latin0.txt' in message
    for name in os.listdir(tmp_path):
        if name not in ('a', 'b', 'notes.md', 'latin5.txt'):
            (tmp_path / name).unlink()
    with pytest.raises(UserError, match=r'^latin5\.txt of text:.* is not UTF-8 at byte 3') as caught:
        run(tmp_path)
    assert_well_put(str(caught.value))


def test_nothing_but_white_space(tmp_path):
    (tmp_path / 'a.txt').write_text('')
    (tmp_path / 'b.txt').write_text(' \n\n')
    with pytest.raises(UserError, match='Its 2 documents hold nothing but white space') as caught:
        run(tmp_path)
    assert_well_put(str(caught.value))


def test_documents_without_markers_are_counted(tmp_path, caplog):
    (tmp_path / 'a.txt').write_text('x\n*** START OF THE PROJECT GUTENBERG EBOOK A ***\nThe text.\n')
    (tmp_path / 'b.txt').write_text('Another text.\n')
    with caplog.at_level(logging.INFO, 'absl'):
        found = run(tmp_path, strip_gutenberg=True)
    assert 'without the markers of Project Gutenberg: 1 of 2 documents' in caplog.text
    assert found.sizes.tolist() == [len('The text.\n'), len('Another text.\n')]


def test_memory_is_bounded_by_a_sample_of_the_paragraphs(tmp_path, monkeypatch):
    """The more text, the smaller the part of the paragraphs that is kept."""
    kept = []
    group = survey.duplicates.group
    monkeypatch.setattr(survey.duplicates, 'group', lambda c, o, p: kept.append(len(p)) or group(c, o, p))
    text = '\n\n'.join(f'Paragraph number {i} of a long document of this test, and no other.' for i in range(1000))
    (tmp_path / 'a.txt').write_text(text)
    for size in (2**31, len(text) // 10):
        monkeypatch.setattr(survey, '_PARAGRAPHS_OF', size)
        run(tmp_path)
    assert kept[0] == 1000 and 50 < kept[1] < 160


def test_members_of_archives_count_too(tmp_path):
    texts = joined(open_corpus(f'text:{tmp_path}').blocks()) if make_folder(tmp_path, 4) else {}
    with zipfile.ZipFile(tmp_path / 'z.zip', 'w') as archive:
        archive.writestr('copy.txt', texts['a/book02.txt'])
    found = run(tmp_path)
    assert np.bincount(found.groups).max() == 2


def test_facts_of_parts_are_those_of_the_whole(tmp_path):
    """Among the documents are copies, one without text, and some that cannot be read."""
    texts = make_folder(tmp_path, 9)
    (tmp_path / 'a' / 'near.txt').write_text('\n\n'.join([*texts.values()][:4]) + '\0')
    (tmp_path / 'b' / 'near.txt').write_text('\n\n'.join([*texts.values()][:5]))
    (tmp_path / 'b' / 'blank.txt').write_text(' \n')
    for name in ('m', 'z'):
        (tmp_path / f'{name}.txt').write_bytes(b'caf\xe9')
    corpus = open_corpus(f'text:{tmp_path}', strip_gutenberg=True)
    whole = survey.gather_here(corpus, 2**63)
    bounds = [0, 1, 5, 6, 11, corpus.documents]
    parts = [survey.gather_here(corpus.part(a, b - a), 2**63) for a, b in itertools.pairwise(bounds)]
    for one, other in zip(whole, survey.together(parts), strict=True):
        np.testing.assert_array_equal(one, other, strict=isinstance(one, np.ndarray))
    assert len(whole.owners) > 10 and len(whole.problems) == 2 and whole.unmarked > 10 and len(whole.nuls) == 1
