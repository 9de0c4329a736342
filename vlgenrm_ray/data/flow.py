"""What every streaming stage does around its own work, on Ray Data.

A stage builds a `Dataset` whose rows have an `id`, names the operators that turn those rows into units, and calls
`run`: rows already committed are filtered out, the rest streams through, each block of units is committed as a shard
the moment it is ready, and the manifest comes last.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vlgenrm_ray.data.progress import Progress
from vlgenrm_ray.data.store import Manifest, StageFolder
from vlgenrm_ray.errors import StageError
from vlgenrm_ray.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset


class ActorPoolConfig(Settings):
    """Size and resources of one pool of Ray actors."""

    renamed: ClassVar = {"actors": "num_actors"}

    num_actors: int = 1
    """How many actors at least; the pool's fixed size unless `max_actors` is larger."""
    max_actors: int = 0
    """Upper end of autoscaling; 0 means no autoscaling."""
    num_cpus: float = 1.0
    """CPUs (hence threads) of each actor."""
    num_gpus: float = 0.0
    """GPUs of each actor."""
    batch_size: int = 64
    """Rows per call of an actor."""

    def map_batches_args(self) -> dict[str, Any]:
        """Keyword arguments of `Dataset.map_batches` for a class on this pool, Arrow in and Arrow out."""
        import ray.data

        return {
            "compute": ray.data.ActorPoolStrategy(
                min_size=self.num_actors, max_size=max(self.num_actors, self.max_actors), initial_size=self.num_actors
            ),
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus or None,
            "batch_size": self.batch_size,
            "batch_format": "pyarrow",
        }


LIGHT_CPUS = 0.25
LIGHT_TASKS = 4
"""Light tasks for which a stage's actors must leave room. On two CPUs, actors of 1.5 made Ray Data wait for ever."""

LIGHT = {"num_cpus": LIGHT_CPUS, "batch_format": "pyarrow", "zero_copy_batch": True}
"""`map_batches` arguments of an operator that only moves or checks records."""


def read_units(source: StageFolder) -> "Dataset":
    """Read a complete stage as rows of units: `id`, `records`, `dropped`, `num_tokens`."""
    return _read_shards(source, _ReadUnits(source))


def read_records(source: StageFolder) -> "Dataset":
    """Read a complete stage as rows of records."""
    return _read_shards(source, _ReadRecords(source))


def _read_shards(source: StageFolder, read: "Callable[[pa.Table], Iterator[pa.Table]]") -> "Dataset":
    import pyarrow as pa
    import ray.data

    source.data_hash()
    # Not ray.data.read_parquet: its file listing and its splitting of small files took 10 to 20 s a stage on two
    # cores. Here a row names a shard, and the task that gets it opens it.
    paths = pa.table({"path": [str(p) for p in source.shards()]})
    return ray.data.from_arrow(paths).map_batches(read, **LIGHT)


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
    """Keeps the rows whose id is not among those already committed."""

    done: Any

    def __call__(self, rows: "pa.Table") -> "pa.Table":
        import pyarrow as pa
        import pyarrow.compute as pc
        import ray

        done = ray.get(self.done)
        return rows.filter(pc.invert(pc.is_in(rows.column("id"), value_set=pa.array(done, pa.string()))))


@dataclass(frozen=True)
class _Commit:
    """Writes units as a shard and passes on nothing but counts."""

    folder: StageFolder

    def __call__(self, units: "pa.Table") -> "pa.Table":
        import pyarrow as pa

        self.folder.write_shard(units)
        return pa.table({"units": [units.num_rows]})


def run(
    folder: StageFolder,
    rows: "Dataset",
    work: "Callable[[Dataset], Dataset]",
    *,
    total: int,
    block_rows: int = 64,
    fingerprint: str,
    inputs: Mapping[str, str],
    metrics: Callable[[StageFolder], Mapping[str, Any]] | None = None,
) -> Manifest:
    """Stream `rows` (column `id` unique) through `work` into `folder`; return the manifest.

    `work` maps rows to units (see `store.units_table`): exactly one unit per row, with the row's id. It gets blocks of
    at most `block_rows` rows, so no more than a block (or an actor's batch, if that is larger) is lost to a kill.
    A finished folder is returned as it stands; a begun one goes on where it stopped.
    Raises ConfigError if the folder was made with other settings, StageError if rows got lost on the way.
    """
    import ray
    from ray.exceptions import RayError

    folder.begin(fingerprint, inputs)
    if (finished := folder.manifest()) is not None:
        return finished
    done = folder.done_ids()
    began = time.monotonic()
    try:
        if done:
            rows = rows.map_batches(_Remaining(ray.put(sorted(done))), **LIGHT)
        if len(done) < total:
            with Progress(folder.stage, total=total, done=len(done)) as progress:
                blocks = rows.repartition(target_num_rows_per_block=block_rows)
                committed = work(blocks).map_batches(_Commit(folder), **LIGHT)
                for batch in committed.iter_batches(batch_size=None, batch_format="pyarrow"):
                    progress.advance(sum(batch.column("units").to_pylist()))
    except BaseException as error:
        folder.add_seconds(time.monotonic() - began)
        if isinstance(error, RayError):
            # Their frames hold Ray's executor, and that its actors: whoever keeps the error would keep their CPUs and
            # GPUs from the next stage. Ray has written the frames to its log.
            error.__context__ = None
            error.__traceback__ = None
        raise
    if (found := len(folder.done_ids())) != total:
        raise StageError(
            f"stage '{folder.stage}': {total} rows in, {found} accounted for; run again to finish the rest"
        )
    extra = metrics(folder) if metrics else {}
    return folder.finish(seconds=time.monotonic() - began, metrics=extra)
