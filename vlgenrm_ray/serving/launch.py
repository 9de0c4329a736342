"""Start the service on the connected Ray cluster, and stop it."""

import logging
import signal
import socket
import threading
import time
from typing import Any

from vlgenrm_ray.cluster import connection, resources
from vlgenrm_ray.cluster.resources import Cluster, ResourceRequest
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.serving.config import ServingConfig

NAME = "vlgenrm"
"""Ray Serve application of `vlgenrm serve`."""
_CLOSING_S = 15.0
"""Seconds that a stopped ingress may take to release its port."""


def start(config: ServingConfig, *, host: str, port: int, name: str = NAME, replace: bool = False) -> str:
    """Deploy the service and wait until its first engine is up.

    Args:
        config: The service's configuration.
        host: Address to listen on.
        port: Port to listen on.
        name: Ray Serve application.
        replace: Stop an application of that name first. Other applications are never touched.

    Returns:
        The service's URL.

    Raises:
        ResourceError: The cluster has no room for an engine.
        ConfigError: The port or the name is taken, or the proxies that this service needs serve other applications.
    """
    from ray import serve

    from vlgenrm_ray.serving.ingress import ListenAddress, application
    from vlgenrm_ray.serving.model_version import ActiveModelRegistry

    cluster = connection.describe_cluster()
    resources.check_resources(_resource_requests(config), cluster)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    # On one machine the ingress listens itself. On several, proxies listen, as clients cannot know where it runs.
    listens = len(cluster.nodes) == 1 and not cluster.can_grow
    replaced = _claim_name(name, replace=replace, proxied=not listens)
    _check_port(host, port, patience_s=_CLOSING_S if replaced else 0.0)
    serve.start(
        proxy_location="Disabled" if listens else "EveryNode",
        http_options={"host": host, "port": port},
        logging_config=_quiet_logging(),
    )
    fitted = _fit_replicas(config, cluster)
    ActiveModelRegistry(fitted, name).clear()
    app = application(fitted, ListenAddress(host, port) if listens else None, name)
    # An ingress that listens itself needs no route; two applications cannot have the same.
    serve.run(app, name=name, route_prefix=None if listens else "/", logging_config=_quiet_logging())
    reachable = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    return f"http://{reachable}:{port}"


def stop(name: str = NAME) -> None:
    """Stop the service, and Ray Serve as well if no application is left."""
    from ray import serve

    if name in serve.status().applications:
        serve.delete(name)
    if not serve.status().applications:
        serve.shutdown()


def wait() -> None:
    """Block until SIGINT or SIGTERM, then stop the service."""
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    done.wait()
    stop()


def _resource_requests(config: ServingConfig) -> list[ResourceRequest]:
    engines = ResourceRequest(
        stage="serving",
        role="engine",
        count=1 if config.replicas == "auto" else config.replicas,
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
    )
    if config.experts is None:
        return [engines]
    return [engines, ResourceRequest(stage="serving", role="experts", num_cpus=0.0, num_gpus=config.experts.num_gpus)]


def _claim_name(name: str, *, replace: bool, proxied: bool) -> bool:
    """Stop an application of that name if `replace`. Return whether there was one."""
    from ray import serve

    applications = serve.status().applications
    others = sorted(other for other in applications if other != name)
    if others and proxied:
        raise ConfigError(
            f"Ray Serve's proxies have one port, and serve {', '.join(others)} on this cluster already; use that by "
            "its address, or end it (`serve shutdown`)"
        )
    if name not in applications:
        return False
    if not replace:
        raise ConfigError(
            f"this cluster serves {name!r} already; `POST /v1/model` exchanges its model, `serve shutdown` ends it"
        )
    serve.delete(name)
    return True


def _quiet_logging() -> dict[str, Any]:
    # An access log line would reveal who asked what, and cost more time than an answer from the cache.
    return {"log_level": "WARNING", "enable_access_log": False}


def _fit_replicas(config: ServingConfig, cluster: Cluster) -> ServingConfig:
    """Lower `max_replicas` to what a cluster of fixed size can hold. A single engine runs in the ingress process."""
    if cluster.can_grow or config.replicas != "auto":
        return config
    per_engine = [("num_cpus", config.num_cpus), ("num_gpus", config.num_gpus)]
    fits = [sum(int(getattr(node, kind) // num) for node in cluster.nodes) for kind, num in per_engine if num]
    max_replicas = max(1, min([config.max_replicas, *fits]))
    return config.model_copy(update={"max_replicas": max_replicas} if max_replicas > 1 else {"replicas": 1})


def _check_port(host: str, port: int, *, patience_s: float = 0.0) -> None:
    """Wait up to `patience_s` for a port to be free. Raise ConfigError if it is not."""
    end = time.monotonic() + patience_s
    while (problem := _bind_problem(host, port)) and time.monotonic() < end:
        time.sleep(0.2)
    if problem:
        raise ConfigError(f"--port {port}: {problem}; give another port, or stop what listens there")


def _bind_problem(host: str, port: int) -> str:
    """Return why the address cannot be bound, or ""."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return ""
