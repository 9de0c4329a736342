"""GPUs of the shipped recipes: what each stage takes at once, and the memory of the learners."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from vlgenrm_ray import config, plan
from vlgenrm_ray.cluster.resources import Cluster, Node, unmet_requests
from vlgenrm_ray.engines import learner_memory
from vlgenrm_ray.engines.deepspeed_config import DeepSpeedConfig, LoraConfig
from vlgenrm_ray.engines.learner_memory import ModelSize
from vlgenrm_ray.entrypoints import RECIPES
from vlgenrm_ray.errors import ConfigError

NODE = Node(num_cpus=64, num_gpus=8)
REWARD = {
    "qwen3_vl_4b": (1, {"responses": 8, "experts": 8, "critiques": 8, "evaluation": 8, "training": 8}),
    "qwen2_5_vl_7b": (4, {"responses": 32, "experts": 32, "critiques": 32, "evaluation": 32, "training": 32}),
}
"""Recipe -> nodes of 8 GPUs, and GPUs of each stage."""
QWEN3_VL_4B: dict[str, Any] = {
    "model_type": "qwen3_vl",
    "tie_word_embeddings": True,
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
    },
    "vision_config": {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "out_hidden_size": 2560,
        "patch_size": 16,
        "deepstack_visual_indexes": [5, 11, 17],
        "num_position_embeddings": 2304,
    },
}


def qwen2_5_vl(hidden: int, intermediate: int, layers: int, heads: int, kv: int, vision: int) -> dict[str, Any]:
    return {
        "model_type": "qwen2_5_vl",
        "text_config": {
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv,
            "vocab_size": 152064,
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": vision,
            "num_heads": 16,
            "out_hidden_size": hidden,
            "patch_size": 14,
        },
    }


PUBLISHED = {
    "4B": (QWEN3_VL_4B, 4.44),
    "7B": (qwen2_5_vl(3584, 18944, 28, 28, 4, 3420), 8.29),
    "32B": (qwen2_5_vl(5120, 27648, 64, 40, 8, 3456), 33.45),
}
"""Configuration of a published model, and its weights in billions as published."""
FULL = DeepSpeedConfig(zero_stage=3, precision="bf16", freeze_vision=True, gradient_checkpointing=True)


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSize]:
    read = {}
    for name, (configuration, _) in PUBLISHED.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "config.json").write_text(json.dumps(configuration))
        read[name] = learner_memory.model_size(str(folder))
    return read


def printed(renderable: Table | str) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


# -- placement ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REWARD)
def test_each_stage_takes_the_gpus_of_the_cluster_that_the_recipe_names(name: str) -> None:
    num_nodes, expected = REWARD[name]
    requests = plan.reward_requests(config.load(RECIPES / f"{name}.yaml"))
    assert {stage: gpus for stage, gpus in plan.peak_gpus(requests).items() if gpus} == expected
    assert unmet_requests(requests, Cluster(nodes=(NODE,) * num_nodes)) == []
    assert unmet_requests(requests, Cluster(nodes=(NODE,) * (num_nodes - 1) + (Node(num_cpus=64, num_gpus=7),)))


def test_a_policys_learner_and_engines_are_there_at_the_same_time() -> None:
    settings = config.load_policy(RECIPES / "qwen3_vl_4b_grpo.yaml")
    requests = plan.policy_requests(settings)
    assert plan.peak_gpus(requests)["policy"] == 16
    assert unmet_requests(requests, Cluster(nodes=(NODE,) * 2)) == []
    assert unmet_requests(requests, Cluster(nodes=(NODE,)))


def test_experts_share_a_gpu_by_fractions() -> None:
    overrides = ("experts.actors.num_gpus=0.25", "experts.matcher_actors.num_gpus=0.25")
    requests = plan.reward_requests(config.load(RECIPES / "qwen3_vl_4b.yaml", overrides))
    assert plan.peak_gpus(requests)["experts"] == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("critiques.engine.tensor_parallel_size=2",), "critiques.actors.num_gpus: 2"),
        (("serving.engine.tensor_parallel_size=4",), "serving.num_gpus: 4"),
        (("responses.generators.0.engine.tensor_parallel_size=2",), "responses.generators.0.actors.num_gpus: 2"),
    ],
)
def test_an_engine_over_several_gpus_needs_an_actor_with_as_many(overrides: tuple[str, ...], message: str) -> None:
    plan.check_engines(config.load(RECIPES / "qwen3_vl_4b.yaml"))
    with pytest.raises(ConfigError, match=re.escape(message)):
        plan.check_engines(config.load(RECIPES / "qwen3_vl_4b.yaml", overrides))


def test_an_engine_on_a_part_of_a_gpu_must_leave_the_rest_to_others() -> None:
    """Two engines of 0.9 on one GPU, or an engine before a learner, would end in vLLM's own error after minutes."""
    halves = ("actors={num_actors: 16, num_cpus: 4, num_gpus: 0.5}",)
    with pytest.raises(ConfigError, match=r"critiques\.engine\.gpu_memory_utilization: 0\.9 .* 0\.45 or less"):
        plan.check_engines(config.load(RECIPES / "qwen3_vl_4b.yaml", halves))
    plan.check_engines(config.load(RECIPES / "qwen3_vl_4b.yaml", (*halves, "engine.gpu_memory_utilization=0.45")))
    ipc = ("policy.num_gpus=0.5", "policy.rollouts.num_gpus=0.5", "policy.workers=1", "policy.rollouts.num_engines=1")
    with pytest.raises(ConfigError, match=r"policy\.rollouts\.engine\.gpu_memory_utilization"):
        plan.check_engines(config.load_policy(RECIPES / "qwen3_vl_4b_grpo.yaml", (*ipc, "policy.sync.transfer=ipc")))


def test_tensor_parallel_engines_in_all_stages_policy_and_serving_are_placed_whole() -> None:
    overrides = ("engine.tensor_parallel_size=2", "actors={num_actors: 4, num_cpus: 8, num_gpus: 2}")
    serving = ("serving.num_gpus=2",)
    settings = config.load(RECIPES / "qwen3_vl_4b.yaml", overrides + serving + ("experts.actors.num_gpus=1",))
    plan.check_engines(settings)
    requests = plan.reward_requests(settings)
    assert unmet_requests(requests, Cluster(nodes=(NODE,))) == []
    # Eight nodes of one GPU have as many GPUs, and no room for an engine over two.
    problems = unmet_requests(requests, Cluster(nodes=(Node(num_cpus=12, num_gpus=1),) * 8))
    assert any("'critiques'" in problem for problem in problems)
    policy_overrides = ("policy.rollouts.engine.tensor_parallel_size=2", "policy.rollouts.num_engines=4")
    with pytest.raises(ConfigError, match="num_gpus"):
        plan.check_engines(
            config.load_policy(
                RECIPES / "qwen3_vl_4b_grpo.yaml", (*policy_overrides, "policy.sync.transfer=object_store")
            )
        )
    rollouts = config.load_policy(RECIPES / "qwen3_vl_4b_grpo.yaml", (*policy_overrides, "policy.rollouts.num_gpus=2"))
    plan.check_engines(rollouts)
    assert plan.peak_gpus(plan.policy_requests(rollouts))["policy"] == 16


def test_the_table_shows_the_gpus_of_a_stage() -> None:
    requests = plan.reward_requests(config.load(RECIPES / "qwen3_vl_4b.yaml"))
    text = printed(plan.request_table(requests, Cluster(nodes=(NODE,))))
    assert re.search(r"critiques .*8 actors .* 4 .* 1 .* 8 .* yes", text)
    assert max(map(len, text.splitlines())) <= 80


# -- memory ------------------------------------------------------------------------------------------------------------


def test_weights_are_counted_as_published(sizes: dict[str, ModelSize]) -> None:
    for name, (_, billions) in PUBLISHED.items():
        assert sizes[name].num_weights / 1e9 == pytest.approx(billions, abs=0.01)


@pytest.mark.parametrize(
    ("name", "workers", "fitting"),
    [("4B", 8, [1, 2, 3]), ("7B", 8, [1, 2, 3]), ("7B", 2, []), ("7B", 4, [1, 2, 3]), ("32B", 8, []), ("32B", 32, [3])],
)
def test_stages_that_fit_80_gb(sizes: dict[str, ModelSize], name: str, workers: int, fitting: list[int]) -> None:
    estimates = learner_memory.stages(sizes[name], FULL, workers=workers, tokens_per_batch=16384)
    assert [stage for stage, memory in estimates.items() if memory.total <= plan.GPU_MEMORY_GB] == fitting


def test_memory_follows_from_bytes_per_weight() -> None:
    """A model of 1 B weights, all trained, on 4 workers: the sums of the ZeRO paper."""
    size = ModelSize(num_weights=10**9, num_vision_weights=0, num_layers=1, hidden_size=1, vocab_size=1)
    plain = DeepSpeedConfig(zero_stage=1, precision="bf16")
    stages = learner_memory.stages(size, plain, workers=4, tokens_per_batch=1)
    parts = {stage: (m.weights, m.gradients, m.optimizer) for stage, m in stages.items()}
    # ZeRO 0 keeps fp32 weights and computes by autocast.
    assert parts == {0: (4, 4, 8), 1: (2, 2, 3), 2: (2, 0.5, 3), 3: (0.5, 0.5, 3)}


def test_adapters_references_and_offloading_change_their_part_alone(sizes: dict[str, ModelSize]) -> None:
    def estimated(settings: DeepSpeedConfig, **changes: Any) -> learner_memory.LearnerMemory:
        return learner_memory.estimate(sizes["7B"], settings, workers=8, tokens_per_batch=8192, **changes)

    full, lora = estimated(FULL), estimated(FULL.model_copy(update={"lora": LoraConfig(rank=16)}))
    assert lora.optimizer < 0.01 * full.optimizer
    assert lora.weights == full.weights
    with_reference = estimated(FULL, has_reference=True)
    assert with_reference.weights == pytest.approx(2 * full.weights)
    assert with_reference.optimizer == full.optimizer
    offloaded = estimated(FULL.model_copy(update={"offload": "cpu"}))
    assert (offloaded.weights, offloaded.optimizer) == (0.0, 0.0)


def test_the_table_marks_the_stage_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_VL_4B))
    settings = config.load(RECIPES / "qwen3_vl_4b.yaml", (f"base={tmp_path}",))
    (learner,) = plan.reward_learners(settings)
    text = printed(plan.memory_table(learner))
    assert re.search(r"2 \* .* fits", text)
    assert re.search(r"0 .* no", text)
    assert max(map(len, text.splitlines())) <= 80


def test_a_model_that_is_not_here_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    (learner,) = plan.reward_learners(config.load(RECIPES / "qwen3_vl_4b.yaml"))
    monkeypatch.setattr(learner_memory, "is_local", lambda model: False)
    assert "memory unknown, as Qwen/Qwen3-VL-4B-Instruct is not downloaded yet" in printed(plan.memory_table(learner))
