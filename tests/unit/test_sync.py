"""By which way new weights go, on which GPUs."""

import pytest

from vlgenrm_ray.commands import shipped_recipe
from vlgenrm_ray.config import load_policy
from vlgenrm_ray.engines.vllm_config import VllmConfig
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.policy.rollouts import RolloutsConfig
from vlgenrm_ray.policy.sync import SyncConfig, way

OWN = {"rollouts": RolloutsConfig(num_gpus=1, actors=8), "workers": 8, "num_gpus": 1}
SHARED = {"rollouts": RolloutsConfig(num_gpus=0.5), "workers": 1, "num_gpus": 0.5}
NONE = {"rollouts": RolloutsConfig(), "workers": 2, "num_gpus": 0}


def rollouts(num_gpus: float, actors: int = 1, tensor_parallel_size: int = 1) -> RolloutsConfig:
    engine = VllmConfig(tensor_parallel_size=tensor_parallel_size)
    return RolloutsConfig(num_gpus=num_gpus, actors=actors, engine=engine)


@pytest.mark.parametrize(("gpus", "chosen"), [(OWN, "nccl"), (SHARED, "ipc"), (NONE, "object_store")])
def test_the_shortest_way_that_the_gpus_allow(gpus: dict, chosen: str) -> None:
    assert way(SyncConfig(), **gpus) == chosen
    assert way(SyncConfig(transfer=chosen), **gpus) == chosen
    assert way(SyncConfig(transfer="object_store"), **gpus) == "object_store"


def test_no_short_way_is_taken_where_only_some_have_gpus_or_several_share_them() -> None:
    for found in (
        way(SyncConfig(), rollouts(0), workers=1, num_gpus=1),
        way(SyncConfig(), rollouts(1), workers=1, num_gpus=0),
        way(SyncConfig(), rollouts(0.25, actors=2), workers=1, num_gpus=0.5),
        way(SyncConfig(), rollouts(0.5), workers=2, num_gpus=0.5),
        way(SyncConfig(), rollouts(0.75), workers=1, num_gpus=0.5),
    ):
        assert found == "object_store"
    assert way(SyncConfig(), rollouts(4, actors=2, tensor_parallel_size=4), workers=8, num_gpus=1) == "nccl"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (["sync.transfer=nccl", "num_gpus=0"], "nccl needs a GPU for each learning worker, got num_gpus: 0; use 1"),
        (["sync.transfer=nccl", "rollouts.num_gpus=0"], "got rollouts.num_gpus: 0; use 1, rollouts.engine."),
        (["sync.transfer=nccl", "rollouts.engine.tensor_parallel_size=2"], "got rollouts.num_gpus: 1; use 2"),
        (["sync.transfer=ipc"], "ipc needs one GPU that learner and engine share, got num_gpus: 1"),
        (
            ["sync.transfer=ipc", "num_gpus=0.5", "rollouts.num_gpus=0.5"],
            "ipc needs one learning worker and one engine on one GPU; use workers: 1 and rollouts.actors: 1",
        ),
        (["sync.timeout_s=0"], "policy.sync.timeout_s: got 0"),
    ],
)
def test_a_way_that_the_gpus_do_not_allow_is_refused_with_the_remedy(override: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_policy(shipped_recipe("qwen3_vl_4b_grpo"), [f"policy.{one}" for one in override])
    assert words in str(caught.value)


def test_the_recipes_take_the_way_that_their_gpus_allow() -> None:
    assert load_policy(shipped_recipe("qwen3_vl_4b_grpo"), ()).policy.way() == "nccl"
    assert load_policy(shipped_recipe("shapes_grpo"), ()).policy.way() == "object_store"
