"""The ingress in a process of its own: the service's HTTP API over a scripted judge, and its memory.

Started by `running_ingress`; the judge decodes images as on a real engine, then holds them for a while as vLLM does.
"""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from ports import free_port

_JUDGING_S = 0.5
"""Seconds that the scripted judge holds the images of an item."""
_SAMPLE_INTERVAL_S = 0.02


@dataclass
class IngressProcess:
    """A running ingress."""

    port: int
    pid: int
    sizes_mib: list[float] = field(default_factory=list)
    """Resident memory of its process and those below it, sampled while it ran."""

    def resident_mib(self) -> float:
        """Return the resident memory of the ingress and of the processes that it started, in MiB."""
        return sum(_resident_mib(pid) for pid in _family(self.pid))


@contextmanager
def running_ingress(**limits: float) -> Iterator[IngressProcess]:
    """Start an ingress with limits of `serving.limits`, and sample its memory until the context ends."""
    port = free_port()
    command = [sys.executable, __file__, str(port), json.dumps(limits)]
    process = subprocess.Popen(command)
    ingress = IngressProcess(port, process.pid)
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(_SAMPLE_INTERVAL_S):
            ingress.sizes_mib.append(ingress.resident_mib())

    try:
        _wait_until_up(process, port)
        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        yield ingress
        ended.set()
        thread.join()
    finally:
        process.kill()
        process.wait()


def _wait_until_up(process: "subprocess.Popen[bytes]", port: int) -> None:
    end = time.monotonic() + 120.0
    while True:
        assert process.poll() is None, "its process ended"
        assert time.monotonic() < end, "the ingress does not answer"
        try:
            httpx.get(f"http://127.0.0.1:{port}/health", timeout=5.0)
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(grandchild for child in children for grandchild in _family(int(child)))]


def _resident_mib(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS:")), 0.0)


async def _serve(port: int, limits: dict[str, float]) -> None:
    from serving_examples import service

    from vlgenrm_ray.serving.api import build_api
    from vlgenrm_ray.serving.canary import CanaryResult
    from vlgenrm_ray.serving.ingress import ListenAddress, listen, return_freed_memory

    async def swap_model(folder: str) -> CanaryResult:
        raise NotImplementedError(folder)

    return_freed_memory()
    served = service(delay_s=_JUDGING_S, max_images=8, **limits)
    api = build_api(served, ready=lambda: True, swap_model=swap_model)
    await (await listen(api, ListenAddress("127.0.0.1", port)))


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), json.loads(sys.argv[2])))
