"""Where computations run: the mesh, and one table per strategy from logical axes to mesh axes.

Only this file knows the names of the mesh axes. A logical axis is a role ('embed', 'heads'); a dimension is sharded
over the mesh axes that the strategy's table gives for its role.
"""

import contextlib
import copy
import functools
import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import logging
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt1_jax import peers
from gpt1_jax.config import check_choice
from gpt1_jax.data.placement import Placement
from gpt1_jax.errors import UserError

AXES = ('data', 'fsdp', 'tensor')  # of mesh.shape
# Slices, which a slow network joins, are the first part of 'data'. No parameter is divided along their axis, so that
# only sums of gradients cross that network.
MESH_AXES = ('slice', *AXES)
BATCH_AXES = ('slice', 'data', 'fsdp')  # all axes along which parameters are whole when they are used

# 'vocab' is 'table_rows' for the softmax, padded.
_REPLICATED = dict.fromkeys(('table_rows', 'table_embed', 'vocab', 'embed', 'heads', 'mlp', 'norm', 'layers'))
_FSDP = {'embed': 'fsdp', 'table_embed': 'fsdp'}
_TENSOR = {'heads': 'tensor', 'mlp': 'tensor', 'vocab': 'tensor'}
STRATEGIES = {  # name: (rules, default mesh shape; a first size of 1 stands for the number of slices)
    'dp': ({}, (-1, 1, 1)),
    'fsdp': (_FSDP, (1, -1, 1)),
    'tp': (_TENSOR, (1, 1, -1)),
    'fsdp+tp': (_FSDP | _TENSOR, (1, -1, 2)),
}

# On a CPU, LLVM's level 1 gives steps as fast as its level 3 and compiles them in three quarters of the time.
_LLVM_LEVEL = 'xla_backend_optimization_level'


class Partitioner:
    """A mesh with the rules of one strategy.

    Attributes:
      mesh: of devices, with the axes MESH_AXES.
      rules: (logical axis, mesh axes) pairs.
      placement: the shards of a batch, and which of them have a device in this process. These may be any of them, and
        other processes may hold them too: the mesh orders and groups devices regardless of processes.
      platform: of the devices: 'cpu', 'gpu' or 'tpu'.
    """

    def __init__(self, strategy: str, shape: tuple[int, ...] = (), devices: Sequence[jax.Device] | None = None):
        """Makes the mesh of all devices, or of `devices`.

        strategy: key of STRATEGIES. shape: (data, fsdp, tensor) with at most one -1; () for the strategy's own. Raises
        UserError for an unknown strategy, or a shape that does not fit the devices.
        """
        check_choice('mesh.strategy', strategy, STRATEGIES)
        table, default = STRATEGIES[strategy]
        devices = jax.devices() if devices is None else devices
        slices = _slices(devices)
        if default[0] == 1:
            default = (len(slices), *default[1:])
        self.mesh = _make_mesh(_mesh_shape(tuple(shape) or default, len(devices)), slices)
        self._strategy = tuple((_REPLICATED | table | {'batch': BATCH_AXES}).items())
        self.rules = self._strategy
        shards = self.mesh.devices.reshape(-1, self.mesh.shape['tensor'])
        self.placement = Placement(
            len(shards),
            [
                shard
                for shard, devices_of_one in enumerate(shards)
                if any(device.process_index == jax.process_index() for device in devices_of_one)
            ],
        )
        self.platform = devices[0].platform
        if self.platform == 'cpu' and len({device.process_index for device in devices}) > 1:
            _connect(self.mesh)

    def jit(self, function: Callable, **options: Any) -> Callable:
        """`jax.jit(function, **options)`, traced and run with this mesh and these rules; has a method `lower` too."""
        if self.platform == 'cpu' and _LLVM_LEVEL not in os.environ.get('XLA_FLAGS', ''):
            options['compiler_options'] = {_LLVM_LEVEL: 1} | (options.get('compiler_options') or {})
        jitted = jax.jit(function, **options)

        def in_mesh(call):
            @functools.wraps(function)
            def wrapped(*args, **kwargs):
                with self._active():
                    return call(*args, **kwargs)

            return wrapped

        run = in_mesh(jitted)
        run.lower = in_mesh(jitted.lower)
        return run

    @contextlib.contextmanager
    def _active(self):
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(self.rules):
            yield

    def spread(self, boxed: Any) -> 'Partitioner':
        """The same, but each data-parallel group of a slice's devices keeps and updates only its part of the parameters
        and of the optimizer's state, which would otherwise be the same in all groups. A model gathers its kernels when
        it uses them (`model.weights`). Every slice has all parts, so that no gathering crosses the network between
        slices.

        boxed: parameters or their shapes, boxed with logical axes; a role whose sizes the groups do not divide stays
        whole. So models of other sizes are spread each in its own way, also by a partitioner that is spread already.
        """
        boxes = [box for box in jax.tree.leaves(boxed, is_leaf=_is_box) if _is_box(box)]
        rules, groups = dict(self._strategy), self.mesh.shape['data']
        sizes = [named for box in boxes for named in zip(box.names, box.value.shape)]
        # A part of the table's rows is contiguous in memory, a part of its columns is not, and needs copies. But with
        # special rows the number of rows is often odd, and a softmax that is divided itself would exchange them.
        table = ('table_embed',) if rules['vocab'] else ('table_rows', 'table_embed')
        for roles in (('embed',), table):  # every large parameter has an axis of one of them
            possible = [role for role in roles if not any(size % groups for name, size in sizes if name == role)]
            if possible and not any(rules[role] for role in roles):
                rules[possible[0]] = 'data'
        spread = copy.copy(self)
        spread.rules = tuple(rules.items())
        return spread

    def sharding(self, *roles: str | None) -> NamedSharding:
        """The sharding of an array by the roles of its first axes; replicated if there are none."""
        return nn.logical_to_mesh_sharding(PartitionSpec(*roles), self.mesh, self.rules)

    def batch_sharding(self) -> NamedSharding:
        """The sharding of a batch's arrays [micro-batches, shards, ...]."""
        return self.sharding(None, 'batch')

    def tree_shardings(self, boxed: Any) -> Any:
        """NamedShardings for a tree of ShapeDtypeStructs boxed with logical axes.

        Raises UserError if a mesh axis does not divide a dimension.
        """
        return jax.tree.map(
            self._leaf_sharding,
            nn.get_partition_spec(boxed),
            unbox(boxed),
            is_leaf=lambda x: isinstance(x, PartitionSpec),
        )

    def _leaf_sharding(self, logical, leaf):
        spec = nn.logical_to_mesh_axes(logical, self.rules) or PartitionSpec()
        for role, axis, size in zip(logical, spec, leaf.shape):
            if axis is not None and size % self.mesh.shape[axis]:
                raise UserError(
                    f'mesh.shape: The axis {axis!r} of size {self.mesh.shape[axis]} does not divide the '
                    f"model's {role!r} dimension of size {size}. Change mesh.shape or mesh.strategy."
                )
        return NamedSharding(self.mesh, spec)

    def abstract_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, types and shardings of what `put_batch` makes."""
        return {
            name: jax.ShapeDtypeStruct(
                (value.shape[0], self.placement.shards, *value.shape[2:]), value.dtype, sharding=self.batch_sharding()
            )
            for name, value in batch.items()
        }

    def put_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Global arrays [micro-batches, shards, ...] from this process's part [micro-batches, local shards, ...]."""
        sharding = self.batch_sharding()

        def put(value):
            def shard(index):
                place = self.placement.local.index(index[1].start or 0)
                return value[:, place : place + 1]

            return jax.make_array_from_callback(
                (value.shape[0], self.placement.shards, *value.shape[2:]), sharding, shard
            )

        return {name: put(value) for name, value in batch.items()}


def unbox(tree: Any) -> Any:
    """`tree` without its boxes of logical axes. Unlike `flax.linen.unbox` it adds no sharding constraints, so it needs
    no mesh."""
    return jax.tree.map(lambda x: x.unbox(apply_constraint=False) if _is_box(x) else x, tree, is_leaf=_is_box)


def is_writer() -> bool:
    """Whether this process writes the files of the run."""
    return jax.process_index() == 0


def _is_box(x):
    return isinstance(x, nn.LogicallyPartitioned)


def _mesh_shape(shape, n_devices):
    if len(shape) != len(AXES) or shape.count(-1) > 1 or any(n < 1 and n != -1 for n in shape):
        raise UserError(
            f'mesh.shape: {shape} is not valid. Give the sizes of {AXES}, at most one of them -1 (all other devices).'
        )
    known = math.prod(n for n in shape if n != -1)
    if n_devices % known or (-1 not in shape and known != n_devices):
        raise UserError(
            f'mesh.shape: {shape} does not fit {n_devices} device{"s" * (n_devices != 1)}. Change it so '
            f'that the product of its sizes is {n_devices}, or change mesh.strategy.'
        )
    return tuple(n_devices // known if n == -1 else n for n in shape)


def _slices(devices):
    """The devices of each slice."""
    slice_of = lambda device: getattr(device, 'slice_index', 0)
    return [list(one) for _, one in itertools.groupby(sorted(devices, key=slice_of), key=slice_of)]


def _make_mesh(shape, slices):
    if shape[0] % len(slices):
        raise UserError(
            f'mesh.shape: {shape} does not fit {len(slices)} slices. Make its first size (data) a multiple of '
            f'{len(slices)}.'
        )
    inside = (shape[0] // len(slices), *shape[1:])
    array = np.stack([mesh_utils.create_device_mesh(inside, one, allow_split_physical_axes=True) for one in slices])
    mesh = Mesh(array, MESH_AXES)
    logging.info('mesh: %s on %d %s device(s)', dict(mesh.shape), array.size, array.flat[0].platform)
    return mesh


def _connect(mesh):
    """Connects the CPU devices of several processes, along all axes, while the processes are together here. By itself
    gloo connects them at first use, and gives up if one process comes 30 s after another, as after a longer
    compilation."""
    axes = [axis for axis, size in mesh.shape.items() if size > 1]
    groups = [some for n in range(len(axes)) for some in itertools.combinations(axes, n + 1)]
    sums = lambda: [jax.lax.psum(jax.lax.axis_index(some), some) for some in groups]
    peers.meet()
    jax.block_until_ready(jax.jit(jax.shard_map(sums, mesh=mesh, in_specs=(), out_specs=PartitionSpec()))())
    multihost_utils.broadcast_one_to_all(np.array(0))  # it has groups of its own
