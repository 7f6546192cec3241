"""The generate task on a small random model: files, streams, prompts of any length, and a user's mistakes."""

import functools
import io
import json
import os
import random
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from configs.generate import get_config
from gpt1_jax.config import check
from gpt1_jax.errors import DivergedError, UserError
from gpt1_jax.model.decoding import State
from gpt1_jax.tasks import generate
from gpt1_jax.training.partitioning import Partitioner
from helpers import ROOT, WORDS, some_words
from models import SIZES_32 as SIZES, decoder, make, make_model, save_run, write_workdir


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp('run')
    return directory, save_run(directory)[0]


def config_for(saved, **changes):
    config = get_config()
    config.update(dict(init_from=str(saved[0]), max_tokens=12) | changes)
    return config


def results(workdir):
    return [json.loads(line) for line in (workdir / 'generations.jsonl').read_text().splitlines()]


def test_prompts_of_a_file_in_batches_equal_each_alone(saved, tmp_path, capsys):
    rng = random.Random(1)
    prompts = [some_words(rng, n) for n in (1, 9, 2, 5, 3)] + ['']
    (tmp_path / 'prompts.txt').write_text('\n'.join(prompts) + '\n')
    made = generate.run(config_for(saved, prompts=str(tmp_path / 'prompts.txt'), samples=2), tmp_path / 'all')
    assert made == results(tmp_path / 'all') == [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row['prompt'], row['sample']) for row in made] == [(p, s) for p in prompts for s in (0, 1)]
    for i in (1, 5):
        alone = generate.run(config_for(saved, prompt=prompts[i], samples=2), tmp_path / f'{i}')
        assert alone == made[2 * i : 2 * i + 2]
    assert made[0]['text'] != made[1]['text']
    assert all(row['tokens'] == 12 and row['ended_by'] == 'max_tokens' or row['ended_by'] == 'stop' for row in made)


def test_what_is_shown_and_kept_of_a_prompt_is_what_was_read(saved, tmp_path, capsys):
    made = {}
    for number, prompt in enumerate(('ship', 'ship ', ' ship\n\n')):
        config = config_for(saved, prompt=prompt, temperature=0.0, stop='never')
        (made[prompt],) = generate.run(config, tmp_path / str(number))
        assert capsys.readouterr().out == prompt.rstrip() + made[prompt]['text'] + '\n'
        assert made[prompt]['prompt'] == prompt.rstrip() and made[prompt]['text'] == made['ship']['text']


def test_a_stopped_run_goes_on_behind_its_texts(saved, tmp_path, monkeypatch, capsys):
    """What it prints, too, is that of a run that was not stopped; one with another seed begins anew."""
    (tmp_path / 'prompts.txt').write_text('ship\nwave and\n\nbarn\n')
    config, rows, stop_at = config_for(saved, samples=2, batch_size=3), [], None
    config.prompts = str(tmp_path / 'prompts.txt')
    whole, printed = generate.run(config, tmp_path / 'whole'), capsys.readouterr().out

    def counting(*args, maker=generate.maker, **kwargs):
        make = maker(*args, **kwargs)

        def counted(of_batch, *rest):
            if len(rows) == stop_at:
                raise KeyboardInterrupt
            rows.extend(of_batch)
            return make(of_batch, *rest)

        return counted

    monkeypatch.setattr(generate, 'maker', counting)
    for seed, made_again in ((0, 2), (1, 8)):
        rows.clear()
        config.seed, stop_at = 0, 6
        with pytest.raises(KeyboardInterrupt):
            generate.run(config, tmp_path / 'out')
        assert results(tmp_path / 'out') == whole[:6]
        assert not (tmp_path / 'out' / 'results.json').exists()  # the second time, of the run before
        rows.clear()
        capsys.readouterr()
        config.seed, stop_at = seed, None
        made = generate.run(config, tmp_path / 'out')
        assert len(rows) == made_again and made == results(tmp_path / 'out')
        assert seed or (made, capsys.readouterr().out) == (whole, printed)
        assert not list((tmp_path / 'out').glob('*.journal'))


def test_a_stream_shows_the_text_piece_by_piece(saved, tmp_path, monkeypatch):
    """Nearly uniform draws: most tokens are single bytes, which seldom make a character."""
    shown = []
    monkeypatch.setattr(generate, '_print', shown.append)
    monkeypatch.setattr(generate, '_CHUNK', 1)
    for seed in range(3):
        shown.clear()
        made = generate.run(
            config_for(saved, prompt='ship', temperature=1e6, top_p=1.0, seed=seed, stop='never'), tmp_path / str(seed)
        )[0]
        assert ''.join(shown) == 'ship' + made['text'] + '\n'
        assert len(shown) == 2 + made['tokens']


def test_bytes_of_one_character_are_shown_together(saved, monkeypatch):
    """The stream's looks at a text whose tokens are given, one more at each."""
    tokenizer = saved[1]
    prompt, whole = tokenizer.encode_batch(['ship', 'ship \u20ac sail\u00e9'])
    assert len(whole) > len(prompt) + 4  # the vocabulary spells both characters in bytes
    column = lambda value: np.array([value], np.int32)
    first = State(whole[None], column(len(prompt)), column(len(whole)), column(0), ())
    monkeypatch.setattr(
        generate,
        'jit_steps',
        lambda *_: (lambda params, batch: first, lambda params, state, *_: state._replace(lengths=state.lengths + 1)),
    )
    partitioner = Partitioner('dp', devices=jax.devices()[:1])
    make = generate.maker(
        decoder(), {'blocks': {'w': np.zeros((1, 1))}}, tokenizer, partitioner, config_for(saved), places=16, size=1
    )
    shown = []
    make([generate.Row('ship', prompt, 0, len(whole), 'max_tokens')], shown.append)
    assert ''.join(shown) == ' \u20ac sail\u00e9' and len(shown) == len(whole) - len(prompt)
    assert '\u20ac' in shown and '\u00e9' in shown


def test_the_stop_token_ends_a_text_and_leaves_nothing(saved, tmp_path):
    """Nearly uniform draws: one token in 320 is the end of a text."""
    changes = dict(prompt='ship wave', samples=128, temperature=1e6, top_p=1.0)
    stopped, free = (
        generate.run(config_for(saved, **changes, batch_size=64, stop=stop), tmp_path / stop)
        for stop in ('end', 'never')
    )
    assert 0 < sum(row['ended_by'] == 'stop' for row in stopped) < 20
    for row, full in zip(stopped, free):
        assert full['tokens'] == 12 and full['ended_by'] == 'max_tokens'
        if row['ended_by'] == 'stop':
            assert row['tokens'] <= 12 and full['text'].startswith(row['text'].rstrip('\ufffd'))
        else:
            assert row == full


def test_a_vocabulary_without_an_end_token_does_not_stop_unless_asked():
    class Released:
        end_id = newline_id = 7

    assert [generate._stop_id(stop, Released) for stop in ('end', 'newline', 'never')] == [-1, 7, -1]


def test_the_context_cuts_max_tokens(saved, tmp_path):
    row = generate.run(config_for(saved, prompt='ship wave', temperature=0.0), tmp_path / 'a')[0]
    cut = generate.run(
        config_for(saved, prompt='ship wave', temperature=0.0, stop='never', max_tokens=1000), tmp_path / 'b'
    )[0]
    used = len(saved[1].encode_batch(['ship wave'])[0])
    assert cut['ended_by'] == 'context' and cut['tokens'] == SIZES['n_positions'] - used
    assert cut['text'].startswith(row['text'])


@pytest.mark.parametrize(
    ('tokens', 'limit', 'end'), [(10, 30, 'max_tokens'), (12, 32, 'max_tokens'), (31, 32, 'context')]
)
def test_a_prompt_leaves_room_for_one_token_at_least(tokens, limit, end):
    of = types.SimpleNamespace(encode_batch=lambda texts: [np.arange(int(text)) for text in texts])
    rows_of = functools.partial(generate.make_rows, name='prompt', tokenizer=of, context=32, samples=1, max_tokens=20)
    [row] = rows_of(str(tokens))
    assert (row.limit, row.end) == (limit, end)
    with pytest.raises(UserError, match='^prompt: It has 32 tokens, but the model has 32 positions'):
        rows_of('32')


def test_interactive_answers_lines_and_outlives_a_mistake(saved, tmp_path, monkeypatch, capsys):
    lines = ['ship wave\n', ' '.join(WORDS * 9) + '\n', 'barn']
    typed = io.BytesIO(''.join(lines[:2]).encode() + b'\xff\n' + lines[2].encode())
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(typed, encoding='utf-8'))
    assert generate.run(config_for(saved, interactive=True, seed=3), tmp_path / 'talk') == []
    said = capsys.readouterr().out
    expected = [
        generate.run(config_for(saved, prompt=line.strip(), seed=3), tmp_path / str(i))[0]['text']
        for i, line in enumerate(lines)
        if len(line) < 99
    ]
    assert said.startswith(expected[0] + '\nerror: prompt: It has ') and said.endswith(
        'UTF-8. Convert it.\n' + expected[1] + '\n'
    )


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(temperature=-1.0), 'temperature: -1.0 is not'),
        (dict(top_p=0.0), 'top_p: 0.0 is not'),
        (dict(top_p=1e-39), 'top_p: 1e-39 is not'),  # 0 in float32
        (dict(top_p=1.5), 'top_p: 1.5 is not'),
        (dict(top_k=-1), 'top_k: -1'),
        (dict(samples=0), 'samples: 0'),
        (dict(max_tokens=0), 'max_tokens: 0'),
        (dict(batch_size=0), 'batch_size: 0'),
        (dict(samples=2, temperature=0.0), 'samples: All 2 samples would be the same'),
        (dict(stop='dot'), "stop: 'dot' is unknown"),
        (dict(prompt='a', interactive=True), 'one of prompt'),
        (dict(prompt='a\udcff'), 'prompt: The text is not UTF-8'),
        (dict(samples=10**8), '100,000,000 of each prompt are too many'),
        (dict(seed=2**31), 'seed: 2147483648 is not valid'),
        (dict(init_from=''), 'init_from: It is empty'),
        (dict(init_from='/nowhere'), '/nowhere'),
        (dict(prompts='/nowhere.txt'), '/nowhere.txt: The file cannot be read'),
        (dict(prompt=' '.join(WORDS * 9)), 'at most 31 tokens'),
    ],
)
def test_mistakes(saved, tmp_path, changes, message):
    with pytest.raises(UserError, match='.') as caught:
        config = config_for(saved, **changes)
        check(config)
        generate.run(config, tmp_path)
    assert message in str(caught.value) and '\n' not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_model_that_has_diverged_makes_no_text(sentencepiece, tmp_path):
    normal = lambda rng, shape: rng.normal(0, 0.1, shape).astype(np.float32)
    saved, params = make_model(np.random.default_rng(0), sentencepiece, draw=normal)
    params['decoder']['blocks']['mlp']['in']['bias'][1, 3] = np.inf
    write_workdir(make(tmp_path / 'run'), saved, params)
    with pytest.raises(DivergedError, match='run: Its parameters are not all finite'):
        generate.run(config_for([tmp_path / 'run']), tmp_path / 'out')


def test_mistakes_in_files(saved, tmp_path):
    empty, broken, long = (tmp_path / name for name in ('empty', 'broken', 'lon{g}'))
    empty.write_text('\ufeff')
    broken.write_bytes(b'ship\n\xff')
    long.write_text('ship\n' + ' '.join(WORDS * 9))
    for path, message in ((empty, 'is empty'), (broken, 'not UTF-8 at byte 5'), (long, r'lon\{g\}, line 2: ')):
        with pytest.raises(UserError, match=message):
            generate.run(config_for(saved, prompts=str(path)), tmp_path / 'out')
    long.write_text('ship\nwave')
    with pytest.raises(UserError, match='samples: 500,001 of each prompt are too many for one run'):
        generate.run(config_for(saved, prompts=str(long), samples=500_001), tmp_path / 'out')
    (tmp_path / 'bare').mkdir()
    for name in ('model.json', 'tokenizer'):
        os.symlink(saved[0] / name, tmp_path / 'bare' / name)
    with pytest.raises(UserError, match='There is no checkpoint yet'):
        generate.run(config_for(saved, init_from=str(tmp_path / 'bare')), tmp_path / 'out')


def test_prompts_of_a_file(tmp_path):
    for text, expected in (('\n\n\n', ['', '', '']), ('\ufeffship\n\nwave', ['ship', '', 'wave'])):
        (tmp_path / 'prompts').write_text(text)
        config = get_config()
        config.prompts = str(tmp_path / 'prompts')
        assert generate._read_prompts(config) == expected


@pytest.mark.slow
def test_from_the_command_line_without_tensorflow(saved, tmp_path):
    environment = os.environ | {'XDG_CACHE_HOME': str(tmp_path), 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
    del environment['JAX_COMPILATION_CACHE_DIR']
    done = subprocess.run(
        [
            sys.executable,
            '-X',
            'importtime',
            '-m',
            'gpt1_jax.main',
            '--config=configs/generate.py',
            f'--config.init_from={saved[0]}',
            '--config.prompt=ship wave',
            '--config.max_tokens=12',
            f'--workdir={tmp_path / "out"}',
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == 'ship wave' + results(tmp_path / 'out')[0]['text'] + '\n'
    assert ' jax\n' in done.stderr and ' tensorflow\n' not in done.stderr
    assert any((tmp_path / 'gpt1_jax' / 'compiled').iterdir())
