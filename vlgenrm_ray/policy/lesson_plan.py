"""Which samples share an optimizer step, a row and a micro-batch. Pure, and the same on every worker."""

import random
from collections.abc import Iterator, Sequence
from itertools import groupby

from vlgenrm_ray.engines import shared_prompts
from vlgenrm_ray.engines.batch_plan import MicroBatch, Step, plan_step
from vlgenrm_ray.engines.vlm_batch import Tokens

Rows = tuple[tuple[int, ...], ...]


def plan(
    tokens: Sequence[Tokens],
    images: Sequence[str],
    *,
    width: int | None,
    step: int,
    seed: int,
    updates: int,
    tokens_per_batch: int,
    workers: int,
) -> tuple[Rows, tuple[Step, ...]]:
    """Places of samples that share a row, and the optimizer steps; their members are places, those of a row together.

    Groups are shuffled from (seed, step) and dealt out to `updates` of equally many samples (fewer, if there are fewer
    samples). Samples beside each other with one prompt and one of `images` (hashes) share a row where that makes a step
    cheaper for a decoder of hidden size `width`; None: in none.
    """
    groups = list(_groups(tokens, images))
    random.Random(f"{seed}/{step}").shuffle(groups)
    group_of = {place: number for number, group in enumerate(groups) for place in group}
    order = [place for group in groups for place in group]
    total = min(updates, len(order))
    rows: list[tuple[int, ...]] = []
    planned: list[Step] = []
    for i in range(total):
        members = order[len(order) * i // total : len(order) * (i + 1) // total]
        parts = [tuple(places) for _, places in groupby(members, key=group_of.__getitem__)]
        mine, update = _update(parts, tokens, width, tokens_per_batch, workers)
        rows += mine
        planned.append(update)
    return tuple(rows), tuple(planned)


def _groups(tokens: Sequence[Tokens], images: Sequence[str]) -> Iterator[tuple[int, ...]]:
    for _, places in groupby(range(len(tokens)), key=lambda place: (images[place], tokens[place].prompt)):
        yield tuple(places)


def _update(
    parts: Sequence[tuple[int, ...]], tokens: Sequence[Tokens], width: int | None, budget: int, workers: int
) -> tuple[list[tuple[int, ...]], Step]:
    """One optimizer step on parts of groups: of plans with ever fewer samples a row, which keep more workers busy, the
    cheapest."""
    best: tuple[list[tuple[int, ...]], Step] | None = None
    least = 0
    limit = max(map(len, parts)) if width else 1
    while limit:
        rows = [row for part in parts for row in _rows(part, tokens, width, budget, limit)]
        lengths = [shared_prompts.num_tokens([tokens[place] for place in row]) for row in rows]
        step = plan_step(range(len(rows)), lengths, tokens_per_batch=budget, workers=workers)
        cost = sum(max(_cost(micro, rows, lengths, width or 1) for micro in at_once) for at_once in step.rows)
        if best is None or cost < least:
            best, least = (rows, _of_samples(step, rows)), cost
        limit //= 2
    assert best is not None
    return best


def _rows(
    part: tuple[int, ...], tokens: Sequence[Tokens], width: int | None, budget: int, limit: int
) -> list[tuple[int, ...]]:
    if width is None:
        return [(place,) for place in part]
    runs = shared_prompts.runs(
        tokens[part[0]].num_prompt,
        [tokens[place].num_targets for place in part],
        width=width,
        tokens_per_row=budget,
        samples_per_row=limit,
    )
    return [part[run.start : run.stop] for run in runs]


def _cost(micro: MicroBatch, rows: Sequence[tuple[int, ...]], lengths: Sequence[int], width: int) -> int:
    """Of a micro-batch of rows."""
    longest, shared = max(lengths[row] for row in micro.members), any(len(rows[row]) > 1 for row in micro.members)
    return len(micro.members) * shared_prompts.cost(longest, shared=shared, width=width)


def _of_samples(step: Step, rows: Sequence[tuple[int, ...]]) -> Step:
    """A step on rows, as one on samples."""
    return Step(
        tuple(
            tuple(
                MicroBatch(tuple(place for row in micro.members for place in rows[row]), micro.counts) for micro in each
            )
            for each in step.rows
        )
    )
