"""Lease of a run folder: one driver at a time, and none is locked out by a dead one."""

import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from vlgenrm_ray.data import lease
from vlgenrm_ray.data.files import read_json, write_json
from vlgenrm_ray.errors import ConfigError


def hold_until_told(folder: Path, pipe: Connection) -> None:
    try:
        with lease.hold(folder):
            pipe.send("held")
            pipe.recv()
    except ConfigError as error:
        pipe.send(str(error))


def start_holder(folder: Path) -> tuple[Any, Connection]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=hold_until_told, args=(folder, there))
    process.start()
    return process, here


def test_a_folder_is_held_by_one_process_and_released(tmp_path: Path) -> None:
    with lease.hold(tmp_path):
        process, pipe = start_holder(tmp_path)
        message = pipe.recv()
        process.join()
        assert f"process {os.getpid()} on " in message
        assert "--run" in message
    assert not list(tmp_path.iterdir())
    process, pipe = start_holder(tmp_path)
    assert pipe.recv() == "held"
    pipe.send("end")
    process.join()


def test_the_lease_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    process, pipe = start_holder(tmp_path)
    assert pipe.recv() == "held"
    with pytest.raises(ConfigError, match=f"process {process.pid}"), lease.hold(tmp_path):
        pass
    process.kill()
    process.join()
    with lease.hold(tmp_path):
        assert read_json(tmp_path / lease.FILE_NAME)["pid"] == os.getpid()


def test_a_process_may_hold_a_folder_twice(tmp_path: Path) -> None:
    with lease.hold(tmp_path):
        with lease.hold(tmp_path):
            pass
        assert (tmp_path / lease.FILE_NAME).exists(), "the inner use must not release it"


@pytest.mark.parametrize(("age_s", "is_free"), [(5.0, False), (lease.EXPIRES_AFTER_S + 5.0, True)])
def test_the_lease_of_another_host_expires(tmp_path: Path, age_s: float, is_free: bool) -> None:
    other = {"host": "elsewhere", "pid": 1, "started_at": 0.0, "renewed_at": time.time() - age_s}
    write_json(tmp_path / lease.FILE_NAME, other)
    if is_free:
        with lease.hold(tmp_path):
            pass
    else:
        with pytest.raises(ConfigError, match="elsewhere"), lease.hold(tmp_path):
            pass


def test_a_number_given_to_another_process_does_not_lock(tmp_path: Path) -> None:
    with lease.hold(tmp_path):
        holder = read_json(tmp_path / lease.FILE_NAME)
    write_json(tmp_path / lease.FILE_NAME, holder | {"started_at": holder["started_at"] - 100.0})
    with lease.hold(tmp_path):
        pass


def test_a_lease_is_renewed(tmp_path: Path) -> None:
    with lease.hold(tmp_path, renew_every_s=0.05):
        first = read_json(tmp_path / lease.FILE_NAME)["renewed_at"]
        deadline = time.monotonic() + 30
        while read_json(tmp_path / lease.FILE_NAME)["renewed_at"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_damaged_lease_does_not_lock(tmp_path: Path) -> None:
    (tmp_path / lease.FILE_NAME).write_text('{"host')
    with lease.hold(tmp_path):
        pass
