"""Servers as processes of their own, one at a time: the judge's service, and `vllm serve` beside it."""

import json
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from vlgenrm_ray.bench.processes import Started, started
from vlgenrm_ray.cluster import ray_compat
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.vllm_config import VllmConfig, engine_arguments, environment
from vlgenrm_ray.errors import EngineLostError

NAME = "judge"
"""What `vllm serve` calls the model."""
_START_S = 600.0


@contextmanager
def service(arguments: Sequence[str], *, cache_mib: float) -> Iterator[tuple[str, int]]:
    """`vlgenrm serve` with one replica on a Ray of its own: its address and its process' id."""
    set_ = ["--set", f"serving.limits.cache_mib={cache_mib}", "--replicas", "1", "--address", "local"]
    command = [sys.executable, "-m", "vlgenrm_ray.cli", "serve", *arguments, *set_]
    # Ray would put its workers behind the client that measures them; what they are compared to is its equal.
    with _running(command, ray_compat.FULL_PRIORITY_WORKERS, "/ready") as found:
        yield found


@contextmanager
def vllm_serve(config: VllmConfig) -> Iterator[tuple[str, int]]:
    """`vllm serve` with the engine's very settings: its address and its process' id."""
    folder = model_folder.locate(config.model)
    settings = engine_arguments(config, model_folder.max_positions(folder)) | {
        "served_model_name": NAME,
        # As the judge samples: nothing but what the request says.
        "generation_config": "vllm",
        # What it need not do, it shall not spend time on; the judge's engine does neither.
        "disable_log_stats": True,
        "disable_uvicorn_access_log": True,
        "uvicorn_log_level": "warning",
    }
    # What `vllm serve` runs as well; its command asks for the package's version by a name the CPU build has not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), *flags(settings)]
    with _running(command, environment(config), "/health") as found:
        yield found


def flags(settings: Mapping[str, Any]) -> list[str]:
    """Engine arguments as options of a command line. None is left to its default."""
    found: list[str] = []
    for name, value in settings.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            # What is named after its being off has no second form.
            found += [f"--{option}"] if value else [] if option.startswith("disable-") else [f"--no-{option}"]
        elif value is not None:
            found += [f"--{option}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return found


@contextmanager
def _running(command: Sequence[str], variables: Mapping[str, str], ready: str) -> Iterator[tuple[str, int]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with started([*command, "--port", str(port)], variables) as server:
        _await(server, " ".join(command[:4]), url + ready)
        yield url, server.process.pid


def _await(server: Started, name: str, url: str) -> None:
    end = time.monotonic() + _START_S
    while server.process.poll() is None and time.monotonic() < end:
        try:
            if httpx.get(url, timeout=5.0, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.25)
    raise EngineLostError(f"{name} ... did not come up:\n{server.tail()}")
