"""Access to Ray's private API: the only module that may use it, so that an upgrade of Ray has one place to check.

Each name below exists because Ray has no public call for it. All were checked against Ray 2.60.0 (`CHECKED_VERSION`);
`tests/integration/test_cluster.py` runs the ones that need a cluster, and `tests/unit/test_architecture.py` rejects
private Ray API in any other module.
"""

import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

CHECKED_VERSION = "2.60.0"
"""The version of Ray this module was last checked against; the requirements files in `cluster/` pin it."""

FULL_PRIORITY_WORKERS = {"RAY_worker_niceness": "0"}
"""Environment that starts Ray's workers at normal priority. By default Ray adds 15 to their niceness."""

NO_PREEMPTION_WATCHER = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
"""Environment in which Ray Train starts no actor that watches for preempted nodes."""

_AUTHENTICATION_LOGGER = "ray._private.authentication.authentication_token_setup"
_LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"
_IDLE_WORKERS = "RAY_num_workers_soft_limit"
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def keep_idle_workers(count: int) -> None:
    """Let a Ray started by this process keep `count` idle workers; a value set by the user takes precedence.

    Ray keeps one per CPU by default and stops the others after a second.
    """
    os.environ.setdefault(_IDLE_WORKERS, str(count))


def silence_token_notice() -> None:
    """Silence the notice that a local Ray protects its ports by a token."""
    logging.getLogger(_AUTHENTICATION_LOGGER).setLevel(logging.ERROR)


_NOT_FOR_USERS = re.compile(r"Task ServeController\.graceful_shutdown failed")
"""Messages of Ray about which a user can do nothing: the service was stopped on purpose."""


def silence_driver_log() -> None:
    """Keep errors of Ray's core off the console of this process; to be called before `ray.init`.

    Ray Data starts every pool of actors with arguments in the object store, and Ray's core prints an error about that,
    in C++ and directly to stderr. The setting holds for this process alone: nodes of a local Ray log as usual. A level
    that the user set takes precedence.
    """
    from ray._private import services

    level = os.environ.get(_LOG_LEVEL)
    os.environ.setdefault(_LOG_LEVEL, "fatal")
    original = services.start_ray_process

    def start_with_usual_log(*args: Any, env_updates: dict[str, str] | None = None, **kwargs: Any) -> Any:
        return original(*args, env_updates={_LOG_LEVEL: level or "info"} | (env_updates or {}), **kwargs)

    if getattr(original, "__name__", "") != start_with_usual_log.__name__:
        services.start_ray_process = start_with_usual_log


@contextmanager
def without_log_notice() -> Iterator[None]:
    """Leave out the line in which Ray's core announces its log level. Everything else on stderr is shown at the end."""
    sys.stderr.flush()
    real = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)
            os.close(real)
            held.seek(0)
            os.write(2, b"".join(line for line in held if _LOG_LEVEL.encode() not in line))


def filter_messages() -> None:
    """Keep messages of Ray's parts that no user can act on off the console of this process."""
    from ray._private import worker

    original = worker.print_to_stdstream

    def print_for_users(data: dict[str, Any], ignore_prefix: bool) -> None:
        lines = [line for line in data["lines"] if not _NOT_FOR_USERS.search(line)]
        if lines:
            original(data | {"lines": lines}, ignore_prefix)

    if getattr(original, "__name__", "") != print_for_users.__name__:
        worker.print_to_stdstream = print_for_users


def has_autoscaler() -> bool:
    """Return whether the connected cluster has an autoscaler. Ray Train and Ray Data use the same source."""
    from ray._private.state import state

    return state.get_max_resources_from_cluster_config() is not None


def autoscaler_groups() -> list[tuple[int, dict[str, float]]]:
    """Return the groups of nodes that the cluster's autoscaler may start: largest number of nodes, resources of each.

    Empty without an autoscaler. A group without a limit has the number -1.
    """
    from ray._private.state import state

    config = state.get_cluster_config()
    groups = [] if config is None else config.node_group_configs
    return [(group.max_count, dict(group.resources)) for group in groups]


def submitted_variables() -> set[str]:
    """Return the names of the environment variables this job was submitted with; Ray rejects a second value."""
    runtime_env = json.loads(os.environ.get(_JOB_CONFIG, "{}")).get("runtime_env") or {}
    return set(runtime_env.get("env_vars") or {})


def actor_id(actor: Any) -> str:
    """Return the hexadecimal id of an actor handle."""
    return str(actor._actor_id.hex())


@dataclass(frozen=True, slots=True, kw_only=True)
class UnscheduledTask:
    """A task, or the creation of an actor, that no node has taken yet."""

    id: str
    name: str
    """Name of the function or class."""
    is_actor: bool
    resources: dict[str, float]
    """Requested resources, such as CPU and GPU."""
    since: float
    """Time since which it waits for a node, in seconds of the epoch."""


def num_unmet_demands() -> int:
    """Count the tasks, actors and placement groups of the connected cluster that wait for resources.

    One request to the cluster's state, whose cost does not depend on the number of tasks.
    """
    demands = _cluster_status().resource_demands
    groups = [*demands.placement_group_demand, *demands.ray_task_actor_demand]
    return sum(bundle.count for demand in groups for bundle in demand.bundles_by_count)


def free_resources() -> dict[str, dict[str, tuple[float, float]]]:
    """Return the free and total amount of each resource, by the id of the node."""
    status = _cluster_status()
    return {
        node.node_id: {
            usage.resource_name: (usage.total - usage.used, usage.total) for usage in node.resource_usage.usage
        }
        for node in (*status.active_nodes, *status.idle_nodes)
        if node.resource_usage is not None
    }


def _cluster_status() -> Any:
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status

    return get_cluster_status(ray.get_runtime_context().gcs_address)


def pending_tasks() -> list[UnscheduledTask]:
    """Return all tasks and actors of the connected cluster that wait for a node. Works without Ray's dashboard."""
    from ray._private.state import state
    from ray.core.generated.common_pb2 import PENDING_NODE_ASSIGNMENT, TaskType
    from ray.core.generated.gcs_pb2 import TaskEvents

    state._check_connected()
    pending = []
    for serialised in state._global_state_accessor.get_task_events():
        events = TaskEvents.FromString(serialised)
        times, info = events.state_updates.state_ts_ns, events.task_info
        if not times or max(times) != PENDING_NODE_ASSIGNMENT:
            continue
        is_actor = info.type == TaskType.ACTOR_CREATION_TASK
        name = info.func_or_class_name.removesuffix(".__init__") if is_actor else info.name
        pending.append(
            UnscheduledTask(
                id=events.task_id.hex(),
                name=name,
                is_actor=is_actor,
                resources=dict(info.required_resources),
                since=times[PENDING_NODE_ASSIGNMENT] / 1e9,
            )
        )
    return pending


def reset_serve_client() -> None:
    """Forget this process' client of Ray Serve, which would keep a controller that no longer exists."""
    from ray.serve.context import _set_global_client

    _set_global_client(None)


def replace_sigint_handler(trainer: Any, register: Callable[[Any], None]) -> None:
    """Let `register` receive a trainer's controller actor, in place of Ray Train's own SIGINT handler.

    Ray Train's handler exits with status 0 and is not restored when the training ends.
    """
    trainer._register_sigint_handler = register


def abort_training(controller: Any) -> Any:
    """Ask a controller actor, as given to `replace_sigint_handler`, to stop its workers. Return an object reference."""
    return controller.abort.remote()
