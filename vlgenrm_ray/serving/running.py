"""Starting the service on the connected Ray cluster, and stopping it."""

import logging
import signal
import socket
import threading
from typing import Any

from vlgenrm_ray import cluster
from vlgenrm_ray.cluster import Ask, Cluster
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.serving.config import ServingConfig

NAME = "vlgenrm"


def start(config: ServingConfig, *, host: str, port: int) -> str:
    """Deploy the service; returns its address when its first engine is up.

    Raises ResourceError where the cluster has no room for an engine; ConfigError for a port that is taken.
    """
    from ray import serve

    from vlgenrm_ray.serving.app import application
    from vlgenrm_ray.serving.listener import Address
    from vlgenrm_ray.serving.standing import Standing

    there = cluster.survey()
    count = 1 if config.replicas == "auto" else config.replicas
    ask = Ask(stage="serving", role="engine", count=count, num_cpus=config.num_cpus, num_gpus=config.num_gpus)
    asks = [ask]
    if config.experts is not None:
        asks.append(Ask(stage="serving", role="experts", num_cpus=0.0, num_gpus=config.experts.num_gpus))
    cluster.check_resources(asks, there)
    _check_port(host, port)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    # On one machine the gate listens itself; on several, clients must not need to know which one it is on.
    alone = len(there.nodes) == 1 and not there.grows
    serve.start(
        proxy_location="Disabled" if alone else "EveryNode",
        http_options={"host": host, "port": port},
        logging_config=_quiet(),
    )
    fitting = _fitted(config, there)
    Standing(fitting).forget()
    made = application(fitting, Address(host, port) if alone else None)
    serve.run(made, name=NAME, route_prefix="/", logging_config=_quiet())
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    return f"http://{shown}:{port}"


def stop() -> None:
    """End the service."""
    from ray import serve

    serve.shutdown()


def wait() -> None:
    """Until interrupted or told to end; then the service is stopped."""
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    done.wait()
    stop()


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


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"--port {port}: {error.strerror}; give another port, or stop what listens there"
            ) from None
