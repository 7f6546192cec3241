"""What libraries say of checkpoints stays unsaid, and all else is said."""

import asyncio
import gc
import logging as standard_logging
import types

import jax
import jax.numpy as jnp
import pytest
from absl import logging

from gpt1_jax import stopping
from gpt1_jax.training import checkpoint_noise
from gpt1_jax.training.checkpoint import Checkpointer


def test_nothing_of_orbax_is_logged(tmp_path, caplog):
    logging.set_verbosity(logging.INFO)
    with caplog.at_level('INFO'):
        writer, items = Checkpointer(tmp_path), {'params': {'w': jnp.ones(3)}}
        writer.save(1, items, {})
        writer.restore_latest(
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), items)
        )
        writer.close()
        logging.info('our own line')
    assert [record.getMessage() for record in caplog.records if record.name == 'absl'] == ['our own line']


def test_what_orbax_leaves_unfinished_is_not_printed(caplog):
    """It waits for the first array that cannot be read or written; asyncio would print a traceback of the others."""

    async def fail():
        raise ValueError('another array')

    async def leave():
        asyncio.create_task(fail())  # of a read
        asyncio.gather(fail())  # of a write
        await asyncio.sleep(0.01)

    checkpoint_noise.hide()
    asyncio.run(leave())
    gc.collect()
    standard_logging.getLogger('asyncio').error('anything else')
    assert [record.getMessage() for record in caplog.records if record.name == 'asyncio'] == ['anything else']


@pytest.mark.parametrize('words', ['Event loop is closed', 'Encountered error while reading array index: (slice(0))'])
def test_only_tracebacks_of_arrays_are_hidden(words, monkeypatch):
    """The rest is for the hook of the program, whichever of the two was there first."""
    passed_on = []
    monkeypatch.setattr(stopping, 'unraisablehook', passed_on.append)
    of_tensorstore, other = (types.SimpleNamespace(exc_value=RuntimeError(each)) for each in (words, 'x'))
    checkpoint_noise._unraisablehook(of_tensorstore)
    checkpoint_noise._unraisablehook(other)
    assert passed_on == [other]
