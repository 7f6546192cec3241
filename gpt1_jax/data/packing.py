"""Fine-tuning batches: the sequences of whole examples, packed into rows of a few shapes.

The examples of a batch are a function of (seed, step) alone: groups, processes and micro-batches only decide
where they stand. Segments must not see each other (mask attention by segment_ids); positions restart in each.
"""

import numpy as np

from gpt1_jax.data.encoded import Encoded
from gpt1_jax.errors import UserError

_LOOK_AHEAD = 64  # batches; planning one takes about a millisecond

def auto_row_length(encoded: Encoded, max_length: int) -> int:
    """The smallest of 64, 128, 256, ... that holds the longest sequence, at most max_length."""
    length = 64
    while length < encoded.sequences.lengths.max():
        length *= 2
    return min(length, max_length)


class FinetuningBatches:
    """Training batches: reshuffled each epoch, the partial last batch dropped (the release).

    `batch_at(step)` gives, for k = accumulation micro-batches, the G / process_count groups of this process,
    R rows of T = row_length tokens, b = ceil(B / k / G) places for examples in a group and S sequences an
    example:

      tokens, segment_ids, positions, lm_targets: int32 [k, G, R, T]; 0 in padding. Segments count from 1 in
        each row; lm_targets[t] is token t + 1 of the same sequence.
      lm_weights: float32 [k, G, R, T], the weight of the prediction of lm_targets. Over the whole batch they
        sum to 1: the mean over B * S sequences of the mean over each one's targets, from the token after
        <start> through <extract> (the release).
      extract: int32 [k, G, b, S]; where each <extract> stands in the group's R * T tokens; 0 in padding.
      labels: int32 | float32 [k, G, b]; 0 in padding and where there are no labels.
      example_weights: float32 [k, G, b]; 1 / B, 0 in padding.
      example_ids: int32 [k, G, b]; index into encoded, -1 in padding.

    R is the same for all groups and processes of a batch: the most rows that one of the first 64 batches needs, and
    for a later batch that needs more the next of 1, 2, 3, 4, 6, 8, 12, 16, ..., so that few shapes are compiled.
    `packing=False` gives every sequence a row of its own: R = b * S.

    Raises:
      UserError: no labels, fewer examples than batch_size, a sequence longer than row_length, or groups that
        the processes do not divide.
    """

    def __init__(self, encoded: Encoded, *, batch_size: int, row_length: int, groups: int = 1,
                 accumulation: int = 1, seed: int = 0, process_index: int = 0, process_count: int = 1,
                 packing: bool = True):
        if encoded.labels is None:
            raise UserError('The training examples have no labels; name a source whose train split has them.')
        if len(encoded.sequences) < batch_size:
            raise UserError(f'There are {len(encoded.sequences)} training examples, fewer than batch_size '
                            f'{batch_size}; lower batch_size or add examples.')
        self._packer = _Packer(encoded, batch_size, row_length, groups, accumulation, process_index,
                               process_count, packing)
        self._examples, self._batch_size, self._seed = len(encoded.sequences), batch_size, seed
        self.steps_per_epoch = self._examples // batch_size
        self._order = (-1, None)  # the epoch asked for last, and its permutation
        self._packer.expect(self.members(step) for step in range(min(_LOOK_AHEAD, self.steps_per_epoch)))

    def batch_at(self, step: int) -> dict[str, np.ndarray]:
        """The arrays of update `step`, counted from 0 over all epochs."""
        return self._packer.arrays(self.members(step), mean=True)

    def members(self, step: int) -> np.ndarray:
        """Which examples update `step` is made of: int [batch_size], indices into encoded."""
        epoch, index = divmod(step, self.steps_per_epoch)
        known, order = self._order
        if known != epoch:
            # RandomState: NumPy keeps its streams the same in all versions (NEP 19).
            order = np.random.RandomState([self._seed, epoch]).permutation(self._examples)
            self._order = epoch, order
        return order[index * self._batch_size:(index + 1) * self._batch_size]


class EvaluationBatches:
    """Every example exactly once, batch after batch in order; the last batch is padded with weight 0.

    `batch_at(i)` gives the arrays of FinetuningBatches without the axis k, with example_weights 1 (padding 0)
    and lm_weights 1 / (targets of the sequence), so that sums over batches can be averaged. example_ids tells
    which example of the batch stands where.
    """

    def __init__(self, encoded: Encoded, *, batch_size: int, row_length: int, groups: int = 1,
                 process_index: int = 0, process_count: int = 1, packing: bool = True):
        self._packer = _Packer(encoded, batch_size, row_length, groups, 1, process_index, process_count,
                               packing)
        self._examples, self._batch_size = len(encoded.sequences), batch_size
        self.steps = -(-self._examples // batch_size)
        self._packer.expect(self._members(index) for index in range(min(_LOOK_AHEAD, self.steps)))

    def batch_at(self, index: int) -> dict[str, np.ndarray]:
        """The arrays of batch `index`, 0 to steps - 1."""
        return {name: array[0] for name, array in self._packer.arrays(self._members(index), mean=False).items()}

    def _members(self, index):
        first = index * self._batch_size
        return np.arange(first, min(first + self._batch_size, self._examples))


class _Packer:
    """Lays examples out as [accumulation, groups of this process, rows, row_length]."""

    def __init__(self, encoded, batch_size, row_length, groups, accumulation, process_index, process_count,
                 packing):
        if groups % process_count:
            raise UserError(f'{groups} data-parallel groups cannot be shared by {process_count} processes; '
                            'choose a mesh whose data-parallel size the processes divide.')
        self._encoded, self._row_length, self._packing = encoded, row_length, packing
        self._lengths = encoded.sequences.lengths  # [n, S]
        if (longest := self._lengths.max()) > row_length:
            raise UserError(f'row_length {row_length} is too short for a sequence of {longest} tokens; '
                            'use row_length "auto" or lower max_length.')
        self._places = -(-batch_size // (accumulation * groups))
        self._accumulation, self._groups = accumulation, groups
        local = groups // process_count
        self._local = range(process_index * local, (process_index + 1) * local)
        self._usual_rows = 0

    def expect(self, batches):
        """Makes the most rows that one of these batches (their members) needs the R of every batch that fits in."""
        if self._packing:
            self._usual_rows = max(_rows(self._layout(bin_)) for members in batches for bin_ in self._deal(members))

    def arrays(self, members, mean):
        """The arrays of the examples `members`; `mean`: weights of the mean over them, else of each alone.

        A bin is one group of one micro-batch. All bins are planned, from lengths alone, because all share R;
        only those of this process are filled.
        """
        bins = self._deal(members)
        layouts = [self._layout(bin_) for bin_ in bins]
        sequences, length = self._lengths.shape[1], self._row_length
        if self._packing:
            rows = max(map(_rows, layouts))
            rows = self._usual_rows if rows <= self._usual_rows else _ladder(rows)
        else:
            rows = self._places * sequences
        labels = self._encoded.labels
        shape = self._accumulation, len(self._local)

        batch = {name: np.zeros((*shape, rows, length), np.int32)
                 for name in ('tokens', 'segment_ids', 'positions', 'lm_targets')}
        batch['lm_weights'] = np.zeros((*shape, rows, length), np.float32)
        batch['extract'] = np.zeros((*shape, self._places, sequences), np.int32)
        batch['labels'] = np.zeros((*shape, self._places), np.int32 if labels is None else labels.dtype)
        batch['example_weights'] = np.zeros((*shape, self._places), np.float32)
        batch['example_ids'] = np.full((*shape, self._places), -1, np.int32)

        weight = 1 / len(members) if mean else 1.0
        for a in range(self._accumulation):
            for g, group in enumerate(self._local):
                one = {name: array[a, g] for name, array in batch.items()}
                bin_, layout = bins[a * self._groups + group], layouts[a * self._groups + group]
                one['example_ids'][:len(bin_)] = bin_
                one['example_weights'][:len(bin_)] = weight
                if labels is not None:
                    one['labels'][:len(bin_)] = labels[bin_]
                self._fill(one, bin_, layout, weight / sequences if mean else 1.0)
        return batch

    def _deal(self, members):
        """Members -> bins, equal in number to within one and alike in tokens (dealt to and fro)."""
        bins = self._accumulation * self._groups
        totals = self._lengths[members].sum(axis=1)
        dealt = members[np.argsort(-totals, kind='stable')]
        turn, place = np.divmod(np.arange(len(dealt)), bins)
        place = np.where(turn % 2, bins - 1 - place, place)
        return [dealt[place == bin_] for bin_ in range(bins)]

    def _layout(self, bin_):
        """First-fit-decreasing: [(row, offset, segment, place in the bin, sequence of the example)]."""
        lengths = self._lengths[bin_]
        count = lengths.shape[1]
        flat = lengths.ravel()
        if not self._packing:
            return [(i, 0, 1, *divmod(i, count)) for i in range(flat.size)]
        used, segments, layout = [], [], []
        for i in np.argsort(-flat, kind='stable').tolist():
            length = int(flat[i])
            row = next((r for r, u in enumerate(used) if u + length <= self._row_length), len(used))
            if row == len(used):
                used.append(0)
                segments.append(0)
            segments[row] += 1
            layout.append((row, used[row], segments[row], *divmod(i, count)))
            used[row] += length
        return layout

    def _fill(self, one, bin_, layout, weight):
        """Writes one bin's sequences into its arrays (views without the axes k and G)."""
        sequences = self._encoded.sequences
        for row, start, segment, place, sequence in layout:
            first = sequences.starts[bin_[place], sequence]
            tokens = sequences.tokens[first:first + sequences.lengths[bin_[place], sequence]]
            stop = start + len(tokens)
            one['tokens'][row, start:stop] = tokens
            one['segment_ids'][row, start:stop] = segment
            one['positions'][row, start:stop] = np.arange(len(tokens))
            one['lm_targets'][row, start:stop - 1] = tokens[1:]
            one['lm_weights'][row, start:stop - 1] = weight / (len(tokens) - 1)
            one['extract'][place, sequence] = row * self._row_length + stop - 1


def _rows(layout) -> int:
    return max((row for row, *_ in layout), default=-1) + 1


def _ladder(rows: int) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16, ... that is at least `rows`."""
    power = 1
    while True:
        for step in (power, power * 3 // 2):
            if step >= rows:
                return step
        power *= 2
