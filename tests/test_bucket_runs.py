"""Runs on gs:// that are killed or stopped at a request, such as one of an upload: they go on as on this machine."""

import contextlib
import os
import re
import signal
import urllib.parse

import pytest

import soak_cases
from bucket import BUCKET, bucket
from fork_server import Server
from gpt1_jax.errors import STOPPED_EXIT_STATUS

pytest.importorskip('tensorflow')
pytestmark = pytest.mark.rehearsal

_SMALL = 'layers=1 width=16 heads=2 mlp_width=64 n_positions=32'.split()
_TRAINING = '--config.data.batch_size=8 --config.optimizer.learning_rate=0.01 --config.checkpoint.every=2'
_LABELLED = (
    '--config.data.source=files:DATA/labelled --config.data.kind=classification --config.data.fields=text '
    '--config.data.labels=sea,farm --config.data.cache=off'
)
_SHARDS = '--config.data.held_out=0.25 --config.data.tokens_per_shard=4000 --config.data.workers=1'
RUNS = {  # workdir -> what it does, in an order in which each finds what it needs
    'prepare': f'prepare.py --config.data.source=text:DATA/books --config.data.output=ROOT/shards {_SHARDS} '
    '--config.data.vocab_size=320',
    'lm': f'pretrain.py:tiny --config.data.source=shards:ROOT/shards --config.data.tokens=1536 {_TRAINING} '
    '--config.optimizer.warmup_steps=2 --config.log.eval_every=4 '
    + ' '.join(f'--config.model.{size}' for size in _SMALL),
    'sea': f'finetune.py:custom --config.init_from=ROOT/lm --config.data.epochs=1 {_LABELLED} {_TRAINING}',
    'evaluate': f'evaluate.py:custom --config.init_from=ROOT/sea --config.split=test {_LABELLED}',
}
THERE = f'gs://{BUCKET}/there'


class Lane:
    """folder: DATA, and the workdirs of all RUNS on this machine."""

    def __init__(self, folder, store, server):
        self.folder, self.store, self.server = folder, store, server

    def start(self, name, root, data):
        config, *flags = RUNS[name].replace('ROOT', str(root)).replace('DATA', str(data)).split()
        return self.server.start([f'--config=configs/{config}', *flags, f'--workdir={root}/{name}'], self.folder / name)

    def run(self, name, root, data):
        started = self.start(name, root, data)
        assert started.wait(900) == 0, started.printed()[1]

    def upload(self, *names):
        """Empties the bucket, and copies DATA there, and what some runs have left."""
        self.store.fault = lambda method, path, number: ''
        with self.store.lock:
            self.store.objects.clear()
            for place in ('data', *(f'run/{name}' for name in names)):
                for path in filter(os.path.isfile, (self.folder / place).rglob('*')):
                    name = str(path.relative_to(self.folder)).replace('run', 'there', 1)
                    self.store.put((BUCKET, name), path.read_bytes())

    def differences(self, tmp_path, run):
        """In words, between what a run has left in the bucket, and on this machine."""
        with self.store.lock:
            left = {name: self.store.objects[BUCKET, name] for name in self.store.names(f'there/{run}/')}
        for name, data in left.items():
            if not name.endswith('/'):
                path = tmp_path / name.replace('there', 'run', 1)
                path.parent.mkdir(parents=True, exist_ok=True)
                for there, here in (('there', 'run'), ('data', 'data')):
                    data = data.replace(f'gs://{BUCKET}/{there}'.encode(), os.fsencode(tmp_path / here))
                path.write_bytes(data)
        of_run = lambda found: {name: value for name, value in found.items() if name.startswith(f'{run}/')}
        return soak_cases.differences(tmp_path / 'run', of_run(soak_cases.contents(self.folder / 'run')))


@pytest.fixture(scope='module')
def lane(tmp_path_factory):
    folder = tmp_path_factory.mktemp('lane')
    soak_cases.write_data(folder / 'data')
    with bucket(folder) as store:
        environment = os.environ | soak_cases.SERVER | store.environment
        server = Server(environment | {'JAX_COMPILATION_CACHE_DIR': str(folder / 'cache')})
        with contextlib.closing(server):
            found = Lane(folder, store, server)
            for name in RUNS:
                found.run(name, folder / 'run', folder / 'data')
            yield found


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize(
    ('name', 'methods', 'words', 'which'),
    [
        ('lm', ('POST', 'PUT'), '/upload/.*checkpoints/4/params', 2),
        ('lm', ('POST', 'PUT'), 'checkpoints/4/commit_success', 1),
        ('lm', ('DELETE',), 'checkpoints/2/commit_success', 1),
        ('lm', ('DELETE',), 'checkpoints/2/(params|opt_state)/d/', 1),
        ('lm', ('POST', 'PUT'), 'metrics.jsonl', 2),
        ('sea', ('POST', 'PUT'), '/upload/.*checkpoints/4/params', 1),
        ('sea', ('POST', 'PUT'), 'predictions', 1),
        ('evaluate', ('POST', 'PUT'), 'results.json', 1),
    ],
)
def test_a_run_that_ends_at_a_request_goes_on_to_the_same_bits(tmp_path, lane, number, name, methods, words, which):
    lane.upload(*('shards', 'lm', 'sea')[: ['lm', 'sea', 'evaluate'].index(name) + 1])
    seen, sent = [], []

    def fault(method, path, _):
        plain = urllib.parse.unquote(urllib.parse.unquote(path))
        if method in methods and re.search(words, plain):
            seen.append(path)
            if len(seen) == which:
                os.kill(started.pid, number)
                sent.append(number)
        return 'cut' if sent and number == signal.SIGKILL else ''

    lane.store.fault = fault
    started = lane.start(name, THERE, f'gs://{BUCKET}/data')
    status = started.wait(300)
    lane.store.fault = lambda method, path, number: ''
    assert sent and status in (-signal.SIGKILL, STOPPED_EXIT_STATUS, 0), started.printed()[1]
    lane.run(name, THERE, f'gs://{BUCKET}/data')
    # One that was saved when the run was told to stop may stand in the place of an older one; what is left of one that
    # was being deleted is no checkpoint, and stays until the next save.
    found = [words for words in lane.differences(tmp_path, name) if not re.match(r'lm/checkpoints/[245] is ', words)]
    assert found == []
