"""Equal examples: a random part, of the same size for every cell, of the examples that a cell's selection yields.

Ranks are hashes of ids, so a smaller part is contained in a larger one, and two cells that select the same example are
equally likely to train on it.
"""

import hashlib
from collections.abc import Iterable, Sequence

from vlgenrm_ray.data.store import Manifest, StageFolder, Unit, write_units
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.records import Dropped, Example, Preference
from vlgenrm_ray.settings import digest

STAGE = "examples"
_UNITS_PER_SHARD = 256


def draw(ids: Iterable[str], count: int | None, seed: int) -> set[str]:
    """Draw `count` of some ids by the hash of each; all if there are fewer, or if `count` is None."""
    ranked = sorted(ids, key=lambda id: hashlib.sha256(f"{seed}/{id}".encode()).digest())
    return set(ranked[:count])


def draw_examples(
    units: Sequence[Unit[Example]], *, num_examples: int, num_pairs: int | None, seed: int
) -> list[Unit[Example]]:
    """Draw examples of a finished selection.

    Args:
        units: Units of the selection, one per pair.
        num_examples: Examples to draw; all if there are fewer.
        num_pairs: Pairs to draw them from; None: all.
        seed: Seed of the draw.

    Returns:
        Units of the drawn examples, ordered by id. Pairs without an example left are dropped.
    """
    pairs = draw((unit.id for unit in units), num_pairs, seed)
    chosen = draw((e.id for unit in units if unit.id in pairs for e in unit.records), num_examples, seed)
    drawn = []
    for unit in sorted(units, key=lambda unit: unit.id):
        records = tuple(e for e in unit.records if e.id in chosen)
        dropped = unit.dropped[:1]
        if unit.records and not records:
            detail = f"not among the {num_examples} examples of the cell"
            dropped = (Dropped(stage=STAGE, id=unit.id, reason=DropReason.OVER_LIMIT, detail=detail),)
        drawn.append(Unit(id=unit.id, records=records, dropped=() if records else dropped))
    return drawn


def run(*, num_examples: int, num_pairs: int | None, seed: int, source: StageFolder, target: StageFolder) -> Manifest:
    """Write the drawn examples of the selection `source` to `target`; arguments as for `draw_examples`.

    Returns:
        The manifest, with the metrics `num_available` and `num_examples`.
    """
    target.begin(digest([num_examples, num_pairs, seed]), {"selection": source.data_hash()})
    units = list(source.units(Example))
    drawn = draw_examples(units, num_examples=num_examples, num_pairs=num_pairs, seed=seed)
    for start in range(0, len(drawn), _UNITS_PER_SHARD):
        write_units(target, Example, drawn[start : start + _UNITS_PER_SHARD])
    num_available = sum(len(unit.records) for unit in units)
    metrics = {"num_available": num_available, "num_examples": sum(len(unit.records) for unit in drawn)}
    return target.finish(seconds=0.0, metrics=metrics)


def run_pairs(
    *, num_examples: int, num_pairs: int | None, seed: int, source: StageFolder, target: StageFolder
) -> Manifest:
    """Write drawn pairs of `source` to `target`, for a judge that learns from pairs; arguments as for `run`.

    A pair has two responses and counts as two examples.

    Returns:
        The manifest, with the metrics `num_available` and `num_examples`.
    """
    target.begin(digest(["pairs", num_examples, num_pairs, seed]), {"preferences": source.data_hash()})
    everything = {pair.id: pair for pair in source.records(Preference)}
    allowed = draw(everything, num_pairs, seed)
    drawn = sorted(draw(allowed, max(1, num_examples // 2), seed))
    for start in range(0, len(drawn), _UNITS_PER_SHARD):
        units = [Unit(id=id, records=(everything[id],)) for id in drawn[start : start + _UNITS_PER_SHARD]]
        write_units(target, Preference, units)
    return target.finish(seconds=0.0, metrics={"num_available": 2 * len(everything), "num_examples": 2 * len(drawn)})
