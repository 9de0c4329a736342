"""Merging of a stage's small shards into large ones, once all its rows are committed.

While a stage runs, each block of rows is a shard of its own, so that an interruption loses little work; 10^6 rows would
leave 15,600 files. At the end of the stage, tasks on the cluster merge them in the order of their names, which is the
order in which a later stage reads them.

No interruption loses a row. A merged shard has the suffix `.merged` until all are written; then the driver renames
them, writes the manifest that names them, and removes the small ones (`StageFolder.finish`). If it is killed before the
renaming, the small shards are still complete; if after, `StageFolder.begin` finds units in two shards and keeps the
large ones.
"""

import logging
import os
from collections.abc import Sequence

from vlgenrm_ray.data import shard_files
from vlgenrm_ray.data.shard_files import ShardTotals
from vlgenrm_ray.data.store import MERGED_SUFFIX, CommittedShards, StageFolder, shard_name
from vlgenrm_ray.errors import StageError, VlGenRMError

_log = logging.getLogger(__name__)

_FEW_SHARDS = 32
"""Stages with at most so many shards stay as they are."""
_MAX_SHARDS = 1024
"""Largest number of shards that one task merges, so that several tasks share the work where rows are small."""


def plan_merges(committed: CommittedShards, max_bytes: int) -> list[list[str]]:
    """Group the shards of a stage, in the order of their names.

    Args:
        committed: All shards of the stage.
        max_bytes: Largest size of a merged shard in memory.

    Returns:
        Names of the shards of each merged one. A shard that stays as it is appears in none.
    """
    groups: list[list[str]] = []
    num_bytes = 0
    for name in sorted(committed.totals) if len(committed) > _FEW_SHARDS else ():
        size = committed.totals[name].num_bytes
        if not groups or num_bytes + size > max_bytes or len(groups[-1]) == _MAX_SHARDS:
            groups.append([])
            num_bytes = 0
        groups[-1].append(name)
        num_bytes += size
    return [group for group in groups if len(group) > 1]


def merge_shards(folder: StageFolder, committed: CommittedShards, *, num_cpus: float) -> None:
    """Merge the shards of a stage on Ray, up to `folder.shard_mb` each.

    Args:
        folder: Folder of the stage, all of whose rows are committed.
        committed: Its shards; has the merged ones in their place afterwards.
        num_cpus: CPUs of a task.

    Raises:
        StageError: A shard was damaged or lost since it was written, or the disk is full.
    """
    import ray
    from ray.exceptions import RayTaskError

    groups = plan_merges(committed, folder.shard_mb * 1_000_000)
    totals = [ShardTotals.merge([committed.totals[name] for name in group]) for group in groups]
    task = ray.remote(num_cpus=num_cpus)(write_merged_shard)
    try:
        names = ray.get([task.remote(folder, *arguments) for arguments in zip(groups, totals, strict=True)])
    except RayTaskError as error:
        if isinstance(error.cause, VlGenRMError):
            raise error.cause from None
        raise
    for group, name, group_totals in zip(groups, names, totals, strict=True):
        if name:
            os.replace(folder.shard_path(name).with_suffix(MERGED_SUFFIX), folder.shard_path(name))
            committed.replace(group, name, group_totals)


def write_merged_shard(folder: StageFolder, names: Sequence[str], totals: ShardTotals) -> str:
    """Write the units of several shards as one file with the suffix `.merged`.

    Args:
        folder: Folder of the stage.
        names: Names of the shards.
        totals: Sum of their totals.

    Returns:
        Name of the merged shard; "" if versions with other columns wrote the shards, which then stay as they are.

    Raises:
        StageError: The shards do not hold the units of `totals`, or the disk is full.
        DamagedShardError: A shard cannot be read.
    """
    import pyarrow as pa

    parts = [shard_files.read_units(folder.shard_path(name)) for name in names]
    try:
        units = pa.concat_tables(parts)
    except pa.ArrowInvalid as error:
        _log.warning("%s: %d shards stay unmerged: %s", folder.path, len(names), str(error).splitlines()[0])
        return ""
    if units.num_rows != totals.num_units:
        raise StageError(
            f"{folder.path}: {len(names)} shards hold {units.num_rows} rows instead of {totals.num_units}; they were "
            "changed since they were written; run the same command again"
        )
    name = shard_name(units.column("id"))
    shard_files.write_shard(units, folder.shard_path(name).with_suffix(MERGED_SUFFIX), totals)
    return name
