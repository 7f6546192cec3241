"""What a classifier says of every example of a split, on any mesh."""

from collections.abc import Callable

import jax
import numpy as np

from gpt1_jax.data.packing import EvaluationBatches
from gpt1_jax.data.prefetch import prefetch
from gpt1_jax.data.transforms import Encoded
from gpt1_jax.training import steps
from gpt1_jax.training.partitioning import Partitioner


def make_predictor(model, head, abstract_params, partitioner: Partitioner, batch_size: int) -> Callable:
    """A function (params, encoded) -> logits float32 [n, classes], or scores [n, choices], in the examples' order.

    Every example counts once whatever the batch and the number of devices. `abstract_params`: shapes and shardings
    of {'decoder', 'head'}. Call what it returns inside `Partitioner.activate`.
    """
    step = steps.jit_eval_step(steps.predict_step(model, head), abstract_params, partitioner)

    def predict(params, encoded: Encoded) -> np.ndarray:
        batches = EvaluationBatches(
            encoded, batch_size=batch_size, groups=partitioner.groups, local_groups=partitioner.local_groups,
            share_context=head.kind == 'multiple_choice')
        outputs = jax.device_get([step(params, partitioner.put_batch(batch))
                                  for batch in prefetch(batches, 0, batches.steps)])
        ids = np.concatenate([output['ids'] for output in outputs])
        logits = np.concatenate([output['logits'] for output in outputs])
        in_order = np.empty((len(encoded.ids), logits.shape[1]), np.float32)
        in_order[ids[ids >= 0]] = logits[ids >= 0]
        return in_order

    return predict
