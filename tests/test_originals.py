"""Forms that only the authors of one set write."""

import pathlib

import pytest
from etils import epath

from gpt1_jax.data.labelled import originals
from gpt1_jax.errors import UserError
from helpers import load_files, refusal, write_lines

ITEM = (
    '<item id="{id}" asks-for="{question}" most-plausible-alternative="{right}">\n'
    '<p>The kéttle sang &amp; sang.</p>\n<a1>It was hot.</a1>\n<a2> It was <i>cold</i>.</a2>\n</item>\n'
)
COPA = (
    '<?xml version="1.0" encoding="ISO-8859-1"?>\n<!DOCTYPE copa-corpus SYSTEM "copa.dtd">\n'
    '<copa-corpus version="1.0">\n'
    + ITEM.format(id=1, question='cause', right=2)
    + ITEM.format(id=2, question='effect', right=1)
    + '</copa-corpus>\n'
)


@pytest.mark.parametrize('encoding', ['latin-1', 'utf-8', 'utf-16'])
def test_copa(tmp_path, encoding):
    (tmp_path / 'copa-dev.xml').write_bytes(COPA.encode(encoding))
    examples = load_files('copa', tmp_path, 'dev')
    assert examples.fields == {
        'premise': ['The kéttle sang & sang.'] * 2,
        'question': ['What was the cause of this?', 'What happened as a result?'],
        'choices': [['It was hot.', 'It was cold.']] * 2,
    }
    assert examples.labels.tolist() == [1, 0] and examples.ids == ['1', '2']


def test_copa_without_labels(tmp_path):
    (tmp_path / 'copa-test.xml').write_text(COPA.replace('most-plausible-alternative="', 'other="'))
    assert load_files('copa', tmp_path, 'test').labels is None


@pytest.mark.parametrize(
    'old, new, words',
    [
        ('</item>', '', 'copa-dev.xml: This is not XML (mismatched tag'),
        (
            '<a2> It was <i>cold</i>.</a2>',
            '',
            'copa-dev.xml, item 1: There are 0 elements <a2>. Write one in each item.',
        ),
        ('<a2> It', '<a2>Or this.</a2><a2> It', 'item 1: There are 2 elements <a2>. Write one in each item.'),
        ('asks-for="cause"', '', "item 1, column 'question': The value None is unknown. Write cause or effect."),
        ('alternative="2"', 'alternative="3"', "item 1, column 'label': The label 'choice3' is unknown"),
        ('ISO-8859-1', 'no-such', 'copa-dev.xml: The text has another encoding than it says'),
        ('ISO-8859-1', 'undefined', 'copa-dev.xml: The text has another encoding than it says'),
        ('"copa.dtd">', '"copa.dtd" [<!ENTITY a "b">]>', 'copa-dev.xml: The XML defines entities'),
    ],
)
def test_malformed_copa(tmp_path, old, new, words):
    (tmp_path / 'copa-dev.xml').write_bytes(COPA.replace(old, new).encode('latin-1'))
    assert words in refusal('copa', tmp_path, 'dev')


ITEMS = (
    'The heron saw the fish because it was hungry.\nit\nThe heron,the fish\nThe heron\n\n'
    'The heron saw the fish because it was slow. \nit\nThe heron, the fish\nthe fish\n'
)


def test_definite_pronouns(tmp_path):
    write_lines(tmp_path / 'test.c.txt', ITEMS.replace('\n', '\r\n'))
    examples = load_files('dpr', tmp_path, 'test')
    assert examples.fields == {
        'context': ['The heron saw the fish because'] * 2,
        'endings': [['The heron was hungry.', 'the fish was hungry.'], ['The heron was slow.', 'the fish was slow.']],
    }
    assert examples.labels.tolist() == [0, 1] and examples.ids == ['0', '1']


@pytest.mark.parametrize(
    'old, new, words',
    [
        ('it\nThe heron,', 'The heron,', 'line 1: The item has 3 lines. Write four'),
        ('fish\nThe heron\n\n', 'fish\nThe heron\n', 'line 1: The item has 8 lines'),
        ('the fish\nThe heron\n', 'the fish\nThe gull\n', "line 1: The answer 'The gull' is not one of the candidates"),
        (
            'The heron, the fish\nthe',
            'The heron, the fish, x\nthe',
            "line 6, column 'endings': The number of choices is 3",
        ),
    ],
)
def test_malformed_definite_pronouns(tmp_path, old, new, words):
    assert old in ITEMS
    write_lines(tmp_path / 'test.c.txt', ITEMS.replace(old, new))
    assert words in refusal('dpr', tmp_path, 'test')


def test_case_counts_only_where_it_decides():
    label = lambda text: next(originals.pronoun_entries(pathlib.Path('a'), text.encode()))[1]['label']
    assert (
        label('Us and us: it ran.\nit\nUs,us\nus\n') == 1 and label('The A saw B: it ran.\nit\nThe a,B\nThe A\n') == 0
    )


MRPC = '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n' + ''.join(
    f'{i % 2}\t{70 + i}\t{80 + i}\tOne " {i}.\tTwo {i}.\r\n' for i in range(5)
)


def test_mrpc_by_the_list_of_dev_pairs(tmp_path, caplog):
    write_lines(tmp_path / 'msr_paraphrase_train.txt', MRPC)
    write_lines(tmp_path / 'msr_paraphrase_test.txt', MRPC)
    assert len(load_files('mrpc', tmp_path)) == 5 and "Add GLUE's dev_ids.tsv" in refusal('mrpc', tmp_path, 'dev')
    write_lines(tmp_path / 'dev_ids.tsv', '73\t83\n71\t81\n99\t99\n70\t81\n')
    with caplog.at_level('WARNING'):
        assert load_files('mrpc', tmp_path, 'dev').fields['sentence1'] == ['One " 1.', 'One " 3.']
    assert 'dev_ids.tsv: 2 of the 4 pairs were not found.' in caplog.text
    train = load_files('mrpc', tmp_path)
    assert train.fields['sentence2'] == ['Two 0.', 'Two 2.', 'Two 4.'] and train.labels.tolist() == [0, 0, 0]
    assert len(load_files('mrpc', tmp_path, 'test')) == 5


def test_a_list_of_pairs_that_is_no_text(tmp_path):
    (tmp_path / 'ids').write_bytes(b'\xff1\t2\n')
    with pytest.raises(UserError, match='not UTF-8'):
        list(originals.divided([], epath.Path(tmp_path / 'ids'), True))
