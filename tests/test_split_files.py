"""Which files of a folder are a split's, and what to do where none is."""

import pytest

from gpt1_jax.data.labelled import split_files
from gpt1_jax.data.labelled.registry import REGISTRY, custom_dataset
from gpt1_jax.errors import UserError

CUSTOM = custom_dataset(kind='classification', fields=['text'], labels=['no', 'yes'])


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('x')


def find(folder, split, dataset=CUSTOM):
    dataset = REGISTRY[dataset] if isinstance(dataset, str) else dataset
    return [str(path.relative_to(folder)) for path in split_files.find(str(folder), split, dataset).files]


def refusal(folder, split, dataset=CUSTOM):
    with pytest.raises(UserError) as caught:
        find(folder, split, dataset)
    return str(caught.value)


@pytest.mark.parametrize('suffix', ['jsonl', 'json', 'tsv', 'csv', 'jsonl.gz', 'json.gz', 'tsv.gz', 'csv.gz'])
@pytest.mark.parametrize('stem', ['validation', 'dev', 'val', 'valid', 'VALIDATION', 'Dev'])
@pytest.mark.parametrize('split', ['validation', 'dev'])
def test_names_of_a_dev_set(tmp_path, split, stem, suffix):
    make(tmp_path, f'{stem}.{suffix}', 'Train.CSV', 'validations.csv', '.dev.csv', 'dev.txt')
    assert find(tmp_path, split) == [f'{stem}.{suffix}'] and find(tmp_path, 'train') == ['Train.CSV']
    assert find(tmp_path, 'test') == []


def test_two_words_for_dev(tmp_path):
    make(tmp_path, 'valid_mismatched.tsv', 'dev_matched.tsv')
    assert find(tmp_path, 'validation_mismatched', 'mnli') == ['valid_mismatched.tsv']
    assert find(tmp_path, 'validation_matched', 'mnli') == ['dev_matched.tsv']


def test_two_files_of_a_split(tmp_path):
    make(tmp_path, 'train.json', 'Train.csv')
    assert 'There are both Train.csv and train.json. Keep one of them.' in refusal(tmp_path, 'train')
    make(tmp_path, 'val.csv', 'dev.tsv')
    assert 'both val.csv and dev.tsv' in refusal(tmp_path, 'validation')


def test_names_that_were_read_before_the_others_still_are(tmp_path, caplog):
    make(tmp_path, 'train.csv', 'Train.csv', 'train.json', 'train.parquet', 'dev.csv', 'validation.csv')
    with caplog.at_level('WARNING'):
        assert find(tmp_path, 'train') == ['train.csv']
    assert 'train.csv is read, not Train.csv, train.json, train.parquet.' in caplog.text
    assert find(tmp_path, 'dev') == ['dev.csv']  # a custom set's own word


def test_a_folder_data(tmp_path):
    make(tmp_path, 'data/train.jsonl', 'other/train.jsonl', 'data/dev.jsonl', 'dev.jsonl')
    assert find(tmp_path, 'train') == ['data/train.jsonl'] and find(tmp_path, 'dev') == ['dev.jsonl']


AUTHORS = [  # data set, the folder as it is unpacked, split -> files, of which the first folder may be left out
    ('snli', ['snli_1.0/snli_1.0_train.jsonl', 'snli_1.0/snli_1.0_train.txt', 'snli_1.0/README.txt',
              'snli_1.0/snli_1.0_dev.jsonl', '__MACOSX/snli_1.0/._snli_1.0_dev.jsonl'],
     {'train': ['snli_1.0/snli_1.0_train.jsonl'], 'validation': ['snli_1.0/snli_1.0_dev.jsonl'], 'test': []}),
    ('snli', ['snli_1.0/snli_1.0_test.txt'], {'test': ['snli_1.0/snli_1.0_test.txt']}),
    ('mnli', ['multinli_1.0/multinli_1.0_train.jsonl', 'multinli_1.0/multinli_1.0_dev_matched.txt',
              'multinli_1.0/multinli_1.0_dev_mismatched.jsonl.gz'],
     {'train': ['multinli_1.0/multinli_1.0_train.jsonl'], 'test_matched': [],
      'validation_matched': ['multinli_1.0/multinli_1.0_dev_matched.txt'],
      'validation_mismatched': ['multinli_1.0/multinli_1.0_dev_mismatched.jsonl.gz']}),
    ('scitail', ['SciTailV1.1/snli_format/scitail_1.0_dev.txt', 'SciTailV1.1/tsv_format/scitail_1.0_dev.tsv',
                 'SciTailV1.1/predictor_format/scitail_1.0_structure_dev.jsonl'],
     {'validation': ['SciTailV1.1/tsv_format/scitail_1.0_dev.tsv']}),
    ('scitail', ['SciTailV1.1/predictor_format/scitail_1.0_structure_test.jsonl',
                 'SciTailV1.1/dgem_format/scitail_1.0_structure_test.tsv'],
     {'test': ['SciTailV1.1/predictor_format/scitail_1.0_structure_test.jsonl']}),
    ('scitail', ['SciTailV1.1/dgem_format/scitail_1.0_structure_test.tsv'],
     {'test': ['SciTailV1.1/dgem_format/scitail_1.0_structure_test.tsv']}),
    ('race', [f'RACE/{split}/{level}/{number}.txt' for split in ('train', 'dev') for level in ('middle', 'high')
              for number in (10, 2, 1)] + ['RACE/README', 'RACE/train/high/._1.txt'],
     {'train': [f'RACE/train/{level}/{number}.txt' for level in ('high', 'middle') for number in (1, 2, 10)],
      'validation': [f'RACE/dev/{level}/{number}.txt' for level in ('high', 'middle') for number in (1, 2, 10)]}),
    ('cola', ['cola_public/raw/in_domain_dev.tsv', 'cola_public/raw/out_of_domain_dev.tsv',
              'cola_public/raw/in_domain_train.tsv', 'cola_public/tokenized/in_domain_train.tsv'],
     {'train': ['cola_public/raw/in_domain_train.tsv'],
      'validation': ['cola_public/raw/in_domain_dev.tsv', 'cola_public/raw/out_of_domain_dev.tsv']}),
    ('cola', ['original/raw/in_domain_train.tsv', 'original/tokenized/in_domain_train.tsv'],
     {'train': ['original/raw/in_domain_train.tsv']}),
    ('stsb', ['stsbenchmark/sts-train.csv', 'stsbenchmark/sts-dev.csv'],
     {'train': ['stsbenchmark/sts-train.csv'], 'validation': ['stsbenchmark/sts-dev.csv']}),
    ('mrpc', ['msr_paraphrase_test.txt', 'MSR_Paraphrase_Train.txt'],
     {'test': ['msr_paraphrase_test.txt'], 'train': ['MSR_Paraphrase_Train.txt'], 'validation': []}),
    ('mrpc', ['msr_paraphrase_train.txt', 'dev_ids.tsv'],
     {'train': ['msr_paraphrase_train.txt'], 'validation': ['msr_paraphrase_train.txt'], 'test': []}),
    ('story_cloze', ['cloze_test_val__spring2016 - cloze_test_ALL_val.csv', 'cloze_test_test__spring2016.csv',
                     'cloze_test_val__winter2018-cloze_test_ALL_val - 1 - 1.csv'],
     {'validation': ['cloze_test_val__spring2016 - cloze_test_ALL_val.csv'],
      'test': ['cloze_test_test__spring2016.csv'], 'train': []}),
    ('story_cloze', ['cloze_test_val__winter2018-cloze_test_ALL_val - 1 - 1.csv',
                     'cloze_test_test__winter2018-cloze_test_ALL_test - 1.csv'],
     {'validation': ['cloze_test_val__winter2018-cloze_test_ALL_val - 1 - 1.csv'],
      'test': ['cloze_test_test__winter2018-cloze_test_ALL_test - 1.csv']}),
    ('copa', ['COPA-resources/datasets/copa-dev.xml', 'COPA-resources/datasets/copa-all.xml'],
     {'validation': ['COPA-resources/datasets/copa-dev.xml'], 'train': []}),
    ('dpr', ['train.c.txt', 'test.c.txt'], {'train': ['train.c.txt'], 'test': ['test.c.txt']}),
]  # fmt: skip


@pytest.mark.parametrize('dataset, names, splits', AUTHORS)
def test_the_authors_own_names(tmp_path, dataset, names, splits):
    make(tmp_path, *names)
    for split, files in splits.items():
        assert find(tmp_path, split, dataset) == files
        for depth in range(1, files[0].count('/') + 1 if files and dataset != 'race' else 0):
            inner = tmp_path.joinpath(*files[0].split('/')[:depth])  # the user may name a folder below
            assert find(inner, split, dataset) == [file.split('/', depth)[1 if depth == 1 else -1] for file in files]


def test_the_order_of_the_authors_names_is_said(tmp_path, caplog):
    make(tmp_path, 'snli_1.0_dev.txt', 'snli_1.0_dev.jsonl')
    with caplog.at_level('INFO', logger='absl'):
        find(tmp_path, 'validation', 'snli')
    assert 'snli_1.0_dev.jsonl is read, not snli_1.0_dev.txt.' in caplog.text
    make(tmp_path, 'dev.tsv')
    assert find(tmp_path, 'validation', 'snli') == ['dev.tsv']


def test_one_of_the_authors_files_twice(tmp_path):
    make(tmp_path, 'sts-dev.csv', 'sts-dev.csv.gz')
    assert 'both sts-dev.csv and sts-dev.csv.gz' in refusal(tmp_path, 'validation', 'stsb')


def test_the_list_of_dev_pairs(tmp_path):
    make(tmp_path, 'msr_paraphrase_train.txt', 'msr_paraphrase_test.txt', 'dev_ids.tsv')
    list_of = lambda split: split_files.find(str(tmp_path), split, REGISTRY['mrpc']).dev_list
    assert list_of('train') == list_of('validation') == tmp_path / 'dev_ids.tsv' and list_of('test') is None
    make(tmp_path, 'train.tsv')  # as GLUE leaves them
    assert list_of('train') is None


@pytest.mark.parametrize(
    'names, words',
    [
        ([], 'only nothing. Add the file, or name the folder that holds it.'),
        (['my-dev-set.csv', 'train.csv'], 'only my-dev-set.csv, train.csv. Rename my-dev-set.csv dev.csv.'),
        (['sst2-validation.tsv.gz'], 'Rename sst2-validation.tsv.gz dev.tsv.gz.'),
        (['Dev.parquet', 'x.csv'], 'Rename Dev.parquet dev.parquet.'),
        (['data.csv'], 'If data.csv is the file of this split, rename it dev.csv.'),
        (['dev.xlsx'], 'Save the table as dev.csv'),
        (['train.csv', 'SST-2.zip'], 'Unpack SST-2.zip there: of packed files only .gz are read.'),
        (['dev.jsonl.bz2'], 'Unpack dev.jsonl.bz2 there'),
        (['dev.txt'], 'If dev.txt has columns with tabs between them, rename it dev.tsv.'),
        (['train.csv', 'test.tsv', 'dataset_dict.json'], 'test.tsv, train.csv. Add the file, or name the'),
        (['a.xml'], 'Write its entries to dev.jsonl, one JSON object a line'),
        (['data-00000-of-00001.arrow', 'state.json'], 'Move the files of a saved split, state.json too, to a'),
        (['quora_duplicate_questions.tsv'], 'Split quora_duplicate_questions.tsv into train.tsv and dev.tsv'),
        (['msr_paraphrase_train.txt'], "Add GLUE's dev_ids.tsv"),
        (['WSCollection.xml'], 'neither the XML nor the text of the Winograd'),
        ([f'{i:02}.bin' for i in range(30)], 'only 00.bin, 01.bin, 02.bin, 03.bin, 04.bin, 05.bin, 06.bin, 07.bin, '
         '08.bin, 09.bin and 20 more. Add'),
    ],
)  # fmt: skip
def test_what_to_do_with_other_files(tmp_path, names, words):
    make(tmp_path, *names)
    message = str(split_files.missing(str(tmp_path), 'validation'))
    assert message.startswith(f'{tmp_path}: There is no dev.jsonl (or ') and words in message


@pytest.mark.parametrize(
    'names, words',
    [
        (['train.jsonl', 'dev.jsonl'], 'If dev.jsonl is it, rename it dev_matched.jsonl.'),
        (['Validation.csv.gz', 'notes.csv'], 'If Validation.csv.gz is it, rename it dev_matched.csv.gz.'),
        (['dev_mismatched.jsonl', 'train.jsonl'], 'Add the file, or name the folder that holds it.'),
        (['dev.jsonl', 'glue-dev_matched.jsonl'], 'Rename glue-dev_matched.jsonl dev_matched.jsonl.'),
    ],
)
def test_what_to_do_where_a_set_has_two_dev_splits(tmp_path, names, words):
    make(tmp_path, *names)
    assert str(split_files.missing(str(tmp_path), 'validation_matched')).endswith(f'. {words}')


def test_no_folder(tmp_path):
    make(tmp_path, 'train.csv')
    for name in ('nowhere', 'train.csv'):
        assert 'This is not a directory. Name the folder that holds dev.jsonl.' in refusal(
            tmp_path / name, 'validation'
        )
