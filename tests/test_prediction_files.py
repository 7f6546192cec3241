"""Prediction files against the forms that the benchmarks ask for, written out by hand."""

import numpy as np
import pytest
from etils import epath

from gpt1_jax.data.labelled.registry import REGISTRY
from gpt1_jax.evaluation.prediction_files import write_predictions


@pytest.mark.parametrize(
    ('name', 'split', 'predicted', 'file', 'lines'),
    [
        ('cola', 'test', [1, 0], 'CoLA.tsv', ['0\t1', '1\t0']),
        ('sst2', 'test', [1, 0], 'SST-2.tsv', ['0\t1', '1\t0']),
        ('mrpc', 'test', [0, 1], 'MRPC.tsv', ['0\t0', '1\t1']),
        ('qqp', 'test', [0, 1], 'QQP.tsv', ['0\t0', '1\t1']),
        ('wnli', 'test', [0, 1], 'WNLI.tsv', ['0\t0', '1\t1']),
        ('rte', 'test', [0, 1], 'RTE.tsv', ['0\tentailment', '1\tnot_entailment']),
        ('qnli', 'test', [0, 1], 'QNLI.tsv', ['0\tentailment', '1\tnot_entailment']),
        ('mnli', 'test', [2, 1], 'MNLI-m.tsv', ['0\tcontradiction', '1\tneutral']),
        ('mnli', 'test_mismatched', [0, 1], 'MNLI-mm.tsv', ['0\tentailment', '1\tneutral']),
        ('stsb', 'test', [2.71828, 5.2], 'STS-B.tsv', ['0\t2.718', '1\t5.000']),
        ('stsb', 'dev', [-0.2, 1], 'stsb_dev.tsv', ['0\t0.000', '1\t1.000']),
        ('race', 'test', [3, 0], 'race_test.csv', ['0,D', '1,A']),
        ('story_cloze', 'test', [1, 0], 'story_cloze_test.csv', ['0,2', '1,1']),
        ('snli', 'test', [2, 0], 'snli_test.tsv', ['0\tcontradiction', '1\tentailment']),
    ],
)
def test_forms(tmp_path, name, split, predicted, file, lines):
    path = write_predictions(epath.Path(tmp_path) / 'new', REGISTRY[name], split, np.array(predicted), ['0', '1'])
    assert path.name == file
    separator = ',' if file.endswith('.csv') else '\t'
    assert path.read_text() == '\n'.join([f'index{separator}prediction', *lines]) + '\n'


def test_lines_are_in_the_order_of_their_index(tmp_path):
    path = write_predictions(epath.Path(tmp_path), REGISTRY['sst2'], 'dev', np.array([1, 0, 0]), ['10', '9', '0'])
    assert path.read_text().splitlines()[1:] == ['0\t0', '9\t0', '10\t1']
    path = write_predictions(epath.Path(tmp_path), REGISTRY['sst2'], 'dev', np.array([1, 0]), ['b', '9'])
    assert path.read_text().splitlines()[1:] == ['b\t1', '9\t0']
