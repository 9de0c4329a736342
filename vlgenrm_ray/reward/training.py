"""Fine-tunes the judge on a round's examples.

Reads Example. Writes Checkpoint, and beside it:

    <target>/model/           the export: a plain Hugging Face folder, complete when it is there
    <target>/metrics.jsonl    one line per optimizer step
    <target>/probes.json      some rewards as the trained model gave them before it was exported
    <target>/ray/             Ray Train's checkpoints, removed once the stage is complete
    <target>/manifest.json    written last
"""

import importlib.metadata
import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlgenrm_ray import cluster
from vlgenrm_ray.cluster import Ask
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.deepspeed_config import worker_environment
from vlgenrm_ray.errors import InputError, StageError
from vlgenrm_ray.progress import Progress
from vlgenrm_ray.records import Checkpoint, Dropped
from vlgenrm_ray.reward.training_config import TrainingConfig
from vlgenrm_ray.reward.training_loop import TrainingJob, work
from vlgenrm_ray.settings import digest
from vlgenrm_ray.store import Manifest, StageFolder, Unit, read_json, units_table

__all__ = ["TrainingConfig", "TrainingResult", "run"]

_RAY = "ray"
_POLL_S = 0.5
_ABORT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """What a finished training left behind."""

    model: Path
    """The exported Hugging Face folder."""
    manifest: Manifest
    """Of the stage; `metrics` holds steps, losses, phases and counts."""

    @property
    def seconds(self) -> float:
        return self.manifest.seconds

    @property
    def report(self) -> dict[str, Any]:
        """Steps, losses, tokens, examples and dropped rows by reason."""
        return self.manifest.metrics


def run(config: TrainingConfig, *, base: Path, examples: StageFolder, target: Path, round: int) -> TrainingResult:
    """Train `base` on `examples` into `target`; a finished target is returned as it stands, a begun one goes on.

    Raises ConfigError for a target begun with other settings, InputError for an unusable base folder, ResourceError
    where the cluster lacks workers' resources, StageError where training itself fails.
    """
    model_folder.check(base)
    folder = StageFolder(target)
    folder.begin(
        digest([config.fingerprint(), round]), {"examples": examples.data_hash(), "base": model_folder.digest(base)}
    )
    job = TrainingJob(config=config, base=base.absolute(), examples=examples, target=folder.path)
    if (finished := folder.manifest()) is not None:
        return TrainingResult(model=job.model, manifest=finished)
    began = time.monotonic()
    try:
        if not job.result.exists():
            needs = Ask(stage="training", count=config.workers, num_cpus=config.num_cpus, num_gpus=config.num_gpus)
            cluster.check_resources([needs], cluster.survey())
            job.failure.unlink(missing_ok=True)
            _fit(job)
    except BaseException:
        folder.add_seconds(time.monotonic() - began)
        raise
    return _finish(folder, job, round, time.monotonic() - began)


def _fit(job: TrainingJob) -> None:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    config = job.config
    gpu = config.num_gpus > 0
    for name, value in _ray_train_settings().items():
        os.environ.setdefault(name, value)
    trainer = TorchTrainer(
        work,
        train_loop_config=job,
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": config.num_cpus} | ({"GPU": config.num_gpus} if gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            name=_RAY,
            storage_path=str(job.target),
            failure_config=ray.train.FailureConfig(max_failures=config.retries),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.keep_checkpoints),
            worker_runtime_env={"env_vars": worker_environment(config.num_cpus, gpu=gpu)},
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    failure: Exception | None = None
    with _shown(job), _interruptible(trainer):
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            failure = error
    if job.failure.exists():
        told = read_json(job.failure)
        raise (InputError if told["kind"] == "InputError" else StageError)(told["message"]) from failure
    if failure is not None:
        raise StageError(f"stage 'training' failed {config.retries + 1} times, last of: {failure}") from failure
    if not job.result.exists():
        raise StageError(f"stage 'training' ended without a result in {job.target}; run again to finish it")


def _ray_train_settings() -> dict[str, str]:
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
        settings["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    return settings


@contextmanager
def _interruptible(trainer: Any) -> Iterator[None]:
    """Let Ctrl-C end a trainer's workers and then raise KeyboardInterrupt.

    Left to itself, Ray Train answers Ctrl-C by exiting with 0, and keeps the signal when it is done. And an exception
    that a signal handler raises is lost where the handler happens to run inside a finaliser. So the handler itself
    ends the workers, which ends `fit`, and remembers that it did.
    """
    controllers: list[Any] = []
    trainer._register_sigint_handler = controllers.append
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
        ray.get(controller.abort.remote(), timeout=_ABORT_S)
    except (RayActorError, GetTimeoutError):
        return  # The controller ends its own process; there is nothing more to hear from it.


@contextmanager
def _shown(job: TrainingJob) -> Iterator[None]:
    """Progress of the workers, read from the metrics they write: the driver itself only waits."""
    over = threading.Event()

    def follow() -> None:
        while not job.plan.exists():
            if over.wait(_POLL_S):
                return
        with Progress("training", total=int(read_json(job.plan)["steps"])) as progress:
            last = False
            while not last:
                last = over.wait(_POLL_S)
                done = len(job.metrics.read_text().splitlines()) if job.metrics.exists() else 0
                progress.advance(max(0, done - progress.done))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _finish(folder: StageFolder, job: TrainingJob, round: int, seconds: float) -> TrainingResult:
    result = read_json(job.result)
    dropped = tuple(Dropped(**row) for row in result.pop("dropped"))
    steps = [json.loads(line) for line in job.metrics.read_text().splitlines()]
    losses = [step["loss"] for step in steps]
    tail = losses[-10:]
    metrics: dict[str, Any] = {
        **result,
        "num_tokens": sum(step["tokens"] for step in steps),
        "first_loss": losses[0],
        "last_loss": sum(tail) / len(tail),
        "num_dropped": len(dropped),
        "dropped": dict(Counter(d.reason for d in dropped)),
    }
    numbers = {k: float(metrics[k]) for k in ("steps", "num_examples", "first_loss", "last_loss")}
    record = Checkpoint(uri=str(job.model), round=round, parent=str(job.base), metrics=numbers)
    unit = Unit(id=f"round-{round}", records=(record,), dropped=dropped, num_tokens=metrics["num_tokens"])
    folder.write_shard(units_table(Checkpoint, [unit]))
    shutil.rmtree(folder.path / _RAY, ignore_errors=True)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "deepspeed", "ray")}
    manifest = folder.finish(seconds=seconds, metrics=metrics, versions=versions)
    return TrainingResult(model=job.model, manifest=manifest)
