"""TPU slices by the names under which they are rented, what their chips can do, and devices to compile for."""

import dataclasses
import importlib.util
import os
import re

from gpt1_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Generation:
    """What a chip can do (cloud.google.com/tpu/docs, the page of each version).

    Attributes:
      kind: `jax.Device.device_kind`.
      memory_gib: of a chip.
      memory_gb_per_s: to and from it.
      ici_gb_per_s: to the other chips of the slice, both directions, over all links.
      dcn_gb_per_s: a chip's share of the network between slices, one direction.
      cores: of a chip; names count these: v4-8 has four chips.
      grids: number of chips -> how they are arranged.
      options: of `topologies.get_topology_desc`; megacore: the two cores of a chip are one device.
    """

    kind: str
    memory_gib: float
    memory_gb_per_s: float
    ici_gb_per_s: float
    dcn_gb_per_s: float
    cores: int
    grids: dict[int, str]
    options: dict = dataclasses.field(default_factory=dict)


_FLAT = {1: '1x1', 4: '2x2', 8: '2x4', 16: '4x4', 32: '4x8', 64: '8x8', 128: '8x16', 256: '16x16'}
_CUBES = {4: '2x2x1', 8: '2x2x2', 16: '2x2x4', 32: '2x4x4', 64: '4x4x4', 128: '4x4x8', 256: '4x8x8', 512: '8x8x8'}
GENERATIONS = {
    'v4': Generation('TPU v4', 32, 1228, 600, 6.25, 2, _CUBES, {'chip_config_name': 'megacore'}),
    'v5e': Generation('TPU v5 lite', 16, 819, 400, 3.125, 1, _FLAT),
    'v5p': Generation('TPU v5', 95, 2765, 1200, 6.25, 2, _CUBES),
    'v6e': Generation('TPU v6 lite', 32, 1640, 800, 12.5, 1, _FLAT),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """One or several equal slices.

    Attributes:
      name: 'v5e-8', or '2xv5e-8' for two of them.
      chips: of all.
    """

    name: str
    generation: Generation
    topology: str
    slices: int
    chips: int

    def devices(self) -> list:
        """`jax.Device`s that describe the chips, to compile for. Raises UserError without libtpu."""
        if importlib.util.find_spec('libtpu') is None:
            raise UserError(
                'slice: libtpu, which compiles for TPUs, is not installed. Install it with pip install -e ".[tpu]"; no '
                'TPU is needed.'
            )
        os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # beside another program that compiles
        os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # there is no TPU to ask
        topologies = importlib.import_module('jax.experimental.topologies')  # here, because configs import this module
        options = dict(self.generation.options)
        if self.chips == self.slices:
            options['chips_per_host_bounds'] = (1, 1, 1)
        described = topologies.get_topology_desc(
            self.topology, platform='tpu', **options, **({'num_slices': self.slices} if self.slices > 1 else {})
        )
        return list(described.devices)


def named(name: str) -> Slice:
    """The slice of a name. Raises UserError for an unknown one."""
    match = re.fullmatch(r'(?:([2-9]|[1-9]\d+)x)?((v\d[a-z]?)-(\d+))', name.replace('v5litepod', 'v5e'))
    known = {
        f'{generation}-{chips * one.cores}': (one, f'{generation}:{grid}', chips)
        for generation, one in GENERATIONS.items()
        for chips, grid in one.grids.items()
    }
    if not match or match[2] not in known:
        raise UserError(
            f'slice: {name!r} is unknown (several equal ones are written 2xv5e-8). Choose one of {", ".join(known)}.'
        )
    generation, topology, chips = known[match[2]]
    slices = int(match[1] or 1)
    return Slice(name, generation, topology, slices, slices * chips)
