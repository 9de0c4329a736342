"""JSON Lines, read in pieces of bytes."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from vlgenrm_ray.curation.sources.candidate import Candidate, name_hash
from vlgenrm_ray.curation.sources.columns import Columns, candidate
from vlgenrm_ray.curation.sources.files import DataFile, find
from vlgenrm_ray.curation.sources.pieces import Look, Opened, open_pieces

PIECE_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """The lines of a file that begin in [start, end)."""

    file: DataFile
    start: int
    end: int

    def __iter__(self) -> Iterator[bytes]:
        with self.file.reader() as reader:
            if self.start:
                # A line that begins exactly at `start` is ours; one that only goes on there is our neighbour's.
                reader.seek(self.start - 1)
                reader.readline()
            while reader.tell() < self.end and (line := reader.readline()):
                yield line


def open_jsonl(path: str, columns: Columns, image_folder: str | None, piece_bytes: int = PIECE_BYTES) -> Opened:
    """The rows of a JSON Lines file, folder or pattern. Raises InputError."""
    pieces = [
        Lines(file=f, start=s, end=min(s + piece_bytes, f.size))
        for f in find(path, (".jsonl", ".ndjson"))
        for s in range(0, f.size, piece_bytes)
    ]
    return open_pieces(
        look=_Look(pieces, columns),
        read=_Read(pieces, columns, image_folder),
        files=[p.file for p in pieces],
    )


@dataclass(frozen=True)
class _Look:
    pieces: list[Lines]
    columns: Columns

    def __call__(self, piece: int) -> Look:
        whole = hashlib.sha256()
        positions: list[int] = []
        hashes: list[int] = []
        number = 0
        for line in self.pieces[piece]:
            whole.update(line)
            if line.strip():
                positions.append(number)
                hashes.append(name_hash(_parsed(line, "", "", self.columns).name or f"{piece}:{number}"))
            number += 1
        return Look(num_lines=number, rows=positions, hashes=hashes, digest=whole.hexdigest())


@dataclass(frozen=True)
class _Read:
    pieces: list[Lines]
    columns: Columns
    image_folder: str | None

    def __call__(self, piece: int, first_line: int) -> Iterator[Candidate]:
        file = self.pieces[piece].file
        folder = self.image_folder or file.folder
        for number, line in enumerate(self.pieces[piece], start=first_line):
            if line.strip():
                yield _parsed(line, f"{file.name}:{number}", folder, self.columns)


def _parsed(line: bytes, id: str, folder: str, columns: Columns) -> Candidate:
    try:
        row = json.loads(line)
    except ValueError as error:
        return Candidate(id=id, problem=f"not JSON: {error}")
    return candidate(row, id=id, folder=folder, columns=columns)
