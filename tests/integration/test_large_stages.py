"""Stages of many blocks on Ray: read by several tasks, merged at their end, continued after an interruption."""

from pathlib import Path

import factories
import pyarrow as pa
import pytest

from vlgenrm_ray.data import flow
from vlgenrm_ray.data.store import Manifest, StageFolder, Unit, units_table
from vlgenrm_ray.records import Question

pytestmark = pytest.mark.usefixtures("ray_local")

NUM_ROWS = 5_000


def make_units(rows: pa.Table) -> pa.Table:
    ids = rows.column("id").to_pylist()
    return units_table(Question, [Unit(id=i, records=(factories.question(i),), metric_sums={"rows": 1}) for i in ids])


def run(folder: StageFolder, num_rows: int = NUM_ROWS) -> Manifest:
    import ray.data

    rows = ray.data.from_arrow(pa.table({"id": [f"q{i}" for i in range(num_rows)]}))
    return flow.run(
        folder,
        rows,
        lambda rows: rows.map_batches(make_units, **flow.LIGHT),
        total=NUM_ROWS,
        fingerprint="settings",
        inputs={},
        metrics=lambda _folder, sums: sums,
    )


def test_a_large_stage_is_merged_and_read_by_several_tasks(run_folder: Path) -> None:
    stage = StageFolder(run_folder / "pool")
    manifest = run(stage)
    assert (manifest.rows_in, manifest.rows_out, manifest.metrics) == (NUM_ROWS, NUM_ROWS, {"rows": NUM_ROWS})
    assert len(manifest.shards) == len(list((stage.path / "shards").iterdir())) == 1
    small = StageFolder(run_folder / "unmerged", shard_mb=0)
    unmerged = run(small)
    assert len(unmerged.shards) > 70
    assert unmerged.data_hash == manifest.data_hash
    records = flow.read_records(small)
    assert records.materialize().num_blocks() >= 2
    assert {row["id"] for row in records.iter_rows()} == {f"q{i}" for i in range(NUM_ROWS)}


def test_an_interrupted_large_stage_is_continued(run_folder: Path) -> None:
    stage = StageFolder(run_folder / "pool")
    with pytest.raises(Exception, match="3000 finished"):
        run(stage, num_rows=3_000)
    assert stage.manifest() is None
    assert len(stage.shards()) > 40
    manifest = run(stage)
    assert (manifest.rows_in, manifest.metrics) == (NUM_ROWS, {"rows": NUM_ROWS})
    assert run(stage) == manifest
