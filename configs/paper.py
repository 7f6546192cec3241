"""The whole paper as one command: prepares the text, pre-trains a transformer and an LSTM, scores their checkpoints
without fine-tuning, fine-tunes on every set that the source has, transfers fewer layers, leaves out parts of the
method, and writes the report.

    python -m gpt1_jax.main --config=configs/paper.py:tiny --config.text=text:/books --config.source=files:/data \
        --config.dry_run=True --workdir=runs/paper
    python -m gpt1_jax.main --config=configs/paper.py:tiny --config.text=text:/books --config.source=files:/data \
        --workdir=runs/paper
    python -m gpt1_jax.main --config=configs/paper.py:tiny --config.text=text:/books --config.source=files:/data \
        --config.parts=ablation_lambda,report --workdir=runs/paper

The argument is a size: tiny, small, gpt1 (default; the paper's values). Each part is a run of its own in WORKDIR/PART;
its command, which does the same, is printed before it starts. `config.PART` is the config of the part, so
`--config.finetune.data.limit=500` changes that of fine-tuning. The keys that connect the parts (`init_from`, the
sources, `seeds`) are filled in. Parts whose data the source lacks are left out and named.

`dry_run` prints the plan, with estimated times, and does nothing. After an interruption, run the same command again:
finished parts are not done again, others are resumed. WORKDIR/report/report.html is the result, written anew each time.

Hardware: tiny and small run on 2 CPU cores: about 6 and 20 hours with 263 MB of novels and fifteen sets, some in part,
by the plan's own estimate; not measured as a whole. gpt1 needs an accelerator, and about 70 GB of disk for the
checkpoints that are kept; not measured. Result: the paper's is not reproduced yet.
"""

import ml_collections

from configs import ablation, finetune, generate, layer_transfer, prepare, pretrain, report, zero_shot
from gpt1_jax.config import check_choice

_FILES = {
    'prepare': prepare,
    'pretrain': pretrain,
    'zero_shot': zero_shot,
    'generate': generate,
    'finetune': finetune,
    'layer_transfer': layer_transfer,
    'ablation': ablation,
    'report': report,
}
_LSTM = {'tiny': 'tiny_lstm', 'small': 'small_lstm', 'gpt1': 'lstm'}  # of the same width


def get_config(arg: str = 'gpt1') -> ml_collections.ConfigDict:
    size = arg or 'gpt1'
    check_choice('argument', size, _LSTM)
    files = {
        'prepare': 'prepare',
        'pretrain': f'pretrain:{size}',
        'pretrain_lstm': f'pretrain:{_LSTM[size]}',
        'zero_shot': 'zero_shot',
        'zero_shot_lstm': 'zero_shot',
        'samples': 'generate',
        'finetune': 'finetune:all',
        'layer_transfer_mnli': 'layer_transfer:mnli',
        'layer_transfer_race': 'layer_transfer:race',
        'ablation_table5': 'ablation:table5',
        'ablation_lambda': 'ablation:lambda',
        'ablation_share': 'ablation:share',
        'report': 'report',
    }
    config = ml_collections.ConfigDict(
        dict(
            task='paper',
            text='',  # URI of the corpus, or `shards:/path`, prepared before
            source='',  # URI of the labelled sets; empty: each one's own in TensorFlow Datasets or on the hub
            seeds=3,  # fine-tuning runs of each set and variant
            parts='',  # names of those to run, separated by commas; empty: all
            dry_run=False,  # print the plan, and do nothing
            files=tuple(files.items()),  # part, and its config file with the argument
        )
    )
    for part, file in files.items():
        name, _, argument = file.partition(':')
        config[part] = _FILES[name].get_config(argument)
    config.prepare.data.vocab_size = config.pretrain.data.vocab_size
    config.pretrain.checkpoint.keep_log = config.pretrain_lstm.checkpoint.keep_log = 5
    config.samples.update(prompt='she looked at him and said', samples=3, max_tokens=64)
    if size != 'gpt1':
        _shorten(config, size)
    return config.lock()


def _shorten(config, size):
    """Settings of a small model for 2 CPU cores, in place of the paper's."""
    tokens, rate = {'tiny': (16_000_000, 2e-3), 'small': (30_000_000, 1e-3)}[size]
    for part in (config.pretrain, config.pretrain_lstm):
        part.data.update(tokens=tokens, batch_size=16)
        part.optimizer.update(learning_rate=rate, warmup_steps=200)
        part.log.update(eval_every=1000, eval_windows=500)
        # Hardly any text is read twice.
        part.model.update(dropout=0.0, attention_dropout=0.0, residual_dropout=0.0)
    for part in (config.zero_shot, config.zero_shot_lstm):
        part.data.limit = 1000
    for name in (
        'finetune',
        'layer_transfer_mnli',
        'layer_transfer_race',
        *(f'ablation_{s}' for s in ablation.STUDIES),
    ):
        config[name].optimizer.learning_rate = 5e-4
        config[name].data.update(batch_size=16, limit=2000)
    for part in (config.ablation_lambda, config.ablation_share):
        part.datasets = ('cola', 'sst2', 'rte')  # whose dev sets are small
    config.ablation_share.data.limit = 20_000
    if size == 'small':
        config.layer_transfer_race.layers = (0, 2, 4, 6)
