"""A stage's folder: Parquet shards, and a manifest written last.

    <run>/<stage>/started.json        fingerprint of settings and inputs, written first
    <run>/<stage>/shards/<hash>.parquet
    <run>/<stage>/manifest.json       written last: its existence means the stage is complete

A shard holds *units*. A unit is one input row with everything that became of it: `id`, `records` (its children) and
`dropped`. So one file rename commits a row's children and its drops together, and after a kill the ids found in the
shards are exactly the rows that need no more work. The run folder must lie on a file system that all nodes see.
"""

import hashlib
import json
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from vlgenrm_ray.data.arrow import arrow_schema, from_row, to_row
from vlgenrm_ray.errors import ConfigError, StageError
from vlgenrm_ray.records import Dropped

if TYPE_CHECKING:
    import pyarrow as pa

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit(Generic[R]):
    """One input row and what became of it. `records` or `dropped` may be empty, never both."""

    id: str
    records: tuple[R, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    num_tokens: int = 0
    """Tokens an engine generated for this unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a finished stage says of itself."""

    stage: str
    fingerprint: str
    inputs: dict[str, str]
    """Name of each input -> its data hash."""
    data_hash: str
    """Hash of all units, independent of their order and of how they fell into shards."""
    rows_in: int
    rows_out: int
    dropped: dict[str, int]
    """Reason -> rows."""
    num_tokens: int
    seconds: float
    """Working time, summed over interrupted attempts."""
    versions: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    """What this stage measured of itself (kept share, margin histogram, ...)."""


def unit_schema(cls: type[Any]) -> "pa.Schema":
    """Arrow schema of a unit whose records are of type `cls`."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("id", pa.string()),
            pa.field("records", pa.list_(pa.struct(list(arrow_schema(cls))))),
            pa.field("dropped", pa.list_(pa.struct(list(arrow_schema(Dropped))))),
            pa.field("num_tokens", pa.int64()),
        ]
    )


def units_table(cls: type[R], units: Iterable[Unit[R]]) -> "pa.Table":
    """Units -> the Arrow table that `StageFolder.write_shard` takes."""
    import pyarrow as pa

    rows = [
        {
            "id": u.id,
            "records": [to_row(r) for r in u.records],
            "dropped": [to_row(d) for d in u.dropped],
            "num_tokens": u.num_tokens,
        }
        for u in units
    ]
    return pa.Table.from_pylist(rows, schema=unit_schema(cls))


def units_from_table(cls: type[R], table: "pa.Table") -> list[Unit[R]]:
    """The inverse of `units_table`."""
    return [_unit(cls, row) for row in table.to_pylist()]


def _unit(cls: type[R], row: dict[str, Any]) -> Unit[R]:
    return Unit(
        id=row["id"],
        records=tuple(from_row(cls, r) for r in row["records"]),
        dropped=tuple(from_row(Dropped, d) for d in row["dropped"]),
        num_tokens=row["num_tokens"],
    )


class StageFolder:
    """One stage of one run on disk. Cheap to make and to pickle; holds nothing but its path."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()

    def __repr__(self) -> str:
        return f"StageFolder({str(self.path)!r})"

    @property
    def stage(self) -> str:
        return self.path.name

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    def shards(self) -> list[Path]:
        """All committed shards, in name order."""
        return sorted((self.path / "shards").glob("*.parquet"))

    # -- writing -----------------------------------------------------------------------------------------------

    def begin(self, fingerprint: str, inputs: Mapping[str, str]) -> None:
        """Open the folder for work, anew or where an earlier attempt stopped.

        Raises ConfigError if it holds rows made with other settings or inputs: mixing them would be silent.
        """
        (self.path / "shards").mkdir(parents=True, exist_ok=True)
        started = self.path / "started.json"
        mine = {"fingerprint": fingerprint, "inputs": dict(inputs)}
        if started.exists():
            theirs = read_json(started)
            if {k: theirs[k] for k in mine} != mine:
                raise ConfigError(
                    f"{self.path} holds rows of stage '{self.stage}' made with other settings or inputs; "
                    "choose another run folder (--run), or delete this stage's folder to make it again"
                )
        else:
            write_json(started, mine | {"seconds": 0.0})

    def write_shard(self, table: "pa.Table") -> None:
        """Commit a table of units (see `units_table`). Atomic; writing the same units again changes nothing."""
        import pyarrow.parquet as pq

        if not table.num_rows:
            return
        name = hashlib.sha256("\n".join(sorted(table.column("id").to_pylist())).encode()).hexdigest()[:24]
        target = self.path / "shards" / f"{name}.parquet"
        partial = target.with_name(f".{name}.{uuid.uuid4().hex}")
        pq.write_table(table, partial, compression="zstd")
        os.replace(partial, target)

    def add_seconds(self, seconds: float) -> float:
        """Add working time to the folder's account; return the sum. Kept across interruptions."""
        started = read_json(self.path / "started.json")
        started["seconds"] += seconds
        write_json(self.path / "started.json", started)
        return float(started["seconds"])

    def finish(
        self,
        *,
        seconds: float,
        metrics: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
    ) -> Manifest:
        """Count what the shards hold and write the manifest. Raises StageError if a unit stands in two shards."""
        total = 0
        data = 0
        seen: set[str] = set()
        rows_out = 0
        num_tokens = 0
        reasons: Counter[str] = Counter()
        for row in self._rows():
            total += 1
            seen.add(row["id"])
            rows_out += len(row["records"])
            num_tokens += row["num_tokens"]
            reasons.update(d["reason"] for d in row["dropped"])
            data += int(hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest(), 16)
        if len(seen) != total:
            raise StageError(f"{self.path}: {total - len(seen)} units stand in more than one shard")
        started = read_json(self.path / "started.json")
        manifest = Manifest(
            stage=self.stage,
            fingerprint=started["fingerprint"],
            inputs=started["inputs"],
            data_hash=f"{data % (1 << 64):016x}",
            rows_in=total,
            rows_out=rows_out,
            dropped=dict(sorted(reasons.items())),
            num_tokens=num_tokens,
            seconds=round(self.add_seconds(seconds), 3),
            versions=dict(versions or {}),
            metrics=dict(metrics or {}),
        )
        write_json(self.manifest_path, asdict(manifest))
        return manifest

    # -- reading -----------------------------------------------------------------------------------------------

    def manifest(self) -> Manifest | None:
        """The manifest, or None while the stage is incomplete."""
        if not self.manifest_path.exists():
            return None
        return Manifest(**read_json(self.manifest_path))

    def complete(self) -> Manifest:
        """The manifest of a stage that must be complete. Raises StageError while it is not."""
        manifest = self.manifest()
        if manifest is None:
            raise StageError(f"{self.path} is not complete: it has no manifest.json")
        return manifest

    def data_hash(self) -> str:
        """Hash of a complete stage's data. Raises StageError while it is incomplete."""
        return self.complete().data_hash

    def done_ids(self) -> set[str]:
        """Ids of all units already committed; reads that one column only."""
        import pyarrow.parquet as pq

        return {i for shard in self.shards() for i in pq.read_table(shard, columns=["id"]).column("id").to_pylist()}

    def units(self, cls: type[R]) -> Iterator[Unit[R]]:
        """All units, shard by shard."""
        return (_unit(cls, row) for row in self._rows())

    def records(self, cls: type[R]) -> Iterator[R]:
        """All records, shard by shard."""
        return (record for unit in self.units(cls) for record in unit.records)

    def dropped(self) -> Iterator[Dropped]:
        """All rows that left the flow here."""
        return (from_row(Dropped, d) for row in self._rows() for d in row["dropped"])

    def _rows(self) -> Iterator[dict[str, Any]]:
        import pyarrow.parquet as pq

        for shard in self.shards():
            yield from pq.read_table(shard).to_pylist()


def write_units(folder: StageFolder, cls: type[R], units: Sequence[Unit[R]]) -> None:
    """Commit units from a single process; the Ray path goes through `flow.run`."""
    folder.write_shard(units_table(cls, units))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    value = json.loads(path.read_text())
    assert isinstance(value, dict)
    return value


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    partial.write_text(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")
    os.replace(partial, path)
