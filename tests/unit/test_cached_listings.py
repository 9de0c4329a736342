"""Stages on a shared file system whose listings of folders are old, as those of NFS clients are for 30 seconds."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import factories
import pytest

from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.errors import StageError
from vlgenrm_ray.records import Question


class CachedListings:
    """Listings of shard folders that show what was there when they were frozen."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._scandir = os.scandir
        self._listdir = os.listdir
        self._names: dict[str, set[str]] = {}
        monkeypatch.setattr(os, "scandir", self.scandir)
        monkeypatch.setattr(os, "listdir", self.listdir)

    def freeze(self, folder: Path) -> None:
        self._names[str(folder)] = set(self._listdir(folder))

    def listdir(self, path: Any = ".") -> list[str]:
        names = self._listdir(path)
        return [name for name in names if name in self._names.get(str(path), names)]

    def scandir(self, path: Any = ".") -> Any:
        known = self._names.get(str(path))
        return _Entries([entry for entry in self._scandir(path) if known is None or entry.name in known])


class _Entries:
    def __init__(self, entries: list[Any]) -> None:
        self.entries = entries

    def __enter__(self) -> Iterator[Any]:
        return iter(self.entries)

    def __exit__(self, *args: object) -> None:
        self.entries.clear()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.entries)


def unit(id: str) -> Unit[Question]:
    return Unit(id=id, records=(factories.question(id),))


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> CachedListings:
    return CachedListings(monkeypatch)


@pytest.fixture
def stage(tmp_path: Path) -> StageFolder:
    stage = StageFolder(tmp_path / "pool")
    stage.begin("settings", {})
    return stage


def write(stage: StageFolder, *ids: str) -> str:
    write_units(stage, Question, [unit(id) for id in ids])
    newest = max((stage.path / "shards").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return newest.stem


def test_shards_that_no_listing_shows_are_counted_by_their_names(stage: StageFolder, listings: CachedListings) -> None:
    names = [write(stage, "a", "b"), write(stage, "c")]
    (stage.path / "shards" / f"{names[0]}.parquet").rename(stage.path / "aside")
    listings.freeze(stage.path / "shards")
    (stage.path / "aside").rename(stage.path / "shards" / f"{names[0]}.parquet")
    assert stage.done_ids() == {"c"}, "the listing is old"
    manifest = stage.await_shards(names).finish(seconds=0.0)
    assert manifest.rows_in == 3
    # The next stage, on another host with an old listing, reads all.
    assert [q.id for q in sorted(StageFolder(stage.path).records(Question), key=lambda q: q.id)] == ["a", "b", "c"]
    assert StageFolder(stage.path).done_ids() == {"a", "b", "c"}


def test_a_shard_that_never_appears_is_named_with_host_and_remedy(stage: StageFolder) -> None:
    with pytest.raises(
        StageError, match=r"nowhere\.parquet was written by another process and is not visible on .*--run"
    ):
        stage.await_shards(["nowhere"], patience_s=0.05)


def test_a_resumed_attempt_that_misses_a_shard_repeats_its_rows_once(
    stage: StageFolder, listings: CachedListings
) -> None:
    first = write(stage, "a", "b")
    (stage.path / "shards" / f"{first}.parquet").rename(stage.path / "aside")
    listings.freeze(stage.path / "shards")
    (stage.path / "aside").rename(stage.path / "shards" / f"{first}.parquet")
    stage.begin("settings", {})
    assert stage.done_ids() == set()
    again = [
        stage.write_shard(_table("a"))[0],
        stage.write_shard(_table("b"))[0],
    ]
    manifest = stage.await_shards(again).finish(seconds=0.0)
    assert manifest.rows_in == 2
    assert {path.stem for path in stage.shards()} == set(again)


def test_units_committed_twice_are_kept_once_when_an_attempt_begins(stage: StageFolder) -> None:
    write(stage, "a", "b")
    write(stage, "b", "c")
    with pytest.raises(StageError, match="1 units are in more than one shard"):
        stage.finish(seconds=0.0)
    stage.begin("settings", {})
    assert stage.finish(seconds=0.0).rows_in == 3
    assert sorted(question.id for question in stage.records(Question)) == ["a", "b", "c"]


def test_a_shard_that_a_repeated_task_left_is_removed(stage: StageFolder) -> None:
    name = write(stage, "a", "b")
    write(stage, "a")  # A task that ran before its node was lost, on another block.
    stage.await_shards([name]).finish(seconds=0.0)
    assert [path.stem for path in (stage.path / "shards").iterdir()] == [name]


def _table(id: str) -> Any:
    from vlgenrm_ray.data.store import units_table

    return units_table(Question, [unit(id)])
