"""Held-out stage: reads Question of a labelled pool, writes Preference.

The labels of these pairs are taken as ground truth for measurement. They never reach experts, curation or training.
"""

from typing import TYPE_CHECKING

from vlgenrm_ray.data import flow
from vlgenrm_ray.data.arrow import from_table
from vlgenrm_ray.data.store import Manifest, StageFolder, Unit, units_table
from vlgenrm_ray.errors import DropReason, StageError
from vlgenrm_ray.records import Dropped, Origin, Preference, Question
from vlgenrm_ray.settings import digest

if TYPE_CHECKING:
    import pyarrow as pa

STAGE = "heldout"


def run(*, source: StageFolder, target: StageFolder) -> Manifest:
    """Fill `target` with the pairs of the labelled pool `source`. Raises StageError if there is none."""
    manifest = flow.run(
        target,
        flow.read_records(source),
        lambda rows: rows.map_batches(_label_batch, **flow.LIGHT),
        total=source.complete().rows_out,
        fingerprint=digest(STAGE),
        inputs={"pool": source.data_hash()},
    )
    if not manifest.rows_out:
        raise StageError(
            f"heldout: none of {manifest.rows_in} rows has both a chosen and a rejected answer; "
            "give labelled pairs under heldout.path"
        )
    return manifest


def _label_batch(rows: "pa.Table") -> "pa.Table":
    return units_table(Preference, (build_pair(q) for q in from_table(Question, rows)))


def build_pair(question: Question) -> Unit[Preference]:
    """Build the pair of a labelled question; drop it if an answer is missing or both are equal."""
    chosen, rejected = question.chosen, question.rejected
    if not chosen or not rejected or chosen == rejected:
        detail = "a held-out row needs `chosen` and `rejected`, and they must differ"
        dropped = Dropped(stage=STAGE, id=question.id, reason=DropReason.NO_CONTRAST, detail=detail)
        return Unit(id=question.id, dropped=(dropped,))
    pair = Preference(
        id=f"{question.id}/gold",
        question=question,
        chosen=chosen,
        rejected=rejected,
        origin=Origin.GOLD,
        kind=question.kind,
        evidence="label of the data set",
    )
    return Unit(id=question.id, records=(pair,))
