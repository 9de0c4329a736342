"""Resources of a cluster, and the check that the stages of a run fit on it before anything starts."""

from collections.abc import Sequence
from dataclasses import dataclass

from vlgenrm_ray.errors import ResourceError

TASK = "task"
"""Role of the tasks that feed a stage's actors."""
_ROUNDING = 1e-6
"""Tolerance for the rounding error in sums of fractions such as 0.1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceRequest:
    """Resources of one group of equal actors or tasks. All requests of one stage are needed at the same time."""

    stage: str
    role: str = "actor"
    """Noun for messages: actor, task, worker, rollout engine, ..."""
    count: int = 1
    """Number of actors; each must fit on one node."""
    num_cpus: float = 1.0
    """CPUs of each."""
    num_gpus: float = 0.0
    """GPUs of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One machine of a cluster."""

    num_cpus: float
    num_gpus: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Total resources of a cluster, used or not."""

    nodes: tuple[Node, ...]
    can_grow: bool = False
    """True if an autoscaler may add nodes; a request that does not fit now may fit later."""
    largest: tuple[Node, ...] = ()
    """Nodes that an autoscaler may have started at once, those of now included; empty if it has no limit."""

    @property
    def num_cpus(self) -> float:
        return sum(node.num_cpus for node in self.nodes)

    @property
    def num_gpus(self) -> float:
        return sum(node.num_gpus for node in self.nodes)

    def __str__(self) -> str:
        gpus, nodes = count_noun(self.num_gpus, "GPU"), count_noun(len(self.nodes), "node")
        return f"{count_noun(self.num_cpus, 'CPU')} and {gpus} on {nodes}{', and may grow' if self.can_grow else ''}"


def count_noun(count: float, noun: str) -> str:
    """Format a number of things: "1 CPU", "2 nodes"."""
    return f"{count:g} {noun}{'' if count == 1 else 's'}"


def check_resources(requests: Sequence[ResourceRequest], cluster: Cluster) -> None:
    """Raise ResourceError if a stage could never start on the cluster; it would otherwise wait forever."""
    if problems := unmet_requests(requests, cluster):
        raise ResourceError("\n".join(problems))


def unmet_requests(requests: Sequence[ResourceRequest], cluster: Cluster) -> list[str]:
    """Return one line for each stage that does not fit: stage, resource, requested, available, remedy."""
    if cluster.can_grow:
        if not cluster.largest:
            return []
        cluster = Cluster(nodes=cluster.largest)
    stages = dict.fromkeys(request.stage for request in requests)
    problems = (_check_stage(stage, [r for r in requests if r.stage == stage], cluster) for stage in stages)
    return [problem for problem in problems if problem]


def _check_stage(stage: str, requests: Sequence[ResourceRequest], cluster: Cluster) -> str:
    """Place a stage's actors on the nodes, largest first. Return the problem, or "" if all are placed.

    Ray Data spreads the actors of a stage over the nodes, and starts its tasks beside them.
    """
    cpus = [node.num_cpus for node in cluster.nodes]
    gpus = [node.num_gpus for node in cluster.nodes]
    has_tasks = any(request.role == TASK for request in requests)
    for request in sorted(requests, key=lambda r: (r.role != TASK, r.num_gpus, r.num_cpus), reverse=True):
        for num_placed in range(request.count):
            fitting = [
                i
                for i in range(len(cpus))
                if request.num_cpus <= cpus[i] + _ROUNDING and request.num_gpus <= gpus[i] + _ROUNDING
            ]
            if not fitting:
                return _explain(stage, request, num_placed, requests, cluster)
            i = max(fitting, key=lambda i: (gpus[i], cpus[i])) if has_tasks else fitting[0]
            cpus[i] -= request.num_cpus
            gpus[i] -= request.num_gpus
    return ""


def _explain(
    stage: str, request: ResourceRequest, num_placed: int, requests: Sequence[ResourceRequest], cluster: Cluster
) -> str:
    total_cpus = sum(r.count * r.num_cpus for r in requests)
    total_gpus = sum(r.count * r.num_gpus for r in requests)
    largest_node = max((node.num_gpus for node in cluster.nodes), default=0)
    lacks_gpus = total_gpus > cluster.num_gpus or request.num_gpus > largest_node
    beside = " beside actors that are spread over the nodes" if request.role == TASK and len(cluster.nodes) > 1 else ""
    name, each, total = ("GPU", request.num_gpus, total_gpus) if lacks_gpus else ("CPU", request.num_cpus, total_cpus)
    if lacks_gpus and not cluster.num_gpus:
        remedy = "take a recipe for CPUs (jobs/recipes/shapes.yaml) or a cluster with GPUs"
    else:
        remedy = f"request fewer actors or num_{name.lower()}s in section '{stage}' of the recipe, or add nodes"
    return (
        f"stage '{stage}': requests {count_noun(total, name)} at once"
        f" ({each:g} for each of {count_noun(request.count, request.role)}{beside}), and the cluster has {cluster}:"
        f" room for {num_placed} of {request.count}; {remedy}"
    )
