"""Assignment of examples to optimizer steps, micro-batches and workers. Deterministic, and equal on every worker.

An epoch is shuffled from (seed, epoch) and cut into optimizer steps of nearly equal size, so a step's examples are a
random sample and its gradient is unbiased. Inside a step examples are sorted by length, cut into micro-batches that
stay within the token budget with little padding, and distributed so that the workers run micro-batches of similar cost
at the same time. Because workers meet in collectives, each gets the same number of micro-batches; a worker without one
runs a filler whose loss is multiplied by 0.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

_PADDING = 1 / 16
"""Fixed cost of a micro-batch as a fraction of its token budget. Another micro-batch is added only if it saves more
padding than that."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The entries of one forward pass, by their positions in the list of the epoch."""

    members: tuple[int, ...]
    counts: bool = True
    """False for a filler, which is computed with weight 0 so that all workers run equally many micro-batches."""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step: worker w runs micro-batch `rows[i][w]` at micro-step i."""

    rows: tuple[tuple[MicroBatch, ...], ...]

    def of(self, worker: int) -> list[MicroBatch]:
        """Return the micro-batches of one worker, in order."""
        return [row[worker] for row in self.rows]

    def members(self) -> list[int]:
        """Return all positions of the step, over all workers, without fillers."""
        return [m for row in self.rows for batch in row if batch.counts for m in batch.members]


def num_steps(num_entries: int, examples_per_step: int) -> int:
    """Return the number of optimizer steps of an epoch; their sizes differ by at most one example."""
    return -(-num_entries // examples_per_step)


def plan_epoch(
    lengths: Sequence[int], *, epoch: int, seed: int, examples_per_step: int, tokens_per_batch: int, workers: int
) -> list[Step]:
    """Plan the steps of one epoch.

    Args:
        lengths: Tokens of each entry, image tokens included.
        epoch: Number of the epoch, which decides the order together with `seed`.
        seed: Seed of the order.
        examples_per_step: Entries of one optimizer step, over all workers.
        tokens_per_batch: Largest size of a micro-batch: its rows times its longest entry.
        workers: Number of workers.

    Returns:
        Steps in which every entry is in exactly one micro-batch.

    Raises:
        ValueError: An entry is longer than `tokens_per_batch`.
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
    """Plan one optimizer step on the entries `members`; arguments as for `plan_epoch`."""
    # Ties are broken by position, so that all workers make the same plan.
    ordered = sorted(members, key=lambda m: (-lengths[m], m))
    packings = (_pack(ordered, lengths, tokens_per_batch, padding) for padding in (math.inf, _PADDING))
    candidates = [_distribute(batches, lengths, workers) for batches in packings]
    overhead = _PADDING * tokens_per_batch
    return min(candidates, key=lambda step: sum(overhead + _cost(row[0].members, lengths) for row in step.rows))


def _distribute(batches: list[list[int]], lengths: Sequence[int], workers: int) -> Step:
    """Distribute micro-batches to workers by falling cost, after splitting some so that their number is a multiple."""
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
    """Split a list sorted by falling length into batches within the token budget, of which at most the fraction
    `padding` is padding."""
    batches: list[list[int]] = []
    num_padding = 0
    for member in ordered:
        if batches:
            longest = lengths[batches[-1][0]]
            num_padding += longest - lengths[member]
            if (len(batches[-1]) + 1) * longest <= budget and num_padding <= padding * budget:
                batches[-1].append(member)
                continue
        batches.append([member])
        num_padding = 0
    return batches


def _cost(batch: Sequence[int], lengths: Sequence[int]) -> int:
    """Return the number of tokens with padding."""
    return len(batch) * max(lengths[m] for m in batch)
