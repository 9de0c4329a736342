"""Records of a stage in a memory-mapped Arrow file, for random access by many processes.

A learner reads examples in an order of its own, epoch after epoch. As Python objects 1.2 million examples take 6 GB in
each of its workers; mapped, the workers of a node share the pages that they touch, and hold 8 bytes an example.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from vlgenrm_ray.data.arrow import arrow_schema, from_row, from_table, to_table
from vlgenrm_ray.data.files import writing
from vlgenrm_ray.data.store import StageFolder

if TYPE_CHECKING:
    import pyarrow as pa

R = TypeVar("R")

_BATCH_ROWS = 4096
"""Rows of a batch of the file; reading a row costs a search among the batches."""


class MappedRecords(Generic[R]):
    """All records of a stage, ordered by id: the same sequence for any distribution over shards."""

    def __init__(self, cls: type[R], path: Path) -> None:
        """Open a file of `write`.

        Args:
            cls: Type of the records.
            path: The file.
        """
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        self._cls = cls
        with pa.ipc.open_file(pa.memory_map(str(path))) as reader:
            self._batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        self._ends = np.cumsum([batch.num_rows for batch in self._batches], dtype=np.int64)
        ids = pa.chunked_array([batch.column("id") for batch in self._batches], pa.string())
        self._order = pc.sort_indices(ids).to_numpy()

    @staticmethod
    def write(cls: type[R], source: StageFolder, path: Path) -> None:
        """Write the records of a complete stage to a file, a shard at a time, atomically.

        Raises:
            StorageFullError: The file system takes no more data.
        """
        import pyarrow as pa

        num_bytes = sum(shard.stat().st_size for shard in source.shards())
        # Not flushed: it is written anew in each attempt.
        with (
            writing(path, num_bytes, flush=False) as partial,
            pa.OSFile(str(partial), "wb") as sink,
            pa.ipc.new_file(sink, arrow_schema(cls)) as writer,
        ):
            for shard in source.shards():
                writer.write_table(_conform(cls, source.read_records(shard)), max_chunksize=_BATCH_ROWS)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> R:
        row = int(self._order[index])
        number = int(self._ends.searchsorted(row, side="right"))
        batch = self._batches[number]
        (values,) = batch.slice(row - (int(self._ends[number]) - batch.num_rows), 1).to_pylist()
        return from_row(self._cls, values)


def _conform(cls: type[R], table: "pa.Table") -> "pa.Table":
    """Return a table in the schema of its records; fields that an earlier version lacked have their defaults."""
    if table.schema == arrow_schema(cls):
        return table
    return to_table(cls, from_table(cls, table))
