r"""Fine-tuning steps on packed rows, and on rows padded to the batch's longest sequence, here and in PyTorch.

    python -m benchmarks.packing --data=/data --tokenizer=WORKDIR/tokenizer --torch_python=/env/bin/python

`--data` has one folder per data set, like the source of a suite. `--torch_python` is an interpreter with torch and
transformers; without it PyTorch is left out. All sides use the same model (OpenAI's, random weights, dropout on), the
same batches of the same token sequences, both losses, clipping and one Adam update per step, in float32 on the CPU.
Padded lengths are rounded up to a multiple of 16 on the JAX side, because otherwise every batch would be compiled. On
the packed side the choices of a question share its text (RACE), the default of `data.share_context`. The first 20,000
examples of a set are read: their epoch is long in the sense of `data.labelled.packing`, as those of the whole SST-2,
MNLI and RACE are; with fewer, more of the packed side would be padding. PyTorch's loop is the usual one: a collator
that pads to the batch's longest, forward, backward, clip_grad_norm_, AdamW. After one pass to warm up (and compile) the
sides take turns, `--rounds` passes each. Prints median and range of examples/s.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', required=True)
    parser.add_argument('--tokenizer', required=True)
    parser.add_argument('--torch_python', default='')
    parser.add_argument('--sets', default='sst2,mnli,race')
    parser.add_argument('--layers', type=int, default=6)
    parser.add_argument('--width', type=int, default=256)
    parser.add_argument('--batches', type=int, default=6)
    parser.add_argument('--batch_size', type=int, default=32)
    parser.add_argument('--race_batch_size', type=int, default=8)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--torch_side', default='', help=argparse.SUPPRESS)
    return parser.parse_args()


# ---------------------------------------------------------------- JAX


def encoded_and_batches(args, name):
    from gpt1_jax.data.labelled import encoding, loading
    from gpt1_jax.data.labelled.registry import REGISTRY
    from gpt1_jax.data.tokenizers.loading import load_tokenizer

    dataset = REGISTRY[name]
    tokenizer = load_tokenizer(args.tokenizer)
    size = args.race_batch_size if name == 'race' else args.batch_size
    examples = loading.load_examples(dataset, f'files:{loading.folder_of(dataset, args.data)}', 'train', 20_000)
    encoded = encoding.encode(dataset, examples, tokenizer, 512)
    members = np.random.RandomState(0).permutation(len(encoded.ids))[: size * args.batches].reshape(args.batches, size)
    return dataset, tokenizer, encoded, members, size


def jax_side(args, dataset, tokenizer, encoded, members, size, packing):
    """A function that makes one pass over the batches and returns the seconds."""
    import jax

    from configs import finetune
    from gpt1_jax.data.labelled.packing import FinetuningBatches
    from gpt1_jax.model.architecture import Architecture
    from gpt1_jax.model.classifier import ClassifierHead
    from gpt1_jax.training import program
    from gpt1_jax.training.partitioning import Partitioner

    sizes = dict(
        layers=args.layers, width=args.width, heads=args.width // 64, mlp_width=4 * args.width, n_positions=512
    )
    config = finetune.get_config()
    config.model.scan = False
    made = program.finetuning(
        config,
        Architecture('transformer', sizes),
        tokenizer.vocab_size,
        ClassifierHead(dataset.kind, dataset.classes),
        dataset.loss,
        10**6,
        Partitioner('dp', (1, 1, 1)),
    )
    batches = FinetuningBatches(
        encoded, batch_size=size, packing=packing, share_context=dataset.kind == 'multiple_choice'
    )
    batches.members = lambda step: members[step]
    state = made.create_state(0)

    def one_pass():
        nonlocal state
        begin = time.perf_counter()
        for i in range(args.batches):
            batch = batches.batch_at(i)
            if not packing:
                batch = trimmed(batch)
            state, metrics = made.train_step(state, made.partitioner.put_batch(batch))
        jax.block_until_ready(metrics)
        return time.perf_counter() - begin

    return one_pass


def trimmed(batch):
    """A batch of one sequence per row, cut to its longest sequence (rounded up to a multiple of 16)."""
    row_length = batch['tokens'].shape[-1]
    longest = int(np.count_nonzero(batch['segment_ids'], axis=-1).max())
    length = min(row_length, -(-longest // 16) * 16)
    rows = {
        name: batch[name][..., :length] for name in ('tokens', 'segment_ids', 'positions', 'lm_targets', 'lm_weights')
    }
    row, place = np.divmod(batch['extract'], row_length)
    return {**batch, **rows, 'extract': row * length + place}


# ---------------------------------------------------------------- PyTorch


def torch_pass(args):
    """Reads batches from a file; answers each line of standard input with the seconds of one pass."""
    import torch
    import transformers

    data = np.load(args.torch_side)
    classes, choices, vocab = (int(data[name]) for name in ('classes', 'choices', 'vocab'))
    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count())
    config = transformers.OpenAIGPTConfig(
        vocab_size=vocab, n_positions=512, n_embd=args.width, n_layer=args.layers, n_head=args.width // 64
    )
    model = transformers.OpenAIGPTLMHeadModel(config)
    head = torch.nn.Sequential(torch.nn.Dropout(0.1), torch.nn.Linear(args.width, classes))
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=6.25e-5, weight_decay=0.01)
    flat, offsets = data['tokens'].astype(np.int64), np.concatenate([[0], np.cumsum(data['lengths'])])
    sequences = [torch.from_numpy(flat[a:b]) for a, b in zip(offsets, offsets[1:])]
    labels = torch.from_numpy(data['labels'].astype(np.int64))
    size = len(labels) // args.batches

    def one_pass():
        begin = time.perf_counter()
        for i in range(args.batches):
            chosen = sequences[i * size * choices : (i + 1) * size * choices]
            ids = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True)
            lengths = torch.tensor([len(sequence) for sequence in chosen])
            real = torch.arange(ids.shape[1])[None] < lengths[:, None]
            output = model(ids, attention_mask=real.float(), output_hidden_states=True)
            states = output.hidden_states[-1][torch.arange(len(ids)), lengths - 1]
            logits = head(states).reshape(size, -1)
            targets = ids[:, 1:].masked_fill(~real[:, 1:], -100)
            lm = torch.nn.functional.cross_entropy(
                output.logits[:, :-1].reshape(-1, vocab), targets.reshape(-1), ignore_index=-100
            )
            loss = torch.nn.functional.cross_entropy(logits, labels[i * size : (i + 1) * size]) + 0.5 * lm
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        return time.perf_counter() - begin

    model.train()
    for _ in sys.stdin:
        print(one_pass(), flush=True)


class TorchSide:
    """`torch_pass` in a process of the interpreter that has PyTorch."""

    def __init__(self, args, dataset, tokenizer, encoded, members, folder):
        chosen = [sequence for example in members.reshape(-1) for sequence in encoded.sequences[int(example)]]
        path = pathlib.Path(folder) / f'{dataset.name}.npz'
        np.savez(
            path,
            tokens=np.concatenate(chosen),
            lengths=[len(sequence) for sequence in chosen],
            labels=encoded.labels[members.reshape(-1)],
            classes=dataset.classes,
            choices=encoded.sequences.lengths.shape[1],
            vocab=tokenizer.vocab_size + 3,
        )
        self.process = subprocess.Popen(
            [args.torch_python, __file__, *sys.argv[1:], f'--torch_side={path}'],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self):
        self.process.stdin.write('\n')
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def main():
    args = arguments()
    if args.torch_side:
        torch_pass(args)
        return
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    print(
        f'{args.layers} layers, width {args.width}, {os.cpu_count()} cores; median (range) of examples/s in '
        f'{args.rounds} rounds of {args.batches} steps'
    )
    print(f'{"set":<8}{"side":<16}{"examples/s":>24}{"packed is":>12}')
    with tempfile.TemporaryDirectory() as folder:
        for name in args.sets.split(','):
            dataset, tokenizer, encoded, members, size = encoded_and_batches(args, name)
            sides = {
                packed: jax_side(args, dataset, tokenizer, encoded, members, size, packing)
                for packed, packing in (('packed', True), ('padded', False))
            }
            if args.torch_python:
                sides['torch, padded'] = TorchSide(args, dataset, tokenizer, encoded, members, folder)
            rates = {side: [] for side in sides}
            for turn in range(args.rounds + 1):
                for side, one_pass in sides.items():
                    seconds = one_pass()
                    if turn:
                        rates[side].append(members.size / seconds)
            best = statistics.median(rates['packed'])
            for side, values in rates.items():
                middle = statistics.median(values)
                spread = f'{middle:.1f} ({min(values):.1f} to {max(values):.1f})'
                print(f'{name:<8}{side:<16}{spread:>24}{best / middle:>11.2f}x', flush=True)
            if args.torch_python:
                sides['torch, padded'].close()


if __name__ == '__main__':
    main()
