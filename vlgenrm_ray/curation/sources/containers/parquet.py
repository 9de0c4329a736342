"""Parquet, the storage format of Hugging Face data sets, split by row groups."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.curation.sources.container import Container, FilePiece, RawRow
from vlgenrm_ray.curation.sources.files import DataFile
from vlgenrm_ray.curation.sources.values import MalformedRowError
from vlgenrm_ray.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 64
_BUFFER_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup(FilePiece):
    """One row group of a file."""

    index: int
    num_rows: int
    first_row: int
    """Number of its first row in the file, from 1."""
    digest: str
    """Hash of the file's footer, which holds the position and the value range of each column chunk."""

    @property
    def is_whole_file(self) -> bool:
        """See `FilePiece.is_whole_file`."""
        return False


class Parquet(Container):
    """Parquet files."""

    title = "Parquet"
    suffixes = (".parquet", ".pq")

    def recognise(self, file: DataFile, head: bytes) -> str:
        """See `Container.recognise`."""
        return "Parquet's first bytes" if head.startswith(b"PAR1") else ""

    def split(self, file: DataFile) -> Sequence[RowGroup]:
        """See `Container.split`."""
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
        counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        first_rows = accumulate(counts, initial=1)
        return [
            RowGroup(file=file, index=i, num_rows=count, first_row=first, digest=digest)
            for i, (count, first) in enumerate(zip(counts, first_rows, strict=False))
        ]

    def read(self, piece: RowGroup) -> Iterator[RawRow]:
        """See `Container.read`."""
        import pyarrow.parquet as pq

        number = 0
        with piece.file.open() as opened:
            # Page by page: a column of images may be larger than the memory of a task.
            for batch in pq.ParquetFile(opened, buffer_size=_BUFFER_BYTES).iter_batches(
                batch_size=_BATCH_ROWS, row_groups=[piece.index]
            ):
                for value in read_batch(batch):
                    yield RawRow(number, value)
                    number += 1

    def first_number(self, piece: RowGroup) -> int:
        """See `Container.first_number`."""
        return piece.first_row

    def digest(self, piece: RowGroup) -> str:
        """See `Container.digest`."""
        return piece.digest

    def num_rows(self, piece: RowGroup) -> int:
        """See `Container.num_rows`."""
        return piece.num_rows


def read_batch(batch: "pa.RecordBatch") -> Iterator[dict[str, Any] | MalformedRowError]:
    """Yield the rows of a batch; an error for a row that cannot be read."""
    try:
        yield from batch.to_pylist()
    # A value may have no form in Python: bytes in a column of texts that are not UTF-8, a date after the year 9999.
    except Exception as error:
        if batch.num_rows == 1:
            yield MalformedRowError(f"{type(error).__name__}: {error}")
            return
        for i in range(batch.num_rows):
            yield from read_batch(batch.slice(i, 1))
