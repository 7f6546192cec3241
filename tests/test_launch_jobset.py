"""launch/gke/jobset.py: its manifest against the part of JobSet's and Kubernetes' schema that it uses."""

import importlib.util
import json
import re
import subprocess

import pytest
import yaml

from stand_ins import PYTHON, ROOT, StandIns

_spec = importlib.util.spec_from_file_location('jobset', ROOT / 'launch' / 'gke' / 'jobset.py')
jobset = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(jobset)

FLAGS = [
    '--name=books',
    '--image=us-docker.pkg.dev/mine/images/gpt1_jax:first',
    '--accelerator=v5e',
    '--topology=4x4',
    '--workdir=gs://bucket/runs/books',
]
RUN = ['configs/pretrain.py', '--config.data.source=shards:gs://bucket/books']
KUBECTL = r"""
[ "$1" != "${FAILS:-}" ] || exit 1
case "$1" in get) printf %s "${FOUND:-}" ;; create) cat >"$HOME/created" ;; esac
"""
GET = ['get', 'jobset', 'books', '--ignore-not-found', '--output=json']
DELETE = ['delete', 'jobset', 'books', '--cascade=foreground']
CREATE = ['create', '--filename=-']


class Optional:
    """A field that may be missing."""

    def __init__(self, schema):
        self.schema = schema


def one_of(*values):
    return lambda value: value in values


def matching(pattern):
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value)


def whole(value):
    return type(value) is int and value >= 0


def text(value):
    return isinstance(value, str) and value != ''


def texts(value):
    """A map of strings, as labels and annotations are."""
    return isinstance(value, dict) and all(text(key) and isinstance(one, str) for key, one in value.items())


NAME = matching(r'[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?')
# From api/jobset/v1alpha2/jobset_types.go of kubernetes-sigs/jobset, and Kubernetes' reference of Job and Pod. A dict
# lists all fields that the manifest may have, a list has entries of one schema, a function tests a value.
PODS = {
    'restartPolicy': one_of('Never'),  # what podFailurePolicy needs
    'terminationGracePeriodSeconds': whole,
    'serviceAccountName': NAME,
    'hostNetwork': one_of(True),
    'dnsPolicy': one_of('ClusterFirstWithHostNet', 'ClusterFirst', 'Default', 'None'),
    'nodeSelector': texts,
    'containers': [
        {
            'name': NAME,
            'image': text,
            'command': [text],
            'args': [text],
            'env': [{'name': text, 'valueFrom': {'fieldRef': {'fieldPath': text}}}],
            'ports': [{'containerPort': whole}],
            'securityContext': {'privileged': one_of(True, False), 'runAsUser': whole},
            'resources': {'limits': {'google.com/tpu': whole}},
        }
    ],
}
JOB = {
    'completionMode': one_of('Indexed', 'NonIndexed'),
    'completions': whole,
    'parallelism': whole,
    'backoffLimit': whole,
    'podFailurePolicy': {
        'rules': [
            {
                'action': one_of('FailJob', 'FailIndex', 'Ignore', 'Count'),
                'onExitCodes': {'containerName': NAME, 'operator': one_of('In', 'NotIn'), 'values': [whole]},
            }
        ]
    },
    'template': {'metadata': Optional({'labels': texts}), 'spec': PODS},
}
REASONS = ('BackoffLimitExceeded', 'DeadlineExceeded', 'FailedIndexes', 'MaxFailedIndexesExceeded', 'PodFailurePolicy')
JOBSET = {
    'apiVersion': one_of('jobset.x-k8s.io/v1alpha2'),
    'kind': one_of('JobSet'),
    'metadata': {'name': NAME, 'annotations': texts},
    'spec': {
        'failurePolicy': {
            'maxRestarts': whole,
            'restartStrategy': Optional(one_of('Recreate', 'BlockingRecreate', 'InPlaceRestart')),
            'rules': [
                {
                    'name': matching('[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?'),
                    'action': one_of('FailJobSet', 'RestartJobSet', 'RestartJobSetAndIgnoreMaxRestarts'),
                    'onJobFailureReasons': [one_of(*REASONS)],
                    'targetReplicatedJobs': Optional([NAME]),
                }
            ],
        },
        'replicatedJobs': [{'name': NAME, 'replicas': whole, 'template': {'spec': JOB}}],
    },
}


def faults(value, schema, where=''):
    """What in `value` the schema does not allow, one line each."""
    if isinstance(schema, Optional):
        schema = schema.schema
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f'{where}: no map']
        needed = {key for key, of_key in schema.items() if not isinstance(of_key, Optional)}
        found = [f'{where}.{key}: unknown' for key in value.keys() - schema.keys()]
        found += [f'{where}.{key}: missing' for key in needed - value.keys()]
        return found + [
            fault for key in value.keys() & schema.keys() for fault in faults(value[key], schema[key], f'{where}.{key}')
        ]
    if isinstance(schema, list):
        if not isinstance(value, list) or not value:
            return [f'{where}: no list']
        return [fault for i, one in enumerate(value) for fault in faults(one, schema[0], f'{where}[{i}]')]
    return [] if schema(value) else [f'{where}: {value!r}']


@pytest.fixture
def tools(tmp_path):
    tools = StandIns(tmp_path)
    tools.put('kubectl', KUBECTL)
    return tools


def made(tools, *flags, run=RUN):
    return yaml.safe_load(tools.run(PYTHON, 'launch/gke/jobset.py', *FLAGS, *flags, '--dry-run', *run))


def job_of(manifest):
    (replicated,) = manifest['spec']['replicatedJobs']
    return replicated, replicated['template']['spec'], replicated['template']['spec']['template']['spec']


def test_the_manifest_fits_the_schema(tools):
    assert faults(made(tools), JOBSET) == []
    assert faults(made(tools, '--slices=3', '--service-account=trainer'), JOBSET) == []


def test_the_schema_notices_mistakes(tools):
    """As many as there are kinds: a field elsewhere, a missing one, another type, another word."""
    wrong = made(tools)
    replicated, job, pod = job_of(wrong)
    job['restartPolicy'] = pod.pop('restartPolicy')
    replicated['replicas'] = '1'
    wrong['spec']['failurePolicy']['rules'][0]['action'] = 'Fail'
    pod['containers'] = {}
    assert sorted(fault.removeprefix('.spec.') for fault in faults(wrong, JOBSET)) == [
        "failurePolicy.rules[0].action: 'Fail'",
        "replicatedJobs[0].replicas: '1'",
        'replicatedJobs[0].template.spec.restartPolicy: unknown',
        'replicatedJobs[0].template.spec.template.spec.containers: no list',
        'replicatedJobs[0].template.spec.template.spec.restartPolicy: missing',
    ]


@pytest.mark.parametrize(
    'accelerator, topology, chips_per_host, label, hosts',
    [
        ('v4', '2x2x4', 4, 'tpu-v4-podslice', 4),
        ('v5e', '2x4', 4, 'tpu-v5-lite-podslice', 2),
        ('v5e', '2x4', 8, 'tpu-v5-lite-podslice', 1),
        ('v5e', '1x1', 4, 'tpu-v5-lite-podslice', 1),
        ('v5p', '2x2x1', 4, 'tpu-v5p-slice', 1),
        ('v6e', '16x16', 4, 'tpu-v6e-slice', 64),
    ],
)
def test_hosts_and_labels(tools, accelerator, topology, chips_per_host, label, hosts):
    manifest = made(
        tools, f'--accelerator={accelerator}', f'--topology={topology}', f'--chips-per-host={chips_per_host}'
    )
    _, job, pod = job_of(manifest)
    assert (job['completions'], job['parallelism']) == (hosts, hosts)
    assert pod['nodeSelector'] == {
        'cloud.google.com/gke-tpu-accelerator': label,
        'cloud.google.com/gke-tpu-topology': topology,
    }
    chips = 1 if topology == '1x1' else chips_per_host
    assert pod['containers'][0]['resources'] == {'limits': {'google.com/tpu': chips}}


def test_a_slice_is_a_job_and_a_host_is_a_pod(tools):
    replicated, job, pod = job_of(made(tools, '--slices=2', '--max-restarts=7'))
    assert replicated['replicas'] == 2 and job['completions'] == 4
    assert '--hosts=8 ' in pod['containers'][0]['command'][-1]
    assert made(tools, '--max-restarts=7')['spec']['failurePolicy']['maxRestarts'] == 7
    assert job['podFailurePolicy']['rules'][0]['onExitCodes']['containerName'] == pod['containers'][0]['name']


def test_the_command_of_a_pod(tools, tmp_path):
    """Run by this machine's bash as Kubernetes would, with a stand-in for Python."""
    awkward = ['--config.prompt=it\'s "$HOME" $(HOME) $$ <NAME> a: b # c', '--config.note=']
    _, _, pod = job_of(made(tools, run=['configs/pretrain.py', *awkward]))
    (container,) = pod['containers']
    # Kubernetes replaces $$ by $, and $(NAME) where the pod has such a variable.
    expand = lambda word: re.sub(r'\$(\$|\(RESTART\))', lambda found: '$' if found[1] == '$' else '3', word)
    command = [expand(word) for word in [*container['command'], *container['args']]]
    tools.put('python', 'exit "${PREFLIGHT:-0}"')
    tools.run(*command, RESTART='3')
    program = ['--distributed', '--config=configs/pretrain.py', '--workdir=gs://bucket/runs/books', *awkward]
    checked, ran = tools.calls('python')
    assert checked[:3] == ['launch/preflight.py', '--workdir=gs://bucket/runs/books', '--hosts=4']
    assert re.fullmatch(r'--run=books-\d{10}-3', checked[3]) and checked[4:] == ['--wait=1800', '--', *program]
    assert ran == ['-m', 'gpt1_jax.main', *program]
    tools.run(*command, PREFLIGHT='2', status=2)  # then the program is not started
    assert len(tools.calls('python')) == 3


def test_kubectl_gets_the_manifest(tools, tmp_path):
    said = tools.run(PYTHON, 'launch/gke/jobset.py', *FLAGS, *RUN)
    assert said == ''.join(f'+ kubectl {" ".join(words)}\n' for words in (GET, CREATE))
    assert tools.calls('kubectl') == [GET, CREATE]
    created = yaml.safe_load((tmp_path / 'created').read_text())
    assert created['metadata']['name'] == 'books' and faults(created, JOBSET) == []


def found(*conditions):
    """What kubectl says of a JobSet with these (type, status)."""
    status = {'conditions': [{'type': kind, 'status': holds, 'reason': 'x'} for kind, holds in conditions]}
    return json.dumps({'kind': 'JobSet', 'status': status if conditions else {}})


@pytest.mark.parametrize('ended', ['Completed', 'Failed'])
def test_a_jobset_that_has_ended_is_replaced(tools, ended):
    jobset = found(('StartupPolicyCompleted', 'True'), (ended, 'True'))
    tools.run(PYTHON, 'launch/gke/jobset.py', *FLAGS, *RUN, FOUND=jobset)
    assert tools.calls('kubectl') == [GET, DELETE, CREATE]


@pytest.mark.parametrize('conditions', [(), (('Suspended', 'True'),), (('Failed', 'False'),)])
def test_a_jobset_that_has_not_ended_is_left_alone(tools, conditions):
    said = tools.run(PYTHON, 'launch/gke/jobset.py', *FLAGS, *RUN, status=2, FOUND=found(*conditions))
    assert 'error: --name: The JobSet books has not ended. Let it end, or have it save and' in said
    assert tools.calls('kubectl') == [GET]


@pytest.mark.parametrize('fails', ['get', 'delete', 'create'])
def test_a_command_of_kubectl_that_fails_ends_it(tools, fails):
    jobset = found(('Completed', 'True'))
    tools.run(PYTHON, 'launch/gke/jobset.py', *FLAGS, *RUN, status=1, FOUND=jobset, FAILS=fails)
    assert tools.calls('kubectl')[-1][0] == fails


def test_kubectl_must_be_there(tools, tmp_path):
    said = tools.run(PYTHON, 'launch/gke/jobset.py', *FLAGS, *RUN, status=2, PATH=str(tmp_path / 'none'))
    assert 'error: kubectl: It is not installed. Install it, or use --dry-run.' in said


@pytest.mark.parametrize(
    'flags, message',
    [
        (['--name=Books'], "--name: 'Books' cannot name a JobSet. Use at most 40"),
        (['--topology=4x4x4'], "--topology: '4x4x4' is not a topology of v5e. Use one such as 2x2."),
        (['--accelerator=v4'], "--topology: '4x4' is not a topology of v4. Use one such as 2x2x2."),
        (['--chips-per-host=3'], '--chips-per-host: 16 chips (4x4) are not a multiple of 3. Give'),
        (['--topology=2x2', '--slices=2'], '--slices: GKE joins only slices of several hosts, and 2x2 is one host.'),
        (['--workdir=/runs'], '--workdir: The hosts share no disk, and /runs is not in a bucket. Give a gs:// path.'),
        (['--image=a b'], "--image: 'a b' has characters that it cannot have. Correct it."),
        (['--slices=0'], "argument --slices: '0' is not a whole number, 1 or more"),
    ],
)
def test_mistakes_are_named(tools, flags, message):
    said = tools.run(PYTHON, 'launch/gke/jobset.py', *FLAGS, *flags, *RUN, status=2)
    assert message in said and not tools.calls('kubectl')


def test_no_jobset_is_created_where_dry_run_comes_last(tools):
    said = tools.run(PYTHON, 'launch/gke/jobset.py', *FLAGS, *RUN, '--dry-run', status=2)
    assert '--dry-run: It follows the config, but is no flag of the program. Put it before.' in said
    assert not tools.calls('kubectl')


def test_the_script_needs_only_python():
    """It runs where nothing is installed."""
    done = subprocess.run([PYTHON, '-S', 'launch/gke/jobset.py', '--help'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and '--accelerator' in done.stdout, done.stderr
