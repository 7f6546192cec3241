r"""How well a language model predicts a text: perplexity per token and per word, or the probability of each sentence.

    python -m gpt1_jax.main --config=configs/evaluate.py:text --config.init_from=runs/gpt1 \
        --config.data.source=text:/books/held-out --workdir=runs/gpt1-text
    python -m gpt1_jax.main --config=configs/evaluate.py:text --config.init_from=runs/gpt1 \
        --config.data.source=text:sentences.txt --config.sentences=True --workdir=runs/gpt1-sentences

`data.source` is `text:` and a folder, a glob or a file (.txt, .txt.gz, .zip, .parquet, JSON lines), `tfds:` and a name,
`hf:OWNER/NAME` or `hf:OWNER/NAME:CONFIG`, or `docs:`; all of it is scored. A window as long as the model's positions
slides over each document by `stride` tokens. Every token is scored once, after at least positions - stride tokens or
all earlier ones of its document; the first follows the token that ends a text. Only the vocabulary's tokens compete.

Scores in WORKDIR/results.json: log_probability (nats), loss (nats a token), perplexity, word_perplexity. Facts there:
documents (but for empty ones), tokens, unknown_tokens, comparable, words (between white space, in the standardised
text). With `sentences`, every line is a text of its own, and WORKDIR/sentences.jsonl has one object a line of the
source, in order: log_probability, mean (a token; null where the line is empty), tokens, unknown. A row of a table has
the lines of its text; where that is empty or null, and where a line of a .jsonl file is empty, it is one empty line.

The released vocabulary lacks many characters. Each becomes the unknown piece, which is easy to predict, so such text
lowers the perplexities, also per word. `unknown_tokens` (`unknown` of a sentence) counts these pieces among the scored
tokens. `comparable` is true if there are none; otherwise do not compare the figures with those of another vocabulary.
A vocabulary made by `prepare` spells such text in bytes and has none.

Run a command that was stopped or killed again to resume it; the figures are the same in the end.

Hardware: any. Time: not measured yet. Result: 18.4 a token with the paper's model on the books that it held out; not
reproduced yet.
"""

import ml_collections

from configs import common
from gpt1_jax.config import check_no_argument


def get_config(arg: str = '') -> ml_collections.ConfigDict:
    check_no_argument('evaluate_text', arg)
    return ml_collections.ConfigDict(
        dict(
            task='evaluate_text',
            init_from='',  # the model
            sentences=False,  # every line is a text of its own
            stride=common.optional(int),  # None: half of the positions
            data=ml_collections.ConfigDict(dict(**common.text_defaults(), batch_size=8)),
            model=common.model_defaults(),  # only what concerns computation; the architecture is that of `init_from`
            mesh=common.mesh_defaults(),
        )
    ).lock()
