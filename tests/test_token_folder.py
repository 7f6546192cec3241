"""A labelled data set as token sequences in a folder: what is read is what was encoded."""

import dataclasses
import json
import types

import numpy as np
import pytest

from gpt1_jax.data.labelled.encoding import encode_split
from gpt1_jax.data.labelled.registry import REGISTRY
from gpt1_jax.data.labelled.sequences import Encoded
from gpt1_jax.data.labelled.token_folder import cut_to, read_tokens, tokens_splits, write_tokens
from gpt1_jax.errors import UserError

KEY = dict(fingerprint='abc', max_length=8, rule='longest')


def encoded(n=5, labels=True, subsets=False, longest=8):
    rng = np.random.default_rng(0)
    sequences = [[rng.integers(0, 40, rng.integers(3, longest + 1)) for _ in range(2)] for _ in range(n)]
    sequences[0][0] = rng.integers(0, 40, longest)
    return Encoded(
        sequences,
        np.arange(n, dtype=np.int32) % 2 if labels else None,
        [f'example {i}' for i in range(n)],
        2,
        7,
        [f'level {i % 2}' for i in range(n)] if subsets else None,
    )


@pytest.fixture
def folder(tmp_path):
    write_tokens(
        tmp_path / 'mrpc',
        'mrpc',
        {'train': encoded(), 'dev': encoded(3, subsets=True), 'test': encoded(4, labels=False)},
        **KEY,
    )
    return tmp_path / 'mrpc'


def test_what_is_read_is_what_was_written(folder):
    assert tokens_splits(folder) == ['train', 'dev', 'test']
    written = {'train': encoded(), 'dev': encoded(3, subsets=True), 'test': encoded(4, labels=False)}
    for split, expected in written.items():
        read = read_tokens(folder, 'mrpc', split, **KEY)
        assert len(read.sequences) == len(expected.sequences)
        for one, other in zip(read.sequences, expected.sequences):
            assert [sequence.tolist() for sequence in one] == [sequence.tolist() for sequence in other]
        if expected.labels is None:
            assert read.labels is None
        else:
            np.testing.assert_array_equal(read.labels, expected.labels)
        assert (read.ids, read.subsets, read.cut_sequences, read.cut_tokens) == (
            expected.ids,
            expected.subsets,
            expected.cut_sequences,
            expected.cut_tokens,
        )


def test_the_warning_of_cut_sequences_names_what_they_were_cut_to(folder, caplog):
    data = types.SimpleNamespace(source=f'tokens:{folder}', max_length=None, limit=None, rule='')
    tokenizer = types.SimpleNamespace(fingerprint=KEY['fingerprint'])
    encode_split(data, REGISTRY['mrpc'], 'train', tokenizer, 512)
    assert '2 sequences of the train split are longer than 8 tokens and were cut, by 7 tokens' in caplog.text


def test_the_first_examples(folder):
    whole = read_tokens(folder, 'mrpc', 'train', **KEY)
    first = whole.take(np.arange(2))
    assert first.ids == ['example 0', 'example 1'] and first.labels.tolist() == [0, 1] and len(first.sequences) == 2
    assert [s.tolist() for s in first.sequences[1]] == [s.tolist() for s in whole.sequences[1]]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'fingerprint': 'abd'}, "of the tokenizer 'abc', but this run needs 'abd'"),
        ({'rule': 'release'}, "of the rule 'longest', but this run needs 'release'"),
        ({'max_length': 7}, 'has 8 tokens, but this run takes 7'),
        ({'dataset': 'rte'}, "of the data set 'mrpc', but this run needs 'rte'"),
        ({'split': 'dev_mismatched'}, 'only train, dev, test'),
    ],
)
def test_another_run_s_sequences_are_refused(folder, changes, message):
    read_tokens(folder, 'mrpc', 'train', **KEY | {'rule': ''})
    with pytest.raises(UserError, match=message):
        read_tokens(folder, **{'dataset': 'mrpc', 'split': 'train', **KEY, **changes})


@pytest.mark.parametrize('name', ['dataset', 'tokenizer_fingerprint', 'max_length', 'rule', 'splits'])
def test_an_index_that_lacks_something_is_named(folder, name):
    index = json.loads((folder / 'index.json').read_text())
    del index[name]
    (folder / 'index.json').write_text(json.dumps(index))
    for read in (cut_to, tokens_splits):
        with pytest.raises(UserError, match=f'index.json: The file is damaged .*{name}'):
            read(folder)


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda folder: (folder / 'train.npz').unlink(), 'train.npz: The file cannot be read'),
        (lambda folder: (folder / 'train.npz').write_bytes((folder / 'train.npz').read_bytes()[:-9]), 'SHA-256'),
        (lambda folder: (folder / 'index.json').write_text('{'), 'index.json: The file is damaged'),
        (lambda folder: (folder / 'index.json').write_text('[]'), 'index.json: The file is damaged'),
        (lambda folder: (folder / 'index.json').unlink(), 'this folder holds no tokens'),
        (lambda folder: (folder / 'index.json').write_text(json.dumps({'format_version': 2})), 'this program reads 1'),
    ],
)
def test_damage_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message):
        read_tokens(folder, 'mrpc', 'train', **KEY)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda of: dict(labels=of.labels[1:]), 'its labels are not those of'),
        (lambda of: dict(ids=of.ids + ['more']), 'its lengths are not those of'),
        (lambda of: dict(sequences=dataclasses.replace(of.sequences, tokens=of.sequences.tokens[1:])), 'of its tokens'),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_damage(tmp_path, change, message):
    whole = encoded()
    write_tokens(tmp_path, 'mrpc', {'train': dataclasses.replace(whole, **change(whole))}, **KEY)
    with pytest.raises(UserError, match=f'train.npz: The file cannot be read .*{message}'):
        read_tokens(tmp_path, 'mrpc', 'train', **KEY)
