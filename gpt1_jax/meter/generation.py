"""Generation with random weights: new tokens per second, and the time to the first one."""

import time
from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np

from gpt1_jax.meter.memory import in_memory, peak, peak_bytes, planned
from gpt1_jax.meter.timing import rates, rounds, spread
from gpt1_jax.model import decoding
from gpt1_jax.model.classifier import Classifier
from gpt1_jax.training.partitioning import Partitioner, unbox
from gpt1_jax.training.room import check_room
from gpt1_jax.training.state import abstract_params


def prompt_length(model: nn.Module) -> int:
    """Tokens of a prompt, and of its continuation, in these measurements."""
    return max(1, model.n_positions // 4)


def random_parameters(model: nn.Module, partitioner: Partitioner) -> dict:
    """Random parameters of a model, layer by layer. Raises UserError if a device has no room for them."""
    classifier = Classifier(model)
    abstract = abstract_params(classifier, partitioner)
    check_room('model', 'parameters', abstract)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    params = partitioner.jit(lambda: unbox(classifier.init(jax.random.key(0))), out_shardings=shardings)()
    return partitioner.jit(decoding.unstack_layers)(params['decoder'])


def measure(
    model: nn.Module,
    params: dict,
    partitioner: Partitioner,
    steps: tuple[Callable, Callable],
    *,
    batch: int,
    seconds: float,
) -> tuple[dict, str]:
    """Generates greedily for about `seconds`.

    Args:
      params: `random_parameters`.
      steps: prefill and decode, jitted by `tasks.generate.jit_steps` with room for prompt and continuation.
      batch: texts; more if the mesh has more shards.

    Returns:
      'batch'; 'prompt' and 'new', tokens of each; 'tokens_per_s' of new tokens, with the time of reading the prompt;
      'first_token_ms'; 'token_ms', of one later token of all texts, if there is one; 'compile_s', with a first run;
      `memory.peak`. And the text of the compiled decode, whose loop makes one token per round.

    Raises:
      NoRoomError: the memory is too small.
    """
    prefill, decode = steps
    length, sampling = prompt_length(model), decoding.Sampling()
    batch += -batch % partitioner.placement.shards
    prompts = np.random.default_rng(0).integers(1, model.vocab_size, (batch, length))
    columns = {
        'prompts': prompts,
        **{
            name: np.full(batch, value) for name, value in (('lengths', length), ('limits', 2 * length), ('samples', 0))
        },
    }
    placed = partitioner.put_batch(
        {name: partitioner.placement.take(column.astype(np.int32)) for name, column in columns.items()}
    )

    def make(new):
        state = decode(params, prefill(params, placed), sampling, -1, new)
        jax.block_until_ready(state.tokens)

    devices = partitioner.mesh.local_devices
    with in_memory():
        before, started = peak_bytes(devices), time.perf_counter()
        compiled = decode.lower(params, prefill(params, placed), sampling, -1, length).compile()
        make(1)
        compile_s = time.perf_counter() - started
        first = rounds(lambda: make(1), seconds=seconds / 4, most=20)
        whole = rounds(lambda: make(length), seconds=seconds * 3 / 4, most=20)
        used = peak(devices, before, planned(compiled)['memory_gb'])
    later = spread(whole)['median'] - spread(first)['median']
    return {
        'batch': batch,
        'prompt': length,
        'new': length,
        'tokens_per_s': rates(batch * length, whole),
        'first_token_ms': spread([1e3 * t for t in first]),
        **({'token_ms': later / (length - 1) * 1e3} if length > 1 else {}),
        'compile_s': round(compile_s, 2),
        **used,
    }, compiled.as_text()
