"""Connection to a Ray cluster: one that is running, or a local one started by this process.

`connect` is the only place that calls `ray.init`. It sets the environment of all workers and returns the cluster's
resources, which `resources.check_resources` compares with a recipe's requests.
"""

import logging
import os
import re
import socket
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from vlgenrm_ray.cluster import ray_compat, scheduling
from vlgenrm_ray.cluster.resources import Cluster, Node
from vlgenrm_ray.errors import ResourceError

_WORKER_VARIABLES = {
    # Threads that spin while they wait take cores from each other; see engines/environment.py. The number of threads is
    # left to Ray, which sets OMP_NUM_THREADS from the CPUs of each actor.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "KMP_BLOCKTIME": "0",
    "TOKENIZERS_PARALLELISM": "false",
    # An actor that requests no GPU must see none; an engine in it would otherwise fill one.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "YOLO_VERBOSE": "false",
}
_CONNECT_TIMEOUT_S = 10.0
_EXCEPTION_LINE = re.compile(r"^[A-Za-z_][\w.]*(?:: |$)", re.MULTILINE)
"""Last line of a traceback, which starts at the left margin: exception type and message."""
_MAX_CAUSE_CHARS = 300
_RAY_DATA_ADVICE = ("The minimum number of concurrent actors for", "`ray_remote_args` is deprecated")
"""Warnings on which a user of this package cannot act. `max_restarts` has no named parameter in Ray 2.60."""
_MIN_IDLE_WORKERS = 4
"""Idle workers that a local Ray keeps at least. With Ray's default, one per CPU, the light tasks of each stage would
start new processes and import Ray Data again."""


def connect(
    address: str | None = None, *, num_cpus: int | None = None, offline: bool = False, quiet: bool = True
) -> Cluster:
    """Connect this process to Ray.

    Args:
        address: Address of a running cluster, or "local" for a cluster that ends with this process. None takes
            RAY_ADDRESS, which Ray sets in a submitted job, else "local".
        num_cpus: CPUs of a local Ray; default: all of the machine.
        offline: All models are local folders; workers never contact the Hugging Face hub.
        quiet: Write the output of workers to Ray's log files only.

    Returns:
        The resources of the cluster.

    Raises:
        ResourceError: No cluster answers at `address`.
    """
    import ray

    address = address or os.environ.get("RAY_ADDRESS") or "local"
    variables = _WORKER_VARIABLES | ({"HF_HUB_OFFLINE": "1"} if offline else {})
    # Values set by the user take precedence. The driver needs the variables too: it loads tokenizers and runs Ray Data.
    variables = {name: os.environ.setdefault(name, value) for name, value in variables.items()}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    arguments: dict[str, Any] = {
        "address": address,
        "log_to_driver": not quiet,
        "logging_level": logging.WARNING if quiet else logging.INFO,
    }
    if address == "local":
        # Workers of a local Ray inherit this process' environment.
        arguments |= {"include_dashboard": False, "num_cpus": num_cpus}
        ray_compat.keep_idle_workers(max(_MIN_IDLE_WORKERS, num_cpus or os.cpu_count() or 1))
        ray_compat.silence_token_notice()
    else:
        # Ray rejects a variable that the job was submitted with; the submitted value takes precedence.
        submitted = ray_compat.submitted_variables()
        arguments["runtime_env"] = {"env_vars": {k: v for k, v in variables.items() if k not in submitted}}
    try:
        if not ray.is_initialized():
            _check_reachable(address)
            if not quiet:
                ray.init(**arguments)
            else:
                ray_compat.silence_driver_log()
                ray_compat.filter_messages()
                with ray_compat.without_log_notice():
                    ray.init(**arguments)
    except OSError as error:
        raise ResourceError(
            f"no Ray cluster answers at '{address}' ({error}); start one with 'ray start --head', correct the address,"
            " or use 'local' to run on this machine alone"
        ) from error
    _configure_ray_data(quiet)
    scheduling.watch_cluster()
    return describe_cluster()


def _check_reachable(address: str) -> None:
    """Raise OSError if nothing listens at a `host:port`. Ray itself would retry for two minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()


def describe_cluster() -> Cluster:
    """Return the nodes of the connected cluster, as they are now."""
    import ray

    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    can_grow = ray_compat.has_autoscaler()
    return Cluster(
        nodes=tuple(_as_node(r) for r in resources),
        can_grow=can_grow,
        largest=largest_cluster(ray_compat.autoscaler_groups()) if can_grow else (),
    )


def _as_node(resources: Mapping[str, float]) -> Node:
    return Node(num_cpus=resources.get("CPU", 0.0), num_gpus=resources.get("GPU", 0.0))


def largest_cluster(groups: Sequence[tuple[int, Mapping[str, float]]]) -> tuple[Node, ...]:
    """Return all nodes of an autoscaler's groups at their limits; none if a group has no limit."""
    if any(limit < 0 for limit, _ in groups):
        return ()
    return tuple(_as_node(resources) for limit, resources in groups for _ in range(limit))


def _configure_ray_data(quiet: bool) -> None:
    """Disable Ray Data's progress bars, which would overwrite those of `data.progress`, and advice about its calls."""
    import ray.data

    if quiet:
        for advice in _RAY_DATA_ADVICE:
            warnings.filterwarnings("ignore", message=advice)

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = not quiet


def is_connected() -> bool:
    """Return whether this process is connected to a Ray cluster. Ray is not imported for it."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def spans_machines() -> bool:
    """Return whether this process is connected to a cluster that has, or may get, several nodes."""
    if not is_connected():
        return False
    cluster = describe_cluster()
    return cluster.can_grow or len(cluster.nodes) > 1


def actor_death_cause(error: Exception) -> str:
    """Return the cause of an actor's death on one line.

    If the actor's constructor raised, Ray's message ends with the exception, after a long traceback; the line starts
    there.
    """
    text = str(error)
    if getattr(error, "actor_init_failed", False) and (exceptions := list(_EXCEPTION_LINE.finditer(text))):
        text = text[exceptions[-1].start() :]
    return " ".join(text.split())[:_MAX_CAUSE_CHARS]
