"""Big files in pieces, on Ray Data, so that no process ever holds a file.

Two passes. The first only looks: it counts rows and notes each row's id, so that rows get their numbers, and the first
of equal ids is known whatever order the pieces are worked in. The second reads.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from vlgenrm_ray.curation.sources.candidate import Candidate
from vlgenrm_ray.curation.sources.files import DataFile
from vlgenrm_ray.data.arrow import to_row, to_table
from vlgenrm_ray.data.flow import LIGHT

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

_BLOCK_ROWS = 64
"""Rows that leave a reader together: few, as each may carry an image's bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A source, ready to stream."""

    rows: "Dataset"
    """`Candidate` rows."""
    total: int
    data_hash: str
    """Changes when the data change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What the first pass notes of a piece."""

    num_lines: int
    """Lines in it, blank ones included."""
    rows: list[int]
    """Which of them are rows, from 0."""
    hashes: list[int]
    """`candidate.name_hash` of each row's question id."""
    digest: str
    """Hash of the piece's content."""


def open_pieces(
    *,
    look: Callable[[int], Look],
    read: Callable[[int, int], Iterator[Candidate]],
    files: Sequence[DataFile],
) -> Opened:
    """Pieces 0, 1, ... of `files` (one entry a piece) as candidates.

    `look(piece)` notes what is in a piece; `read(piece, first_line)` reads it, its lines counted from `first_line`.
    """
    import pyarrow as pa
    import ray.data

    plan = pa.table({"piece": pa.array(range(len(files)), pa.int64())})
    looked = ray.data.from_arrow(plan).map_batches(_LookAt(look), batch_size=1, **LIGHT)
    looks = [_look(row) for row in sorted(looked.iter_rows(), key=lambda row: int(row["piece"]))] if files else []
    first_lines = _first_lines(files, looks)
    rows = [(i, f"{files[i].name}:{first_lines[i] + n}") for i, k in enumerate(looks) for n in k.rows]
    firsts: list[dict[str, str]] = [{} for _ in files]
    for again, first in repeats(h for k in looks for h in k.hashes).items():
        piece, name = rows[again]
        firsts[piece][name] = rows[first][1]
    work = plan.append_column("first_line", pa.array(first_lines, pa.int64()))
    work = work.append_column("firsts", pa.array([json.dumps(f) for f in firsts], pa.string()))
    return Opened(
        rows=ray.data.from_arrow(work).map_batches(_ReadFrom(read), batch_size=1, **LIGHT),
        total=len(rows),
        data_hash=hashlib.sha256("".join(k.digest for k in looks).encode()).hexdigest()[:16],
    )


def _first_lines(files: Sequence[DataFile], looks: Sequence[Look]) -> list[int]:
    """Number of each piece's first line in its file, from 1."""
    numbers: list[int] = []
    for i, file in enumerate(files):
        same = i > 0 and files[i - 1] == file
        numbers.append(numbers[-1] + looks[i - 1].num_lines if same else 1)
    return numbers


def repeats(hashes: Iterable[int]) -> dict[int, int]:
    """Index of every value that was there before -> index of its first appearance."""
    values = np.fromiter(hashes, dtype=np.uint64)
    if not len(values):
        return {}
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    # Stable sorting keeps equal values in their first order, so each run of equals begins with the first of them.
    starts = np.maximum.accumulate(np.where(np.r_[True, ordered[1:] != ordered[:-1]], np.arange(len(values)), 0))
    again = starts != np.arange(len(values))
    return dict(zip(order[again].tolist(), order[starts[again]].tolist(), strict=True))


@dataclass(frozen=True)
class _LookAt:
    look: Callable[[int], Look]

    def __call__(self, plan: "pa.Table") -> "pa.Table":
        import pyarrow as pa

        numbers = plan.column("piece").to_pylist()
        return pa.Table.from_pylist([{"piece": n} | to_row(self.look(n)) for n in numbers], schema=_look_schema())


def _look_schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema(
        [
            ("piece", pa.int64()),
            ("num_lines", pa.int64()),
            ("rows", pa.list_(pa.int64())),
            ("hashes", pa.list_(pa.uint64())),
            ("digest", pa.string()),
        ]
    )


def _look(row: dict[str, object]) -> Look:
    return Look(**{name: value for name, value in row.items() if name != "piece"})  # type: ignore[arg-type]


@dataclass(frozen=True)
class _ReadFrom:
    read: Callable[[int, int], Iterator[Candidate]]

    def __call__(self, plan: "pa.Table") -> "Iterator[pa.Table]":
        for task in plan.to_pylist():
            firsts = json.loads(task["firsts"])
            found = (replace(c, first=firsts.get(c.id, "")) for c in self.read(task["piece"], task["first_line"]))
            while block := list(islice(found, _BLOCK_ROWS)):
                yield to_table(Candidate, block)
