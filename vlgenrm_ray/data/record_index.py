"""Index from record ids to shards, to read a few records of a large stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from vlgenrm_ray.data import shard_files
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
    Ray's object store and reads the row groups it needs.
    """

    folder: StageFolder
    table: "pa.Table"
    """Columns `id`, `shard` (position in `shards`) and `row_group` (of that shard)."""
    shards: tuple[Path, ...]

    @classmethod
    def build(cls, folder: StageFolder) -> "RecordIndex":
        """Read the ids of all records of a stage."""
        import numpy as np
        import pyarrow as pa

        shards = folder.shards()
        ids, numbers, row_groups = [], [], []
        for number, shard in enumerate(shards):
            ids.append(folder.read_records(shard, columns=["id"]).column("id").combine_chunks())
            numbers.append(np.full(len(ids[-1]), number, dtype=np.int32))
            sizes = shard_files.row_group_sizes(shard)
            row_groups.append(np.repeat(np.arange(len(sizes), dtype=np.int32), sizes))
        columns = {
            "id": pa.chunked_array(ids, pa.string()),
            "shard": pa.chunked_array(numbers, pa.int32()),
            "row_group": pa.chunked_array(row_groups, pa.int32()),
        }
        return cls(folder, pa.table(columns), tuple(shards))

    def read(self, cls: type[Identified], ids: Sequence[str]) -> dict[str, Identified]:
        """Read the records with these ids. Raises StageError if the stage lacks one."""
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = pa.array(ids, pa.string())
        places = self.table.filter(pc.is_in(self.table.column("id"), value_set=wanted))
        row_groups: dict[int, set[int]] = {}
        for number, row_group in zip(*(places.column(c).to_pylist() for c in ("shard", "row_group")), strict=True):
            row_groups.setdefault(number, set()).add(row_group)
        records: dict[str, Identified] = {}
        for number, groups in row_groups.items():
            is_wanted = pc.field("id").isin(wanted)
            rows = self.folder.read_records(self.shards[number], row_groups=sorted(groups), filters=is_wanted)
            records.update((row["id"], from_row(cls, row)) for row in rows.to_pylist())
        if missing := [id for id in ids if id not in records]:
            raise StageError(f"{self.folder.path} has no record {missing[0]!r}; it was changed since the stage began")
        return records
