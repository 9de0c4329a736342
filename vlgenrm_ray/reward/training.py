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
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlgenrm_ray.cluster import connection, resources
from vlgenrm_ray.cluster.resources import ResourceRequest
from vlgenrm_ray.cluster.worker_group import WorkerGroup, fit, steps_shown
from vlgenrm_ray.data.store import Manifest, StageFolder, Unit, read_json, units_table
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.deepspeed_config import worker_environment
from vlgenrm_ray.errors import InputError, StageError
from vlgenrm_ray.records import Checkpoint, Dropped
from vlgenrm_ray.reward.training_config import TrainingConfig
from vlgenrm_ray.reward.training_loop import TrainingJob, work
from vlgenrm_ray.settings import digest

__all__ = ["TrainingConfig", "TrainingResult", "run"]

_RAY = "ray"


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
            needs = ResourceRequest(
                stage="training", count=config.workers, num_cpus=config.num_cpus, num_gpus=config.num_gpus
            )
            resources.check_resources([needs], connection.survey())
            job.failure.unlink(missing_ok=True)
            _fit(job)
    except BaseException:
        folder.add_seconds(time.monotonic() - began)
        raise
    return _finish(folder, job, round, time.monotonic() - began)


def _fit(job: TrainingJob) -> None:
    config = job.config
    group = WorkerGroup(
        workers=config.workers,
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
        retries=config.retries,
        keep_checkpoints=config.keep_checkpoints,
        environment=worker_environment(config.num_cpus, gpu=config.num_gpus > 0),
    )
    with steps_shown("training", plan=job.plan, metrics=job.metrics):
        failure = fit(work, job, group, storage=job.target, name=_RAY)
    if job.failure.exists():
        told = read_json(job.failure)
        raise (InputError if told["kind"] == "InputError" else StageError)(told["message"]) from failure
    if failure is not None:
        raise StageError(f"stage 'training' failed {config.retries + 1} times, last of: {failure}") from failure
    if not job.result.exists():
        raise StageError(f"stage 'training' ended without a result in {job.target}; run again to finish it")


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
