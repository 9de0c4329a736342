"""A Ray head of its own, and jobs submitted to it as users of a cluster do."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from ports import free_port

ROOT = Path(__file__).parents[1]
RAY = Path(sys.executable).with_name("ray")
START_S = 120.0
TOKEN = secrets.token_hex(32)
"""Ray's own guard: the head, whoever submits and the job must know it."""


def environment() -> dict[str, str]:
    """This process', with the environment's commands first and without another cluster's address."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "OMP_"))}
    ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
    return inherited | ours | {"PATH": f"{RAY.parent}:{os.environ['PATH']}"}


@contextmanager
def running_head() -> Iterator[str]:
    """Start a Ray head with two CPUs, and yield the address of its job server."""
    dashboard = free_port()
    ports = ["--port=0", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"]
    command = [str(RAY), "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats", *ports]
    process = subprocess.Popen(
        command, env=environment(), start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_for(process, f"{address}/api/version")
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def _wait_for(process: "subprocess.Popen[str]", url: str) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with urlopen(Request(url, headers={"Authorization": f"Bearer {TOKEN}"}), timeout=5):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                assert process.stdout
                pytest.fail(f"no Ray head: {process.stdout.read()}")
            time.sleep(0.5)


def submit(head: str, *job: str) -> "subprocess.CompletedProcess[str]":
    """Submit a command with this repository as its working directory, and wait for the job's end."""
    command = [str(RAY), "job", "submit", "--address", head, "--working-dir", str(ROOT), "--", *job]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
