"""Parquet, read a row group at a time. What Hugging Face stores a data set as."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vlgenrm_ray.curation.sources.candidate import Candidate, name_hash
from vlgenrm_ray.curation.sources.columns import Columns, MalformedRowError, candidate, own_id
from vlgenrm_ray.curation.sources.files import DataFile, find
from vlgenrm_ray.curation.sources.pieces import Look, Opened, open_pieces
from vlgenrm_ray.errors import InputError

_BATCH_ROWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup:
    """One row group of a file."""

    file: DataFile
    index: int
    num_rows: int
    names: tuple[str, ...]
    """All columns of the file."""
    digest: str
    """Hash of the file's footer, which knows where each column chunk lies and what range it spans."""

    def rows(self, columns: frozenset[str]) -> Iterator[dict[str, Any]]:
        """The rows, with those of `columns` that the file has."""
        import pyarrow.parquet as pq

        with self.file.open() as opened:
            batches = pq.ParquetFile(opened).iter_batches(
                batch_size=_BATCH_ROWS, row_groups=[self.index], columns=[n for n in self.names if n in columns]
            )
            for batch in batches:
                yield from batch.to_pylist()


def open_parquet(path: str, columns: Columns, image_folder: str | None) -> Opened:
    """The rows of a Parquet file, folder or pattern. Raises InputError."""
    groups = [group for file in find(path, (".parquet",)) for group in _row_groups(file)]
    return open_pieces(
        look=_Look(groups, columns),
        read=_Read(groups, columns, image_folder),
        files=[g.file for g in groups],
    )


def _row_groups(file: DataFile) -> list[RowGroup]:
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
        raise InputError(f"pool.path: {file.uri!r} is no readable Parquet file ({error}); write it again") from error
    names = tuple(metadata.schema.to_arrow_schema().names)
    return [
        RowGroup(file=file, index=i, num_rows=metadata.row_group(i).num_rows, names=names, digest=digest)
        for i in range(metadata.num_row_groups)
    ]


@dataclass(frozen=True)
class _Look:
    groups: list[RowGroup]
    columns: Columns

    def __call__(self, piece: int) -> Look:
        group = self.groups[piece]
        # Where all rows have ids of their own, that one column is all that has to be read to find the duplicates.
        ids = frozenset(self.columns.names("id")) & frozenset(group.names)
        names: list[str | None] = [self._own_id(row) for row in group.rows(ids)] if ids else [None]
        if None in names:
            names = [
                candidate(row, id="", folder="", columns=self.columns).name for row in group.rows(self.columns.wanted())
            ]
        return Look(
            num_lines=group.num_rows,
            rows=list(range(group.num_rows)),
            hashes=[name_hash(name or f"{piece}:{number}") for number, name in enumerate(names)],
            digest=group.digest,
        )

    def _own_id(self, row: dict[str, Any]) -> str | None:
        try:
            return own_id(row, self.columns)
        except MalformedRowError:
            return None


@dataclass(frozen=True)
class _Read:
    groups: list[RowGroup]
    columns: Columns
    image_folder: str | None

    def __call__(self, piece: int, first_line: int) -> Iterator[Candidate]:
        group = self.groups[piece]
        folder = self.image_folder or group.file.folder
        for number, row in enumerate(group.rows(self.columns.wanted()), start=first_line):
            yield candidate(row, id=f"{group.file.name}:{number}", folder=folder, columns=self.columns)
