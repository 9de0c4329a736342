"""Reading of data files in pieces on Ray Data, so that no process holds a whole file.

There are two passes over the pieces. The first one indexes: it counts rows and hashes each row's question id. Row
numbers, and the ends `#2`, `#3` of repeated ids, therefore do not depend on the order in which pieces are read. The
second one reads.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from vlgenrm_ray.curation.sources.container import BLANK, Container, FilePiece
from vlgenrm_ray.curation.sources.rows import SourceRow, hash_id
from vlgenrm_ray.curation.sources.schema import RowReader
from vlgenrm_ray.data.arrow import from_row, to_row, to_table
from vlgenrm_ray.data.flow import read_plan

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

_BLOCK_ROWS = 64
"""Rows per block of the stream: few, because each may carry the bytes of an image."""
_NUMBERED_ID = re.compile(r"#\d+\+*\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedSource:
    """A source, ready to stream."""

    rows: "Dataset"
    """`SourceRow` rows."""
    total: int
    """Number of rows."""
    data_hash: str
    """Hash of the data."""
    report: Mapping[str, Any] = field(default_factory=dict)
    """Format, schema, columns that are not used, and repeated ids, for the manifest of the pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceIndex:
    """Result of the first pass over one piece."""

    num_lines: int
    """Numbers that the piece takes, blank lines included."""
    row_lines: tuple[int, ...]
    """Number of the line or row, from 0 in the piece, that each question comes from; equal ones come from one row."""
    id_hashes: tuple[int, ...]
    """`hash_id` of each question's id."""
    numbered_ids: tuple[str, ...]
    """Ids in the data that end as those of repeated ids do (`q#2`)."""
    digest: str
    """Hash of the piece's content."""


@dataclass(frozen=True)
class PieceReader:
    """Reads pieces of a container's files by a schema. Pickled to the tasks."""

    container: Container
    reader: RowReader

    def questions(self, piece: FilePiece, first_number: int) -> Iterator[tuple[int, SourceRow | None]]:
        """Yield the questions of a piece with the numbers of their rows, from 0; None for a blank line.

        Args:
            piece: The piece.
            first_number: Number, from 1, of its first line or row in the file.
        """
        for raw in self.container.read(piece):
            if raw.value is BLANK:
                yield raw.number, None
                continue
            id = f"{piece.file.name}:{first_number + raw.number}"
            for question in self.reader.read(raw.value, id=id, folder=piece.file.folder):
                yield raw.number, question

    def index(self, piece: FilePiece) -> PieceIndex:
        """Index a piece: the first pass."""
        row_lines: list[int] = []
        id_hashes: list[int] = []
        numbered: list[str] = []
        num_lines = 0
        for number, question in self.questions(piece, 1):
            num_lines = number + 1
            if question is None:
                continue
            row_lines.append(number)
            # A row without an id repeats none.
            id_hashes.append(hash_id(question.question_id or f"{piece!r}:{question.id}"))
            if _NUMBERED_ID.search(question.question_id):
                numbered.append(question.question_id)
        return PieceIndex(
            num_lines=num_lines,
            row_lines=tuple(row_lines),
            id_hashes=tuple(id_hashes),
            numbered_ids=tuple(numbered),
            digest=self.container.digest(piece),
        )

    def read(
        self, piece: FilePiece, first_number: int, repeats: Mapping[int, int], taken: frozenset[str]
    ) -> Iterator[SourceRow]:
        """Read a piece: the second pass.

        Args:
            piece: The piece.
            first_number: Number, from 1, of its first line or row in the file.
            repeats: Position of a question within the piece -> how often its id has occurred, if more than once.
            taken: Ids in the data that end as those of repeated ids do.
        """
        position = 0
        for _, question in self.questions(piece, first_number):
            if question is None:
                continue
            if position in repeats:
                question = replace(question, question_id=number_id(question.question_id, repeats[position], taken))
            position += 1
            yield question


def number_id(id: str, occurrence: int, taken: frozenset[str]) -> str:
    """Return the id of a repeated occurrence: `q#2`, or `q#2+` if the data has that id already."""
    numbered = f"{id}#{occurrence}"
    while numbered in taken:
        numbered += "+"
    return numbered


def read_pieces(reader: PieceReader, pieces: Sequence[FilePiece], report: Mapping[str, Any]) -> OpenedSource:
    """Index the pieces on Ray (first pass), and return a source whose dataset reads them (second pass)."""
    import pyarrow as pa

    plan = pa.table({"piece": pa.array(range(len(pieces)), pa.int64())})
    indexed = read_plan(plan, _IndexPieces(reader, pieces))
    index_rows = sorted(indexed.iter_rows(), key=lambda row: int(row["piece"])) if pieces else []
    indices = [from_row(PieceIndex, row) for row in index_rows]
    first_numbers = _first_numbers(pieces, indices)
    repeats = count_repeats([h for index in indices for h in index.id_hashes])
    starts = np.cumsum([0, *(len(index.id_hashes) for index in indices)])
    repeats_of_pieces: list[dict[int, int]] = [{} for _ in pieces]
    for position, occurrence in repeats.items():
        piece = int(np.searchsorted(starts, position, side="right")) - 1
        repeats_of_pieces[piece][position - int(starts[piece])] = occurrence
    taken = frozenset(id for index in indices for id in index.numbered_ids)
    plan = plan.append_column("first_number", pa.array(first_numbers, pa.int64()))
    plan = plan.append_column(
        "repeats", pa.array([json.dumps(list(r.items())) for r in repeats_of_pieces], pa.string())
    )
    first = next(((p, min(r)) for p, r in enumerate(repeats_of_pieces) if r), None)
    where = ""
    if first is not None:
        number = first_numbers[first[0]] + indices[first[0]].row_lines[first[1]]
        where = f"{pieces[first[0]].file.name}:{number}"
    return OpenedSource(
        rows=read_plan(plan, _ReadPieces(reader, pieces, taken), num_rows=int(starts[-1])),
        total=int(starts[-1]),
        data_hash=hashlib.sha256("".join(k.digest for k in indices).encode()).hexdigest()[:16],
        report=dict(report) | {"repeated_ids": len(repeats), "first_repeated_id": where},
    )


def _first_numbers(pieces: Sequence[FilePiece], indices: Sequence[PieceIndex]) -> list[int]:
    """Return the number, from 1, of each piece's first line or row in its file."""
    numbers: list[int] = []
    for i, piece in enumerate(pieces):
        continues_file = i > 0 and pieces[i - 1].file == piece.file
        numbers.append(numbers[-1] + indices[i - 1].num_lines if continues_file else 1)
    return numbers


def count_repeats(hashes: Iterable[int]) -> dict[int, int]:
    """Map the index of every value that occurred before to the number of its occurrence, 2 or more."""
    values = np.fromiter(hashes, dtype=np.uint64)
    if not len(values):
        return {}
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    # A stable sort keeps equal values in their order, so each run of equal values begins with the first of them.
    places = np.arange(len(values))
    starts = np.maximum.accumulate(np.where(np.r_[True, ordered[1:] != ordered[:-1]], places, 0))
    occurrences = places - starts + 1
    repeated = occurrences > 1
    return dict(zip(order[repeated].tolist(), occurrences[repeated].tolist(), strict=True))


@dataclass(frozen=True)
class _IndexPieces:
    reader: PieceReader
    pieces: Sequence[FilePiece]

    def __call__(self, plan: "pa.Table") -> "pa.Table":
        import pyarrow as pa

        schema = pa.schema(
            [
                ("piece", pa.int64()),
                ("num_lines", pa.int64()),
                ("row_lines", pa.list_(pa.int64())),
                ("id_hashes", pa.list_(pa.uint64())),
                ("numbered_ids", pa.list_(pa.string())),
                ("digest", pa.string()),
            ]
        )
        numbers = plan.column("piece").to_pylist()
        rows = [{"piece": n} | to_row(self.reader.index(self.pieces[n])) for n in numbers]
        return pa.Table.from_pylist(rows, schema=schema)


@dataclass(frozen=True)
class _ReadPieces:
    reader: PieceReader
    pieces: Sequence[FilePiece]
    taken: frozenset[str]

    def __call__(self, plan: "pa.Table") -> "Iterator[pa.Table]":
        for task in plan.to_pylist():
            repeats = dict(json.loads(task["repeats"]))
            rows = self.reader.read(self.pieces[task["piece"]], task["first_number"], repeats, self.taken)
            while block := list(islice(rows, _BLOCK_ROWS)):
                yield to_table(SourceRow, block)
