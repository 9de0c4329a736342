"""JSON Lines, split by ranges of bytes."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vlgenrm_ray.curation.sources.files import DataFile, FileFormat, FilePiece, PieceIndex
from vlgenrm_ray.curation.sources.rows import MalformedRowError, SourceRow, hash_id


@dataclass(frozen=True, slots=True, kw_only=True)
class LineRange(FilePiece):
    """The lines of a file that begin in the bytes [start, end)."""

    start: int
    end: int

    def __iter__(self) -> Iterator[bytes]:
        with self.file.reader() as reader:
            if self.start:
                # A line that begins exactly at `start` belongs to this range; a line that began before does not.
                reader.seek(self.start - 1)
                reader.readline()
            while reader.tell() < self.end and (line := reader.readline()):
                yield line


class JsonLines(FileFormat):
    """JSON Lines. Blank lines are skipped; a line that is not JSON is a malformed row."""

    suffixes = (".jsonl", ".ndjson")
    piece_bytes = 8 * 1024 * 1024

    def split(self, file: DataFile) -> Sequence[LineRange]:
        """See `FileFormat`."""
        return [
            LineRange(file=file, start=start, end=min(start + self.piece_bytes, file.size))
            for start in range(0, file.size, self.piece_bytes)
        ]

    def index(self, piece: LineRange) -> PieceIndex:
        """See `FileFormat`."""
        content = hashlib.sha256()
        row_lines: list[int] = []
        id_hashes: list[int] = []
        num_lines = 0
        for line in piece:
            content.update(line)
            if line.strip():
                row_lines.append(num_lines)
                question_id = self._parse_line(line, piece.file, num_lines).question_id
                id_hashes.append(hash_id(question_id or f"{piece.file.uri}:{piece.start}:{num_lines}"))
            num_lines += 1
        return PieceIndex(
            num_lines=num_lines,
            row_lines=tuple(row_lines),
            id_hashes=tuple(id_hashes),
            digest=content.hexdigest(),
        )

    def read(self, piece: LineRange, first_line: int) -> Iterator[SourceRow]:
        """See `FileFormat`."""
        for number, line in enumerate(piece, start=first_line):
            if line.strip():
                yield self._parse_line(line, piece.file, number)

    def _parse_line(self, line: bytes, file: DataFile, number: int) -> SourceRow:
        row: object
        try:
            row = json.loads(line)
        except ValueError as error:
            row = MalformedRowError(f"not JSON: {error}")
        except RecursionError:
            row = MalformedRowError("JSON that is nested too deep")
        return self.parse(row, file, number)
