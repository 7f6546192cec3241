"""Tables as text: separators, headers, quotes, empty cells and rows, and lines that are broken."""

import csv
import io
import itertools
import pathlib
import random

import pytest

from gpt1_jax.data.labelled import table_files
from gpt1_jax.data.labelled.registry import REGISTRY, custom_dataset
from gpt1_jax.errors import UserError

CUSTOM = custom_dataset(kind='classification', fields=['text'], labels=['no', 'yes'])


@pytest.fixture(autouse=True)
def all_is_logged(caplog):
    with caplog.at_level('INFO', logger='absl'):
        yield


def entries(text, name='train.tsv', dataset=CUSTOM):
    dataset = REGISTRY[dataset] if isinstance(dataset, str) else dataset
    data = text if isinstance(text, bytes) else text.encode()
    return [entry for _, entry in table_files.table_entries(pathlib.Path(name), data, dataset)]


def texts(*args, **kwargs):
    return [tuple(entry.values()) for entry in entries(*args, **kwargs)]


def refusal(*args, **kwargs):
    with pytest.raises(UserError) as caught:
        entries(*args, **kwargs)
    return str(caught.value)


# ----------------------------------------------------------------- separators and headers


@pytest.mark.parametrize(
    'name, text, said',
    [
        ('a.csv', 'text,label\n"a; b",yes\n', ''),
        ('a.csv', 'text;label\r\na; b;yes\r\n'.replace('a; b', '"a; b"'), 'separated by semicolons, not commas'),
        ('a.csv', 'text\tlabel\na; b\tyes\n', 'separated by tabs, not commas'),
        ('a.tsv', 'text,label\na; b,yes\n', 'separated by commas, not tabs'),
        ('a.tsv.gz', 'text;label\n"a; b";yes\n', 'separated by semicolons, not tabs'),
        ('a.csv', '\ufeff\n\ntext;label\n"a; b";yes\n', 'separated by semicolons'),
        ('a.csv', '"text"\t"label"\n"a; b"\t"yes"\n', 'separated by tabs'),
    ],
)
def test_separators(name, text, said, caplog):
    assert entries(text, name) == [{'text': 'a; b', 'label': 'yes'}]
    assert said in caplog.text and ('separated' in caplog.text) == bool(said)


def test_a_text_with_the_other_separators():
    assert texts('"text"\t"label"\t"a, b"\n"x"\t"no"\t"y"\n', 'a.csv') == [('x', 'no', 'y')]
    assert texts('text,label\n"one\ttwo; three",no\n', 'a.csv') == [('one\ttwo; three', 'no')]
    assert entries('text\na, b; c\n') == [{'text': 'a, b; c'}]  # one column only


@pytest.mark.parametrize('name', ['a.csv', 'a.tsv'])
@pytest.mark.parametrize('separator', [',', '\t', ';'])
def test_no_header(name, separator):
    message = refusal(f'a{separator}yes\nb{separator}no\n', name)
    assert f'{name}, line 1: There is no header with columns of the data set (text, label), only a, yes.' in message


def test_a_header_in_other_case_is_one():
    assert entries('Text,Label\na,yes\n', 'a.csv') == [{'Text': 'a', 'Label': 'yes'}]  # refused where they are needed


STS = 'main\tx\t2012\t0001\t5.000\tOne, two.\tTwo.\nmain\tx\t2015\t1\t3.8\t"Half.\tOther.\thttp://a\thttp://b\n'


@pytest.mark.parametrize('name', ['sts-train.csv', 'train.tsv'])
def test_the_sts_benchmark(name, caplog):
    first, second = entries(STS, name, 'stsb')
    assert (first['sentence1'], first['sentence2'], first['score']) == ('One, two.', 'Two.', '5.000')
    assert (second['sentence1'], second['source2']) == ('"Half.', 'http://b') and 'source1' not in first
    assert 'There is no header. The columns are taken as genre, filename' in caplog.text
    assert 'line 1: There are 6 cells, but a file without a header needs 7' in refusal(
        'a\tb\tc\td\t1\te\n', name, 'stsb'
    )


def test_lines_that_lack_the_last_cells():
    header = 'gold_label\tsentence1\tsentence2\tlabel1\tlabel2\n'
    one, two = entries(header + 'neutral\ta\tb\tneutral\nneutral\tc\td\tx\ty\n', dataset='snli')
    assert one == {'gold_label': 'neutral', 'sentence1': 'a', 'sentence2': 'b', 'label1': 'neutral'}
    assert two['label2'] == 'y'
    assert 'line 2: There are 2 cells, but the header names 5' in refusal(header + 'neutral\ta\n', dataset='snli')


def test_an_index_and_columns_without_a_name():
    assert entries(',text,label,\n0,a,yes,\n', 'a.csv') == [{'text': 'a', 'label': 'yes'}]
    assert "Two columns have the same name, 'text'." in refusal('text,label,text\na,yes,b\n', 'a.csv')


# ----------------------------------------------------------------- quotes


def written(rows, quoting, terminator='\n'):
    file = io.StringIO(newline='')
    csv.writer(file, delimiter='\t', quoting=quoting, lineterminator=terminator).writerows(rows)
    return file.getvalue()


def pandas_rows(seed):
    """Cells with all that needs quotes, in a table with a row that has a doubled quote."""
    rng = random.Random(seed)
    word = lambda: ''.join(rng.choices(['a', 'b ', ', ', '"', '\t', '\n', '\r\n', 'é', "'"], k=rng.randrange(6)))
    return [
        ['text', 'label'],
        ['He said "hi" to me', 'yes'],
        *([f'x{word()}', rng.choice(['yes', 'no'])] for _ in range(9)),
    ]


@pytest.mark.parametrize('quoting', [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize('seed', range(5))
def test_tables_that_pandas_wrote(quoting, seed, caplog):
    rows = pandas_rows(seed)
    assert texts(written(rows, quoting)) == [tuple(row) for row in rows[1:]]
    assert 'cells are in quotes, which are not text' in caplog.text


GLUE = [
    ('"Who came?" she asked.', 'yes'),
    ('" We sail at noon , he said .', 'no'),
    ('"What does ""moor"" mean?"', 'no'),
    ('"All of it."', 'yes'),
    ('He said "hi', 'no'),
    ('""', 'no'),
]


@pytest.mark.parametrize('rows', [rows for n in (2, 3, 6) for rows in itertools.combinations(GLUE, n)])
def test_tables_that_glue_wrote(rows, caplog):
    """Quotes are text as soon as one of them cannot be pandas'."""
    bare = {row for row in rows if row in (GLUE[0], GLUE[1], GLUE[4])}
    doubled = GLUE[2] in rows
    text = 'text\tlabel\n' + ''.join(f'{text}\t{label}\n' for text, label in rows)
    if bare or not doubled:
        assert texts(text) == list(rows)
    assert ('All are kept as text' in caplog.text) == ((doubled and bool(bare)) or (not bare and not doubled))


@pytest.mark.parametrize(
    'text, rows, said',
    [
        # A pair of quotes over a line end: raw, each line is whole; as CSV, one would be none.
        (
            'text\tlabel\n"a b\tyes\nc d"\tno\n',
            [('"a b', 'yes'), ('c d"', 'no')],
            '1 cells are in quotes from end to end',
        ),
        # Here raw lines are not whole, those of CSV are.
        ('text\tlabel\n"a b\nc d"\tno\n', [('a b\nc d', 'no')], '1 cells are in quotes, which are not text'),
        # Quotes from end to end that nothing asks for: kept, as ever.
        ('text\tlabel\n"a b"\tno\n', [('"a b"', 'no')], '1 cells are in quotes from end to end, and 0 have others'),
        # As CSV, two lines would be one with too few cells.
        ('text\tlabel\tz\n"a\tno\tx\nb\tno\t""c"""\n', [('"a', 'no', 'x'), ('b', 'no', '""c"""')], 'All are kept'),
        ('"text"\t"label"\n"a b"\t"no"\n', [('a b', 'no')], '4 cells are in quotes, which are not text'),
        ('\ufeff"text"\t"label"\n"a b"\t"no"\n', [('a b', 'no')], '4 cells'),
    ],
)
def test_where_quotes_may_mean_both(text, rows, said, caplog):
    assert texts(text) == rows and said in caplog.text


def test_quotes_that_are_doubled_in_a_table_with_broken_lines_are_text(caplog):
    """So it is in GLUE's QQP."""
    header = 'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n'
    text = header + '1\t2\t3\t"Is ""x"" y?"\tIs it?\t0\n4\t5\t6\tCut\n off?\tNo?\t1\n7\t8\t9\ta\t\t1\n'
    assert [(e['question1'], e['question2']) for e in entries(text, dataset='qqp')] == [
        ('"Is ""x"" y?"', 'Is it?'),
        ('a', ''),
    ]
    assert '2 lines have too few or too many cells and are left out' in caplog.text
    assert '1 cells are in quotes from end to end, and 0 have others. All are kept' in caplog.text
    whole = text.replace('\tCut\n off?', '\tCut off?')  # so may its dev set be
    assert [e['question1'] for e in entries(whole, dataset='qqp')] == ['"Is ""x"" y?"', 'Cut off?', 'a']
    own = text.replace('\tCut\n off?', '\t"Cut\n off?"')  # a part of Quora's own file
    assert [e['question1'] for e in entries(own, dataset='qqp')] == ['Is "x" y?', 'Cut\n off?', 'a']


def test_lines_that_are_all_broken():
    header = 'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n'
    csv_text = header.replace('\t', ',') + '1,2,3,a,b,1\n4,5\n'
    assert 'line 3: There are 2 cells' in refusal(csv_text, 'train.csv', 'qqp')  # quotes say which lines are one
    message = refusal(header + '1\t2\t3\ta\tb\t1\t\n' * 3, dataset='qqp')
    assert 'line 2: There are 7 cells, but the header names 6 (id, qid1' in message


# ----------------------------------------------------------------- rows


def test_empty_rows_at_the_end(caplog):
    assert texts('text,label\na,yes\n,\nb,no\n\n,\n,\n\n', 'a.csv') == [('a', 'yes'), ('', ''), ('b', 'no')]
    assert 'The last 2 lines have empty cells only and are left out.' in caplog.text


def test_a_carriage_return_inside_a_cell(caplog):
    message = refusal('text\tlabel\nfirst\rsecond\tyes\nb\tno\n')
    assert 'line 2: There are 1 cells' in message and 'a carriage return ends it' in message
    assert texts('label\ttext\nyes\ta\rno\tb\n') == [('yes', 'a'), ('no', 'b')]
    assert '1 lines end in a carriage return only, others in a line feed' in caplog.text
    caplog.clear()
    assert texts('label\ttext\ryes\ta\rno\tb\r') == [('yes', 'a'), ('no', 'b')]  # an old Macintosh
    assert 'carriage' not in caplog.text


def test_zeros_are_text():
    assert texts('text,label\na\0b,yes\n', 'a.csv') == texts('text\tlabel\na\0b\tyes\n') == [('a\0b', 'yes')]


def test_time_grows_with_the_size_only():
    """Quotes that never close, each followed by a long text."""
    data = b'text\tlabel\n' + b'"a""b\tyes\n' * 100_000
    assert table_files._count_quotes(data) == (0, 0, 0, 100_000)
    assert len(entries(data)) == 100_000
