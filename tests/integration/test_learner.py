"""The learner: ZeRO 1, 2, 3 and LoRA with two workers learn, resume, export, and give the same rewards everywhere.

1. A new learner that loads a checkpoint has, in the next steps, the losses of the learner that was not interrupted.
2. All ZeRO stages compute the same losses: they share out the same arithmetic.
3. The exported folder's reward p(Yes) / (p(Yes) + p(No)) is the training engine's, in transformers and in vLLM.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from export_rewards import prefix, rewards_in_transformers, rewards_in_vllm
from fp32_model import copy_in_fp32
from workers import run_on_workers
from world_examples import draw_examples

from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.engines.deepspeed_config import DeepSpeedConfig, LoraConfig
from vlgenrm_ray.records import Example, ExampleKind
from vlgenrm_ray.shapes import pack_path

LEARNING_RATE = 1e-3
STEPS = 4
RESUMED_AT = 2
CONFIGS = {
    "zero-1": DeepSpeedConfig(zero_stage=1, precision="fp32"),
    "zero-2": DeepSpeedConfig(zero_stage=2, precision="fp32", gradient_checkpointing=True),
    "zero-3": DeepSpeedConfig(zero_stage=3, precision="fp32", gradient_checkpointing=True),
    "lora": DeepSpeedConfig(zero_stage=3, precision="fp32", lora=LoraConfig(rank=4, alpha=8.0)),
    "frozen-vision": DeepSpeedConfig(zero_stage=0, precision="fp32", freeze_vision=True),
}
# Rewards lie in [0, 1]. All engines compute in fp32 here; they differ in the order of their sums.
TOLERANCE = 1e-3


def run_experiments(base: Path, folder: Path, examples: list[Example]) -> None:
    """Run every configuration in turn, on both workers: in one process, because imports take longer than learning."""
    import torch.distributed as dist

    rank = dist.get_rank()
    results: dict[str, Any] = {}
    for name, config in CONFIGS.items():
        results[name] = _experiment(base, config, folder / name, examples, rank)
    results["nan"] = _rows_of_a_loss_that_is_not_finite(base, examples)
    if rank == 0:
        (folder / "results.json").write_text(json.dumps(results))


def _experiment(
    base: Path, config: DeepSpeedConfig, folder: Path, examples: list[Example], rank: int
) -> dict[str, Any]:
    from vlgenrm_ray.engines.deepspeed import Learner
    from vlgenrm_ray.engines.export import export
    from vlgenrm_ray.engines.vlm_batch import VlmEncoder

    encoder = VlmEncoder(base, ImageLimits())
    folder.mkdir(parents=True, exist_ok=True)
    learner = Learner(base, config, seed=0)
    first = [_step(learner, encoder, examples, step, rank) for step in range(RESUMED_AT)]
    learner.save(folder)
    uninterrupted = [_step(learner, encoder, examples, step, rank) for step in range(RESUMED_AT, STEPS)]
    learner.close()
    learner = Learner(base, config, seed=1)
    learner.load(folder)
    resumed = [_step(learner, encoder, examples, step, rank) for step in range(RESUMED_AT, STEPS)]
    rewards = [_reward(learner, encoder, e) for e in judgements(examples)]
    export(learner, folder / "model")
    learner.close()
    return {"first": first, "uninterrupted": uninterrupted, "resumed": resumed, "rewards": rewards}


def _step(learner: Any, encoder: Any, examples: list[Example], number: int, rank: int) -> list[float]:
    """Return loss and gradient norm of a step on eight examples, four per worker, in micro-batches of three and one."""
    mine = examples[8 * number + 4 * rank :][:4]
    rows = [(encoder.encode(e.images, e.prompt, e.completion), e.images, e.weight) for e in mine]
    total = sum(encoder.encode(e.images, e.prompt, e.completion).num_targets for e in examples[8 * number :][:8])
    batches = [encoder.batch(rows[:3]), encoder.batch(rows[3:]), encoder.batch(rows[:1], counts=False)]
    result = learner.step(batches, denominator=float(total), lr=LEARNING_RATE)
    return [result.loss, result.grad_norm]


def _reward(learner: Any, encoder: Any, example: Example) -> float:
    tokens = encoder.encode_prefix(example.images, example.prompt, prefix(example))
    forms = encoder.vocabulary.token_ids(("Yes", "No"))
    probabilities = learner.word_probabilities(encoder.batch([(tokens, example.images, 1.0)]), forms)[0]
    return float(probabilities["Yes"] / (probabilities["Yes"] + probabilities["No"]))


def _rows_of_a_loss_that_is_not_finite(base: Path, examples: list[Example]) -> list[tuple[int, int]]:
    """Return the rows that a learner names if a weight is NaN; equal on all workers, which would hang otherwise."""
    from vlgenrm_ray.engines.deepspeed import Learner
    from vlgenrm_ray.engines.deepspeed_model import NonFiniteLoss
    from vlgenrm_ray.engines.vlm_batch import VlmEncoder

    encoder = VlmEncoder(base, ImageLimits())
    learner = Learner(base, CONFIGS["zero-2"], seed=0)
    rows = [
        (encoder.encode(e.images, e.prompt, e.completion), e.images, w)
        for e, w in zip(examples[:2], (1.0, float("nan")), strict=True)
    ]
    with pytest.raises(NonFiniteLoss) as caught:
        learner.step([encoder.batch(rows)], denominator=10.0, lr=LEARNING_RATE)
    return list(caught.value.examples)


def judgements(examples: list[Example]) -> list[Example]:
    """Return the examples whose rewards are compared."""
    return [e for e in examples if e.kind is ExampleKind.CRITIQUE][:6] + [
        e for e in examples if e.kind is ExampleKind.DIRECT
    ][:2]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    return draw_examples(tmp_path_factory.mktemp("images"), 2 * STEPS)


@pytest.fixture(scope="module")
def exports(examples: list[Example], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the results and an export of each configuration."""
    folder = tmp_path_factory.mktemp("experiments")
    base = copy_in_fp32(pack_path("vlm"), folder / "base")
    run_on_workers(run_experiments, folder, base, folder, examples)
    return folder


@pytest.fixture(scope="module")
def results(exports: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((exports / "results.json").read_text())
    return values


@pytest.mark.parametrize("name", CONFIGS)
def test_a_resumed_learner_has_the_losses_of_an_uninterrupted_one(results: dict[str, Any], name: str) -> None:
    expected, resumed = results[name]["uninterrupted"], results[name]["resumed"]
    assert [x for step in resumed for x in step] == pytest.approx([x for step in expected for x in step], rel=1e-4)


def test_all_stages_compute_the_same(results: dict[str, Any]) -> None:
    losses = {
        n: [loss for loss, _ in results[n]["first"] + results[n]["uninterrupted"]]
        for n in ("zero-1", "zero-2", "zero-3")
    }
    assert losses["zero-2"] == pytest.approx(losses["zero-1"], rel=1e-4)
    assert losses["zero-3"] == pytest.approx(losses["zero-1"], rel=1e-4)
    norms = {n: [norm for _, norm in results[n]["first"]] for n in ("zero-1", "zero-3")}
    assert norms["zero-3"] == pytest.approx(norms["zero-1"], rel=1e-3)


def log_odds(p: float) -> float:
    inside = min(max(p, 1e-7), 1 - 1e-7)
    return math.log(inside) - math.log1p(-inside)


@pytest.fixture(scope="module")
def base_rewards(exports: Path, examples: list[Example]) -> list[float]:
    return rewards_in_transformers(exports / "base", judgements(examples))


@pytest.mark.parametrize("name", CONFIGS)
def test_learning_changes_the_rewards(results: dict[str, Any], base_rewards: list[float], name: str) -> None:
    after = results[name]["rewards"]
    # In log-odds: some rewards are so near 0 or 1 that no learning shows in them.
    assert max(abs(log_odds(a) - log_odds(b)) for a, b in zip(base_rewards, after, strict=True)) > 2e-3


def test_a_loss_that_is_not_finite_names_its_rows(results: dict[str, Any]) -> None:
    assert results["nan"] == [[0, 1]]


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_gives_the_engines_rewards(
    exports: Path, results: dict[str, Any], examples: list[Example], name: str
) -> None:
    rewards = rewards_in_transformers(exports / name / "model", judgements(examples))
    assert rewards == pytest.approx(results[name]["rewards"], abs=TOLERANCE)


@pytest.mark.parametrize("name", ["zero-1", "zero-2", "zero-3", "lora"])
def test_vllm_gives_the_engines_rewards(
    exports: Path, results: dict[str, Any], examples: list[Example], name: str
) -> None:
    rewards = rewards_in_vllm(exports / name / "model", judgements(examples))
    assert rewards == pytest.approx(results[name]["rewards"], abs=TOLERANCE)


@pytest.mark.parametrize("name", ["zero-3", "lora"])
def test_an_export_has_the_files_of_its_base(exports: Path, name: str) -> None:
    for file in (exports / "base").iterdir():
        there = exports / name / "model" / file.name
        assert there.exists()
        assert file.suffix == ".safetensors" or there.read_bytes() == file.read_bytes()
    assert {f.name for f in (exports / name / "model").iterdir()} == {f.name for f in (exports / "base").iterdir()}
