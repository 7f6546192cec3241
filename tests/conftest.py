"""Eight host devices for every test. Must be set before JAX starts its backend."""

import gc
import importlib.metadata
import logging as standard_logging
import os
import pathlib
import signal
import tempfile
import types

os.environ['NPROC'] = '32'  # XLA sizes its thread pool by this; on few cores collectives deadlock without it
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['TRITON_INTERPRET'] = '1'  # runs the kernels for a GPU without one
# Compiling takes most of the time here: LLVM's optimisations a quarter of that, and XLA's way to write loops for LLVM
# through MLIR half of the rest.
os.environ['XLA_FLAGS'] = (
    '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 '
    '--xla_llvm_disable_expensive_passes=true'
)
if tuple(map(int, importlib.metadata.version('jaxlib').split('.')[:2])) < (0, 12):  # a later one knows no such flag
    os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'
os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'  # a missing axis is a mistake more often than not
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ['GCS_RETRY_CONFIG_INIT_DELAY_TIME_US'] = '10000'  # TensorFlow, which reads it first, would wait for a second
# Many tests, and the programs that they start, compile the same steps: once is enough, also for xdist's processes.
if 'PYTEST_XDIST_WORKER' not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix='gpt1_jax_compiled_')
    os.environ['JAX_COMPILATION_CACHE_DIR'] = _compiled.name
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'

import numpy as np
import pytest
from absl import logging

from gpt1_jax import hub, network
from gpt1_jax.data.tokenizers.sentence_piece import train_sentencepiece
from servers import Hub, running

# What the tests start would ignore these too, as under nohup, or in the background of a script.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption(
        '--openai-bpe', metavar='DIR', help="folder of the release's vocabulary; what tests it is skipped without"
    )
    parser.addoption(
        '--cases',
        metavar='DIR',
        type=pathlib.Path,
        default=pathlib.Path(__file__).parents[2] / 'shared' / 'cases',
        help='folder of inputs as people hold them; what tests them is skipped without',
    )
    parser.addoption('--damages', metavar='N', type=int, default=200, help='how many damaged files are read')


@pytest.hookimpl(tryfirst=True)  # before marks select
def pytest_collection_modifyitems(items):
    """Files with slow tests first: of two processes, the one that ends first then has little to wait for. A rehearsal
    is slow too: -m "not slow" replaces the default, which leaves it out."""
    slow = {item.path for item in items if item.get_closest_marker('slow')}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        if item.get_closest_marker('rehearsal'):
            item.add_marker('slow')


@pytest.fixture(scope='module', autouse=True)
def _freeze():
    """Python's collector need not look again and again at what was imported, and compiled by the files before: it
    would take an eighth of the time."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _logging():
    """A test that switches log lines on does so for itself alone: others look at what was said."""
    handler, verbosity = logging.get_absl_handler(), logging.get_verbosity()
    formatter = handler.python_handler.formatter
    logging.set_verbosity(verbosity)  # chosen, so that `run_task` leaves it
    yield
    standard_logging.getLogger().removeHandler(handler)
    logging.set_verbosity(verbosity)
    handler.setFormatter(formatter)


@pytest.fixture(scope='session')
def golden():
    """Arrays that Hugging Face transformers computed in float64 (make_golden.py says which)."""
    with np.load(pathlib.Path(__file__).parent / 'golden' / 'openai_gpt.npz', allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope='session')
def sentencepiece():
    words = 'ship sail wave anchor cow field plough barn'.split()
    return train_sentencepiece([' '.join(words[i % 8 :] + words[: i % 5]) for i in range(50)], 290)


@pytest.fixture
def hub_server(tmp_path, monkeypatch):
    """A server that stands in for the Hugging Face hub, with an empty cache."""
    constants = pytest.importorskip('huggingface_hub.constants')
    with running(Hub()) as server:
        monkeypatch.setattr(constants, 'ENDPOINT', server.url)
        template = server.url + '/{repo_id}/resolve/{revision}/{filename}'
        monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
        monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub_cache'))
        monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
        for module in ('file_download', 'utils._http'):  # it waits between its attempts
            monkeypatch.setattr(f'huggingface_hub.{module}.time', types.SimpleNamespace(sleep=lambda seconds: None))
        monkeypatch.setattr(network, 'SECONDS', 1.0)
        monkeypatch.setattr(network, '_faults', {})
        hub.open_repository.cache_clear()
        yield server
    hub.open_repository.cache_clear()
