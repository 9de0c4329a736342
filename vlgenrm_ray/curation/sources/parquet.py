"""Parquet, the storage format of Hugging Face data sets, split by row groups."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.curation.sources.files import DataFile, FileFormat, FilePiece, PieceIndex
from vlgenrm_ray.curation.sources.rows import MalformedRowError, SourceRow, explicit_id, hash_id
from vlgenrm_ray.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup(FilePiece):
    """One row group of a file."""

    index: int
    num_rows: int
    names: tuple[str, ...]
    """All columns of the file."""
    digest: str
    """Hash of the file's footer, which holds the position and the value range of each column chunk."""

    def rows(self, columns: frozenset[str]) -> Iterator[dict[str, Any] | MalformedRowError]:
        """Yield the rows, with those of `columns` that the file has; an error for a row that cannot be read."""
        import pyarrow.parquet as pq

        with self.file.open() as opened:
            batches = pq.ParquetFile(opened).iter_batches(
                batch_size=_BATCH_ROWS, row_groups=[self.index], columns=[n for n in self.names if n in columns]
            )
            for batch in batches:
                yield from _read_rows(batch)


def _read_rows(batch: "pa.RecordBatch") -> Iterator[dict[str, Any] | MalformedRowError]:
    try:
        yield from batch.to_pylist()
    # A value may have no form in Python: bytes in a column of texts that are not UTF-8, a date after the year 9999.
    except Exception as error:
        if batch.num_rows == 1:
            yield MalformedRowError(f"{type(error).__name__}: {error}")
            return
        for i in range(batch.num_rows):
            yield from _read_rows(batch.slice(i, 1))


class Parquet(FileFormat):
    """Parquet files. Only the columns from which questions are built are read."""

    suffixes = (".parquet",)

    def split(self, file: DataFile) -> Sequence[RowGroup]:
        """See `FileFormat`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with file.open() as opened:
                metadata = pq.ParquetFile(opened).metadata
                opened.seek(file.size - 8)
                footer = int.from_bytes(opened.read(4), "little")
                opened.seek(file.size - 8 - footer)
                digest = hashlib.sha256(opened.read(footer)).hexdigest()
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(
                f"pool.path: {file.uri!r} is no readable Parquet file ({error}); write it again"
            ) from error
        names = tuple(metadata.schema.to_arrow_schema().names)
        return [
            RowGroup(file=file, index=i, num_rows=metadata.row_group(i).num_rows, names=names, digest=digest)
            for i in range(metadata.num_row_groups)
        ]

    def index(self, piece: RowGroup) -> PieceIndex:
        """See `FileFormat`."""
        # If all rows have ids of their own, the id column is all that has to be read to find duplicates.
        id_columns = frozenset(self.columns.names("id")) & frozenset(piece.names)
        ids: list[str | None] = [self._explicit_id(row) for row in piece.rows(id_columns)] if id_columns else [None]
        if None in ids:
            rows = piece.rows(self.columns.all_names())
            ids = [self.parse(row, piece.file, 0).question_id for row in rows]
        return PieceIndex(
            num_lines=piece.num_rows,
            row_lines=tuple(range(piece.num_rows)),
            id_hashes=tuple(hash_id(id or f"{piece.file.uri}:{piece.index}:{i}") for i, id in enumerate(ids)),
            digest=piece.digest,
        )

    def _explicit_id(self, row: dict[str, Any] | MalformedRowError) -> str | None:
        try:
            return None if isinstance(row, MalformedRowError) else explicit_id(row, self.columns)
        except MalformedRowError:
            return None

    def read(self, piece: RowGroup, first_line: int) -> Iterator[SourceRow]:
        """See `FileFormat`."""
        for number, row in enumerate(piece.rows(self.columns.all_names()), start=first_line):
            yield self.parse(row, piece.file, number)
