"""GLUE's average, of results and of the paper. Dataset.paper has the paper's scores of each data set."""

from gpt1_jax.data.labelled.registry import SUITES

GLUE_AVERAGE = (72.8, 68.9)  # the paper's and the best before it, in per cent (Radford et al. 2018, table 4)


def glue_average(scores: dict[str, list[float]]) -> float | None:
    """The mean over GLUE's nine tasks, each the mean of its metrics (MNLI: matched and mismatched accuracy; MRPC and
    QQP: F1 and accuracy; STS-B: Pearson and Spearman). None if a task is missing.

    Args:
      scores: data set -> the values of its metrics.
    """
    tasks = SUITES['glue']
    if not all(scores.get(task) for task in tasks):
        return None
    return sum(sum(scores[task]) / len(scores[task]) for task in tasks) / len(tasks)
