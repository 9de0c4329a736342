"""The transport of new weights, by the GPUs of a run."""

import pytest

from vlgenrm_ray.config import load_policy
from vlgenrm_ray.entrypoints import shipped_recipe
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.weight_sync.config import SyncConfig, resolve_backend

SEPARATE = {"num_workers": 8, "worker_gpus": 1, "num_engines": 8, "engine_gpus": 1, "tensor_parallel_size": 1}
SHARED = {"num_workers": 1, "worker_gpus": 0.5, "num_engines": 1, "engine_gpus": 0.5, "tensor_parallel_size": 1}
CPU_ONLY = {"num_workers": 2, "worker_gpus": 0, "num_engines": 1, "engine_gpus": 0, "tensor_parallel_size": 1}


@pytest.mark.parametrize(("gpus", "backend"), [(SEPARATE, "nccl"), (SHARED, "ipc"), (CPU_ONLY, "object_store")])
def test_auto_is_the_fastest_transport_that_the_gpus_allow(gpus: dict, backend: str) -> None:
    assert resolve_backend(SyncConfig(), **gpus) == backend
    assert resolve_backend(SyncConfig(transfer=backend), **gpus) == backend
    assert resolve_backend(SyncConfig(transfer="object_store"), **gpus) == "object_store"


@pytest.mark.parametrize(
    "changes",
    [
        {"worker_gpus": 1, "num_workers": 1},
        {"engine_gpus": 1},
        {"worker_gpus": 0.5, "num_workers": 1, "engine_gpus": 0.25, "num_engines": 2},
        {"worker_gpus": 0.5, "num_workers": 2, "engine_gpus": 0.5},
        {"worker_gpus": 0.5, "num_workers": 1, "engine_gpus": 0.75},
    ],
)
def test_auto_is_the_object_store_if_only_some_processes_have_gpus_or_several_share_one(changes: dict) -> None:
    assert resolve_backend(SyncConfig(), **CPU_ONLY | changes) == "object_store"


def test_an_engine_with_tensor_parallelism_needs_as_many_gpus() -> None:
    gpus = SEPARATE | {"num_engines": 2, "engine_gpus": 4, "tensor_parallel_size": 4}
    assert resolve_backend(SyncConfig(), **gpus) == "nccl"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["sync.transfer=nccl", "num_gpus=0"], "nccl needs one GPU per learner worker, got num_gpus: 0; use 1"),
        (["sync.transfer=nccl", "rollouts.num_gpus=0"], "got rollouts.num_gpus: 0; use 1, rollouts.engine."),
        (["sync.transfer=nccl", "rollouts.engine.tensor_parallel_size=2"], "got rollouts.num_gpus: 1; use 2"),
        (["sync.transfer=ipc"], "ipc needs one GPU that learner and engine share, got num_gpus: 1"),
        (
            ["sync.transfer=ipc", "num_gpus=0.5", "rollouts.num_gpus=0.5"],
            "ipc needs one learner worker and one engine on one GPU; use workers: 1 and rollouts.num_engines: 1",
        ),
        (["sync.timeout_s=0"], "policy.sync.timeout_s: got 0"),
    ],
)
def test_a_transport_that_the_gpus_do_not_allow_is_refused_with_the_remedy(override: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_policy(shipped_recipe("qwen3_vl_4b_grpo"), [f"policy.{one}" for one in override])
    assert message in str(caught.value)


def test_the_recipes_use_the_transport_that_their_gpus_allow() -> None:
    assert load_policy(shipped_recipe("qwen3_vl_4b_grpo"), ()).policy.sync_backend() == "nccl"
    assert load_policy(shipped_recipe("shapes_grpo"), ()).policy.sync_backend() == "object_store"
