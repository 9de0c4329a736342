"""Merging of small shards: the same stage in fewer files, whenever it is interrupted."""

import os
from pathlib import Path

import factories
import pytest

from vlgenrm_ray.data import merging, shard_files
from vlgenrm_ray.data.merging import plan_merges, write_merged_shard
from vlgenrm_ray.data.record_index import RecordIndex
from vlgenrm_ray.data.shard_files import ShardTotals
from vlgenrm_ray.data.store import CommittedShards, Manifest, StageFolder, Unit, units_table
from vlgenrm_ray.errors import StageError
from vlgenrm_ray.records import Dropped, Question
from vlgenrm_ray.report.html.run_data import _read_stages

NUM_SHARDS = 40


def unit(id: str) -> Unit[Question]:
    dropped = (Dropped(stage="pool", id=f"{id}/x", reason="empty_text"),) if id.endswith("1") else ()
    records = () if id.endswith("3") else (factories.question(id, image=factories.image(uri=f"/images/{id}.png")),)
    dropped = dropped if records else (Dropped(stage="pool", id=id, reason="duplicate_text"),)
    return Unit(id=id, records=records, dropped=dropped, num_tokens=2, metric_sums={"units": 1})


def write_stage(path: Path) -> tuple[StageFolder, CommittedShards]:
    stage = StageFolder(path / "pool")
    committed = stage.begin("settings", {})
    for number in range(NUM_SHARDS):
        table = units_table(Question, [unit(f"q{number}-{i}") for i in range(4)])
        name, totals = stage.write_shard(table)
        committed.add(name, totals, table.column("id").combine_chunks())
    return stage, committed


def merge(stage: StageFolder, committed: CommittedShards, max_bytes: int, *, rename: bool = True) -> None:
    """Merge as `merge_shards` does, without Ray."""
    for group in plan_merges(committed, max_bytes):
        totals = ShardTotals.merge([committed.totals[name] for name in group])
        name = write_merged_shard(stage, group, totals)
        if rename:
            os.replace(stage.shard_path(name).with_suffix(".merged"), stage.shard_path(name))
            committed.replace(group, name, totals)


def third_of_stage(committed: CommittedShards) -> int:
    return sum(totals.num_bytes for totals in committed.totals.values()) // 3 + 1000


def content(stage: StageFolder) -> list[tuple[str, tuple[Question, ...], tuple[Dropped, ...]]]:
    return sorted((u.id, u.records, u.dropped) for u in stage.units(Question))


def ignoring_shards(manifest: Manifest) -> tuple[object, ...]:
    return (manifest.data_hash, manifest.rows_in, manifest.rows_out, manifest.dropped, manifest.num_tokens)


def test_a_merged_stage_has_the_same_content_in_fewer_files(tmp_path: Path) -> None:
    plain, _ = write_stage(tmp_path / "plain")
    stage, committed = write_stage(tmp_path / "merged")
    expected = plain.finish(seconds=0.0)
    in_order = [q.id for q in plain.records(Question)]
    merge(stage, committed, 10**9)
    manifest = stage.finish(seconds=0.0, committed=committed)
    assert ignoring_shards(manifest) == ignoring_shards(expected)
    assert len(manifest.shards) == len(list((stage.path / "shards").iterdir())) == 1
    assert content(stage) == content(plain)
    assert [q.id for q in stage.records(Question)] == in_order, "a later stage reads the rows in the same order"
    assert stage.read_committed().total() == committed.total()
    assert committed.total().hash == ShardTotals.of(shard_files.read_units(stage.shards()[0])).hash


def test_sizes_and_numbers_of_shards_are_bounded_and_few_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def committed(sizes: list[int]) -> CommittedShards:
        shards = CommittedShards()
        for number, size in enumerate(sizes):
            shards.add(f"{number:04d}", ShardTotals(num_units=1, num_bytes=size), units_table(Question, [])["id"])
        return shards

    assert plan_merges(committed([1] * 32), 1000) == []
    groups = plan_merges(committed([30] * 50 + [200] + [30] * 4), 100)
    assert [len(group) for group in groups] == [3] * 16 + [2, 3]
    assert "0050" not in {name for group in groups for name in group}, "it is large enough"
    assert plan_merges(committed([30] * 50), 0) == []
    monkeypatch.setattr(merging, "_MAX_SHARDS", 20)
    assert [len(group) for group in plan_merges(committed([0] * 50), 100)] == [20, 20, 10]


@pytest.mark.parametrize("point", ["before_renaming", "while_renaming", "after_renaming", "before_removal"])
def test_an_interrupted_merge_loses_and_repeats_nothing(
    point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = write_stage(tmp_path / "plain")
    expected = plain.finish(seconds=0.0)
    stage, committed = write_stage(tmp_path / "merged")
    merge(stage, committed, third_of_stage(committed), rename=point in ("after_renaming", "before_removal"))
    merged = list((stage.path / "shards").glob("*.merged"))
    if point == "while_renaming":
        assert len(merged) == 3
        os.replace(merged[0], merged[0].with_suffix(".parquet"))
    if point == "before_removal":
        with monkeypatch.context() as patch:
            patch.setattr(StageFolder, "_remove_strays", lambda self, manifest: None)
            stage.finish(seconds=0.0, committed=committed)
        assert len(list((stage.path / "shards").glob("*.parquet"))) > NUM_SHARDS

    resumed = StageFolder(stage.path)
    committed = resumed.begin("settings", {})
    assert committed.num_units == len(committed.distinct_ids()) == 4 * NUM_SHARDS
    manifest = resumed.manifest() or resumed.finish(seconds=0.0, committed=committed)
    assert ignoring_shards(manifest) == ignoring_shards(expected)
    assert content(resumed) == content(plain)
    assert not list((stage.path / "shards").glob("*.merged"))
    assert {path.stem for path in (stage.path / "shards").iterdir()} == set(manifest.shards)
    if point in ("after_renaming", "before_removal"):
        assert len(manifest.shards) == 3, "the merged shards are kept"


def test_a_shard_that_was_changed_is_not_merged(tmp_path: Path) -> None:
    stage, committed = write_stage(tmp_path)
    names = sorted(committed.totals)[:2]
    with pytest.raises(StageError, match="hold 8 rows instead of 9"):
        write_merged_shard(stage, names, ShardTotals(num_units=9))


def test_single_records_of_a_merged_shard_are_read_by_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_files, "_ROW_GROUP_ROWS", 10)
    stage, committed = write_stage(tmp_path)
    merge(stage, committed, 10**9)
    stage.finish(seconds=0.0, committed=committed)
    index = RecordIndex.build(stage)
    read: list[int] = []
    original = shard_files.read_rows

    def count_rows(shard: Path, columns: object, filters: object, row_groups: list[int]) -> object:
        read.extend(row_groups)
        return original(shard, None, filters, row_groups)

    monkeypatch.setattr(shard_files, "read_rows", count_rows)
    assert {q.id: q.image.uri for q in index.read(Question, ["q7-0", "q31-2"]).values()} == {
        "q7-0": "/images/q7-0.png",
        "q31-2": "/images/q31-2.png",
    }
    assert len(read) <= 2 < len(shard_files.row_group_sizes(stage.shards()[0]))


def test_a_live_report_reads_a_stage_that_is_merged_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, committed = write_stage(tmp_path)
    names = tuple(committed.totals)
    assert [(account.rows_in, account.is_complete) for account in _read_stages(tmp_path)] == [(4 * NUM_SHARDS, False)]

    def finish_first(self: StageFolder) -> list[Path]:
        if self.manifest() is None:
            merge(stage, committed, 10**9)
            stage.finish(seconds=0.0, committed=committed)
        return [self.shard_path(name) for name in names]

    monkeypatch.setattr(StageFolder, "shards", finish_first)
    assert [(account.rows_in, account.is_complete) for account in _read_stages(tmp_path)] == [(4 * NUM_SHARDS, True)]
