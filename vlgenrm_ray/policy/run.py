"""Training of a policy against its rewards, as a stage: reads Question, writes a model.

Below its folder:

    model/              the policy after the last step: a Hugging Face folder
    best/               the policy at its best held-out evaluation, likewise
    metrics.jsonl       one line per step
    evaluations.jsonl   one line per held-out evaluation
    best.json           the line of the evaluation at which best/ was exported
    decoding.jsonl      greedy against sampled held-out answers, at five evaluations from the first step to the last
    samples.jsonl       every `samples_every` steps a question, its answers, critiques and rewards
    tensorboard/        all of these for TensorBoard, unless `trackers` leaves it out
    summary.json        written last

`run` starts the rollout orchestrator and a group of training workers, which run `trainer.train_worker`.
"""

import logging
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from vlgenrm_ray import errors
from vlgenrm_ray.cluster import connection, resources
from vlgenrm_ray.cluster.resources import ResourceRequest
from vlgenrm_ray.cluster.worker_group import WorkerGroup, fit, show_steps
from vlgenrm_ray.data.files import read_json, write_json
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.deepspeed_config import worker_environment
from vlgenrm_ray.errors import StageError, VlGenRMError
from vlgenrm_ray.policy.config import PolicyConfig
from vlgenrm_ray.policy.orchestrator import OrchestratorConfig, start_orchestrator
from vlgenrm_ray.policy.run_logging import ConsoleReporter, RunPaths, read_lines
from vlgenrm_ray.policy.trainer import PolicyTrainerJob, train_worker
from vlgenrm_ray.rewards.config import RewardConfig
from vlgenrm_ray.rewards.function import check_function
from vlgenrm_ray.settings import digest

STAGE = "policy"
_RAY_FOLDER = "ray"
"""Folder of Ray Train's checkpoints."""
_REPORT_EVERY_S = 20.0
"""Seconds between messages about a start that takes long."""
_log = logging.getLogger(__name__)


def run(
    config: PolicyConfig, *, base: Path, questions: StageFolder, held_out: StageFolder, target: Path
) -> dict[str, Any]:
    """Train a policy, or continue its training. A finished training is returned unchanged.

    Args:
        config: Settings of the training.
        base: Model folder of the initial policy.
        questions: Folder of the questions to train on, visible to all nodes.
        held_out: Folder of the questions to evaluate on, visible to all nodes.
        target: Folder of the training, visible to all nodes.

    Returns:
        The content of `summary.json`.

    Raises:
        ConfigError: `target` was started with other settings or another model.
        ResourceError: The cluster lacks requested resources.
        RemoteError: A reward is unavailable.
        StageError: The training failed; the same call continues from the last checkpoint.
    """
    model_folder.check(base)
    summary_path = target / "summary.json"
    _claim_folder(config, base, target)
    if summary_path.exists():
        return read_json(summary_path)
    for function in filter(None, (config.evaluation.measure, *(reward.function for reward in config.rewards))):
        check_function(function)
    for judge in (reward.judge for reward in config.rewards if reward.judge is not None):
        judge.judge.of_pointwise_model(model_folder.locate(judge.engine.model))
    resources.check_resources(resource_requests(config), connection.describe_cluster())
    started = time.monotonic()
    # A fresh name: other runs have an orchestrator of their own, and that of an earlier call may not have ended yet.
    orchestrator = f"orchestrator-{uuid.uuid4().hex}"
    paths = RunPaths(target.absolute())
    job = PolicyTrainerJob(
        config=config,
        base=base.absolute(),
        paths=paths,
        questions=questions,
        held_out=held_out,
        orchestrator=orchestrator,
    )
    paths.failure.unlink(missing_ok=True)
    if not paths.result.exists():
        _train(job)
    result = read_json(paths.result)
    steps, evaluations = read_lines(paths.metrics), read_lines(paths.evaluations)
    summary = {
        "seed": config.seed,
        "steps": result["steps"],
        "stopped": result["stopped"],
        "seconds": round(time.monotonic() - started, 1),
        "first": evaluations[0],
        "last": evaluations[-1],
        "best": read_json(paths.best_evaluation),
        "decoding": read_lines(paths.decoding),
        "samples": sum(step["samples"] for step in steps),
        "failed": sum(step["failed"] for step in steps),
    }
    write_json(summary_path, summary)
    shutil.rmtree(target / _RAY_FOLDER, ignore_errors=True)
    return summary


def resource_requests(config: PolicyConfig) -> list[ResourceRequest]:
    """Return the resources that the training needs at the same time."""
    rollouts = config.rollouts
    judges = [reward.judge for reward in config.rewards if reward.judge is not None]
    requests = [
        ResourceRequest(
            stage=STAGE, role="worker", count=config.workers, num_cpus=config.num_cpus, num_gpus=config.num_gpus
        )
    ]
    if config.uses_engines:
        requests.append(
            ResourceRequest(
                stage=STAGE,
                role="rollout engine",
                count=rollouts.num_engines,
                num_cpus=rollouts.num_cpus,
                num_gpus=rollouts.num_gpus,
            )
        )
    requests += [
        ResourceRequest(stage=STAGE, role="judge", num_cpus=judge.num_cpus, num_gpus=judge.num_gpus) for judge in judges
    ]
    return requests


def _claim_folder(config: PolicyConfig, base: Path, target: Path) -> None:
    """Record settings and model of the training in its folder. Raises ConfigError if the folder has others."""
    fingerprint = {"config": digest([config.fingerprint()]), "base": model_folder.digest(base)}
    path = target / "begun.json"
    if path.exists() and read_json(path) != fingerprint:
        raise errors.ConfigError(
            f"{target} was started with other settings, another model or an older version; choose another run folder, "
            "or delete that one"
        )
    target.mkdir(parents=True, exist_ok=True)
    write_json(path, fingerprint)


def _train(job: PolicyTrainerJob) -> None:
    """Run orchestrator and workers until the training has ended."""
    config, paths = job.config, job.paths
    group = WorkerGroup(
        workers=config.workers,
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
        retries=config.retries,
        environment=worker_environment(config.num_cpus, gpu=config.num_gpus > 0),
    )
    with (
        _orchestrator(job) if config.uses_engines else nullcontext(),
        show_steps(STAGE, plan=paths.plan, metrics=paths.metrics, messages=ConsoleReporter(paths)),
    ):
        failure = fit(train_worker, job, group, storage=paths.folder, name=_RAY_FOLDER)
    if paths.failure.exists():
        error = read_json(paths.failure)
        kind = getattr(errors, error["kind"], StageError)
        raise (kind if issubclass(kind, VlGenRMError) else StageError)(error["message"]) from failure
    if failure is not None:
        raise StageError(f"stage 'policy' failed {config.retries + 1} times, last with: {failure}") from failure
    if not paths.result.exists():
        raise StageError(f"stage 'policy' ended without a result in {paths.folder}; run again to finish it")


@contextmanager
def _orchestrator(job: PolicyTrainerJob) -> Iterator[None]:
    """Run the rollout orchestrator of a training while the context lasts, with its engines and rewards ready."""
    import ray

    config = job.config
    actor = start_orchestrator(
        OrchestratorConfig(
            model=str(job.base),
            questions=job.questions,
            held_out=job.held_out,
            rollouts=config.rollouts,
            rewards=config.rewards,
            retry=config.reward_retry,
            algorithm=config.algorithm,
            questions_per_step=config.questions_per_step,
            seed=config.seed,
            images=config.images,
            num_samples=config.evaluation.num_samples,
            num_ablated=config.evaluation.num_image_ablations,
            sync=config.sync,
            backend=config.sync_backend(),
        ),
        job.orchestrator,
    )
    try:
        _wait_until_ready(actor, config.rewards)
        yield
    finally:
        ray.kill(actor)


def _wait_until_ready(actor: Any, rewards: Sequence[RewardConfig]) -> None:
    """Wait until engines and rewards are ready, and print a message at intervals. Raises the error of their start."""
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

    began, pending = time.monotonic(), actor.start.remote()
    names = ", ".join(reward.url or reward.handle or reward.name for reward in rewards) or "none"
    while True:
        try:
            ray.get(pending, timeout=_REPORT_EVERY_S)
            return
        except GetTimeoutError:
            waited = time.monotonic() - began
            _log.warning("waiting for the rollout engines and the reward (%s), for %.0f s so far", names, waited)
        except RayTaskError as error:
            raise error.cause from error
        except RayActorError as error:
            raise StageError(
                f"stage 'policy': the rollout orchestrator did not start: {connection.actor_death_cause(error)}"
            ) from error
