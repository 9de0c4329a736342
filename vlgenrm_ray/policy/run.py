"""Trains a policy against its rewards.

Reads Question. Writes, below its folder:

    model/              the policy after the last step: a plain Hugging Face folder
    best/               the policy at its best held-out evaluation, likewise
    metrics.jsonl       one line per step
    evaluations.jsonl   one line per held-out evaluation
    best.json           the line of the evaluation that best/ was exported at
    samples.jsonl       now and then a question, its answers, critiques and rewards
    tensorboard/        all of these for TensorBoard, unless `trackers` leaves it out
    summary.json        written last
"""

import logging
import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlgenrm_ray import errors
from vlgenrm_ray.cluster import connection, resources
from vlgenrm_ray.cluster.resources import ResourceRequest
from vlgenrm_ray.cluster.worker_group import WorkerGroup, fit, steps_shown
from vlgenrm_ray.data.store import StageFolder, read_json, write_json
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.deepspeed_config import worker_environment
from vlgenrm_ray.errors import StageError, VlGenRMError
from vlgenrm_ray.policy import collector, function_reward
from vlgenrm_ray.policy.collector import CollectorJob
from vlgenrm_ray.policy.job import PolicyJob
from vlgenrm_ray.policy.news import News
from vlgenrm_ray.policy.reward import RewardConfig
from vlgenrm_ray.policy.run_logging import read_lines
from vlgenrm_ray.policy.trainer import work
from vlgenrm_ray.policy.training_config import PolicyConfig
from vlgenrm_ray.settings import digest

STAGE = "policy"
_RAY = "ray"
_TELL_S = 20.0
_log = logging.getLogger(__name__)


def run(
    config: PolicyConfig, *, base: Path, questions: StageFolder, held_out: StageFolder, target: Path
) -> dict[str, Any]:
    """Train `base`, or go on with it; what `summary.json` holds. A finished target is returned as it stands.

    `questions` to learn from, `held_out` ones to measure by: folders that all nodes see.

    Raises ConfigError for a target begun with other settings, ResourceError where the cluster lacks what is asked for,
    RemoteError where the reward cannot be had, StageError where training itself fails; the same call then goes on from
    the last checkpoint.
    """
    model_folder.check(base)
    summary = target / "summary.json"
    _begin(config, base, target)
    if summary.exists():
        return read_json(summary)
    for function in filter(None, (config.evaluation.measure, *(one.function for one in config.rewards))):
        function_reward.load(function)
    for judge in (one.judge for one in config.rewards if one.judge is not None):
        model_folder.locate(judge.engine.model)
    resources.check_resources(asks(config), connection.survey())
    began = time.monotonic()
    # Of this call alone: another run on the cluster has its own, and one that this run had before may not be over yet.
    name = f"collector-{uuid.uuid4().hex}"
    job = PolicyJob(config=config, base=base.absolute(), target=target.absolute(), collector=name)
    job.failure.unlink(missing_ok=True)
    if not job.result.exists():
        _train(job, questions, held_out)
    done = read_json(job.result)
    steps, evaluations = read_lines(job.metrics), read_lines(job.evaluations)
    found = {
        "seed": config.seed,
        "steps": done["steps"],
        "stopped": done["stopped"],
        "seconds": round(time.monotonic() - began, 1),
        "first": evaluations[0],
        "last": evaluations[-1],
        "best": read_json(job.best_evaluation),
        "samples": sum(step["samples"] for step in steps),
        "failed": sum(step["failed"] for step in steps),
    }
    write_json(summary, found)
    shutil.rmtree(target / _RAY, ignore_errors=True)
    return found


def asks(config: PolicyConfig) -> list[ResourceRequest]:
    """What the training needs at the same time."""
    rollouts = config.rollouts
    judges = [one.judge for one in config.rewards if one.judge is not None]
    return [
        ResourceRequest(
            stage=STAGE, role="worker", count=config.workers, num_cpus=config.num_cpus, num_gpus=config.num_gpus
        ),
        ResourceRequest(
            stage=STAGE,
            role="rollout engine",
            count=rollouts.actors,
            num_cpus=rollouts.num_cpus,
            num_gpus=rollouts.num_gpus,
        ),
        *(
            ResourceRequest(stage=STAGE, role="judge", num_cpus=judge.num_cpus, num_gpus=judge.num_gpus)
            for judge in judges
        ),
    ]


def _begin(config: PolicyConfig, base: Path, target: Path) -> None:
    """Claim the folder. Raises ConfigError where it is another training's."""
    fingerprint = {"config": digest([config.fingerprint()]), "base": model_folder.digest(base)}
    path = target / "begun.json"
    if path.exists() and read_json(path) != fingerprint:
        raise errors.ConfigError(
            f"{target} was begun with other settings or another model; choose another run folder, or delete that one"
        )
    target.mkdir(parents=True, exist_ok=True)
    write_json(path, fingerprint)


def _train(job: PolicyJob, questions: StageFolder, held_out: StageFolder) -> None:
    import ray

    config = job.config
    actor = collector.start(
        CollectorJob(
            model=str(job.base),
            questions=questions,
            held_out=held_out,
            rollouts=config.rollouts,
            rewards=config.rewards,
            patience=config.patience,
            algorithm=config.algorithm,
            questions_per_step=config.questions_per_step,
            seed=config.seed,
            images=config.images,
            blank=config.evaluation.blank,
            sync=config.sync,
            way=config.way(),
        ),
        job.collector,
    )
    group = WorkerGroup(
        workers=config.workers,
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
        retries=config.retries,
        keep_checkpoints=config.keep_checkpoints,
        environment=worker_environment(config.num_cpus, gpu=config.num_gpus > 0),
    )
    try:
        _ready(actor, config.rewards)
        with steps_shown(STAGE, plan=job.plan, metrics=job.metrics, news=News(job)):
            failure = fit(work, job, group, storage=job.target, name=_RAY)
    finally:
        ray.kill(actor)
    if job.failure.exists():
        told = read_json(job.failure)
        kind = getattr(errors, told["kind"], StageError)
        raise (kind if issubclass(kind, VlGenRMError) else StageError)(told["message"]) from failure
    if failure is not None:
        raise StageError(f"stage 'policy' failed {config.retries + 1} times, last of: {failure}") from failure
    if not job.result.exists():
        raise StageError(f"stage 'policy' ended without a result in {job.target}; run again to finish it")


def _ready(actor: Any, rewards: Sequence[RewardConfig]) -> None:
    """Wait for engines and reward, and say so. Raises what keeps them from coming."""
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

    began, started = time.monotonic(), actor.start.remote()
    named = ", ".join(one.url or one.handle or one.name for one in rewards)
    while True:
        try:
            ray.get(started, timeout=_TELL_S)
            return
        except GetTimeoutError:
            waited = time.monotonic() - began
            _log.warning("waiting for the rollout engines and the reward (%s), for %.0f s so far", named, waited)
        except RayTaskError as error:
            raise error.cause from error
        except RayActorError as error:
            raise StageError(f"stage 'policy': the collector did not start: {connection.why_died(error)}") from error
