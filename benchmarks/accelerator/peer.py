"""Part 4: the same step in PyTorch on the same card, in turns: same shapes, batch, dropout, clipping and AdamW."""

import contextlib
import importlib.util
import json
import subprocess
import sys
import threading

from benchmarks.accelerator.measure import BATCH_SIZES, USUAL, Context
from gpt1_jax.meter.timing import STEPS, rates, spread
from gpt1_jax.model.sizes import SIZES

SIDES = ('ours', 'torch eager', 'torch.compile')


def run(context: Context) -> None:
    if not importlib.util.find_spec('torch'):
        context.report['torch'] = 'not installed'
    else:
        measure(context)
    context.save()


def measure(context: Context) -> None:
    """Measures ours and one peer at a time: all three might not fit the card's memory."""
    tokens = STEPS * BATCH_SIZES[context.size] * SIZES[context.size].sizes['n_positions']
    ours = None
    try:
        with context.attempt('ours') as piece:
            context.need(60)
            form = context.earlier('step').get('fastest', USUAL)
            ours = Worker(_command('peer_ours', context.size, form), context.left() - 10)
            piece |= ours.facts
        for i, side in enumerate(SIDES[1:]):
            with context.attempt(side) as piece:
                context.need(40)
                until = context.left() * (1 - (i + 1) / len(SIDES[1:]))  # for the later peers
                theirs = Worker(_command('peer_torch', context.size, side), context.left() - 10)
                try:
                    piece |= theirs.facts
                    pairs = []
                    # In turns, so that other load on the machine affects both alike.
                    while len(pairs) < 3 or (context.left() > max(until, 20) and len(pairs) < 20):
                        try:
                            pairs.append([worker.round(context.left() - 5) for worker in (ours, theirs) if worker])
                        except ValueError:
                            if not pairs:
                                raise
                            break  # keep the earlier rounds
                finally:
                    theirs.close()
                piece['tokens_per_s'] = rates(tokens, [pair[-1] for pair in pairs])
                if ours:
                    piece['ours_beside_it'] = rates(tokens, [pair[0] for pair in pairs])
                    piece['ours_over_it'] = spread([theirs / ours for ours, theirs in pairs])
    finally:
        if ours:
            ours.close()


def _command(module, *arguments):
    return [sys.executable, '-m', f'benchmarks.accelerator.{module}', *arguments]


class Worker:
    """A side in its own process, which answers each line with the seconds of a round."""

    def __init__(self, command: list[str], patience: float):
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = json.loads(self._answer(patience))

    def round(self, patience: float) -> float:
        with contextlib.suppress(OSError):  # the process has ended; `_answer` then says so
            self._process.stdin.write('\n')
            self._process.stdin.flush()
        return float(self._answer(patience))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self, patience):
        timer = threading.Timer(max(patience, 1), self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise ValueError('the process ended or was too slow: see what it said above, or in log.txt')
        return line


def serve(facts: dict, one_round) -> None:
    """The other end of a Worker: writes the facts, then answers each line with the seconds of a round."""
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        print(one_round(), flush=True)
