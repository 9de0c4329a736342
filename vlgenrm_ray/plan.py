"""Resource requests of a recipe: the actors, workers and engines of each stage, compared with the cluster."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlgenrm_ray.cluster.resources import Cluster, ResourceRequest, count_noun, unmet_requests
from vlgenrm_ray.config import CoTrainingConfig, ManagedJudgeService, PolicyRunConfig, RunConfig
from vlgenrm_ray.data.flow import LIGHT_CPUS, LIGHT_TASKS, ActorPoolConfig
from vlgenrm_ray.policy import run as policy

if TYPE_CHECKING:
    from rich.table import Table


def reward_requests(config: RunConfig) -> list[ResourceRequest]:
    """Return the requests of a reward-model run. Stages run one after another, the pools of one stage together.

    Each stage also needs room for the light tasks that feed its actors and write their results.
    """
    pools = [("responses", generator.actors) for generator in config.responses.generators]
    pools += [("experts", pool) for pool in config.experts.actor_pools()]
    if config.rounds.num_rounds:
        pools.append(("critiques", config.critiques.actors))
    pools.append(("evaluation", config.evaluation.actors))
    requests = [_pool_request(stage, pool) for stage, pool in pools]
    requests += [
        ResourceRequest(stage=stage, role="task", count=LIGHT_TASKS, num_cpus=LIGHT_CPUS) for stage in dict(pools)
    ]
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


def _service_request(stage: str, service: ManagedJudgeService) -> ResourceRequest:
    serving = service.serving
    count = 1 if serving.replicas == "auto" else serving.replicas
    return ResourceRequest(
        stage=stage, role="served judge", count=count, num_cpus=serving.num_cpus, num_gpus=serving.num_gpus
    )


def _pool_request(stage: str, pool: ActorPoolConfig) -> ResourceRequest:
    return ResourceRequest(stage=stage, count=pool.num_actors, num_cpus=pool.num_cpus, num_gpus=pool.num_gpus)


def request_table(requests: Sequence[ResourceRequest], cluster: Cluster) -> "Table":
    """Return the requests of each stage and whether they fit, as a table of at most 80 columns."""
    from rich.table import Table

    table = Table(title=f"the cluster has {cluster}", title_style="bold", pad_edge=False)
    for name in ("stage", "at once", "CPUs each", "GPUs each", "fits"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage in dict.fromkeys(request.stage for request in requests):
        of_stage = [request for request in requests if request.stage == stage]
        fits = "no" if unmet_requests(of_stage, cluster) else "yes"
        for request in of_stage:
            count = count_noun(request.count, request.role)
            table.add_row(stage, count, f"{request.num_cpus:g}", f"{request.num_gpus:g}", fits)
    return table
