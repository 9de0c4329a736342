"""Training stage: fine-tunes the judge on a round's examples with Ray Train and DeepSpeed.

Reads Example, writes Checkpoint. The stage folder also holds:

    <target>/model/           the export: a plain Hugging Face folder, complete if it exists
    <target>/metrics.jsonl    one line per optimizer step
    <target>/probes.json      rewards of the trained model, recorded before the export
    <target>/examples.arrow   examples, which the workers map into memory; removed once the stage is complete
    <target>/ray/             Ray Train's checkpoints, removed once the stage is complete
    <target>/manifest.json    written last

The workers' code is in `training_loop.py`, the plan of the steps in `training_data.py`; `discriminative.py` trains on
preference pairs instead of completions.
"""

import importlib.metadata
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlgenrm_ray.cluster import connection, resources
from vlgenrm_ray.cluster.resources import ResourceRequest
from vlgenrm_ray.cluster.worker_group import WorkerGroup, fit, show_steps
from vlgenrm_ray.data.faults import MAX_DROPPED
from vlgenrm_ray.data.files import read_json
from vlgenrm_ray.data.store import Manifest, StageFolder, Unit, units_table
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.deepspeed_config import worker_environment
from vlgenrm_ray.errors import InputError, StageError
from vlgenrm_ray.judge import prompts
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.records import Checkpoint, Dropped
from vlgenrm_ray.reward.discriminative import train_discriminative_worker
from vlgenrm_ray.reward.training_config import TrainingConfig
from vlgenrm_ray.reward.training_loop import TrainingJob, train_worker
from vlgenrm_ray.settings import digest

__all__ = ["TrainingConfig", "TrainingResult", "run"]

_RAY = "ray"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """Model and manifest of a finished training."""

    model: Path
    """Exported Hugging Face folder."""
    manifest: Manifest

    @property
    def seconds(self) -> float:
        """Working time, summed over interrupted attempts."""
        return self.manifest.seconds

    @property
    def metrics(self) -> dict[str, Any]:
        """Steps, losses, phases, tokens, examples, and dropped examples by reason."""
        return self.manifest.metrics


def run(
    config: TrainingConfig,
    *,
    base: Path,
    examples: StageFolder,
    target: Path,
    round: int,
    judge: JudgeConfig | None = None,
    max_dropped: float = MAX_DROPPED,
) -> TrainingResult:
    """Train `base` on `examples`. A finished `target` is returned unchanged, a partial one is continued.

    Args:
        config: Settings of the stage.
        base: Model folder to start from.
        examples: Complete selection stage; with the objective `bradley_terry` a complete stage of preferences.
        target: Folder of this stage.
        round: Round number, recorded in the checkpoint.
        judge: Judge to train. Its kind is recorded in the exported folder; a discriminative one is trained with its
            direct prompt. Default: a pointwise judge.
        max_dropped: Largest share of examples that may be dropped because of a fault.

    Raises:
        ConfigError: `target` was made with other settings.
        InputError: `base` is no usable model folder.
        ResourceError: The cluster lacks the workers' resources.
        StageError: The training itself fails, or too many examples met a fault.
    """
    model_folder.check(base)
    folder = StageFolder(target)
    judge = judge or JudgeConfig(kind="discriminative" if config.objective == "bradley_terry" else "pointwise")
    settings = [config.fingerprint(), round]
    if config.objective == "bradley_terry":
        settings += [judge.thinking, prompts.load(judge.verdict_prompt)]
    folder.begin(digest(settings), {"examples": examples.data_hash(), "base": model_folder.digest(base)})
    job = TrainingJob(
        config=config,
        base=base.absolute(),
        examples=examples,
        target=folder.path,
        judge=judge,
        max_dropped=max_dropped,
    )
    if (manifest := folder.manifest()) is not None:
        return TrainingResult(model=job.model, manifest=manifest)
    started_at = time.monotonic()
    try:
        if not job.result.exists():
            request = ResourceRequest(
                stage="training", count=config.workers, num_cpus=config.num_cpus, num_gpus=config.num_gpus
            )
            resources.check_resources([request], connection.describe_cluster())
            job.failure.unlink(missing_ok=True)
            _run_workers(job)
    except BaseException:
        folder.add_seconds(time.monotonic() - started_at)
        raise
    return _finish(folder, job, round, time.monotonic() - started_at)


def parent_name(base: Path, run: Path) -> str:
    """Name the model that a training starts from, for `Checkpoint.parent`."""
    if base.is_relative_to(run):
        return str(base.relative_to(run))
    return f"{base.name}@{model_folder.digest(base)}"


def _run_workers(job: TrainingJob) -> None:
    config = job.config
    group = WorkerGroup(
        workers=config.workers,
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
        retries=config.retries,
        environment=worker_environment(config.num_cpus, gpu=config.num_gpus > 0),
    )
    worker = train_discriminative_worker if config.objective == "bradley_terry" else train_worker
    with show_steps("training", plan=job.plan, metrics=job.metrics, messages=_message_reader(job.messages)):
        error = fit(worker, job, group, storage=job.target, name=_RAY)
    if job.failure.exists():
        failure = read_json(job.failure)
        raise (InputError if failure["kind"] == "InputError" else StageError)(failure["message"]) from error
    if error is not None:
        raise StageError(f"stage 'training' failed {config.retries + 1} times; last error: {error}") from error
    if not job.result.exists():
        raise StageError(f"stage 'training' ended without a result in {job.target}; run again to finish it")


def _message_reader(path: Path) -> Callable[[], Sequence[str]]:
    """Return a function that returns the lines which were added to a file since its last call."""

    def read_lines() -> list[str]:
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    num_read = len(read_lines())

    def new_lines() -> Sequence[str]:
        nonlocal num_read
        lines = read_lines()[num_read:]
        num_read += len(lines)
        return lines

    return new_lines


def _finish(folder: StageFolder, job: TrainingJob, round: int, seconds: float) -> TrainingResult:
    result = read_json(job.result)
    dropped = tuple(Dropped(**row) for row in result.pop("dropped"))
    steps = [json.loads(line) for line in job.metrics.read_text().splitlines()]
    losses = [step["loss"] for step in steps]
    last_losses = losses[-10:]
    metrics: dict[str, Any] = {
        **result,
        "num_tokens": sum(step["tokens"] for step in steps),
        "first_loss": losses[0],
        "last_loss": sum(last_losses) / len(last_losses),
        "num_dropped": len(dropped),
        "dropped": dict(Counter(d.reason for d in dropped)),
    }
    checkpoint_metrics = {k: float(metrics[k]) for k in ("steps", "num_examples", "first_loss", "last_loss")}
    checkpoint = Checkpoint(
        uri=str(job.model), round=round, parent=parent_name(job.base, folder.run_folder), metrics=checkpoint_metrics
    )
    unit = Unit(id=f"round-{round}", records=(checkpoint,), dropped=dropped, num_tokens=metrics["num_tokens"])
    folder.write_shard(units_table(Checkpoint, [unit]))
    shutil.rmtree(folder.path / _RAY, ignore_errors=True)
    job.mapped_examples.unlink(missing_ok=True)
    model_folder.write_judge_kind(job.model, job.judge.kind or "pointwise")
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "deepspeed", "ray")}
    manifest = folder.finish(seconds=seconds, metrics=metrics, versions=versions)
    return TrainingResult(model=job.model, manifest=manifest)
