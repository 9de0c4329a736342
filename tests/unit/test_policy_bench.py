"""The policy's bench without its trainings: what both sides are given, what is made of their lines, and the table."""

from typing import Any

import pytest

from vlgenrm_ray import config, recipe
from vlgenrm_ray.bench.policy import compared, shares
from vlgenrm_ray.bench.policy_table import rows
from vlgenrm_ray.bench.policy_work import Pace, pace, work
from vlgenrm_ray.bench.run import bench_policy
from vlgenrm_ray.bench.table import lines
from vlgenrm_ray.bench.trl_arguments import arguments
from vlgenrm_ray.bench.trl_vllm import one_placeholder
from vlgenrm_ray.config import PolicyRunConfig
from vlgenrm_ray.entrypoints import shipped_recipe
from vlgenrm_ray.errors import InputError, StageError

SECONDS = {"wait": 0.6, "learn": 0.3, "sync": 0.05, "sampling": 0.5}


def shapes(*overrides: str) -> PolicyRunConfig:
    return config.load_policy(shipped_recipe("shapes_grpo"), overrides)


def line(step: int, at: float, **changes: Any) -> dict[str, Any]:
    return {"step": step, "timestamp": at, "samples": 8.0, "length": 20.0, "reward": 0.5, "seconds": SECONDS} | changes


def steady(rate: float, reward: float = 0.5) -> Pace:
    """Of two steps that take 4 s."""
    phases = {name: 2 * seconds for name, seconds in SECONDS.items()}
    return Pace(steps=2, seconds=4.0, samples=4 * rate, tokens=80.0 * rate, reward=reward, phases=phases)


# -- what they are given -----------------------------------------------------------------------------------------------


def test_a_recipe_is_cut_down_to_its_steps() -> None:
    cut = work(shapes("seed=5"), steps=12, threads=2, mode="one_step_off")
    policy = cut.policy
    assert cut.judge_service is None
    assert [reward.function for reward in policy.rewards] == ["vlgenrm_ray.shapes.world:response_is_true"]
    assert (policy.mode, policy.steps, policy.seed) == ("one_step_off", 12, 5)
    assert (policy.rollouts.engine.threads, policy.rollouts.num_cpus, policy.num_cpus) == (2, 2.0, 2)
    # One before the first step and one after the last, each of one question.
    assert (policy.evaluation.every, cut.heldout.count) == (12, 1)
    # A checkpoint takes time, and is no part of a step.
    assert (policy.checkpoint_every, policy.samples_every) == (0, 12)
    # No question twice.
    assert cut.pool.count == 12 * policy.questions_per_step
    # What is learnt, and how, is the recipe's.
    kept = shapes().policy
    assert (policy.algorithm, policy.engine, policy.questions_per_step) == (
        kept.algorithm,
        kept.engine,
        kept.questions_per_step,
    )
    # As it goes to the process that trains.
    assert recipe.build(PolicyRunConfig, cut.model_dump(mode="json")) == cut


def test_a_seed_of_the_training_alone_is_kept() -> None:
    assert work(shapes("seed=5", "policy.seed=3"), steps=2, threads=1).policy.seed == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("policy.evaluation.measure=''", "policy.evaluation.measure"),
        ("policy.num_gpus=1", "policy.num_gpus"),
        ("policy.rollouts.num_gpus=0.5", "policy.rollouts.num_gpus"),
    ],
)
def test_what_cannot_be_measured_is_refused(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        work(shapes(override), steps=2, threads=1)


def test_the_other_trainer_is_told_the_same() -> None:
    told = arguments(
        work(shapes("policy.rollouts.top_p=0.9"), steps=12, threads=2), generation="transformers", micro_batches=4
    )
    assert (told["per_device_train_batch_size"], told["gradient_accumulation_steps"]) == (32, 4)
    assert (told["num_generations"], told["max_completion_length"]) == (8, 96)
    assert (told["temperature"], told["top_p"]) == (1.0, 0.9)
    assert (told["beta"], told["epsilon"], told["epsilon_high"]) == (0.1, 0.2, 0.28)
    assert (told["loss_type"], told["scale_rewards"]) == ("dapo", "batch")
    # 5 % of 12 steps, as ours rounds it.
    assert (told["learning_rate"], told["lr_scheduler_type"], told["warmup_steps"]) == (3e-4, "constant_with_warmup", 1)
    assert (told["max_steps"], told["bf16"], told["shuffle_dataset"]) == (12, False, False)
    assert "use_vllm" not in told
    engine = arguments(work(shapes(), steps=12, threads=2), generation="vllm", micro_batches=1)
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
def test_what_the_other_trainer_does_otherwise_is_named(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        arguments(work(shapes(override), steps=2, threads=1), generation="vllm", micro_batches=1)


def test_samples_that_cannot_be_dealt_out_are_refused() -> None:
    with pytest.raises(InputError, match=r"128 samples a step .* 3 micro-batches"):
        arguments(work(shapes(), steps=2, threads=1), generation="transformers", micro_batches=3)


def test_a_prompt_has_one_placeholder_an_image() -> None:
    """Two images of 3 and 2 tokens (7); other tokens may repeat."""
    assert one_placeholder([1, 7, 7, 7, 2, 2, 7, 7, 3], 7) == [1, 7, 2, 2, 7, 3]


# -- what is made of their lines ---------------------------------------------------------------------------------------


def test_the_pace_is_that_of_the_steady_steps() -> None:
    """From the end of the last step that warms up to the end of the last that counts; what follows does not."""
    written = [line(1, 50.0), line(2, 52.0), line(3, 53.0), line(4, 56.0, reward=0.7, length=10.0), line(5, 99.0)]
    found = pace(written, warmup=2, steps=2)
    assert (found.seconds, found.samples, found.tokens, found.rate) == (4.0, 16.0, 240.0, 4.0)
    assert found.reward == pytest.approx(0.6)
    assert found.phases == pytest.approx({name: 2 * seconds for name, seconds in SECONDS.items()})
    figures = found.figures()
    assert (figures["step_s"], figures["tokens_per_s"], figures["tokens_per_sample"]) == (2.0, 60.0, 15.0)
    assert figures["learn_s"] == pytest.approx(0.3)


@pytest.mark.parametrize("steps", [[1, 2, 3], [1, 2, 4, 5]])
def test_lines_that_lack_a_step_are_no_measurement(steps: list[int]) -> None:
    with pytest.raises(StageError, match="2 steps and 2 more"):
        pace([line(step, float(step)) for step in steps], warmup=2, steps=2)


def test_the_fastest_of_the_others_is_the_one_to_beat() -> None:
    found = compared(
        [steady(20.0), steady(22.0), steady(30.0)],
        {"transformers": [steady(5.0)] * 3, "vllm": [steady(9.0), steady(11.0), steady(10.0)]},
    )
    assert (found["fastest"], found["ratio"], found["ratios"]) == ("vllm", 2.2, [2.222, 2.0, 3.0])
    assert found["others"]["transformers"]["samples_per_s"] == 5.0


def test_shares_are_of_all_of_a_step() -> None:
    """A step of 2 s: 0.6 of waiting, 0.3 of learning, 0.05 of handing out; 1.05 that no phase names."""
    assert shares([steady(1.0), steady(1.0)]) == {"wait": 30.0, "learn": 15.0, "sync": 2.5, "other": 52.5}


# -- the table ---------------------------------------------------------------------------------------------------------


def test_the_table_says_what_was_missed() -> None:
    side = steady(1234.5).figures()
    results = {
        "trl": {"ours": side, "others": {"transformers": side, "vllm": side}, "ratio": 1.9},
        "phases": {"wait": 60.0, "learn": 36.0, "sync": 3.0, "other": 1.0},
        "one_step_off": {"ours": side, "others": {"synchronous": side}, "ratio": 1.3},
    }
    assert [row.met for row in rows(results)] == [False, None, None, True, None, True]
    printed = list(lines(rows(results)))
    assert max(map(len, printed)) <= 80
    assert sum(text.endswith("MISSED") for text in printed) == 1
    assert sum("TRL, " in text for text in printed) == 2


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(InputError, match="--parts: 'speed' is none of trl, phases, one_step_off"):
        bench_policy(parts=("speed",))
