"""Bytes and FLOPs of each instruction of a compiled program, read off its text.

An estimate from above of what must move: operands read once and results written once. Of an operand that is only
sliced, gathered from or updated in place, the slices count, not the whole.
"""

import dataclasses
import json
import math
import re

_BYTES = {'pred': 1, 's4': 0.5, 'u4': 0.5, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 's32': 4, 'u32': 4, 's64': 8, 'u64': 8,
          'f16': 2, 'bf16': 2, 'f32': 4, 'f64': 8, 'c64': 8, 'c128': 16}
_ARRAY = re.compile(r'\b([a-z][a-z0-9]*)\[([0-9,]*)\]')
_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$')
_OPCODE = re.compile(r'([a-z][\w\-]*)\(')
_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) \(.*\{$')
CONTROL = ('while', 'conditional', 'call', 'async-start', 'async-done', 'async-update')  # their time is that of others
_FREE = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast')
_SLICES = ('dynamic-slice', 'slice', 'gather')


@dataclasses.dataclass
class Instruction:
    """opcode; result: [(bytes an element, shape)], one for each array of a tuple; operands: names; text: of its line;
    root: whether its computation returns it."""

    opcode: str
    result: list
    operands: list
    text: str
    root: bool


@dataclasses.dataclass
class Cost:
    """opcode, where in the source (`op_name`), FLOPs, bytes."""

    opcode: str
    op_name: str
    flops: float
    bytes: float


def costs(text: str) -> dict[str, Cost]:
    """name -> Cost of every instruction of a compiled module's text (`compiled.as_text()`)."""
    computations = _parse(text)
    result = {}
    for instructions in computations.values():
        for name, instruction in instructions.items():
            op_name = re.search(r'op_name="([^"]*)"', instruction.text)
            result[name] = Cost(instruction.opcode, op_name[1] if op_name else '',
                                _flops(instruction, instructions, computations),
                                _moved(instruction, instructions, computations))
    return result


def _parse(text):
    """computation -> name -> Instruction"""
    computations, current = {}, None
    for line in text.splitlines():
        if current is None:
            if (header := _COMPUTATION.match(line)) and ' = ' not in line.split('(')[0]:
                current = computations.setdefault(header[1], {})
        elif line.startswith('}'):
            current = None
        elif match := _INSTRUCTION.match(line):
            name, rest = match.groups()
            shape, rest = _split_shape(rest)
            opcode = _OPCODE.match(rest)
            if opcode:
                arguments = rest[opcode.end():_closing(rest, opcode.end() - 1)]
                current[name] = Instruction(opcode[1], _arrays(shape), re.findall(r'%([\w.\-]+)', arguments), rest,
                                            line.lstrip().startswith('ROOT '))
    return computations


def _split_shape(rest):
    """'(f32[2]{0}, s32[]) tuple(...)' -> its shape, and what follows."""
    end = _closing(rest, 0) + 1 if rest.startswith('(') else rest.find(' ')
    return rest[:end], rest[end:].lstrip()


def _closing(text, start):
    """Where the parenthesis at `start` closes."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == '(') - (text[place] == ')')
        if depth == 0:
            return place
    return len(text)


def _arrays(shape):
    return [(_BYTES.get(kind, 0), tuple(map(int, filter(None, sizes.split(','))))) for kind, sizes in _ARRAY.findall(shape)]


def _size(arrays):
    return sum(width * math.prod(shape) for width, shape in arrays)


def _called(instruction, computations):
    match = re.search(r'(?:calls|to_apply)=%?([\w.\-]+)', instruction.text)
    return computations.get(match[1]) if match else None


def _flops(instruction, instructions, computations):
    """Of matrix products alone: they decide which ceiling is near."""
    if instruction.opcode == 'fusion' and (inside := _called(instruction, computations)):
        return sum(_flops(one, inside, computations) for one in inside.values())
    if not instruction.result or instruction.opcode not in ('dot', 'convolution', 'custom-call'):
        return 0.0
    operands = [instructions[name].result for name in instruction.operands if name in instructions]
    size = math.prod(instruction.result[0][1])
    if instruction.opcode == 'dot':
        contracted = _numbers(r'lhs_contracting_dims=\{([0-9,]*)\}', instruction.text)
        return 2.0 * size * math.prod(operands[0][0][1][axis] for axis in contracted)
    if instruction.opcode == 'convolution' and (labels := re.search(r'dim_labels=\w+_(\w+)->', instruction.text)):
        return 2.0 * size * math.prod(n for n, label in zip(operands[1][0][1], labels[1]) if label != 'o')
    if 'matmul' in instruction.text or 'gemm' in instruction.text:
        try:
            config = json.loads(re.search(r'backend_config=(\{.*\})', instruction.text)[1])
            axes = config['gemm_backend_config']['dot_dimension_numbers']['lhs_contracting_dimensions']
            return 2.0 * size * math.prod(operands[0][0][1][int(axis)] for axis in axes)
        except (TypeError, ValueError, LookupError):
            return 0.0
    return 0.0


def _moved(instruction, instructions, computations):
    if instruction.opcode in _FREE or instruction.opcode in CONTROL:
        return 0.0
    sizes = [_size(instructions[name].result) if name in instructions else 0 for name in instruction.operands]
    written = _size(instruction.result)
    if instruction.opcode in _SLICES:
        return 2.0 * written
    if instruction.opcode == 'dynamic-update-slice':
        return 2.0 * sizes[1]
    inside = _called(instruction, computations) if instruction.opcode == 'fusion' else None
    if inside:
        for name, one in inside.items():
            if one.opcode != 'parameter':
                continue
            number = int(_OPCODE.sub('', one.text, count=1).split(')')[0])
            users = [user for user in inside.values() if name in user.operands]
            if users and all(user.opcode in _SLICES and user.operands[0] == name for user in users):
                sizes[number] = sum(_size(user.result) for user in users)
            elif users and all(user.opcode == 'dynamic-update-slice' and user.operands[0] == name for user in users):
                sizes[number] = 0
        root = next((one for one in inside.values() if one.root), None)
        if root and root.opcode == 'dynamic-update-slice':
            written = _size(inside[root.operands[1]].result) if root.operands[1] in inside else written
    return float(sum(sizes) + written)


def _numbers(pattern, text):
    match = re.search(pattern, text)
    return [int(number) for number in match[1].split(',') if number] if match else []
