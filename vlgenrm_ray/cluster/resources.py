"""What a cluster has, and whether a run's stages fit on it."""

from collections.abc import Sequence
from dataclasses import dataclass

from vlgenrm_ray.errors import ResourceError


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceRequest:
    """What one pool of actors (or a task beside it) needs. Asks of one stage are needed at the same time."""

    stage: str
    role: str = "actor"
    count: int = 1
    """How many, each of which must find its place on one node."""
    num_cpus: float = 1.0
    num_gpus: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One machine of a cluster."""

    num_cpus: float
    num_gpus: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What a cluster has, in use or not."""

    nodes: tuple[Node, ...]
    grows: bool = False
    """Whether an autoscaler may add nodes; then nobody can say now that an ask will never be met."""

    @property
    def num_cpus(self) -> float:
        return sum(node.num_cpus for node in self.nodes)

    @property
    def num_gpus(self) -> float:
        return sum(node.num_gpus for node in self.nodes)

    def __str__(self) -> str:
        counted = f"{many(self.num_cpus, 'CPU')} and {many(self.num_gpus, 'GPU')} on {many(len(self.nodes), 'node')}"
        return f"{counted}{', and may grow' if self.grows else ''}"


def many(count: float, noun: str) -> str:
    """A number of things: "1 CPU", "2 nodes"."""
    return f"{count:g} {noun}{'' if count == 1 else 's'}"


def check_resources(asks: Sequence[ResourceRequest], cluster: Cluster) -> None:
    """Raise ResourceError if a stage could never start on this cluster, rather than let it wait for ever."""
    if problems := lacking(asks, cluster):
        raise ResourceError("\n".join(problems))


def lacking(asks: Sequence[ResourceRequest], cluster: Cluster) -> list[str]:
    """One line for each stage that cannot get what it asks for: stage, resource, asked, there, remedy."""
    if cluster.grows:
        return []
    stages = list(dict.fromkeys(ask.stage for ask in asks))
    found = (_lack(stage, [ask for ask in asks if ask.stage == stage], cluster) for stage in stages)
    return [line for line in found if line]


def _lack(stage: str, asks: Sequence[ResourceRequest], cluster: Cluster) -> str:
    """Place a stage's actors on the nodes, largest first; say which could not be placed."""
    cpus = [node.num_cpus for node in cluster.nodes]
    gpus = [node.num_gpus for node in cluster.nodes]
    for ask in sorted(asks, key=lambda ask: (ask.num_gpus, ask.num_cpus), reverse=True):
        for placed in range(ask.count):
            # Sums of shares such as 0.1 are off by a rounding error, which must not cost a place.
            fits = (i for i in range(len(cpus)) if ask.num_cpus <= cpus[i] + 1e-6 and ask.num_gpus <= gpus[i] + 1e-6)
            if (i := next(fits, None)) is None:
                return _explain(stage, ask, placed, asks, cluster)
            cpus[i] -= ask.num_cpus
            gpus[i] -= ask.num_gpus
    return ""


def _explain(stage: str, ask: ResourceRequest, placed: int, asks: Sequence[ResourceRequest], cluster: Cluster) -> str:
    total_cpus = sum(a.count * a.num_cpus for a in asks)
    total_gpus = sum(a.count * a.num_gpus for a in asks)
    gpus_lack = total_gpus > cluster.num_gpus or ask.num_gpus > max((n.num_gpus for n in cluster.nodes), default=0)
    name, each, total = ("GPU", ask.num_gpus, total_gpus) if gpus_lack else ("CPU", ask.num_cpus, total_cpus)
    if gpus_lack and not cluster.num_gpus:
        remedy = "take a recipe for CPUs (jobs/recipes/shapes.yaml) or a cluster with GPUs"
    else:
        remedy = f"ask for fewer actors or num_{name.lower()}s in section '{stage}' of the recipe, or add nodes"
    return (
        f"stage '{stage}': asks for {many(total, name)} at once ({each:g} for each of {many(ask.count, ask.role)}),"
        f" and the cluster has {cluster}: room for {placed} of {ask.count}; {remedy}"
    )
