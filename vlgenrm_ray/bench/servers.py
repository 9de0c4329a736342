"""Servers under measurement, one process each: the judge's service and `vllm serve`."""

import json
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from vlgenrm_ray.bench.processes import RunningProcess, running_process
from vlgenrm_ray.cluster import ray_compat
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.vllm_config import VllmConfig, engine_arguments, environment
from vlgenrm_ray.errors import EngineLostError

SERVED_MODEL_NAME = "judge"
"""Name of the model in requests to `vllm serve`."""
_START_TIMEOUT_S = 600.0


@contextmanager
def service(arguments: Sequence[str], *, cache_mib: float) -> Iterator[tuple[str, int]]:
    """Run `vlgenrm serve` with one replica on a Ray of its own.

    Args:
        arguments: Further arguments of `vlgenrm serve`.
        cache_mib: Size of the cache of scores; 0 turns it off.

    Yields:
        URL and process id.
    """
    settings = ["--set", f"serving.limits.cache_mib={cache_mib}", "--replicas", "1", "--address", "local"]
    command = [sys.executable, "-m", "vlgenrm_ray.cli", "serve", *arguments, *settings]
    # Ray lowers the priority of its workers; `vllm serve`, the other side of the comparison, has the normal one.
    with _running_server(command, ray_compat.FULL_PRIORITY_WORKERS, "/ready") as server:
        yield server


@contextmanager
def vllm_serve(config: VllmConfig) -> Iterator[tuple[str, int]]:
    """Run `vllm serve` with the settings of the judge's engine; yield URL and process id."""
    folder = model_folder.locate(config.model)
    settings = engine_arguments(config, folder) | {
        "served_model_name": SERVED_MODEL_NAME,
        # Sampling follows the request alone, as in the judge's engine.
        "generation_config": "vllm",
        # The judge's engine writes no such logs either.
        "disable_log_stats": True,
        "disable_uvicorn_access_log": True,
        "uvicorn_log_level": "warning",
    }
    # `vllm serve` runs this module too; its command looks for a package name that the CPU build does not have.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    with _running_server([*command, *command_line_options(settings)], environment(config), "/health") as server:
        yield server


def command_line_options(settings: Mapping[str, Any]) -> list[str]:
    """Write engine arguments as command-line options; None keeps the option's default."""
    words: list[str] = []
    for name, value in settings.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            # An option named `--disable-x` has no `--no-` form.
            words += [f"--{option}"] if value else [] if option.startswith("disable-") else [f"--no-{option}"]
        elif value is not None:
            words += [f"--{option}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return words


@contextmanager
def _running_server(command: Sequence[str], variables: Mapping[str, str], ready_path: str) -> Iterator[tuple[str, int]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with running_process([*command, "--port", str(port)], variables) as server:
        _wait_until_ready(server, " ".join(command[:4]), url + ready_path)
        yield url, server.process.pid


def _wait_until_ready(server: RunningProcess, name: str, url: str) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while server.process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(url, timeout=5.0, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.25)
    raise EngineLostError(f"{name} ... did not become ready:\n{server.tail()}")
