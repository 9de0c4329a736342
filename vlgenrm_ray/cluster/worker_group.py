"""A group of workers on Ray Train: started, restarted from their checkpoints, shown, and ended by Ctrl-C."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vlgenrm_ray.cluster import ray_compat
from vlgenrm_ray.data.progress import Progress
from vlgenrm_ray.data.store import read_json

_Job = TypeVar("_Job")
_POLL_S = 0.5
_ABORT_S = 60.0
_COLLECTIVE_S = 7200
"""Longest that a worker waits for the others in a collective; what the first does alone meanwhile may take long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerGroup:
    """How many workers, with what."""

    workers: int
    num_cpus: int
    """CPUs of each."""
    num_gpus: float
    """GPUs of each."""
    retries: int
    """Times that a crashed group is started again."""
    keep_checkpoints: int
    environment: Mapping[str, str]


def fit(work: Callable[[_Job], None], job: _Job, group: WorkerGroup, *, storage: Path, name: str) -> Exception | None:
    """Have every worker of the group do `work(job)`; what the last attempt failed of, or None.

    Checkpoints lie in `storage`/`name`, from which a crashed group, or the next call, goes on.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = group.num_gpus > 0
    for variable, value in _settings().items():
        os.environ.setdefault(variable, value)
    trainer = TorchTrainer(
        work,
        train_loop_config=job,
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=_COLLECTIVE_S),
        scaling_config=ray.train.ScalingConfig(
            num_workers=group.workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": group.num_cpus} | ({"GPU": group.num_gpus} if gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=ray.train.FailureConfig(max_failures=group.retries),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=group.keep_checkpoints),
            worker_runtime_env={"env_vars": dict(group.environment)},
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    with _interruptible(trainer):
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            failure: Exception = error
            return failure
    return None


@contextmanager
def steps_shown(name: str, *, plan: Path, metrics: Path, news: Callable[[], Sequence[str]] = tuple) -> Iterator[None]:
    """Progress of workers, read from what they write: `steps` of the JSON file `plan`, and the lines of `metrics`.

    `plan` is of this attempt: an earlier one's is removed. `news`: texts to be shown beside it, asked for as it goes.
    """
    over = threading.Event()
    plan.unlink(missing_ok=True)

    def written() -> int:
        return len(metrics.read_text().splitlines()) if metrics.exists() else 0

    def follow() -> None:
        while not plan.exists():
            if over.wait(_POLL_S):
                return
        # What an earlier call did is no sign of how fast this one is.
        with Progress(name, total=int(read_json(plan)["steps"]), done=written()) as progress:
            last = False
            while not last:
                last = over.wait(_POLL_S)
                for text in news():
                    progress.say(text)
                progress.advance(max(0, written() - progress.done))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _settings() -> dict[str, str]:
    """Ray Train's own environment variables, for what has no argument; a user's values win."""
    import ray

    settings = {
        "RAY_TRAIN_V2_ENABLED": "1",
        # How often the controller looks at its workers, hence how long it takes to see that they are done.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        # Importing torch, transformers and DeepSpeed on a busy node takes longer than the minute it allows.
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
        "RAY_TRAIN_METRICS_ENABLED": "0",
    }
    if len(ray.nodes()) == 1:
        # An actor that watches for nodes being taken away; with the only node, it goes as well.
        settings |= ray_compat.NO_PREEMPTION_WATCHER
    return settings


@contextmanager
def _interruptible(trainer: Any) -> Iterator[None]:
    """Let Ctrl-C end a trainer's workers and then raise KeyboardInterrupt.

    Left to itself, Ray Train answers Ctrl-C by exiting with 0, and keeps the signal when it is done. And an exception
    that a signal handler raises is lost where the handler happens to run inside a finaliser. So the handler itself
    ends the workers, which ends `fit`, and remembers that it did.
    """
    controllers: list[Any] = []
    ray_compat.replace_sigint_handler(trainer, controllers.append)
    if threading.current_thread() is not threading.main_thread():
        yield  # Signals reach the main thread only.
        return
    interrupted = False

    def interrupt(number: int, frame: object) -> None:
        nonlocal interrupted
        again, interrupted = interrupted, True
        if not again:
            for controller in controllers:
                _abort(controller)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except Exception as error:
        if interrupted:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupted:
        raise KeyboardInterrupt


def _abort(controller: Any) -> None:
    """End a training's workers, so that their CPUs and GPUs are free at once."""
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError

    try:
        ray.get(ray_compat.abort_training(controller), timeout=_ABORT_S)
    except (RayActorError, GetTimeoutError):
        return  # The controller ends its own process; there is nothing more to hear from it.
