"""Process environment of an engine: GPU detection, devices, CPU threads, and child processes.

OpenMP threads spin while they wait. Two engines with two threads each on two cores then compete for the cores: one
start took 200 s instead of 5 s. Hence every engine on a CPU has a fixed number of threads, which sleep while they wait.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from vlgenrm_ray.errors import InputError


def has_gpu() -> bool:
    """Return True if this process may use a GPU. Checks the driver's files: importing torch would fix its threads."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1", "NoDevFiles"):
        return False
    return Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()


def thread_variables(threads: int) -> dict[str, str]:
    """Return the environment of a process whose libraries use `threads` CPU threads that sleep while they wait."""
    count = str(threads)
    return {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "KMP_BLOCKTIME": "0",
        # Threads of tokenizers would add to these, and warn after every fork.
        "TOKENIZERS_PARALLELISM": "false",
    }


def limit_threads(threads: int) -> None:
    """Limit this process to `threads` CPU threads. After torch is imported, only the number still has an effect."""
    os.environ.update(thread_variables(threads))
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)


def kill_on_exit(pids: Sequence[int]) -> "subprocess.Popen[bytes]":
    """Kill processes when this one ends, even by SIGKILL, or when the returned process is closed.

    An orphaned engine would keep its memory, and the next engine on that GPU could not start.
    """
    # A shell waits for the end of a pipe whose other end only this process holds.
    script = 'read _; kill -9 "$@" 2>/dev/null'
    return subprocess.Popen(["/bin/sh", "-c", script, "sh", *map(str, pids)], stdin=subprocess.PIPE)


def resolve_device(name: str) -> str:
    """Return the torch device for a `device` setting. Raises InputError for a GPU on a machine without one."""
    if name == "auto":
        return "cuda" if has_gpu() else "cpu"
    if name.startswith("cuda") and not has_gpu():
        raise InputError(
            f"device: {name!r}, but this process sees no GPU; use 'auto' or 'cpu', or give the pool num_gpus"
        )
    return name
