"""Resource requests of a recipe: the actors, workers and engines of each stage, compared with the cluster.

Stages run one after another, each with its actors alone: the GPUs of a run are those of its largest stage.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlgenrm_ray.cluster.resources import TASK, Cluster, ResourceRequest, count_noun, unmet_requests
from vlgenrm_ray.config import CoTrainingConfig, ManagedJudgeService, PolicyRunConfig, RunConfig
from vlgenrm_ray.data.flow import STREAM_CPUS, ActorPoolConfig
from vlgenrm_ray.engines import learner_memory
from vlgenrm_ray.engines.deepspeed_config import DeepSpeedConfig
from vlgenrm_ray.engines.vllm_config import VllmConfig
from vlgenrm_ray.errors import ConfigError, InputError
from vlgenrm_ray.policy import run as policy

if TYPE_CHECKING:
    from rich.table import Table


def reward_requests(config: RunConfig) -> list[ResourceRequest]:
    """Return the requests of a reward-model run. Stages run one after another, the pools of one stage together.

    Each stage also needs room on one node for the tasks that feed its actors and write their results.
    """
    streams = ["pool", "responses", "experts", "preferences", "heldout"]
    streams += ["critiques", "selection"] if config.rounds.num_rounds else []
    pools = [("responses", generator.actors) for generator in config.responses.generators]
    pools += [("experts", pool) for pool in config.experts.actor_pools()]
    if config.rounds.num_rounds:
        pools.append(("critiques", config.critiques.actors))
    pools.append(("evaluation", config.evaluation.actors))
    requests = [_pool_request(stage, pool) for stage, pool in pools]
    requests += [_stream_request(stage) for stage in (*streams, "evaluation")]
    if config.rounds.num_rounds:
        training = config.training
        requests.append(
            ResourceRequest(
                stage="training", count=training.workers, num_cpus=training.num_cpus, num_gpus=training.num_gpus
            )
        )
    return requests


def policy_requests(config: PolicyRunConfig) -> list[ResourceRequest]:
    """Return the requests of a policy's training, which are all needed at once, with its own judge service if any."""
    service = [_service_request(policy.STAGE, config.judge_service)] if config.judge_service else []
    return [*policy.resource_requests(config.policy), *service]


def co_training_requests(config: CoTrainingConfig) -> list[ResourceRequest]:
    """Return the requests of both runs of an iteration; from the second on, the judge is served during both."""
    requests = reward_requests(config.reward)
    if config.iterations > 1:
        stages = dict.fromkeys(request.stage for request in requests)
        requests += [_service_request(stage, config.judge_service) for stage in stages]
    return requests + policy_requests(config.policy.model_copy(update={"judge_service": config.judge_service}))


GPU_MEMORY_GB = 80.0
"""Memory of the GPUs that estimates are compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerPlan:
    """A training of a recipe, for the estimate of its memory."""

    name: str
    """Section of the recipe."""
    model: str
    engine: DeepSpeedConfig
    workers: int
    num_gpus: float
    """GPUs of each worker."""
    tokens_per_batch: int
    has_reference: bool = False


def reward_learners(config: RunConfig) -> list[LearnerPlan]:
    """Return the trainings of a reward-model run."""
    training = config.training
    if not config.rounds.num_rounds:
        return []
    return [
        LearnerPlan(
            name="training",
            model=config.base,
            engine=training.engine,
            workers=training.workers,
            num_gpus=training.num_gpus,
            tokens_per_batch=training.tokens_per_batch,
        )
    ]


def policy_learners(config: PolicyRunConfig) -> list[LearnerPlan]:
    """Return the trainings of a policy's run."""
    policy_config = config.policy
    return [
        LearnerPlan(
            name=policy.STAGE,
            model=config.base,
            engine=policy_config.engine,
            workers=policy_config.workers,
            num_gpus=policy_config.num_gpus,
            tokens_per_batch=policy_config.tokens_per_batch,
            has_reference=policy_config.algorithm.kl.coefficient > 0,
        )
    ]


def check_engines(config: RunConfig | PolicyRunConfig) -> None:
    """Raise ConfigError if an engine does not fit the GPUs of its actor.

    An engine spread over several GPUs needs an actor with as many. One on a part of a GPU must leave the others theirs:
    vLLM does not start if the memory of `gpu_memory_utilization` is not free.
    """
    engines = _reward_engines(config) if isinstance(config, RunConfig) else _policy_engines(config)
    problems = list[str]()
    for section, engine, resources, num_gpus in engines:
        size, memory = engine.tensor_parallel_size, engine.gpu_memory_utilization
        if size > 1 and size != num_gpus:
            problems.append(
                f"{section}.engine.tensor_parallel_size: {size}, and each actor has {num_gpus:g} GPUs; "
                f"set {resources}.num_gpus: {size}"
            )
        if 0 < num_gpus < 1 and memory > num_gpus:
            problems.append(
                f"{section}.engine.gpu_memory_utilization: {memory:g} of a GPU, and each actor has {num_gpus:g} of one "
                f"({resources}.num_gpus); set {section}.engine.gpu_memory_utilization: {0.9 * num_gpus:.2g} or less"
            )
    if problems:
        raise ConfigError("\n".join(problems))


def _reward_engines(config: RunConfig) -> Iterator[tuple[str, VllmConfig, str, float]]:
    """Yield section, engine, section of the resources, and GPUs of each actor."""
    for number, generator in enumerate(config.responses.generators):
        section = f"responses.generators.{number}"
        yield section, generator.engine, f"{section}.actors", generator.actors.num_gpus
    for name, stage in (("critiques", config.critiques), ("evaluation", config.evaluation)):
        yield name, stage.engine, f"{name}.actors", stage.actors.num_gpus
    yield "serving", config.serving.engine, "serving", config.serving.num_gpus


def _policy_engines(config: PolicyRunConfig) -> Iterator[tuple[str, VllmConfig, str, float]]:
    rollouts = config.policy.rollouts
    yield "policy.rollouts", rollouts.engine, "policy.rollouts", rollouts.num_gpus
    for number, reward in enumerate(config.policy.rewards):
        if reward.judge is not None:
            section = f"policy.rewards.{number}.judge"
            yield section, reward.judge.engine, section, reward.judge.num_gpus
    if config.judge_service is not None:
        serving = config.judge_service.serving
        yield "judge_service.serving", serving.engine, "judge_service.serving", serving.num_gpus


def memory_table(learner: LearnerPlan) -> "Table | str":
    """Return the memory of a training's worker for each ZeRO stage, as a table of at most 80 columns.

    Returns a line of text if the model's configuration cannot be read here.
    """
    from rich.table import Table

    if not learner_memory.is_local(learner.model):
        return f"{learner.name}: memory unknown, as {learner.model} is not downloaded yet"
    try:
        size = learner_memory.model_size(learner.model)
    except InputError as error:
        return f"{learner.name}: memory unknown: {error}"
    title = f"{learner.name}: {size.num_weights / 1e9:.2f} B weights on {count_noun(learner.workers, 'worker')}, "
    table = Table(title=f"{title}GB of each GPU (estimate)", title_style="bold", pad_edge=False)
    for name in ("ZeRO", "weights", "gradients", "optimizer", "activations", "in all", f"{GPU_MEMORY_GB:g} GB"):
        table.add_column(name, justify="right")
    estimates = learner_memory.stages(
        size,
        learner.engine,
        workers=learner.workers,
        tokens_per_batch=learner.tokens_per_batch,
        has_reference=learner.has_reference,
    )
    for stage, memory in estimates.items():
        parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.total)
        chosen = " *" if stage == learner.engine.zero_stage else ""
        fits = "fits" if memory.total <= GPU_MEMORY_GB else "no"
        table.add_row(f"{stage}{chosen}", *(f"{part:.1f}" for part in parts), fits)
    return table


def _service_request(stage: str, service: ManagedJudgeService) -> ResourceRequest:
    serving = service.serving
    count = 1 if serving.replicas == "auto" else serving.replicas
    return ResourceRequest(
        stage=stage, role="served judge", count=count, num_cpus=serving.num_cpus, num_gpus=serving.num_gpus
    )


def _stream_request(stage: str) -> ResourceRequest:
    return ResourceRequest(stage=stage, role=TASK, num_cpus=STREAM_CPUS)


def _pool_request(stage: str, pool: ActorPoolConfig) -> ResourceRequest:
    return ResourceRequest(stage=stage, count=pool.num_actors, num_cpus=pool.num_cpus, num_gpus=pool.num_gpus)


def request_table(requests: Sequence[ResourceRequest], cluster: Cluster) -> "Table":
    """Return the requests of each stage and whether they fit, as a table of at most 80 columns."""
    from rich.table import Table

    table = Table(title=f"the cluster has {cluster}", title_style="bold", pad_edge=False)
    for name in ("stage", "at once", "CPUs each", "GPUs each", "GPUs", "fits"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage in dict.fromkeys(request.stage for request in requests):
        of_stage = [request for request in requests if request.stage == stage]
        fits = "no" if unmet_requests(of_stage, cluster) else "yes"
        for request in of_stage:
            count = count_noun(request.count, request.role)
            gpus = f"{request.count * request.num_gpus:g}"
            table.add_row(stage, count, f"{request.num_cpus:g}", f"{request.num_gpus:g}", gpus, fits)
    return table


def peak_gpus(requests: Sequence[ResourceRequest]) -> dict[str, float]:
    """Return the GPUs that each stage uses at once."""
    stages = dict.fromkeys(request.stage for request in requests)
    return {stage: sum(r.count * r.num_gpus for r in requests if r.stage == stage) for stage in stages}
