"""An LSTM taken through the tasks: pre-trained, stopped and resumed, fine-tuned on every kind of input, evaluated, read
aloud; and what it cannot do."""

import json
import random

import numpy as np
import pytest
from etils import epath

import reference
import runs
from configs import convert as convert_config, generate as generate_config
from gpt1_jax.data.tokenizers import UNKNOWN_ID
from gpt1_jax.errors import STOPPED_EXIT_STATUS, UserError
from gpt1_jax.report import results
from gpt1_jax.tasks import convert, evaluate, evaluate_text, finetune, generate, pretrain
from gpt1_jax.training import loop
from helpers import SUBJECTS, checksums, sentence
from models import assert_same_bits, read

pytestmark = pytest.mark.slow

SIZES = dict(layers=1, width=16, units=24, n_positions=32)


@pytest.fixture(scope='module', autouse=True)
def _one_device():
    with runs.on_one_device(evaluate, evaluate_text, finetune, generate, pretrain):
        yield


def pretraining(folder):
    config = runs.pretraining(folder, 'tiny_lstm')
    config.model.update(SIZES)
    return config


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Data; `lm`, a language model; `pairs`, a labelled set of two texts."""
    folder, rng = epath.Path(tmp_path_factory.mktemp('lstm')), random.Random(1)
    runs.write_data(folder)
    (folder / 'pairs').mkdir()
    for split, n in (('train', 40), ('dev', 16)):
        subjects = [rng.choices(list(SUBJECTS), k=2) for _ in range(n)]
        entries = (
            dict(a=sentence(rng, one), b=sentence(rng, other), label=str(one == other)) for one, other in subjects
        )
        (folder / 'pairs' / f'{split}.jsonl').write_text('\n'.join(map(json.dumps, entries)))
    pretrain.run(pretraining(folder), folder / 'lm')
    return folder


def finetuning(folder, kind):
    config = (
        runs.stories(folder, folder / 'lm') if kind == 'multiple_choice' else runs.finetuning(folder, folder / 'lm')
    )
    config.data.epochs = 1.0
    if kind in ('entailment', 'similarity'):
        config.data.update(source=f'files:{folder}/pairs', kind=kind, fields='a,b', labels='True,False')
    return config


def test_the_workdir_says_what_it_is(folder):
    description = json.loads((folder / 'lm' / 'model.json').read_text())
    assert (description['kind'], description['architecture']) == ('lstm', SIZES)
    config = json.loads((folder / 'lm' / 'config.json').read_text())['model']
    assert config.items() >= dict(kind='lstm', **SIZES).items() and not config.keys() & {'heads', 'mlp_width'}
    parameters = 320 * 16 + 4 * 24 * (16 + 24 + 1) + 25 * 16
    assert results.read(folder / 'lm').model == dict(kind='lstm', sizes=SIZES, parameters=parameters, tokens_seen=2048)
    losses = runs.losses(folder / 'lm')
    assert len(losses) == 8 and losses[-1] < losses[0] - 0.01


@pytest.mark.parametrize('stops', [(3,), (1, 4, 6)])
def test_where_a_run_is_stopped_makes_no_difference(folder, tmp_path, monkeypatch, stops):
    for stop in stops:
        monkeypatch.setattr(loop.PreemptionGuard, 'should_stop', lambda self, step: step == stop)
        with pytest.raises(SystemExit) as caught:
            pretrain.run(pretraining(folder), epath.Path(tmp_path))
        assert caught.value.code == STOPPED_EXIT_STATUS
    monkeypatch.undo()
    again = pretrain.run(pretraining(folder), epath.Path(tmp_path))
    assert again.scores == results.read(folder / 'lm').scores
    assert runs.losses(tmp_path) == runs.losses(folder / 'lm')
    assert checksums(tmp_path, 8) == checksums(folder / 'lm', 8)


@pytest.mark.parametrize('kind', ['classification', 'entailment', 'similarity', 'multiple_choice'])
def test_every_kind_of_input_is_finetuned(folder, tmp_path, kind):
    """The model that is left scores its dev set as the run did."""
    config = finetuning(folder, kind)
    result = finetune.run(config, epath.Path(tmp_path) / 'run')
    losses = runs.losses(tmp_path / 'run')
    assert np.isfinite(losses).all() and result.model['kind'] == 'lstm' and result.model['tokens_seen'] == 2048
    evaluation = runs.evaluation(folder, tmp_path / 'run')
    evaluation.data.update({name: value for name, value in config.data.items() if name in evaluation.data})
    again = evaluate.run(evaluation, epath.Path(tmp_path) / 'evaluation')
    assert again.value(metric='accuracy') == result.value(checkpoint='best', metric='accuracy')


@pytest.mark.parametrize('n_transfer', [None, 1, 0, -1])
def test_n_transfer(folder, tmp_path, n_transfer):
    """With rate 0 the parameters stay as they were at the beginning."""
    config = finetuning(folder, 'classification')
    config.n_transfer, config.optimizer.learning_rate, config.data.epochs = n_transfer, 0.0, 0.2
    finetune.run(config, epath.Path(tmp_path))
    source, made = read(str(folder / 'lm'))[1]['decoder'], read(str(tmp_path))[1]['decoder']
    source['table'], special = np.concatenate([source['table'], made['table'][320:]]), made['table'][320:]
    same = {name for name in made if np.array_equal(made[name], source[name]) and name not in ('bias', 'out_bias')}
    kernels = {'in_kernel', 'recurrent_kernel', 'out_kernel'}
    assert same == {None: kernels | {'table'}, 1: kernels | {'table'}, 0: {'table'}, -1: set()}[n_transfer]
    assert special.shape == (3, 16) and special.any()


@pytest.fixture(scope='module')
def trained(folder):
    """(tokenizer, float64 parameters) of the language model."""
    saved, params = read(str(folder / 'lm'))
    return saved.tokenizer, {name: array.astype(np.float64) for name, array in params['decoder'].items()}


def test_a_text_is_scored_as_the_loop_scores_it(folder, tmp_path, trained):
    tokenizer, params = trained
    text = 'the ship and the sail were near the wave.'
    (tmp_path / 'text.txt').write_text(text)
    config = runs.text_evaluation(folder, folder / 'lm')
    config.data.source = f'text:{tmp_path}/text.txt'
    result = evaluate_text.run(config, epath.Path(tmp_path) / 'run')
    ids = [tokenizer.end_id, *tokenizer.encode_batch([text])[0]]
    assert result.facts['tokens'] == len(ids) - 1 < 32
    log_probabilities = reference.log_softmax(reference.lstm_forward(params, ids[:-1]) @ params['table'].T)
    expected = sum(row[target] for row, target in zip(log_probabilities, ids[1:]))
    assert result.value(metric='log_probability') == pytest.approx(expected, rel=1e-5)


def test_text_is_generated_as_the_loop_generates_it(folder, tmp_path, trained):
    tokenizer, params = trained
    config = generate_config.get_config()
    config.update(dict(init_from=str(folder / 'lm'), prompt='the ship', temperature=0.0, max_tokens=12, stop='never'))
    ids = list(tokenizer.encode_batch(['the ship'])[0])
    for _ in range(12):
        logits = params['table'] @ reference.lstm_forward(params, ids)[-1]
        logits[UNKNOWN_ID] = -np.inf
        ids.append(int(logits.argmax()))
    made = generate.run(config, epath.Path(tmp_path) / 'greedy')[0]
    assert 'the ship' + made['text'] == tokenizer.decode(np.array(ids))


def test_samples_do_not_depend_on_their_batch_or_the_stream(folder, tmp_path, capsys):
    config = generate_config.get_config()
    config.update(dict(init_from=str(folder / 'lm'), max_tokens=20, top_p=0.9, seed=4))
    (tmp_path / 'prompts.txt').write_text('the ship\nthe cow and the plough were near\n\nstorm\n')
    config.prompts = str(tmp_path / 'prompts.txt')
    together = generate.run(config, epath.Path(tmp_path) / 'all')
    capsys.readouterr()
    for number, row in enumerate(together):
        config.update(dict(prompts='', prompt=row['prompt']))
        assert generate.run(config, epath.Path(tmp_path) / str(number)) == [row]
        assert capsys.readouterr().out == row['prompt'] + row['text'] + '\n'


@pytest.mark.parametrize('form', ['hf', 'openai'])
def test_other_programs_have_no_form_for_it(folder, tmp_path, form):
    config = convert_config.get_config()
    config.update(source=str(folder / 'lm'), target=f'{form}:{tmp_path}/there')
    with pytest.raises(UserError) as caught:
        convert.run(config, epath.Path(tmp_path))
    what = "A model of kind 'lstm' cannot be written in the form of another program"
    assert str(caught.value) == f'{folder / "lm"}: {what}. Use a model of kind transformer.'
    assert not list(tmp_path.iterdir())


def test_it_becomes_another_workdir(folder, tmp_path):
    config = convert_config.get_config()
    config.update(source=str(folder / 'lm'), target=str(tmp_path / 'there'))
    convert.run(config, epath.Path(tmp_path) / 'work')
    assert_same_bits(*(read(str(path))[1] for path in (folder / 'lm', tmp_path / 'there')))


def test_a_transformer_does_not_go_on_from_it(folder, tmp_path):
    config = runs.pretraining(folder)
    config.init_from = str(folder / 'lm')
    with pytest.raises(
        UserError, match='^model.kind: transformer is not that of .* of kind lstm: tiny_lstm, small_lstm,'
    ):
        pretrain.run(config, epath.Path(tmp_path))
