"""The progress of a stage: a bar on a terminal, lines in a log; with the time left, by the pace of this call."""

import sys

import pytest

from vlgenrm_ray.data import progress
from vlgenrm_ray.data.progress import Progress


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time; its last entry is now."""
    passed = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: passed[-1])
    return passed


def test_time_left_is_by_what_was_done_in_this_call(seconds: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("policy", total=100, done=60) as shown:
        seconds.append(20.0)
        shown.advance(10)
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first.split() == ["policy", "60/100", "0.0", "s"]
    assert second.split() == ["policy", "70/100", "20.0", "s,", "60", "s", "left"]


def test_what_is_said_stands_above_the_bar(
    seconds: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress("policy", total=4) as shown:
        seconds.append(3.0)
        shown.advance(1)
        shown.say("one\ntwo")
    # As a terminal shows it: what follows a return takes the line's place.
    lines = [line.split("\r\x1b[K")[-1] for line in capsys.readouterr().err.split("\n")]
    assert lines[:2] == ["one", "two"]
    assert lines[2].startswith("[#####...............] policy             1/4    3.0 s, 9 s left")
    assert max(map(len, lines)) <= 80


def test_a_log_has_what_is_said_as_lines_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("policy", total=4) as shown:
        shown.say("one")
    assert capsys.readouterr().err.splitlines()[1] == "one"
