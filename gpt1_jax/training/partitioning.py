"""Where computations run: the mesh, and one table per strategy from logical axes to mesh axes.

The only file that knows the mesh's axis names. A logical axis is a role ('embed', 'heads'); a dimension is sharded
over the mesh axes that its role maps to in the strategy's table.
"""

import contextlib
import math

import flax.linen as nn
import jax
import numpy as np
from absl import logging
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt1_jax.errors import UserError

AXES = ('data', 'fsdp', 'tensor')
BATCH_AXES = ('data', 'fsdp')  # the batch is sharded over every axis along which parameters are not split in use

# 'table_rows' are never sharded: with the special rows their number is odd. 'vocab' are the same rows, padded for the
# softmax.
_REPLICATED = dict.fromkeys(('table_rows', 'table_embed', 'vocab', 'embed', 'heads', 'mlp', 'norm', 'layers'))
_FSDP = {'embed': 'fsdp', 'table_embed': 'fsdp'}
_TENSOR = {'heads': 'tensor', 'mlp': 'tensor', 'vocab': 'tensor'}
STRATEGIES = {  # name: (rules, default mesh shape)
    'dp': ({}, (-1, 1, 1)),
    'fsdp': (_FSDP, (1, -1, 1)),
    'tp': (_TENSOR, (1, 1, -1)),
    'fsdp+tp': (_FSDP | _TENSOR, (1, -1, 2)),
}


class Partitioner:
    """A mesh with the rules of one strategy.

    Attributes:
      mesh: the device mesh, axes `AXES`.
      rules: (logical axis, mesh axes) pairs.
      groups: number of data-parallel groups, the shards of a batch.
      local_groups: which of them have a device in this process. Neither the order of devices in the mesh nor the size
        of a group follows that of the processes, so these may be any, and another process may have one of them too.
    """

    def __init__(self, strategy: str, shape: tuple[int, ...] = (), devices=None):
        """Args: `strategy`, a key of STRATEGIES; `shape`, (data, fsdp, tensor) with at most one -1, () for the
        strategy's own; `devices`, all of them by default. Raises UserError when they do not fit."""
        if strategy not in STRATEGIES:
            raise UserError(f'mesh.strategy={strategy!r} is unknown; choose one of {", ".join(STRATEGIES)}')
        table, default = STRATEGIES[strategy]
        devices = jax.devices() if devices is None else devices
        self.mesh = _make_mesh(_mesh_shape(tuple(shape) or default, len(devices)), devices)
        self.rules = tuple((_REPLICATED | table | {'batch': BATCH_AXES}).items())
        self.groups = self.mesh.shape['data'] * self.mesh.shape['fsdp']
        self.local_groups = [
            group for group, devices_of_one in enumerate(self.mesh.devices.reshape(self.groups, -1))
            if any(device.process_index == jax.process_index() for device in devices_of_one)]

    @contextlib.contextmanager
    def activate(self):
        """Context in which functions must be traced and run: logical constraints act only inside it."""
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(self.rules):
            yield

    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def batch_sharding(self, axis: int = 0) -> NamedSharding:
        """Sharding of a batch array whose dimension `axis` is that of the data-parallel groups."""
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, BATCH_AXES))

    def tree_shardings(self, boxed):
        """NamedShardings for a tree of ShapeDtypeStructs boxed with logical axes. Raises UserError where a mesh axis
        does not divide a dimension. Call it outside `activate`: in there flax would constrain what it unboxes."""
        specs = nn.get_partition_spec(boxed)
        return jax.tree.map(self._leaf_sharding, specs, nn.unbox(boxed),
                            is_leaf=lambda x: isinstance(x, PartitionSpec))

    def _leaf_sharding(self, logical, leaf):
        spec = nn.logical_to_mesh_axes(logical, self.rules) or PartitionSpec()
        for role, axis, size in zip(logical, spec, leaf.shape):
            if axis is not None and size % self.mesh.shape[axis]:
                raise UserError(f'mesh axis {axis!r} of size {self.mesh.shape[axis]} does not divide the model\'s '
                                f'{role!r} dimension of size {size}; choose another mesh.shape or mesh.strategy')
        return NamedSharding(self.mesh, spec)

    def put_batch(self, batch: dict[str, np.ndarray], axis: int = 0) -> dict[str, jax.Array]:
        """The rows of `local_groups`, along `axis`, put on this process's devices as the shards of one global array."""
        sharding = self.batch_sharding(axis)

        def put(value):
            rows = value.shape[axis] // len(self.local_groups)  # of a group
            shape = (*value.shape[:axis], rows * self.groups, *value.shape[axis + 1:])

            def shard(index):
                place = self.local_groups.index((index[axis].start or 0) // rows)
                return value[(*index[:axis], slice(place * rows, (place + 1) * rows))]

            return jax.make_array_from_callback(shape, sharding, shard)

        return {name: put(value) for name, value in batch.items()}

    def local_rows(self, array: np.ndarray) -> np.ndarray:
        """The rows of `local_groups` of a whole batch [rows, ...]."""
        return array.reshape(self.groups, -1, *array.shape[1:])[self.local_groups].reshape(-1, *array.shape[1:])


def _mesh_shape(shape, n_devices):
    if len(shape) != len(AXES) or shape.count(-1) > 1 or any(n < 1 and n != -1 for n in shape):
        raise UserError(f'mesh.shape={shape} must give the sizes of {AXES}, at most one of them -1 (the rest of the '
                        'devices)')
    known = math.prod(n for n in shape if n != -1)
    if n_devices % known or (-1 not in shape and known != n_devices):
        raise UserError(f'mesh.shape={shape} does not fit {n_devices} device{"s" * (n_devices != 1)}: the product of '
                        f'its sizes must be {n_devices}; change mesh.shape or mesh.strategy')
    return tuple(n_devices // known if n == -1 else n for n in shape)


def _make_mesh(shape, devices):
    slices = len({getattr(device, 'slice_index', 0) for device in devices})
    if slices > 1:  # slices are joined by a slow network: only data parallelism crosses it
        if shape[0] % slices:
            raise UserError(f'mesh.shape={shape} does not fit {slices} slices: its first size (data) must be a '
                            f'multiple of {slices}')
        array = mesh_utils.create_hybrid_device_mesh(
            (shape[0] // slices, *shape[1:]), (slices, 1, 1), devices, allow_split_physical_axes=True)
    else:
        array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    logging.info('mesh: %s on %d %s device(s)', dict(zip(AXES, shape)), len(devices), devices[0].platform)
    return Mesh(array, AXES)
