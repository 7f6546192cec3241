"""launch/tpu_vm.sh and worker.sh against a stand-in of gcloud, whose workers are folders of this machine.

The program on a worker is a stand-in too: it runs until the file `finish` says with which status to end, and on SIGTERM
saves and exits with 75. Everything else on a worker is real: the copied tree, preflight.py, the processes.
"""

import os
import re
import shutil
import signal
import time

import pytest

from stand_ins import ROOT, Cloud, StandIns

RUN = ('run', 'configs/pretrain.py', "--config.data.source=shards:gs://bucket/it's books")


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    yield cloud
    cloud.write('finish', 0)  # ends what still runs


@pytest.fixture
def ready(cloud):
    """With a slice that is set up."""
    for number in range(2):
        (cloud.folder / f'vm-0-w-{number}').mkdir()
    cloud.write('state', 'ACTIVE')
    cloud.script('setup')
    return cloud


def test_create_asks_for_the_slice_and_waits(cloud):
    said = cloud.script('create', '--spot')
    assert cloud.tpus('create') == [
        ['books', '--zone=us-west4-a', '--project=mine', '--accelerator-type=v5litepod-16']
        + ['--runtime-version=v2-alpha-tpuv5-lite', '--node-id=books', '--spot']
    ]
    assert '+ gcloud compute tpus queued-resources create books --zone=us-west4-a' in said
    assert re.findall(r'books: (\w+)', said) == ['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE']


@pytest.mark.parametrize(
    'kind, accelerator, version',
    [
        ('v4-8', 'v4-8', 'tpu-ubuntu2204-base'),
        ('v3-32', 'v3-32', 'tpu-ubuntu2204-base'),
        ('v5litepod-8', 'v5litepod-8', 'v2-alpha-tpuv5-lite'),
        ('v5p-8', 'v5p-8', 'v2-alpha-tpuv5'),
        ('v6e-8', 'v6e-8', 'v2-alpha-tpuv6e'),
    ],
)
def test_types_have_their_runtime(cloud, kind, accelerator, version):
    said = cloud.script('create', '--dry-run', f'--type={kind}')
    assert f'--accelerator-type={accelerator} --runtime-version={version} --node-id=books\n' in said
    assert '--runtime-version=mine' in cloud.script('create', '--dry-run', f'--type={kind}', '--version=mine')


def test_a_request_that_fails_is_reported(cloud):
    cloud.write('hook', '[[ $what != *describe ]] || echo FAILED >"$CLOUD/plan"')
    assert 'books: It is not active (see above). Delete the request' in cloud.script('create', status=2)


def test_several_slices(tmp_path):
    cloud = Cloud(tmp_path, slices=2)
    cloud.script('create', NODE_COUNT='2')
    assert cloud.tpus('create')[0][-1] == '--node-count=2'
    cloud.script('setup', NODE_COUNT='2')
    try:
        said = cloud.script(*RUN, NODE_COUNT='2')
        assert {call[0] for call in cloud.calls('gcloud', 'compute', 'tpus', 'tpu-vm', 'describe')} == {
            'books-0',
            'books-1',
        }
        for call in cloud.tpus('ssh') + cloud.tpus('scp'):
            assert {'--node=all', '--worker=all', '--batch-size=all'} <= set(call)
        assert sorted(re.findall(r'(\S+): started', said)) == ['vm-0-w-0', 'vm-0-w-1', 'vm-1-w-0', 'vm-1-w-1']
        (met,) = (cloud.folder / 'gs' / 'bucket' / 'runs' / 'books' / 'preflight').iterdir()
        assert len(list(met.glob('*.json'))) == 4
    finally:
        cloud.write('finish', 0)


def test_setup_replaces_the_tree_on_all_workers_and_keeps_the_environment(ready):
    for worker in ready.workers():
        assert (worker / 'gpt1_jax' / 'gpt1_jax' / 'main.py').read_text() == (
            ready.tree / 'gpt1_jax' / 'main.py'
        ).read_text()
        assert (worker / 'gpt1_jax' / '.commit').read_text() == 'unknown\n'  # here; the tree is no git repository
        (worker / 'gpt1_jax' / 'configs' / 'old.py').touch()
        (worker / 'gpt1_jax' / '.venv' / 'mark').touch()
    installs = lambda: [call for call in ready.calls('python') if call[:4] == ['-m', 'uv', 'pip', 'install']]
    assert [call[-2:] for call in installs()] == [['-e', '.[tpu]']] * 2
    ready.script('setup')
    assert len(installs()) == 2  # nothing changed
    for worker in ready.workers():
        assert not (worker / 'gpt1_jax' / 'configs' / 'old.py').exists()
        assert (worker / 'gpt1_jax' / '.venv' / 'mark').exists()


def unreached(cloud, pattern, what):
    """gcloud leaves out workers of `pattern` when it does `what`, and ends with 0."""
    cloud.write('hook', f"""if [[ $what$command == {what} ]]; then unreached='{pattern}'; fi""")


def test_a_worker_that_the_archive_did_not_reach_keeps_its_tree(ready):
    (ready.tree / 'configs' / 'new.py').touch()
    unreached(ready, 'vm-0-w-1', '*-scp')
    said = ready.script('setup', status=1)
    assert 'vm-0-w-1: gpt1_jax.tar.gz: It is not the archive that was copied. Run setup again.' in said
    first, second = (worker / 'gpt1_jax' / 'configs' for worker in ready.workers())
    assert (first / 'new.py').exists() and (second / 'pretrain.py').exists() and not (second / 'new.py').exists()


@pytest.mark.parametrize('pattern, number', [('vm-0-w-1', 1), ('vm-*', 0)])
@pytest.mark.parametrize(
    'what, words, answer',
    [
        ('*launch/worker.sh\\ install*', ('setup',), 'set up'),
        ('*worker.sh\\ start*', RUN, 'started, process'),
        ('*worker.sh\\ status', ('status',), 'run: '),
        ('*worker.sh\\ stop', ('stop',), 'run: '),
    ],
)
def test_workers_that_do_not_answer_are_noticed(ready, what, words, answer, pattern, number):
    ready.write('preflight', 0)
    unreached(ready, pattern, what)
    said = ready.script(*words, status=1)
    assert f"books: {number} of 2 workers have answered ('{answer}'). See above why, and run this again." in said


def test_a_run_that_no_worker_tells_of_has_not_ended(ready):
    """It is looked at again; before, it was set up anew, which a running program refuses."""
    ready.write('preflight', 0)
    ready.write(
        'hook',
        r"""
if [[ $command == *'worker.sh status' ]]; then echo >>"$CLOUD/looks"; fi
case "$(cat "$CLOUD/looks" 2>/dev/null | wc -l)" in 3) unreached='vm-*' ;; 6) echo 0 >"$CLOUD/finish" ;; esac""",
    )
    said = ready.script('run', '--restart', *RUN[1:])
    assert 'Failure' not in said and 'complete' in said


def test_setup_copies_what_git_has_or_would_add(ready):
    inside = lambda worker: {path.name for path in (worker / 'gpt1_jax').iterdir()}
    for name in ('shards', 'beam', 'runs', '.venv', 'data', '.ruff_cache'):
        (ready.tree / name).mkdir(exist_ok=True)
        (ready.tree / name / 'large').touch()
    ready.script('setup')  # without git
    assert all(inside(worker) >= {'data', '.venv'} for worker in ready.workers())
    assert not any(inside(worker) & {'shards', 'beam', 'runs', '.ruff_cache'} for worker in ready.workers())
    shutil.copy(ROOT / '.gitignore', ready.tree)
    (ready.tree / '.gitignore').write_text((ready.tree / '.gitignore').read_text() + '/data/\n.ruff_cache/\n')
    shutil.rmtree(ready.tree / '.venv')
    (ready.tree / '.venv').symlink_to('runs')
    (ready.tree / 'configs' / 'with space.py').touch()
    (ready.tree / 'configs' / 'deleted.py').touch()
    ready.run('git', 'init', '--quiet')
    ready.run('git', 'add', '--all')
    (ready.tree / 'configs' / 'deleted.py').unlink()
    (ready.tree / 'configs' / 'untracked.py').touch()
    ready.script('setup')
    for worker in ready.workers():
        named = {'.gitignore', '.commit', '.venv', 'pyproject.toml', 'requirements.txt'}
        assert inside(worker) == named | {'launch', 'configs', 'gpt1_jax'}
        configs = {path.name for path in (worker / 'gpt1_jax' / 'configs').iterdir()}
        assert configs >= {'with space.py', 'untracked.py'} and 'deleted.py' not in configs


def test_python_is_installed_as_soon_as_the_package_lists_are_free(tmp_path):
    """On a worker that upgrades itself after its first start, and has an old Python."""
    worker = StandIns(tmp_path)
    for name in ('bash', 'cat', 'dirname', 'env', 'hostname', 'touch'):
        (tmp_path / 'few').mkdir(exist_ok=True)
        (tmp_path / 'few' / name).symlink_to(f'/usr/bin/{name}')
    worker.put('sudo', 'exec env "$@"')
    worker.put('sleep')
    worker.put('apt-get', 'if [ "$1" = update ] && [ ! -e "$HOME/busy" ]; then touch "$HOME/busy"; exit 100; fi')
    said = worker.run('bash', 'launch/worker.sh', 'install', status=2, PATH=f'{tmp_path / "bin"}:{tmp_path / "few"}')
    update = ['update', '-qq']
    assert worker.calls('apt-get') == [
        update,
        update,
        ['-o', 'DPkg::Lock::Timeout=600', 'install', '-y', '-qq', 'python3.11', 'python3.11-venv'],
    ]
    assert worker.calls('sleep') == [['10']]
    assert 'is needed, but python3 here is missing' in said  # apt-get is a stand-in


def test_a_run_outlives_the_session_and_is_stopped_with_its_work_saved(ready):
    said = ready.script(*RUN)
    assert len(re.findall('commit unknown, code', said)) == 2  # what preflight.py found
    assert re.search(r'launch/preflight.py.{1,60}--hosts=2.{1,3}--run=\d+', said)
    programs = ready.programs()
    time.sleep(0.2)
    for worker, pid in zip(ready.workers(), programs):
        words = open(f'/proc/{pid}/cmdline').read().split('\0')  # it lives
        assert words[-5:-1] == [
            '--distributed',
            '--config=configs/pretrain.py',
            '--workdir=gs://bucket/runs/books',
            "--config.data.source=shards:gs://bucket/it's books",
        ]
        assert f'step 1 on {worker.name}' in (worker / 'gpt1_jax_run' / 'log').read_text()
    said = ready.script('status')
    assert 'ACTIVE\n' in said and 'books READY\n' in said
    assert sorted(re.findall(r'(\S+): run: running, process (\d+)', said)) == [
        (worker.name, str(pid)) for worker, pid in zip(ready.workers(), programs)
    ]
    assert 'is running. Stop it first' in ready.script('setup', status=2)  # the tree is in use
    assert 'is running. Stop it first' in ready.script(*RUN, status=2)
    said = ready.script('stop')
    assert len(re.findall('run: stopped 75', said)) == 2
    assert all(not os.path.exists(f'/proc/{pid}') for pid in programs)
    assert 'saved' in ready.script('logs')
    assert ready.tpus('ssh')[-1][3:5] == ['--node=0', '--worker=0']
    ready.script('delete')
    assert ready.tpus('delete') == [['books', '--zone=us-west4-a', '--project=mine', '--force', '--quiet']]


def test_nothing_starts_when_the_preflight_fails(ready):
    code = ready.workers()[1] / 'gpt1_jax' / 'gpt1_jax' / 'main.py'
    code.write_text(code.read_text() + '# changed here only\n')
    said = ready.script(*RUN, status=2)
    assert re.search(r'code: The hosts differ \(\w+: vm-0-w-\d; \w+: vm-0-w-\d\)\. Copy the same tree', said)
    assert not any((worker / 'gpt1_jax_run').exists() for worker in ready.workers())


def test_a_preempted_run_comes_back(cloud):
    """From nothing: asks for the slice, runs, loses it, asks again, runs to the end."""
    cloud.write('preflight', 0)
    cloud.write(
        'hook',
        r"""
if [[ $command == *'worker.sh status' ]]; then
  if [ ! -e "$CLOUD/taken" ]; then
    touch "$CLOUD/taken"
    for vm in "$CLOUD"/vm-*; do kill -KILL "$(<"$vm/gpt1_jax_run/pid")"; done
    rm -rf "$CLOUD"/vm-*
    echo SUSPENDING >"$CLOUD/state"
    printf 'SUSPENDING\nSUSPENDING\nSUSPENDING\nSUSPENDED\n' >"$CLOUD/plan"
  else
    echo 0 >"$CLOUD/finish"
  fi
fi""",
    )
    said = cloud.script('run', '--restart', '--spot', *RUN[1:])
    assert [len(cloud.tpus(verb)) for verb in ('create', 'delete', 'scp')] == [2, 1, 2]
    assert all('--spot' in call for call in cloud.tpus('create'))
    told = ['books: ABSENT', 'It was taken away', 'Failure 1 of 5 in a row', 'SUSPENDED, was SUSPENDING', 'complete']
    assert [said.find(words) for words in told] == sorted(said.find(words) for words in told)
    assert said.find(told[0]) >= 0 and 'still exists and costs money' in said


def test_a_crash_starts_the_run_again_until_it_fails_too_often(ready):
    ready.write('preflight', 0)
    ready.write('finish', 1)
    said = ready.script('run', '--restart', '--failures=3', *RUN[1:], status=1)
    assert re.findall(r'Failure (\d) of 3', said) == ['1', '2']
    assert '3 failures in a row. Giving up' in said
    assert len(re.findall(r'run: ended 1', said)) == 6
    assert not ready.tpus('delete')


@pytest.mark.slow
def test_a_long_run_ends_the_row_of_failures(ready):
    ready.write('preflight', 0)
    ready.write(
        'hook',
        r"""
if [[ $command == *'worker.sh start'* ]]; then rm -f "$CLOUD/finish" "$CLOUD/looks"; fi
if [[ $command == *'worker.sh status' ]]; then
  echo >>"$CLOUD/looks"
  if [ "$(wc -l <"$CLOUD/looks")" = 11 ]; then
    echo >>"$CLOUD/crashes"
    [ "$(wc -l <"$CLOUD/crashes")" -lt 3 ] && echo 1 >"$CLOUD/finish" || echo 0 >"$CLOUD/finish"
    /bin/sleep 0.3
  fi
fi""",
    )
    said = ready.script('run', '--restart', '--failures=2', *RUN[1:])
    assert re.findall(r'Failure (\d) of 2', said) == ['1'] * 2 and 'complete' in said


def test_one_crashed_worker_ends_the_others(ready):
    ready.write('preflight', 0)
    ready.write(
        'hook',
        r"""
if [[ $command == *'worker.sh status' ]] && [ ! -e "$CLOUD/crashed" ] && [ -e "$CLOUD/vm-0-w-0/gpt1_jax_run/pid" ]; then
  kill -KILL "$(<"$CLOUD/vm-0-w-0/gpt1_jax_run/pid")"
  touch "$CLOUD/crashed"
  /bin/sleep 0.3
fi
if [ -e "$CLOUD/crashed" ] && [[ $command == *'worker.sh start'* ]]; then echo 0 >"$CLOUD/finish"; fi""",
    )
    said = ready.script('run', '--restart', *RUN[1:])
    assert 'The run has ended on some workers. Stopping the others.' in said
    assert re.search('vm-0-w-0: run: ended 137', said) and re.search('vm-0-w-1: run: stopped 75', said)
    assert 'Failure 1 of 5' in said and 'complete' in said


@pytest.mark.parametrize(
    'finish, status, words',
    [('2', 2, 'The run cannot go on'), ('0', 0, 'The run is complete'), ('75', 1, '2 failures in a row')],
)
def test_how_a_run_ends_decides_what_comes_next(ready, finish, status, words):
    ready.write('preflight', 0)
    ready.write('finish', finish)
    assert words in ready.script('run', '--restart', '--failures=2', *RUN[1:], status=status)


def test_a_run_that_was_stopped_is_not_started_again(ready):
    ready.write('preflight', 0)
    ready.script(*RUN)
    ready.write(
        'hook',
        r"""
if [[ $command == *'worker.sh status' ]]; then echo >>"$CLOUD/looks"; fi
if [ "$(wc -l <"$CLOUD/looks")" = 2 ]; then
  for vm in "$CLOUD"/vm-*; do touch "$vm/gpt1_jax_run/stopped"; kill -TERM "$(<"$vm/gpt1_jax_run/pid")"; done
fi""",
    )
    starts = lambda: [call for call in ready.tpus('ssh') if 'worker.sh start' in call[-1]]
    assert len(starts()) == 1
    # Seen as running, it is only watched.
    assert 'The run was stopped. The same command resumes it.' in ready.script('run', '--restart', *RUN[1:], status=75)
    assert len(starts()) == 1


def test_another_run_that_is_running_is_not_taken_for_this_one(ready):
    """Before, it was watched to its end, and this one was said to be complete."""
    ready.write('preflight', 0)
    ready.script('run', 'configs/benchmark.py:pretrain', '--config.minutes=2 ')
    said = ready.script('run', '--restart', *RUN[1:], status=2)
    assert 'vm-0-w-0: run: Another one is running (--distributed --config=configs/benchmark.py:pretrain ' in said
    assert 'The run cannot go on' in said and 'complete' not in said
    assert not [call for call in ready.tpus('ssh') if 'worker.sh start' in call[-1]][1:]


def test_a_missing_host_is_a_failure_and_no_stop(ready):
    ready.write('preflight', 75)
    said = ready.script('run', '--restart', '--failures=2', *RUN[1:], status=1)
    assert '2 failures in a row. Giving up' in said and 'was stopped' not in said
    assert not [call for call in ready.tpus('ssh') if 'worker.sh start' in call[-1]]


def test_a_slice_that_cannot_be_had_is_given_up(cloud):
    cloud.write('hook', '[ "$what" != queued-resources-create ] || { echo "no quota" >&2; exit 1; }')
    said = cloud.script('run', '--restart', '--failures=2', *RUN[1:], status=1)
    assert said.count('no quota') == 2 and '2 failures in a row. Giving up' in said


@pytest.mark.parametrize(
    'action',
    [('create',), ('setup',), RUN, ('run', '--restart', *RUN[1:]), ('status',), ('logs',), ('stop',), ('delete',)],
)
def test_a_dry_run_only_prints(cloud, action):
    said = cloud.script(action[0], '--dry-run', *action[1:])
    assert not cloud.calls('gcloud') and not cloud.calls('tar')
    printed = [line for line in said.splitlines() if line.startswith('+ ')]
    assert printed and all(line.startswith(('+ gcloud compute tpus ', '+ tar ')) for line in printed)
    if '--restart' in action:
        verbs = re.findall('queued-resources (create|delete|scp)', said)
        assert verbs == ['scp', 'delete', 'create', 'scp']


@pytest.mark.parametrize(
    'words, env, message',
    [
        ((), {}, 'tpu_vm.sh: No action is given. Use create, setup'),
        (('launch',), {}, 'launch: There is no such action. Use create'),
        (('create',), {'NAME': ''}, 'NAME: It is not set. Export it, or give --name=VALUE.'),
        (('create', '--name=Books'), {}, 'NAME: It is Books. Use small letters'),
        (('create',), {'ZONE': ''}, 'ZONE: It is not set. Export it, or give --zone=VALUE.'),
        (('delete', '--project='), {}, 'PROJECT: It is not set. Export it, or give --project=VALUE.'),
        (('create',), {'TYPE': ''}, 'TYPE: It is not set. Export it, or give --type=VALUE.'),
        (('create', '--type=h100-8'), {}, 'TYPE: h100-8 is not a type of TPU. Use one such as v4-8'),
        (('create', '--node-count=0'), {}, 'NODE_COUNT: It is 0. Give a whole number, 1 or more.'),
        (('run', '--poll=x', 'configs/pretrain.py'), {}, '--poll: It is x. Give a whole number, 1 or more.'),
        (
            ('run', 'configs/pretrain.py'),
            {'WORKDIR': ''},
            'WORKDIR: It is not set. Export it, or give --workdir=VALUE.',
        ),
        (
            ('run', '--workdir=runs', 'configs/pretrain.py'),
            {},
            'WORKDIR: It is runs, but the workers share no disk. Give',
        ),
        (('run',), {}, 'run: No config is given. Name one'),
        (('run', '--config=configs/pretrain.py'), {}, '--config=configs/pretrain.py: There is no such flag before'),
        (('run', 'configs/pretrain.py', '--dry-run'), {}, '--dry-run: It follows the config, but is no flag of the'),
        (('status', 'configs/pretrain.py'), {}, 'configs/pretrain.py: The action status takes no such word.'),
    ],
)
def test_mistakes_are_named(cloud, words, env, message):
    said = cloud.run('bash', 'launch/tpu_vm.sh', *words, status=2, **env)
    assert said.startswith(message) and said.count('\n') == 1
    assert not cloud.calls('gcloud')


def test_gcloud_must_be_there(cloud, tmp_path):
    for name in ('bash', 'tr', 'dirname'):
        (tmp_path / 'few').mkdir(exist_ok=True)
        (tmp_path / 'few' / name).symlink_to(f'/usr/bin/{name}')
    said = cloud.script('create', status=2, PATH=str(tmp_path / 'few'))
    assert said.startswith('gcloud: It is not installed. Install the Google Cloud CLI')


def test_a_program_that_does_not_end_is_killed(ready):
    ready.write('preflight', 0)
    ready.script(*RUN)
    (worker, _), (pid, _) = ready.workers(), ready.programs()
    os.kill(pid, signal.SIGSTOP)
    said = ready.run('bash', str(worker / 'gpt1_jax' / 'launch' / 'worker.sh'), 'stop', '1', HOME=str(worker))
    assert 'It has not ended in 1 s. Killing it; the last checkpoint remains.' in said
    assert ready.script('status').count('run: running') == 1
