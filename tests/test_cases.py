"""Small inputs as people hold them: downloads of the authors, of GLUE and of the Hugging Face hub, tables of Excel and
pandas, folders of books. They are not part of the repository; `--cases=DIR` names their folder, by default
../shared/cases. Each has an `expect.txt` that says in words what is right, and the tables here say it again.
"""

import collections
import shutil
import types
import zipfile
from typing import NamedTuple

import numpy as np
import pytest

from configs import common, finetune
from gpt1_jax.data.corpus.preparation import prepare
from gpt1_jax.data.labelled.loading import available_splits, load_examples
from gpt1_jax.data.labelled.registry import dataset_of
from gpt1_jax.data.tokenizers.loading import load_tokenizer
from gpt1_jax.errors import UserError
from gpt1_jax.tasks import sweep
from gpt1_jax.tasks.finetune import _encode_all
from helpers import assert_well_put

YES_NO = dict(kind='classification', fields='text', labels='yes,no')
LEVELS = dict(kind='classification', fields='text', labels='low,mid,high')
OPTIONS = dict(kind='multiple_choice', fields='story', choices='option1,option2', labels='1,2', label_field='answer')
NLI = [1, 2, 0]
STS = [5.0, 1.2, 3.8]
CLOZE = {'train': 5, 'dev': 1, 'test': [0, 1] * 3}
RACE = [1, 3] * 4
EIGHT = [0, 1] * 4


class Case(NamedTuple):
    """What is right of the folder of a labelled set.

    Attributes:
      dataset: of the registry, or `config.data` of a custom one.
      splits: name -> labels; or the number of examples, where it has no labels or they are drawn; or words of its
        refusal.
      says: words of the log.
    """

    dataset: str | dict
    splits: dict[str, list | int | str]
    says: str = ''
    ids: tuple = ()  # of the first split
    subsets: tuple = ()
    without: str = '\r'  # no text has this
    folder: str = ''


CASES = {
    'copa_superglue': Case('copa', {'train': [0, 1], 'dev': [0, 1], 'test': 2}),
    'copa_words': Case('copa', {'train': "'2'|2", 'dev': [0, 1]}),
    'custom_excel_empty_rows': Case(YES_NO, {'train': [0, 1], 'dev': [0, 1]}),
    'custom_excel_semicolon': Case(YES_NO, {'train': [0, 1], 'dev': [0, 1]}, says='semicolons'),
    'custom_gz_two_members': Case(YES_NO, {'train': [0, 1], 'dev': [0, 1]}),
    'custom_header_case': Case(YES_NO, {'train': 'Text', 'dev': 'Text'}),
    'custom_label_case': Case(YES_NO, {'train': 'Yes', 'dev': 'Yes'}),
    'custom_labels_from_1': Case(LEVELS, {'train': 'ids 0 to 2', 'dev': 'ids 0 to 2'}),
    'custom_labels_from_1_two_of_three': Case(LEVELS, {'train': [1, 2, 1], 'dev': [1, 2, 1]}, says='low'),
    'custom_lone_cr': Case(YES_NO, {'train': 'line', 'dev': 'line'}),
    'custom_lone_surrogate': Case(YES_NO, {'train': [0, 1], 'dev': [0, 1]}, without='\ud83d'),
    'custom_mc_columns': Case(OPTIONS, {'train': [0, 1], 'dev': [0, 1]}),
    'custom_no_header': Case(YES_NO, {'train': 'header', 'dev': 'header'}),
    'custom_nul': Case(YES_NO, {'train': [0, 1], 'dev': [0, 1]}),
    'custom_null_text': Case(YES_NO, {'train': 'text', 'dev': 'text'}),
    'custom_pandas_tsv': Case(YES_NO, {'train': [0, 1], 'dev': [0, 1]}, without='""'),
    'custom_repeated_id': Case(YES_NO, {'train': [0, 1], 'dev': [0, 1]}, ids=('0', '1'), says='ids'),
    'custom_validation_name': Case(YES_NO, {'train': [0, 1], 'dev': [0, 1], 'test': [0, 1]}),
    'dpr_asis': Case('dpr', {'train': 'train and dev together', 'dev': 'train and dev together', 'test': [0, 1]}),
    'dpr_hf': Case('dpr', {'train': 8, 'dev': 2, 'test': [1]}),
    'dpr_own_dev': Case('dpr', {'train': [0] * 10, 'dev': [1] * 10}, says='nothing is held out'),
    'ft_all_empty_texts': Case(YES_NO, {'train': EIGHT, 'dev': EIGHT}, says='without any text: 8'),
    'ft_emoji_only': Case(YES_NO, {'train': EIGHT, 'dev': EIGHT}),
    'ft_imbalanced': Case(YES_NO, {'train': 100, 'dev': 100}, says='yes 2, no 98'),
    'ft_ok': Case(YES_NO, {'train': [0, 1] * 20, 'dev': [0, 1] * 20, 'test': [0, 1] * 20}),
    'ft_one_class_dev': Case(YES_NO, {'train': [0, 1] * 20, 'dev': [0] * 20}, says='dev split has no example'),
    'ft_one_class_train': Case(YES_NO, {'train': [0] * 40, 'dev': [0, 1] * 10}, says='train split has no example'),
    'ft_one_row': Case(YES_NO, {'train': [0, 1] * 2, 'dev': [0], 'test': [0]}),
    'ft_same_train_dev': Case(YES_NO, {'train': [0, 1] * 10, 'dev': [0, 1] * 10}, says='are training examples too'),
    'glue_cola': Case('cola', {'train': [1, 0, 1], 'dev': [1, 0], 'test': 2}),
    'glue_mnli': Case(
        'mnli', {'train': NLI, 'dev': NLI, 'dev_mismatched': NLI, 'test': 3, 'test_mismatched': 3}, ids=('0', '1', '2')
    ),
    'glue_mrpc': Case('mrpc', {'train': [1, 1], 'dev': [0], 'test': 1}),
    'glue_mrpc_zip': Case('mrpc', {'train': [1, 1], 'dev': [0], 'test': [1]}),
    'glue_qnli': Case('qnli', {'train': [0, 1], 'dev': [0], 'test': 1}),
    'glue_qqp': Case('qqp', {'train': [1, 0, 0, 0], 'dev': [1], 'test': 2}, says='2 lines'),
    'glue_rte_wnli': Case('rte', {'train': [1], 'dev': [1], 'test': 1}, folder='RTE'),
    'glue_rte_wnli/WNLI': Case('wnli', {'train': [0], 'dev': [0], 'test': 1}, folder='WNLI'),
    'glue_sst2': Case('sst2', {'train': [1, 0], 'dev': [0], 'test': 2}),
    'glue_stsb': Case('stsb', {'train': [5.0, 3.4], 'dev': [4.75], 'test': 1}),
    'hf_copa': Case('copa', {'train': [1], 'dev': [1], 'test': 1}),
    'hf_mnli': Case('mnli', {'train': [1], 'dev': [2], 'dev_mismatched': [0], 'test': 1}),
    'hf_parquet_hub': Case('sst2', {'train': [1, 0], 'dev': [1, 0], 'test': [1, 0]}),
    'hf_race_csv_python_list': Case('race', {'train': 'list', 'dev': 'list'}),
    'hf_save_to_disk': Case('sst2', {'train': 'to_json', 'dev': 'to_json'}),
    'hf_snli': Case('snli', {'train': [1, 0, 2], 'dev': [1, 0, 2], 'test': [1, 0, 2]}),
    'hf_to_csv': Case('sst2', {'train': [1, 0], 'dev': [1, 0]}, without='""'),
    'hf_to_csv_index': Case('sst2', {'train': [1, 0], 'dev': [1, 0]}),
    'hf_to_json': Case('sst2', {'train': [1, 0], 'dev': [1, 0], 'test': 1}, without='\\'),
    'hf_to_json_array': Case('sst2', {'train': 'array', 'dev': 'array'}),
    'mnli_asis': Case('mnli', {'train': NLI, 'dev': NLI, 'dev_mismatched': NLI}, says='1 of the 4 examples'),
    'mnli_jsonl': Case('mnli', {'train': NLI, 'dev': NLI, 'dev_mismatched': NLI}, says='1 of the 4 examples'),
    'mrpc_original': Case('mrpc', {'train': [1, 0, 1], 'dev': 'dev_ids.tsv', 'test': [1]}),
    'multinli_hf': Case('mnli', {'train': [1], 'dev': [0]}),
    'qqp_all_broken': Case('qqp', {'train': 'line 2.*7 cells', 'dev': 'line 2.*7 cells'}),
    'quora_asis': Case('qqp', {'train': 'train.tsv', 'dev': 'dev.tsv'}),
    'quora_hf': Case('qqp', {'train': [1], 'dev': [1]}),
    'quora_kaggle': Case('qqp', {'train': [1, 0, 0, 1], 'dev': [1, 0, 0, 1], 'test': 2}, without='""'),
    'race_asis': Case('race', {'train': RACE, 'dev': RACE, 'test': RACE}, subsets=('high',) * 4 + ('middle',) * 4),
    'race_hf': Case('race', {'train': [2, 0], 'dev': [3]}, subsets=('high', 'middle')),
    'race_joined': Case('race', {'train': RACE, 'dev': RACE, 'test': RACE}, subsets=('middle',) * 4 + ('high',) * 4),
    'rocstories_as_train': Case('story_cloze', CLOZE, says='is not read'),
    **{
        f'scitail_{name}': Case('scitail', {'train': [0, 1], 'dev': [0, 1], 'test': [0, 1]})
        for name in ('asis', 'predictor', 'tsv', 'tsv_format_folder')
    },
    'setfit_sst2': Case('sst2', {'train': 'text', 'dev': 'text'}),
    'snli_asis': Case('snli', {'train': NLI, 'dev': NLI, 'test': NLI}, says='1 of the 4 examples'),
    'snli_jsonl': Case('snli', {'train': NLI, 'dev': NLI, 'test': NLI}, says='1 of the 4 examples'),
    'snli_txt_no_trailing_tabs': Case('snli', {'train': NLI, 'dev': NLI}, says='1 of the 4 examples'),
    'story_cloze_2018': Case('story_cloze', {**CLOZE, 'test': 6}),
    'story_cloze_asis': Case('story_cloze', CLOZE),
    'story_cloze_csv': Case('story_cloze', CLOZE),
    'story_cloze_train_and_dev': Case('story_cloze', {'train': [0, 1] * 3, 'dev': [0, 1] * 3, 'test': [0, 1] * 3}),
    'stsbenchmark_asis': Case('stsb', {'train': STS, 'dev': STS, 'test': STS}),
    'stsbenchmark_tsv': Case('stsb', {'train': STS, 'dev': STS, 'test': STS}),
    'wsc_xml': Case('dpr', {'train': 'XML', 'dev': 'XML', 'test': 'XML'}),
}


@pytest.fixture
def case(request):
    """A name -> the folder of that case; the test is skipped where there is none."""

    def case(name):
        folder = request.config.getoption('--cases') / name
        if not folder.is_dir():
            pytest.skip('needs --cases')
        return folder

    return case


def data_of(dataset, folder):
    config = finetune.get_config('custom' if isinstance(dataset, dict) else dataset)
    config.data.update(dataset if isinstance(dataset, dict) else {}, source=f'files:{folder}', cache='off')
    return config


def texts_of(examples):
    for values in examples.fields.values():
        for value in values:
            yield from value if isinstance(value, list) else [value]


def check_split(examples, expected, without):
    if isinstance(expected, int):
        assert len(examples) == expected
    else:
        np.testing.assert_allclose(examples.labels, expected, rtol=1e-6)
    assert len(set(examples.ids)) == len(examples)
    assert not any(without in text for text in texts_of(examples))


@pytest.mark.parametrize('name', CASES)
def test_labelled(case, caplog, sentencepiece, name):
    expected = CASES[name]
    folder = case(name.partition('/')[0]) / expected.folder
    config = data_of(expected.dataset, folder)
    dataset, source = dataset_of(config.data), config.data.source
    for number, (split, right) in enumerate(expected.splits.items()):
        if isinstance(right, str):
            with pytest.raises(UserError, match=right) as caught:
                load_examples(dataset, source, split)
            assert_well_put(str(caught.value))
            continue
        examples = load_examples(dataset, source, split)
        check_split(examples, right, expected.without)
        assert number or not expected.ids or tuple(examples.ids) == expected.ids
        assert number or not expected.subsets or tuple(examples.subsets) == expected.subsets
    if any(isinstance(right, str) for right in expected.splits.values()):
        return
    assert set(available_splits(dataset, source)) == expected.splits.keys()
    sizes = types.SimpleNamespace(sizes={'n_positions': 64})
    with caplog.at_level('INFO', logger='absl'):  # of a run, before it trains
        encoded = _encode_all(config, dataset, types.SimpleNamespace(tokenizer=sentencepiece, architecture=sizes))
    assert encoded.keys() == expected.splits.keys() and expected.says in caplog.text


def test_a_late_mistake_of_a_suite_is_told_first(case, caplog):
    config = finetune.get_config('glue')
    config.data.update(source=f'files:{case("suite_late_mistake")}', batch_size=8)
    config.datasets = ('cola', 'stsb', 'mnli', 'qqp')
    uris, left_out = sweep._uris(config)
    assert uris.keys() == {'cola'} and left_out.keys() == {'stsb', 'mnli', 'qqp'}
    for name, word in (('stsb', 'sts-train.csv'), ('mnli', 'dev'), ('qqp', 'question2')):
        assert word in left_out[name], left_out[name]


# ----------------------------------------------------------------- running text


class Text(NamedTuple):
    """What is right of a corpus: the number of documents with text, or words of the refusal; words of the log."""

    right: int | str
    says: str = ''
    held_out: float = 0.2


TEXTS = {
    'txt_all_empty': Text('nothing but white space'),
    'txt_bom_crlf_ff': Text(9),
    'txt_cjk': Text(5),
    'txt_deep': Text(5),
    'txt_dir_named_txt': Text(6),
    'txt_emoji': Text(5),
    'txt_empty': Text(5, 'without text: 3 of 8 documents'),
    'txt_html': Text(5),
    'txt_latin1': Text('10160-8.txt.*iconv -f WINDOWS-1252 '),
    'txt_links': Text(11, 'link to a folder that is read anyway'),
    'txt_nul': Text(6, 'NUL characters'),
    'txt_one_line_no_spaces': Text(5),
    'txt_one_line_spaces': Text(5),
    'txt_same_book_twice': Text(24, 'copies of others, or nearly: 12 of 24 documents'),
    'txt_tiny': Text('too small'),
    'txt_utf16': Text('u16.txt.*iconv -f UTF-16 '),
    'txt_utf16_no_bom': Text('u16.txt.*iconv -f UTF-16LE '),
    'txt_zip_mixed': Text(7, 'left out: 1 .md, 1 .html, 1 .text'),
    'txt_zip_only': Text(2, 'copies of others, or nearly: 1 of 2 documents', held_out=0.0),
}


def with_links(folder, target):
    """A copy in which the links, which the case has as files with their targets, are links again."""
    shutil.copytree(folder, target, copy_function=shutil.copyfile)
    for path in target.iterdir():
        if path.stat().st_size < 100:
            name = path.read_text()
            path.unlink()
            path.symlink_to(folder.parents[1] / 'txt_deep' / 'corpus' if '/' in name else name)
    return target


def read_without_the_program(folder):
    """The texts of a folder that have any."""
    for path in sorted(folder.rglob('*')):
        if path.is_file() and path.suffix.lower() == '.zip':
            with zipfile.ZipFile(path) as archive:
                yield from (archive.read(name) for name in archive.namelist() if name.lower().endswith('.txt'))
        elif path.is_file() and path.suffix.lower() == '.txt':
            yield path.read_bytes()


def documents(shards):
    """Split -> the tokens of each document."""
    end = load_tokenizer(shards.directory / 'tokenizer').end_id
    found = {}
    for name, split in shards.splits.items():
        tokens = split.read(np.array([0]), split.tokens)[0].tolist()
        found[name] = []
        while tokens:
            document, tokens = tokens[: tokens.index(end)], tokens[tokens.index(end) + 1 :]
            found[name].append(tuple(document))
    return found


@pytest.mark.slow
@pytest.mark.parametrize('name', TEXTS)
def test_text(case, caplog, tmp_path, name):
    folder, (right, says, held_out) = case(name) / 'corpus', TEXTS[name]
    if name == 'txt_links':
        folder = with_links(folder, tmp_path / 'corpus')
    data = common.data_defaults(source=f'text:{folder}', vocab_size=400, held_out=held_out, workers=1)
    if isinstance(right, str):
        with pytest.raises(UserError, match=right) as caught:
            prepare(data, tmp_path / 'shards')
        assert_well_put(str(caught.value))
        return
    with caplog.at_level('INFO', logger='absl'):
        shards = prepare(data, tmp_path / 'shards')
    assert says in caplog.text
    found = documents(shards)
    assert sum(map(len, found.values())) == right
    tokenizer = load_tokenizer(tmp_path / 'shards' / 'tokenizer')
    written = tokenizer.decode([token for of in found.values() for document in of for token in document])
    assert not set('\0\r\f\ufeff') & set(written)
    if name == 'txt_same_book_twice':
        assert not set(found['train']) & set(found['valid'])
    if name not in ('txt_links', 'txt_zip_mixed', 'txt_nul'):
        texts = [content.decode('utf-8-sig') for content in read_without_the_program(folder)]
        expected = collections.Counter(tuple(ids.tolist()) for ids in tokenizer.encode_batch(texts) if len(ids))
        assert expected == collections.Counter(document for of in found.values() for document in of)
