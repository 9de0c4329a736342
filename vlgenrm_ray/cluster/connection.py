"""The connection to a Ray cluster: a running one, or one of this machine's own."""

import logging
import os
import re
import socket
from typing import Any

from vlgenrm_ray.cluster import ray_compat
from vlgenrm_ray.cluster.resources import Cluster, Node
from vlgenrm_ray.errors import ResourceError

_OURS = {
    # Threads that spin while they wait take the cores from each other; see engines/environment.py. How many threads a
    # worker has is not said here: Ray sets OMP_NUM_THREADS from what each actor asks for.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "KMP_BLOCKTIME": "0",
    "TOKENIZERS_PARALLELISM": "false",
    # An actor that asks for no GPU must see none, or engines would find one and fill it.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "YOLO_VERBOSE": "false",
}
_KNOCK_S = 10.0
_RAISED = re.compile(r"^[A-Za-z_][\w.]*(?:: |$)", re.MULTILINE)
"""The last line of a traceback, which begins at its left edge: what was raised."""
_LONGEST_REASON = 300
_IDLE_WORKERS = 4
"""At least, of a Ray of our own. Ray keeps one a CPU and ends the others after a second; a stage has more light tasks
than a laptop has CPUs, and the next stage's would import Ray Data anew."""


def connect(
    address: str | None = None, *, num_cpus: int | None = None, offline: bool = False, quiet: bool = True
) -> Cluster:
    """Connect this process to Ray and return what the cluster has.

    `address`: "local" starts a Ray of `num_cpus` (default: the machine's) that ends with this process; anything else
    is a running cluster's; None takes RAY_ADDRESS, which Ray itself sets in a submitted job, and "local" without it.
    `offline`: all models are local folders, so the Hugging Face hub is never asked. `quiet`: workers' own output goes
    to Ray's log files only. Raises ResourceError where none answers.
    """
    import ray

    address = address or os.environ.get("RAY_ADDRESS") or "local"
    variables = _OURS | ({"HF_HUB_OFFLINE": "1"} if offline else {})
    # The user's own values win, and the driver needs the variables as well: it loads tokenizers, and Ray Data's log.
    variables = {name: os.environ.setdefault(name, value) for name, value in variables.items()}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    arguments: dict[str, Any] = {
        "address": address,
        "log_to_driver": not quiet,
        "logging_level": logging.WARNING if quiet else logging.INFO,
    }
    if address == "local":
        # Its workers inherit this process' environment. That Ray guards its ports by a token needs no warning.
        arguments |= {"include_dashboard": False, "num_cpus": num_cpus}
        ray_compat.keep_idle_workers(max(_IDLE_WORKERS, num_cpus or os.cpu_count() or 1))
        ray_compat.silence_token_notice()
    else:
        # Ray refuses a variable that the job's submitter has set: the submitter wins.
        submitted = ray_compat.submitted_variables()
        arguments["runtime_env"] = {"env_vars": {k: v for k, v in variables.items() if k not in submitted}}
    try:
        if not ray.is_initialized():
            _knock(address)
            ray.init(**arguments)
    except OSError as error:
        raise ResourceError(
            f"no Ray cluster answers at '{address}' ({error}); start one with 'ray start --head', correct the address,"
            " or use 'local' to run on this machine alone"
        ) from error
    _quieten_ray_data(quiet)
    return survey()


def _knock(address: str) -> None:
    """Raise OSError if nobody listens at a host:port. Ray itself would try for two minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


def survey() -> Cluster:
    """The connected cluster's nodes, as they are now."""
    import ray

    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Cluster(
        nodes=tuple(Node(num_cpus=r.get("CPU", 0.0), num_gpus=r.get("GPU", 0.0)) for r in resources),
        grows=ray_compat.has_autoscaler(),
    )


def _quieten_ray_data(quiet: bool) -> None:
    """Stages show their own progress (progress.py); Ray Data's bars would draw over it."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = not quiet


def why_died(error: Exception) -> str:
    """What Ray says of an actor that died, in a line.

    Of one whose constructor raised, Ray shows where, and only at the end what: a beginning would not name the cause.
    """
    text = str(error)
    if getattr(error, "actor_init_failed", False) and (raised := list(_RAISED.finditer(text))):
        text = text[raised[-1].start() :]
    return " ".join(text.split())[:_LONGEST_REASON]
