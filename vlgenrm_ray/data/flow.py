"""Streaming of a stage on Ray Data: skip finished rows, commit results as shards, write the manifest last.

A stage builds a `Dataset` whose rows have an `id` and a function that maps those rows to units, and calls `run`. Rows
that are committed already are filtered out; each block of units is committed as a shard as soon as it is ready. Shards
are known to the driver by name, so that it depends on no listing of a shared folder.
"""

import functools
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from vlgenrm_ray.data.arrow import arrow_schema, from_row, to_row
from vlgenrm_ray.data.faults import MAX_DROPPED, FaultCounter, fault_of
from vlgenrm_ray.data.merging import merge_shards
from vlgenrm_ray.data.progress import Progress
from vlgenrm_ray.data.shard_files import ShardTotals
from vlgenrm_ray.data.store import CommittedShards, Manifest, StageFolder
from vlgenrm_ray.errors import EngineLostError, StageError
from vlgenrm_ray.records import Dropped
from vlgenrm_ray.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset


_log = logging.getLogger(__name__)
_Actor = TypeVar("_Actor")
_MAX_RESTARTS = 8
"""Times that an actor of a stage is restarted, whatever ended it; a batch that ends every engine ends the stage."""
_ENGINE_LOST_STATUS = 75
"""Exit status of an actor's process whose engine was lost (EX_TEMPFAIL)."""


class ActorPoolConfig(Settings):
    """Size and resources of one pool of Ray actors."""

    renamed: ClassVar = {"actors": "num_actors"}
    operational: ClassVar = frozenset({"num_actors", "max_actors", "num_cpus", "num_gpus", "batch_size"})

    num_actors: int = 1
    """Number of actors; with a larger `max_actors`, the smallest number."""
    max_actors: int = 0
    """Largest number of actors, for autoscaling; 0: no autoscaling."""
    num_cpus: float = 1.0
    """CPUs, and threads, of each actor."""
    num_gpus: float = 0.0
    """GPUs of each actor."""
    batch_size: int = 64
    """Rows per call of an actor."""

    def map_batches_args(self) -> dict[str, Any]:
        """Return the arguments of `Dataset.map_batches` for a class on this pool, with Arrow input and output."""
        import ray.data

        return {
            "compute": ray.data.ActorPoolStrategy(
                min_size=self.num_actors, max_size=max(self.num_actors, self.max_actors), initial_size=self.num_actors
            ),
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus or None,
            "max_restarts": _MAX_RESTARTS,
            "batch_size": self.batch_size,
            "batch_format": "pyarrow",
        }


def exit_if_engine_lost(
    call: "Callable[[_Actor, pa.Table], pa.Table]",
) -> "Callable[[_Actor, pa.Table], pa.Table]":
    """Decorate `__call__` of an actor class of a stage: if its engine is lost, its process ends.

    An exception would be an error of the stage and end it. A process that ends is restarted by Ray with a fresh engine,
    at most `_MAX_RESTARTS` times, and gets its batch again. Nothing of it was committed: no row is lost or doubled.
    """

    @functools.wraps(call)
    def call_or_exit(actor: _Actor, rows: "pa.Table") -> "pa.Table":
        try:
            return call(actor, rows)
        except EngineLostError as error:
            _log.error("an engine was lost (%s); Ray restarts its process, and its batch is processed again", error)
            # `ray.actor.exit_actor` would be an intended end, after which Ray restarts nothing.
            os._exit(_ENGINE_LOST_STATUS)

    return call_or_exit


LIGHT_CPUS = 0.25
"""CPUs of a task that only moves or checks records."""
STREAM_CPUS = 1.0
"""CPUs that a stage's stream needs on one node beside its actors, or Ray Data waits forever: `repartition` takes no
resources of its own and runs with Ray's default of one CPU. Light tasks run in its place when it has finished."""

_BLOCK_ROWS = 64
"""Rows per block of a stage with engines, and of small inputs."""
_MAX_BLOCKS = 64
_ROWS_PER_TASK = 2048
"""Rows that a task reads at least."""

LIGHT = {"num_cpus": LIGHT_CPUS, "batch_format": "pyarrow", "zero_copy_batch": True}
"""Arguments of `map_batches` for an operator that only moves or checks records."""


def read_units(source: StageFolder) -> "Dataset":
    """Read a complete stage as rows of units: `id`, `records`, `dropped`, `num_tokens`, `metric_sums`."""
    return read_shards(source, _ReadUnits(source))


def read_records(source: StageFolder) -> "Dataset":
    """Read a complete stage as rows of records."""
    return read_shards(source, _ReadRecords(source))


def read_shards(source: StageFolder, read: "Callable[[pa.Table], Iterator[pa.Table]]") -> "Dataset":
    """Read a complete stage by a function that takes paths of shards, in the column `path`."""
    import pyarrow as pa

    # ray.data.read_parquet took 10 to 20 s per stage on two cores, for listing and splitting small files.
    paths = pa.table({"path": pa.array([str(path) for path in source.shards()], pa.string())})
    return read_plan(paths, read, num_rows=source.complete().rows_in)


def read_plan(plan: "pa.Table", read: "Callable[[pa.Table], Any]", *, num_rows: int | None = None) -> "Dataset":
    """Read an input in several tasks.

    Args:
        plan: One row for each piece of the input: a shard, a part of a file.
        read: Reads the pieces of one row of the plan; yields tables of rows.
        num_rows: Number of rows of the whole input; None if their order does not matter.
    """
    import ray.data

    blocks = split_plan(plan, num_blocks=_num_read_tasks(), num_rows=num_rows)
    return ray.data.from_arrow(blocks).map_batches(read, batch_size=1, **LIGHT)


def light_block_rows(num_rows: int, most: int = 1024) -> int:
    """Return the rows per block of a stage without engines.

    A block costs Ray and the disk about as much as hundreds of its rows, and is made again in a second.

    Args:
        num_rows: Rows of the stage.
        most: Largest block.
    """
    return max(_BLOCK_ROWS, min(most, num_rows // _MAX_BLOCKS))


def _num_read_tasks() -> int:
    """Twice as many tasks as CPUs of the cluster: all nodes read, and slow tasks leave others something to do."""
    import ray

    return 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))


def split_plan(plan: "pa.Table", *, num_blocks: int, num_rows: int | None) -> "list[pa.Table]":
    """Distribute the pieces of an input over at most `num_blocks` tables, in order; one empty table if there are none.

    Small inputs are read by one task: with several, rows would arrive in another order each time, batches would have
    other members, and engines, whose rounding depends on the batch, might sample other texts from the same seeds.
    """
    if num_rows is not None:
        num_blocks = max(1, min(num_blocks, num_rows // _ROWS_PER_TASK))
    num_blocks = max(1, min(num_blocks, plan.num_rows))
    bounds = [plan.num_rows * block // num_blocks for block in range(num_blocks + 1)]
    return [plan.slice(start, end - start) for start, end in pairwise(bounds)]


@dataclass(frozen=True)
class _ReadUnits:
    source: StageFolder

    def __call__(self, paths: "pa.Table") -> "Iterator[pa.Table]":
        return (self.source.read_units(Path(path)) for path in paths.column("path").to_pylist())


@dataclass(frozen=True)
class _ReadRecords:
    source: StageFolder

    def __call__(self, paths: "pa.Table") -> "Iterator[pa.Table]":
        return (self.source.read_records(Path(path)) for path in paths.column("path").to_pylist())


@dataclass(frozen=True)
class _Remaining:
    """Filter for rows whose id is not committed yet."""

    done: Any
    """Ray object with the committed ids, an Arrow array that tasks of a node share without a copy."""

    def __call__(self, rows: "pa.Table") -> "pa.Table":
        import pyarrow.compute as pc
        import ray

        return rows.filter(pc.invert(pc.is_in(rows.column("id"), value_set=ray.get(self.done))))


@dataclass(frozen=True)
class _Commit:
    """Operator that writes units as a shard; returns its name, totals, ids and the faults among its drops."""

    folder: StageFolder

    def __call__(self, units: "pa.Table") -> "pa.Table":
        import pyarrow as pa

        name, totals = self.folder.write_shard(units)
        faults = _faults(units.column("dropped")) if totals.dropped else []
        ids = units.column("id").combine_chunks()
        columns = {
            "shard": pa.array([name], pa.string()),
            "totals": pa.array([totals.to_json()], pa.string()),
            "ids": pa.ListArray.from_arrays(pa.array([0, len(ids)], pa.int32()), ids),
            "faults": pa.array([[to_row(f) for f in faults]], pa.list_(pa.struct(list(arrow_schema(Dropped))))),
        }
        return pa.table(columns)


def _faults(drops_of_units: "pa.ChunkedArray") -> list[Dropped]:
    """Return the first fault of each unit that met one."""
    units = [[from_row(Dropped, drop) for drop in drops] for drops in drops_of_units.to_pylist() if drops]
    return [fault for drops in units if (fault := fault_of(drops))]


def run(
    folder: StageFolder,
    rows: "Dataset",
    work: "Callable[[Dataset], Dataset]",
    *,
    total: int,
    block_rows: int = _BLOCK_ROWS,
    num_cpus: float = LIGHT_CPUS,
    fingerprint: str,
    inputs: Mapping[str, str],
    metrics: Callable[[StageFolder, Mapping[str, Any]], Mapping[str, Any]] | None = None,
    max_dropped: float = MAX_DROPPED,
) -> Manifest:
    """Stream rows through a stage's work into its folder. A finished folder is returned unchanged.

    Args:
        folder: Folder of the stage. A partial one is continued.
        rows: Input rows, with a unique column `id`.
        work: Maps rows to units (see `store.units_table`): exactly one unit per row, with the row's id.
        total: Number of rows.
        block_rows: Rows per block. A kill loses at most one block per task, or one batch of an actor if that is larger.
        num_cpus: CPUs of a task that commits a block. If tasks of `work` have the same number, Ray runs both in one.
        fingerprint: Hash of the settings that decide the result.
        inputs: Name of each input stage -> its data hash.
        metrics: Computes the metrics of the manifest from the finished folder and the sum of its units' `metric_sums`.
            To read the records of a large stage in this process takes longer than to make them on a cluster.
        max_dropped: Largest share of the rows that may be dropped because of a fault, see `faults`. The stage stops as
            soon as there are more; another call processes them again.

    Returns:
        The manifest of the stage.

    Raises:
        ConfigError: The folder was made with other settings or inputs.
        StageError: Rows were lost, or too many met a fault.
    """
    import ray
    from ray.exceptions import RayError

    committed = folder.begin(fingerprint, inputs)
    if (finished := folder.manifest()) is not None:
        return finished
    done = committed.distinct_ids()
    faults = FaultCounter(folder.stage, num_rows=total, max_dropped=max_dropped)
    start = time.monotonic()
    start_seconds, num_first_rows = 0.0, 0
    try:
        if len(done):
            # Whole blocks, not the stage's small ones: each task builds the hash table of the ids once.
            rows = rows.map_batches(_Remaining(ray.put(done)), batch_size=None, **LIGHT)
        if len(done) < total:
            with Progress(folder.stage, total=total, done=len(done)) as progress:
                blocks = rows.repartition(target_num_rows_per_block=block_rows)
                shards = work(blocks).map_batches(_Commit(folder), **LIGHT | {"num_cpus": num_cpus})
                for batch in shards.iter_batches(batch_size=None, batch_format="pyarrow"):
                    num_rows = _add_shards(committed, batch)
                    progress.advance(num_rows)
                    if not num_first_rows and not len(done):
                        start_seconds, num_first_rows = time.monotonic() - start, num_rows
                    faults.add(from_row(Dropped, drop) for row in batch.column("faults").to_pylist() for drop in row)
                    if faults.exceeds_limit:
                        break
        faults.check()
    except BaseException as error:
        folder.add_seconds(time.monotonic() - start)
        if isinstance(error, RayError):
            # The traceback's frames hold Ray's executor and with it the actors. As long as the error is referenced,
            # their CPUs and GPUs would not be free for the next stage. Ray's log has the traceback.
            error.__context__ = None
            error.__traceback__ = None
        raise
    folder = folder.await_shards(committed.totals)
    if (num_done := len(committed.distinct_ids())) != total:
        raise StageError(
            f"stage '{folder.stage}': {total} rows in, {num_done} finished; run again to finish the others"
        )
    measured = _measure(folder, committed, metrics) if metrics else {}
    merge_shards(folder, committed, num_cpus=LIGHT_CPUS)
    return folder.finish(
        seconds=time.monotonic() - start,
        metrics=measured,
        start_seconds=start_seconds,
        num_first_rows=num_first_rows,
        committed=committed,
    )


def _add_shards(committed: CommittedShards, batch: "pa.Table") -> int:
    """Add the shards of a batch of `_Commit`; return their number of units."""
    num_units = 0
    names, totals = batch.column("shard").to_pylist(), map(ShardTotals.from_json, batch.column("totals").to_pylist())
    for i, (name, shard_totals) in enumerate(zip(names, totals, strict=True)):
        if name:
            committed.add(name, shard_totals, batch.column("ids")[i].values)
            num_units += shard_totals.num_units
    return num_units


def _measure(
    folder: StageFolder,
    committed: CommittedShards,
    metrics: Callable[[StageFolder, Mapping[str, Any]], Mapping[str, Any]],
) -> Mapping[str, Any]:
    counted = [totals for _, totals in sorted(committed.totals.items()) if totals.metric_sums is not None]
    total = ShardTotals.merge(counted)
    if num_uncounted := committed.num_units - total.num_units:
        _log.warning("%s: its metrics leave out %d rows that an earlier version made", folder.path, num_uncounted)
    return metrics(folder, total.metric_sums or {})
