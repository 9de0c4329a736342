"""What a run will do and what it asks for, before it does anything."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlgenrm_ray.cluster.resources import Cluster, ResourceRequest, lacking, many
from vlgenrm_ray.config import CoTrainingConfig, ManagedJudgeService, PolicyRunConfig, RunConfig
from vlgenrm_ray.data.flow import LIGHT_CPUS, LIGHT_TASKS, ActorPoolConfig
from vlgenrm_ray.policy import run as policy

if TYPE_CHECKING:
    from rich.table import Table


def asks(config: RunConfig) -> list[ResourceRequest]:
    """What each stage's actors need. Stages run one after another; pools of one stage run together.

    Beside a stage's actors there must be room for the tasks that bring them rows and write down what they made.
    """
    pools = [("responses", generator.actors) for generator in config.responses.generators]
    pools += [("experts", pool) for pool in config.experts.actor_pools()]
    if config.rounds.num_rounds:
        pools.append(("critiques", config.critiques.actors))
    pools.append(("evaluation", config.evaluation.actors))
    wanted = [_ask(stage, pool) for stage, pool in pools]
    wanted += [
        ResourceRequest(stage=stage, role="task", count=LIGHT_TASKS, num_cpus=LIGHT_CPUS) for stage in dict(pools)
    ]
    if config.rounds.num_rounds:
        training = config.training
        wanted.append(
            ResourceRequest(
                stage="training", count=training.workers, num_cpus=training.num_cpus, num_gpus=training.num_gpus
            )
        )
    return wanted


def policy_asks(config: PolicyRunConfig) -> list[ResourceRequest]:
    """What the training of a policy needs at the same time, its own service included."""
    own = [_served(policy.STAGE, config.judge_service)] if config.judge_service else []
    return [*policy.resource_requests(config.policy), *own]


def co_training_asks(config: CoTrainingConfig) -> list[ResourceRequest]:
    """List what the parts of an iteration need; after the first iteration, with the served judge."""
    rewarding = asks(config.reward)
    if config.iterations > 1:
        rewarding += [_served(stage, config.judge_service) for stage in dict.fromkeys(ask.stage for ask in rewarding)]
    return rewarding + policy_asks(config.policy.model_copy(update={"judge_service": config.judge_service}))


def _served(stage: str, own: ManagedJudgeService) -> ResourceRequest:
    serving = own.serving
    count = 1 if serving.replicas == "auto" else serving.replicas
    return ResourceRequest(
        stage=stage, role="served judge", count=count, num_cpus=serving.num_cpus, num_gpus=serving.num_gpus
    )


def _ask(stage: str, pool: ActorPoolConfig) -> ResourceRequest:
    return ResourceRequest(stage=stage, count=pool.num_actors, num_cpus=pool.num_cpus, num_gpus=pool.num_gpus)


def table(asked: Sequence[ResourceRequest], cluster: Cluster) -> "Table":
    """What is asked beside what is there, at most 80 columns wide."""
    from rich.table import Table

    drawn = Table(title=f"the cluster has {cluster}", title_style="bold", pad_edge=False)
    for name in ("stage", "at once", "CPUs each", "GPUs each", "fits"):
        drawn.add_column(name, justify="left" if name == "stage" else "right")
    for stage in dict.fromkeys(ask.stage for ask in asked):
        together = [ask for ask in asked if ask.stage == stage]
        fits = "no" if lacking(together, cluster) else "yes"
        for ask in together:
            drawn.add_row(stage, many(ask.count, ask.role), f"{ask.num_cpus:g}", f"{ask.num_gpus:g}", fits)
    return drawn
