"""The doctor on machines with one problem each."""

from collections.abc import Mapping

import pytest

from vlgenrm_ray.cluster.doctor import Check, CheckStatus, diagnose, report
from vlgenrm_ray.cluster.machine import Machine
from vlgenrm_ray.cluster.resources import ResourceRequest


class Healthy(Machine):
    """A laptop without problems; each subclass breaks one thing."""

    def python(self) -> tuple[int, int]:
        return (3, 11)

    def pins(self) -> Mapping[str, str]:
        return {"torch": "2.13.0+cpu", "torchvision": "0.28.0", "ray": "2.60.0"}

    def installed(self, package: str) -> str:
        return {"torch": "2.13.0+cpu", "torchvision": "0.28.0+cpu", "ray": "2.60.0"}.get(package, "")

    def import_errors(self, modules: tuple[str, ...]) -> Mapping[str, str]:
        return dict.fromkeys(modules, "")

    def cpus(self) -> int:
        return 2

    def gpus(self) -> tuple[str, ...]:
        return ()

    def compiler(self) -> str:
        return "/usr/bin/c++"

    def python_headers(self) -> str:
        return "/usr/include/python3.11/Python.h"

    def cuda_compiler(self) -> str:
        return ""

    def port_free(self, port: int) -> bool:
        return True

    def disk_free_gb(self, folder: str) -> float:
        return 100.0

    def memory_gb(self) -> float:
        return 16.0

    def shared_memory_gb(self) -> float:
        return 8.0


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def problems(machine: Machine, *requests: ResourceRequest) -> list[Check]:
    return [check for check in diagnose(requests, machine=machine) if check.status is not CheckStatus.OK]


def test_a_healthy_machine_passes() -> None:
    assert problems(Healthy(), ResourceRequest(stage="responses", count=2)) == []
    assert report(diagnose(machine=Healthy())) == 0


def test_an_old_python_fails() -> None:
    class Old(Healthy):
        def python(self) -> tuple[int, int]:
            return (3, 10)

    (check,) = problems(Old())
    assert (check.status, check.result) == (CheckStatus.FAIL, "3.10")
    assert "setup.sh" in check.remedy


def test_missing_packages_fail_and_other_versions_warn() -> None:
    class Drifted(Healthy):
        def installed(self, package: str) -> str:
            return "2.59.0" if package == "ray" else super().installed(package)

    class Gone(Healthy):
        def installed(self, package: str) -> str:
            return "" if package == "ray" else super().installed(package)

    (drifted,), (gone,) = problems(Drifted()), problems(Gone())
    assert (drifted.status, gone.status) == (CheckStatus.WARN, CheckStatus.FAIL)
    assert "ray 2.59.0 (pinned 2.60.0)" in drifted.result
    assert "missing: ray" in gone.result


def test_a_broken_engine_is_named_and_the_others_are_checked() -> None:
    class Broken(Healthy):
        def import_errors(self, modules: tuple[str, ...]) -> Mapping[str, str]:
            return dict.fromkeys(modules, "") | {"vllm": "ImportError: libnuma.so.1"}

    (check,) = problems(Broken())
    assert (check.name, check.result) == ("import vllm", "ImportError: libnuma.so.1")


def test_gpus_without_their_torch_warn() -> None:
    class Idle(Healthy):
        def gpus(self) -> tuple[str, ...]:
            return ("L40S, 46068 MiB, 580.95",)

    (check,) = problems(Idle())
    assert check.remedy == "bash cluster/setup.sh gpu"


class Gpu(Healthy):
    """A machine with one GPU and the packages for it."""

    driver = "580.95.05"

    def installed(self, package: str) -> str:
        return {"torch": "2.13.0", "torchvision": "0.28.0"}.get(package, super().installed(package))

    def pins(self) -> Mapping[str, str]:
        return {"torch": "2.13.0", "torchvision": "0.28.0"}

    def gpus(self) -> tuple[str, ...]:
        return (f"NVIDIA H100 80GB HBM3, 81559 MiB, {self.driver}",)


def test_a_machine_with_a_gpu_passes_without_nvcc() -> None:
    checks = {check.name: check for check in diagnose(machine=Gpu())}
    assert problems(Gpu()) == []
    assert "FlashInfer" in checks["nvcc, curand.h"].result


@pytest.mark.parametrize("driver", ["550.163.01", "575.57", "[N/A]"])
def test_a_driver_that_is_too_old_for_cuda_13_fails(driver: str) -> None:
    class Old(Gpu):
        pass

    Old.driver = driver
    (check,) = problems(Old())
    assert (check.name, check.status) == ("gpu driver", CheckStatus.FAIL)
    assert "580" in check.result


@pytest.mark.parametrize(("kind", "status"), [(Healthy, CheckStatus.WARN), (Gpu, CheckStatus.FAIL)])
def test_missing_headers_of_python_are_named(kind: type[Healthy], status: CheckStatus) -> None:
    class Headerless(kind):  # type: ignore[misc, valid-type]
        def python_headers(self) -> str:
            return ""

    (check,) = problems(Headerless())
    assert (check.name, check.status) == ("Python.h", status)
    assert "python3-dev" in check.remedy


@pytest.mark.parametrize(("free", "status"), [(5.0, CheckStatus.WARN), (1.0, CheckStatus.FAIL)])
def test_a_full_disk_warns_or_fails(free: float, status: CheckStatus) -> None:
    class Full(Healthy):
        def disk_free_gb(self, folder: str) -> float:
            return free

    assert {check.status for check in problems(Full())} == {status}


def test_the_small_shared_memory_of_docker_warns() -> None:
    class Docker(Healthy):
        def shared_memory_gb(self) -> float:
            return 0.064

    (check,) = problems(Docker())
    assert "--shm-size" in check.remedy


def test_a_gpu_recipe_on_a_laptop_fails_by_its_stage() -> None:
    (check,) = problems(Healthy(), ResourceRequest(stage="critiques", num_gpus=1), ResourceRequest(stage="pool"))
    assert (check.name, check.status) == ("stage critiques", CheckStatus.FAIL)
    assert report([check]) == 1


def test_a_cluster_that_does_not_answer_is_a_failed_check() -> None:
    checks = diagnose(address="127.0.0.1:1", machine=Healthy())
    assert checks[-1].status is CheckStatus.FAIL
    assert "127.0.0.1:1" in checks[-1].result


def test_the_table_is_at_most_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    report(diagnose([ResourceRequest(stage="critiques", count=3, num_gpus=1)], machine=Healthy()))
    printed = capsys.readouterr().out
    assert "critiques" in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_facts_of_the_real_machine() -> None:
    machine = Machine()
    assert machine.installed("pydantic")
    assert machine.installed("no-such-package") == ""
    assert machine.pins()["ray"] == "2.60.0"
    assert machine.cpus() >= 1
    assert machine.python_headers().endswith("Python.h")
    assert machine.cuda_compiler() == "" or machine.cuda_compiler().endswith("nvcc")
    assert machine.memory_gb() > 0
    assert machine.import_errors(("json", "no_such_module"))["json"] == ""
    assert "no_such_module" in machine.import_errors(("no_such_module",))["no_such_module"]
