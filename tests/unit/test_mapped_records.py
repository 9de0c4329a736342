"""Records in a memory-mapped file: the same sequence from any shards, without Python objects for all of them."""

import errno
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from factories import example, image

from vlgenrm_ray.data import mapped_records
from vlgenrm_ray.data.mapped_records import MappedRecords
from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.errors import StageError
from vlgenrm_ray.records import Example


def write_stage(path: Path, *shards: list[Example]) -> StageFolder:
    folder = StageFolder(path)
    folder.begin("x", {})
    for examples in shards:
        write_units(folder, Example, [Unit(id=e.id, records=(e,)) for e in examples])
    folder.finish(seconds=0.0)
    return folder


def map_stage(folder: StageFolder) -> MappedRecords[Example]:
    MappedRecords.write(Example, folder, folder.path / "examples.arrow")
    return MappedRecords(Example, folder.path / "examples.arrow")


def test_examples_are_read_in_the_same_order_from_any_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_records, "_BATCH_ROWS", 2)
    examples = [example(f"p{i}/e", more_images=(image(),) * (i % 3)) for i in range(6)]
    one = map_stage(write_stage(tmp_path / "one", examples))
    many = map_stage(write_stage(tmp_path / "many", examples[4:], examples[:1], examples[1:4]))
    assert [one[i] for i in range(len(one))] == examples == list(many)
    with pytest.raises(IndexError):
        one[6]


def test_no_object_is_made_of_an_example_that_is_not_read(tmp_path: Path) -> None:
    folder = write_stage(tmp_path / "selection", [example(f"p{i}/e") for i in range(4_000)])
    map_stage(folder)
    tracemalloc.start()
    examples = MappedRecords(Example, folder.path / "examples.arrow")
    assert examples[1234].id.endswith("/e")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000, "4,000 rows as dicts take 8 MB"
    assert pa.total_allocated_bytes() < 100_000_000


def test_fields_that_an_earlier_version_lacked_have_their_defaults(tmp_path: Path) -> None:
    folder = write_stage(tmp_path / "selection", [example("a"), example("b", stratum="count 3")])
    original = folder.read_records
    folder.read_records = lambda shard: original(shard).drop_columns(["stratum", "more_images"])  # type: ignore
    assert [(e.id, e.stratum, e.more_images) for e in map_stage(folder)] == [("a", "", ()), ("b", "", ())]


def test_an_empty_stage_has_no_records(tmp_path: Path) -> None:
    assert len(map_stage(write_stage(tmp_path / "selection"))) == 0


def test_a_full_disk_is_named_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_stage(tmp_path / "selection", [example("a")])

    def refuse(*args: object, **kwargs: object) -> object:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pa.ipc, "new_file", refuse)
    target = tmp_path / "training"
    target.mkdir()
    with pytest.raises(StageError, match=r"cannot write examples\.arrow.*No space left"):
        MappedRecords.write(Example, folder, target / "examples.arrow")
    assert not list(target.iterdir())
