"""Groups of training workers on Ray Train: start, restart from checkpoints, progress, and Ctrl-C."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vlgenrm_ray.cluster import ray_compat
from vlgenrm_ray.data.files import read_json
from vlgenrm_ray.data.progress import Progress

_Job = TypeVar("_Job")
_POLL_S = 0.5
_ABORT_TIMEOUT_S = 60.0
_COLLECTIVE_TIMEOUT_S = 7200
"""Longest time a worker waits for the others in a collective. Rank 0 may evaluate or export alone meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerGroup:
    """Size, resources and environment of a group of workers."""

    workers: int
    num_cpus: int
    """CPUs of each worker."""
    num_gpus: float
    """GPUs of each worker."""
    retries: int
    """Times a crashed group is restarted."""
    environment: Mapping[str, str]
    """Environment variables of each worker."""


def fit(work: Callable[[_Job], None], job: _Job, group: WorkerGroup, *, storage: Path, name: str) -> Exception | None:
    """Run `work(job)` in every worker of a group.

    Args:
        work: Training loop of one worker.
        job: Its argument, pickled to every worker.
        group: Size, resources and environment of the group.
        storage: Folder on a file system that all nodes share. A crashed group, or the next call, continues from the
            checkpoints in `storage`/`name`.
        name: Name of the training below `storage`.

    Returns:
        The failure of the last attempt, or None if the training finished.

    Raises:
        KeyboardInterrupt: On Ctrl-C, after the workers were stopped.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = group.num_gpus > 0
    for variable, value in _ray_train_environment().items():
        os.environ.setdefault(variable, value)
    trainer = TorchTrainer(
        work,
        train_loop_config=job,
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=_COLLECTIVE_TIMEOUT_S),
        scaling_config=ray.train.ScalingConfig(
            num_workers=group.workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": group.num_cpus} | ({"GPU": group.num_gpus} if gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=ray.train.FailureConfig(max_failures=group.retries),
            # A training resumes from the newest one.
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
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
def show_steps(
    name: str, *, plan: Path, metrics: Path, messages: Callable[[], Sequence[str]] = tuple
) -> Iterator[None]:
    """Show the progress of workers while the context lasts, read from the files they write.

    Args:
        name: Name of the progress bar.
        plan: JSON file whose key `steps` is the total. A file of an earlier attempt is removed.
        metrics: JSON Lines file with one line per finished step.
        messages: Returns new lines to show above the bar; called twice a second.
    """
    finished = threading.Event()
    plan.unlink(missing_ok=True)

    def steps_done() -> int:
        return len(metrics.read_text().splitlines()) if metrics.exists() else 0

    def follow() -> None:
        while not plan.exists():
            if finished.wait(_POLL_S):
                return
        # Steps of an earlier call say nothing about the speed of this one.
        with Progress(name, total=int(read_json(plan)["steps"]), done=steps_done()) as progress:
            last = False
            while not last:
                last = finished.wait(_POLL_S)
                for message in messages():
                    progress.print(message)
                progress.advance(max(0, steps_done() - progress.done))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _ray_train_environment() -> dict[str, str]:
    """Return Ray Train settings that only environment variables can change; a user's values take precedence."""
    import ray

    variables = {
        "RAY_TRAIN_V2_ENABLED": "1",
        # The controller polls its workers at this interval, hence learns this late that they are done.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        # Importing torch, transformers and DeepSpeed on a busy node takes longer than the default of one minute.
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
        "RAY_TRAIN_METRICS_ENABLED": "0",
    }
    if len(ray.nodes()) == 1:
        # If the only node is preempted, the watcher is gone as well.
        variables |= ray_compat.NO_PREEMPTION_WATCHER
    return variables


@contextmanager
def _interruptible(trainer: Any) -> Iterator[None]:
    """Make Ctrl-C stop a trainer's workers and then raise KeyboardInterrupt.

    Ray Train's own handler exits with status 0 and stays installed. An exception raised by a signal handler is lost if
    the handler happens to run inside a finaliser; hence this handler stops the workers, which ends `fit`, and records
    that it did.
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

    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except Exception as error:
        if interrupted:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, previous)
    if interrupted:
        raise KeyboardInterrupt


def _abort(controller: Any) -> None:
    """Stop a training's workers, so that their CPUs and GPUs are free at once."""
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError

    try:
        ray.get(ray_compat.abort_training(controller), timeout=_ABORT_TIMEOUT_S)
    except (RayActorError, GetTimeoutError):
        return  # The controller ends its own process while it aborts.
