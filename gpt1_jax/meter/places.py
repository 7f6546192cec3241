"""Where in the model the instructions of a compiled program come from, and how many bytes they move."""

import collections
import re

from gpt1_jax.meter import hlo

_PARTS = re.compile(r'(blocks|attention|mlp|norm_\d|in|out|_lm_loss\w*|lm_loss)')


def place(op_name: str) -> str:
    """The place of an instruction by its `op_name`, without numbers of layers: 'forward blocks/mlp dot_general'."""
    names = [part for part in re.split(r'[/()]', op_name) if part]
    parts = dict.fromkeys(part for part in names if _PARTS.fullmatch(part))
    way = 'backward' if 'transpose' in names else 'forward' if 'jvp' in names else 'update'
    return f'{way} {"/".join(parts)} {names[-1] if names else ""}'


def table(text: str, entries: int) -> str:
    """The bytes of all instructions of a compiled module's text, as often as they run, and the kinds that move most.
    entries: how many kinds."""
    totals, calls = collections.Counter(), collections.Counter()
    for one, times in hlo.executed(text):
        what = f'{one.opcode:20} {place(one.op_name)}'
        totals[what] += one.bytes * times
        calls[what] += times
    lines = [f'{moved / 1e9:8.3f} GB {calls[what]:5} x {what}' for what, moved in totals.most_common(entries)]
    return '\n'.join([f'by instruction, as often as they run: {totals.total() / 1e9:.2f} GB', *lines])
