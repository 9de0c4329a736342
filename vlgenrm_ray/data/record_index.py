"""Index from record ids to shards, to read a few records of a large stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from vlgenrm_ray.data.arrow import from_row
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.errors import StageError

if TYPE_CHECKING:
    import pyarrow as pa


class HasId(Protocol):
    """A record with an id."""

    @property
    def id(self) -> str: ...


Identified = TypeVar("Identified", bound=HasId)


@dataclass(frozen=True)
class RecordIndex:
    """Index from record ids to shards, to read a few records of a large stage.

    Holds the ids only (tens of bytes each). A task that joins its rows with another stage's records gets it through
    Ray's object store and reads the shards it needs.
    """

    folder: StageFolder
    table: "pa.Table"
    """Columns `id` and `shard` (position in `shards`)."""
    shards: tuple[Path, ...]

    @classmethod
    def build(cls, folder: StageFolder) -> "RecordIndex":
        """Read the ids of all records of a stage."""
        import pyarrow as pa

        shards = folder.shards()
        ids = [folder.read_records(shard, columns=["id"]).column("id").combine_chunks() for shard in shards]
        numbers = [number for number, column in enumerate(ids) for _ in range(len(column))]
        columns = {"id": pa.chunked_array(ids, pa.string()), "shard": pa.array(numbers, pa.int32())}
        return cls(folder, pa.table(columns), tuple(shards))

    def read(self, cls: type[Identified], ids: Sequence[str]) -> dict[str, Identified]:
        """Read the records with these ids. Raises StageError if the stage lacks one."""
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = pa.array(ids, pa.string())
        is_wanted = pc.is_in(self.table.column("id"), value_set=wanted)
        records: dict[str, Identified] = {}
        for number in self.table.column("shard").filter(is_wanted).unique().to_pylist():
            rows = self.folder.read_records(self.shards[number], filters=pc.field("id").isin(wanted))
            records.update((row["id"], from_row(cls, row)) for row in rows.to_pylist())
        if missing := [id for id in ids if id not in records]:
            raise StageError(f"{self.folder.path} has no record {missing[0]!r}; it was changed since the stage began")
        return records
