"""Pipeline of a policy's training: question pools, judge service, training, curves. Resumable, as its parts are.

The policy may be a judge: its questions are then judge prompts, its rewards verify its critiques, and the exported
folders say which kind of judge they hold.

<run>/config.yaml          the resolved configuration
<run>/pool, heldout-pool   see store.py
<run>/policy               see policy/run.py; and curves.svg, the training curves
<run>/policy/benchmarks    results of the recipe's benchmarks, of the best policy
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from vlgenrm_ray import recipe
from vlgenrm_ray.config import ManagedJudgeService, PolicyRunConfig
from vlgenrm_ray.curation import pool
from vlgenrm_ray.curation.sources import judge_prompts
from vlgenrm_ray.curation.sources.judge_prompts import JUDGE_PROMPTS
from vlgenrm_ray.data import lease
from vlgenrm_ray.data.flow import ActorPoolConfig
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.engines import model_families, model_folder
from vlgenrm_ray.evaluation import benchmark_run
from vlgenrm_ray.evaluation.benchmarks.benchmark import BenchmarkRole
from vlgenrm_ray.evaluation.pairs import EvaluationConfig
from vlgenrm_ray.policy import run as policy
from vlgenrm_ray.report import curves
from vlgenrm_ray.serving.auth import ApiTokens


def run(config: PolicyRunConfig, folder: Path) -> dict[str, Any]:
    """Train the policy of a run, or finish its training, with the judge of the run served meanwhile if it has one.

    Args:
        config: Configuration of the run.
        folder: Run folder.

    Returns:
        The content of `policy/summary.json`.

    Raises:
        VlGenRMError: See `errors.py`.
    """
    service = nullcontext() if config.judge_service is None else served(config.judge_service, folder)
    with lease.hold(folder.absolute()), service:
        return train(config, folder)


def train(config: PolicyRunConfig, folder: Path) -> dict[str, Any]:
    """Train as `run` does, without starting the judge of the run: its rewards are served already."""
    folder = folder.absolute()
    recipe.claim(config, folder)
    tasks = benchmark_run.tasks_of(config.benchmarks)
    benchmark_run.check_tasks(tasks, BenchmarkRole.POLICY)
    base = model_folder.locate_for_run(config.base, folder)
    model_families.check_trainable(base)
    questions, held_out = StageFolder(folder / "pool"), StageFolder(folder / "heldout-pool")
    pool.run(config.pool, target=questions, seed=config.seed, max_dropped=config.max_dropped)
    pool.run(config.heldout, target=held_out, seed=config.seed, max_dropped=config.max_dropped)
    target = folder / "policy"
    summary = policy.run(
        config.policy,
        base=base,
        questions=questions,
        held_out=held_out,
        target=target,
    )
    if config.pool.source == JUDGE_PROMPTS:
        kind = judge_prompts.judge_of_run(Path(config.pool.path or ""), config.pool.options).kind or "pointwise"
        for name in ("model", "best"):
            model_folder.write_judge_kind(target / name, kind)
    if not (figure := target / "curves.svg").exists():
        curves.draw_curves({folder.name: [target]}, figure)
    if tasks:
        benchmark_run.measure_engine(
            tasks,
            _evaluation_config(config),
            judge=config.judge,
            model=target / "best",
            name="best policy",
            role=BenchmarkRole.POLICY,
            folder=target / "benchmarks",
        )
    return summary


def _evaluation_config(config: PolicyRunConfig) -> EvaluationConfig:
    """Return the settings with which the policy is measured on benchmarks: on engines like those of its rollouts."""
    rollouts = config.policy.rollouts
    actors = ActorPoolConfig(num_actors=rollouts.num_engines, num_cpus=rollouts.num_cpus, num_gpus=rollouts.num_gpus)
    return EvaluationConfig(engine=rollouts.engine, actors=actors, images=config.images)


@contextmanager
def served(service: ManagedJudgeService, run: Path, tokens: ApiTokens | None = None) -> Iterator[str]:
    """Serve the judge of a run on this machine while the context lasts; yield its address.

    A service that an earlier, killed attempt of the same run left behind is replaced.

    Args:
        service: Model, port and settings of the service.
        run: Run folder, from which the name of the service follows.
        tokens: Tokens that the service demands; None: it demands none and refuses model swaps.
    """
    from vlgenrm_ray.serving import launch

    name = f"{launch.NAME}-{hashlib.sha256(str(run.absolute()).encode()).hexdigest()[:8]}"
    config = service.serving_config(str(model_folder.locate_for_run(service.model, run)), tokens or ApiTokens())
    try:
        yield launch.start(config, host="127.0.0.1", port=service.port, name=name, replace=True)
    finally:
        launch.stop(name)
