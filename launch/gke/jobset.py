"""Runs one config on TPU slices of a GKE cluster that has JobSet: fills in jobset.yaml and hands it to kubectl.

    python launch/gke/jobset.py --name=books --image=us-docker.pkg.dev/my-project/images/gpt1_jax:first \\
        --accelerator=v5e --topology=4x4 --slices=2 --workdir=gs://bucket/runs/books \\
        configs/pretrain.py --config.data.source=shards:gs://bucket/books

--dry-run prints the manifest instead. Needs only Python. Exit status: 0 done; 2 an error that you can fix; that of
kubectl otherwise. Not yet tried on a cluster.
"""

import argparse
import json
import math
import pathlib
import re
import shlex
import subprocess
import sys
import time

# cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus: labels of the nodes
ACCELERATORS = {'v4': 'tpu-v4-podslice', 'v5e': 'tpu-v5-lite-podslice', 'v5p': 'tpu-v5p-slice', 'v6e': 'tpu-v6e-slice'}
DIMENSIONS = {'v4': 3, 'v5e': 2, 'v5p': 3, 'v6e': 2}  # of a topology


class Error(Exception):
    """A user error: `WHERE: WHAT is wrong. HOW to fix it.`"""


def manifest(args: argparse.Namespace) -> str:
    """The filled-in jobset.yaml. Raises Error."""
    if not re.fullmatch(r'[a-z]([-a-z0-9]{0,38}[a-z0-9])?', args.name):
        raise Error(f'--name: {args.name!r} cannot name a JobSet. Use at most 40 of a-z, 0-9 and -, a letter first.')
    if not re.fullmatch(r'\d+(x\d+)*', args.topology) or args.topology.count('x') + 1 != DIMENSIONS[args.accelerator]:
        example = 'x'.join('2' * DIMENSIONS[args.accelerator])
        raise Error(
            f'--topology: {args.topology!r} is not a topology of {args.accelerator}. Use one such as {example}.'
        )
    chips = math.prod(map(int, args.topology.split('x')))
    per_host = min(args.chips_per_host, chips)
    if chips % per_host:
        raise Error(
            f'--chips-per-host: {chips} chips ({args.topology}) are not a multiple of {per_host}. Give the number that '
            "the machine type of the node pool ends with (4 for 'ct5lp-hightpu-4t')."
        )
    if not args.workdir.startswith('gs://'):
        raise Error(f'--workdir: The hosts share no disk, and {args.workdir} is not in a bucket. Give a gs:// path.')
    for flag, text in (('--image', args.image), ('--service-account', args.service_account)):
        if not re.fullmatch(r'[\w./:@-]+', text):
            raise Error(f'{flag}: {text!r} has characters that it cannot have. Correct it.')
    hosts = chips // per_host
    if args.slices > 1 and hosts == 1:
        raise Error(
            f'--slices: GKE joins only slices of several hosts, and {args.topology} is one host. '
            'Take a larger topology, or one slice.'
        )
    values = {
        'NAME': args.name,
        'IMAGE': args.image,
        'ACCELERATOR': ACCELERATORS[args.accelerator],
        'TOPOLOGY': args.topology,
        'SLICES': args.slices,
        'HOSTS': hosts,
        'ALL_HOSTS': hosts * args.slices,
        'CHIPS_PER_HOST': per_host,
        'MAX_RESTARTS': args.max_restarts,
        'SERVICE_ACCOUNT': args.service_account,
        'RUN': f'{args.name}-{time.time_ns() // 10**9}',  # new at every submission
        # JSON is YAML. Kubernetes reads $(NAME) as a variable, and $$ as $.
        'ARGUMENTS': json.dumps(
            [
                word.replace('$', '$$')
                for word in (
                    args.workdir,
                    '--distributed',
                    f'--config={args.config}',
                    f'--workdir={args.workdir}',
                    *args.flags,
                )
            ]
        ),
    }
    template = (pathlib.Path(__file__).parent / 'jobset.yaml').read_text()
    return re.sub(r'<([A-Z_]+)>', lambda found: str(values[found[1]]), template)


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog='jobset.py', description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('--name', required=True, help='of the JobSet')
    parser.add_argument('--image', required=True, help='of launch/image.sh')
    parser.add_argument('--workdir', required=True, help='gs://...')
    parser.add_argument('--accelerator', required=True, choices=ACCELERATORS)
    parser.add_argument('--topology', required=True, help='of a slice, such as 4x4 or 2x2x2')
    parser.add_argument('--slices', type=_whole_number, default=1)
    parser.add_argument('--chips-per-host', type=_whole_number, default=4, help='the machine type ends with it')
    parser.add_argument('--max-restarts', type=_whole_number, default=50)
    parser.add_argument('--service-account', default='default', help='of Kubernetes; may write to the workdir')
    parser.add_argument('--dry-run', action='store_true', help='print the manifest')
    parser.add_argument('config', help='configs/NAME.py')
    parser.add_argument('flags', nargs=argparse.REMAINDER, help='of gpt1_jax.main')
    args = parser.parse_args(argv)
    if '--dry-run' in args.flags:
        parser.error('--dry-run: It follows the config, but is no flag of the program. Put it before.')
    try:
        text = manifest(args)
        if args.dry_run:
            print(text, end='')
            return 0
        return submit(args.name, text)
    except Error as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


def submit(name: str, text: str) -> int:
    """Creates the JobSet of the manifest `text`. One that has ended is deleted first: its Jobs cannot be changed.

    Returns the exit status of kubectl. Raises Error.
    """
    found = _kubectl('get', 'jobset', name, '--ignore-not-found', '--output=json', stdout=subprocess.PIPE)
    if found.returncode:
        return found.returncode
    if found.stdout:
        conditions = json.loads(found.stdout).get('status', {}).get('conditions', [])
        if not any(one['type'] in ('Completed', 'Failed') and one['status'] == 'True' for one in conditions):
            raise Error(
                f'--name: The JobSet {name} has not ended. Let it end, or have it save and end now '
                f'(kubectl delete jobset {name} --cascade=foreground), then run this again.'
            )
        # The new Jobs have the names of the old ones, so these must be gone too.
        deleted = _kubectl('delete', 'jobset', name, '--cascade=foreground')
        if deleted.returncode:
            return deleted.returncode
    return _kubectl('create', '--filename=-', input=text).returncode


def _kubectl(*words, **kwargs):
    print(f'+ {shlex.join(["kubectl", *words])}', file=sys.stderr)
    try:
        return subprocess.run(['kubectl', *words], text=True, **kwargs)
    except FileNotFoundError:
        raise Error('kubectl: It is not installed. Install it, or use --dry-run.') from None


def _whole_number(text):
    if not re.fullmatch('[1-9][0-9]*', text):
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number, 1 or more')
    return int(text)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
