"""Two processes that train together, as the hosts of a pod do, against one process: the same numbers."""

import json
import os
import pathlib
import random
import socket
import subprocess
import sys

import numpy as np
import pytest

from configs import prepare as prepare_config
from gpt1_jax.data.corpus.preparation import prepare

ROOT = pathlib.Path(__file__).parents[1]
WORDS = 'ship sail wave anchor harbour captain cow field plough barn harvest wheat the and'.split()
# Pods order their devices by the network. Here the pairs that share a group of the batch are: two devices of the first
# process, two of the second, and one of each, twice.
ORDER = [0, 1, 4, 5, 2, 6, 3, 7]
SCRIPT = """
import json, sys
import jax
import numpy as np
process, port, processes, folder, workdir, shape, order = json.loads(sys.argv[1])
if processes > 1:
    jax.distributed.initialize(f'127.0.0.1:{port}', processes, process)
from etils import epath
from configs import evaluate, finetune, pretrain
from gpt1_jax.tasks import evaluate_text, finetune as finetune_task, pretrain as pretrain_task
from gpt1_jax.training import partitioning

partitioning.mesh_utils.create_device_mesh = lambda shape, devices, **_: (
    np.array([devices[i] for i in order]).reshape(shape))
workdir = epath.Path(workdir)

config = pretrain.get_config('tiny')
config.model.update(layers=1, width=32, mlp_width=64, n_positions=32)
config.data.update(source=f'shards:{folder}/shards', batch_size=8, tokens=8 * 32 * 6)
config.optimizer.update(warmup_steps=2, learning_rate=0.01, accumulation=2)
config.log.update(every=1, eval_every=3)
config.mesh.update(strategy='fsdp+tp', shape=shape)
pretrained = pretrain_task.run(config, workdir / 'pretrain')

config = finetune.get_config('custom')
config.init_from = str(workdir / 'pretrain')
# With other groups the sequences of a batch stand elsewhere, under other masks.
config.model.update(dropout=0.0, attention_dropout=0.0, residual_dropout=0.0, head_dropout=0.0)
config.data.update(source=f'files:{folder}/labelled', kind='similarity', fields='a,b', labels='0,1', batch_size=8,
                   eval_batch_size=12, epochs=1.0, cache='off')
config.optimizer.learning_rate = 0.01
config.log.every = 1
config.mesh.update(strategy='fsdp+tp', shape=shape)
finetuned = finetune_task.run(config, workdir / 'finetune')

config = evaluate.get_config('text')
config.update(init_from=str(workdir / 'pretrain'), sentences=True)
config.data.update(source=f'text:{folder}/text/0.txt', batch_size=4)
config.mesh.update(strategy='fsdp+tp', shape=shape)
scored = evaluate_text.run(config, workdir / 'text')
print(json.dumps([
    result.facts | {f'{score.split} {score.metric} {score.checkpoint}': score.value for score in result.scores}
    for result in (pretrained, finetuned, scored)]))
"""


def run(folder, workdir, processes, shape, order):
    """The results of each process."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    flags = os.environ['XLA_FLAGS'].replace('device_count=8', f'device_count={len(order) // processes}')
    started = [
        subprocess.Popen(
            [
                sys.executable,
                '-c',
                SCRIPT,
                json.dumps([process, port, processes, str(folder), str(workdir), shape, order]),
            ],
            cwd=ROOT,
            env=os.environ | {'XLA_FLAGS': flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(processes)
    ]
    try:
        ended = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, '\n'.join(error for _, error in ended)
    return [json.loads(output.splitlines()[-1]) for output, _ in ended]


@pytest.fixture
def folder(tmp_path):
    folder, rng = tmp_path, random.Random(0)
    words = lambda n: ' '.join(rng.choices(WORDS, k=n))
    (folder / 'text').mkdir()
    for number in range(4):
        (folder / 'text' / f'{number}.txt').write_text('\n'.join(words(rng.randint(1, 40)) for _ in range(60)))
    (folder / 'labelled').mkdir()
    for split, n in (('train', 41), ('dev', 23), ('test', 13)):
        rows = [{'a': words(rng.randint(1, 6)), 'b': words(5), 'label': rng.randint(0, 1)} for _ in range(n)]
        (folder / 'labelled' / f'{split}.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    config = prepare_config.get_config()
    config.data.update(source=f'text:{folder / "text"}', vocab_size=300, held_out=0.25, workers=1)
    prepare(config.data, folder / 'shards')
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_are_one(folder):
    (expected,) = run(folder, folder / 'one', 1, (1, 1, 1), [0])
    for of_process in run(folder, folder / 'two', 2, (2, 2, 2), ORDER):
        for result, known in zip(of_process, expected, strict=True):
            assert result.keys() == known.keys()
            for name, value in known.items():
                if isinstance(value, float):
                    np.testing.assert_allclose(result[name], value, rtol=1e-3, err_msg=name)
                else:
                    assert result[name] == value, name
    for run_name in ('pretrain', 'finetune'):
        for line, known in zip(
            *(lines(folder / which / run_name / 'metrics.jsonl') for which in ('two', 'one')), strict=True
        ):
            if 'loss' in known:
                np.testing.assert_allclose(line['loss'], known['loss'], rtol=1e-4)
    scores, known = (
        [line['log_probability'] for line in lines(folder / which / 'text' / 'sentences.jsonl')]
        for which in ('two', 'one')
    )
    np.testing.assert_allclose(scores, known, rtol=1e-3)
