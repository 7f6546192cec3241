"""The door for models: what is built and refused; and a second kind of model, taken through the tasks."""

import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import runs
from configs import convert as convert_config, generate as generate_config
from gpt1_jax.errors import UserError
from gpt1_jax.evaluation import classification
from gpt1_jax.model import architecture, sizes
from gpt1_jax.model.dropout import dropout
from gpt1_jax.model.transformer import Output
from gpt1_jax.report import results
from gpt1_jax.tasks import convert, evaluate, evaluate_text, finetune, generate, pretrain
from gpt1_jax.training.partitioning import Partitioner
from helpers import checksums
from models import assert_same_bits, read

pytestmark = pytest.mark.slow

TRANSFORMER = dict(kind='transformer', layers=1, width=16, heads=2, mlp_width=32, n_positions=8)


class Averages(nn.Module):
    """A toy: each layer adds a function of the mean of what its segment holds so far. It knows no positions."""

    vocab_size: int
    n_special: int
    n_positions: int
    width: int
    layers: int
    dropout: float = 0.1
    dtype: jnp.dtype = jnp.float32

    SIZES = ('layers', 'width', 'n_positions')
    CANNOT = ('share_context', 'generate', 'convert')

    @staticmethod
    def check_sizes(sizes):
        if sizes['width'] % 2:
            raise ValueError(f'width={sizes["width"]} is odd')

    def flops_per_token(self, lm_head=True):
        return 6.0 * self.width * (self.layers * self.width + self.vocab_size + self.n_special)

    def transfer(self, fresh, source, source_special, n_layers):
        special = source if source_special and self.n_special else fresh
        return {
            'table': jnp.concatenate([source['table'][: self.vocab_size], special['table'][self.vocab_size :]]),
            'kernels': jnp.concatenate([source['kernels'][:n_layers], fresh['kernels'][n_layers:]]),
        }

    @nn.compact
    def __call__(self, tokens, positions=None, segment_ids=None, context_ids=None, *, train=False):
        assert context_ids is None
        normal = nn.initializers.normal(0.2)
        table = self.param(
            'table',
            nn.with_logical_partitioning(normal, ('table_rows', 'table_embed')),
            (self.vocab_size + self.n_special, self.width),
        )
        kernels = self.param(
            'kernels',
            nn.with_logical_partitioning(normal, ('layers', 'embed', 'mlp')),
            (self.layers, self.width, self.width),
        )
        x = dropout(table[tokens], self.make_rng('dropout') if train else None, self.dropout)
        segments = jnp.zeros_like(tokens) if segment_ids is None else segment_ids
        seen = jnp.tril(segments[:, :, None] == segments[:, None]).astype(x.dtype)
        for kernel in kernels:
            x += jnp.tanh(seen / seen.sum(-1, keepdims=True) @ x @ kernel)
        return Output(x.astype(self.dtype), table.astype(self.dtype))


@pytest.fixture(scope='module', autouse=True)
def _second_kind():
    """All on one device: meshes are tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(architecture.KINDS, 'averages', Averages)
        patch.setitem(
            sizes.SIZES, 'averages', sizes.Size('averages', dict(layers=2, width=16, n_positions=32), vocab_size=320)
        )
        for task in (evaluate, evaluate_text, finetune, generate, pretrain):
            patch.setattr(task, 'Partitioner', lambda *_: Partitioner('dp', (1, 1, 1), jax.devices()[:1]))
        yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Data; `lm`, a language model of the second kind; `classifier`, fine-tuned from it."""
    folder = epath.Path(tmp_path_factory.mktemp('averages'))
    runs.write_data(folder)
    pretrain.run(runs.pretraining(folder, 'averages'), folder / 'lm')
    config = runs.finetuning(folder, folder / 'lm')
    config.data.epochs = 10.0
    finetune.run(config, folder / 'classifier')
    return folder


@pytest.mark.parametrize(
    ('changes', 'where', 'words'),
    [
        (dict(kind='rnn'), 'model.kind: ', ["'rnn'", 'transformer, lstm, averages']),
        (dict(heads=3), 'model: ', ['(model.width=16 is not a multiple of model.heads=3)']),
        (dict(kind='averages', width=15), 'model: ', ['(model.width=15 is odd)']),
        (dict(kind='lstm'), 'model.kind: ', ['has no units, ', 'kind lstm', 'of :tiny_lstm, :small_lstm, :lstm.']),
    ],
)
def test_what_cannot_be_built_is_one_sentence(changes, where, words):
    with pytest.raises(UserError) as caught:
        architecture.build(TRANSFORMER | changes, 40, 0, 'cpu')
    message = str(caught.value)
    assert message.startswith(where) and all(word in message for word in words) and '\n' not in message


def test_the_sizes_of_another_kind_are_not_those_of_a_transformer():
    of_lstm = dict(sizes.SIZES['tiny_lstm'].sizes, kind='transformer')
    with pytest.raises(UserError, match='^model.kind: .* no heads, mlp_width, which .* one of :tiny, :small, :gpt1.$'):
        architecture.build(of_lstm, 40, 0, 'cpu')


def test_a_model_is_built_as_the_config_says():
    model = architecture.build(TRANSFORMER | dict(dropout=0.25, colour='green'), 40, 3, 'cpu')
    made = architecture.Architecture.of(model)
    assert made == architecture.Architecture('transformer', {k: v for k, v in TRANSFORMER.items() if k != 'kind'})
    assert (model.vocab_size, model.n_special, model.dropout) == (40, 3, 0.25)
    without_kind = {k: v for k, v in TRANSFORMER.items() if k != 'kind'}
    assert architecture.Architecture.of(architecture.build(without_kind, 40, 0, 'cpu')) == made
    second = architecture.build(TRANSFORMER | dict(kind='averages'), 40, 0, 'cpu')
    assert architecture.Architecture.of(second) == architecture.Architecture(
        'averages', dict(layers=1, width=16, n_positions=8)
    )


@pytest.mark.parametrize('kind', ['transformer', 'averages'])
@pytest.mark.parametrize(
    ('dtype', 'platform', 'expected'),
    [
        ('auto', 'cpu', jnp.float32),
        ('auto', 'tpu', jnp.bfloat16),
        ('auto', 'gpu', jnp.bfloat16),
        ('float32', 'tpu', jnp.float32),
        ('bfloat16', 'cpu', jnp.bfloat16),
    ],
)
def test_the_type_follows_the_devices(kind, dtype, platform, expected):
    model = architecture.build(TRANSFORMER | dict(kind=kind, dtype=dtype), 40, 0, platform)
    assert model.dtype == expected


def description(workdir):
    return json.loads((workdir / 'model.json').read_text())


def test_a_second_kind_is_pretrained_and_resumed(folder, tmp_path):
    stored = description(folder / 'lm')
    assert stored['kind'] == 'averages' and stored['architecture'] == dict(layers=2, width=16, n_positions=32)
    result = results.read(folder / 'lm')
    parameters = 320 * 16 + 2 * 16 * 16
    assert result.model == dict(kind='averages', sizes=stored['architecture'], parameters=parameters, tokens_seen=2048)
    losses = runs.losses(folder / 'lm')
    assert len(losses) == 8 and losses[-1] < losses[0] - 0.05
    workdir = epath.Path(tmp_path) / 'resumed'
    shutil.copytree(folder / 'lm', workdir)
    for part in ('checkpoints/8', 'results.json'):
        path = workdir / part
        path.rmtree() if path.is_dir() else path.unlink()
    again = pretrain.run(runs.pretraining(folder, 'averages'), workdir)
    assert again.scores == result.scores and checksums(workdir, 8) == checksums(folder / 'lm', 8)
    assert runs.losses(workdir) == losses


def test_pretraining_does_not_go_on_from_another_kind(folder, tmp_path):
    for size, kind in (('tiny', 'transformer'), ('averages', 'averages')):
        config = runs.pretraining(folder, size)
        config.init_from = str(folder / 'lm')
        if kind == 'transformer':
            with pytest.raises(
                UserError, match='^model.kind: transformer is not that of .* of kind averages: averages'
            ):
                pretrain.run(config, epath.Path(tmp_path) / 'refused')
        else:
            assert pretrain.run(config, epath.Path(tmp_path) / 'on').model['tokens_seen'] == 2 * 2048


def test_a_second_kind_is_finetuned_and_evaluated(folder, tmp_path):
    stored, result = description(folder / 'classifier'), results.read(folder / 'classifier')
    assert stored['kind'] == 'averages' and stored['head'] == dict(kind='classification', classes=2)
    best = result.value(checkpoint='best', metric='accuracy')
    assert best > 0.8 and result.model['kind'] == 'averages'
    config = runs.evaluation(folder, folder / 'classifier')
    assert evaluate.run(config, epath.Path(tmp_path)).value(metric='accuracy') == best


def test_a_second_kind_scores_a_text(folder, tmp_path):
    config = runs.text_evaluation(folder, folder / 'lm')
    scored = evaluate_text.run(config, epath.Path(tmp_path))
    assert 1 < scored.value(metric='perplexity') < 320 and scored.model['kind'] == 'averages'


@pytest.mark.parametrize(('size', 'shares'), [('averages', False), ('tiny', True)])
def test_choices_share_their_context_where_the_model_can(folder, tmp_path, monkeypatch, size, shares):
    tmp_path = epath.Path(tmp_path)
    if size == 'tiny':
        pretrain.run(runs.pretraining(folder), tmp_path / 'lm')
    seen = set()

    def spy(made):
        def wrapped(*args, share_context, **kwargs):
            seen.add((made.__name__, share_context))
            return made(*args, share_context=share_context, **kwargs)

        return wrapped

    monkeypatch.setattr(finetune.packing, 'FinetuningBatches', spy(finetune.packing.FinetuningBatches))
    monkeypatch.setattr(classification, 'EvaluationBatches', spy(classification.EvaluationBatches))
    config = runs.stories(folder, (tmp_path if size == 'tiny' else folder) / 'lm')
    assert config.data.share_context
    result = finetune.run(config, tmp_path / 'stories')
    assert seen == {('FinetuningBatches', shares), ('EvaluationBatches', shares)}
    assert result.facts['train_examples'] + result.facts['dev_examples'] == 60
    assert description(tmp_path / 'stories')['head'] == dict(kind='multiple_choice', classes=1)


@pytest.mark.parametrize('n_transfer', [None, 2, 1, 0, -1])
def test_n_transfer(folder, tmp_path, n_transfer):
    """With rate 0 the parameters stay as they were at the beginning."""
    config = runs.finetuning(folder, folder / 'lm')
    config.n_transfer, config.optimizer.learning_rate, config.data.epochs = n_transfer, 0.0, 0.2
    result = finetune.run(config, epath.Path(tmp_path))
    source, fresh = read(str(folder / 'lm'))[1]['decoder'], read(str(tmp_path))[1]['decoder']
    n_layers = 2 if n_transfer is None else n_transfer
    same = [
        np.array_equal(fresh['table'][:320], source['table']),
        *(np.array_equal(*layers) for layers in zip(fresh['kernels'], source['kernels'], strict=True)),
    ]
    assert same == [n_layers >= 0, n_layers > 0, n_layers > 1] and fresh['table'].shape == (323, 16)
    assert result.model['tokens_seen'] == (2048 if n_layers >= 0 else 0)


def test_more_layers_than_there_are_cannot_be_taken_over(folder, tmp_path):
    config = runs.finetuning(folder, folder / 'lm')
    config.n_transfer = 3
    with pytest.raises(UserError, match='^n_transfer: 3 layers .* from -1 .* to 2 '):
        finetune.run(config, epath.Path(tmp_path))


def test_what_a_kind_cannot_do_is_one_sentence(folder, tmp_path):
    config = generate_config.get_config()
    config.init_from = str(folder / 'lm')
    refusals = [(generate, config, 'generate text', 'transformer, lstm')]
    for form in ('hf', 'openai'):
        config = convert_config.get_config()
        config.update(source=str(folder / 'lm'), target=f'{form}:{tmp_path}/{form}')
        refusals.append((convert, config, 'be written in the form of another program', 'transformer'))
    for task, config, ability, able in refusals:
        with pytest.raises(UserError) as caught:
            task.run(config, epath.Path(tmp_path))
        message = str(caught.value)
        assert message.startswith(f"{folder / 'lm'}: A model of kind 'averages' cannot {ability}. ")
        assert message.endswith(f' kind {able}.') and '\n' not in message
    assert not list(tmp_path.iterdir())


def test_a_second_kind_becomes_another_workdir(folder, tmp_path):
    config = convert_config.get_config()
    config.update(source=str(folder / 'classifier'), target=str(tmp_path / 'there'))
    result = convert.run(config, epath.Path(tmp_path) / 'work')
    assert result.model == results.read(folder / 'classifier').model
    (one, given), (other, back) = (read(str(path)) for path in (folder / 'classifier', tmp_path / 'there'))
    assert_same_bits(back, given)
    assert other.architecture == one.architecture and other.head == one.head
