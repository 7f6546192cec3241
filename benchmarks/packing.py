r"""Fine-tuning on packed rows, and on rows padded to the batch's longest sequence, here and in PyTorch.

    python -m benchmarks.packing --data=/data --tokenizer=WORKDIR/tokenizer --torch_python=/env/bin/python

`--data` has one folder per data set, like the source of a suite. `--torch_python` is an interpreter with torch and
transformers; without it PyTorch is left out. All sides use the same model (OpenAI's, random weights, dropout on), the
same batches of the same token sequences, both losses, clipping and one Adam update per step, in float32 on the CPU.
Padded lengths are rounded up to a multiple of 16 on the JAX side, because otherwise every batch would be compiled. On
the packed side the choices of a question share its text (RACE), the default of `data.share_context`. The first 20,000
examples of a set are read, so that rows are as full as with the whole SST-2, MNLI and RACE; with fewer
examples, more of the packed side would be padding. PyTorch's loop is the usual one: a collator
that pads to the batch's longest, forward, backward, clip_grad_norm_, AdamW. After one pass to warm up (and compile) the
sides take turns, `--rounds` passes each over some training batches and over the first dev examples, `--eval_batch_size`
at once. Prints median and range of the examples/s of an epoch: the set's own number of training examples over the time
that these and, after them, its dev examples take at the two rates.
"""

import argparse
import dataclasses
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks import arguments


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', required=True)
    parser.add_argument('--tokenizer', required=True)
    parser.add_argument('--torch_python', type=arguments.interpreter('torch', 'transformers'))
    parser.add_argument('--sets', default='sst2,mnli,race')
    parser.add_argument('--layers', type=arguments.count, default=6)
    parser.add_argument('--width', type=arguments.count, default=256)
    parser.add_argument('--batches', type=arguments.count, default=6)
    parser.add_argument('--batch_size', type=arguments.count, default=32)
    parser.add_argument('--race_batch_size', type=arguments.count, default=8)
    parser.add_argument('--eval_batch_size', type=arguments.count, default=64)
    parser.add_argument('--dev', type=arguments.count, default=256)
    parser.add_argument('--rounds', type=arguments.count, default=3)
    parser.add_argument('--torch_side', default='', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.width % 64:
        parser.error(f'--width: It is {args.width}, but must be a multiple of 64, the width of a head.')
    return args


# ---------------------------------------------------------------- JAX


@dataclasses.dataclass
class Work:
    """A data set: encoded training and dev examples, of which `members` [batches, size] and the first `args.dev` are
    read, and how many it has of either."""

    dataset: Any
    tokenizer: Any
    train: Any
    dev: Any
    members: np.ndarray
    whole: tuple[int, int]


def load(args, name):
    from gpt1_jax.data.labelled import encoding, loading
    from gpt1_jax.data.labelled.registry import REGISTRY
    from gpt1_jax.data.tokenizers.loading import load_tokenizer

    dataset = REGISTRY[name]
    tokenizer = load_tokenizer(args.tokenizer)
    size = args.race_batch_size if name == 'race' else args.batch_size
    train, dev = (
        loading.load_examples(dataset, f'files:{loading.folder_of(dataset, args.data)}', split)
        for split in ('train', 'dev')
    )
    encode = lambda examples, most: encoding.encode(
        dataset, examples.take(range(min(most, len(examples)))), tokenizer, 512
    )
    encoded = encode(train, 20_000)
    members = np.random.RandomState(0).permutation(len(encoded.ids))[: size * args.batches].reshape(args.batches, size)
    return Work(dataset, tokenizer, encoded, encode(dev, args.dev), members, (len(train), len(dev)))


def jax_side(args, work, packing):
    """A function that makes one pass over the batches of 'train' or 'dev' and returns the seconds."""
    import jax

    from configs import finetune
    from gpt1_jax.data.labelled.packing import EvaluationBatches, FinetuningBatches, rows_for
    from gpt1_jax.model.architecture import Architecture
    from gpt1_jax.model.classifier import ClassifierHead
    from gpt1_jax.processes import compute_in_this_thread, keep_freed_memory
    from gpt1_jax.training import program
    from gpt1_jax.training.partitioning import Partitioner

    keep_freed_memory()  # as `gpt1_jax.main` does
    compute_in_this_thread()
    sizes = dict(
        layers=args.layers, width=args.width, heads=args.width // 64, mlp_width=4 * args.width, n_positions=512
    )
    config = finetune.get_config()
    config.model.scan = False
    dataset, partitioner = work.dataset, Partitioner('dp', (1, 1, 1))
    made = program.finetuning(
        config,
        Architecture('transformer', sizes),
        work.tokenizer.vocab_size,
        ClassifierHead(dataset.kind, dataset.classes),
        dataset.loss,
        10**6,
        partitioner,
    )
    share = dataset.kind == 'multiple_choice'
    train = FinetuningBatches(
        work.train, batch_size=work.members.shape[1], packing=packing, share_context=share, rows=rows_for('cpu')
    )
    train.members = lambda step: work.members[step]
    dev = EvaluationBatches(work.dev, batch_size=args.eval_batch_size, share_context=share)  # packed for both
    predict = program.prediction(made.classifier, made.abstract.params, partitioner)
    state = made.create_state(0)

    def one_pass(split):
        nonlocal state
        begin = time.perf_counter()
        if split == 'train':
            for i in range(args.batches):
                batch = train.batch_at(i)
                batch = batch if packing else trimmed(batch)
                state, result = made.train_step(state, partitioner.put_batch(batch))
        else:
            result = [predict(state.params, partitioner.put_batch(dev.batch_at(i))) for i in range(dev.steps)]
        jax.block_until_ready(result)
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
    """Reads batches from a file; answers each line of standard input, 'train' or 'dev', with the seconds of a pass."""
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
    size = {'train': int(data['train_size']), 'dev': args.eval_batch_size}

    def batches(split):
        """(sequences of a batch, labels)"""
        flat, ends = data[f'{split}_tokens'].astype(np.int64), np.cumsum(data[f'{split}_lengths'])
        sequences = [torch.from_numpy(flat[a:b]) for a, b in zip([0, *ends], ends)]
        labels = torch.from_numpy(data[f'{split}_labels'].astype(np.int64))
        for i in range(0, len(labels), size[split]):
            yield sequences[i * choices : (i + size[split]) * choices], labels[i : i + size[split]]

    def read(chosen):
        ids = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True)
        lengths = torch.tensor([len(sequence) for sequence in chosen])
        real = torch.arange(ids.shape[1])[None] < lengths[:, None]
        if model.training:
            output = model(ids, attention_mask=real.float(), output_hidden_states=True)
            last = output.hidden_states[-1]
        else:  # without the language model's head
            output, last = None, model.transformer(ids, attention_mask=real.float()).last_hidden_state
        logits = head(last[torch.arange(len(ids)), lengths - 1]).reshape(len(chosen) // choices, -1)
        return logits, output, ids[:, 1:].masked_fill(~real[:, 1:], -100)

    def train_pass():
        for chosen, labels in batches('train'):
            logits, output, targets = read(chosen)
            lm = torch.nn.functional.cross_entropy(
                output.logits[:, :-1].reshape(-1, vocab), targets.reshape(-1), ignore_index=-100
            )
            loss = torch.nn.functional.cross_entropy(logits, labels) + 0.5 * lm
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()

    @torch.no_grad()
    def dev_pass():
        for chosen, _ in batches('dev'):
            read(chosen)

    for split in map(str.strip, sys.stdin):
        model.train(split == 'train'), head.train(split == 'train')
        begin = time.perf_counter()
        (train_pass if split == 'train' else dev_pass)()
        print(time.perf_counter() - begin, flush=True)


class TorchSide:
    """`torch_pass` in a process of the interpreter that has PyTorch."""

    def __init__(self, args, work, folder):
        path, arrays = pathlib.Path(folder) / f'{work.dataset.name}.npz', {}
        for split, encoded, chosen in (
            ('train', work.train, work.members.reshape(-1)),
            ('dev', work.dev, np.arange(len(work.dev.ids))),
        ):
            sequences = [sequence for example in chosen for sequence in encoded.sequences[int(example)]]
            arrays[f'{split}_tokens'] = np.concatenate(sequences)
            arrays[f'{split}_lengths'] = [len(sequence) for sequence in sequences]
            arrays[f'{split}_labels'] = encoded.labels[chosen]
        np.savez(
            path,
            **arrays,
            train_size=work.members.shape[1],
            classes=work.dataset.classes,
            choices=work.train.sequences.lengths.shape[1],
            vocab=work.tokenizer.vocab_size + 3,
        )
        self.process = subprocess.Popen(
            [args.torch_python, '-m', 'benchmarks.packing', *sys.argv[1:], f'--torch_side={path}'],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, split):
        self.process.stdin.write(f'{split}\n')
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def main():
    args = parse()
    if args.torch_side:
        torch_pass(args)
        return
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    from gpt1_jax.config import check_choice
    from gpt1_jax.data.labelled.registry import REGISTRY
    from gpt1_jax.errors import UserError

    try:
        for name in args.sets.split(','):
            check_choice('--sets', name, REGISTRY)
        compare(args)
    except UserError as error:
        raise SystemExit(f'error: {error}') from None


def compare(args):
    print(
        f'{args.layers} layers, width {args.width}, {os.cpu_count()} cores; median (range) of examples/s of an epoch '
        f'with its evaluation, from {args.rounds} rounds of {args.batches} steps and {args.dev} dev examples'
    )
    print(f'{"set":<8}{"side":<16}{"examples/s":>24}{"steps alone":>14}{"packed is":>12}')
    with tempfile.TemporaryDirectory() as folder:
        for name in args.sets.split(','):
            work = load(args, name)
            sides = {name: jax_side(args, work, packing) for name, packing in (('packed', True), ('padded', False))}
            if args.torch_python:
                sides['torch, padded'] = TorchSide(args, work, folder)
            rates, alone = {side: [] for side in sides}, {side: [] for side in sides}
            for turn in range(args.rounds + 1):
                for side, one_pass in sides.items():
                    training, evaluating = one_pass('train'), one_pass('dev')
                    if turn:
                        train, dev = work.whole
                        seconds = train * training / work.members.size + dev * evaluating / len(work.dev.ids)
                        rates[side].append(train / seconds)
                        alone[side].append(work.members.size / training)
            best = statistics.median(rates['packed'])
            for side, values in rates.items():
                middle = statistics.median(values)
                spread = f'{middle:.1f} ({min(values):.1f} to {max(values):.1f})'
                steps = statistics.median(alone[side])
                print(f'{name:<8}{side:<16}{spread:>24}{steps:>14.1f}{best / middle:>11.2f}x', flush=True)
            if args.torch_python:
                sides['torch, padded'].close()


if __name__ == '__main__':
    main()
