"""Facts about this machine that `doctor` checks: versions, imports, GPUs, memory, disks, ports."""

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_IMPORT_TIMEOUT_S = 180.0
_REQUIREMENTS = Path(__file__).parents[2] / "cluster"


class Machine:
    """Facts about the real machine. Tests replace single methods."""

    def python(self) -> tuple[int, int]:
        """Return major and minor version of this interpreter."""
        return sys.version_info[:2]

    def pins(self) -> Mapping[str, str]:
        """Return package -> version as `cluster/setup.sh` installs them; empty outside a clone of the repository."""
        kind = "cpu" if self.installed("torch").endswith("+cpu") or not self.gpus() else "gpu"
        listed = _REQUIREMENTS / f"requirements-{kind}.txt"
        if not listed.exists():
            return {}
        lines = listed.read_text().splitlines()
        return dict(line.split("==") for line in lines if line and not line.startswith("#"))

    def installed(self, package: str) -> str:
        """Return the version of an installed package, "" if it is missing."""
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return ""

    def import_errors(self, modules: tuple[str, ...]) -> Mapping[str, str]:
        """Return module -> error of its import, "" if it can be imported. Each runs in a process with a time limit."""
        with ThreadPoolExecutor(max_workers=max(1, min(4, self.cpus()))) as pool:
            return dict(zip(modules, pool.map(_import_error, modules), strict=True))

    def cpus(self) -> int:
        """Return the cores as a local Ray counts them: all of the machine, even if this process is pinned to some."""
        return os.cpu_count() or 1

    def gpus(self) -> tuple[str, ...]:
        """Return one line for each GPU: name, memory, driver."""
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        try:
            query_result = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            return ()
        return tuple(line.strip() for line in query_result.stdout.splitlines() if line.strip())

    def compiler(self) -> str:
        """Return the path of the C++ compiler, "" if there is none."""
        return next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), "")

    def python_headers(self) -> str:
        """Return the path of Python.h, which Triton compiles against, "" if it is missing."""
        header = Path(sysconfig.get_path("include")) / "Python.h"
        return str(header) if header.exists() else ""

    def cuda_compiler(self) -> str:
        """Return the path of nvcc beside which the headers of curand lie, "" if there is none.

        It comes from a CUDA toolkit (CUDA_HOME, PATH) or from the pinned packages, which put it into `nvidia/cu13`.
        """
        homes = [os.environ.get("CUDA_HOME", ""), str(Path(shutil.which("nvcc") or "").parent.parent)]
        homes += [f"{folder}/nvidia/cu13" for folder in sys.path]
        compilers = (Path(home) / "bin" / "nvcc" for home in homes if home)
        complete = (c for c in compilers if c.exists() and (c.parent.parent / "include" / "curand.h").exists())
        return str(next(complete, ""))

    def port_free(self, port: int) -> bool:
        """Return whether nothing listens on a port of this machine."""
        with socket.socket() as probe:
            probe.settimeout(1.0)
            return probe.connect_ex(("127.0.0.1", port)) != 0

    def disk_free_gb(self, folder: str) -> float:
        """Return the free space in the file system of a folder, in GB."""
        return shutil.disk_usage(folder).free / 1e9

    def memory_gb(self) -> float:
        """Return the main memory in GB: the container's limit if it has one."""
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        limit = Path("/sys/fs/cgroup/memory.max")
        text = limit.read_text().strip() if limit.exists() else "max"
        return min(total, int(text)) / 1e9 if text.isdigit() else total / 1e9

    def shared_memory_gb(self) -> float:
        """Return the size of /dev/shm in GB, which holds Ray's object store; 0 if there is none."""
        return shutil.disk_usage("/dev/shm").total / 1e9 if Path("/dev/shm").exists() else 0.0


def free_port() -> int:
    """Return a TCP port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _import_error(module: str) -> str:
    command = [sys.executable, "-c", f"import {module}"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"took longer than {_IMPORT_TIMEOUT_S:.0f} s"
    if process.returncode == 0:
        return ""
    lines = process.stderr.strip().splitlines()
    return lines[-1] if lines else f"ended with status {process.returncode}"
