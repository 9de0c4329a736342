"""The process an engine lives in: is there a GPU, and how its CPU threads behave.

OpenMP workers spin while they wait. Two engines with two threads each on two cores then take the cores from each other:
an engine start of 5 s was seen to take 200 s. So every engine on a CPU states how many threads it has, and they sleep
while they wait.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from vlgenrm_ray.errors import InputError


def has_gpu() -> bool:
    """True where this process may use a GPU, by the driver's files: importing torch would fix its threads."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1", "NoDevFiles"):
        return False
    return Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()


def thread_variables(threads: int) -> dict[str, str]:
    """Environment of a process whose numeric libraries use `threads` CPU threads that sleep while they wait."""
    count = str(threads)
    return {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "KMP_BLOCKTIME": "0",
        # Tokenizers' own threads would come on top, and warn after every fork.
        "TOKENIZERS_PARALLELISM": "false",
    }


def limit_threads(threads: int) -> None:
    """Give this process `threads` CPU threads. Call before torch is imported; later only the count still counts."""
    os.environ.update(thread_variables(threads))
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)


def end_with_this_process(pids: Sequence[int]) -> "subprocess.Popen[bytes]":
    """See to it that processes end with this one, even by SIGKILL, and when what is returned is closed.

    An engine that outlives whoever asked it keeps its memory, and the next one on that GPU would not start.
    """
    # A shell that waits for the end of a pipe whose other side only this process holds.
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
