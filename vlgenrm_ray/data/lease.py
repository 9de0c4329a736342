"""Lease of a run folder: one driver at a time works on it.

The holder writes `lease.json` (host, process, last sign of life) and renews it while it works. A lease is taken over at
once if its process is known to be gone, and from another host after it was not renewed for a while. Two hosts whose
clocks disagree by more than that are not supported.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vlgenrm_ray.data.files import read_json, write_json
from vlgenrm_ray.errors import ConfigError, StageError

FILE_NAME = "lease.json"
RENEW_EVERY_S = 10.0
EXPIRES_AFTER_S = 60.0
"""Age from which a lease of another host counts as abandoned."""


@contextmanager
def hold(folder: Path, *, renew_every_s: float = RENEW_EVERY_S) -> Iterator[None]:
    """Hold the lease of a run folder while the context lasts. A process may hold a folder several times.

    Args:
        folder: Run folder; created if missing.
        renew_every_s: Seconds between signs of life.

    Raises:
        ConfigError: Another process works on the folder; the message names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAME
    owner = _own_identity()
    if _is_own(path, owner):
        yield
        return
    _acquire(path, owner)
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(renew_every_s):
            # A full disk or an unreachable share must not end the run; then the lease may expire for others.
            with suppress(OSError):
                write_json(path, owner | {"renewed_at": time.time()})

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if _is_own(path, owner):
            path.unlink(missing_ok=True)


def _acquire(path: Path, owner: Mapping[str, Any]) -> None:
    """Create the lease file, or replace an abandoned one. Raises ConfigError if it belongs to a live process."""
    content = dict(owner) | {"renewed_at": time.time()}
    claim = path.with_name(f".{path.name}.{owner['host']}.{owner['pid']}")
    write_json(claim, content)
    try:
        try:
            # A hard link fails if the name exists, on network file systems as well: exactly one driver wins.
            os.link(claim, path)
            return
        except FileExistsError:
            holder = _read_holder(path)
        except OSError:  # A file system without hard links.
            holder = _read_holder(path)
        if holder is not None and not _is_abandoned(holder):
            age = time.time() - holder["renewed_at"]
            raise ConfigError(
                f"{path.parent} is being worked on by process {holder['pid']} on {holder['host']} (last sign of life "
                f"{age:.0f} s ago); wait for it, stop it, or choose another run folder with --run"
            )
        os.replace(claim, path)
    finally:
        claim.unlink(missing_ok=True)
    # Two drivers may have replaced the same abandoned lease; the later one holds it.
    if not _is_own(path, owner):
        raise ConfigError(f"{path.parent} was taken over by another process; choose another run folder with --run")


def _own_identity() -> dict[str, Any]:
    """Identify this process. Its start time tells it from a later process with the same number."""
    import psutil

    return {"host": socket.gethostname(), "pid": os.getpid(), "started_at": psutil.Process().create_time()}


def _read_holder(path: Path) -> dict[str, Any] | None:
    """Return the content of the lease; None if it was released meanwhile, or is damaged and therefore abandoned."""
    try:
        holder = read_json(path)
    except (FileNotFoundError, StageError):
        return None
    return holder if {"host", "pid", "started_at", "renewed_at"} <= holder.keys() else None


def _is_own(path: Path, owner: Mapping[str, Any]) -> bool:
    holder = _read_holder(path)
    return holder is not None and all(holder[key] == owner[key] for key in owner)


def _is_abandoned(holder: Mapping[str, Any]) -> bool:
    import psutil

    if holder["host"] != socket.gethostname():
        return bool(time.time() - holder["renewed_at"] > EXPIRES_AFTER_S)
    try:
        return bool(psutil.Process(holder["pid"]).create_time() != holder["started_at"])
    except psutil.NoSuchProcess:
        return True
