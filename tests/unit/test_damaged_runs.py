"""Run folders after damage: truncated, overwritten and lost shards, damaged JSON files, a full disk."""

import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import factories
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serving_examples import png

from vlgenrm_ray.data import flow, shard_files
from vlgenrm_ray.data.files import read_json, write_json
from vlgenrm_ray.data.images import ImageLimits, keep
from vlgenrm_ray.data.shard_files import ShardTotals
from vlgenrm_ray.data.store import StageFolder, Unit, units_table, write_units
from vlgenrm_ray.errors import DamagedShardError, StageError, StorageFullError
from vlgenrm_ray.records import Dropped, Question

NUM_SHARDS = 3


def unit(id: str) -> Unit[Question]:
    dropped = Dropped(stage="pool", id=f"{id}/x", reason="empty_text")
    return Unit(id=id, records=(factories.question(id),), dropped=(dropped,), num_tokens=2)


@pytest.fixture
def stage(tmp_path: Path) -> StageFolder:
    """A finished stage of three shards with two units each."""
    stage = StageFolder(tmp_path / "pool")
    stage.begin("settings", {})
    for number in range(NUM_SHARDS):
        write_units(stage, Question, [unit(f"{number}a"), unit(f"{number}b")])
    stage.finish(seconds=1.0)
    return stage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def overwrite_with_zeros(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [cut, empty, overwrite_with_zeros, remove])
def test_the_rows_of_a_damaged_or_lost_shard_are_pending_again(
    stage: StageFolder, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    before = stage.complete()
    shard = stage.shards()[0]
    lost = stage.read_unit_index(shard).column("id").to_pylist()
    damage(shard)
    with caplog.at_level(logging.WARNING):
        stage.begin("settings", {})
    assert "made again" in caplog.text
    assert stage.manifest() is None
    assert stage.done_ids() == {f"{n}{side}" for n in range(NUM_SHARDS) for side in "ab"} - set(lost)
    write_units(stage, Question, [unit(id) for id in lost])
    again = stage.finish(seconds=0.0)
    assert (again.data_hash, again.rows_in) == (before.data_hash, before.rows_in), "later stages stay valid"


def test_an_undamaged_stage_stays_as_it_is(stage: StageFolder, caplog: pytest.LogCaptureFixture) -> None:
    before = stage.complete()
    stage.begin("settings", {})
    assert stage.complete() == before
    assert not caplog.records


def test_a_shard_overwritten_in_its_middle_is_named_when_it_is_read(stage: StageFolder) -> None:
    shard = stage.shards()[0]
    data = bytearray(shard.read_bytes())
    data[40:80] = b"\xff" * 40
    shard.write_bytes(bytes(data))
    with pytest.raises(DamagedShardError, match=rf"{shard.name} is damaged .*delete it and run the same command again"):
        list(stage.records(Question))


@pytest.mark.parametrize("content", ["", "{", '{"stage": "po', "\0" * 40, "[]"])
def test_a_damaged_manifest_is_made_again(stage: StageFolder, content: str, caplog: pytest.LogCaptureFixture) -> None:
    before = stage.complete()
    stage.manifest_path.write_text(content)
    with pytest.raises(StageError, match=r"manifest\.json is damaged"):
        stage.complete()
    stage.begin("settings", {})
    assert "made again" in caplog.text
    assert stage.finish(seconds=0.0).data_hash == before.data_hash


def test_a_damaged_start_file_is_named_with_the_remedy(stage: StageFolder) -> None:
    (stage.path / "started.json").write_text('{"fingerp')
    with pytest.raises(StageError, match=rf"started\.json is damaged .*delete {stage.path} to make its content again"):
        stage.begin("settings", {})


def test_totals_in_the_footer_equal_those_of_the_content(stage: StageFolder) -> None:
    for shard in stage.shards():
        assert shard_files.read_totals(shard) == ShardTotals.of(shard_files.read_units(shard))


def test_finishing_reads_no_records(stage: StageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("records were read")

    stage.manifest_path.unlink()
    monkeypatch.setattr(pq.ParquetFile, "read", refuse)
    monkeypatch.setattr(pq, "read_table", refuse)
    assert stage.finish(seconds=0.0).rows_out == 2 * NUM_SHARDS


def test_a_full_disk_is_one_clear_message_and_leaves_nothing(
    stage: StageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    files = sorted(stage.path.rglob("*"))
    with pytest.raises(StageError, match=r"pool/shards: cannot write .*No space left .* MB free.*run the same command"):
        stage.write_shard(units_table(Question, [unit("new")]))
    assert sorted(stage.path.rglob("*")) == files


@pytest.mark.parametrize(
    "write", [lambda folder: write_json(folder / "a.json", {}), lambda folder: keep(png(), folder, ImageLimits())]
)
def test_a_full_disk_is_one_clear_message_for_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], object]
) -> None:
    def full(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageFullError, match=rf"^{tmp_path}: cannot write .*No space left .* MB free.*run the same"):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_json_object_is_named(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text("nonsense")
    with pytest.raises(StageError, match=r"summary\.json is damaged"):
        read_json(path)


@pytest.mark.parametrize(
    ("num_shards", "num_blocks", "sizes"), [(0, 4, [0]), (9, 4, [9]), (100, 4, [33, 33, 34]), (400, 4, [100] * 4)]
)
def test_shards_are_read_by_several_tasks_in_order(num_shards: int, num_blocks: int, sizes: list[int]) -> None:
    plan = pa.table({"path": [f"/run/{number}.parquet" for number in range(num_shards)]})
    blocks = flow.split_plan(plan, num_blocks=num_blocks, num_rows=64 * num_shards)
    assert [block.num_rows for block in blocks] == sizes
    assert pa.concat_tables(blocks) == plan
    assert len(flow.split_plan(plan, num_blocks=num_blocks, num_rows=None)) == max(1, min(num_shards, num_blocks))
