"""Watch over what waits for resources: tasks, actors and groups that no node can take are named on the console.

`resources.check_resources` refuses a recipe that can never fit. What it cannot foresee is watched here: resources that
other jobs hold, nodes that were lost, and requests that fit on the cluster as a whole but on no single node.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vlgenrm_ray.cluster import ray_compat
from vlgenrm_ray.cluster.resources import count_noun

_POLL_S = 10.0
WAITING_S = 60.0
"""Seconds after which something that waits is reported."""
_REPEAT_S = 600.0
"""Seconds between two reports of the same request."""
_SHOWN_RESOURCES = ("CPU", "GPU")
_MAX_NODES = 8
"""Nodes that a message lists at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Something that waits for resources."""

    id: str
    kind: str
    """task, actor or placement group."""
    name: str
    resources: Mapping[str, float]
    """Requested resources; those of one bundle for a placement group."""
    since: float
    """Seconds of the epoch."""
    num_bundles: int = 1

    def needs(self) -> str:
        """Format the requested resources."""
        text = " and ".join(count_noun(amount, name) for name, amount in self.resources.items() if amount) or "0 CPUs"
        return f"{text} on each of {self.num_bundles} places" if self.num_bundles > 1 else text


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeNode:
    """Resources of a node that nothing uses."""

    host: str
    resources: Mapping[str, tuple[float, float]]
    """Resource -> (free, total)."""

    def __str__(self) -> str:
        shown = [(n, *self.resources[n]) for n in _SHOWN_RESOURCES if self.resources.get(n, (0, 0))[1]]
        parts = (f"{free:g} of {count_noun(total, name)}" for name, free, total in shown)
        return f"{self.host} {', '.join(parts) or 'no CPU and no GPU'}"


class SchedulingMonitor:
    """Thread that reports what has waited for resources for a minute, once, and again every ten minutes."""

    def __init__(
        self,
        list_waiting: Callable[[], Sequence[Waiting]],
        list_nodes: Callable[[], Sequence[FreeNode]],
        report: Callable[[str], None],
        *,
        waiting_s: float = WAITING_S,
    ) -> None:
        """Create a monitor.

        Args:
            list_waiting: Returns what waits for resources now.
            list_nodes: Returns the free resources of each node.
            report: Shows a message.
            waiting_s: Seconds after which something is reported.
        """
        self._list_waiting = list_waiting
        self._list_nodes = list_nodes
        self._report = report
        self._waiting_s = waiting_s
        self._reported_at: dict[tuple[str, str], float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="scheduling monitor")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def check(self, now: float) -> None:
        """Report what has waited for too long at time `now`, in seconds of the epoch."""
        late = [item for item in self._list_waiting() if now - item.since >= self._waiting_s]
        new: dict[tuple[str, str], list[Waiting]] = {}
        for item in late:
            key = (item.name, item.needs())
            if now - self._reported_at.get(key, -_REPEAT_S) >= _REPEAT_S:
                new.setdefault(key, []).append(item)
        if not new:
            return
        nodes = [str(node) for node in self._list_nodes()]
        free = ", ".join(nodes[:_MAX_NODES]) + (
            f" and {len(nodes) - _MAX_NODES} nodes more" if nodes[_MAX_NODES:] else ""
        )
        for key, items in new.items():
            self._reported_at[key] = now
            first = min(items, key=lambda item: item.since)
            count = f" ({len(items)} of them)" if len(items) > 1 else ""
            self._report(
                f"waiting for {now - first.since:.0f} s: {first.kind} '{first.name}'{count} needs {first.needs()}; "
                f"free now: {free}. It starts when there is room on one node; if nothing else runs there, stop the run "
                "and request less (num_cpus, num_gpus, num_actors, workers), or add nodes"
            )

    def _run(self) -> None:
        from ray.exceptions import RayError

        while not self._stop.wait(_POLL_S):
            try:
                self.check(time.time())
            except (RayError, RuntimeError, OSError, AttributeError):
                continue  # The cluster's state cannot be read now: Ray restarts, or this process disconnects.


class _ClusterQueue:
    """List of what waits on the connected cluster. Tasks are read only while something waits: there may be many."""

    def __init__(self) -> None:
        self._groups_since: dict[str, float] = {}

    def list_waiting(self) -> list[Waiting]:
        import ray

        if not ray.is_initialized() or not ray_compat.num_unmet_demands():
            self._groups_since.clear()
            return []
        tasks = [
            Waiting(
                id=task.id,
                kind="actor" if task.is_actor else "task",
                name=task.name,
                resources=task.resources,
                since=task.since,
            )
            for task in ray_compat.pending_tasks()
            # Those of a placement group wait for the group, which is listed below.
            if not any("_group_" in resource for resource in task.resources)
        ]
        return tasks + self._pending_groups()

    def _pending_groups(self) -> list[Waiting]:
        """List the placement groups that are not placed, such as that of Ray Train's workers."""
        from ray.util import placement_group_table

        table = {id: group for id, group in placement_group_table().items() if group["state"] == "PENDING"}
        self._groups_since = {id: self._groups_since.get(id, time.time()) for id in table}
        return [
            Waiting(
                id=id,
                kind="placement group",
                name=group["name"] or "workers",
                resources=dict(next(iter(group["bundles"].values()), {})),
                since=self._groups_since[id],
                num_bundles=len(group["bundles"]),
            )
            for id, group in table.items()
        ]


def _list_nodes() -> list[FreeNode]:
    import ray

    hosts = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
    free = ray_compat.free_resources()
    return [FreeNode(host=hosts.get(id, id[:8]), resources=resources) for id, resources in free.items()]


def _print_warning(text: str) -> None:
    from rich.console import Console

    Console(stderr=True, highlight=False, soft_wrap=True).print(text, style="yellow", markup=False)


_monitor: SchedulingMonitor | None = None


def watch_cluster() -> None:
    """Report, until this process ends, what the connected cluster cannot schedule. Further calls change nothing."""
    global _monitor
    if _monitor is None:
        _monitor = SchedulingMonitor(_ClusterQueue().list_waiting, _list_nodes, _print_warning)
        _monitor.start()
