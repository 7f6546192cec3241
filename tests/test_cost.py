"""Costs that are known before a run, against counts by hand."""

import pytest

from configs import finetune, pretrain
from gpt1_jax.errors import UserError
from gpt1_jax.training import cost
from gpt1_jax.training.cost import LabelledSet
from gpt1_jax.training.job import Job
from helpers import write_lines

PAIRS = {'train': [(15, 25), (30, 50)], 'dev': [(10, 10)]}  # characters


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """mrpc; story_cloze, two examples with two endings, one of them for dev; rte without labels in train; cola that
    cannot be read."""
    folder = tmp_path_factory.mktemp('cost')
    pair = lambda first, second, label=1: {'sentence1': 'a' * first, 'sentence2': 'b' * second, 'label': label}
    story = lambda *sizes: {'context': 'a' * sizes[0], 'endings': ['b' * sizes[1], 'c' * sizes[2]], 'label': 1}
    for name, split, entries in (
        ('mrpc', 'train', [pair(*sizes) for sizes in PAIRS['train']]),
        ('mrpc', 'dev', [pair(*sizes) for sizes in PAIRS['dev']]),
        ('mrpc', 'test', 3 * [pair(99, 99, -1)]),
        ('rte', 'train', [pair(4, 4, -1)]),
        ('rte', 'dev', [pair(4, 4), pair(5, 5)]),
        ('cola', 'train', [{'text': 'of another set'}]),
        ('cola', 'dev', [{'text': 'of another set'}]),
        ('story_cloze', 'validation', [story(8, 4, 4), story(16, 4, 8)]),
    ):
        (folder / name).mkdir(exist_ok=True)
        write_lines(folder / name / f'{split}.jsonl', entries)
    return f'files:{folder}'


def test_a_token_has_four_characters_and_a_sequence_three_more(source):
    lengths = [(first + second) / 4 + 3 for sizes in PAIRS.values() for first, second in sizes]
    assert lengths == [13, 23, 8]
    whole = cost.labelled_set('mrpc', source, 512)
    assert whole == LabelledSet({'train': 2, 'dev': 1, 'test': 3}, 2 * 44 / 3, 2 * 44 / 3, '')  # both orders
    assert cost.labelled_set('mrpc', source, 10).tokens == 2 * (10 + 10 + 8) / 3  # the rest is cut


def test_a_story_is_read_once_or_with_each_ending(source):
    first, second = (8 / 4, [4 / 4 + 3, 4 / 4 + 3]), (16 / 4, [4 / 4 + 3, 8 / 4 + 3])
    once, each = (2 + 4 + 4) + (4 + 4 + 5), (6 + 6) + (8 + 9)
    assert (first, second) == ((2, [4, 4]), (4, [4, 5]))
    assert cost.labelled_set('story_cloze', source, 512) == LabelledSet({'train': 1, 'dev': 1}, once / 2, each / 2, '')
    cut = cost.labelled_set('story_cloze', source, 6)
    assert (cut.tokens, cut.separate) == (once / 2, 4 * 6 / 2)
    assert cost.labelled_set('story_cloze', source, 3).tokens == ((2 + 3 + 3) + (3 + 3 + 3)) / 2


def test_a_set_that_is_not_there_or_has_no_labels_is_named(source):
    gone, unlabelled = cost.labelled_set('qnli', source, 512), cost.labelled_set('rte', source, 512)
    assert gone.examples == {} and gone.problem == f'{source} has no folder for it'
    assert unlabelled.examples == {'dev': 2}  # which is enough for zero-shot scores
    assert 'train' in unlabelled.problem
    unread = cost.labelled_set('cola', source, 512)
    assert unread == LabelledSet({}, 0.0, 0.0, unread.problem) and '/train.jsonl' in unread.problem


def test_the_work_of_runs():
    rows = {'train': 100, 'dev': 30, 'dev_more': 4, 'test': 5}
    of_set, data = LabelledSet(rows, 20.0, 48.0, ''), finetune.get_config('race').data
    data.epochs = 2.0
    trained, scored = 20 * 2 * 100, 20 * (3 * 30 + 4 + 5)  # dev after each epoch; at the end every split
    assert cost.finetuning_tokens(of_set, data) == pytest.approx(trained + scored / 3)
    data.update(limit=40, score_train=9)
    assert cost.finetuning_tokens(of_set, data, 0.1) == pytest.approx(20 * 2 * 4 + (scored + 20 * 9) / 3)
    assert cost.zero_shot_tokens('race', of_set, None) == pytest.approx(48 * 30 / 3)
    assert cost.zero_shot_tokens('race', of_set, 10) == pytest.approx(48 * 10 / 3)
    assert cost.zero_shot_tokens('cola', of_set, 50) == pytest.approx(48 * (30 + 50) / 3)
    assert cost.zero_shot_tokens('sst2', of_set, None) == pytest.approx(2 * 48 * 30 / 3)


def test_zero_shot_scores_are_of_all_examples_where_nothing_is_held_out():
    """Of the Winograd schemas those for test, where there are some."""
    of_set = LabelledSet({'train': 1497, 'dev': 374}, 20.0, 30.0, '')
    assert cost.zero_shot_tokens('story_cloze', of_set, None) == pytest.approx(30 * 1871 / 3)
    assert cost.zero_shot_tokens('story_cloze', of_set, 1000) == pytest.approx(30 * 1000 / 3)
    assert cost.zero_shot_tokens('dpr', of_set, None) == pytest.approx(30 * 1871 / 3)
    of_set.examples['test'] = 564
    assert cost.zero_shot_tokens('dpr', of_set, None) == pytest.approx(30 * 564 / 3)
    assert cost.zero_shot_tokens('dpr', of_set, 100) == pytest.approx(30 * 100 / 3)
    del of_set.examples['train']  # which cannot be read
    assert cost.zero_shot_tokens('story_cloze', of_set, None) == pytest.approx(30 * 374 / 3)


@pytest.mark.parametrize(('log', 'every'), [(0, 0), (1, 0), (5, 0), (0, 300), (3, 500)])
def test_the_checkpoints_that_a_run_keeps(log, every):
    """Against the rule of the loop; nearly, where one step is kept for two reasons."""
    config, steps = pretrain.get_config('tiny'), 5000
    config.checkpoint.update(keep_log=log, keep_every=every)
    job = Job(config, None, None, None, steps, ())
    kept = {step for step in range(1, steps + 1) if job.is_kept(step)} | {steps - 1, steps}
    assert abs(cost.checkpoints(config.checkpoint, steps) - len(kept)) <= 2 * bool(log and every)
    assert cost.checkpoints(config.checkpoint, 1) == 1


def test_the_speed_counts_the_operations_of_a_product(monkeypatch):
    """A clock that goes on by a quarter of a second: three products are done within the first second."""
    clock = iter(range(100))
    monkeypatch.setattr(cost.time, 'perf_counter', lambda: next(clock) / 4)
    assert cost.training_speed(8) == pytest.approx(0.6 * 3 * 2 * 2**14 * 8 * 32)


def test_the_operations_of_a_token():
    assert cost.flops_per_token(pretrain.get_config('gpt1')) == pytest.approx(
        3 * (2 * (85e6 + 40003 * 768) + 9.4e6), rel=0.01
    )


def test_the_steps_of_a_run_fit_their_counter():
    assert [cost.whole_steps(steps) for steps in (0.0, 0.4, 7.6, 2.0**31 - 2)] == [1, 1, 8, 2**31 - 2]
    for steps in (2.0**31, 1e300, float('inf'), float('nan')):
        with pytest.raises(UserError, match='^data.epochs: .* updates are too many'):
            cost.whole_steps(steps)


@pytest.mark.parametrize(
    ('share', 'limit', 'number', 'expected'),
    [
        *((1.0, None, 9, 9), (0.07, None, 100, 7), (0.29, None, 100, 29), (0.01, None, 101, 2), (0.5, 30, 40, 15)),
        *((1.0, 50, 40, 40), (1.0, None, 32, 32), (1.0, None, 31, 31)),
    ],
)
def test_a_share_of_the_training_examples_is_rounded_up(share, limit, number, expected):
    """Of these, 0.07 * 100 and 0.29 * 100 are not exact in floating point."""
    data = finetune.get_config().data
    data.share, data.limit = share, limit
    assert cost.used_examples(data, number) == expected
    assert cost.too_few(data, number) == (
        f'its {expected} training examples are fewer than data.batch_size=32' if expected < 32 else ''
    )
