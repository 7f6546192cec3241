"""Generation in tokens per second, here and by `transformers.generate`: same architecture, same work, same cores.

    python -m benchmarks.generate --torch_python=/env/bin/python [--layers=12 --prompt=32 --new=128 --repeats=3]

117M random weights, greedy, float32, every sequence at full length. `--torch_python` names an interpreter with torch
and transformers; without it only this project is measured. Each side has its own process; they take turns after a
warm-up. Prints the median and range of tokens/s over the repeats; only new tokens count, but the time includes reading
the prompt. OpenAIGPTLMHeadModel has no key-value cache; this project has one.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time

from benchmarks import arguments

VOCABULARY, POSITIONS, WIDTH, HEADS, MLP = 40478, 512, 768, 12, 3072


def measure_jax(options, report):
    import jax
    import jax.numpy as jnp
    import numpy as np

    from gpt1_jax.model import decoding
    from gpt1_jax.model.transformer import Decoder
    from gpt1_jax.training.partitioning import unbox

    model = Decoder(
        vocab_size=VOCABULARY,
        n_special=0,
        n_positions=POSITIONS,
        width=WIDTH,
        layers=options.layers,
        heads=HEADS,
        mlp_width=MLP,
    )
    params = jax.jit(
        lambda key: decoding.unstack_layers(unbox(model.init(key, jnp.zeros((1, 1), jnp.int32))['params']))
    )(jax.random.key(0))
    places = decoding.bucket(options.prompt + options.new, POSITIONS)
    prefill = jax.jit(functools.partial(decoding.prefill, model, places=places))
    decode = jax.jit(functools.partial(decoding.decode, model, greedy=True, truncated=False), donate_argnums=1)

    def generate(batch, new):
        column = lambda value: np.full((batch,), value, np.int32)
        prompts = np.random.default_rng(0).integers(1, VOCABULARY, (batch, options.prompt)).astype(np.int32)
        state = prefill(params, prompts, column(options.prompt), column(options.prompt + new), column(0))
        state = decode(params, state, decoding.Sampling(), -1, new)
        assert np.all(np.asarray(state.lengths) == options.prompt + new)

    report(generate)


def measure_torch(options, report):
    import torch
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    torch.manual_seed(0)
    model = OpenAIGPTLMHeadModel(
        OpenAIGPTConfig(
            vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=WIDTH, n_layer=options.layers, n_head=HEADS
        )
    ).eval()

    def generate(batch, new):
        prompts = torch.randint(1, VOCABULARY, (batch, options.prompt))
        with torch.inference_mode():
            output = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )
        assert output.shape == (batch, options.prompt + new)

    report(generate)


def serve(options, measure):
    """Answers each batch size from standard input with the seconds of one run."""

    def report(generate):
        for batch in options.batches:
            generate(batch, 4)
        print('ready', flush=True)
        for line in sys.stdin:
            started = time.perf_counter()
            generate(int(line), options.new)
            print(time.perf_counter() - started, flush=True)

    measure(options, report)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--torch_python',
        type=arguments.interpreter('torch', 'transformers'),
        help='an interpreter with torch and transformers',
    )
    for name, default in dict(layers=12, prompt=32, new=128, repeats=3).items():
        parser.add_argument(f'--{name}', type=arguments.count, default=default)
    parser.add_argument('--batches', type=arguments.count, nargs='+', default=[1, 8])
    parser.add_argument('--side', choices=('jax', 'torch'), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prompt + options.new > POSITIONS:
        parser.error(f'--new: With --prompt there are more than {POSITIONS} tokens, the positions of the model.')
    if options.side:
        return serve(options, {'jax': measure_jax, 'torch': measure_torch}[options.side])

    pythons = {'jax': sys.executable} | ({'torch': options.torch_python} if options.torch_python else {})
    processes = {
        side: subprocess.Popen(
            [python, '-m', 'benchmarks.generate', *sys.argv[1:], f'--side={side}'],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for side, python in pythons.items()
    }
    for process in processes.values():
        assert process.stdout.readline() == 'ready\n', 'a side could not start'
    rates = {}
    for _ in range(options.repeats):
        for batch in options.batches:
            for side, process in processes.items():
                process.stdin.write(f'{batch}\n')
                process.stdin.flush()
                rate = batch * options.new / float(process.stdout.readline())
                print(f'{side}, batch {batch}: {rate:.1f} tokens/s', file=sys.stderr, flush=True)
                rates.setdefault((batch, side), []).append(rate)
    for process in processes.values():
        process.stdin.close()
        process.wait()
    for (batch, side), values in sorted(rates.items()):
        print(
            f'batch {batch}  {side:<6}{statistics.median(values):8.1f} tokens/s  ({min(values):.1f} to '
            f'{max(values):.1f}, {len(values)} runs)'
        )
    if options.torch_python:
        medians = {key: statistics.median(values) for key, values in rates.items()}
        print(
            json.dumps(
                {
                    f'batch {batch}': round(medians[batch, 'jax'] / medians[batch, 'torch'], 2)
                    for batch in options.batches
                }
            )
        )


if __name__ == '__main__':
    main()
