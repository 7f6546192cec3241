"""What test_two_processes.py runs, in one process and in several: prepare, pre-train, fine-tune, evaluate, score a
text, zero-shot, generate. As a program it is one of several processes."""

import json
import sys
import threading

TINY = dict(layers=1, width=32, mlp_width=64, n_positions=32)
SHAPE = (2, 2, 2)
# Pods order their devices by the network. Here the pairs that share a shard of the batch are: two devices of the first
# process, two of another, and one of each of two, twice.
ORDER = [0, 1, 4, 5, 2, 6, 3, 7]


def pretraining(folder):
    from configs import pretrain

    config = pretrain.get_config('tiny')
    config.model.update(TINY)
    config.data.update(
        source=f'text:{folder}/text', vocab_size=300, held_out=0.25, workers=1, batch_size=8, tokens=8 * 32 * 6
    )
    config.optimizer.update(warmup_steps=2, learning_rate=0.01, accumulation=2)
    config.log.update(every=1, eval_every=3)
    config.checkpoint.every = 1
    return config


def run_all(folder, workdir, mesh):
    """The results of all tasks, as JSON types; mesh: keys of the config."""
    from etils import epath

    from configs import evaluate, finetune, generate, zero_shot
    from gpt1_jax.tasks import (
        evaluate as evaluate_task,
        evaluate_text as evaluate_text_task,
        finetune as finetune_task,
        generate as generate_task,
        pretrain as pretrain_task,
        zero_shot as zero_shot_task,
    )

    workdir = epath.Path(workdir)

    def of(config, **changes):
        config.update(changes)
        config.mesh.update(mesh)
        return config

    def labelled(config, **changes):
        config.data.update(
            source=f'files:{folder}/labelled', kind='similarity', fields='a,b', labels='0,1', cache='off', **changes
        )
        return config

    results = [pretrain_task.run(of(pretraining(folder)), workdir / 'pretrain')]
    lm = str(workdir / 'pretrain')

    config = labelled(finetune.get_config('custom'), batch_size=8, eval_batch_size=12, epochs=1.0)
    # With other shards the sequences of a batch stand elsewhere, under other masks.
    config.model.update(dropout=0.0, attention_dropout=0.0, residual_dropout=0.0, head_dropout=0.0)
    config.optimizer.learning_rate = 0.01
    config.log.every = 1
    results.append(finetune_task.run(of(config, init_from=lm), workdir / 'finetune'))

    config = labelled(evaluate.get_config('custom'), eval_batch_size=12)
    config.split = 'test'
    results.append(evaluate_task.run(of(config, init_from=str(workdir / 'finetune')), workdir / 'evaluate'))

    config = evaluate.get_config('text')
    config.data.update(source=f'text:{folder}/text/0.txt', batch_size=4)
    results.append(evaluate_text_task.run(of(config, init_from=lm, sentences=True), workdir / 'text'))

    config = zero_shot.get_config()
    config.data.update(source=f'files:{folder}/sets')
    config.datasets = ('cola', 'copa')
    results.append(zero_shot_task.run(of(config, init_from=f'{lm}@6'), workdir / 'zero_shot'))

    config = generate.get_config()
    config.update(prompt='the ship', samples=3, batch_size=2, max_tokens=8, temperature=0.7, top_p=1.0)
    made = generate_task.run(of(config, init_from=lm), workdir / 'generate')
    scores = [
        {f'{one.dataset} {one.split} {one.metric} {one.checkpoint}': one.value for one in result.scores}
        for result in results
    ]
    facts = [result.facts for result in results]
    for of_task in facts:
        of_task.pop('predictions', None)
    return json.loads(json.dumps({'scores': scores, 'facts': facts, 'made': made}))


class Reads:
    """What is read of the training data: the starts of the corpus's windows, and the indices of labelled examples that
    are read for batches."""

    def __init__(self):
        from gpt1_jax.data.corpus import shards
        from gpt1_jax.data.labelled import packing, sequences

        self.windows, self.examples, inside = [], [], threading.local()
        read, take, batch_at = shards.Split.read, sequences.Sequences.__getitem__, packing.FinetuningBatches.batch_at

        def read_and_note(split, starts, length):
            if split._name == 'train':
                self.windows += starts.tolist()
            return read(split, starts, length)

        def take_and_note(of_set, example):
            if getattr(inside, 'batch', False):
                self.examples.append(int(example))
            return take(of_set, example)

        def batch_and_note(batches, step):
            inside.batch = True
            try:
                return batch_at(batches, step)
            finally:
                inside.batch = False

        shards.Split.read, sequences.Sequences.__getitem__ = read_and_note, take_and_note
        packing.FinetuningBatches.batch_at = batch_and_note


def main(process, processes, port, folder, workdir):
    from gpt1_jax import distributed

    distributed.start(distributed.explicit(f'127.0.0.1:{port}', process, processes), 120)
    import numpy as np

    from gpt1_jax.training import partitioning

    partitioning.mesh_utils.create_device_mesh = lambda shape, devices, **_: np.array(
        [devices[i] for i in ORDER]
    ).reshape(shape)
    reads = Reads()
    results = run_all(folder, workdir, dict(strategy='fsdp+tp', shape=SHAPE))
    distributed.finish()
    print(json.dumps(results | {'windows': reads.windows, 'examples': reads.examples}))


if __name__ == '__main__':
    main(*json.loads(sys.argv[1]))
