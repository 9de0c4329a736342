"""Accounts of stages: totals that the writers of shards report, merged without opening a shard."""

import hashlib
import json
from pathlib import Path

import factories
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray.curation.preferences import count_pairs, measure_pairs
from vlgenrm_ray.data import flow, shard_files
from vlgenrm_ray.data.shard_files import ShardTotals, add_sums
from vlgenrm_ray.data.store import CommittedShards, StageFolder, Unit, units_from_table, units_table
from vlgenrm_ray.records import Dropped, Origin, Question


def unit(id: str, count: int = 1) -> Unit[Question]:
    dropped = (Dropped(stage="pool", id=f"{id}/x", reason="empty_text"),)
    return Unit(id=id, records=(factories.question(id),), dropped=dropped, metric_sums={"kinds": {"count": count}})


def commit(stage: StageFolder, committed: CommittedShards, *ids: str) -> str:
    table = units_table(Question, [unit(id) for id in ids])
    name, totals = stage.write_shard(table)
    committed.add(name, totals, table.column("id").combine_chunks())
    return name


@pytest.fixture
def stage(tmp_path: Path) -> StageFolder:
    folder = StageFolder(tmp_path / "pool")
    folder.begin("settings", {})
    return folder


def test_a_stage_is_finished_without_opening_a_shard(stage: StageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = CommittedShards()
    for ids in (("a", "b"), ("c",)):
        commit(stage, committed, *ids)
    expected = stage.finish(seconds=0.0)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a shard was opened")

    with monkeypatch.context() as patch:
        for name in ("read_metadata", "ParquetFile", "read_table"):
            patch.setattr(pq, name, refuse)
        assert stage.finish(seconds=0.0, committed=committed) == expected
    assert (expected.rows_in, expected.rows_out, expected.dropped) == (3, 3, {"empty_text": 3})


def test_the_sums_of_units_survive_tables_shards_and_partial_rewrites(stage: StageFolder) -> None:
    units = [unit("a", 2), unit("b", 5)]
    table = units_table(Question, units)
    assert [u.metric_sums for u in units_from_table(Question, table)] == [u.metric_sums for u in units]
    name, totals = stage.write_shard(table)
    assert totals.metric_sums == {"kinds": {"count": 7}}
    assert shard_files.read_totals(stage.shard_path(name)) == totals
    committed = stage.read_committed()
    stage._keep_units(committed, name, [False, True])
    assert committed.total().metric_sums == {"kinds": {"count": 5}}
    assert stage.read_committed().total() == committed.total()


def test_the_hash_of_the_data_does_not_depend_on_the_metrics() -> None:
    with_sums, without = (units_table(Question, [u]) for u in (unit("a"), Unit(id="a", records=unit("a").records)))
    assert ShardTotals.of(with_sums).hash != ShardTotals.of(without).hash, "the drop differs"
    other_sums = units_table(Question, [unit("a", 99)])
    assert ShardTotals.of(with_sums).hash == ShardTotals.of(other_sums).hash
    assert ShardTotals.of(with_sums.drop_columns(["metric_sums"])).hash == ShardTotals.of(with_sums).hash


def test_the_hash_of_the_data_is_that_of_the_units_as_sorted_json() -> None:
    """Runs record it as the identity of their inputs: another encoding would make them unable to continue."""
    table = units_table(Question, [unit("a"), Unit(id="é", records=(factories.question("é"),))])
    rows = table.drop_columns(["metric_sums"]).to_pylist()
    digests = (hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest() for row in rows)
    assert ShardTotals.of(table).hash == sum(map(int.from_bytes, digests)) % (1 << 256)


def test_a_commit_reports_its_units_and_the_first_fault_of_each(stage: StageFolder) -> None:
    reasons = {"a": (), "b": ("empty_text",), "c": ("empty_text", "image_missing", "image_unreachable")}
    units: list[Unit[Question]] = [
        Unit(id=id, dropped=tuple(Dropped(stage="pool", id=f"{id}/{r}", reason=r) for r in names))
        for id, names in reasons.items()
    ]
    (row,) = flow._Commit(stage)(units_table(Question, units)).to_pylist()
    assert row["ids"] == ["a", "b", "c"]
    assert [fault["id"] for fault in row["faults"]] == ["c/image_missing"]
    (row,) = flow._Commit(stage)(units_table(Question, [Unit(id="d", records=(factories.question("d"),))])).to_pylist()
    assert (row["ids"], row["faults"]) == (["d"], [])


def test_shards_of_earlier_versions_have_no_sums(stage: StageFolder) -> None:
    old = json.loads(ShardTotals(num_units=1).to_json())
    del old["metric_sums"]
    totals = [ShardTotals.from_json(json.dumps(old)), ShardTotals(num_units=2, metric_sums={"pairs": 2})]
    assert totals[0].metric_sums is None
    assert ShardTotals.merge(totals).metric_sums is None
    assert ShardTotals.merge([ShardTotals(), totals[1]]).metric_sums == {"pairs": 2}


def test_a_unit_in_two_shards_counts_twice_and_its_id_once() -> None:
    committed = CommittedShards()
    committed.add("one", ShardTotals(num_units=2), pa.array(["a", "b"]))
    committed.add("two", ShardTotals(num_units=1), pa.array(["b"]))
    committed.add("two", ShardTotals(num_units=1), pa.array(["b"]))
    assert (committed.num_units, committed.distinct_ids().to_pylist()) == (3, ["a", "b"])


@given(st.lists(st.dictionaries(st.sampled_from("xyz"), st.integers(-9, 9)), max_size=5))
def test_sums_are_those_of_each_name(parts: list[dict[str, int]]) -> None:
    total = add_sums(parts)
    assert total == {name: sum(part.get(name, 0) for part in parts) for name in {n for part in parts for n in part}}
    assert add_sums([{"nested": part} for part in parts]) == ({"nested": total} if parts else {})


def test_the_metrics_of_pairs_are_those_of_all_shards_together() -> None:
    pairs = [
        factories.preference("q0/p0", origin=Origin.IMPORTED, chosen="longer", rejected="long", evidence=""),
        factories.preference("q0/p1", origin=Origin.EDITED, kind="count", chosen="two", rejected="three"),
        factories.preference("q1/p0", origin=Origin.EDITED, kind="count", chosen="one", rejected="six"),
    ]
    together = measure_pairs(count_pairs(pairs))
    assert measure_pairs(add_sums([count_pairs(pairs[:1]), count_pairs(pairs[1:])])) == together
    assert together["pairs_by_origin"] == {"edited": 2, "imported": 1}
    assert together["pairs_by_kind"] == {"count": 2, "unknown": 1}
    assert (together["mean_length_gap"], together["mean_absolute_length_gap"]) == (0.0, 1.333)
    assert together["chosen_longer_share"] == 0.3333
    assert measure_pairs({})["pairs_by_origin"] == {}
