"""Data files: finding them, and reading them in pieces on Ray Data, so that no process holds a whole file.

There are two passes over the pieces. The first one indexes: it counts rows and hashes each row's question id. Row
numbers, and the first of several equal ids, therefore do not depend on the order in which pieces are read. The second
one reads. `FileFormat` is the base class of the formats in this folder and of formats in your own package.
"""

import fnmatch
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vlgenrm_ray.curation.sources.rows import Columns, SourceRow, hash_id, parse_row
from vlgenrm_ray.data import addresses
from vlgenrm_ray.data.arrow import from_row, to_row, to_table
from vlgenrm_ray.data.flow import LIGHT
from vlgenrm_ray.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

_BLOCK_ROWS = 64
"""Rows per block of the stream: few, because each may carry the bytes of an image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedSource:
    """A source, ready to stream."""

    rows: "Dataset"
    """`SourceRow` rows."""
    total: int
    """Number of rows."""
    data_hash: str
    """Hash of the data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """One data file."""

    uri: str
    name: str
    """Path below the folder that was given; row ids begin with it."""
    size: int
    """Size in bytes."""

    @property
    def folder(self) -> str:
        """Folder that relative paths in the file refer to."""
        return self.uri.rpartition("/")[0]

    def open(self) -> "pa.NativeFile":
        """Open the file for random access."""
        import pyarrow.fs

        files, path = pyarrow.fs.FileSystem.from_uri(self.uri)
        return files.open_input_file(path)

    def reader(self) -> io.BufferedReader:
        """Open the file for reading line by line."""
        return io.BufferedReader(self.open())


def find_files(path: str, suffixes: tuple[str, ...]) -> list[DataFile]:
    """Find the files that `pool.path` names, in name order.

    Args:
        path: A file, a folder, or a folder with a file name pattern; local or a URI.
        suffixes: Suffixes of the files to take from a folder.

    Raises:
        InputError: There are none, or the address cannot be read.
    """
    import pyarrow as pa
    import pyarrow.fs

    address = path if addresses.scheme(path) else os.path.abspath(os.path.expanduser(path))
    try:
        files, inner = pyarrow.fs.FileSystem.from_uri(address)
        folder, _, pattern = inner.rpartition("/")
        info = files.get_file_info(inner)
        if info.type == pyarrow.fs.FileType.File:
            infos, base = [info], folder
        elif info.type == pyarrow.fs.FileType.Directory:
            selector = pyarrow.fs.FileSelector(inner, recursive=True)
            infos, base = [i for i in files.get_file_info(selector) if i.path.endswith(suffixes)], inner
        else:
            selector = pyarrow.fs.FileSelector(folder, allow_not_found=True)
            infos, base = [i for i in files.get_file_info(selector) if fnmatch.fnmatch(i.base_name, pattern)], folder
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(
            f"pool.path: {path!r} cannot be read ({error}); check the address and its credentials"
        ) from error
    infos = sorted((i for i in infos if i.type == pyarrow.fs.FileType.File), key=lambda i: str(i.path))
    if not infos:
        raise InputError(
            f"pool.path: {path!r} names no file; give a {' or '.join(suffixes)} file, a folder with such files, "
            "or a pattern (relative paths refer to the working directory)"
        )
    root = address[: len(address) - len(inner)]
    return [DataFile(uri=root + i.path, name=i.path[len(base) :].lstrip("/"), size=i.size) for i in infos]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePiece:
    """A part of a file that one task reads. Formats that split files derive from it."""

    file: DataFile


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceIndex:
    """Result of the first pass over one piece."""

    num_lines: int
    """Lines in the piece, blank ones included."""
    row_lines: tuple[int, ...]
    """Numbers of the lines that hold a row, counted from 0."""
    id_hashes: tuple[int, ...]
    """`hash_id` of each row's question id."""
    digest: str
    """Hash of the piece's content."""


class FileFormat:
    """Base class of file formats.

    The simplest format defines `suffixes` and `rows`; its files are read whole, one file per task. A format whose files
    can be split also overrides `split`, `index` and `read`.
    """

    suffixes: ClassVar[tuple[str, ...]]
    """Suffixes of the files to read from a folder."""

    def __init__(self, columns: Columns, image_folder: str | None = None, options: Mapping[str, Any] | None = None):
        """Set the names of the columns, the folder of relative image paths, and the settings of a custom format."""
        self.columns = columns
        self.image_folder = image_folder
        self.options = dict(options or {})

    def rows(self, file: DataFile) -> Iterator[object]:
        """Yield the rows of a file: mappings of column names to values. Anything else is a malformed row."""
        raise NotImplementedError(f"{type(self).__name__} must define rows, or split, index and read")

    def split(self, file: DataFile) -> Sequence[FilePiece]:
        """Split a file into pieces, in its order. Runs in the driver. Raises InputError."""
        return [FilePiece(file=file)]

    def index(self, piece: Any) -> PieceIndex:
        """Index a piece: the first pass."""
        rows = [self.parse(row, piece.file, number) for number, row in enumerate(self.rows(piece.file), start=1)]
        with piece.file.open() as opened:
            digest = hashlib.sha256(opened.read()).hexdigest()
        return PieceIndex(
            num_lines=len(rows),
            row_lines=tuple(range(len(rows))),
            id_hashes=tuple(hash_id(row.question_id or row.id) for row in rows),
            digest=digest,
        )

    def read(self, piece: Any, first_line: int) -> Iterator[SourceRow]:
        """Read a piece, its lines counted from `first_line`: the second pass."""
        for number, row in enumerate(self.rows(piece.file), start=first_line):
            yield self.parse(row, piece.file, number)

    def parse(self, row: object, file: DataFile, line: int) -> SourceRow:
        """Parse one row of a file."""
        folder = self.image_folder or file.folder
        return parse_row(row, id=f"{file.name}:{line}", folder=folder, columns=self.columns)

    def open(self, path: str) -> OpenedSource:
        """Open the files that `path` names. Raises InputError."""
        return read_pieces(self, [piece for file in find_files(path, self.suffixes) for piece in self.split(file)])


def read_pieces(file_format: FileFormat, pieces: Sequence[FilePiece]) -> OpenedSource:
    """Index the pieces on Ray (first pass), and return a source whose dataset reads them (second pass)."""
    import pyarrow as pa
    import ray.data

    plan = pa.table({"piece": pa.array(range(len(pieces)), pa.int64())})
    indexed = ray.data.from_arrow(plan).map_batches(_Index(file_format, pieces), batch_size=1, **LIGHT)
    index_rows = sorted(indexed.iter_rows(), key=lambda row: int(row["piece"])) if pieces else []
    indices = [from_row(PieceIndex, row) for row in index_rows]
    first_lines = _first_lines(pieces, indices)
    row_ids = [
        (i, f"{pieces[i].file.name}:{first_lines[i] + line}") for i, k in enumerate(indices) for line in k.row_lines
    ]
    duplicates_of_pieces: list[dict[str, str]] = [{} for _ in pieces]
    for duplicate, first in find_duplicates(h for k in indices for h in k.id_hashes).items():
        piece, row_id = row_ids[duplicate]
        duplicates_of_pieces[piece][row_id] = row_ids[first][1]
    plan = plan.append_column("first_line", pa.array(first_lines, pa.int64()))
    plan = plan.append_column("duplicates", pa.array([json.dumps(d) for d in duplicates_of_pieces], pa.string()))
    return OpenedSource(
        rows=ray.data.from_arrow(plan).map_batches(_Read(file_format, pieces), batch_size=1, **LIGHT),
        total=len(row_ids),
        data_hash=hashlib.sha256("".join(k.digest for k in indices).encode()).hexdigest()[:16],
    )


def _first_lines(pieces: Sequence[FilePiece], indices: Sequence[PieceIndex]) -> list[int]:
    """Return the number, from 1, of each piece's first line in its file."""
    numbers: list[int] = []
    for i, piece in enumerate(pieces):
        continues_file = i > 0 and pieces[i - 1].file == piece.file
        numbers.append(numbers[-1] + indices[i - 1].num_lines if continues_file else 1)
    return numbers


def find_duplicates(hashes: Iterable[int]) -> dict[int, int]:
    """Map the index of every value that occurred before to the index of its first occurrence."""
    values = np.fromiter(hashes, dtype=np.uint64)
    if not len(values):
        return {}
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    # A stable sort keeps equal values in their order, so each run of equal values begins with the first of them.
    starts = np.maximum.accumulate(np.where(np.r_[True, ordered[1:] != ordered[:-1]], np.arange(len(values)), 0))
    is_duplicate = starts != np.arange(len(values))
    return dict(zip(order[is_duplicate].tolist(), order[starts[is_duplicate]].tolist(), strict=True))


@dataclass(frozen=True)
class _Index:
    file_format: FileFormat
    pieces: Sequence[FilePiece]

    def __call__(self, plan: "pa.Table") -> "pa.Table":
        import pyarrow as pa

        schema = pa.schema(
            [
                ("piece", pa.int64()),
                ("num_lines", pa.int64()),
                ("row_lines", pa.list_(pa.int64())),
                ("id_hashes", pa.list_(pa.uint64())),
                ("digest", pa.string()),
            ]
        )
        numbers = plan.column("piece").to_pylist()
        rows = [{"piece": n} | to_row(self.file_format.index(self.pieces[n])) for n in numbers]
        return pa.Table.from_pylist(rows, schema=schema)


@dataclass(frozen=True)
class _Read:
    file_format: FileFormat
    pieces: Sequence[FilePiece]

    def __call__(self, plan: "pa.Table") -> "Iterator[pa.Table]":
        for task in plan.to_pylist():
            duplicates = json.loads(task["duplicates"])
            rows = self.file_format.read(self.pieces[task["piece"]], task["first_line"])
            rows = (replace(row, duplicate_of=duplicates.get(row.id, "")) for row in rows)
            while block := list(islice(rows, _BLOCK_ROWS)):
                yield to_table(SourceRow, block)
