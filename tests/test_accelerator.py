"""The visit to an accelerator, rehearsed: folders are packed and joined, parts fail alone, and all runs at a tiny size
where most packages are missing."""

import argparse
import contextlib
import importlib.util
import json
import os
import random
import select
import signal
import stat
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest

from benchmarks.accelerator import __main__ as accelerator, measure, pack, step, table
from gpt1_jax.data.corpus.shards import load_shards
from gpt1_jax.data.labelled.token_folder import tokens_splits
from gpt1_jax.data.tokenizers.loading import load_tokenizer
from helpers import ENVIRONMENT, ROOT, SITECUSTOMIZE

FIELDS = {
    'cola': ('sentence',),
    'mrpc': ('sentence1', 'sentence2'),
    'stsb': ('sentence1', 'sentence2'),
    'story_cloze': ('context', 'endings'),
}


@pytest.fixture(scope='module')
def packed(tmp_path_factory):
    """What --pack makes of generated books and data sets."""
    folder, rng = tmp_path_factory.mktemp('visit'), random.Random(0)
    words = [
        ''.join(rng.choice('bdfgklmnprst') + rng.choice('aeiou') for _ in range(rng.randint(1, 4))) for _ in range(900)
    ]
    text = lambda n: ' '.join(rng.choices(words, k=n)) + '.'
    (folder / 'books').mkdir()
    for number in range(20):
        (folder / 'books' / f'{number}.txt').write_text('\n'.join(text(12) for _ in range(600)))
    for name, fields in FIELDS.items():
        (folder / 'tasks' / name).mkdir(parents=True)
        for split, n in (('train', 80), ('dev', 30), ('validation', 90)):
            if (split == 'validation') != (name == 'story_cloze'):
                continue
            rows = [{field: text(6) for field in fields} | {'label': rng.randint(0, 1)} for _ in range(n)]
            for row in rows:
                if name == 'stsb':
                    row['label'] = rng.uniform(0, 5)
                if name == 'story_cloze':
                    row |= {'endings': [text(4), text(4)], 'label': rng.randint(1, 2)}
            (folder / 'tasks' / name / f'{split}.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    options = argparse.Namespace(
        pack=folder / 'pack',
        source=f'text:{folder / "books"}',
        data=folder / 'tasks',
        vocab_size=500,
        mib=0.4,
        max_length=128,
        sets=','.join(FIELDS),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, '_WHEELS', {})  # no network
        patch.setattr(pack, '_TOKENS_PER_SHARD', 2**15)
        pack.pack(options)
    return folder


@pytest.fixture(scope='module')
def data(packed):
    pack.unpack(packed / 'pack', packed / 'data')
    return packed / 'data'


def test_what_is_unpacked_is_what_was_packed(packed, data):
    for number in (1, 2):
        folder = packed / 'pack' / f'pack-{number}'
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 0.4 * 2**20
    whole, part = load_shards(packed / 'pack' / 'prepared' / 'shards'), load_shards(data / 'shards')
    part.verify()
    kept = part.splits['train'].tokens
    assert 2**15 < kept < whole.splits['train'].tokens  # both folders hold books, and not all fit
    np.testing.assert_array_equal(part.splits['train'].read([0], kept), whole.splits['train'].read([0], kept))
    np.testing.assert_array_equal(part.splits['valid'].read([0], 900), whole.splits['valid'].read([0], 900))
    end_id = load_tokenizer(data / 'shards' / 'tokenizer').end_id
    assert part.splits['train'].documents == np.sum(part.splits['train'].read([0], kept) == end_id)
    assert {name: tokens_splits(data / 'tokens' / name) for name in FIELDS} == dict.fromkeys(FIELDS, ['train', 'dev'])


def test_what_fits_in_one_folder_leaves_no_second_of_before(packed, data, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, '_WHEELS', {})
    shards = packed / 'pack' / 'prepared' / 'shards'
    options = argparse.Namespace(pack=tmp_path, source=f'shards:{shards}', data=None, sets='', mib=0.4, max_length=128)
    for mib in (0.4, 60):
        options.mib = mib
        pack.pack(options)
    pack.unpack(tmp_path, tmp_path / 'out')
    train, whole = (load_shards(place).splits['train'].tokens for place in (tmp_path / 'out' / 'shards', shards))
    assert train == whole


def test_the_first_folder_can_be_used_alone_and_the_second_not(packed, data, tmp_path):
    pack.unpack(packed / 'pack' / 'pack-1', tmp_path / 'one')
    one = load_shards(tmp_path / 'one' / 'shards')
    one.verify()
    assert 0 < one.splits['train'].tokens < load_shards(data / 'shards').splits['train'].tokens
    with pytest.raises(SystemExit, match='Also unpack pack-1 here'):
        pack.unpack(packed / 'pack' / 'pack-2', tmp_path / 'two')
    with pytest.raises(SystemExit, match='no manifest.json'):
        pack.unpack(tmp_path, tmp_path / 'three')


@pytest.mark.parametrize('damage', ['flip', 'cut', 'remove', 'climb'])
def test_damaged_folders_are_named(packed, tmp_path, damage):
    copy = tmp_path / 'pack-1'
    copy.mkdir()
    for path in (packed / 'pack' / 'pack-1').iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    target = copy / '003.xz'
    content = bytearray(target.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == 'flip':
        target.write_bytes(content)
    elif damage == 'cut':
        target.write_bytes(content[:-20])
    elif damage == 'remove':
        target.unlink()
    else:
        manifest = json.loads((copy / 'manifest.json').read_text())
        manifest['files'][3]['path'] = '../../outside'
        (copy / 'manifest.json').write_text(json.dumps(manifest))
    message = "'../../outside' leads out of" if damage == 'climb' else '003.xz: The file is missing or damaged'
    with pytest.raises(SystemExit, match=message):
        pack.unpack(tmp_path, tmp_path / 'out')
    assert not (tmp_path / 'outside').exists()


def test_a_crash_and_a_part_without_end_do_not_end_the_others(tmp_path, monkeypatch):
    fake = tmp_path / 'python'  # in place of the interpreter that runs a part
    fake.write_text(
        """#!/bin/sh
case "$*" in
*run_part=ceilings*) kill -SEGV $$;;
*run_part=right*) echo '{"dropout_masks": {"ok": true, "different": 0, "piece_s": 1}}' > OUT/right.json; sleep 600;;
*run_part=step*) echo '{"scan": {"error": "it did not finish"}}' > OUT/step.json;;
*) exit 3;;
esac
""".replace('OUT', str(tmp_path))
    )
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, 'executable', str(fake))
    monkeypatch.setattr(accelerator, '_RESERVE', 0)
    accelerator.run_parts(
        argparse.Namespace(out=tmp_path, minutes=0.1, parts='ceilings,right,step,use', size='tiny', data=None)
    )
    status = {
        name: json.loads((tmp_path / f'{name}.json').read_text())['status']
        for name in ('ceilings', 'right', 'step', 'use')
    }
    assert status == {
        'ceilings': 'failed with status -11, see log.txt',
        'right': 'out of time',
        'step': 'done',
        'use': 'failed with status 3, see log.txt',
    }
    text = (tmp_path / 'table.md').read_text()
    assert '| dropout_masks |  | 0 |  | right |' in text  # what was measured before the end stays
    assert 'it did not finish' in text


def test_a_signal_ends_the_part_and_what_is_finished_is_written(tmp_path, monkeypatch):
    fake = tmp_path / 'python'
    report = '{"scan": {"error": "e", "piece_s": 1}}'
    fake.write_text(f"#!/bin/sh\necho '{report}' > {tmp_path}/step.json; sleep 600\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, 'executable', str(fake))
    started, start = [], subprocess.Popen

    def start_and_keep(*arguments, **options):
        started.append(start(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, 'Popen', start_and_keep)

    def stop():
        while not (started and (tmp_path / 'step.json').exists()):
            time.sleep(0.01)
        time.sleep(0.2)  # until it waits for the part; before, the part itself would notice
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    former = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match='SIGTERM: Stopped'):
        accelerator.run_parts(argparse.Namespace(out=tmp_path, minutes=5, parts='step,use', size='tiny', data=None))
    assert started[0].returncode == -signal.SIGTERM and len(started) == 1 and signal.getsignal(signal.SIGTERM) == former
    assert '## step (killed)' in (tmp_path / 'table.md').read_text()
    assert json.loads((tmp_path / 'results.json').read_text()).keys() == {'step'}


def test_pytorch_s_side_of_the_card_imports_no_jax():
    program = 'import sys, benchmarks.accelerator.peer; print(sorted({"jax", "flax", "numpy"} & sys.modules.keys()))'
    done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == '[]\n'


def test_a_part_ends_when_what_started_it_was_killed():
    part = 'import os, threading, time; from benchmarks.accelerator import __main__ as main\n'
    part += 'threading.Thread(target=main._end_with, args=(os.getppid(),), daemon=True).start(); print(os.getpid())\n'
    part += 'import sys; sys.stdout.flush(); time.sleep(60)'
    runner = f'import subprocess, sys, time; subprocess.Popen([sys.executable, "-c", {part!r}], start_new_session=True)'
    with subprocess.Popen(
        [sys.executable, '-c', f'{runner}; time.sleep(60)'], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        number = int(process.stdout.readline())
        process.kill()
        ready, *_ = select.select([process.stdout], [], [], 30)  # its other end is closed when both are gone
        try:
            assert ready and process.stdout.readline() == ''
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(number, signal.SIGKILL)


def test_what_is_missing_is_named_before_the_first_part(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name: None if name in ('ml_collections', 'jax_triton') else find(name)
    )
    monkeypatch.setattr(sys, 'argv', ['accelerator', f'--out={tmp_path}/out', '--parts=right,step'])
    with pytest.raises(SystemExit):
        accelerator.main()
    assert 'ml-collections: Not installed. Install it with pip install ml-collections' in capsys.readouterr().err
    for name in ('ml_collections', 'jax_triton'):
        (tmp_path / 'data' / 'packages' / name).mkdir(parents=True)
        (tmp_path / 'data' / 'packages' / name / '__init__.py').touch()
    ran = []
    monkeypatch.setattr(accelerator, 'run_parts', ran.append)
    monkeypatch.setattr(sys, 'argv', [*sys.argv, f'--data={tmp_path}/data'])
    accelerator.main()
    carried = accelerator.environment('step', ran[0])['PYTHONPATH'].split(os.pathsep)[0]
    assert carried == f'{tmp_path}/data/packages'
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'jax_triton' else find('json'))
    assert accelerator.environment('step', ran[0])['PYTHONPATH'].startswith(carried)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: find('json'))
    assert carried not in accelerator.environment('step', ran[0]).get('PYTHONPATH', '')


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        (['--out=x', '--parts='], "There is no part ''. Choose from"),
        (['--out={file}/x'], 'x: The folder cannot be made (Not a directory). Name another.'),
        (['--pack={file}', '--sets=colaa'], "--sets: 'colaa' is unknown. Choose one of cola,"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, monkeypatch, capsys, flags, words):
    (tmp_path / 'file').touch()
    flags = [flag.format(file=tmp_path / 'file') for flag in flags]
    monkeypatch.setattr(sys, 'argv', ['accelerator', *flags])
    with pytest.raises(SystemExit) as ended:
        accelerator.main()
    assert words in f'{ended.value}{capsys.readouterr().err}'


def test_the_fastest_form_is_known_before_the_last_is_measured(tmp_path, monkeypatch):
    context, rates = measure.Context('step', 'tiny', tmp_path, None, time.time() + 100), iter((3.0, 5.0))
    model = types.SimpleNamespace(n_positions=8, attention='xla')
    made = types.SimpleNamespace(model=model, compile=lambda **options: ('step', 1.0))
    monkeypatch.setattr(step.program, 'pretraining', lambda *args, **options: made)
    monkeypatch.setattr(step, 'planned', lambda compiled: {'memory_gb': 1.0})
    monkeypatch.setattr(step, 'training_rounds', lambda made, compiled: (None, []))
    monkeypatch.setattr(step, 'rounds', lambda run, seconds: [1.0])
    monkeypatch.setattr(step, 'machine', dict)

    def speed(made, tokens, times):
        return {'tokens_per_s': {'median': next(rates), 'min': 1, 'max': 9}, 'mfu': None, 'step_ms': 1.0}

    monkeypatch.setattr(step, 'speed', speed)
    step.run(context)  # the third form, and all later ones, fail
    report = context.earlier('step')
    second = [name for name, (*_, options) in step.FORMS.items() if not options][1]
    assert report['fastest'] == second and 'StopIteration' in report['scan']['error']
    assert '| xla |' in table.table({'step': report})


def test_what_is_not_a_number_can_be_shown():
    piece = {'compared': 'x', 'relative': 'nan', 'allowed': 0.1, 'ok': False, 'piece_s': 1}
    assert '| golden | x | nan | 0.1 | WRONG |' in table.table({'right': {'golden': piece}})


def test_a_piece_s_failure_is_noted_and_the_next_piece_runs(tmp_path):
    context = measure.Context('right', 'gpt1', tmp_path, None, time.time() + 100)
    with context.attempt('memory'):
        raise MemoryError('no more\nsecond line')
    with context.attempt('long'):
        context.need(1000)
    with context.attempt('good') as piece:
        piece['ok'] = True
        assert context.earlier('right')['good'] == {'error': 'it did not finish'}  # if it were ended here
    report = context.earlier('right')
    assert report['memory']['error'] == 'MemoryError: no more' and 'needs about 1000 s' in report['long']['skipped']
    assert report['good']['ok'] and 'error' not in report['good']
    assert table._fault(report['long']) == report['long']['skipped']


def test_relative_errors():
    tree = {'a': np.array([1.0]), 'b': np.array([30.0, 45.0])}
    reference = {'a': np.array([2.0]), 'b': np.array([30.0, 40.0])}
    error = measure.relative_error(tree, reference)
    assert error['relative'] == pytest.approx((26 / 2504) ** 0.5)
    assert (error['worst_leaf'], error['worst_leaf_name']) == (0.5, 'a')


def test_a_resumed_run_is_only_wrong_where_two_equal_runs_are_equal():
    piece = {'compared': 'bits', 'ok': False, 'piece_s': 1}
    report = lambda equal: {'status': 'done', 'seconds': 1, 'resumed': piece | {'two_equal_runs_are_equal': equal}}
    lines = lambda equal: table.table({'right': report(equal)}).splitlines()
    assert '| resumed | bits |  |  | WRONG |' in lines(True)
    assert '| resumed | bits |  |  | differs, as two equal runs do |' in lines(False)


@pytest.mark.rehearsal
def test_the_whole_visit_at_a_tiny_size(data, tmp_path):
    (tmp_path / 'hide').mkdir()
    (tmp_path / 'hide' / 'sitecustomize.py').write_text(SITECUSTOMIZE)
    environment = ENVIRONMENT | {'PYTHONPATH': str(tmp_path / 'hide')}
    environment['XLA_FLAGS'] = environment['XLA_FLAGS'].replace('device_count=2', 'device_count=1')
    done = subprocess.run(
        [
            sys.executable,
            '-m',
            'benchmarks.accelerator',
            '--minutes=5',
            '--size=tiny',
            f'--out={tmp_path / "out"}',
            f'--data={data}',
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    reports = {name: json.loads((tmp_path / 'out' / f'{name}.json').read_text()) for name in accelerator.PARTS}
    log = (tmp_path / 'out' / 'log.txt').read_text()
    # The last part uses all the time that is left, and may be ended in a run.
    assert {report['status'] for name, report in reports.items() if name != 'paper'} == {'done'}, log
    assert reports['ceilings']['copy']['gb_per_s']['median'] > 0
    checks = {name: piece for name, piece in reports['right'].items() if isinstance(piece, dict)}
    assert all(piece.get('ok', name in ('gradients_highest', 'mesh')) for name, piece in checks.items()), checks
    assert len(checks) == 8
    forms = [piece for piece in reports['step'].values() if isinstance(piece, dict) and 'compile_s' in piece]
    assert len(forms) == 4 and all(form['tokens_per_s']['median'] > 0 and form['memory_gb'] > 0 for form in forms)
    kernels = reports['profile']['profile']['kernels']
    assert len(kernels) == 20 and 0.2 < sum(kernel['share'] for kernel in kernels) <= 1.001
    assert sum(kernel['gflop'] > 0 for kernel in kernels) > 3
    assert reports['peer'].get('torch') or 'torch eager' in reports['peer']
    pieces = [piece for piece in reports['use'].values() if isinstance(piece, dict)]
    assert len(pieces) == 6 and not any('error' in piece for piece in pieces), pieces
    paper = reports['paper']
    (perplexity,) = (
        score['value']
        for score in paper['pretrain']['result']['scores']
        if (score['metric'], score['checkpoint']) == ('perplexity', 'last')
    )
    assert perplexity < 500 and len(paper['pretrain']['curve']) >= 6
    assert set(paper['finetune']) == set(FIELDS) and not paper.get('faults')
    assert all(len(variants['pre-trained']) > 0 for variants in paper['finetune'].values())
    assert done.stdout.rstrip().endswith((tmp_path / 'out' / 'table.md').read_text().rstrip())
    files = [path for path in (tmp_path / 'out').iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2**24 and 'Traceback' not in log
    assert os.listdir(tmp_path / 'out' / 'compiled')
