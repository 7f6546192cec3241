"""Round trips, retention, damage, kills and full disks, on eight host devices."""

import gc
import os
import pickle
import resource
import shutil
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from gpt1_jax.errors import DamagedError, UserError
from gpt1_jax.training import checkpoint, checkpoint_folder, room
from gpt1_jax.training.checkpoint import Checkpointer

# Orbax leaves unfinished reads behind when one of them fails.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


def mesh_of(*shape):
    return jax.make_mesh(shape, ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2)


def placed(array, mesh, *spec):
    return jax.device_put(array, NamedSharding(mesh, P(*spec)))


def state(step, mesh=None):
    """Parameters and optimizer state whose values say which step they are of."""
    mesh, rng = mesh or mesh_of(2, 4), np.random.default_rng(step)
    params = {
        'h': {
            'w': placed(rng.standard_normal((64, 128), dtype=np.float32), mesh, 'data', 'fsdp'),
            'b': placed(jnp.asarray(rng.standard_normal(128), jnp.bfloat16), mesh),
        },
        'wte': placed(rng.standard_normal((512, 64), dtype=np.float32), mesh, 'fsdp'),
    }
    decayed = {'h': {'w': True, 'b': False}, 'wte': True}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, mask=decayed))
    key = placed(np.array([0, step], np.uint32), mesh)
    return {'params': params, 'opt_state': jax.jit(optimizer.init)(params), 'rng': {'key': key}}


def abstract(tree, change=lambda spec: spec, mesh=None):
    """Shapes with shardings on `mesh`, whose specs are changed by `change`."""
    mesh = mesh or mesh_of(2, 4)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, change(getattr(x.sharding, 'spec', P())))
        ),
        tree,
    )


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture
def make(tmp_path):
    """Makes checkpointers of one directory and closes them at the end."""
    made = []

    def make(**options):
        made.append(Checkpointer(tmp_path / 'checkpoints', **options))
        return made[-1]

    yield make
    for checkpointer in made:
        checkpointer.close()
    gc.collect()  # so that the mark above is in force when those reads are found unfinished


@pytest.fixture
def warnings_seen(monkeypatch):
    seen = []
    monkeypatch.setattr(logging, 'warning', lambda message, *args: seen.append(message % args))
    return seen


def largest_files(folder, count):
    files = [file for file in folder.rglob('*') if file.is_file()]
    return sorted(files, key=lambda file: file.stat().st_size)[-count:]


@jax.jit
def slowly(tree):
    """The same, but after a second or so."""
    slow = jax.lax.fori_loop(0, 150, lambda _, x: jnp.tanh(x @ x), jnp.full((768, 768), 1e-3))
    return jax.tree.map(lambda x: x + jnp.asarray(0 * slow[0, 0], x.dtype), tree)


@pytest.mark.parametrize('spare', [True, False])
def test_where_there_is_room_a_save_does_not_wait_for_the_arrays(spare, make, monkeypatch):
    """What is saved is what the arrays held, also if their memory is given away at once."""
    monkeypatch.setattr(room, 'is_spare', lambda items: spare)
    one = jax.devices()[:1]
    params = lambda step: {'params': jax.device_put(jax.device_get(state(step)['params']), one[0])}
    writer = make(keep_latest=None)
    writer.save(1, params(1), {})  # what is compiled for the first
    for step in (2, 3):
        items = slowly(params(step))
        writer.save(step, items, {})
        assert items['params']['wte'].is_ready() == (not spare)
        jax.jit(lambda tree: jax.tree.map(lambda x: x * 0, tree), donate_argnums=0)(items)
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params(0))
    writer.wait()
    for step in (2, 3):
        assert_same(make().restore(step, wanted)[1], params(step))


def test_round_trip_on_another_mesh(make, tmp_path):
    saved = state(7)
    writer = make()
    writer.save(7, saved, {'data': {'position': 123456789012, 'name': 'é'}, 'list': [1, 2.5, None]})
    writer.wait()
    other = mesh_of(8, 1)
    wanted = abstract(saved, lambda spec: P(*reversed(spec)), other)
    step, items, meta = make().restore_latest(wanted)
    assert step == 7 and meta == {'data': {'position': 123456789012, 'name': 'é'}, 'list': [1, 2.5, None]}
    assert_same(items, saved)
    assert items['params']['h']['w'].sharding == NamedSharding(other, P('fsdp', 'data'))
    assert items['params']['wte'].sharding.is_equivalent_to(NamedSharding(other, P('fsdp')), 2)


def test_what_is_donated_after_a_save_is_saved(make):
    """Large arrays, so that writing and checksums are still going on when the next steps overwrite them."""
    big, writer = {'params': {'w': jnp.arange(2**24, dtype=jnp.float32).reshape(2**12, 2**12)}}, make()
    saved = jax.tree.map(np.array, big)
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2 + 1, tree), donate_argnums=0)
    writer.save(1, big, {})
    for _ in range(5):
        big = step(big)
    writer.close()
    _, items, _ = make().restore(
        1, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), big)
    )
    np.testing.assert_array_equal(items['params']['w'], saved['params']['w'])


def test_what_the_caller_changes_after_a_save_is_not_saved(make, monkeypatch):
    writer, seen, written = make(), [1], []
    writer.save(1, state(1), {})
    save = checkpoint.ocp.args.JsonSave
    monkeypatch.setattr(checkpoint.ocp.args, 'JsonSave', lambda item: written.append(item) or save(item))
    writer.save(2, state(1), {'seen': seen})
    seen.append(2)
    assert written[0]()['record']['meta'] == {'seen': [1]}  # Orbax may write it only now


def test_parameters_alone_do_not_read_or_verify_the_rest(make, tmp_path):
    saved = state(1)
    writer = make()
    writer.save(1, saved, {})
    writer.wait()
    for file in largest_files(tmp_path / 'checkpoints/1/opt_state', 2):
        os.truncate(file, 10)
    step, items, _ = make().restore_latest({'params': abstract(saved['params'])})
    assert step == 1 and list(items) == ['params']
    assert_same(items['params'], saved['params'])
    with pytest.raises(UserError, match='damaged'):
        make().restore(1, abstract(saved))
    with pytest.raises(UserError, match="no 'ema', only params, opt_state, rng"):
        make().restore(1, {'ema': abstract(saved['params'])})


def test_an_empty_directory_is_not_created_by_reading(make, tmp_path):
    reader = make()
    assert reader.restore_latest({}) is None and reader.steps() == []
    assert reader.steps() == reader.steps_by_rank() == []
    assert not (tmp_path / 'checkpoints').exists()
    with pytest.raises(UserError, match='no checkpoint of step 3. The steps here are none'):
        reader.restore(3, {})


@pytest.mark.parametrize('mode, losses', [('min', [5.0, 1.0, 3.0, 4.0, 9.0]), ('max', [5.0, 9.0, 3.0, 4.0, 1.0])])
def test_the_newest_and_the_best_are_both_kept(make, mode, losses):
    best, options = 2, dict(keep_latest=2, keep_best=1, best_metric='loss', best_mode=mode)
    writer = make(**options)
    for step, loss in enumerate(losses, 1):  # the newest is the worst
        writer.save(step, state(step), {}, {'loss': loss, 'other': -loss})
    writer.wait()
    assert writer.steps() == [best, 4, 5]
    assert writer.steps_by_rank()[0] == best
    # A later process reads the metrics from the files. Saves without one count as newest but never as best.
    writer = make(**options)
    writer.save(6, state(6), {})
    writer.save(7, state(7), {}, {'loss': float('-inf' if mode == 'min' else 'inf')})
    writer.save(8, state(8), {}, {'loss': float('nan'), 'other': 0.0})
    writer.wait()
    assert writer.steps() == [best, 7, 8]
    assert make(**options).steps_by_rank()[0] == best


def test_all_are_kept_when_asked_and_a_repeated_step_stays(make):
    writer = make(keep_latest=None)
    for step in (1, 2, 3, 3):
        writer.save(step, state(step), {'call': step})
    writer.save(2, state(9), {})
    writer.close()
    writer.close()
    assert writer.steps() == [1, 2, 3]
    assert_same(make().restore(2, abstract(state(2)))[1], state(2))


def test_bit_flips_never_restore_wrong_values(make, tmp_path, warnings_seen):
    writer = make(keep_latest=2)
    for step in (1, 2):
        writer.save(step, state(step), {'step': step})
    writer.wait()
    wanted, rng, skipped = abstract(state(2)), np.random.default_rng(0), 0
    folder = tmp_path / 'checkpoints/2'
    places = [
        (file, offset)
        for file in largest_files(folder, 5) + [folder / 'record/metadata']
        for offset in rng.integers(0, file.stat().st_size, 5)
    ]
    for file, offset in places:
        whole = file.read_bytes()
        flipped = bytes([whole[offset] ^ 1 << rng.integers(8)])
        file.write_bytes(whole[:offset] + flipped + whole[offset + 1 :])
        step, items, meta = make().restore_latest(wanted)
        assert meta == {'step': step}
        assert_same(items, state(step))
        skipped += step == 1
        file.write_bytes(whole)
    assert skipped == len(warnings_seen) >= 15  # some bytes of the folder mean nothing
    assert all(f'{folder}: The checkpoint is damaged' in line for line in warnings_seen)
    assert make().restore_latest(wanted)[0] == 2


def test_a_damaged_checkpoint_is_replaced_by_the_run_that_goes_on(make, tmp_path, warnings_seen):
    writer = make(keep_latest=2)
    for step in (10, 20):
        writer.save(step, state(step), {})
    writer.close()
    os.truncate(largest_files(tmp_path / 'checkpoints/20/params', 1)[0], 1000)
    writer = make(keep_latest=2)
    step, items, _ = writer.restore_latest(abstract(state(10)))
    assert step == 10 and len(warnings_seen) == 1
    assert_same(items, state(10))
    assert writer.steps() == [10, 20]  # reading removed nothing
    writer.save(15, state(15), {})
    writer.save(20, state(20), {})
    writer.wait()
    assert writer.steps() == [15, 20]
    assert_same(writer.restore_latest(abstract(state(20)))[1], state(20))


@pytest.mark.parametrize('breakage', ['missing', 'truncated', 'record'])
def test_all_damaged_is_an_error(make, tmp_path, breakage):
    writer = make()
    for step in (1, 2):
        writer.save(step, state(step), {})
    writer.wait()
    for step in ('1', '2'):
        folder = tmp_path / 'checkpoints' / step
        file = folder / 'record/metadata' if breakage == 'record' else largest_files(folder / 'params', 1)[0]
        file.unlink() if breakage == 'missing' else os.truncate(file, 20)
    with pytest.raises(UserError, match=r'checkpoints: Every checkpoint is damaged \(1, 2\)\. .*copy'):
        make().restore_latest(abstract(state(1)))
    assert make(best_metric='loss').steps_by_rank() == [2, 1]


def test_what_does_not_fit_is_named_and_is_not_damage(make, warnings_seen):
    saved = state(1)
    writer = make()
    writer.save(1, {'params': saved['params']}, {})
    writer.wait()

    def error(change):
        params = abstract(saved['params'])
        change(params)
        with pytest.raises(UserError) as caught:
            make().restore_latest({'params': params})
        return str(caught.value)

    def leaf(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh_of(2, 4), P()))

    assert 'params/wte is float32[512, 64] there, float32[500, 64] here' in error(
        lambda params: params.update(wte=leaf((500, 64), jnp.float32))
    )
    assert 'params/h/b is bfloat16[128] there, float32[128] here' in error(
        lambda params: params['h'].update(b=leaf((128,), jnp.float32))
    )
    assert 'params/h/c is absent there, float32[3] here' in error(
        lambda params: params['h'].update(c=leaf((3,), jnp.float32))
    )
    assert 'params/wte is float32[512, 64] there, absent here' in error(lambda params: params.pop('wte'))
    assert not warnings_seen


KILLED = """
import sys
import jax.numpy as jnp
from gpt1_jax.training.checkpoint import Checkpointer
checkpointer = Checkpointer(sys.argv[1])
for step in range(1, 1000):
    checkpointer.save(step, {'params': {'w': jnp.full((1000, 1000), step, jnp.float32)}}, {'step': step})
    print(step, flush=True)
"""


def test_killed_while_saving_restores_the_latest_complete(make, tmp_path, warnings_seen):
    process = subprocess.Popen(
        [sys.executable, '-c', KILLED, str(tmp_path / 'checkpoints')], stdout=subprocess.PIPE, text=True
    )
    saved = [next(line for line in process.stdout if line == '4\n')]
    process.kill()
    last = int((saved + list(process.stdout))[-1])
    process.wait()
    reader = make()
    step, items, meta = reader.restore_latest(
        {
            'params': {
                'w': jax.ShapeDtypeStruct((1000, 1000), jnp.float32, sharding=NamedSharding(mesh_of(2, 4), P('data')))
            }
        }
    )
    assert last - 1 <= step <= last + 1 and meta == {'step': step}
    np.testing.assert_array_equal(np.asarray(items['params']['w']), np.full((1000, 1000), step, np.float32))
    assert not warnings_seen
    (tmp_path / 'checkpoints/99.orbax-checkpoint-tmp/params').mkdir(parents=True)  # the kill may leave none
    reader.save(step + 1, items, meta)  # cleans up
    reader.wait()
    assert not [folder for folder in (tmp_path / 'checkpoints').iterdir() if 'tmp' in folder.name]


@pytest.mark.parametrize('spare', [True, False])
def test_a_full_disk_is_an_error_and_the_former_checkpoint_stays(spare, make, monkeypatch):
    monkeypatch.setattr(room, 'is_spare', lambda items: spare)
    big = {'params': {'w': jnp.ones((500, 500))}}
    writer = make()
    writer.save(1, big, {})
    writer.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # as good as full: every longer file fails
    refused = pytest.raises(UserError, match='checkpoints: Checkpoints cannot be written .*Make room')
    try:
        for notice in (lambda: writer.save(3, big, {}), writer.wait):
            writer.save(2, big, {})
            with refused:
                notice()
        writer.wait()  # it is told once
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert writer.steps() == [1]
    writer.save(2, big, {})
    writer.wait()
    assert writer.steps() == [1, 2]


def test_a_save_slower_than_the_steps_is_waited_for_and_told_once(make, monkeypatch, warnings_seen):
    seal = checkpoint_folder.seal
    monkeypatch.setattr(checkpoint_folder, 'seal', lambda record: (time.sleep(0.3), seal(record))[1])
    monkeypatch.setattr(checkpoint, '_WAIT_SECONDS', 0.1)
    writer = make(keep_latest=None)
    for step in (1, 2, 3):
        writer.save(step, {'params': {'w': jnp.ones(3)}}, {})
    assert writer.steps() == [1, 2]  # the third is still going on, so that no two do
    writer.wait()
    assert writer.steps() == [1, 2, 3]
    assert len(warnings_seen) == 1 and 'A save took longer than the steps up to the next one' in warnings_seen[0]


def test_what_cannot_be_read_is_named_and_neither_damaged_nor_deleted(make, tmp_path, warnings_seen):
    """A link to itself cannot be opened by anyone, whatever his rights."""
    writer, wanted = make(best_metric='loss'), abstract(state(1))
    for step in (1, 2):
        writer.save(step, state(step), {}, {'loss': step})
    writer.close()
    folder = tmp_path / 'checkpoints/2'
    aside = tmp_path / 'aside'
    for path in (largest_files(folder / 'params', 1)[0], folder / 'params/manifest.ocdbt', folder / 'record/metadata'):
        path.rename(aside)
        path.symlink_to(path)
        one = make()
        with pytest.raises(UserError, match=f'^{path}: The file cannot be read .Too many.*repair the disk'):
            one.restore_latest(wanted)
        path.unlink()
        aside.rename(path)
        assert one.restore_latest(wanted)[0] == 2
    best = folder.parent / '1/record/metadata'
    best.rename(aside)
    best.symlink_to(best)
    with pytest.raises(UserError, match=f'^{best}: The file cannot be read'):
        make(keep_latest=1, best_metric='loss').save(3, state(3), {})  # else it would be deleted
    assert make().steps()[:2] == [1, 2] and not warnings_seen


def test_an_error_of_the_disk_that_passes_is_no_damage(make, monkeypatch, warnings_seen):
    writer = make()
    writer.save(1, {'params': {'w': jnp.ones(3)}}, {})
    writer.close()
    reader, failures = checkpoint_folder._reader(), [OSError('Input/output error')]

    def restore(*values, **named):
        if failures:
            raise failures.pop()
        return reader.restore(*values, **named)

    monkeypatch.setattr(checkpoint_folder, '_reader', lambda: types.SimpleNamespace(restore=restore))
    wanted = {'params': {'w': jax.ShapeDtypeStruct((3,), jnp.float32, sharding=NamedSharding(mesh_of(2, 4), P()))}}
    assert make().restore_latest(wanted)[0] == 1 and not failures and not warnings_seen


def test_the_best_that_is_whole(make, tmp_path, warnings_seen):
    """Damaged in its arrays, or in its record; the advice names a step that can be read."""
    writer = make(keep_latest=None, best_metric='loss')
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 4.0)):
        writer.save(step, {'params': state(step)['params']}, {}, {} if loss is None else {'loss': loss})
    writer.close()
    wanted, folder = {'params': abstract(state(1)['params'])}, tmp_path / 'checkpoints'

    def best():
        one = make(best_metric='loss')
        assert next(one.whole_steps('params')) == one.restore_best(wanted)[0]
        return one.restore_best(wanted)[0]

    assert best() == 2 and not warnings_seen
    file = largest_files(folder / '2/params', 1)[0]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    checkpoint_folder._known.clear()  # it was whole when this process read it
    assert best() == 3 and set(warnings_seen) == {warnings_seen[0]} and f'{folder}/2: The check' in warnings_seen[0]
    (folder / '3/record/metadata').unlink()
    assert best() == 1
    assert f'{folder}/3: The checkpoint is damaged (No such file or directory). It has no rank.' in warnings_seen
    with pytest.raises(DamagedError, match=rf'{folder}/2: .* Use that of step 5, .*: {tmp_path}@5\.$'):
        make().restore(2, wanted)
    with pytest.raises(UserError, match=r'no checkpoint of step 9. The steps here are 1, 2, 4, 5\.'):
        make().restore(9, wanted)
    for step in (1, 4, 5):
        os.truncate(largest_files(folder / f'{step}/params', 1)[0], 10)
    with pytest.raises(DamagedError, match='damaged .* No other checkpoint is whole: restore a copy.$'):
        make().restore(2, wanted)


def test_killed_while_deleting_an_old_one(make, tmp_path, warnings_seen):
    """What is left of it is in nobody's way, and goes with the next save."""
    writer = make()
    for step in (1, 2, 3):
        writer.save(step, {'params': state(step)['params']}, {})
    writer.close()
    for kept in ('record', 'params'):
        writer = make()
        shutil.copytree(tmp_path / f'checkpoints/{writer.steps()[-1]}/{kept}', tmp_path / 'checkpoints/1' / kept)
        assert writer.restore_latest({'params': abstract(state(1)['params'])})[0] == writer.steps()[-1]
        writer.save(writer.steps()[-1] + 1, {'params': state(1)['params']}, {})
        writer.wait()
        assert len(writer.steps()) == 2 and 1 not in writer.steps()
    assert [line.partition(' (')[0] for line in warnings_seen] == [
        f'{tmp_path}/checkpoints/1: The checkpoint is damaged'  # without its record
    ]


def test_no_process_deletes_before_all_know_what(make, monkeypatch, tmp_path):
    """Else the others would not find it, and not wait where Orbax waits for them: here process 0 is the faster one."""
    writer = make(keep_latest=None)
    for step in (1, 2, 3):
        writer.save(step, {'params': {'w': jnp.ones(3)}}, {})
    writer.close()
    deleted, other = [], make()
    faster = lambda: [shutil.rmtree(tmp_path / 'checkpoints' / step) for step in '23']
    monkeypatch.setattr(checkpoint.peers, 'meet', faster)
    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, 'delete', lambda self, step: deleted.append(step))
    other.delete_after(1)
    assert deleted == [2, 3] and other.steps() == [1]


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=f'{tmp_path}/file/x: Checkpoints cannot be written .*write permission'):
        Checkpointer(tmp_path / 'file' / 'x').save(1, {'params': {'w': jnp.ones(3)}}, {})


def test_that_a_file_cannot_be_read_is_the_same_sentence_in_another_process():
    error = checkpoint_folder.Unreadable('/x: The file cannot be read (Permission denied)')
    assert str(pickle.loads(pickle.dumps(error))) == str(error) and str(error).count('repair the disk') == 1
