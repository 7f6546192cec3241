r"""Text from a language model: continuations of prompts, or new texts (an empty prompt).

    python -m gpt1_jax.main --config=configs/generate.py --config.init_from=runs/gpt1 --config.prompt="once upon a time"
    python -m gpt1_jax.main --config=configs/generate.py --config.init_from=runs/gpt1 --config.temperature=0 \
        --config.prompts=prompts.txt --workdir=runs/answers
    python -m gpt1_jax.main --config=configs/generate.py --config.init_from=runs/gpt1 --config.interactive=True
    python -m gpt1_jax.main --config=configs/generate.py --config.init_from=hf:openai-community/openai-gpt

The last command fetches the released model from the Hugging Face hub. A single sample of a single prompt is shown while
it is generated. `prompts` names a file with one prompt per line (an empty line is an empty prompt). The results of both
go to WORKDIR/generations.jsonl, one object per sample: prompt, sample, text, tokens and ended_by, 'stop', 'max_tokens'
or 'context' (the model's positions). `interactive` reads prompts from standard input until it ends. A prompt longer
than the model's positions is refused; max_tokens beyond them is cut, with a warning. White space at the end of a
prompt is not read, and left out of what is shown. Run a command that was stopped or killed again to resume it after the
texts that are there.

A token is drawn from the model's probabilities after the text before it. The random number depends on the token's
position, the seed and the sample's number only. In float32 the batch does not matter. In bfloat16, the default on a GPU
or TPU, other shapes round differently, so a text may change with the batch (`model.dtype=float32` avoids it). Prompts
share the random numbers: for independent texts use `samples` or other seeds. The unknown piece is never generated: it
stands for text that the vocabulary cannot write.

Hardware: any. Compiled steps are kept in $XDG_CACHE_HOME (~/.cache)/gpt1_jax/compiled. Time, 117M parameters on 2 CPU
cores: 13 seconds to the first token, 5.4 to 6.7 with steps compiled before (measured); for the rate see
benchmarks/generate.py.
"""

import ml_collections

from configs import common
from gpt1_jax.config import check_no_argument


def get_config(arg: str = '') -> ml_collections.ConfigDict:
    check_no_argument('generate', arg)
    return ml_collections.ConfigDict(
        dict(
            task='generate',
            seed=0,  # of the samples
            init_from='',  # the model
            prompt='',  # the text to continue; empty: a new text
            prompts='',  # file of prompts
            interactive=False,  # prompts come from standard input
            samples=1,  # of each prompt
            max_tokens=128,  # of each sample
            temperature=1.0,  # 0: always the most probable token
            top_k=0,  # sample from the k most probable tokens; 0: from all
            top_p=0.9,  # of these, sample from the fewest that together have this probability
            stop='end',  # 'end': at the token that ends a text, if the vocabulary has one; 'newline'; 'never'
            stream=True,  # show a single sample while it is generated
            batch_size=8,  # samples
            model=common.model_defaults(),  # only what concerns computation; the architecture is that of `init_from`
            mesh=common.mesh_defaults(),
        )
    ).lock()
