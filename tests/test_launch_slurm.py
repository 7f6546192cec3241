"""launch/slurm.sbatch against stand-ins of srun, scancel and scontrol, signals included."""

import signal
import subprocess
import time

import pytest

from stand_ins import ROOT, StandIns

JOB = dict(
    SLURM_JOB_ID='77',
    SLURM_JOB_NUM_NODES='2',
    SLURM_GPUS_PER_NODE='h100:8',
    SLURM_NTASKS_PER_NODE='8',
    SLURM_CPUS_PER_TASK='12',
)
RUN = ('configs/pretrain.py', '--config.data.source=shards:/shared/books of mine')
PROGRAM = ['--distributed', '--config=configs/pretrain.py', '--workdir=/shared/runs', RUN[1]]
# The step runs until `ended` says with which status to end; scancel tells it to save.
SRUN = r"""
case "$*" in
  *launch/preflight.py*) exit "${PREFLIGHT:-0}" ;;
  *) while [ ! -e "$HOME/ended" ]; do sleep 0.02; done; exit "$(<"$HOME/ended")" ;;
esac
"""


@pytest.fixture
def slurm(tmp_path):
    tools = StandIns(tmp_path)
    tools.env |= JOB | {'WORKDIR': '/shared/runs', 'SLURM_SUBMIT_DIR': str(tools.tree)}
    tools.put('srun', SRUN)
    tools.put('scancel', 'sleep 0.2; echo "${SAVED:-75}" >"$HOME/ended"')
    tools.put('scontrol')
    python = tools.tree / '.venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.touch()
    python.chmod(0o755)
    yield tools
    (tmp_path / 'ended').write_text('0')


def script(tools, *words, **kwargs):
    return tools.run('bash', 'launch/slurm.sbatch', *words, **kwargs)


def signalled(tools, number, **env):
    """(exit status, output) of a job that gets a signal while its step runs."""
    job = subprocess.Popen(
        ['bash', 'launch/slurm.sbatch', *RUN],
        cwd=tools.tree,
        env=tools.env | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while len(tools.calls('srun')) < 2:
        time.sleep(0.02)
    time.sleep(0.2)
    job.send_signal(number)
    said, _ = job.communicate(timeout=30)
    return job.returncode, said


def test_what_it_asks_of_slurm():
    lines = (ROOT / 'launch' / 'slurm.sbatch').read_text().splitlines()
    asked = dict(line.removeprefix('#SBATCH --').partition('=')[::2] for line in lines if line.startswith('#SBATCH'))
    assert asked['gpus-per-node'] == asked['ntasks-per-node']
    assert asked['signal'] == 'B:USR1@120' and 'requeue' in asked
    # Slurm reads them only above the first command.
    assert [line[:1] for line in lines[: max(i for i, line in enumerate(lines) if line.startswith('#SBATCH'))]].count(
        's'
    ) == 0


def test_one_process_for_each_gpu(slurm, tmp_path):
    (tmp_path / 'ended').write_text('0')
    said = script(slurm, *RUN)
    checked, ran = slurm.calls('srun')
    assert checked == ['--nodes=2', '--ntasks=2', '--ntasks-per-node=1', '.venv/bin/python', 'launch/preflight.py'] + [
        '--workdir=/shared/runs',
        '--hosts=2',
        '--run=77-0',
        '--',
        *PROGRAM,
    ]
    assert ran == ['--cpus-per-task=12', '--gpu-bind=none', '--kill-on-bad-exit=0', '.venv/bin/python'] + [
        '-m',
        'gpt1_jax.main',
        *PROGRAM,
    ]
    assert said.count('+ srun ') == 2 and not slurm.calls('scontrol')


def test_a_restart_has_another_name(slurm, tmp_path):
    (tmp_path / 'ended').write_text('0')
    script(slurm, *RUN, SLURM_RESTART_COUNT='3')
    assert '--run=77-3' in slurm.calls('srun')[0]


def test_near_the_time_limit_it_saves_and_queues_again(slurm):
    status, said = signalled(slurm, signal.SIGUSR1)
    assert slurm.calls('scancel') == [['--signal=TERM', '77']]
    assert slurm.calls('scontrol') == [['requeue', '77']]
    assert status == 75 and said.rstrip().endswith('+ scontrol requeue 77')


def test_a_run_that_completes_meanwhile_does_not_queue_again(slurm):
    status, _ = signalled(slurm, signal.SIGUSR1, SAVED='0')
    assert status == 0 and not slurm.calls('scontrol')


def test_a_job_that_is_cancelled_saves_and_stays_away(slurm):
    status, _ = signalled(slurm, signal.SIGTERM)
    assert status == 75 and slurm.calls('scancel') and not slurm.calls('scontrol')


@pytest.mark.parametrize('ended', ['1', '2', '137'])
def test_an_error_ends_the_job(slurm, tmp_path, ended):
    (tmp_path / 'ended').write_text(ended)
    script(slurm, *RUN, status=int(ended))
    assert not slurm.calls('scontrol')


def test_nothing_starts_when_the_preflight_fails(slurm):
    script(slurm, *RUN, status=2, PREFLIGHT='2')
    assert len(slurm.calls('srun')) == 1


def test_a_dry_run_only_prints(slurm):
    for name in JOB:  # as outside of a job
        del slurm.env[name]
    said = script(slurm, '--dry-run', *RUN)
    assert [line.split()[1] for line in said.splitlines()] == ['srun', 'srun'] and not slurm.calls()
    assert "'--config.data.source=shards:/shared/books of mine'" in said


@pytest.mark.parametrize(
    'words, env, message',
    [
        (RUN, {'WORKDIR': ''}, 'WORKDIR: It is not set. Export the path of a folder that all nodes see.'),
        ((), {}, 'slurm.sbatch: No config is given. Name one first'),
        (('--config=configs/pretrain.py',), {}, '--config=configs/pretrain.py: No config is given. Name one first'),
        ((*RUN, '--dry-run'), {}, '--dry-run: It follows the config, but is no flag of the program. Put it before.'),
        (RUN, {'SLURM_SUBMIT_DIR': '/'}, '/: This is not the root of the repository. Submit from there.'),
        (RUN, {'SLURM_JOB_ID': ''}, 'slurm.sbatch: This is not a job of Slurm. Submit it with sbatch'),
        (RUN, {'SLURM_NTASKS_PER_NODE': '1'}, '--ntasks-per-node: It is 1, but --gpus-per-node is h100:8. JAX wants'),
        (RUN, {'SLURM_GPUS_PER_NODE': ''}, '--ntasks-per-node: It is 8, but --gpus-per-node is not set. JAX wants'),
    ],
)
def test_mistakes_are_named(slurm, words, env, message):
    said = script(slurm, *words, status=2, **env)
    assert said.startswith(message) and said.count('\n') == 1 and not slurm.calls()


def test_the_environment_must_be_there(slurm):
    (slurm.tree / '.venv' / 'bin' / 'python').unlink()
    said = script(slurm, *RUN, status=2)
    assert '.venv: It is missing. Make it on a machine with a network: EXTRA=cuda,triton bash launch/venv.sh' in said
