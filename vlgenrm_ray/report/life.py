"""Everything a run folder holds of one question: gathered by ids, which extend their parents'."""

import difflib
import heapq
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from vlgenrm_ray.data.arrow import from_row
from vlgenrm_ray.data.store import StageFolder
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


class _Named(Protocol):
    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=_Named)

_POOLS = ("pool", "heldout-pool")
_PAIRS = ("preferences", "heldout")
_NEAR = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundLife:
    """What one round made of the question."""

    number: int
    critiques: tuple[Critique, ...]
    examples: tuple[Example, ...]
    results: tuple[PairResult, ...]
    checkpoint: Checkpoint | None
    """The model the round trained; None for the base's round, and while training is unfinished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """One question and all that came of it, in the order of the stages."""

    question: Question | None
    """None where the pool dropped it."""
    responses: tuple[Response, ...]
    checked: tuple[CheckedResponse, ...]
    preferences: tuple[Preference, ...]
    rounds: tuple[RoundLife, ...]
    dropped: tuple[tuple[str, Dropped], ...]
    """(stage's folder in the run, drop)."""

    def ids(self) -> list[str]:
        """Every id in it."""
        records: list[Any] = [*([self.question] if self.question else []), *self.responses, *self.preferences]
        for made in self.rounds:
            records += [*made.critiques, *made.examples, *made.results]
        return [record.id for record in records] + [dropped.id for _, dropped in self.dropped]


def gather(run: Path, id: str) -> Life:
    """The life of the question that `id`, or the longest beginning of it, names.

    Raises InputError, with the nearest ids, for one that the run does not hold, or a folder that holds no run.
    """
    if not any((run / name / "shards").is_dir() for name in (*_POOLS, *_PAIRS)):
        raise InputError(f"{run}: no run folder (it has no pool); give the folder of a run, such as runs/demo")
    root = _root(run, id)
    dropped: list[tuple[str, Dropped]] = []

    def under(stage: str, cls: type[R]) -> tuple[R, ...]:
        records, lost = _under(StageFolder(run / stage), cls, root)
        dropped.extend((stage, d) for d in lost)
        return records

    questions = [q for stage in _POOLS for q in under(stage, Question)]
    responses = under("responses", Response)
    checked = under("experts", CheckedResponse)
    preferences = tuple(p for stage in _PAIRS for p in under(stage, Preference))
    rounds = []
    for folder in sorted(run.glob("round-*"), key=lambda path: _number(path.name)):
        rounds.append(
            RoundLife(
                number=_number(folder.name),
                critiques=under(f"{folder.name}/critiques", Critique),
                examples=under(f"{folder.name}/selection", Example),
                results=under(f"{folder.name}/evaluation", PairResult),
                checkpoint=next(StageFolder(folder / "training").records(Checkpoint), None),
            )
        )
        training = StageFolder(folder / "training")
        dropped.extend((f"{folder.name}/training", d) for d in _drops(_rows(training, ("dropped",), root), root))
    life = Life(
        question=questions[0] if questions else next((p.question for p in preferences), None),
        responses=responses,
        checked=checked,
        preferences=preferences,
        rounds=tuple(rounds),
        dropped=tuple(dropped),
    )
    known = life.ids()
    if id not in known:
        raise InputError(f"{id}: no such id in {run}; nearest: {', '.join(nearest(id, known))}")
    return life


def nearest(id: str, known: Iterable[str]) -> list[str]:
    """The ids most like one, best first; those that begin alike are looked at first, so it is quick among millions."""

    def unlike(other: str) -> tuple[int, int, str]:
        common = next((i for i, (a, b) in enumerate(zip(id, other, strict=False)) if a != b), min(len(id), len(other)))
        return -common, abs(len(id) - len(other)), other

    return difflib.get_close_matches(id, heapq.nsmallest(200, set(known), key=unlike), n=_NEAR, cutoff=0.0)


def belongs(id: str, root: str) -> bool:
    """Whether an id is `root` or extends it."""
    return id == root or id.startswith(f"{root}/")


def _root(run: Path, id: str) -> str:
    """The question that `id` begins with. A question's own id may hold slashes."""
    known: set[str] = set()
    for stage in _POOLS:
        known.update(_ids(StageFolder(run / stage), "records.list.element.id", lambda r: str(r["id"])))
        known.update(_ids(StageFolder(run / stage), "dropped.list.element.id", lambda r: str(r["id"])))
    for stage in _PAIRS:
        path = "records.list.element.question.id"
        known.update(_ids(StageFolder(run / stage), path, lambda r: str(r["question"]["id"])))
    parts = id.split("/")
    for end in range(len(parts), 0, -1):
        if (beginning := "/".join(parts[:end])) in known:
            return beginning
    raise InputError(f"{id}: no such id in {run}; nearest: {', '.join(nearest(id, known)) or 'none, it is empty'}")


def _ids(folder: StageFolder, column: str, read: Callable[[dict[str, Any]], str]) -> Iterator[str]:
    import pyarrow.parquet as pq

    for shard in folder.shards():
        with pq.ParquetFile(shard) as file:
            rows = file.read(columns=[column]).column(column.split(".")[0]).to_pylist()
        yield from (read(record) for row in rows for record in row)


def _under(folder: StageFolder, cls: type[R], root: str) -> tuple[tuple[R, ...], list[Dropped]]:
    """Records and drops of a stage, finished or not, that belong to `root`, in the order of their ids."""
    rows = list(_rows(folder, ("records", "dropped"), root))
    records = [from_row(cls, r) for row in rows for r in row["records"] if belongs(r["id"], root)]
    return tuple(sorted(records, key=lambda record: _natural(record.id))), _drops(rows, root)


def _drops(rows: Iterable[dict[str, Any]], root: str) -> list[Dropped]:
    return [from_row(Dropped, d) for row in rows for d in row["dropped"] if belongs(d["id"], root)]


def _rows(folder: StageFolder, lists: tuple[str, ...], root: str) -> Iterator[dict[str, Any]]:
    """Units with an entry of `root` in one of the lists; opens whole only those shards that hold one."""
    import pyarrow.parquet as pq

    for shard in folder.shards():
        with pq.ParquetFile(shard) as file:
            ids = file.read(columns=[f"{name}.list.element.id" for name in lists]).to_pylist()
            mine = [
                i
                for i, row in enumerate(ids)
                if any(belongs(entry["id"], root) for name in lists for entry in row[name])
            ]
            yield from file.read().take(mine).to_pylist() if mine else ()


def _natural(id: str) -> list[tuple[int, str]]:
    """Sorts c10 behind c9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", id)]


def _number(name: str) -> int:
    return int(name.removeprefix("round-"))
