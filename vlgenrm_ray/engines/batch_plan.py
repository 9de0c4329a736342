"""Which examples share a micro-batch, an optimizer step and a worker. Pure, and the same on every worker.

An epoch is shuffled from (seed, epoch) and cut into optimizer steps of nearly equal size, so a step's examples are a
random sample and its gradient is unbiased. Inside a step examples are sorted by length, cut into micro-batches that
keep the token budget once padded and waste little of it on padding, and dealt to the workers so that micro-batches of
like cost run at the same time.
Workers meet in collectives, so each gets the same number of micro-batches; where there is nothing left for one, it
runs a filler whose loss is multiplied by 0.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

_PADDING = 1 / 16
"""What a micro-batch costs beside its tokens, as a share of its token budget: for less padding none is added."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Positions in the epoch's list of entries that go through the model together."""

    members: tuple[int, ...]
    counts: bool = True
    """False for a filler: run to keep step with the other workers, with weight 0."""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step: `rows[i][w]` is what worker w runs at micro-step i."""

    rows: tuple[tuple[MicroBatch, ...], ...]

    def of(self, worker: int) -> list[MicroBatch]:
        """One worker's micro-batches, in order."""
        return [row[worker] for row in self.rows]

    def members(self) -> list[int]:
        """All positions of the step, over all workers, fillers left out."""
        return [m for row in self.rows for batch in row if batch.counts for m in batch.members]


def num_steps(num_entries: int, examples_per_step: int) -> int:
    """Optimizer steps of one epoch; the last one is not smaller than the others by more than one example."""
    return -(-num_entries // examples_per_step)


def plan_epoch(
    lengths: Sequence[int], *, epoch: int, seed: int, examples_per_step: int, tokens_per_batch: int, workers: int
) -> list[Step]:
    """The steps of one epoch. `lengths[i]` is the number of tokens of entry i, image tokens counted.

    Every entry stands in exactly one micro-batch. Longest length times rows of a micro-batch is at most
    `tokens_per_batch`. Raises ValueError for an entry that is longer than the budget by itself.
    """
    if lengths and max(lengths) > tokens_per_batch:
        raise ValueError(f"an entry of {max(lengths)} tokens does not fit tokens_per_batch = {tokens_per_batch}")
    order = list(range(len(lengths)))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    total = num_steps(len(order), examples_per_step)
    return [
        plan_step(
            order[len(order) * i // total : len(order) * (i + 1) // total],
            lengths,
            tokens_per_batch=tokens_per_batch,
            workers=workers,
        )
        for i in range(total)
    ]


def plan_step(members: Sequence[int], lengths: Sequence[int], *, tokens_per_batch: int, workers: int) -> Step:
    """One optimizer step on some entries, as `plan_epoch` plans each of an epoch's."""
    # The position breaks ties, so that equal lengths cannot make two workers plan differently.
    ordered = sorted(members, key=lambda m: (-lengths[m], m))
    packings = (_pack(ordered, lengths, tokens_per_batch, padding) for padding in (math.inf, _PADDING))
    planned = [_dealt(batches, lengths, workers) for batches in packings]
    overhead = _PADDING * tokens_per_batch
    return min(planned, key=lambda step: sum(overhead + _cost(row[0].members, lengths) for row in step.rows))


def _dealt(batches: list[list[int]], lengths: Sequence[int], workers: int) -> Step:
    """Micro-batches, some of them cut in two, with those at the same time of like cost, the costliest first."""
    while len(batches) % workers:
        costliest = max(batches, key=lambda b: _cost(b, lengths) if len(b) > 1 else 0)
        if len(costliest) == 1:
            break
        at, middle = batches.index(costliest), len(costliest) // 2
        batches[at : at + 1] = [costliest[:middle], costliest[middle:]]
    shortest = batches[-1][-1]
    batches.sort(key=lambda b: (-_cost(b, lengths), b))
    micro = [MicroBatch(tuple(b)) for b in batches]
    micro += [MicroBatch((shortest,), counts=False)] * (-len(micro) % workers)
    return Step(tuple(tuple(micro[i : i + workers]) for i in range(0, len(micro), workers)))


def _pack(ordered: Sequence[int], lengths: Sequence[int], budget: int, padding: float) -> list[list[int]]:
    """Cut a list sorted by falling length into runs that keep the budget once padded to their first, of which padding
    is at most this share."""
    batches: list[list[int]] = []
    wasted = 0
    for member in ordered:
        if batches:
            longest = lengths[batches[-1][0]]
            wasted += longest - lengths[member]
            if (len(batches[-1]) + 1) * longest <= budget and wasted <= padding * budget:
                batches[-1].append(member)
                continue
        batches.append([member])
        wasted = 0
    return batches


def _cost(batch: Sequence[int], lengths: Sequence[int]) -> int:
    """Tokens once padded."""
    return len(batch) * max(lengths[m] for m in batch)
