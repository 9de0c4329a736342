"""Shard files: Parquet rows of records, with the units that they belong to in the footer.

A shard holds a table of *units*: input rows of a stage with their results (columns `id`, `records`, `dropped`,
`num_tokens`, `metric_sums`). Its Parquet rows are the records of the units, in order. The footer has two entries that
other readers ignore: `vlgenrm_ray.units`, the units without their records but with their number, and
`vlgenrm_ray.totals`, the sums over the units. Files are flushed to the disk before they are renamed, and their pages
have checksums.

URIs are read and written as they are stored; `store.StageFolder` makes them absolute.
"""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.data.files import writing
from vlgenrm_ray.errors import DamagedShardError, InputError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

FORMAT = 2
"""Version of the layout of stage folders and shards. Version 1 nested the records of a unit in one row."""
NO_SUMS = "{}"
"""Value of `metric_sums` of a unit without metrics."""
_UNITS_KEY = b"vlgenrm_ray.units"
_TOTALS_KEY = b"vlgenrm_ray.totals"
_HASH_BITS = 256
_ROW_GROUP_ROWS = 1024
"""Rows that are read together where a few records of a large shard are needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTotals:
    """Sums over the units of a shard; those of a stage are the sums of its shards'."""

    num_units: int = 0
    num_records: int = 0
    num_tokens: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason -> rows."""
    hash: int = 0
    """Sum of the hashes of the units, modulo 2^256: independent of their order and of their distribution."""
    num_bytes: int = 0
    """Size of the units in memory, in bytes; 0 if an earlier version wrote them."""
    metric_sums: dict[str, Any] | None = field(default_factory=dict)
    """Sum of the units' `metric_sums`; None if an earlier version wrote one of them, without sums."""

    @classmethod
    def of(cls, units: "pa.Table") -> "ShardTotals":
        """Sum up a table of units as they are stored."""
        # The metrics follow from the units, and are no part of their hash.
        has_sums = "metric_sums" in units.column_names
        sums = units.column("metric_sums").to_pylist() if has_sums else [None] * units.num_rows
        rows = (units.drop_columns(["metric_sums"]) if has_sums else units).to_pylist()
        # `json.dumps` would make an encoder for every row.
        encode = json.JSONEncoder(sort_keys=True, default=str).encode
        hashes = (hashlib.sha256(encode(row).encode()).digest() for row in rows)
        return cls(
            num_units=len(rows),
            num_records=sum(len(row["records"]) for row in rows),
            num_tokens=sum(row["num_tokens"] for row in rows),
            dropped=dict(Counter(drop["reason"] for row in rows for drop in row["dropped"])),
            hash=sum(int.from_bytes(digest) for digest in hashes) % (1 << _HASH_BITS),
            num_bytes=units.nbytes,
            metric_sums=None if None in sums else add_sums(json.loads(s) for s in sums if s and s != NO_SUMS),
        )

    @classmethod
    def merge(cls, totals: Sequence["ShardTotals"]) -> "ShardTotals":
        """Sum up the totals of several shards."""
        sums = [t.metric_sums for t in totals if t.num_units]
        return cls(
            num_units=sum(t.num_units for t in totals),
            num_records=sum(t.num_records for t in totals),
            num_tokens=sum(t.num_tokens for t in totals),
            dropped=add_sums(t.dropped for t in totals),
            hash=sum(t.hash for t in totals) % (1 << _HASH_BITS),
            num_bytes=sum(t.num_bytes for t in totals),
            metric_sums=None if None in sums else add_sums(s for s in sums if s),
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> "ShardTotals":
        """Read the totals of `to_json`, or those of an earlier version, which had no sums for metrics."""
        return cls(**{"metric_sums": None} | json.loads(text))

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def add_sums(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Add nested mappings from names to numbers: numbers of the same name are added, mappings by their names."""
    total: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if isinstance(value, Mapping):
                total[name] = add_sums([total.get(name, {}), value])
            else:
                total[name] = total.get(name, 0) + value
    return total


def write_shard(units: "pa.Table", target: Path, totals: ShardTotals | None = None) -> ShardTotals:
    """Write a table of units as a shard file, atomically.

    Args:
        units: The units.
        target: Path of the file.
        totals: Totals of the units, if they are known.

    Raises:
        StorageFullError: The file system takes no more data.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    lists = units.column("records").combine_chunks()
    records = lists.flatten()
    rows = pa.Table.from_arrays(records.flatten(), schema=pa.schema(list(records.type)))
    index = units.drop_columns(["records"]).append_column("num_records", lists.value_lengths())
    totals = totals or ShardTotals.of(units)
    with (
        writing(target, rows.nbytes) as partial,
        pq.ParquetWriter(partial, rows.schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        if rows.num_rows:  # `datasets` cannot read an empty row group, but a file without any.
            writer.write_table(rows, row_group_size=_ROW_GROUP_ROWS)
        # In the footer, not in the schema's metadata: that Parquet files hold twice.
        writer.add_key_value_metadata({_UNITS_KEY: _serialise(index), _TOTALS_KEY: totals.to_json()})
    return totals


def read_totals(shard: Path) -> ShardTotals:
    """Read a shard's totals from its footer. Raises DamagedShardError, or InputError for another format."""
    import pyarrow.parquet as pq

    with _reading(shard):
        metadata = pq.read_metadata(shard)
    _serialised_units(metadata, shard)
    if (totals := metadata.metadata.get(_TOTALS_KEY)) is None:  # Written before shards had totals.
        return ShardTotals.of(read_units(shard))
    return ShardTotals.from_json(totals)


def read_totals_and_ids(shard: Path) -> "tuple[ShardTotals, pa.Array]":
    """Read a shard's totals and the ids of its units in one go. Errors as for `read_totals`."""
    import pyarrow.parquet as pq

    with _reading(shard):
        metadata = pq.read_metadata(shard)
        index = _deserialise(_serialised_units(metadata, shard))
    totals = metadata.metadata.get(_TOTALS_KEY)
    ids = index.column("id").combine_chunks()
    return (ShardTotals.of(read_units(shard)) if totals is None else ShardTotals.from_json(totals)), ids


def read_unit_index(shard: Path) -> "pa.Table":
    """Read a shard's footer: a table with `id`, `dropped`, `num_tokens`, `metric_sums` and `num_records` of each unit.

    Units of earlier versions have no `metric_sums`.

    Raises DamagedShardError, or InputError for a shard of another storage format.
    """
    import pyarrow.parquet as pq

    with _reading(shard):
        return _deserialise(_serialised_units(pq.read_metadata(shard), shard))


def read_units(shard: Path) -> "pa.Table":
    """Read a shard as the table of units that `write_shard` got."""
    return nest_records(read_unit_index(shard), read_rows(shard))


def nest_records(index: "pa.Table", rows: "pa.Table") -> "pa.Table":
    """Join the units of a footer with the shard's rows to a table of units."""
    import pyarrow as pa
    import pyarrow.compute as pc

    ends = pc.cumulative_sum(index.column("num_records").combine_chunks()).cast(pa.int32())
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), ends])
    kind = pa.struct(list(rows.schema))
    records = rows.to_struct_array().combine_chunks() if rows.num_rows else pa.array([], kind)
    columns = {
        "id": index.column("id"),
        "records": pa.ListArray.from_arrays(offsets, records),
        "dropped": index.column("dropped"),
        "num_tokens": index.column("num_tokens"),
        "metric_sums": index.column("metric_sums")
        if "metric_sums" in index.column_names
        else pa.nulls(index.num_rows, pa.string()),
    }
    return pa.table(columns)


def read_rows(
    shard: Path,
    columns: Sequence[str] | None = None,
    filters: Any = None,
    row_groups: Sequence[int] | None = None,
) -> "pa.Table":
    """Read the rows of a shard: its records. Arguments as for `StageFolder.read_records`."""
    import pyarrow.parquet as pq

    # Unlike `read_table`, `ParquetFile` reads single columns inside nested ones.
    with _reading(shard), pq.ParquetFile(shard, page_checksum_verification=True) as file:
        _serialised_units(file.metadata, shard)
        if row_groups is not None:
            table = file.read_row_groups(list(row_groups), columns=columns)
        elif filters is None:
            table = file.read(columns=columns)
        else:
            table = pq.read_table(shard, filters=filters, page_checksum_verification=True)
    # The footer's units would otherwise travel with every slice of the table.
    table = table.replace_schema_metadata(None)
    return table if row_groups is None or filters is None else table.filter(filters)


def row_group_sizes(shard: Path) -> list[int]:
    """Return the number of rows of each row group of a shard."""
    import pyarrow.parquet as pq

    with _reading(shard):
        metadata = pq.read_metadata(shard)
    return [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]


@contextmanager
def _reading(shard: Path) -> Iterator[None]:
    """Turn a failure to read a shard's content into DamagedShardError."""
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DamagedShardError(
            f"{shard} is damaged ({' '.join(str(error).split())[:200]}); delete it and run the same command again"
        ) from error


def _serialised_units(metadata: "pq.FileMetaData", shard: Path) -> bytes:
    """Return the units in a shard's footer. Raises InputError for a file of another storage format."""
    if _UNITS_KEY not in (metadata.metadata or {}):
        raise InputError(
            f"{shard} is no shard of storage format {FORMAT}: it was written by another version of vlgenrm-ray or by "
            "another program; read the run with the version that made it, or make the run again"
        )
    units: bytes = metadata.metadata[_UNITS_KEY]
    return units


def _deserialise(units: bytes) -> "pa.Table":
    import pyarrow as pa

    return pa.ipc.open_stream(base64.b64decode(units)).read_all()


def _serialise(table: "pa.Table") -> bytes:
    """Serialise a small table as compressed Arrow IPC in base64; values of Parquet footers are text."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return base64.b64encode(sink.getvalue())
