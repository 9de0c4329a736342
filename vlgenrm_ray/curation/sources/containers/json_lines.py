"""JSON Lines, whatever the file is called, split by ranges of bytes."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vlgenrm_ray.curation.sources.container import BLANK, Container, FilePiece, RawRow
from vlgenrm_ray.curation.sources.files import DataFile
from vlgenrm_ray.curation.sources.values import MalformedRowError

_BOM = b"\xef\xbb\xbf"
_COUNT_BYTES = 16 * 1024 * 1024
_SCALAR = r'(?:"(?:[^"\\]|\\.){0,500}"|[\w.+-]{1,32})'
_FLAT_OBJECT = rf"\{{\s*(?:{_SCALAR}\s*[:,]?\s*){{0,64}}+\}}"
WRAPPED_ARRAY = re.compile(
    (
        rf'\{{\s*(?:"[\w.-]{{1,64}}"\s*:\s*(?:{_SCALAR}|{_FLAT_OBJECT})\s*,\s*)*'
        r'"(?:data|dataset|rows|instances|annotations|examples|items|questions|samples|records|entries|train|test|val'
        r'|validation|results)"\s*:\s*(?=\[\s*\{)'
    ).encode()
)
"""Beginning of an object whose first list is a data set; texts, numbers and objects of these may precede it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineRange(FilePiece):
    """The lines of a file that begin in the bytes [start, end)."""

    start: int
    end: int
    """-1: to the end of the file."""

    @property
    def is_whole_file(self) -> bool:
        """See `FilePiece.is_whole_file`."""
        return self.end < 0

    def __iter__(self) -> Iterator[bytes]:
        with self.file.reader() as reader:
            if self.start:
                # A line that begins exactly at `start` belongs to this range; a line that began before does not.
                reader.seek(self.start - 1)
                reader.readline()
            if self.end < 0:
                yield from reader
                return
            while reader.tell() < self.end and (line := reader.readline()):
                yield line


class JsonLines(Container):
    """JSON Lines. Blank lines are skipped; a line that is not JSON is a malformed row."""

    title = "JSON Lines"
    suffixes = (".jsonl", ".ndjson")
    unit = "line"
    piece_bytes = 8 * 1024 * 1024

    def recognise(self, file: DataFile, head: bytes) -> str:
        """See `Container.recognise`. A `.json` file counts if its first line is an object that ends on that line."""
        text = head.removeprefix(_BOM).lstrip()
        if file.suffix in (".jsonl", ".ndjson"):
            return "" if _is_array(text) else f"suffix {file.suffix}"
        if not text.startswith(b"{"):
            return ""
        line, newline, rest = text.partition(b"\n")
        if not rest.strip() and (WRAPPED_ARRAY.match(text) or _holds_rows(line)):
            return ""
        if _is_object(line) and (not newline or not rest.strip() or rest.lstrip()[:1] == b"{"):
            return "one JSON object a line" + (", though its name ends in .json" if file.suffix == ".json" else "")
        # A line may be longer than the head.
        return "one JSON object a line" if not newline and len(head) > len(text) // 2 and file.suffix != ".json" else ""

    def split(self, file: DataFile) -> Sequence[LineRange]:
        """See `Container.split`."""
        if file.codec:
            return [LineRange(file=file, start=0, end=-1)]
        return [
            LineRange(file=file, start=start, end=min(start + self.piece_bytes, file.size))
            for start in range(0, file.size, self.piece_bytes)
        ]

    def read(self, piece: LineRange) -> Iterator[RawRow]:
        """See `Container.read`."""
        for number, line in enumerate(piece):
            yield RawRow(number, parse_line(line) if line.strip() else BLANK)

    def first_number(self, piece: LineRange) -> int:
        """See `Container.first_number`."""
        number, num_bytes = 1, 0
        with piece.file.reader() as reader:
            while num_bytes < piece.start and (chunk := reader.read(min(_COUNT_BYTES, piece.start - num_bytes))):
                number += chunk.count(b"\n")
                num_bytes += len(chunk)
            # A line that began before `start` belongs to the piece before, and ends within this one.
            if piece.start:
                reader.seek(piece.start - 1)
                number += reader.read(1) != b"\n"
        return number

    def digest(self, piece: LineRange) -> str:
        """See `Container.digest`."""
        content = hashlib.sha256()
        for line in piece:
            content.update(line)
        return content.hexdigest()


def parse_line(line: bytes) -> object:
    """Return the value of a line of JSON, or the error that says why it is none."""
    try:
        return json.loads(line.removeprefix(_BOM))
    except ValueError as error:
        return MalformedRowError(f"not JSON: {error}")
    except RecursionError:
        return MalformedRowError("JSON that is nested too deep")


def _is_array(text: bytes) -> bool:
    """Return True if a text begins with an array of objects, not with a line that is an array."""
    return text.startswith(b"[") and text[1:].lstrip().startswith((b"{", b"]"))


def _holds_rows(line: bytes) -> bool:
    """Return True if a line is an object of nothing but objects, which are rows by their ids."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and bool(value) and all(isinstance(row, dict) for row in value.values())


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
