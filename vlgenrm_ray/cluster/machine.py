"""What this machine is and has, as `doctor` asks for it. Reads and tries; judges nothing."""

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_IMPORT_LIMIT_S = 180.0
_REQUIREMENTS = Path(__file__).parents[2] / "cluster"


class Machine:
    """The real machine. Tests give the doctor one of their own making."""

    def python(self) -> tuple[int, int]:
        """Major and minor version of this interpreter."""
        return sys.version_info[:2]

    def pins(self) -> Mapping[str, str]:
        """Package -> version that `cluster/setup.sh` installs here; empty where the repository is not at hand."""
        kind = "cpu" if self.installed("torch").endswith("+cpu") or not self.gpus() else "gpu"
        listed = _REQUIREMENTS / f"requirements-{kind}.txt"
        if not listed.exists():
            return {}
        lines = listed.read_text().splitlines()
        return dict(line.split("==") for line in lines if line and not line.startswith("#"))

    def installed(self, package: str) -> str:
        """Version of an installed package, "" if it is not there."""
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return ""

    def import_errors(self, modules: tuple[str, ...]) -> Mapping[str, str]:
        """Module -> why it cannot be imported, "" if it can. Each in a process of its own, with a time limit."""
        with ThreadPoolExecutor(max_workers=max(1, min(4, self.cpus()))) as pool:
            return dict(zip(modules, pool.map(_import_error, modules), strict=True))

    def cpus(self) -> int:
        """Cores, as a local Ray counts them: all of the machine's, whatever this process is pinned to."""
        return os.cpu_count() or 1

    def gpus(self) -> tuple[str, ...]:
        """One line for each GPU: name, memory, driver."""
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        try:
            done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            return ()
        return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())

    def compiler(self) -> str:
        """Path of the C++ compiler, "" if there is none."""
        return next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), "")

    def port_free(self, port: int) -> bool:
        """Whether nobody listens on a port of this machine."""
        with socket.socket() as knocking:
            knocking.settimeout(1.0)
            return knocking.connect_ex(("127.0.0.1", port)) != 0

    def disk_free_gb(self, folder: str) -> float:
        """Space free in the file system of a folder, in GB."""
        return shutil.disk_usage(folder).free / 1e9

    def memory_gb(self) -> float:
        """Main memory in GB: the container's limit where there is one."""
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        limit = Path("/sys/fs/cgroup/memory.max")
        text = limit.read_text().strip() if limit.exists() else "max"
        return min(total, int(text)) / 1e9 if text.isdigit() else total / 1e9

    def shared_memory_gb(self) -> float:
        """Size of /dev/shm in GB, where Ray keeps the objects it passes between processes; 0 if there is none."""
        return shutil.disk_usage("/dev/shm").total / 1e9 if Path("/dev/shm").exists() else 0.0


def _import_error(module: str) -> str:
    command = [sys.executable, "-c", f"import {module}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"took longer than {_IMPORT_LIMIT_S:.0f} s"
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"ended with status {done.returncode}"
