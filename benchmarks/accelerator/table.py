"""The table at the end, from the reports of the parts. Uses only the standard library."""


def table(reports: dict[str, dict]) -> str:
    """Markdown of the reports, by part."""
    lines = []
    for name, report in reports.items():
        status = f'{report["status"]}, {report["seconds"]:.0f} s' if 'status' in report else 'killed'
        lines += [f'## {name} ({status})', '', *_SECTIONS[name](report), '']
    return '\n'.join(lines)


def _spread(value, digits=0):
    return f'{value["median"]:,.{digits}f} ({value["min"]:,.{digits}f} to {value["max"]:,.{digits}f})'


def _rows(header, rows):
    line = lambda cells: '| ' + ' | '.join(str(cell) for cell in cells) + ' |'
    return [line(header), '|' + '---|' * len(header), *map(line, rows)]


def _fault(piece):
    """The error of a piece, or why it was skipped, or None."""
    if 'skipped' in piece:
        return piece['skipped']
    return f'failed: {piece["error"]}' if 'error' in piece else None


def _pieces(report):
    return {
        name: piece for name, piece in report.items() if isinstance(piece, dict) and {'piece_s', 'error'} & piece.keys()
    }


def _ceilings(report):
    if 'device' not in report:
        return ['nothing measured']
    versions = ', '.join(f'{name} {version}' for name, version in report['versions'].items() if version)
    rows = []
    for name, piece in _pieces(report).items():
        value = _fault(piece) or (
            f'{_spread(piece["tflops"], 2)} TFLOP/s' if 'tflops' in piece else f'{_spread(piece["gb_per_s"])} GB/s'
        )
        rows.append((name, value))
    return [
        f'{report["devices"]} x {report["device"]} ({report["platform"]}), {report["cores"]} cores, '
        f'{report["when"]}; {versions}',
        '',
        *_rows(('ceiling', 'median (least to most)'), rows),
    ]


def _right(report):
    rows = []
    for name, piece in _pieces(report).items():
        error = next((f'{float(piece[key]):.2g}' for key in ('relative', 'gradients', 'different') if key in piece), '')
        verdict = _fault(piece) or ('right' if piece.get('ok') else 'WRONG' if 'ok' in piece else 'reference')
        if verdict == 'WRONG' and piece.get('two_equal_runs_are_equal') is False:  # sums there have no fixed order
            verdict = 'differs, as two equal runs do'
        rows.append((name, piece.get('compared', ''), error, piece.get('allowed', ''), verdict))
    return _rows(('check', 'compared', 'error', 'allowed', ''), rows)


def _step(report):
    rows = []
    for name, piece in _pieces(report).items():
        rows.append(
            (
                name,
                *(
                    [_fault(piece)] + [''] * 5
                    if _fault(piece)
                    else [
                        _spread(piece['tokens_per_s']),
                        f'{piece["mfu"]:.1%}' if piece['mfu'] else 'unknown',
                        f'{piece["step_ms"]:.1f}',
                        f'{piece["memory_gb"]:.2f}',
                        f'{piece["compile_s"]:.0f}' + ', from the cache' * piece['from_cache'],
                        piece['attention'],
                    ]
                ),
            )
        )
    return _rows(('form', 'tokens/s', 'MFU', 'ms a step', 'GB', 'compile s', 'attention'), rows)


def _profile(report):
    profile = report.get('profile', {'error': 'nothing measured'})
    if 'kernels' not in profile:
        return [_fault(profile)]
    number = lambda value: f'{value:.0%}' if value is not None else ''
    return [
        f'{profile["form"]}: kernels take {profile["device_ms_per_step"]:.1f} ms a step; these '
        f'{profile["kernels_shown"]:.0%} of it:',
        '',
        *_rows(
            ('instruction', 'source', 'calls', 'ms', 'share', 'GFLOP', 'GB', 'of ceiling'),
            [
                (
                    k['instruction'],
                    k['source'],
                    k['calls_per_step'],
                    f'{k["ms_per_step"]:.2f}',
                    number(k['share']),
                    f'{k["gflop"]:.1f}',
                    f'{k["gb"]:.3f}',
                    number(k['of_ceiling']),
                )
                for k in profile['kernels']
            ],
        ),
    ]


def _peer(report):
    if 'torch' in report:
        return [f'PyTorch: {report["torch"]}']
    rows = []
    for name, piece in _pieces(report).items():
        values = [
            _spread(piece[key], digits) if key in piece else ''
            for key, digits in (('tokens_per_s', 0), ('ours_beside_it', 0), ('ours_over_it', 2))
        ]
        if name != 'ours' or _fault(piece):
            rows.append((name, _fault(piece) or values[0], *values[1:]))
    return _rows(('side', 'tokens/s', 'ours in turns with it', 'ratio of each pair'), rows)


def _use(report):
    rows = []
    for name, piece in _pieces(report).items():
        rate = next(
            (
                f'{_spread(piece[key], 1)} {unit}'
                for key, unit in (('examples_per_s', 'examples/s'), ('tokens_per_s', 'tokens/s'))
                if key in piece
            ),
            '',
        )
        if 'stall_s' in piece:
            rate = (
                f'{piece["gb"]:.2f} GB: the loop waits {piece["stall_s"]["median"]:.2f} s, whole save '
                f'{piece["save_s"]["median"]:.2f} s, raw write {piece["raw_write_s"]["median"]:.2f} s'
            )
        rows.append((name, _fault(piece) or rate))
    return _rows(('what', 'median (least to most)'), rows)


def _paper(report):
    if 'pretrain' not in report:
        return [report.get('skipped', 'nothing measured')]
    lines = [_fault(report['pretrain']) or report['pretrain']['said'], '']
    rows = []
    for name, variants in report.get('finetune', {}).items():
        cell = lambda variant: ', '.join(f'{100 * run["best"]:.1f}' for run in variants.get(variant, ()))
        first = next(iter(variants.values()))[0]
        rows.append(
            (
                name,
                first['metric'],
                first['train_examples'],
                first['dev_examples'],
                *map(cell, ('pre-trained', 'from scratch', 'no auxiliary loss')),
            )
        )
    return lines + _rows(
        ('data set', 'metric', 'training examples', 'dev examples', 'pre-trained', 'from scratch', 'no auxiliary loss'),
        rows,
    )


_SECTIONS = {
    'ceilings': _ceilings,
    'right': _right,
    'step': _step,
    'profile': _profile,
    'peer': _peer,
    'use': _use,
    'paper': _paper,
}
