"""The paper's figures that results are put beside (Radford et al. 2018, tables 2 to 5), in per cent."""

# Data set -> {metric: (the paper's, the best before it)}; all on test sets, by the benchmark's own servers for GLUE.
SCORES = {
    'cola': {'matthews': (45.4, 35.0)},
    'sst2': {'accuracy': (91.3, 93.2)},
    'mrpc': {'f1': (82.3, 86.0)},
    'stsb': {'pearson': (82.0, 81.0)},
    'qqp': {'f1': (70.3, 66.1)},
    'mnli': {'accuracy': (82.1, 80.6), 'mismatched_accuracy': (81.4, 80.1)},
    'qnli': {'accuracy': (88.1, 82.3)},
    'rte': {'accuracy': (56.0, 61.7)},
    'wnli': {'accuracy': (53.4, None)},
    'snli': {'accuracy': (89.9, 89.3)},
    'scitail': {'accuracy': (88.3, 83.3)},
    'race': {'accuracy': (59.0, 53.3), 'accuracy_middle': (62.9, 60.2), 'accuracy_high': (57.4, 50.3)},
    'story_cloze': {'accuracy': (86.5, 77.6)},
}
GLUE_TASKS = ('cola', 'sst2', 'mrpc', 'stsb', 'qqp', 'mnli', 'qnli', 'rte', 'wnli')
GLUE_AVERAGE = (72.8, 68.9)


def glue_average(scores: dict[str, list[float]]) -> float | None:
    """The mean over GLUE's nine tasks, each the mean of its metrics (MNLI: matched and mismatched accuracy; MRPC and
    QQP: F1 and accuracy; STS-B: Pearson and Spearman). None where a task is missing.

    Args:
      scores: data set -> the values of its metrics.
    """
    if not all(scores.get(task) for task in GLUE_TASKS):
        return None
    return sum(sum(scores[task]) / len(scores[task]) for task in GLUE_TASKS) / len(GLUE_TASKS)
