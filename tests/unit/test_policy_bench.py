"""Bench of policy training without its trainings: recipes and arguments, throughput, and the table."""

from typing import Any

import pytest

from vlgenrm_ray import config, recipe
from vlgenrm_ray.bench import policy as policy_bench
from vlgenrm_ray.bench.policy import (
    Throughput,
    build_rows,
    compare_throughput,
    measure_throughput,
    phase_shares,
    reduce_recipe,
)
from vlgenrm_ray.bench.table import format_rows
from vlgenrm_ray.bench.trl_side import collapse_placeholders, grpo_arguments
from vlgenrm_ray.config import PolicyRunConfig
from vlgenrm_ray.entrypoints import shipped_recipe
from vlgenrm_ray.errors import InputError, StageError

SECONDS = {"wait": 0.6, "learn": 0.3, "sync": 0.05, "sampling": 0.5}


def shapes(*overrides: str) -> PolicyRunConfig:
    return config.load_policy(shipped_recipe("shapes_grpo"), overrides)


def line(step: int, at: float, **changes: Any) -> dict[str, Any]:
    return {"step": step, "timestamp": at, "samples": 8.0, "length": 20.0, "reward": 0.5, "seconds": SECONDS} | changes


def steady(rate: float, reward: float = 0.5) -> Throughput:
    """Two steps that take 4 s."""
    phases = {name: 2 * seconds for name, seconds in SECONDS.items()}
    return Throughput(steps=2, seconds=4.0, samples=4 * rate, tokens=80.0 * rate, reward=reward, phases=phases)


# -- recipes and arguments --------------------------------------------------------------------------------------------


def test_a_recipe_is_reduced_to_its_training_steps() -> None:
    reduced = reduce_recipe(shapes("seed=5"), steps=12, threads=2, mode="one_step_off")
    policy = reduced.policy
    assert reduced.judge_service is None
    assert [reward.function for reward in policy.rewards] == ["vlgenrm_ray.shapes.world:response_is_true"]
    assert (policy.mode, policy.steps, policy.seed) == ("one_step_off", 12, 5)
    assert (policy.rollouts.engine.threads, policy.rollouts.num_cpus, policy.num_cpus) == (2, 2.0, 2)
    # One evaluation before the first step and one after the last, each of one question.
    assert (policy.evaluation.every, reduced.heldout.count) == (12, 1)
    # A checkpoint is not part of a step.
    assert (policy.checkpoint_every, policy.samples_every) == (0, 12)
    # No question twice.
    assert reduced.pool.count == 12 * policy.questions_per_step
    # The learning itself is unchanged.
    original = shapes().policy
    assert (policy.algorithm, policy.engine, policy.questions_per_step) == (
        original.algorithm,
        original.engine,
        original.questions_per_step,
    )
    # The training process reads it from YAML.
    assert recipe.build(PolicyRunConfig, reduced.model_dump(mode="json")) == reduced


def test_a_seed_set_for_the_policy_is_preserved() -> None:
    assert reduce_recipe(shapes("seed=5", "policy.seed=3"), steps=2, threads=1).policy.seed == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("policy.evaluation.measure=''", "policy.evaluation.measure"),
        ("policy.num_gpus=1", "policy.num_gpus"),
        ("policy.rollouts.num_gpus=0.5", "policy.rollouts.num_gpus"),
    ],
)
def test_recipes_that_cannot_be_measured_are_refused(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        reduce_recipe(shapes(override), steps=2, threads=1)


def test_trl_gets_the_settings_of_the_recipe() -> None:
    arguments = grpo_arguments(
        reduce_recipe(shapes("policy.rollouts.top_p=0.9"), steps=12, threads=2),
        generation="transformers",
        micro_batches=4,
    )
    assert (arguments["per_device_train_batch_size"], arguments["gradient_accumulation_steps"]) == (32, 4)
    assert (arguments["num_generations"], arguments["max_completion_length"]) == (8, 96)
    assert (arguments["temperature"], arguments["top_p"]) == (1.0, 0.9)
    assert (arguments["beta"], arguments["epsilon"], arguments["epsilon_high"]) == (0.1, 0.2, 0.28)
    assert (arguments["loss_type"], arguments["scale_rewards"]) == ("dapo", "batch")
    # 5 % of 12 steps, as ours rounds it.
    assert (arguments["learning_rate"], arguments["lr_scheduler_type"], arguments["warmup_steps"]) == (
        3e-4,
        "constant_with_warmup",
        1,
    )
    assert (arguments["max_steps"], arguments["bf16"], arguments["shuffle_dataset"]) == (12, False, False)
    assert "use_vllm" not in arguments
    engine = grpo_arguments(reduce_recipe(shapes(), steps=12, threads=2), generation="vllm", micro_batches=1)
    assert (engine["vllm_mode"], engine["vllm_importance_sampling_mode"]) == ("colocate", "token_truncate")
    assert engine["vllm_importance_sampling_clip_max"] == 2.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("policy.algorithm.kl.estimator=k1", "estimator is not k3"),
        ("policy.algorithm.resample_rounds=2", "resample_rounds"),
        ("policy.updates_per_step=2", "updates_per_step"),
        ("policy.engine.lora={}", "lora"),
    ],
)
def test_settings_that_trl_lacks_are_refused(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        grpo_arguments(reduce_recipe(shapes(override), steps=2, threads=1), generation="vllm", micro_batches=1)


def test_samples_must_be_divisible_into_micro_batches() -> None:
    with pytest.raises(InputError, match=r"128 samples a step .* 3 micro-batches"):
        grpo_arguments(reduce_recipe(shapes(), steps=2, threads=1), generation="transformers", micro_batches=3)


def test_a_prompt_has_one_placeholder_per_image() -> None:
    """Two images of 3 and 2 tokens (7); other tokens may repeat."""
    assert collapse_placeholders([1, 7, 7, 7, 2, 2, 7, 7, 3], 7) == [1, 7, 2, 2, 7, 3]


# -- throughput ------------------------------------------------------------------------------------------------------


def test_throughput_counts_steady_steps_only() -> None:
    """Time runs from the end of the last warm-up step to the end of the last measured step."""
    lines = [line(1, 50.0), line(2, 52.0), line(3, 53.0), line(4, 56.0, reward=0.7, length=10.0), line(5, 99.0)]
    throughput = measure_throughput(lines, warmup=2, steps=2)
    assert (throughput.seconds, throughput.samples, throughput.tokens, throughput.rate) == (4.0, 16.0, 240.0, 4.0)
    assert throughput.reward == pytest.approx(0.6)
    assert throughput.phases == pytest.approx({name: 2 * seconds for name, seconds in SECONDS.items()})
    metrics = throughput.metrics()
    assert (metrics["step_s"], metrics["tokens_per_s"], metrics["tokens_per_sample"]) == (2.0, 60.0, 15.0)
    assert metrics["learn_s"] == pytest.approx(0.3)


@pytest.mark.parametrize("steps", [[1, 2, 3], [1, 2, 4, 5]])
def test_a_missing_step_is_an_error(steps: list[int]) -> None:
    with pytest.raises(StageError, match="2 steps and 2 more"):
        measure_throughput([line(step, float(step)) for step in steps], warmup=2, steps=2)


def test_ours_is_compared_to_the_fastest_of_the_others() -> None:
    comparison = compare_throughput(
        [steady(20.0), steady(22.0), steady(30.0)],
        {"transformers": [steady(5.0)] * 3, "vllm": [steady(9.0), steady(11.0), steady(10.0)]},
    )
    assert (comparison["fastest"], comparison["ratio"], comparison["ratios"]) == ("vllm", 2.2, [2.222, 2.0, 3.0])
    assert comparison["others"]["transformers"]["samples_per_s"] == 5.0


def test_phase_shares_add_up_to_a_whole_step() -> None:
    """A step of 2 s: 0.6 s waiting, 0.3 s learning, 0.05 s weight sync, 1.05 s in no phase."""
    assert phase_shares([steady(1.0), steady(1.0)]) == {"wait": 30.0, "learn": 15.0, "sync": 2.5, "other": 52.5}


# -- the table ---------------------------------------------------------------------------------------------------------


def test_the_table_marks_missed_targets() -> None:
    side = steady(1234.5).metrics()
    results = {
        "trl": {"ours": side, "others": {"transformers": side, "vllm": side}, "ratio": 1.9},
        "phases": {"wait": 60.0, "learn": 36.0, "sync": 3.0, "other": 1.0},
        "one_step_off": {"ours": side, "others": {"synchronous": side}, "ratio": 1.3},
    }
    assert [row.met for row in build_rows(results)] == [False, None, None, True, None, True]
    printed = list(format_rows(build_rows(results)))
    assert max(map(len, printed)) <= 80
    assert sum(text.endswith("MISSED") for text in printed) == 1
    assert sum("TRL, " in text for text in printed) == 2


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(InputError, match="--parts: 'speed' is not one of trl, phases, one_step_off"):
        policy_bench.run(parts=("speed",))
