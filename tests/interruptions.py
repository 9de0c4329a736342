"""Interruptions of a training at a given step."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from processes import below


@contextmanager
def once_steps_are_done(target: Path, steps: int, then: Callable[[], None]) -> Iterator[None]:
    """Call `then` from another thread when the metrics have that many lines; raise its errors here."""
    over = threading.Event()

    def watch() -> bool:
        path = target / "metrics.jsonl"
        while not over.wait(0.02):
            if path.exists() and len(path.read_text().splitlines()) >= steps:
                then()
                return True
        return False

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            yield
        finally:
            over.set()
        assert watching.result(), f"step {steps} was never reached"


def kill_a_worker() -> None:
    """Kill one training worker of Ray Train."""
    below("RayTrainWorker")[0].kill()
