"""Interruptions of a training at a given step."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from processes import descendants


@contextmanager
def when_steps_are_done(target: Path, num_steps: int, action: Callable[[], None]) -> Iterator[None]:
    """Call `action` from another thread once `target/metrics.jsonl` has `num_steps` lines; raise its errors here."""
    stopped = threading.Event()

    def watch() -> bool:
        path = target / "metrics.jsonl"
        while not stopped.wait(0.02):
            if path.exists() and len(path.read_text().splitlines()) >= num_steps:
                action()
                return True
        return False

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(watch)
        try:
            yield
        finally:
            stopped.set()
        assert done.result(), f"step {num_steps} was not reached"


def kill_training_worker() -> None:
    """Kill a worker process of Ray Train."""
    descendants("RayTrainWorker")[0].kill()
