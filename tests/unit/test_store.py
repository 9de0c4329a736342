from pathlib import Path

import factories
import pytest

from vlgenrm_ray.data.store import StageFolder, Unit, read_json, units_from_table, units_table, write_units
from vlgenrm_ray.errors import ConfigError, DropReason, StageError
from vlgenrm_ray.records import Dropped, Question


def unit(id: str) -> Unit[Question]:
    return Unit(id=id, records=(factories.question(id),), num_tokens=2)


def lost(id: str) -> Unit[Question]:
    return Unit(id=id, dropped=(Dropped(stage="pool", id=id, reason=DropReason.IMAGE_MISSING, detail="gone"),))


def folder(path: Path, *shards: list[Unit[Question]]) -> StageFolder:
    made = StageFolder(path / "pool")
    made.begin("settings", {})
    for shard in shards:
        write_units(made, Question, shard)
    return made


def test_units_survive_a_table() -> None:
    units = [unit("a"), lost("b")]
    assert units_from_table(Question, units_table(Question, units)) == units


def test_a_folder_counts_what_it_holds(tmp_path: Path) -> None:
    made = folder(tmp_path, [unit("a"), lost("b")], [unit("c")])
    manifest = made.finish(seconds=1.0, metrics={"x": 1})
    assert (manifest.rows_in, manifest.rows_out, manifest.num_tokens) == (3, 2, 4)
    assert manifest.dropped == {"image_missing": 1}
    assert made.manifest() == manifest
    assert {q.id for q in made.records(Question)} == {"a", "c"}
    assert [d.id for d in made.dropped()] == ["b"]
    assert made.done_ids() == {"a", "b", "c"}


def test_the_data_hash_ignores_order_and_sharding_but_not_content(tmp_path: Path) -> None:
    one = folder(tmp_path / "1", [unit("a"), unit("b")], [unit("c")]).finish(seconds=0)
    two = folder(tmp_path / "2", [unit("c"), unit("a")], [unit("b")]).finish(seconds=0)
    three = folder(tmp_path / "3", [unit("c"), unit("a")], [lost("b")]).finish(seconds=0)
    assert one.data_hash == two.data_hash != three.data_hash


def test_a_shard_written_twice_counts_once(tmp_path: Path) -> None:
    made = folder(tmp_path, [unit("a"), unit("b")], [unit("b"), unit("a")])
    assert made.finish(seconds=0).rows_in == 2


def test_a_unit_in_two_shards_is_refused(tmp_path: Path) -> None:
    made = folder(tmp_path, [unit("a"), unit("b")], [unit("b")])
    with pytest.raises(StageError, match="more than one shard"):
        made.finish(seconds=0)


def test_an_unfinished_folder_has_no_hash(tmp_path: Path) -> None:
    made = folder(tmp_path, [unit("a")])
    assert made.manifest() is None
    with pytest.raises(StageError, match=r"no manifest\.json"):
        made.data_hash()


def test_other_settings_or_inputs_are_not_mixed_in(tmp_path: Path) -> None:
    made = folder(tmp_path, [unit("a")])
    made.begin("settings", {})
    with pytest.raises(ConfigError, match="choose another run folder"):
        made.begin("others", {})
    with pytest.raises(ConfigError, match="choose another run folder"):
        made.begin("settings", {"pool": "abc"})


def test_working_time_adds_up_over_attempts(tmp_path: Path) -> None:
    made = folder(tmp_path, [unit("a")])
    made.add_seconds(2.5)
    made.begin("settings", {})
    assert made.finish(seconds=1.0).seconds == 3.5
    assert read_json(made.path / "started.json")["seconds"] == 3.5


def test_a_partial_shard_is_not_read(tmp_path: Path) -> None:
    made = folder(tmp_path, [unit("a")])
    (made.path / "shards" / ".half.123").write_bytes(b"PAR1 and no more")
    assert made.finish(seconds=0).rows_in == 1
