"""Fine-tuning batches: the sequences of whole examples, packed into rows of a few shapes.

The examples of a batch are a function of (seed, step) alone: shards, processes and micro-batches only decide
where they stand. Segments must not see each other (mask attention by segment_ids); positions restart in each.

The choices of an example begin with the same context (RACE: an article of hundreds of tokens before answers of ten).
`share_context` puts it into a row once, as a segment that the choices' own segments see too (context_ids). Without
dropout this saves work and changes nothing else. With dropout the choices share the masks of their context; in the
release each choice has its own.
"""

import collections
from typing import NamedTuple

import numpy as np

from gpt1_jax.data.labelled.sequences import Encoded
from gpt1_jax.data.placement import Placement
from gpt1_jax.errors import UserError

_LOOK_AHEAD = 1000  # batches, of several epochs; planning one takes less than a millisecond


class Rows(NamedTuple):
    """What decides the shapes of batches.

    Attributes:
      min_length: least tokens of a row.
      worth_a_step: a second number of rows, for which another step is compiled, must save the rows of so many batches
        per epoch; a guess between the 1,200 that MNLI saves and the few of small sets.
    """

    min_length: int = 128
    worth_a_step: float = 100


def rows_for(platform: str) -> Rows:
    """The `Rows` for devices of this platform."""
    # A CPU is as fast at short rows, and compiles a step in the time of some tens of steps; CoLA saves 31 per epoch.
    return Rows(64, 15) if platform == 'cpu' else Rows()


class FinetuningBatches:
    """Training batches: reshuffled each epoch, the partial last batch dropped (the release).

    `batch_at(step)` gives, for k = accumulation micro-batches, G local shards, R rows of T tokens, b =
    ceil(batch_size / k / shards) places for examples in a shard, and S sequences per example:

      tokens, segment_ids, positions, lm_targets: int32 [k, G, R, T]; 0 in padding. Segments count from 1 in
        each row; lm_targets[t] is token t + 1 of the same sequence.
      context_ids: int32 [k, G, R, T], only with share_context: the segment of the context that a token also sees;
        its own segment where there is no context.
      lm_weights: float32 [k, G, R, T], the weight of the prediction of lm_targets. Over the whole batch they
        sum to 1: the mean over batch_size * S sequences of the mean over each one's targets, from the token after
        <start> through <extract> (the release).
      extract: int32 [k, G, b, S]; index of each <extract> among the shard's R * T tokens; 0 in padding.
      labels: int32 | float32 [k, G, b]; 0 in padding and where there are no labels.
      example_weights: float32 [k, G, b]; 1 / batch_size, 0 in padding.
      example_ids: int32 [k, G, b]; index into encoded, -1 in padding.

    T is `rows.min_length`, doubled until the longest sequence (with share_context: example) of the batch fits, so that
    a few long ones do not make the attention of all batches wide. R is the same for all shards: the most rows that one
    of the first 1,000 batches of this T needs. If it saves the rows of `rows.worth_a_step` batches per epoch, there is
    a second, smaller R for batches that fit into it. A batch that needs more rows gets the next of 1, 2, 3, 4, 6, 8,
    12, 16, ... So only a few shapes are compiled.
    `packing=False` gives every sequence a row of its own: R = b * S.

    Raises:
      UserError: no labels, or fewer examples than batch_size.
    """

    from_shards = False

    def __init__(
        self,
        encoded: Encoded,
        *,
        batch_size: int,
        rows: Rows = Rows(),
        placement: Placement = Placement(),
        accumulation: int = 1,
        seed: int = 0,
        packing: bool = True,
        share_context: bool = False,
    ):
        if encoded.labels is None:
            raise UserError('data.source: The train split has no labels. Name a source that has them.')
        if accumulation > batch_size:
            raise UserError(
                f'optimizer.accumulation: {accumulation} micro-batches are more than the {batch_size} examples of a '
                'batch. Lower it, or raise data.batch_size.'
            )
        if len(encoded.sequences) < batch_size:
            raise UserError(
                f'data.batch_size: {batch_size} is more than the {len(encoded.sequences)} training examples. Lower it, '
                'or add examples.'
            )
        self._packer = _Packer(encoded, batch_size, rows, placement, accumulation, packing, share_context)
        self._encoded, self._placement = encoded, placement
        self._examples, self._batch_size, self._seed = len(encoded.sequences), batch_size, seed
        self.steps_per_epoch = self._examples // batch_size
        self._order = (-1, None)  # the epoch asked for last, and its permutation
        self._packer.expect(self.members, _LOOK_AHEAD, self.steps_per_epoch)

    def batch_at(self, step: int) -> dict[str, np.ndarray]:
        """The arrays of update `step`, counted from 0 over all epochs."""
        return self._packer.arrays(self.members(step), mean=True)

    def members(self, step: int) -> np.ndarray:
        """The examples of update `step`: int [batch_size], indices into encoded."""
        epoch, index = divmod(step, self.steps_per_epoch)
        known, order = self._order
        if known != epoch:
            # RandomState: NumPy keeps its streams the same in all versions (NEP 19).
            order = np.random.RandomState([self._seed, epoch]).permutation(self._examples)
            self._order = epoch, order
        return order[index * self._batch_size : (index + 1) * self._batch_size]

    def count_tokens(self, batch: dict[str, np.ndarray]) -> int:
        """Tokens without padding in the whole batch, judged by the local shards."""
        return np.count_nonzero(batch['segment_ids']) * self._placement.shards // len(self._placement.local)

    def describe(self, step: int) -> str:
        """Names the batch of a step, for an error message."""
        return 'examples ' + ', '.join(self._encoded.ids[i] for i in self.members(step))


class EvaluationBatches:
    """Every example exactly once, batch after batch in order; the last batch is padded with weight 0.

    `batch_at(i)` gives the arrays of FinetuningBatches with k = 1, example_weights 1 (padding 0) and lm_weights
    1 / (targets of the sequence), so that sums over batches can be averaged.
    """

    from_shards = False

    def __init__(
        self,
        encoded: Encoded,
        *,
        batch_size: int,
        rows: Rows = Rows(),
        placement: Placement = Placement(),
        share_context: bool = False,
    ):
        self._packer = _Packer(encoded, batch_size, rows, placement, 1, True, share_context)
        self._examples, self._batch_size = len(encoded.sequences), batch_size
        self.steps = -(-self._examples // batch_size)
        self._packer.expect(self._members, min(_LOOK_AHEAD, self.steps), self.steps)

    def batch_at(self, index: int) -> dict[str, np.ndarray]:
        """The arrays of batch `index`, 0 to steps - 1."""
        return self._packer.arrays(self._members(index), mean=False)

    def _members(self, index):
        first = index * self._batch_size
        return np.arange(first, min(first + self._batch_size, self._examples))


class _Block(NamedTuple):
    """Sequences of one example that go into one row: their common context once, then what is each one's own."""

    place: int  # of the example in its bin
    sequences: range  # which ones of the example
    context: int  # tokens; 0 for a single sequence
    length: int  # tokens, the context counted once


class _Packer:
    """Lays examples out as [accumulation, local shards, rows, tokens].

    A bin is one shard of one micro-batch. All bins of a batch are planned, from lengths alone, because all have one
    shape; only those of the local shards are filled.
    """

    def __init__(self, encoded, batch_size, rows, placement, accumulation, packing, share_context):
        self._encoded, self._rows, self._packing = encoded, rows, packing
        self._share_context = share_context and packing
        self._lengths = encoded.sequences.lengths  # [n, S]
        self._places = -(-batch_size // (accumulation * placement.shards))
        self._accumulation, self._placement = accumulation, placement
        self._usual_rows = {}  # length of the rows -> their usual numbers, ascending

    def expect(self, members_at, seen, steps):
        """Chooses the usual R from the first `seen` batches. members_at(step): the examples of one. steps: batches in
        an epoch."""
        needs = collections.defaultdict(list)
        for step in range(seen):
            *_, rows, length = self._plan(members_at(step))
            needs[length].append(rows)
        for length, numbers in needs.items():
            most = max(numbers)
            together = lambda fewer: sum(fewer if number <= fewer else most for number in numbers)
            fewer = min(sorted(set(numbers)), key=together)
            spared = (len(numbers) - together(fewer) / most) * steps / seen
            self._usual_rows[length] = sorted({fewer, most}) if spared >= self._rows.worth_a_step else [most]

    def arrays(self, members, mean):
        """The arrays of the examples `members`. mean: whether weights give the mean over them, or 1 for each."""
        bins, layouts, rows, length = self._plan(members)
        if self._packing:
            usual = [number for number in self._usual_rows.get(length, ()) if rows <= number]
            rows = usual[0] if usual else _ladder(rows)
        sequences, labels = self._lengths.shape[1], self._encoded.labels
        shape = self._accumulation, len(self._placement.local)

        names = ('tokens', 'segment_ids', 'positions', 'lm_targets') + ('context_ids',) * self._share_context
        batch = {name: np.zeros((*shape, rows, length), np.int32) for name in names}
        batch['lm_weights'] = np.zeros((*shape, rows, length), np.float32)
        batch['extract'] = np.zeros((*shape, self._places, sequences), np.int32)
        batch['labels'] = np.zeros((*shape, self._places), np.int32 if labels is None else labels.dtype)
        batch['example_weights'] = np.zeros((*shape, self._places), np.float32)
        batch['example_ids'] = np.full((*shape, self._places), -1, np.int32)

        weight = 1 / len(members) if mean else 1.0
        for a in range(self._accumulation):
            for g, shard in enumerate(self._placement.local):
                one = {name: array[a, g] for name, array in batch.items()}
                bin_, layout = bins[a * self._placement.shards + shard], layouts[a * self._placement.shards + shard]
                one['example_ids'][: len(bin_)] = bin_
                one['example_weights'][: len(bin_)] = weight
                if labels is not None:
                    one['labels'][: len(bin_)] = labels[bin_]
                self._fill(one, bin_, layout, weight / sequences if mean else 1.0)
        return batch

    def _plan(self, members):
        """(bins, their layouts, rows, length of the rows) of a batch."""
        bins = self._deal(members)
        blocks = [self._blocks(bin_) for bin_ in bins]
        length = self._rows.min_length
        while length < max(block.length for of_bin in blocks for block in of_bin):
            length *= 2
        layouts = [self._layout(of_bin, length) for of_bin in blocks]
        rows = self._places * self._lengths.shape[1]
        if self._packing:
            rows = max((row for layout in layouts for row, *_ in layout), default=0) + 1
        return bins, layouts, rows, length

    def _deal(self, members):
        """Members -> bins, whose numbers of examples differ by one at most, with similar numbers of tokens: dealt to
        and fro, the longest first."""
        bins = self._accumulation * self._placement.shards
        totals = self._lengths[members].sum(axis=1)
        dealt = members[np.argsort(-totals, kind='stable')]
        turn, place = np.divmod(np.arange(len(dealt)), bins)
        place = np.where(turn % 2, bins - 1 - place, place)
        return [dealt[place == bin_] for bin_ in range(bins)]

    def _blocks(self, bin_):
        blocks = []
        for place, example in enumerate(bin_):
            lengths = self._lengths[example].tolist()
            context = self._context(example) if self._share_context else 0
            length = sum(lengths) - context * (len(lengths) - 1)
            if context and length <= 2 * max(lengths):  # else the row would become long for little gain
                blocks.append(_Block(place, range(len(lengths)), context, length))
            else:
                blocks += [_Block(place, range(i, i + 1), 0, length) for i, length in enumerate(lengths)]
        return blocks

    def _context(self, example):
        """How many first tokens all sequences of an example share, without the last of these.

        That one is left to the choices, because its target, the next token, is not the same in all.
        """
        sequences = self._encoded.sequences[example]
        length = min(map(len, sequences))
        same = np.all([sequence[:length] == sequences[0][:length] for sequence in sequences], axis=0)
        return max(0, (length if same.all() else int(np.argmin(same))) - 1)

    def _layout(self, blocks, row_length):
        """First-fit-decreasing: [(row, offset, segments before, block)]."""
        if not self._packing:
            return [(i, 0, 0, block) for i, block in enumerate(blocks)]
        used, segments, layout = [], [], []
        for block in sorted(blocks, key=lambda block: -block.length):
            row = next((r for r, u in enumerate(used) if u + block.length <= row_length), len(used))
            if row == len(used):
                used.append(0)
                segments.append(0)
            layout.append((row, used[row], segments[row], block))
            used[row] += block.length
            segments[row] += len(block.sequences) + (block.context > 0)
        return layout

    def _fill(self, one, bin_, layout, weight):
        """Writes one bin's blocks into its arrays (views without the axes k and G)."""
        row_length = one['tokens'].shape[-1]

        def write(row, start, segment, tokens, positions, weight, context_segment):
            """All but the last of `tokens` predict the one after; returns where the last stands."""
            stop = start + len(positions)
            one['tokens'][row, start:stop] = tokens[: len(positions)]
            one['segment_ids'][row, start:stop] = segment
            one['positions'][row, start:stop] = positions
            one['lm_targets'][row, start : start + len(tokens) - 1] = tokens[1:]
            one['lm_weights'][row, start : start + len(tokens) - 1] = weight
            if self._share_context:
                one['context_ids'][row, start:stop] = context_segment
            return stop

        for row, start, segment, (place, numbers, context, _) in layout:
            sequences = self._encoded.sequences[bin_[place]]
            weights = [weight / (len(sequences[i]) - 1) for i in numbers]
            first_segment = segment + 1  # of the context, or of the one sequence of a block that has none
            if context:
                segment += 1
                start = write(
                    row, start, segment, sequences[0][: context + 1], np.arange(context), sum(weights), segment
                )
            for i, weight_of_one in zip(numbers, weights):
                segment += 1
                tokens = sequences[i][context:]
                start = write(
                    row, start, segment, tokens, np.arange(context, len(sequences[i])), weight_of_one, first_segment
                )
                one['extract'][place, i] = row * row_length + start - 1


def _ladder(rows: int) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16, ... that is at least `rows`."""
    power = 1
    while True:
        for step in (power, power * 3 // 2):
            if step >= rows:
                return step
        power *= 2
