"""The whole program from the command line: prepare, pre-train, resume, fine-tune; and a user's mistakes."""

import json
import random
import signal

import numpy as np
import pytest
from etils import epath

from gpt1_jax.report import results
from helpers import checksums, run, sentence

NOT_WHOLE = '--config.seed=x: This is not a whole number. Write it like 64, 1_000_000 or 1e9.'
NO_FLAG_FILE = (
    '--flagfile: The file cannot be read (Unable to open flagfile: [Errno 2] No such file or directory: '
    "'/nowhere'). Name a file with one flag per line."
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Books to pre-train on, and a labelled set (which subject?) of a few hundred lines."""
    folder, rng = tmp_path_factory.mktemp('program'), random.Random(0)
    (folder / 'books').mkdir()
    for number in range(6):
        subject = ('sea', 'farm')[number % 2]
        (folder / 'books' / f'{number}.txt').write_text('\n'.join(sentence(rng, subject) for _ in range(400)))
    (folder / 'labelled').mkdir()
    for split, n in (('train', 300), ('dev', 100)):
        rows = [(sentence(rng, label), label) for label in rng.choices(('sea', 'farm'), k=n)]
        lines = [json.dumps({'text': text, 'label': label}) for text, label in rows]
        (folder / 'labelled' / f'{split}.jsonl').write_text('\n'.join(lines))
    return folder


def pretrain_flags(folder, workdir):
    return [
        'pretrain.py:tiny',
        f'--workdir={folder / workdir}',
        f'--config.data.source=shards:{folder / "shards"}',
        '--config.model.layers=2',
        '--config.model.width=32',
        '--config.model.mlp_width=64',
        '--config.model.n_positions=32',
        '--config.data.batch_size=8',
        '--config.data.tokens=30720',
        '--config.optimizer.warmup_steps=10',
        '--config.optimizer.learning_rate=0.01',
        '--config.log.every=10',
        '--config.log.eval_every=40',
        '--config.checkpoint.every=20',
    ]


@pytest.fixture(scope='module')
def shards(folder):
    run(
        'prepare.py',
        f'--config.data.source=text:{folder / "books"}',
        f'--config.data.output={folder / "shards"}',
        '--config.data.vocab_size=400',
        '--config.data.workers=2',
        f'--workdir={folder / "prepare"}',
    )
    return folder / 'shards'


@pytest.fixture(scope='module')
def language_model(folder, shards):
    run(*pretrain_flags(folder, 'whole'))
    return folder / 'whole'


def result_of(workdir):
    return results.read(epath.Path(workdir))


def metrics(workdir):
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return [line | {'time': None, 'tokens_per_second': None} for line in lines]


def test_pretraining_learns(language_model):
    result = result_of(language_model)
    last, best = (list(result.select(split='valid', metric='loss', checkpoint=which)) for which in ('last', 'best'))
    assert result.facts['steps'] == last[0].step == best[0].step == 120
    # A multiplication and an addition a parameter, forward once and backward twice, and less for attention.
    assert 1 < result.facts['flops'] / (6 * result.model['parameters'] * result.facts['tokens']) < 1.3
    evaluations = [line['valid_loss'] for line in metrics(language_model) if 'valid_loss' in line]
    assert len(evaluations) == 3 and evaluations[-1] == last[0].value == best[0].value == min(evaluations)
    # A uniform guess over the vocabulary has 400.
    assert result.value(metric='perplexity', checkpoint='last') < 100
    assert any(path.name.startswith('events') for path in (language_model / 'tensorboard').iterdir())


def finetune_flags(folder, language_model, workdir):
    return [
        'finetune.py:custom',
        f'--workdir={folder / workdir}',
        f'--config.init_from={language_model}',
        f'--config.data.source=files:{folder / "labelled"}',
        '--config.data.kind=classification',
        '--config.data.fields=text',
        '--config.data.labels=sea,farm',
        '--config.data.epochs=12',  # half of them are too few for some seeds
        '--config.optimizer.learning_rate=0.01',
    ]


def test_finetuning_from_the_command_line(folder, language_model):
    flags = finetune_flags(folder, language_model, 'classifier')
    run(*flags)
    result = result_of(folder / 'classifier')
    assert result.facts['train_examples'] == 300 and result.facts['dev_examples'] == 100
    (last,), (best,) = (result.select(split='dev', metric='accuracy', checkpoint=which) for which in ('last', 'best'))
    assert last.step == 108 and best.value > 0.9
    before = metrics(folder / 'classifier')
    run(*flags)  # nothing is left to do, and nothing changes
    assert metrics(folder / 'classifier') == before
    assert result_of(folder / 'classifier') == result


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (['--config.data.sorce=x'], 'Did you mean source?'),
        (['--config.data.source=files:/nowhere'], '/nowhere'),
        (['--config.data.fields=body'], "'body'"),
        (['--config.data.labels=sea,town'], "'farm'"),
        (['--config.init_from=/nowhere'], '/nowhere'),
        (['--config.mesh.shape=(3,1,1)'], 'does not fit 2 devices'),
        (['--config.mesh.strategy=ddp'], 'dp, fsdp, tp'),
        (['--config.n_transfer=5'], 'must be from -1'),
        (['--config.data.max_length=33'], "more than the model's 32 positions"),
        (['--config.data.eval_batch_size=0'], 'at least 1'),
        (['--config.seed=-1'], 'seed: -1 is not valid. It must be from 0 to 4,294,967,295.'),
        (['--config.task=finetun'], "no task 'finetun'"),
    ],
)
def test_mistakes_end_in_one_sentence(folder, language_model, changes, message):
    _, error = run(*finetune_flags(folder, language_model, 'mistake'), *changes, status=2)
    last = error.splitlines()[-1]
    assert last.startswith('error: ') and message in last and 'Traceback' not in error


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (
            ['pretrain.py', '--config.optimiser.learning_rate=1'],
            'optimiser: The config has no such key. Did you mean optimizer?',
        ),
        (['generate.py', '--config.seed=x'], NOT_WHOLE),
        (
            ['pretrain.py', '--config.optimizer.learning_rate=nan'],
            'optimizer.learning_rate: nan is not valid. It must be more than 0.',
        ),
        (['generate.py', '--flagfile=/nowhere'], NO_FLAG_FILE),
        (['prepare.py:huge'], "configs/prepare.py: It takes no argument. Leave ':huge' out."),
        (
            ['pretrain.py:huge'],
            "size: 'huge' is unknown. Choose one of tiny, small, gpt1, tiny_lstm, small_lstm, lstm, gpt1_large_batch.",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line_of_standard_error(flags, message):
    assert run(*flags, status=2) == ('', f'error: {message}\n')


def test_an_error_of_the_system_that_nothing_handles_is_one_sentence(monkeypatch, capsys):
    from gpt1_jax import main

    def fail(argv):
        open('/nowhere')

    monkeypatch.setattr(main, 'main', fail)
    with pytest.raises(SystemExit) as caught:
        main._run([])
    assert caught.value.code == 2 and 'error: /nowhere: It cannot be read or written (No such file or directory). ' in (
        capsys.readouterr().err
    )


def test_a_warning_is_said_once_in_a_run(tmp_path, monkeypatch, caplog):
    """The data are read to count them, to encode them and to show them; what is odd about them is odd each time."""
    from configs import report as report_config
    from gpt1_jax import main
    from gpt1_jax.tasks import report

    def task(config, workdir):
        for what in ('dev', 'dev', 'train'):
            main.logging.warning('%s: odd', what)
            main.logging.info('%s: read', what)

    monkeypatch.setattr(report, 'run', task)
    config = report_config.get_config()
    for _ in range(2):
        caplog.clear()
        with caplog.at_level('INFO', logger='absl'):
            main.run_task(config, str(tmp_path / 'run'))
        said = [record.getMessage() for record in caplog.records]
        assert said == ['dev: odd', 'dev: read', 'dev: read', 'train: odd', 'train: read']


@pytest.mark.parametrize(('number', 'ends'), [('SIGINT', KeyboardInterrupt), ('SIGTERM', SystemExit)])
def test_ctrl_c_does_not_end_the_session_of_python_that_called_a_task(tmp_path, monkeypatch, number, ends):
    from configs import report as report_config
    from gpt1_jax import main
    from gpt1_jax.evaluation.journal import resumable
    from gpt1_jax.tasks import report

    def step(batch):
        if batch == 1:
            signal.raise_signal(getattr(signal, number))
        return batch

    def keep(number, output):
        return np.array([output], np.float32)

    def task(config, workdir):
        with resumable(workdir) as watch:
            return [int(one[0]) for one in watch().each(step, lambda start: range(start, 4), keep)]

    monkeypatch.setattr(report, 'run', task)
    monkeypatch.setattr(main.stopping, 'taken', [])
    with pytest.raises(ends) as stopped:
        main.run_task(report_config.get_config(), str(tmp_path / 'run'))
    if ends is KeyboardInterrupt:
        assert str(stopped.value) == 'Stopped. Run the same command again to resume.'
    else:
        assert stopped.value.code == 75
    assert main.run_task(report_config.get_config(), str(tmp_path / 'run')) == [0, 1, 2, 3]


def test_ctrl_c_leaves_no_halves_of_packages_in_the_session_of_python(tmp_path, monkeypatch):
    """An import that it cuts off cannot be made again: numpy then ends in a RecursionError."""
    from configs import report as report_config
    from gpt1_jax import files, main
    from gpt1_jax.tasks import report

    ended, module = [], files.importlib.import_module

    def slow(name):
        signal.raise_signal(signal.SIGINT)
        ended.append(name)
        return module(name)

    monkeypatch.setattr(report, 'run', lambda config, workdir: 'done')
    former = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(main.importlib, 'import_module', slow)
        main.run_task(report_config.get_config(), str(tmp_path / 'run'))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files.importlib, 'import_module', slow)
        files.import_package('json', 'nothing is read')
    assert ended == ['gpt1_jax.tasks.report', 'json'] and signal.getsignal(signal.SIGINT) == former
    assert main.run_task(report_config.get_config(), str(tmp_path / 'run')) == 'done'


def test_how_a_task_computes_is_set_between_its_import_and_its_run(tmp_path, monkeypatch):
    """Before the import there may be no JAX to set it for. Log lines are shown from before it."""
    from configs import report as report_config
    from gpt1_jax import main
    from gpt1_jax.tasks import report

    order, import_module = [], main.importlib.import_module
    monkeypatch.setattr(main.importlib, 'import_module', lambda name: order.append('import') or import_module(name))
    monkeypatch.setattr(main.logs, 'show', lambda: order.append('show'))
    monkeypatch.setattr(main, 'compute_in_this_thread', lambda: order.append('set'))
    monkeypatch.setattr(report, 'run', lambda config, workdir: order.append('run'))
    main.run_task(report_config.get_config(), str(tmp_path / 'run'))
    assert order == ['show', 'import', 'set', 'run']


def test_a_workdir_of_another_config_is_refused_and_kept(folder, language_model):
    before = checksums(language_model, 120)
    _, error = run(*pretrain_flags(folder, 'whole'), '--config.seed=1', status=2)
    assert 'seed: 0 there, 1 now' in error.splitlines()[-1]
    assert checksums(language_model, 120) == before


def test_a_sequence_longer_than_the_positions_is_cut_and_counted(folder, language_model):
    long = folder / 'long'
    long.mkdir()
    for split in ('train', 'dev'):
        rows = [
            {'text': 'the ship and the cow ' * (30 if i == 0 else 1), 'label': ('sea', 'farm')[i % 2]}
            for i in range(40)
        ]
        (long / f'{split}.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    _, error = run(
        *finetune_flags(folder, language_model, 'cut'), f'--config.data.source=files:{long}', '--config.data.epochs=1'
    )
    facts = result_of(folder / 'cut').facts
    assert facts['cut_sequences'] == 2 and facts['cut_tokens'] > 100
    assert 'were cut' in error
