"""Faults of storage are told from missing files, retried, limited, and their rows processed again."""

import errno
from pathlib import Path
from typing import Any

import factories
import pytest

from vlgenrm_ray.data import faults, images
from vlgenrm_ray.data.faults import FaultCounter, fault_of
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.errors import DropReason, StageError
from vlgenrm_ray.records import Dropped, Question

LIMITS = ImageLimits()


class Storage:
    """A file system that fails a number of times before it answers."""

    def __init__(self, error: Exception, failures: int) -> None:
        self.error = error
        self.failures = failures
        self.num_calls = 0

    def read(self, *args: Any, **kwargs: Any) -> bytes:
        self.num_calls += 1
        if self.num_calls <= self.failures:
            raise self.error
        return b"content"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited."""
    waits: list[float] = []
    monkeypatch.setattr(images.time, "sleep", waits.append)
    monkeypatch.setattr(images._reach, "num_unreachable", 0)
    return waits


def serve(monkeypatch: pytest.MonkeyPatch, error: Exception, failures: int) -> Storage:
    storage = Storage(error, failures)
    monkeypatch.setattr(images, "read_file", storage.read)
    monkeypatch.setattr(images, "_fetch_remote", storage.read)
    return storage


def reason_of(uri: str) -> DropReason:
    with pytest.raises(ImageError) as caught:
        images.fetch(uri, LIMITS)
    return caught.value.reason


TRANSIENT = [
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    OSError(errno.EMFILE, "Too many open files"),
    OSError("When reading information: AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7"),
    TimeoutError(errno.ETIMEDOUT, "Connection timed out"),
    ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=lambda error: type(error).__name__ + str(error.errno))
@pytest.mark.parametrize("uri", ["/data/a.png", "s3://bucket/a.png"])
def test_a_fault_that_passes_costs_nothing_but_time(
    monkeypatch: pytest.MonkeyPatch, waits: list[float], error: Exception, uri: str
) -> None:
    serve(monkeypatch, error, failures=2)
    assert images.fetch(uri, LIMITS) == b"content"
    assert waits == [0.5, 1.0]


@pytest.mark.parametrize("error", TRANSIENT, ids=lambda error: type(error).__name__ + str(error.errno))
def test_a_fault_that_stays_is_unreachable_and_not_missing(
    monkeypatch: pytest.MonkeyPatch, waits: list[float], error: Exception
) -> None:
    storage = serve(monkeypatch, error, failures=99)
    assert reason_of("s3://bucket/a.png") is DropReason.IMAGE_UNREACHABLE
    assert (storage.num_calls, sum(waits)) == (4, 3.5), "bounded"


@pytest.mark.parametrize(
    ("uri", "error", "reason"),
    [
        ("/data/a.png", FileNotFoundError(errno.ENOENT, "No such file"), DropReason.IMAGE_MISSING),
        ("/data/a.png", NotADirectoryError(errno.ENOTDIR, "Not a directory"), DropReason.IMAGE_MISSING),
        ("/data/a.png", OSError(errno.ENAMETOOLONG, "File name too long"), DropReason.IMAGE_MISSING),
        ("/data/a.png", ValueError("embedded null byte"), DropReason.IMAGE_MISSING),
        ("nosuch://a/b", ValueError("unknown scheme"), DropReason.IMAGE_MISSING),
        ("/data/a.png", PermissionError(errno.EACCES, "Permission denied"), DropReason.IMAGE_UNREACHABLE),
        ("s3://b/a.png", OSError("AWS Error ACCESS_DENIED during HeadObject"), DropReason.IMAGE_UNREACHABLE),
        ("oss://b/a.png", ImportError("install ossfs"), DropReason.IMAGE_UNREACHABLE),
    ],
)
def test_what_waiting_cannot_help_is_not_retried(
    monkeypatch: pytest.MonkeyPatch, waits: list[float], uri: str, error: Exception, reason: DropReason
) -> None:
    storage = serve(monkeypatch, error, failures=99)
    assert reason_of(uri) is reason
    assert (storage.num_calls, waits) == (1, [])


def test_a_dead_store_does_not_cost_a_wait_per_image(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    storage = serve(monkeypatch, OSError(errno.EIO, "Input/output error"), failures=99)
    for _ in range(10):
        reason_of("/data/a.png")
    assert sum(waits) == 3 * 3.5
    storage.failures = 0
    assert images.fetch("/data/a.png", LIMITS) == b"content"
    storage.num_calls, storage.failures = 0, 1
    assert images.fetch("/data/a.png", LIMITS) == b"content", "one success, and it waits again"


def test_an_endpoint_that_does_not_answer_is_unreachable(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    monkeypatch.setattr(images._reach, "num_unreachable", 99)  # A single attempt: the client of S3 has retries as well.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    uri = "s3://bucket/a.png?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"
    assert reason_of(uri) is DropReason.IMAGE_UNREACHABLE


# -- the limit -------------------------------------------------------------------------------------------------------


def drop(number: int, reason: DropReason, detail: str = "") -> Dropped:
    return Dropped(stage="pool", id=f"q{number}", reason=reason, detail=detail)


def test_only_faults_count() -> None:
    expected = {
        DropReason.IMAGE_MISSING,
        DropReason.IMAGE_UNREACHABLE,
        DropReason.IMAGE_UNREADABLE,
        DropReason.ENGINE_ERROR,
    }
    assert {reason for reason in DropReason if reason.is_fault} == expected
    assert {reason for reason in DropReason if reason.is_transient} <= expected
    assert fault_of([drop(0, DropReason.TIE), drop(0, DropReason.SMALL_MARGIN)]) is None


def test_half_of_the_images_missing_stops_the_stage_with_reason_example_and_remedy() -> None:
    counter = FaultCounter("pool", num_rows=512, max_dropped=0.05)
    counter.add(drop(n, DropReason.IMAGE_MISSING, f"rows:{n}: /data/{n}.png: No such file") for n in range(128))
    counter.add(drop(n, DropReason.IMAGE_UNREADABLE, "damaged") for n in range(3))
    with pytest.raises(StageError) as caught:
        counter.check()
    message = str(caught.value)
    assert "stage 'pool' stopped: 131 of 512 rows" in message
    assert "image_missing 128, image_unreadable 3" in message
    assert "/data/0.png" in message
    assert "--set max_dropped=0.27" in message


def test_the_limit_itself_is_allowed() -> None:
    counter = FaultCounter("pool", num_rows=200, max_dropped=0.05)
    counter.add(drop(n, DropReason.ENGINE_ERROR) for n in range(10))
    counter.check()
    counter.add([drop(10, DropReason.ENGINE_ERROR)])
    assert counter.exceeds_limit


@pytest.mark.parametrize(("max_dropped", "allowed"), [(0.05, 7), (0.0, 0)])
def test_a_few_faults_stop_a_small_stage_only_where_none_is_allowed(max_dropped: float, allowed: int) -> None:
    counter = FaultCounter("pool", num_rows=10, max_dropped=max_dropped)
    counter.add(drop(n, DropReason.IMAGE_MISSING) for n in range(allowed))
    counter.check()
    counter.add([drop(allowed, DropReason.IMAGE_MISSING)])
    assert counter.exceeds_limit


def test_a_file_that_only_one_host_has_is_explained_by_both_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask(path: str) -> dict[str, bool]:
        asked.append(path)
        return {"one": True, "two": False}

    monkeypatch.setattr(faults, "_hosts_with", ask)
    counter = FaultCounter("pool", num_rows=2, max_dropped=0.0)
    counter.add([drop(0, DropReason.IMAGE_MISSING, "rows:0: /my data/0.png: No such file or directory")])
    with pytest.raises(StageError, match=r"the file is on one and not on two: all nodes must see"):
        counter.check()
    assert asked == ["/my data/0.png"]


# -- rows that are processed again -----------------------------------------------------------------------------------


def unit(number: int, reason: DropReason | None = None) -> Unit[Question]:
    if reason is not None:
        return Unit(id=f"q{number}", dropped=(drop(number, reason),))
    return Unit(id=f"q{number}", records=(factories.question(f"q{number}"),))


@pytest.fixture
def stage(tmp_path: Path) -> StageFolder:
    stage = StageFolder(tmp_path / "pool")
    stage.begin("settings", {})
    write_units(stage, Question, [unit(0), unit(1, DropReason.IMAGE_UNREACHABLE), unit(2, DropReason.TIE)])
    write_units(stage, Question, [unit(3, DropReason.IMAGE_MISSING)])
    return stage


def test_an_interrupted_stage_processes_rows_with_faults_again(stage: StageFolder) -> None:
    stage.begin("settings", {})
    assert stage.done_ids() == {"q0", "q2"}
    assert [question.id for question in stage.records(Question)] == ["q0"]
    write_units(stage, Question, [unit(1), unit(3)])
    manifest = stage.finish(seconds=0.0)
    assert (manifest.rows_in, manifest.rows_out, manifest.dropped) == (4, 3, {"tie": 1})


def test_a_complete_stage_processes_only_transient_faults_again(
    stage: StageFolder, caplog: pytest.LogCaptureFixture
) -> None:
    stage.finish(seconds=0.0)
    stage.begin("settings", {})
    assert stage.manifest() is None
    assert stage.done_ids() == {"q0", "q2", "q3"}
    assert "processed again" in caplog.text


@pytest.mark.parametrize("reader", ["responses", "round-1/critiques"])
def test_a_stage_whose_data_others_read_stays_as_it_is(stage: StageFolder, reader: str) -> None:
    manifest = stage.finish(seconds=0.0)
    StageFolder(stage.run_folder / reader).begin("settings", {"pool": manifest.data_hash})
    stage.begin("settings", {})
    assert stage.complete() == manifest


def test_a_complete_stage_without_transient_faults_stays_as_it_is(tmp_path: Path) -> None:
    stage = StageFolder(tmp_path / "pool")
    stage.begin("settings", {})
    write_units(stage, Question, [unit(0), unit(1, DropReason.IMAGE_MISSING)])
    manifest = stage.finish(seconds=0.0)
    stage.begin("settings", {})
    assert stage.complete() == manifest
