"""Which examples share a micro-batch, an optimizer step and a worker. Pure, and the same on every worker.

An epoch is shuffled from (seed, epoch) and cut into optimizer steps of nearly equal size, so a step's examples are a
random sample and its gradient is unbiased. Inside a step examples are sorted by length, cut into micro-batches that
keep the token budget once padded and waste little of it on padding, and dealt to the workers so that micro-batches of
like cost run at the same time.
Workers meet in collectives, so each gets the same number of micro-batches; where there is nothing left for one, it
runs a filler whose loss is multiplied by 0.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

_PADDING = 1 / 16
"""Share of a micro-batch's token budget that may be padding; beyond it, another micro-batch is cheaper."""


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
        _step(order[len(order) * i // total : len(order) * (i + 1) // total], lengths, tokens_per_batch, workers)
        for i in range(total)
    ]


def _step(members: Sequence[int], lengths: Sequence[int], budget: int, workers: int) -> Step:
    # The position breaks ties, so that equal lengths cannot make two workers plan differently.
    ordered = sorted(members, key=lambda m: (-lengths[m], m))
    batches = _pack(ordered, lengths, budget)
    while len(batches) % workers:
        costliest = max(batches, key=lambda b: _cost(b, lengths) if len(b) > 1 else 0)
        if len(costliest) == 1:
            break
        at, middle = batches.index(costliest), len(costliest) // 2
        batches[at : at + 1] = [costliest[:middle], costliest[middle:]]
    batches.sort(key=lambda b: (-_cost(b, lengths), b))
    micro = [MicroBatch(tuple(b)) for b in batches]
    filler = MicroBatch((ordered[-1],), counts=False)
    micro += [filler] * (-len(micro) % workers)
    return Step(tuple(tuple(micro[i : i + workers]) for i in range(0, len(micro), workers)))


def _pack(ordered: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Cut a list sorted by falling length into runs that, padded to their first, keep the budget and waste little."""
    batches: list[list[int]] = []
    padding = 0
    for member in ordered:
        if batches:
            longest = lengths[batches[-1][0]]
            padding += longest - lengths[member]
            if (len(batches[-1]) + 1) * longest <= budget and padding <= _PADDING * budget:
                batches[-1].append(member)
                continue
        batches.append([member])
        padding = 0
    return batches


def _cost(batch: Sequence[int], lengths: Sequence[int]) -> int:
    """Tokens once padded."""
    return len(batch) * max(lengths[m] for m in batch)
