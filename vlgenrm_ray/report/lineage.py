"""Lineage of a question and of a round: all records of one question in a run folder, and a round's provenance.

Record ids extend their parents' ids, so the records of one question are those whose id begins with the question's.
`gather_lineage` collects them for `trace.py`; `round_lineage` builds the `lineage.json` of a finished round.
"""

import difflib
import heapq
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from vlgenrm_ray.data.arrow import from_row
from vlgenrm_ray.data.record_index import HasId
from vlgenrm_ray.data.store import Manifest, StageFolder
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.records import (
    CheckedResponse,
    Checkpoint,
    Critique,
    Dropped,
    Example,
    PairResult,
    Preference,
    Question,
    Response,
)
from vlgenrm_ray.reward.rounds import RoundResult

R = TypeVar("R", bound=HasId)

_POOL_STAGES = ("pool", "heldout-pool")
_PAIR_STAGES = ("preferences", "heldout")
_NUM_SUGGESTIONS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecords:
    """Records of one question in one round."""

    round: int
    critiques: tuple[Critique, ...]
    examples: tuple[Example, ...]
    results: tuple[PairResult, ...]
    checkpoint: Checkpoint | None
    """Model that the round trained; None for round 0 and while training is unfinished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionLineage:
    """One question and all records derived from it, in the order of the stages."""

    question: Question | None
    """The question; None if the pool dropped it."""
    responses: tuple[Response, ...]
    checked: tuple[CheckedResponse, ...]
    preferences: tuple[Preference, ...]
    rounds: tuple[RoundRecords, ...]
    dropped: tuple[tuple[str, Dropped], ...]
    """(folder of the stage relative to the run, drop)."""

    def ids(self) -> list[str]:
        """List the ids of all records and drops."""
        records: list[Any] = [*([self.question] if self.question else []), *self.responses, *self.preferences]
        for records_of_round in self.rounds:
            records += [*records_of_round.critiques, *records_of_round.examples, *records_of_round.results]
        return [record.id for record in records] + [dropped.id for _, dropped in self.dropped]


def gather_lineage(run: Path, id: str) -> QuestionLineage:
    """Collect all records of the question that `id` belongs to.

    Args:
        run: Run folder; stages may be unfinished.
        id: Id of any record of the run, or of a dropped row.

    Raises:
        InputError: The folder holds no run, or the run no such id; the message suggests the nearest ids.
    """
    if not any((run / name / "shards").is_dir() for name in (*_POOL_STAGES, *_PAIR_STAGES)):
        raise InputError(f"{run}: no run folder (it has no pool); give the folder of a run, such as runs/demo")
    root = _question_id(run, id)
    dropped: list[tuple[str, Dropped]] = []

    def read(stage: str, cls: type[R]) -> tuple[R, ...]:
        records, drops = _read_stage(StageFolder(run / stage), cls, root)
        dropped.extend((stage, d) for d in drops)
        return records

    questions = [q for stage in _POOL_STAGES for q in read(stage, Question)]
    responses = read("responses", Response)
    checked = read("experts", CheckedResponse)
    preferences = tuple(p for stage in _PAIR_STAGES for p in read(stage, Preference))
    rounds = []
    for folder in sorted(run.glob("round-*"), key=lambda path: _round_number(path.name)):
        rounds.append(
            RoundRecords(
                round=_round_number(folder.name),
                critiques=read(f"{folder.name}/critiques", Critique),
                examples=read(f"{folder.name}/selection", Example),
                results=read(f"{folder.name}/evaluation", PairResult),
                checkpoint=next(StageFolder(folder / "training").records(Checkpoint), None),
            )
        )
        training = StageFolder(folder / "training")
        dropped.extend((f"{folder.name}/training", d) for d in training.dropped() if belongs(d.id, root))
    lineage = QuestionLineage(
        question=questions[0] if questions else next((p.question for p in preferences), None),
        responses=responses,
        checked=checked,
        preferences=preferences,
        rounds=tuple(rounds),
        dropped=tuple(dropped),
    )
    known = lineage.ids()
    if id not in known:
        raise InputError(f"{id}: no such id in {run}; nearest: {', '.join(nearest_ids(id, known))}")
    return lineage


def nearest_ids(id: str, known: Iterable[str]) -> list[str]:
    """List the ids most similar to `id`, best first. Preselects by common prefix, so millions of ids are no problem."""

    def dissimilarity(other: str) -> tuple[int, int, str]:
        common = next((i for i, (a, b) in enumerate(zip(id, other, strict=False)) if a != b), min(len(id), len(other)))
        return -common, abs(len(id) - len(other)), other

    return difflib.get_close_matches(
        id, heapq.nsmallest(200, set(known), key=dissimilarity), n=_NUM_SUGGESTIONS, cutoff=0.0
    )


def belongs(id: str, root: str) -> bool:
    """Return True if an id equals `root` or extends it."""
    return id == root or id.startswith(f"{root}/")


def _question_id(run: Path, id: str) -> str:
    """Return the longest prefix of `id` that is a question's id. Question ids may contain slashes themselves."""
    known: set[str] = set()
    for stage in (*_POOL_STAGES, *_PAIR_STAGES):
        folder = StageFolder(run / stage)
        known.update(_question_ids(folder, "id" if stage in _POOL_STAGES else "question.id"))
        if stage in _POOL_STAGES:
            known.update(d.id for d in folder.dropped())
    parts = id.split("/")
    for end in range(len(parts), 0, -1):
        if (prefix := "/".join(parts[:end])) in known:
            return prefix
    raise InputError(f"{id}: no such id in {run}; nearest: {', '.join(nearest_ids(id, known)) or 'none, it is empty'}")


def _question_ids(folder: StageFolder, column: str) -> Iterator[str]:
    for shard in folder.shards():
        values = folder.read_records(shard, columns=[column]).column(column.split(".")[0])
        yield from (value if isinstance(value, str) else value["id"] for value in values.to_pylist())


def _read_stage(folder: StageFolder, cls: type[R], root: str) -> tuple[tuple[R, ...], list[Dropped]]:
    """Read the records and drops of a stage, finished or not, that belong to `root`, in the order of their ids."""
    import pyarrow.compute as pc

    # Ids of the records that belong to `root` equal it or begin with it and a slash.
    filters = (pc.field("id") == root) | pc.starts_with(pc.field("id"), pattern=f"{root}/")
    rows = (row for shard in folder.shards() for row in folder.read_records(shard, filters=filters).to_pylist())
    records = sorted((from_row(cls, row) for row in rows), key=lambda record: natural_key(record.id))
    return tuple(records), [d for d in folder.dropped() if belongs(d.id, root)]


def natural_key(id: str) -> list[tuple[int, str]]:
    """Sort key that puts c10 after c9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", id)]


def _round_number(name: str) -> int:
    return int(name.removeprefix("round-"))


def round_lineage(result: RoundResult, prepared: Mapping[str, Manifest]) -> dict[str, Any]:
    """Build the provenance of a finished round, as JSON: model, parent, data, settings and all metrics.

    Args:
        result: The round.
        prepared: Manifests of the stages before the first round, by name.
    """
    return {
        "round": result.round,
        "model": str(result.model),
        "parent": None if result.parent is None else str(result.parent),
        "stages": {name: asdict(manifest) for name, manifest in result.stages.items()},
        "training": result.training,
        "prepared": {name: asdict(manifest) for name, manifest in prepared.items()},
    }
