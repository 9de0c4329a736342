"""What a selection says of itself: how much was kept, of what kind, and how far the judge holds the sides apart."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.records import Side
from vlgenrm_ray.reward.combinations import MarginScale, margin

BINS = 20
_CRITIQUE = ("preference.kind", "side", "p_yes", "verdict_mass")
_OUTCOME = ("records.list.element.kind", "dropped.list.element.id", "dropped.list.element.reason")


def measure(selection: StageFolder, critiques: StageFolder, *, scale: MarginScale, min_mass: float) -> dict[str, Any]:
    """Figures of a finished selection, as JSON; reads the few columns it needs.

    `kept_share` is pairs kept / pairs with critiques. `margin_histogram` counts every combination of two critiques
    that could be read, right or wrong, in 20 bins over [-1, 1]: what the judge can tell apart before any selection.
    """
    kinds: dict[str, str] = {}
    histogram = np.zeros(BINS, dtype=np.int64)
    for row in _columns(critiques, ("id", *(f"records.list.element.{name}" for name in _CRITIQUE))):
        if not row["records"]:
            continue
        kinds[row["id"]] = row["records"][0]["preference"]["kind"]
        histogram += np.histogram(_margins(row["records"], scale, min_mass), bins=BINS, range=(-1.0, 1.0))[0]
    kept: Counter[str] = Counter()
    examples: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    lost_critiques: Counter[str] = Counter()
    for row in _columns(selection, ("id", *_OUTCOME)):
        kept.update([kinds[row["id"]]] if row["records"] else [])
        examples.update(example["kind"] for example in row["records"])
        for dropped in row["dropped"]:
            (lost if dropped["id"] == row["id"] else lost_critiques)[dropped["reason"]] += 1
    return {
        "pairs": len(kinds),
        "pairs_kept": kept.total(),
        "kept_share": kept.total() / len(kinds) if kinds else 0.0,
        "by_kind": {
            kind: {"pairs": number, "kept": kept[kind]} for kind, number in sorted(Counter(kinds.values()).items())
        },
        "examples": dict(sorted(examples.items())),
        "pairs_lost": dict(sorted(lost.items())),
        "critiques_lost": dict(sorted(lost_critiques.items())),
        "margin_histogram": histogram.tolist(),
    }


def _columns(folder: StageFolder, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    for shard in folder.shards():
        # `ParquetFile` picks columns inside nested records, `read_table` does not.
        with pq.ParquetFile(shard) as file:
            yield from file.read(columns=list(columns)).to_pylist()


def _margins(critiques: list[dict[str, Any]], scale: MarginScale, min_mass: float) -> npt.NDArray[np.float64]:
    p_yes: dict[str, list[float]] = {side.value: [] for side in Side}
    for critique in critiques:
        if critique["p_yes"] is not None and critique["verdict_mass"] >= min_mass:
            p_yes[critique["side"]].append(critique["p_yes"])
    return np.array([margin(a, b, scale) for a in p_yes[Side.CHOSEN] for b in p_yes[Side.REJECTED]])
