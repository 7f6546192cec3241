"""Confusion matrices by counting, errors and samples as they are in the files."""

import dataclasses
import json

import numpy as np
import pytest

import recorded
from gpt1_jax.report import behaviour
from gpt1_jax.report.blocks import Gap, Heading, Quote, Shaded, Table
from recorded import value


def lines_of(*names):
    return [line for line in recorded.collected()[1] if line.owner.name in names]


@pytest.fixture(scope='module')
def blocks():
    return behaviour.mistakes(recorded.collected()[1])


def test_a_matrix_counts_the_dev_examples_of_the_median_seed(blocks):
    scores = [value(f'finetune/mnli/seed{i}', split='dev', checkpoint='best') for i in range(3)]
    seed = int(np.argsort(scores, kind='stable')[1])
    with np.load(recorded.everything() / f'finetune/mnli/seed{seed}/dev.npz') as file:
        labels, predicted = file['labels'], file['logits'].argmax(1)
    caption = f'finetune, mnli, seed {seed}: dev examples by label (down) and prediction (across)'
    (table,) = [block for block in blocks if isinstance(block, Table) and block.caption == caption]
    assert table.columns == ('label', 'entailment', 'neutral', 'contradiction', 'all')
    for i, row in enumerate(table.entries[:3]):
        for j, cell in enumerate(row[1:4]):
            count = sum(a == i and b == j for a, b in zip(labels, predicted))
            assert cell == Shaded(str(count), count / sum(labels == i))
        assert row[-1] == str(sum(labels == i))
    assert table.entries[3] == ('all', *(str(sum(predicted == j)) for j in range(3)), '200')


def test_each_set_is_shown_once(blocks):
    captions = [block.caption for block in blocks if isinstance(block, Table)]
    assert [caption.split(',')[1].strip() for caption in captions] == ['cola', 'sst2', 'mnli', 'race', 'rte']
    headings = [text for text in recorded.texts(blocks, Heading) if ',' in text]
    assert [text.split(',')[0] for text in headings] == ['cola', 'sst2', 'stsb', 'mnli', 'race', 'rte']
    only = behaviour.mistakes(lines_of('ablation_table5', 'ablation_lambda'))
    captions = [block.caption for block in only if isinstance(block, Table)]
    assert all(caption.startswith('ablation_table5: full') for caption in captions) and len(captions) == 2


def test_errors_are_spread_over_those_recorded_and_left_as_they_are(blocks):
    quotes = [block for block in blocks if isinstance(block, Quote)]
    assert len(quotes) == 6 * 5
    assert [quote.caption.split(':')[0] for quote in quotes[:5]] == [f'Example {i}' for i in (0, 12, 24, 36, 48)]
    assert quotes[0].caption == "Example 0: labelled 'unacceptable', predicted 'acceptable'"
    assert quotes[1].texts == [f'text 12 {recorded.HOSTILE}', 'second\ntext']


def test_scores_are_written_as_numbers():
    line = lines_of('finetune')[2]
    error = {'index': 3, 'texts': [], 'label': 4.0, 'prediction': 1.2345}
    runs = tuple(dataclasses.replace(run, errors=(error,)) for run in line.runs)
    (quote,) = [b for b in behaviour.mistakes([dataclasses.replace(line, runs=runs)]) if isinstance(b, Quote)]
    assert quote.caption == 'Example 3: labelled 4.00, predicted 1.23' and quote.texts == []


def test_predictions_that_were_not_kept_are_a_gap():
    line = lines_of('finetune')[0]
    runs = tuple(dataclasses.replace(run, dev={}, errors=()) for run in line.runs)
    blocks = behaviour.mistakes([dataclasses.replace(line, runs=runs)])
    (gap,) = recorded.texts(blocks, Gap)
    assert gap.startswith('finetune, cola, seed ') and gap.endswith(': the predictions for dev were not kept.')
    assert behaviour.mistakes([]) == []


def test_a_matrix_of_many_labels_is_not_shown():
    line = lines_of('finetune')[0]
    data = {'dataset': 'custom', 'source': '', 'kind': 'classification', 'fields': 'text', 'label_field': 'label'}
    data |= {'labels': ','.join(map(str, range(13))), 'metrics': '', 'max_score': 0}
    runs = tuple(dataclasses.replace(run, config=run.config | {'data': data}) for run in line.runs)
    blocks = behaviour.mistakes([dataclasses.replace(line, dataset='custom', runs=runs)])
    assert 'a matrix of 13 labels is too large to show' in recorded.texts(blocks, Gap)[0]


def test_samples_are_sorted_by_checkpoint():
    runs = recorded.collected()[0]
    blocks = behaviour.samples(list(reversed(runs)))
    assert recorded.texts(blocks, Heading) == ['Samples', 'Samples of pretrain']
    first, second = [block for block in blocks if isinstance(block, Quote)]
    assert first.caption == 'samples/10: after 10 updates; temperature 0.9, top_k 0, top_p 0.9, seed 0'
    assert second.caption.startswith('samples/1000: after 1,000 updates')
    stored = (recorded.everything() / 'samples/10/generations.jsonl').read_text().splitlines()[:3]
    assert first.texts == [one['prompt'] + one['text'] for one in map(json.loads, stored)]


def test_samples_without_a_step_are_of_the_best_checkpoint():
    run = next(run for run in recorded.collected()[0] if run.task == 'generate')
    config = run.config | {'init_from': '/elsewhere/gpt1'}
    blocks = behaviour.samples([dataclasses.replace(run, config=config)])
    assert recorded.texts(blocks, Heading) == ['Samples', 'Samples of gpt1']
    assert blocks[-1].caption.startswith('samples/10: the best checkpoint;')
    unfinished = dataclasses.replace(run, generations=())
    assert recorded.texts(behaviour.samples([unfinished]), Gap) == ['No samples are finished.']
    assert behaviour.samples([]) == []
