"""What the benchmark measured, as text for a terminal."""

from collections.abc import Sequence

from gpt1_jax.report.tables import format_table


def table(report: dict) -> str:
    """The text of a report of the task `benchmark`, with what is in it so far."""
    machine = report['machine']
    lines = [
        ', '.join(f'{name} {value}' for name, value in report['measured'].items()),
        f'on {machine["devices"]} x {machine["device"]} ({machine["platform"]}), jax {machine["versions"]["jax"]}',
    ]
    if 'ceilings' in report:
        ceilings, peak = report['ceilings'], report['vendors_peak_tflops']
        product, copy = ceilings['product']['tflops']['median'], ceilings['copy']['gb_per_s']['median']
        says = f'; the vendor says {peak:.4g}' if peak else ''
        lines.append(
            f'ceilings of a device: {product:.4g} TFLOP/s ({ceilings["dtype"]} product{says}), {copy:.4g} GB/s (copy)'
        )
    parts = ['\n'.join(lines)]
    if found := report.get('training'):
        parts.append(_columns(found, _TRAINING))
    if found := report.get('generation'):
        parts.append(_columns(found, _GENERATION))
    if tried := report.get('sweep', {}).get('tried'):
        parts.append(_sweep(tried))
    if machine['platform'] == 'cpu':
        parts.append("A CPU's caches are faster than the ceiling of a copy, so the least time may be more than 100%.")
    return '\n\n'.join(parts + report.get('advice', []))


def _spread(value, spec=',.0f'):
    return f'{value["median"]:{spec}} ({value["min"]:{spec}} to {value["max"]:{spec}})'


def _share(ms, of_ms):
    return f'{ms:.2f} ms  {ms / of_ms:.0%}'


def _part(name):
    return lambda found: f'{found["host_ms"][name]:.2f} ms  {found["host_share"][name]:.0%}'


def _of_step(get):
    return lambda found: None if get(found) is None else _share(get(found), found['step_ms'])


def _memory(found):
    return f'{found["peak_gb"]:.3g} GB, says {found["peak_from"]}'


def _compilation(found):
    return f'{found["compile_s"]:.1f} s' + (', read from the cache' if found['from_cache'] else '')


# (name of the line, what is measured -> its text, or None if there is none). KeyError: it was not measured.
_TRAINING = (
    ('tokens/s', lambda found: _spread(found['tokens_per_s'])),
    ('MFU', lambda found: 'unknown' if found['mfu'] is None else f'{found["mfu"]:.1%}'),
    ('examples/s, steps', lambda found: _spread(found['examples_per_s'], ',.1f')),
    ('examples/s, evaluation', lambda found: f'{found["evaluation_examples_per_s"]["median"]:,.1f}'),
    ('examples/s, epoch and evaluation', lambda found: f'{found["epoch_examples_per_s"]:,.1f}'),
    ('step in the loop', lambda found: f'{found["step_ms"]:.2f} ms  100%'),
    ('  waiting for input', _part('input')),
    ('  placing the batch', _part('placing')),
    ('  launching (a CPU: computing)', _part('dispatch')),
    ('  waiting for the device', _part('waiting')),
    ('step alone', _of_step(lambda found: found['alone_ms']['median'])),
    ('  of it between devices', _of_step(lambda found: found['collectives_ms'])),
    ('least time at the ceilings', _of_step(lambda found: found['roofline']['least_ms'])),
    ('  if only FLOPs took time', _of_step(lambda found: found['roofline']['arithmetic_ms'])),
    ('  if only bytes took time', _of_step(lambda found: found['roofline']['memory_ms'])),
    ('FLOPs, bytes moved', lambda found: f'{found["roofline"]["gflop"]:,.4g} GFLOP, {found["roofline"]["gb"]:,.4g} GB'),
    ('peak memory', _memory),
    ('compilation', _compilation),
)
_GENERATION = (
    ('tokens/s', lambda found: _spread(found['tokens_per_s'], ',.1f')),
    ('first token', lambda found: f'{found["first_token_ms"]["median"]:.2f} ms'),
    ('each following token', lambda found: f'{found["token_ms"]:.2f} ms  100%'),
    ('least time at the ceilings', lambda found: _share(found['roofline']['least_ms'], found['token_ms'])),
    ('bytes moved a token', lambda found: f'{found["roofline"]["gb"]:,.4g} GB'),
    ('peak memory', _memory),
    ('compilation and first run', lambda found: f'{found["compile_s"]:.1f} s'),
)


def _columns(found, lines):
    """A column for each thing that was measured."""
    entries = []
    for label, text in lines:
        cells = [_cell(text, one) for one in found.values()]
        if any(cell is not None for cell in cells):
            entries.append((label, *cells))
    skipped = [f'{name}: {one["skipped"]}' for name, one in found.items() if 'skipped' in one]
    return '\n'.join([format_table([('', 34, ''), *((name, 24, '') for name in found)], entries), *skipped])


def _cell(text, found):
    try:
        return text(found)
    except KeyError:
        return None


def _sweep(tried: Sequence[dict]) -> str:
    keys = list(tried[0]['settings'])
    columns = [
        *((key.rpartition('.')[2], 12, '') for key in keys),
        ('tokens/s', 12, ',.0f'),
        ('least', 10, ',.0f'),
        ('most', 10, ',.0f'),
        ('GB', 7, '.2f'),
    ]
    entries = []
    for one in tried:
        speed = one.get('tokens_per_s', dict.fromkeys(('median', 'min', 'max')))
        settings = (str(one['settings'][key]) for key in keys)
        entries.append((*settings, speed['median'], speed['min'], speed['max'], one.get('planned_gb')))
    head, *lines = format_table(columns, entries).split('\n')
    notes = (f'  {one["skipped"]}' if 'skipped' in one else '' for one in tried)
    return '\n'.join([head, *(line.rstrip() + note for line, note in zip(lines, notes))])
