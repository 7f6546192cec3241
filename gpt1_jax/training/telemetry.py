"""What a run tells about itself: metric files, a progress display, tokens per second, and MFU."""

import contextlib
import json
import math
import re
import sys
import time

import jax
from absl import logging
from etils import epath

from gpt1_jax.errors import UserError
from gpt1_jax.progress import progress_bar

PLAIN_LINE_SECONDS = 10.


class MetricWriter:
    """Writes scalars to `workdir/metrics.jsonl`, to `workdir/tensorboard` where tensorboardX is installed, and to
    Weights & Biases when asked.

    Only process 0 writes; in the others every method does nothing.

    Args:
      workdir: the run's folder, created if missing.
      use_wandb: also log to Weights & Biases; a run that resumes in the same workdir goes on with its record.
      config: the run's settings as a dict, shown by Weights & Biases.

    Raises:
      UserError: Weights & Biases is asked for and not installed, or the folder cannot be written.
    """

    def __init__(self, workdir, *, use_wandb=False, config=None):
        self._active = jax.process_index() == 0
        self._workdir = epath.Path(workdir)
        self._path = self._workdir / 'metrics.jsonl'
        self._file = self._tensorboard = self._wandb = None
        self._first_step = None
        if self._active:
            with self._writable():
                self._workdir.mkdir(parents=True, exist_ok=True)
            if use_wandb:
                self._wandb = _start_wandb(self._workdir, config)

    def truncate_after(self, step):
        """Forgets what was written of steps beyond `step`; call it before the first `write` of a resumed run.

        So its file equals an uninterrupted run's, times and rates apart. A last line that a kill cut short goes too.
        TensorBoard is told to hide its later points.
        """
        self._first_step = step + 1
        if not self._active or not self._path.exists():
            return
        kept = []
        for line in self._path.read_text().splitlines():
            with contextlib.suppress(ValueError):  # the line cut short
                if json.loads(line)['step'] <= step:
                    kept.append(line + '\n')
        with self._writable():
            temporary = self._workdir / 'metrics.jsonl.tmp'
            temporary.write_text(''.join(kept))
            temporary.replace(self._path)

    def write(self, step, metrics):
        """Appends one JSON line {"step", "time", **metrics}, flushed; `time` is in seconds since 1970.

        Args:
          step: number of updates done.
          metrics: name -> number. JSON has no NaN and no infinities: there they are the strings 'nan', 'inf'
            and '-inf', which Python's float() takes back.
        """
        if not self._active:
            return
        metrics = {name: float(value) for name, value in metrics.items()}
        now = time.time()
        line = {'step': int(step), 'time': round(now, 3)}
        line |= {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}
        with self._writable():
            self._file = self._file or self._path.open('a')
            self._file.write(json.dumps(line) + '\n')
            self._file.flush()
            if self._tensorboard is None:
                self._tensorboard = _open_tensorboard(self._workdir, self._first_step)
            for name, value in metrics.items() if self._tensorboard else ():
                self._tensorboard.add_scalar(name, value, step, now)
        if self._wandb:
            self._wandb.log(metrics, step=step)

    def close(self):
        """Writes out what is still in memory."""
        for sink in (self._file, self._tensorboard):
            if sink:
                with self._writable():
                    sink.close()
        if self._wandb:
            self._wandb.finish()
        self._file = self._tensorboard = self._wandb = None

    @contextlib.contextmanager
    def _writable(self):
        try:
            yield
        except OSError as error:
            raise UserError(f'cannot write metrics to {self._workdir} ({error}): free some space or name a '
                            'writable folder, then start again: the run resumes') from error


def _open_tensorboard(workdir, first_step):
    """A writer, or False where tensorboardX is not installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        logging.log_first_n(logging.INFO, 'tensorboardX is not installed: metrics go to metrics.jsonl alone', 1)
        return False
    # The suffix: its files are named by the second, so one opened soon after another would overwrite it.
    return SummaryWriter(str(workdir / 'tensorboard'), purge_step=first_step, flush_secs=30,
                         filename_suffix=f'.{time.time_ns()}')


def _start_wandb(workdir, config):
    try:
        import wandb
    except ImportError as error:
        raise UserError('Weights & Biases needs the package wandb: pip install wandb') from error
    name = workdir.name or 'run'
    identity = workdir / 'wandb_id'
    if not identity.exists():
        identity.write_text(wandb.util.generate_id())
    return wandb.init(project='gpt1_jax', name=name, dir=str(workdir), config=config,
                      id=identity.read_text(), resume='allow')


class Progress:
    """Shows how far a run is, on stderr: a bar on a terminal, else a plain line at most every 10 s.

    Process 0 alone shows anything.

    Args:
      total_steps: the step at which the run ends.
      start_step: steps done before, by the run that this one resumes.
      description: a word or two to begin with.
    """

    def __init__(self, total_steps, start_step, description):
        self._total, self._description = total_steps, description
        self._active = jax.process_index() == 0
        self._bar = self._shown = self._first = None
        if self._active:
            self._bar = progress_bar(total=total_steps, initial=start_step, desc=description, unit='step')

    def update(self, step, loss, tokens_per_s, mfu):
        """Shows the state after `step` updates; `tokens_per_s` and `mfu` (0 to 1) are None if unknown."""
        facts = [f'loss {loss:.4f}']
        facts += [f'{tokens_per_s:,.0f} tokens/s'] if tokens_per_s is not None else []
        facts += [f'MFU {mfu:.1%}'] if mfu is not None else []
        if self._bar is not None:
            self._bar.set_postfix_str(', '.join(facts), refresh=False)
            self._bar.update(step - self._bar.n)
        elif self._active:
            now = time.monotonic()
            self._first = self._first or (step, now)
            if self._shown is None or now - self._shown >= PLAIN_LINE_SECONDS or step == self._total:
                self._shown = now
                done = step - self._first[0]  # since the first update, so that compilation does not count
                if done > 0:
                    left = (now - self._first[1]) / done * (self._total - step)
                    facts.append(f'{_duration(left)} left')
                print(f'{self._description}: step {step}/{self._total}, ' + ', '.join(facts),
                      file=sys.stderr, flush=True)

    def close(self):
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def _duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}'


class Throughput:
    """Tokens per second between two readings, without the first step (it compiles) and without pauses.

    Call `step` when a step's result is known, since dispatching it says nothing of its end.
    """

    def __init__(self):
        self._since = None
        self._tokens = 0

    def step(self, tokens):
        """Counts a finished step of so many tokens, over all devices."""
        if self._since is None:
            self._since = time.perf_counter()
        else:
            self._tokens += tokens

    @contextlib.contextmanager
    def pause(self):
        """Leaves out the time spent inside: an evaluation, a checkpoint."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            if self._since is not None:
                self._since += time.perf_counter() - begin

    def read(self):
        """Returns tokens/s since the reading before, or None if no step was counted, and begins anew."""
        if not self._tokens:
            return None
        now = time.perf_counter()
        rate = self._tokens / (now - self._since)
        self._since, self._tokens = now, 0
        return rate


def flops_per_token(n_matmul_parameters, layers, width, length, training=True):
    """Returns floating-point operations per token of a causal transformer.

    The convention: 2 operations for each parameter of a matrix product. GPT-1 has 12 * layers * width^2 of
    them in its blocks and vocabulary * width in the softmax, whose matrix counts once although it is the
    embedding's too, since looking up rows is free. Attention adds, per layer, q.k and the weighted sum of v,
    each 2 * length * width, of which causal attention needs half. Training is three times the forward pass;
    recomputation is not counted. Norms, biases, GELU, dropout and the softmax's exponentials are left out.

    Args:
      n_matmul_parameters: weights that every token is multiplied with.
      layers: attention layers.
      width: of a layer, all heads together.
      length: tokens in a sequence.
      training: forward and backward, else forward only.
    """
    forward = 2 * n_matmul_parameters + layers * 2 * length * width
    return 3 * forward if training else forward


def decoder_flops_per_token(model):
    """Returns `flops_per_token` of training a `Decoder` on sequences as long as it has positions."""
    per_layer = 4 * model.width**2 + 2 * model.width * model.mlp_width
    softmax = (model.vocab_size + model.n_special + model.n_positions) * model.width
    return flops_per_token(model.layers * per_layer + softmax, model.layers, model.width, model.n_positions)


def mfu(tokens_per_s, flops_per_token, peak_flops, devices):
    """Returns the model FLOPs utilisation, 0 to 1, or None where one of them is not known.

    Source: Chowdhery et al. 2022 (PaLM), appendix B, with `flops_per_token`'s halved attention.

    Args:
      tokens_per_s: over all devices.
      flops_per_token: of the function of that name.
      peak_flops: of one device, from the function of that name.
      devices: how many there are.
    """
    if tokens_per_s is None or peak_flops is None:
        return None
    return tokens_per_s * flops_per_token / (peak_flops * devices)


# Dense peaks in TFLOP/s of one JAX device for bfloat16, by jax.Device.device_kind.
# TPU: cloud.google.com/tpu/docs, the page of each version, per chip. JAX shows each of the two cores of a v2
# or v3 chip (46 and 123 TFLOP/s) as a device, while a chip of v4 and later is one device.
# NVIDIA: the data sheets; of a figure with sparsity, half.
_PEAKS = (
    (r'TPU v2', 23),
    (r'TPU v3', 61.5),
    (r'TPU v4', 275),
    (r'TPU v5( lite|e)', 197),
    (r'TPU v5p?', 459),
    (r'TPU v6( lite|e)', 918),
    (r'A100.*', 312),
    (r'L4', 121),
    (r'H100 PCIe', 756),
    (r'H100 NVL', 835),
    (r'H100.*', 989),
    (r'H200 NVL', 835),
    (r'H200.*', 989),
)


def peak_flops(device_kind, dtype):
    """Returns the peak of one device in FLOP/s for matrix products of `dtype`, or None if it is not known.

    Args:
      device_kind: `jax.Device.device_kind`; a part of a GPU (MIG) has no figure.
      dtype: 'bfloat16'; for others there is no figure, and so no MFU.
    """
    if str(dtype) == 'bfloat16' and 'MIG' not in device_kind:
        for pattern, peak in _PEAKS:
            if re.fullmatch(pattern, device_kind.removeprefix('NVIDIA ')):
                return peak * 1e12
    return None
