"""Stage folders: Parquet shards of flat records, and a manifest that is written last.

    <run>/<stage>/started.json             storage format, fingerprint of settings and inputs; written first
    <run>/<stage>/shards/<hash>.parquet    one row per record, readable by any Parquet reader, for example
                                           datasets.load_dataset("parquet", data_files="<run>/<stage>/shards/*.parquet")
    <run>/<stage>/manifest.json            written last: its existence means that the stage is complete

A *unit* is one input row of a stage with its result: its records (children) and its drops. A shard holds the records
as rows, and the units in its footer (see `shard_files`). One file rename therefore commits a block's records together
with their accounting, and after an interruption the unit ids in the footers are exactly the rows that need no more
work. The footer also holds the shard's totals, computed by the task that wrote it, so that a stage is accounted for by
its footers alone.

The manifest lists the shards, and the driver of a stage receives the name of each as it is committed: file systems such
as NFS serve listings of folders that are up to half a minute old, but open a file by its name at once.

While a stage runs, each block of rows is a shard; at its end they are merged into large ones (see `merging`). A shard
that was damaged or lost later is noticed when its stage begins; only its rows are made again.

Fields named `uri` (images, checkpoints) are stored relative to the run folder if they lie in it, and read as absolute
paths, so a run folder may be moved or mounted elsewhere. It must lie on a file system that all nodes share.
"""

import hashlib
import json
import logging
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from vlgenrm_ray.data import shard_files
from vlgenrm_ray.data.arrow import arrow_schema, from_row, map_uris, to_row
from vlgenrm_ray.data.files import read_json, write_json
from vlgenrm_ray.data.shard_files import FORMAT, NO_SUMS, ShardTotals
from vlgenrm_ray.errors import FAULTS, TRANSIENT_FAULTS, ConfigError, DamagedShardError, StageError
from vlgenrm_ray.records import Dropped

if TYPE_CHECKING:
    import pyarrow as pa

R = TypeVar("R")
_log = logging.getLogger(__name__)

SHARD_MB = 128
"""Size in memory, in MB, up to which the shards of a finished stage are merged."""
MERGED_SUFFIX = ".merged"
"""Suffix of a merged shard that is not in use yet."""
_PATIENCE_S = 60.0
"""Seconds in which a file that one node wrote must be visible on another. NFS clients cache what they know for 30 s."""
_FOOTER_THREADS = 8
"""Threads that read the footers of shards."""
_ABSOLUTE_URI = "^(/|[A-Za-z][A-Za-z0-9+.-]*:)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit(Generic[R]):
    """One input row with its result. `records` or `dropped` may be empty, never both."""

    id: str
    records: tuple[R, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    num_tokens: int = 0
    """Tokens an engine generated for this unit."""
    metric_sums: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Contribution to the metrics of the stage: nested names -> numbers, which are summed up over all units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Account of a finished stage."""

    stage: str
    fingerprint: str
    """Hash of the settings that decide the stage's data."""
    inputs: dict[str, str]
    """Name of each input -> its data hash."""
    data_hash: str
    """Hash of all units, independent of their order and of their distribution over shards."""
    rows_in: int
    rows_out: int
    dropped: dict[str, int]
    """Reason -> rows."""
    num_tokens: int
    seconds: float
    """Working time, summed over interrupted attempts."""
    versions: dict[str, str] = field(default_factory=dict)
    """Package -> version."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Measurements of the stage (kept share, margin histogram, ...)."""
    start_seconds: float = 0.0
    """Seconds until the first rows were committed, engines' start included; 0 if an earlier attempt had begun."""
    num_first_rows: int = 0
    """Rows that were committed by then."""
    shards: tuple[str, ...] = ()
    """Names of the shards, so that readers need no listing of the folder. Empty in manifests of earlier versions."""


# -- tables of units, as they pass between the operators of a stage --------------------------------------------------


def unit_schema(cls: type[Any]) -> "pa.Schema":
    """Return the Arrow schema of a table of units: one row per unit, its records of type `cls` nested."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("id", pa.string()),
            pa.field("records", pa.list_(pa.struct(list(arrow_schema(cls))))),
            pa.field("dropped", pa.list_(pa.struct(list(arrow_schema(Dropped))))),
            pa.field("num_tokens", pa.int64()),
            pa.field("metric_sums", pa.string()),
        ]
    )


def units_table(cls: type[R], units: Iterable[Unit[R]]) -> "pa.Table":
    """Convert units to the Arrow table that `StageFolder.write_shard` takes."""
    import pyarrow as pa

    rows = [
        {
            "id": u.id,
            "records": [to_row(r) for r in u.records],
            "dropped": [to_row(d) for d in u.dropped],
            "num_tokens": u.num_tokens,
            "metric_sums": json.dumps(u.metric_sums) if u.metric_sums else NO_SUMS,
        }
        for u in units
    ]
    return pa.Table.from_pylist(rows, schema=unit_schema(cls))


def units_from_table(cls: type[R], table: "pa.Table") -> list[Unit[R]]:
    """Convert a table of units back; the inverse of `units_table`."""
    return [_unit(cls, row) for row in table.to_pylist()]


def _unit(cls: type[R], row: dict[str, Any]) -> Unit[R]:
    return Unit(
        id=row["id"],
        records=tuple(from_row(cls, r) for r in row["records"]),
        dropped=tuple(from_row(Dropped, d) for d in row["dropped"]),
        num_tokens=row["num_tokens"],
        metric_sums=json.loads(row["metric_sums"] or "{}"),
    )


class CommittedShards:
    """The shards of a stage with their totals and the ids of their units, as the tasks that wrote them report.

    The driver accounts for a stage by these alone, without opening its shards.
    """

    def __init__(self) -> None:
        self._totals: dict[str, ShardTotals] = {}
        self._ids: dict[str, pa.Array] = {}

    def __len__(self) -> int:
        return len(self._totals)

    def add(self, name: str, totals: ShardTotals, ids: "pa.Array") -> None:
        """Add a shard, or replace the one of this name."""
        self._totals[name] = totals
        self._ids[name] = ids

    def replace(self, names: Sequence[str], name: str, totals: ShardTotals) -> None:
        """Replace some shards by one with all their units."""
        import pyarrow as pa

        ids = pa.concat_arrays([self._ids[old] for old in names])
        for old in names:
            self.remove(old)
        self.add(name, totals, ids)

    def remove(self, name: str) -> None:
        """Remove a shard."""
        del self._totals[name], self._ids[name]

    @property
    def totals(self) -> Mapping[str, ShardTotals]:
        """Name of each shard -> its totals."""
        return self._totals

    @property
    def ids(self) -> Mapping[str, "pa.Array"]:
        """Name of each shard -> the ids of its units."""
        return self._ids

    @property
    def num_units(self) -> int:
        """Number of units; one that is in two shards counts twice."""
        return sum(totals.num_units for totals in self._totals.values())

    def total(self) -> ShardTotals:
        """Sum up the totals of all shards, in the order of their names: sums of floats depend on it."""
        return ShardTotals.merge([self._totals[name] for name in sorted(self._totals)])

    def distinct_ids(self) -> "pa.Array":
        """Return the id of each unit once: tens of bytes an id, and no Python object."""
        import pyarrow as pa

        return pa.chunked_array(list(self._ids.values()), pa.string()).unique()


# -- folders ---------------------------------------------------------------------------------------------------------


class StageFolder:
    """One stage of one run on disk. Cheap to create and to pickle: holds its path, and no open file."""

    def __init__(self, path: Path | str, *, shard_names: Iterable[str] | None = None, shard_mb: int = SHARD_MB) -> None:
        """Name a folder, which need not exist.

        Args:
            path: The folder.
            shard_names: Names of all its shards, if they are known better than by listing the folder.
            shard_mb: Size in memory, in MB, up to which shards are merged when the stage is finished; 0: not at all.
        """
        self.shard_mb = shard_mb
        self.path = Path(path).absolute()
        self._shard_names = None if shard_names is None else tuple(sorted(set(shard_names)))

    def __repr__(self) -> str:
        return f"StageFolder({str(self.path)!r})"

    @property
    def stage(self) -> str:
        """Name of the stage."""
        return self.path.name

    @property
    def run_folder(self) -> Path:
        """Folder of the run: the parent, or its parent for a stage of a round."""
        parent = self.path.parent
        return parent.parent if re.fullmatch(r"round-\d+", parent.name) else parent

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    def shards(self) -> list[Path]:
        """Return all committed shards, in name order: by the manifest of a complete stage, else by listing the folder.

        A shared file system may serve a listing that is half a minute old, while a file opened by its name is current.
        """
        if self._shard_names is not None:
            return [self.shard_path(name) for name in self._shard_names]
        manifest = self.manifest()
        if manifest is not None and manifest.shards:
            return [self.shard_path(name) for name in manifest.shards]
        return sorted((self.path / "shards").glob("*.parquet"))

    def shard_path(self, name: str) -> Path:
        """Return the path of a shard by the name that `write_shard` returned."""
        return self.path / "shards" / f"{name}.parquet"

    # -- writing -----------------------------------------------------------------------------------------------

    def check_format(self) -> None:
        """Raise ConfigError if the folder was begun by a version with another storage format."""
        path = self.path / "started.json"
        if path.exists() and (version := read_json(path).get("format", 1)) != FORMAT:
            raise ConfigError(
                f"{self.path} was written by another version of vlgenrm-ray (storage format {version}, this version "
                f"writes {FORMAT}); finish the run with that version, or choose another run folder (--run)"
            )

    def begin(self, fingerprint: str, inputs: Mapping[str, str]) -> CommittedShards:
        """Open the folder for work: create it, or continue where an earlier attempt stopped.

        Rows that an earlier attempt dropped because of a fault are pending again. In a complete stage these are the
        rows with a transient fault, and only while no other stage has begun with its data.

        Returns:
            The shards that are committed.

        Raises:
            ConfigError: The folder was made with other settings, inputs or another storage format, whose rows must not
                be mixed with new ones.
        """
        (self.path / "shards").mkdir(parents=True, exist_ok=True)
        started_path = self.path / "started.json"
        started = {"fingerprint": fingerprint, "inputs": dict(inputs)}
        if started_path.exists():
            self.check_format()
            existing = read_json(started_path)
            if {k: existing[k] for k in started} != started:
                raise ConfigError(
                    f"{self.path} holds rows of stage '{self.stage}' made with other settings or inputs; "
                    "choose another run folder (--run), or delete this stage's folder to make it again"
                )
        else:
            write_json(started_path, started | {"format": FORMAT, "seconds": 0.0})
        committed = self._discard_damage()
        manifest = self.manifest()
        if manifest is None:
            self._remove_partial_merges()
            self._discard_repeated(committed)
            self._discard_drops(committed, FAULTS)
        elif not TRANSIENT_FAULTS.isdisjoint(manifest.dropped) and not self._has_readers(manifest):
            _log.warning("%s: rows that met a transient fault are processed again", self.path)
            self.manifest_path.unlink()
            self._discard_drops(committed, TRANSIENT_FAULTS)
        return committed

    def read_committed(self) -> CommittedShards:
        """Read the footers of all shards.

        Raises:
            DamagedShardError: A shard cannot be read.
            StageError: A shard of the manifest was lost.
        """
        committed = CommittedShards()
        for shard, footer in self._read_footers():
            if footer is None:
                raise StageError(f"{shard} was lost; run the same command again, which makes its rows again")
            if isinstance(footer, DamagedShardError):
                raise footer
            committed.add(shard.stem, *footer)
        return committed

    def _read_footers(self) -> "Iterator[tuple[Path, _Footer | DamagedShardError | None]]":
        """Yield each shard with its totals and the ids of its units, with its damage, or None if it does not exist."""
        paths = self.shards()
        # On a shared file system most of the time is spent waiting for its answers.
        with ThreadPoolExecutor(_FOOTER_THREADS) as threads:
            yield from zip(paths, threads.map(_read_footer, paths), strict=True)

    def _discard_damage(self) -> CommittedShards:
        """Remove shards that cannot be read, and a manifest that does not account for the shards that are there.

        The stage then makes the missing rows again.
        """
        try:
            manifest = self.manifest()
        except StageError as error:
            _log.warning("%s; it is made again", error)
            self.manifest_path.unlink()
            manifest = None
        committed = CommittedShards()
        for shard, footer in self._read_footers():
            if isinstance(footer, DamagedShardError):
                _log.warning("%s; its rows are made again", footer)
                shard.unlink()
            elif footer is not None:  # None: the manifest names a shard that was lost.
                committed.add(shard.stem, *footer)
        if manifest is not None and manifest.rows_in != committed.num_units:
            missing = manifest.rows_in - committed.num_units
            _log.warning("%s: %d of %d rows are lost and made again", self.path, missing, manifest.rows_in)
            self.manifest_path.unlink()
        elif manifest is not None:
            self._remove_strays(manifest)
        return committed

    def _discard_repeated(self, committed: CommittedShards) -> None:
        """Keep each unit in one shard only.

        An attempt that could not see a shard yet, or a task that was repeated after the loss of its node, may have
        committed units a second time. An attempt that was killed while it replaced small shards by merged ones leaves
        both.
        """
        import numpy as np
        import pyarrow as pa

        if committed.num_units == len(committed.distinct_ids()):
            return
        # Large shards first, so that small ones are removed rather than large ones rewritten.
        names = sorted(committed.ids, key=lambda name: (-len(committed.ids[name]), name))
        ids = pa.chunked_array([committed.ids[name] for name in names], pa.string()).combine_chunks()
        codes = ids.dictionary_encode().indices.to_numpy(zero_copy_only=False)
        is_first = np.zeros(len(codes), dtype=bool)
        is_first[np.unique(codes, return_index=True)[1]] = True
        start = 0
        for name in names:
            end = start + len(committed.ids[name])
            self._keep_units(committed, name, is_first[start:end].tolist())
            start = end

    def _discard_drops(self, committed: CommittedShards, reasons: frozenset[str]) -> None:
        """Remove the units that have a drop with one of these reasons, so that they are made again."""
        for name, totals in list(committed.totals.items()):
            if not reasons.isdisjoint(totals.dropped):
                drops_of_units = self.read_unit_index(self.shard_path(name)).column("dropped").to_pylist()
                mask = [not any(drop["reason"] in reasons for drop in drops) for drops in drops_of_units]
                self._keep_units(committed, name, mask)

    def _keep_units(self, committed: CommittedShards, name: str, mask: Sequence[bool]) -> None:
        """Rewrite a shard in place with the units where `mask` is true; remove it if there are none."""
        if all(mask):
            return
        shard = self.shard_path(name)
        if not any(mask):
            shard.unlink()
            committed.remove(name)
            return
        units = shard_files.read_units(shard).filter(list(mask))
        committed.add(name, shard_files.write_shard(units, shard), units.column("id").combine_chunks())

    def _has_readers(self, manifest: Manifest) -> bool:
        """Return True if another stage of the run began with the data of this complete stage."""
        if (self.run_folder / "policy").exists():  # It reads the pool, and records no inputs.
            return True
        others = [*self.run_folder.glob("*/started.json"), *self.run_folder.glob("round-*/*/started.json")]
        inputs = (read_json(path).get("inputs", {}) for path in others if path.parent != self.path)
        return any(manifest.data_hash in values.values() for values in inputs)

    def write_shard(self, table: "pa.Table") -> tuple[str, ShardTotals]:
        """Commit a table of units (see `units_table`). Atomic; writing the same units again changes nothing.

        Returns:
            The shard's name and its totals; "" for an empty table, of which no shard is written.

        Raises:
            StageError: The file system takes no more data.
        """
        if not table.num_rows:
            return "", ShardTotals()
        name = shard_name(table.column("id"))
        return name, shard_files.write_shard(map_uris(table, self._to_stored_uris), self.shard_path(name))

    def add_seconds(self, seconds: float) -> float:
        """Add working time, which is kept across interruptions; return the sum."""
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
        start_seconds: float = 0.0,
        num_first_rows: int = 0,
        committed: CommittedShards | None = None,
    ) -> Manifest:
        """Sum up the totals of all shards and write the manifest.

        Args:
            seconds: Working time of this attempt.
            metrics: Measurements of the stage.
            versions: Package -> version.
            start_seconds: Seconds until the first rows were committed.
            num_first_rows: Rows that were committed by then.
            committed: All shards; default: their footers are read.

        Raises:
            StageError: A unit is in two shards.
        """
        committed = committed or self.read_committed()
        totals = committed.total()
        if num_repeated := totals.num_units - len(committed.distinct_ids()):
            raise StageError(f"{self.path}: {num_repeated} units are in more than one shard")
        started = read_json(self.path / "started.json")
        manifest = Manifest(
            stage=self.stage,
            fingerprint=started["fingerprint"],
            inputs=started["inputs"],
            data_hash=f"{totals.hash % (1 << 64):016x}",
            rows_in=totals.num_units,
            rows_out=totals.num_records,
            dropped=dict(sorted(totals.dropped.items())),
            num_tokens=totals.num_tokens,
            seconds=round(self.add_seconds(seconds), 3),
            versions=dict(versions or {}),
            metrics=dict(metrics or {}),
            start_seconds=round(start_seconds, 3),
            num_first_rows=num_first_rows,
            shards=tuple(sorted(committed.totals)),
        )
        write_json(self.manifest_path, asdict(manifest))
        self._remove_strays(manifest)
        return manifest

    def _remove_strays(self, manifest: Manifest) -> None:
        """Remove shards that a manifest does not name; other Parquet readers would read them.

        A task that Ray repeated after the loss of its node may have left one, and a merge leaves those that it merged.
        """
        names = set(manifest.shards)
        for path in (self.path / "shards").glob("*.parquet") if names else ():
            if path.stem not in names:
                path.unlink(missing_ok=True)
        self._remove_partial_merges()

    def _remove_partial_merges(self) -> None:
        """Remove the merged shards of an attempt that was interrupted before it used them."""
        for path in (self.path / "shards").glob(f"*{MERGED_SUFFIX}"):
            path.unlink(missing_ok=True)

    def await_shards(self, names: Iterable[str], patience_s: float = _PATIENCE_S) -> "StageFolder":
        """Wait until this machine sees the shards that others wrote.

        Args:
            names: Names of all shards of the stage, as `write_shard` returned them.
            patience_s: Longest time to wait, in seconds.

        Returns:
            This folder with these shards, whatever a listing shows.

        Raises:
            StageError: A shard is not visible in time.
        """
        folder = StageFolder(self.path, shard_names=names, shard_mb=self.shard_mb)
        deadline = time.monotonic() + patience_s
        for path in folder.shards():
            while not path.exists():
                if time.monotonic() > deadline:
                    raise StageError(
                        f"{path} was written by another process and is not visible on {socket.gethostname()} after "
                        f"{patience_s:.0f} s; name a run folder (--run) on a file system that all nodes share"
                    )
                time.sleep(min(1.0, patience_s / 10))
        return folder

    # -- reading -----------------------------------------------------------------------------------------------

    def manifest(self) -> Manifest | None:
        """Return the manifest, or None while the stage is incomplete."""
        if not self.manifest_path.exists():
            return None
        values = read_json(self.manifest_path)
        return Manifest(**values | {"shards": tuple(values.get("shards", ()))})

    def complete(self) -> Manifest:
        """Return the manifest. Raises StageError if the stage is not complete."""
        manifest = self.manifest()
        if manifest is None:
            raise StageError(f"{self.path} is not complete: it has no manifest.json")
        return manifest

    def data_hash(self) -> str:
        """Return the hash of a complete stage's data. Raises StageError while it is incomplete."""
        return self.complete().data_hash

    def done_ids(self) -> set[str]:
        """Return the ids of all committed units; reads the shards' footers only."""
        return set(self.read_committed().distinct_ids().to_pylist())

    def units(self, cls: type[R]) -> Iterator[Unit[R]]:
        """Yield all units (input rows with their results), shard by shard."""
        return (_unit(cls, row) for shard in self.shards() for row in self.read_units(shard).to_pylist())

    def records(self, cls: type[R]) -> Iterator[R]:
        """Yield all records, shard by shard."""
        return (from_row(cls, row) for shard in self.shards() for row in self.read_records(shard).to_pylist())

    def dropped(self) -> Iterator[Dropped]:
        """Yield all drops, shard by shard; reads the shards' footers only."""
        for shard in self.shards():
            for drops in self.read_unit_index(shard).column("dropped").to_pylist():
                yield from (from_row(Dropped, d) for d in drops)

    def read_unit_index(self, shard: Path) -> "pa.Table":
        """Read a shard's footer, see `shards.read_unit_index`."""
        return shard_files.read_unit_index(shard)

    def read_records(
        self,
        shard: Path,
        *,
        columns: Sequence[str] | None = None,
        filters: Any = None,
        row_groups: Sequence[int] | None = None,
    ) -> "pa.Table":
        """Read a shard's records, one row each.

        Args:
            shard: One of `shards()`.
            columns: Columns to read, nested ones as `question.id`; default all.
            filters: Expression of `pyarrow.compute` that selects rows; not together with `columns`.
            row_groups: Row groups of the file to read; default all.
        """
        return map_uris(shard_files.read_rows(shard, columns, filters, row_groups), self._to_absolute_uris)

    def read_units(self, shard: Path) -> "pa.Table":
        """Read a shard as a table of units, the form that `units_from_table` takes."""
        return map_uris(shard_files.read_units(shard), self._to_absolute_uris)

    def _to_stored_uris(self, uris: "pa.Array") -> "pa.Array":
        import pyarrow.compute as pc

        prefix = f"{self.run_folder}/"
        is_inside = pc.starts_with(uris, pattern=prefix)
        return pc.if_else(is_inside, pc.utf8_slice_codeunits(uris, start=len(prefix)), uris)

    def _to_absolute_uris(self, uris: "pa.Array") -> "pa.Array":
        import pyarrow.compute as pc

        is_absolute = pc.match_substring_regex(uris, pattern=_ABSOLUTE_URI)
        return pc.if_else(is_absolute, uris, pc.binary_join_element_wise(f"{self.run_folder}/", uris, ""))


_Footer = tuple[ShardTotals, "pa.Array"]
"""Totals of a shard and the ids of its units."""


def _read_footer(shard: Path) -> _Footer | DamagedShardError | None:
    try:
        return shard_files.read_totals_and_ids(shard)
    except FileNotFoundError:
        return None
    except DamagedShardError as error:
        return error


def shard_name(ids: "pa.ChunkedArray") -> str:
    """Return the name of the shard with these units, which their order does not change."""
    return hashlib.sha256("\n".join(sorted(ids.to_pylist())).encode()).hexdigest()[:24]


def write_units(folder: StageFolder, cls: type[R], units: Sequence[Unit[R]]) -> None:
    """Commit units from a single process; on Ray `flow.run` commits them."""
    folder.write_shard(units_table(cls, units))
