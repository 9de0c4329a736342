"""Labels of pairs by the judge itself or by the ground truth, in place of those of the experts.

The pairs of texts stay the same, and so do the critiques of both texts: only what is chosen and what is rejected
changes. A cell therefore differs from another in its labels alone. Pairs without a label are dropped.

    self    the response with the larger mean p(Yes) over its critiques by the round's judge is the chosen one
    truth   the true response of a pair of which one is true is the chosen one; the ground truth is a measurement,
            and the ceiling of what better experts could give
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlgenrm_ray.data.record_index import RecordIndex
from vlgenrm_ray.data.store import Manifest, StageFolder, Unit, units_from_table, write_units
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.records import Critique, Dropped, Preference, Question, Side

STAGE = "labels"
_UNITS_PER_SHARD = 256
TruthFunction = Callable[[Question, str], float | None]
"""Returns the truth of a response (0 to 1, or a bool), None if it is unknown."""


@dataclass(frozen=True, slots=True)
class PairLabel:
    """Decision on one pair."""

    is_flipped: bool
    """True if the response that the experts rejected is the chosen one."""
    evidence: str


LabelFunction = Callable[[Preference, Sequence[Critique]], PairLabel | Dropped]


def label_by_judge(preference: Preference, critiques: Sequence[Critique]) -> PairLabel | Dropped:
    """Prefer the response with the larger mean p(Yes) over its readable critiques."""
    rewards: dict[Side, float] = {}
    for side in Side:
        scores = [c.p_yes for c in critiques if c.side is side and c.p_yes is not None]
        if not scores:
            return _drop(preference, DropReason.UNREADABLE_VERDICT, f"no readable critique of the {side} side")
        rewards[side] = sum(scores) / len(scores)
    chosen, rejected = rewards[Side.CHOSEN], rewards[Side.REJECTED]
    if chosen == rejected:
        return _drop(preference, DropReason.TIE, f"the judge gives both sides {chosen:.4f}")
    return PairLabel(
        is_flipped=rejected > chosen, evidence=f"judge: {max(rewards.values()):.4f} > {min(rewards.values()):.4f}"
    )


def label_by_truth(truth: TruthFunction) -> LabelFunction:
    """Return the function that prefers the true response of a pair."""

    def label(preference: Preference, critiques: Sequence[Critique]) -> PairLabel | Dropped:
        values = [truth(preference.question, preference.response(side)) for side in Side]
        if None in values or values[0] == values[1]:
            return _drop(preference, DropReason.NO_CONTRAST, f"truth of both sides: {values[0]} and {values[1]}")
        return PairLabel(is_flipped=not values[0], evidence="ground truth")

    return label


def _drop(preference: Preference, reason: DropReason, detail: str) -> Dropped:
    return Dropped(stage=STAGE, id=preference.id, reason=reason, detail=detail)


def flip(preference: Preference) -> Preference:
    """Exchange the sides of a pair. The span of an edit, which is one of the rejected side, is forgotten."""
    return replace(
        preference,
        chosen=preference.rejected,
        rejected=preference.chosen,
        chosen_id=preference.rejected_id,
        rejected_id=preference.chosen_id,
        edit_start=-1,
        edit_end=-1,
    )


def flip_critique(critique: Critique) -> Critique:
    """Move a critique to the other side of its flipped pair."""
    side = Side.REJECTED if critique.side is Side.CHOSEN else Side.CHOSEN
    return replace(critique, side=side, id=f"{critique.preference_id}/{side.value}/{critique.id.rsplit('/', 1)[-1]}")


def relabel(
    preference: Preference, critiques: Sequence[Critique], label: LabelFunction
) -> tuple[Unit[Preference], Unit[Critique] | None]:
    """Label one pair, and move its critiques along. A pair without a label is dropped, and its critiques with it."""
    decision = label(preference, critiques)
    if isinstance(decision, Dropped):
        return Unit(id=preference.id, dropped=(decision,)), None
    labelled = flip(preference) if decision.is_flipped else preference
    labelled = replace(labelled, evidence=decision.evidence)
    moved = tuple(flip_critique(c) if decision.is_flipped else c for c in critiques)
    return Unit(id=preference.id, records=(labelled,)), Unit(id=preference.id, records=moved)


def run(
    label: LabelFunction,
    *,
    fingerprint: str,
    preferences: StageFolder,
    critiques: StageFolder,
    target: StageFolder,
    target_critiques: StageFolder,
) -> tuple[Manifest, Manifest]:
    """Label all pairs that have critiques.

    Args:
        label: Decides on one pair.
        fingerprint: Hash of the settings that decide the labels.
        preferences: Complete stage of pairs.
        critiques: Complete stage of critiques of these pairs.
        target: Folder of the labelled pairs.
        target_critiques: Folder of their critiques, with the sides of the labels.

    Returns:
        The manifests of both folders; the metric `num_flipped` counts pairs labelled otherwise than before.
    """
    inputs = {"pairs": preferences.data_hash(), "critiques": critiques.data_hash()}
    target.begin(fingerprint, inputs)
    num_flipped = 0
    index = RecordIndex.build(preferences)
    moved: list[Unit[Critique]] = []
    for shard in critiques.shards():
        units = units_from_table(Critique, critiques.read_units(shard))
        pairs = index.read(Preference, [unit.id for unit in units])
        results = [relabel(pairs[unit.id], unit.records, label) for unit in units if unit.records]
        write_units(target, Preference, [labelled for labelled, _ in results])
        moved += [unit for _, unit in results if unit is not None]
        num_flipped += sum(r.chosen != pairs[unit.id].chosen for unit, _ in results for r in unit.records)
    manifest = target.finish(seconds=0.0, metrics={"num_flipped": num_flipped})
    # After the labels are complete: the critiques of a stage name the pairs that they are about.
    target_critiques.begin(fingerprint, {"preferences": manifest.data_hash})
    for start in range(0, len(moved), _UNITS_PER_SHARD):
        write_units(target_critiques, Critique, moved[start : start + _UNITS_PER_SHARD])
    return manifest, target_critiques.finish(seconds=0.0)


def measure_labels(preferences: StageFolder, truth: TruthFunction) -> dict[str, Any]:
    """Compare the labels of pairs with the truth.

    Returns:
        `num_pairs`; `num_known`, those of which one response is true and the other false; `num_wrong`, those of them
        whose chosen response is the false one; `wrong_share` of the known ones, None if there is none.
    """
    num_pairs = num_known = num_wrong = 0
    for pair in preferences.records(Preference):
        num_pairs += 1
        chosen, rejected = truth(pair.question, pair.chosen), truth(pair.question, pair.rejected)
        if chosen is None or rejected is None or chosen == rejected:
            continue
        num_known += 1
        num_wrong += chosen < rejected
    return {
        "num_pairs": num_pairs,
        "num_known": num_known,
        "num_wrong": num_wrong,
        "wrong_share": num_wrong / num_known if num_known else None,
    }
