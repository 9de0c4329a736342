"""Access to Ray's private API: the only module that may use it, so that an upgrade of Ray has one place to check.

Each name below exists because Ray has no public call for it. All were checked against Ray 2.60.0 (`CHECKED_VERSION`);
`tests/integration/test_cluster.py` runs the ones that need a cluster, and `tests/unit/test_architecture.py` rejects
private Ray API in any other module.
"""

import json
import logging
import os
from collections.abc import Callable
from typing import Any

CHECKED_VERSION = "2.60.0"
"""The version of Ray this module was last checked against; the requirements files in `cluster/` pin it."""

FULL_PRIORITY_WORKERS = {"RAY_worker_niceness": "0"}
"""Environment that starts Ray's workers at normal priority. By default Ray adds 15 to their niceness."""

NO_PREEMPTION_WATCHER = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
"""Environment in which Ray Train starts no actor that watches for preempted nodes."""

_AUTHENTICATION_LOGGER = "ray._private.authentication.authentication_token_setup"
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
