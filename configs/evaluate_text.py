r"""How well a language model predicts a text: perplexity per token and per word, or the probability of each sentence.

    python -m gpt1_jax.main --config=configs/evaluate.py:text --config.init_from=runs/gpt1 \
        --config.data.source=text:/books/held-out --workdir=runs/gpt1-text
    python -m gpt1_jax.main --config=configs/evaluate.py:text --config.init_from=runs/gpt1 \
        --config.data.source=text:sentences.txt --config.sentences=True --workdir=runs/gpt1-sentences

`data.source` is `text:` and a folder, a glob or a file (.txt, .txt.gz), `tfds:` and a name, or `docs:`; all of it is
scored. A window of the model's positions slides over each document by `stride` tokens: every token is scored once,
with at least positions - stride tokens before it, or all that the document has. Before its first token stands the
token that ends a text. Only the vocabulary's tokens compete.

WORKDIR/results.json: documents, tokens, unknown_tokens, comparable, words (between white space, in the standardised
text), log_probability (nats), loss (nats a token), perplexity, word_perplexity. With `sentences`, every line is a text
of its own, and WORKDIR/sentences.jsonl has one object a line of the source, in order: log_probability, mean (a token;
null where the line is empty), tokens, unknown.

The released vocabulary lacks many characters, and the unknown piece is one token, easy to predict, whatever it stands
for: text that a vocabulary lacks makes its perplexities lower, a word's too. `unknown_tokens` counts these pieces among
the scored tokens (`unknown` in a sentence). `comparable` is true where there are none; else the figures are not to be
compared with those of another vocabulary. A vocabulary of `prepare` spells such text in bytes and has none.

Hardware: any; not measured yet.
"""

import ml_collections

from gpt1_jax import config as common


def get_config(arg: str = '') -> ml_collections.ConfigDict:
    common.check_no_argument('evaluate_text', arg)
    return ml_collections.ConfigDict(dict(
        task='evaluate_text', init_from='', sentences=False,
        stride=common.optional_int(),  # None: half of the positions
        data=ml_collections.ConfigDict(dict(source='', batch_size=8)),
        model=common.model_defaults(),  # how it is computed; the architecture is that of `init_from`
        mesh=ml_collections.ConfigDict(dict(strategy='dp', shape=()))))
