"""Starting the service on the connected Ray cluster, and stopping it."""

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
"""The Ray Serve application of `vlgenrm serve`."""
_CLOSING_S = 15.0
"""In which a gate that was told to end lets go of its port."""


def start(config: ServingConfig, *, host: str, port: int, name: str = NAME, replace: bool = False) -> str:
    """Deploy the service as an application of that name; returns its address when its first engine is up.

    `replace`: one of that name is ended first; other applications are left alone in any case.
    Raises ResourceError where the cluster has no room for an engine; ConfigError for a port or a name that is taken, or
    where others are served by the proxies that this one needs.
    """
    from ray import serve

    from vlgenrm_ray.serving.ingress import application
    from vlgenrm_ray.serving.listener import Address
    from vlgenrm_ray.serving.model_version import Standing

    there = connection.survey()
    count = 1 if config.replicas == "auto" else config.replicas
    ask = ResourceRequest(
        stage="serving", role="engine", count=count, num_cpus=config.num_cpus, num_gpus=config.num_gpus
    )
    asks = [ask]
    if config.experts is not None:
        asks.append(ResourceRequest(stage="serving", role="experts", num_cpus=0.0, num_gpus=config.experts.num_gpus))
    resources.check_resources(asks, there)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    # On one machine the gate listens itself; on several, clients must not need to know which one it is on.
    alone = len(there.nodes) == 1 and not there.grows
    replaced = _make_room(name, replace=replace, proxied=not alone)
    _check_port(host, port, patience_s=_CLOSING_S if replaced else 0.0)
    serve.start(
        proxy_location="Disabled" if alone else "EveryNode",
        http_options={"host": host, "port": port},
        logging_config=_quiet(),
    )
    fitting = _fitted(config, there)
    Standing(fitting, name).forget()
    made = application(fitting, Address(host, port) if alone else None, name)
    # Where the gate listens itself it needs no route, of which two applications cannot have the same.
    serve.run(made, name=name, route_prefix=None if alone else "/", logging_config=_quiet())
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    return f"http://{shown}:{port}"


def stop(name: str = NAME) -> None:
    """End the service, and Ray Serve with the last one."""
    from ray import serve

    if name in serve.status().applications:
        serve.delete(name)
    if not serve.status().applications:
        serve.shutdown()


def wait() -> None:
    """Until interrupted or told to end; then the service is stopped."""
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    done.wait()
    stop()


def _make_room(name: str, *, replace: bool, proxied: bool) -> bool:
    """Whether there was an application of that name, which is ended."""
    from ray import serve

    there = serve.status().applications
    others = sorted(other for other in there if other != name)
    if others and proxied:
        raise ConfigError(
            f"Ray Serve's proxies have one port, and serve {', '.join(others)} on this cluster already; use that by "
            "its address, or end it (`serve shutdown`)"
        )
    if name not in there:
        return False
    if not replace:
        raise ConfigError(
            f"this cluster serves {name!r} already; `POST /v1/model` exchanges its model, `serve shutdown` ends it"
        )
    serve.delete(name)
    return True


def _quiet() -> dict[str, Any]:
    # A line per request would say who asked what, and cost more than the cache takes to answer.
    return {"log_level": "WARNING", "enable_access_log": False}


def _fitted(config: ServingConfig, there: Cluster) -> ServingConfig:
    """With as many engines as the cluster can hold, at most as many as configured."""
    if there.grows or config.replicas != "auto":
        return config
    each = [(config.num_cpus, "num_cpus"), (config.num_gpus, "num_gpus")]
    fits = [sum(int(getattr(node, name) // asked) for node in there.nodes) for asked, name in each if asked]
    room = max(1, min([config.max_replicas, *fits]))
    return config.model_copy(update={"max_replicas": room} if room > 1 else {"replicas": 1})


def _check_port(host: str, port: int, *, patience_s: float = 0.0) -> None:
    """Wait for a port to be free. Raises ConfigError."""
    end = time.monotonic() + patience_s
    while (problem := _bound(host, port)) and time.monotonic() < end:
        time.sleep(0.2)
    if problem:
        raise ConfigError(f"--port {port}: {problem}; give another port, or stop what listens there")


def _bound(host: str, port: int) -> str:
    """Why one cannot listen there, or ""."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return ""
