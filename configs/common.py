"""The keys that configs share, with their defaults."""

import ml_collections
from ml_collections import config_dict

from gpt1_jax.config import check_choice
from gpt1_jax.model.sizes import SIZES, init_std


def model_defaults() -> ml_collections.ConfigDict:
    """Settings of training and computation, for models of any kind and size. A kind ignores the settings of parts that
    it lacks: an LSTM has no attention, no position rows, and no stack of layers to scan or recompute."""
    return ml_collections.ConfigDict(
        dict(
            dropout=0.1,  # of embeddings (section 4.1)
            attention_dropout=0.1,  # of attention probabilities
            residual_dropout=0.1,  # of the output of each sub-layer, and of the LSTM's layer
            embedding_dropout='table',  # what `dropout` drops from: table (the release) or sum (the Hugging Face port)
            softmax_rows='all',  # rows that compete in training: all (the release) or tokens (without positions)
            init_std=optional(float),  # standard deviation of initial values; None: 0.02 at width 768, more if narrower
            scan=True,  # compile one layer and loop over it (compiles fast), or compile every layer (runs fast)
            remat=False,  # recompute activations in the backward pass to save memory
            attention='auto',  # xla, kernel, or auto (the kernels of a TPU or GPU, where they fit the model)
            dtype='auto',  # of computation: float32, bfloat16, or auto (float32 on a CPU, bfloat16 elsewhere)
        )
    )


def model_of_any_size() -> ml_collections.ConfigDict:
    """`model_defaults` and the sizes of every kind of model. A size that is None is that of the config's `size`."""
    model = model_defaults()
    for name in dict.fromkeys(name for named in SIZES.values() for name in named.sizes):
        model[name] = optional(int)
    return model


def model_size(size: str) -> ml_collections.ConfigDict:
    """`model_defaults` with the architecture of SIZES[size]."""
    check_choice('size', size, SIZES)
    named = SIZES[size]
    model = model_defaults()
    model.update(
        kind=named.kind,  # of model, see gpt1_jax/model/architecture.py
        **named.sizes,
        init_std=init_std(named.sizes['width']),
        scan=False,  # without a loop, a step moves half the bytes on a TPU or GPU and takes 4/5 of the time on a CPU
    )
    return model


def optimizer_defaults(**values: object) -> ml_collections.ConfigDict:
    """Adam of the release. values: `schedule`, `learning_rate` and any keys with other values."""
    return ml_collections.ConfigDict(
        dict(
            warmup_steps=0,  # steps in which the rate grows from 0, or
            warmup_fraction=0.0,  # the same as a fraction of all steps
            b1=0.9,  # decay of the first moment
            b2=0.999,  # decay of the second
            eps=1e-8,  # added to the root of the second
            weight_decay=0.01,  # of tables and kernels
            max_grad_norm=1.0,  # gradients are clipped to this norm; 0: no clipping
            accumulation=1,  # micro-batches per batch
            max_skipped=5,  # non-finite steps in a row that count as divergence
            on_divergence='stop',  # or rollback: back to the last checkpoint, then skip the batches read since
        )
        | values
    )


def text_defaults() -> dict:
    """Which text is read."""
    return dict(
        source='',  # URI of the text
        download=True,  # fetch what is not here, of tfds: and hf:
        text_column='',  # of the tables among its files; empty: text, book_text or content
        strip_gutenberg=False,  # take out the header and the licence of Project Gutenberg
        unwrap=False,  # join the lines of each paragraph of prose
    )


def data_defaults(**values: object) -> ml_collections.ConfigDict:
    """How a corpus becomes shards. values: any keys with other values."""
    return ml_collections.ConfigDict(
        dict(
            **text_defaults(),
            output='',  # folder of the shards; empty: WORKDIR/shards
            vocab_size=40000,  # pieces of the vocabulary to train
            tokenizer='',  # folder of a vocabulary to use instead
            tokenizer_sample_mb=64,  # text to train the vocabulary on, in units of 2^20 characters (of ASCII: MiB)
            held_out=0.01,  # fraction of the text; of a single document at most 0.9
            tokens_per_shard=2**26,  # in one file
            workers=0,  # processes; 0: one per core
        )
        | values
    )


def run_defaults(**log: object) -> dict:
    """The sub-dicts `mesh`, `checkpoint` and `log` of a training run. log: more keys of `log`."""
    return dict(
        mesh=mesh_defaults(),
        checkpoint=ml_collections.ConfigDict(
            dict(
                every=2000,  # steps between saves, in addition to those after evaluations; 0: only those
                every_minutes=0.0,  # also save when the last save is this many minutes old; 0: never
                keep_latest=2,  # newest checkpoints to keep
                keep_best=1,  # best checkpoints to keep
                keep_every=0,  # also keep each step that is a multiple of this; 0: none
                keep_log=0,  # also keep this many steps per factor of ten (1, 10, 100, ... if 1); 0: none
            )
        ),
        log=ml_collections.ConfigDict(
            dict(
                every=50,  # steps between lines of metrics
                wandb=False,  # log to Weights & Biases too
            )
            | log
        ),
    )


def mesh_defaults() -> ml_collections.ConfigDict:
    """How the devices share the work."""
    return ml_collections.ConfigDict(
        dict(
            strategy='dp',  # dp, fsdp, tp or fsdp+tp
            shape=(),  # (data, fsdp, tensor), one may be -1; empty: the strategy's default
        )
    )


def optional(kind: type) -> config_dict.FieldReference:
    """A key that is None until it is set to a value of this kind."""
    return config_dict.placeholder(kind)
