"""Bytes and FLOPs of each instruction of a compiled program, from its text.

Bytes are an estimate: every operand is read once and every result written once. If an operand is only sliced, gathered
from or updated in place, only the slices count; arrays in a TPU's on-chip memory do not count. A kernel that reads
twice moves more; one with operands still in the cache moves less.
"""

import dataclasses
import math
import re

# An array's type, sizes and layout; S(1) in a layout is memory on the chip.
_ARRAY = re.compile(r'\b([a-z]+)(\d*)\w*\[([0-9,]*)\](\{[^}]*\bS\(1\)[^}]*\})?')
_INSTRUCTION = re.compile(r'^\s*(ROOT )?%?([\w.\-]+) = (.*)$')
_OPCODE = re.compile(r'([a-z][\w\-]*)\(')
_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) \(.*\{$')
CONTROL = ('while', 'conditional', 'call')  # they run other instructions, for which bytes, FLOPs and time count
_FREE = (*CONTROL, 'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'opt-barrier')
_SLICES = ('dynamic-slice', 'slice', 'gather')
_UPDATES = ('dynamic-update-slice', 'scatter')
COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-', 'ragged-all-to-all')
_VIEWS = ('bitcast', 'convert', 'copy', 'reshape', 'transpose')  # inside a fusion: other names for the same elements


@dataclasses.dataclass
class Instruction:
    """An instruction.

    Attributes:
      opcode: its kind.
      result: [(bytes per element, shape)], one for each array of a tuple.
      operands: their names.
      shape: the text of the result's type.
      text: of its line, from the opcode on.
      root: whether its computation returns it.
    """

    opcode: str
    result: list
    operands: list
    shape: str
    text: str
    root: bool

    @property
    def bytes(self) -> int:
        return sum(width * math.prod(shape) for width, shape in self.result)


@dataclasses.dataclass
class Cost:
    """FLOPs and bytes of one execution, its place in the source (`op_name`), and whether devices communicate in it."""

    opcode: str
    op_name: str
    flops: float
    bytes: float
    collective: bool = False


def costs(text: str) -> dict[str, Cost]:
    """name -> Cost of every instruction of a compiled module's text (`compiled.as_text()`).

    Instructions inside a fusion or an asynchronous instruction have their own costs, which are also part of the whole.
    """
    computations = parse(text)
    return {name: _cost(one, inside, computations) for inside in computations.values() for name, one in inside.items()}


def executed(text: str, rounds: bool = True) -> list[tuple[Cost, int]]:
    """(Cost, how often) of every instruction that one run of the module executes by itself, not as a part of another.

    A loop counts as one round if the compiler does not know how many it has, or `rounds` is not set.
    """
    computations = parse(text)
    return [
        (_cost(one, computations[name], computations), times)
        for name, times in runs(text, computations, rounds)
        for one in computations[name].values()
        if one.opcode not in CONTROL
    ]


def runs(text: str, computations: dict, rounds: bool = True) -> list[tuple[str, int]]:
    """(name, how often) of the computations that one run of the module enters, except those inside of instructions.
    rounds: see `executed`."""
    found = [(re.search(r'^ENTRY %?([\w.\-]+)', text, re.MULTILINE)[1], 1)]
    for name, times in found:
        for one in computations[name].values():
            if one.opcode in CONTROL:
                bodies = re.findall(r'(?:body|to_apply|true_computation|false_computation)=%?([\w.\-]+)', one.text)
                found += [(body, times * (_rounds(one, computations) if rounds else 1)) for body in bodies]
    return found


def _rounds(one, computations):
    """The rounds of a loop: as the compiler noted, or, on a TPU, the constant that its condition compares with."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', one.text):
        return int(known[1])
    condition = re.search(r'condition=%?([\w.\-]+)', one.text)
    inside = computations[condition[1]].values() if condition else ()
    bounds = [match[1] for each in inside if (match := re.match(r'constant\((\d+)\)', each.text))]
    counts = any(each.root and each.opcode == 'compare' and 'direction=LT' in each.text for each in inside)
    return int(bounds[0]) if counts and len(bounds) == 1 else 1


def _cost(one, inside, computations):
    body = (called(one, computations) or {}).values()
    texts = [one.text, *(each.text for each in reversed(body))]
    named = (re.search(r'op_name="([^"]*)"', each) for each in texts)
    op_name = next((match[1] for match in named if match), '')
    collective = any(each.opcode.startswith(COLLECTIVES) for each in (one, *body))
    moved = float(_moved(one, inside, computations))
    return Cost(one.opcode, op_name, _flops(one, inside, computations), moved, collective)


def parse(text: str) -> dict[str, dict[str, Instruction]]:
    """computation -> name -> Instruction, of a compiled module's text."""
    computations, current = {}, None
    for line in text.splitlines():
        if current is None:
            if header := _COMPUTATION.match(line):
                current = computations.setdefault(header[1], {})
        elif line.startswith('}'):
            current = None
        elif match := _INSTRUCTION.match(line):
            root, name, rest = match.groups()
            end = _closing(rest, 0) if rest.startswith('(') else rest.find(' ')  # of a tuple's or an array's shape
            shape, rest = rest[:end], rest[end:].lstrip()
            if opcode := _OPCODE.match(rest):
                operands = rest[opcode.end() : _closing(rest, opcode.end() - 1)]
                current[name] = Instruction(
                    opcode[1], _arrays(shape), re.findall(r'%([\w.\-]+)', operands), shape, rest, bool(root)
                )
    return computations


def _closing(text, start):
    """Index after the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == '(') - (text[place] == ')')
        if depth == 0:
            return place + 1
    return len(text)


def _arrays(shape):
    """[(bytes per element, shape)]; 0 bytes for arrays in on-chip memory."""
    return [
        (
            0 if on_chip else 1 if kind == 'pred' else int(bits or 0) / 8,
            tuple(int(size) for size in sizes.split(',') if size),
        )
        for kind, bits, sizes, on_chip in _ARRAY.findall(shape)
    ]


def called(one: Instruction, computations: dict) -> dict[str, Instruction] | None:
    """The computation of a fusion or an asynchronous instruction, else None."""
    match = re.search(r'\bcalls=%?([\w.\-]+)', one.text)
    return computations.get(match[1]) if match else None


def _flops(one, inside, computations):
    """FLOPs of matrix products only: these decide which ceiling is nearer."""
    if body := called(one, computations):
        return sum(_flops(each, body, computations) for each in body.values())
    if one.opcode not in ('dot', 'convolution', 'custom-call'):
        return 0.0
    shapes = [inside[name].result[0][1] for name in one.operands if name in inside]
    result = one.result[0][1]
    if one.opcode == 'convolution':
        return 2.0 * _products(result, shapes, one.text)
    # A dot, or a call of cuBLAS.
    contracted = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([0-9,"]*)', one.text)
    if contracted is None:
        return 0.0
    return 2.0 * math.prod(result) * math.prod(shapes[0][int(axis)] for axis in re.findall(r'\d+', contracted[1]))


def _products(result, shapes, text):
    """Multiplications of a convolution, without those with padding and holes. In a TPU's program every matrix product
    is a convolution, and a batch is an axis with holes."""
    labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', text).groups()
    data, kernel, out = (dict(zip(names, shape)) for names, shape in zip(labels, (*shapes, result)))
    window = dict(re.findall(r'(\w+)=([\w\-]+)', re.search(r'window=\{([^}]*)\}|$', text)[1] or ''))
    products = out['b'] * out['f'] * kernel['i']
    for axis in filter(str.isdigit, labels[2]):
        setting = lambda name, default: (  # of this axis: '7_0' of pad=0_0x7_0
            window[name].split('x')[int(axis)] if name in window else default
        )
        stride, holes, spread = (int(setting(name, '1')) for name in ('stride', 'lhs_dilate', 'rhs_dilate'))
        pad = int(setting('pad', '0').split('_')[0])
        places = (o * stride + k * spread - pad for o in range(out[axis]) for k in range(kernel[axis]))
        products *= sum(place % holes == 0 and 0 <= place // holes < data[axis] for place in places)
    return products


def _moved(one, inside, computations):
    """Bytes that an instruction reads and writes."""
    if one.opcode in _FREE or one.opcode.endswith(('-done', '-update')):
        return 0
    sizes = [inside[name].bytes if name in inside else 0 for name in one.operands]
    if body := called(one, computations):
        reads = (min(size, _read(body, i, computations)) for i, size in enumerate(sizes))
        return sum(reads) + _written(body, computations)
    if one.opcode.removesuffix('-start') in _SLICES:  # the result of an asynchronous one: operands, then the slice
        width, shape = one.result[len(one.operands) if one.opcode.endswith('-start') else 0]
        return (inside[one.operands[0]].result[0][0] + width) * math.prod(shape) + sum(sizes[1:])
    if one.opcode in _UPDATES:
        accesses = 2 if one.opcode == 'scatter' else 1  # a scatter adds to what was there
        return sum(sizes[1:]) + accesses * _updated(one, inside) * one.result[0][0]
    if one.opcode == 'custom-call':
        return sum(sizes) + one.bytes - _room(one.result[1:]) if sizes else 0  # without operands: only reserves memory
    if one.opcode.endswith('-start') and one.bytes > sum(sizes):  # its result includes its operands
        return one.bytes
    return sum(sizes) + one.bytes


def _room(arrays):
    """Bytes of the workspace of cuBLAS and cuDNN, which is recognised by its form: flat, of type s8."""
    return sum(shape[0] for width, shape in arrays if width == 1 and len(shape) == 1)


def _read(body, number, computations):
    """Bytes that a fusion reads of its operand `number`; infinite if all of it."""
    total, width = 0, 0
    names = []  # (the operand or a view of it, whether updated)
    for name, one in body.items():
        if one.opcode == 'parameter' and one.text.startswith(f'parameter({number})'):
            names, width = [(name, False)], one.result[0][0] if one.result else 0
    for name, updated in names:
        for user_name, user in body.items():
            for place in [i for i, operand in enumerate(user.operands) if operand == name]:
                in_place = user.opcode in _UPDATES and place == 0
                if in_place or user.opcode in _VIEWS:
                    if user.root and not updated and not in_place:
                        return math.inf
                    names.append((user_name, updated or in_place))
                    total += width * _updated(user, body) if in_place and user.opcode == 'scatter' else 0
                elif user.opcode in _SLICES and place == 0:
                    total += width * math.prod(user.result[0][1])
                elif user.opcode == 'fusion':
                    total += _read(called(user, computations), place, computations)
                elif not (user.opcode == 'tuple' and updated):
                    return math.inf
    return total


def _written(body, computations):
    """Bytes that a fusion writes."""
    total, roots = 0, [one for one in body.values() if one.root]
    for root in roots:
        one, updated = root, 0
        while one.opcode in (*_VIEWS, *_UPDATES):
            updated += _updated(one, body) if one.opcode in _UPDATES else 0
            one = body[one.operands[0]]
        if root.opcode == 'tuple':
            roots += [body[name] for name in root.operands]
        elif root.opcode == 'fusion':
            total += _written(called(root, computations), computations)
        elif updated and one.opcode == 'parameter':  # in place
            total += updated * root.result[0][0]
        else:
            total += root.bytes - (_room(root.result) if root.opcode in ('custom-call', 'get-tuple-element') else 0)
    return total


def _updated(one, inside):
    """Elements that an update writes."""
    updates = one.operands[1:2] if one.opcode == 'dynamic-update-slice' else one.operands[len(one.operands) // 2 + 1 :]
    return sum(math.prod(inside[name].result[0][1]) for name in updates)
