"""Messages of Ray that reach a user's console, and those that do not."""

import os
import warnings
from typing import Any

import pytest

from vlgenrm_ray.cluster import connection, ray_compat

USELESS = (
    "Task ServeController.graceful_shutdown failed. There are infinite retries remaining, so the task will be retried."
)
USEFUL = "A worker died or was killed while executing a task: out of memory"


def test_messages_that_a_user_cannot_act_on_are_left_out_and_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import worker

    shown: list[list[str]] = []
    monkeypatch.setattr(worker, "print_to_stdstream", lambda data, ignore_prefix: shown.append(data["lines"]))
    ray_compat.filter_messages()
    ray_compat.filter_messages()
    for lines in ([USELESS], [USELESS, USEFUL], [USEFUL]):
        worker.print_to_stdstream({"lines": lines, "pid": "raylet", "is_err": False}, ignore_prefix=False)
    assert shown == [[USEFUL], [USEFUL]]


@pytest.mark.parametrize("level", [None, "warning"])
def test_only_the_log_of_the_driver_is_silenced(monkeypatch: pytest.MonkeyPatch, level: str | None) -> None:
    from ray._private import services

    started: list[Any] = []
    monkeypatch.setattr(services, "start_ray_process", lambda *args, env_updates=None: started.append(env_updates))
    monkeypatch.delenv("RAY_BACKEND_LOG_LEVEL", raising=False)
    if level:
        monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", level)
    ray_compat.silence_driver_log()
    services.start_ray_process(["raylet"], "raylet", env_updates={"A": "1"})
    assert started == [{"RAY_BACKEND_LOG_LEVEL": level or "info", "A": "1"}], "nodes of a local Ray log as usual"
    assert os.environ.pop("RAY_BACKEND_LOG_LEVEL") == (level or "fatal")


def fail_to_connect() -> None:
    os.write(2, b"[I] Set ray log level from environment variable RAY_BACKEND_LOG_LEVEL to 3\n")
    os.write(2, b"the disk is full\n")
    raise OSError("no cluster")


def test_only_the_notice_of_the_log_level_is_left_out_of_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OSError, match="no cluster"), ray_compat.without_log_notice():
        fail_to_connect()
    assert capfd.readouterr().err == "the disk is full\n"


def test_advice_of_ray_data_is_left_out() -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        connection._configure_ray_data(quiet=True)
        shown.clear()
        warnings.warn("The minimum number of concurrent actors for 'MapBatches' is set to 2", stacklevel=1)
        warnings.warn("`ray_remote_args` is deprecated and will be removed", DeprecationWarning, stacklevel=1)
        warnings.warn("the disk is nearly full", stacklevel=1)
    assert [str(warning.message) for warning in shown] == ["the disk is nearly full"]
