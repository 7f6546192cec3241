"""What the devices send each other in one run of a compiled program, from its text."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gpt1_jax.errors import UserError
from gpt1_jax.meter import hlo

# Bytes that a device sends inside its slice and between slices, per byte of its operands, where a group has m devices
# in each of s slices: in rings, inside and between.
_SENT = {
    'all-reduce': lambda m, s: (2 * (m - 1) / m, 2 * (s - 1) / s / m),
    'all-gather': lambda m, s: ((m - 1) * s, s - 1),
    'reduce-scatter': lambda m, s: ((m - 1) / m, (s - 1) / s / m),
    'all-to-all': lambda m, s: ((m - 1) / m / s, (s - 1) / s),
    'collective-permute': lambda m, s: (float(s == 1), float(s > 1)),
}
_TRANSFERS = {'ONE_TO_ONE': 'collective-permute'}  # by the host; other kinds have the usual names
# A mesh; the order of its devices, if it is not their own; the axes along which they send.
_MESH = re.compile(
    r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{((?:\'\w+\',?)+)\}'
)
_WIDTHS = re.compile(r'\b([a-z]+)(\d*)\w*\[([0-9,]*)\]')


class Collective(NamedTuple):
    """An instruction in which devices send to each other.

    Attributes:
      kind: 'all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all' or 'collective-permute'.
      times: in one run of the program.
      bytes: of a device's operands.
      groups: int [groups, devices]: who sends to whom, by place in the mesh.
    """

    kind: str
    times: int
    bytes: float
    groups: np.ndarray

    def sent(self, size: int) -> tuple[float, float]:
        """Bytes that a device sends each time, at most: inside its slice of `size` devices, and to other slices."""
        slices = max(len(set(group // size)) for group in self.groups)
        shares = _SENT[self.kind](max(1, self.groups.shape[1] // slices), slices)
        return self.bytes * shares[0], self.bytes * shares[1]


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled module's text (`compiled.as_text()`)."""
    computations = hlo.parse(text)
    return [
        Collective(kind, times, _operand_bytes(one, inside), groups)
        for name, times in hlo.runs(text, computations)
        for one, inside, fused in _instructions(computations[name], computations)
        if (kind := _kind(one, inside, fused)) in _SENT and (groups := _groups(one.text)).shape[1] > 1
    ]


def _instructions(inside, computations, fused=False) -> Iterator:
    """(instruction, the computation that it is in, whether that is inside another instruction) of all instructions."""
    for one in inside.values():
        yield one, inside, fused
        if body := hlo.called(one, computations):
            yield from _instructions(body, computations, fused=True)


def _kind(one, inside, fused):
    """The kind of an instruction, as in `Collective`. In a TPU's program, a reduce-scatter is a fusion of an all-reduce
    with slices of its result, and the host sends what goes to other slices ('megascale')."""
    kind = one.opcode.removesuffix('-start')
    if kind == 'send' and (transfer := re.search(r'_xla_megascale_transfer_type="(\w+)"', one.text)):
        return _TRANSFERS.get(transfer[1], transfer[1].lower().replace('_', '-'))
    if kind == 'all-reduce' and fused and any(each.opcode == 'dynamic-slice' for each in inside.values()):
        return 'reduce-scatter'
    return kind


def _operand_bytes(one, inside):
    """Bytes of all operands, also of those in on-chip memory, which hlo leaves out."""
    return sum(
        (1 if kind == 'pred' else int(bits or 0) / 8) * math.prod(int(size) for size in sizes.split(',') if size)
        for operand in one.operands
        for kind, bits, sizes in _WIDTHS.findall(inside[operand].shape)
    )


def _groups(text):
    if target := re.search(r'_xla_megascale_target="?([^"]*?)"?,_xla', text):
        return _groups_of_host(target[1])
    if pairs := re.search(r'source_target_pairs=\{(\{[\d,{}]*\})\}', text):
        return np.array([pair.split(',') for pair in re.findall(r'\{([\d,]+)\}', pairs[1])], int)
    if listed := re.search(r'replica_groups=\{(\{[\d,{}]*\})\}', text):
        return np.array([group.split(',') for group in re.findall(r'\{([\d,]+)\}', listed[1])], int)
    numbers = lambda text: [int(number) for number in text.split(',')]
    if tiled := re.search(r'replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', text):
        ids = np.arange(int(tiled[1]) * int(tiled[2])).reshape(numbers(tiled[3]))
        return (ids.transpose(numbers(tiled[4])) if tiled[4] else ids).reshape(int(tiled[1]), int(tiled[2]))
    if mesh := re.search(_MESH, text):
        sizes, names = zip(*((int(size), name) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])))
        within = [names.index(name) for name in mesh[4].replace("'", '').split(',')]
        others = [axis for axis in range(len(names)) if axis not in within]
        ids = np.arange(math.prod(sizes)).reshape(numbers(mesh[2]) if mesh[2] else sizes)
        ids = (ids.transpose(numbers(mesh[3])) if mesh[3] else ids).reshape(sizes).transpose(others + within)
        return ids.reshape(-1, math.prod(sizes[axis] for axis in within))
    if re.search(r'replica_groups=(?!\{\})', text):
        raise UserError(
            f'compile: It is unknown which devices send to each other in {text[:300]!r}. Use the versions of JAX and '
            'libtpu that pyproject.toml names.'
        )
    return np.zeros((1, 1), int)


def _groups_of_host(target):
    """The groups of '{1,2}x{0:7}', slices and places in each; or of lists of 100,000 x slice + place."""
    if 'x' in target:
        slices, places = ([_between(one) for one in part.strip('{}').split(',')] for part in target.split('x'))
        groups = [[100_000 * slice_ + place for slice_ in sum(slices, [])] for place in sum(places, [])]
    else:
        groups = [re.findall(r'\d+', one) for one in re.findall(r'\{([^{}]+)\}', target)]
    slices, places = np.divmod(np.array(groups, int), 100_000)
    return (slices - 1) * (places.max() + 1) + places


def _between(text):
    """'0:7' -> [0, ..., 7]; '1' -> [1]"""
    first, _, last = text.partition(':')
    return list(range(int(first), int(last or first) + 1))
