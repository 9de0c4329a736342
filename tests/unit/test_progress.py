"""Progress of a stage: a bar on a terminal, lines in a log, with the time left at the pace of this call."""

import io

import pytest
from rich.console import Console

from vlgenrm_ray.data import progress
from vlgenrm_ray.data.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Times in seconds; the last one is now."""
    times = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: times[-1])
    return times


def test_the_time_left_follows_from_the_rows_of_this_call(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("policy", total=100, done=60) as counter:
        clock.append(20.0)
        counter.advance(10)
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first.split() == ["policy", "60/100", "0.0", "s"]
    assert second.split() == ["policy", "70/100", "20.0", "s,", "60", "s", "left"]


def test_a_log_gets_a_line_every_ten_seconds_at_most(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("policy", total=100) as counter:
        for second in range(1, 25):
            clock.append(float(second))
            counter.advance(1)
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["0/100", "10/100", "20/100", "24/100"]


def test_the_last_row_is_logged_once(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("policy", total=10) as counter:
        clock.append(20.0)
        counter.advance(10)
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["0/10", "10/10"]


def test_a_terminal_shows_messages_above_the_bar() -> None:
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=80, color_system=None)
    with Progress("policy", total=4, console=console) as counter:
        counter.advance(1)
        counter.print("one\ntwo [not markup]")
    output = terminal.getvalue()
    assert "1/4" in output
    assert output.index("one") < output.index("two [not markup]") < output.rindex("policy")


def test_a_log_shows_messages_on_lines_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("policy", total=4) as counter:
        counter.print("one")
    assert capsys.readouterr().err.splitlines()[1] == "one"
