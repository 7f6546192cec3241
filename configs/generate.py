r"""Text from a language model: what follows a prompt, or what a text may begin with (an empty prompt).

    python -m gpt1_jax.main --config=configs/generate.py --config.init_from=runs/gpt1 --config.prompt="once upon a time"
    python -m gpt1_jax.main --config=configs/generate.py --config.init_from=runs/gpt1 --config.temperature=0 \
        --config.prompts=prompts.txt --workdir=runs/answers
    python -m gpt1_jax.main --config=configs/generate.py --config.init_from=runs/gpt1 --config.interactive=True

One sample of one prompt appears as it is made. `prompts` names a file with one prompt a line (an empty line is an
empty prompt). The results of both go to WORKDIR/generations.jsonl, one object a sample: prompt, sample, text, tokens,
and what ended it: 'stop', 'max_tokens' or 'context' (the model's positions). `interactive` reads prompts from standard
input until it ends. A prompt longer than the model's positions is refused; max_tokens beyond them are cut, with a
warning.

A token is drawn as a function of (seed, the sample's number, its position): a text does not depend on its batch.
The unknown piece never comes out: it stands for text that the vocabulary cannot write.

Hardware: any. Compiled steps are kept in $XDG_CACHE_HOME (~/.cache)/gpt1_jax/compiled. Time, 117M parameters on 2 CPU
cores: 8 seconds to the first token, the steps compiled before; then see benchmarks/generate.py.
"""

import ml_collections

from gpt1_jax import config as common


def get_config(arg: str = '') -> ml_collections.ConfigDict:
    common.check_no_argument('generate', arg)
    return ml_collections.ConfigDict(dict(
        task='generate', seed=0, init_from='', prompt='', prompts='', interactive=False,
        samples=1, max_tokens=128,
        temperature=1.0,  # 0: the most probable token, always
        top_k=0,  # from the k most probable tokens; 0: from all
        top_p=0.9,  # then from the fewest that have this probability together
        stop='end',  # 'end': at the token that ends a text, if the vocabulary has one; 'newline'; 'never'
        stream=True, batch_size=8,
        model=common.model_defaults(),  # how it is computed; the architecture is that of `init_from`
        mesh=ml_collections.ConfigDict(dict(strategy='dp', shape=()))))
