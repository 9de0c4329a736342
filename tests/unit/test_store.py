"""Stage folders: shards, manifests, URIs, storage format."""

from pathlib import Path

import factories
import pyarrow.parquet as pq
import pytest

from vlgenrm_ray.data.files import read_json, write_json
from vlgenrm_ray.data.record_index import RecordIndex
from vlgenrm_ray.data.store import StageFolder, Unit, units_from_table, units_table, write_units
from vlgenrm_ray.errors import ConfigError, DropReason, InputError, StageError
from vlgenrm_ray.records import Dropped, Question


def unit(id: str) -> Unit[Question]:
    return Unit(id=id, records=(factories.question(id),), num_tokens=2)


def dropped_unit(id: str) -> Unit[Question]:
    return Unit(id=id, dropped=(Dropped(stage="pool", id=id, reason=DropReason.IMAGE_MISSING, detail="missing"),))


def folder(path: Path, *shards: list[Unit[Question]]) -> StageFolder:
    stage = StageFolder(path / "pool")
    stage.begin("settings", {})
    for shard in shards:
        write_units(stage, Question, shard)
    return stage


def test_units_survive_a_table() -> None:
    units = [unit("a"), dropped_unit("b")]
    assert units_from_table(Question, units_table(Question, units)) == units


def test_a_folder_counts_what_it_holds(tmp_path: Path) -> None:
    stage = folder(tmp_path, [unit("a"), dropped_unit("b")], [unit("c")])
    manifest = stage.finish(seconds=1.0, metrics={"x": 1})
    assert (manifest.rows_in, manifest.rows_out, manifest.num_tokens) == (3, 2, 4)
    assert manifest.dropped == {"image_missing": 1}
    assert stage.manifest() == manifest
    assert {q.id for q in stage.records(Question)} == {"a", "c"}
    assert [d.id for d in stage.dropped()] == ["b"]
    assert stage.done_ids() == {"a", "b", "c"}


def test_the_data_hash_ignores_order_and_sharding_but_not_content(tmp_path: Path) -> None:
    one = folder(tmp_path / "1", [unit("a"), unit("b")], [unit("c")]).finish(seconds=0)
    two = folder(tmp_path / "2", [unit("c"), unit("a")], [unit("b")]).finish(seconds=0)
    three = folder(tmp_path / "3", [unit("c"), unit("a")], [dropped_unit("b")]).finish(seconds=0)
    assert one.data_hash == two.data_hash != three.data_hash


def test_a_shard_written_twice_counts_once(tmp_path: Path) -> None:
    stage = folder(tmp_path, [unit("a"), unit("b")], [unit("b"), unit("a")])
    assert stage.finish(seconds=0).rows_in == 2


def test_a_unit_in_two_shards_is_refused(tmp_path: Path) -> None:
    stage = folder(tmp_path, [unit("a"), unit("b")], [unit("b")])
    with pytest.raises(StageError, match="more than one shard"):
        stage.finish(seconds=0)


def test_an_unfinished_folder_has_no_hash(tmp_path: Path) -> None:
    stage = folder(tmp_path, [unit("a")])
    assert stage.manifest() is None
    with pytest.raises(StageError, match=r"no manifest\.json"):
        stage.data_hash()


def test_other_settings_or_inputs_are_not_mixed_in(tmp_path: Path) -> None:
    stage = folder(tmp_path, [unit("a")])
    stage.begin("settings", {})
    with pytest.raises(ConfigError, match="choose another run folder"):
        stage.begin("others", {})
    with pytest.raises(ConfigError, match="choose another run folder"):
        stage.begin("settings", {"pool": "abc"})


def test_working_time_adds_up_over_attempts(tmp_path: Path) -> None:
    stage = folder(tmp_path, [unit("a")])
    stage.add_seconds(2.5)
    stage.begin("settings", {})
    assert stage.finish(seconds=1.0).seconds == 3.5
    assert read_json(stage.path / "started.json")["seconds"] == 3.5


def test_a_partial_shard_is_not_read(tmp_path: Path) -> None:
    stage = folder(tmp_path, [unit("a")])
    (stage.path / "shards" / ".half.123").write_bytes(b"PAR1 and no more")
    assert stage.finish(seconds=0).rows_in == 1


def image_at(path: Path) -> Question:
    return factories.question("a", image=factories.image(uri=str(path)))


def test_shards_are_flat_rows_for_any_reader(tmp_path: Path) -> None:
    from datasets import load_dataset

    stage = folder(tmp_path, [unit("a"), dropped_unit("b")], [unit("c")], [dropped_unit("d")])
    rows = load_dataset(
        "parquet", data_files=str(stage.path / "shards" / "*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert sorted(rows["id"]) == ["a", "c"]
    assert rows[0]["image"]["uri"] == "/nowhere.png"
    assert {u.id: (len(u.records), len(u.dropped)) for u in stage.units(Question)} == {
        "a": (1, 0),
        "b": (0, 1),
        "c": (1, 0),
        "d": (0, 1),
    }


def test_uris_in_the_run_folder_follow_it(tmp_path: Path) -> None:
    stage = StageFolder(tmp_path / "run" / "round-1" / "critiques")
    stage.begin("settings", {})
    inside, outside = tmp_path / "run" / "pool" / "images" / "x.png", tmp_path / "run2" / "y.png"
    records = (image_at(inside), image_at(outside), factories.question("b", image=factories.image(uri="s3://b/z.png")))
    write_units(stage, Question, [Unit(id="u", records=records)])
    assert tuple(stage.records(Question)) == records
    hashed = stage.finish(seconds=0).data_hash
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = StageFolder(tmp_path / "moved" / "round-1" / "critiques")
    assert [q.image.uri for q in moved.records(Question)] == [
        str(tmp_path / "moved" / "pool" / "images" / "x.png"),
        str(outside),
        "s3://b/z.png",
    ]
    assert next(q.image.uri for u in moved.units(Question) for q in u.records).startswith(str(tmp_path / "moved"))
    assert moved.finish(seconds=0).data_hash == hashed


def test_a_record_index_reads_single_records(tmp_path: Path) -> None:
    stage = folder(tmp_path, [unit("a"), dropped_unit("b")], [unit("c"), unit("d")])
    index = RecordIndex.build(stage)
    assert {id: q.id for id, q in index.read(Question, ["c", "a"]).items()} == {"a": "a", "c": "c"}
    assert index.read(Question, []) == {}
    with pytest.raises(StageError, match="no record 'b'"):
        index.read(Question, ["a", "b"])


def test_a_folder_of_another_storage_format_is_refused(tmp_path: Path) -> None:
    stage = folder(tmp_path, [unit("a")])
    started = read_json(stage.path / "started.json")
    write_json(stage.path / "started.json", {k: v for k, v in started.items() if k != "format"})
    with pytest.raises(ConfigError, match=r"storage format 1.*choose another run folder"):
        stage.begin("settings", {})
    pq.write_table(units_table(Question, [unit("b")]), stage.path / "shards" / "old.parquet")
    for read in (stage.dropped, lambda: stage.records(Question), lambda: stage.units(Question)):
        with pytest.raises(InputError, match="another version"):
            list(read())
