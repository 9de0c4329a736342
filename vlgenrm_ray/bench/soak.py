"""The service at full load for a long time: does its memory stay flat?"""

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import psutil

from vlgenrm_ray.bench import load
from vlgenrm_ray.bench.dialects import Wire
from vlgenrm_ray.bench.figures import slope
from vlgenrm_ray.bench.work import Piece
from vlgenrm_ray.errors import StageError

_MIB = 1 << 20
_EVERY_S = 1.0
_SETTLING = 0.5
"""Share of the time at the beginning that does not count: caches fill up to their bounds, and heaps to what batches of
all shapes need."""
_PARTS = {"ingress": "ServeReplica:vlgenrm:ingress", "engine": "EngineCore"}


def soak(
    url: str, pid: int, wire: Wire, pieces: Sequence[Piece], *, seconds: float, concurrency: int
) -> dict[str, Any]:
    """Rise of the resident memory of each part of the service, MiB a minute, with its 95 % interval; and scores/s.

    Every request is new to the cache, by its seed. `pid`: of the process that all of the service descends from.
    """
    watcher = Watcher(pid)
    end = time.monotonic() + seconds

    def requests() -> Iterator[load.Asked]:
        for number in itertools.count():
            if time.monotonic() >= end:
                return
            yield wire.request(pieces[number % len(pieces)], seed=number)

    begin = time.monotonic()
    watcher.start()
    try:
        count = load.keep_up(url, requests(), concurrency=concurrency)
    finally:
        watcher.stop()
    spent = time.monotonic() - begin
    return {"seconds": round(spent, 1), "scores": count, "scores_per_s": round(count / spent, 2)} | watcher.figures()


class Watcher:
    """Resident memory of the service's processes, once a second."""

    def __init__(self, pid: int) -> None:
        """Raises StageError for a part that is not there."""
        children = psutil.Process(pid).children(recursive=True)
        named = {name: [p for p in children if mark in _command(p)] for name, mark in _PARTS.items()}
        if missing := [name for name, found in named.items() if not found]:
            raise StageError(f"soak: no process of the service's {', '.join(missing)} is there to be watched")
        self._processes = named
        self._times: list[float] = []
        self._sizes: dict[str, list[float]] = {name: [] for name in self._processes}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join()

    def figures(self) -> dict[str, Any]:
        """Of each part: MiB at the end, and its rise."""
        skipped = int(len(self._times) * _SETTLING)
        minutes = [t / 60 for t in self._times[skipped:]]
        if len(minutes) < 3:
            return {"memory": {}}
        return {
            "memory": {
                name: {
                    "mib": round(sizes[-1], 1),
                    "mib_per_min": {k: round(v, 3) for k, v in asdict(slope(minutes, sizes[skipped:])).items()},
                }
                for name, sizes in self._sizes.items()
            }
        }

    def _watch(self) -> None:
        while not self._over.wait(_EVERY_S):
            sizes = {name: sum(p.memory_info().rss for p in found) for name, found in self._processes.items()}
            self._times.append(time.monotonic())
            for name, size in sizes.items():
                self._sizes[name].append(size / _MIB)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
