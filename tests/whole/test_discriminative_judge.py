"""A discriminative judge trained to an effect, with a worker killed on the way; tests/integration has its engines."""

import math
from pathlib import Path

import pytest
from interruptions import kill_training_worker, when_steps_are_done
from world_examples import write_stage_folder

from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.engines.deepspeed_config import DeepSpeedConfig
from vlgenrm_ray.engines.vllm import VllmConfig, VllmGenerator
from vlgenrm_ray.evaluation.metrics import judge_metrics
from vlgenrm_ray.evaluation.pairs import judge_pairs
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.judge import Judge
from vlgenrm_ray.judge.model_settings import with_model_settings
from vlgenrm_ray.reward.training import TrainingConfig, TrainingResult, run
from vlgenrm_ray.shapes import pack_path
from vlgenrm_ray.shapes.pairs import gold_pairs

NUM_PAIRS = 192
JUDGE = JudgeConfig(kind="discriminative", direct_prompt="shapes_direct")
ENGINE = VllmConfig(max_model_len=512, kv_cache_gib=0.1, threads=1)
CONFIG = TrainingConfig(
    objective="bradley_terry",
    workers=2,
    num_cpus=1,
    epochs=3,
    examples_per_step=16,
    tokens_per_batch=2048,
    checkpoint_every=8,
    num_probes=4,
    engine=DeepSpeedConfig(zero_stage=2, precision="fp32", learning_rate=1.5e-3, freeze_vision=True),
)


@pytest.fixture(scope="module")
def trained(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """A training in which one worker was killed after its first checkpoint."""
    folder = tmp_path_factory.mktemp("discriminative")
    pairs = list(gold_pairs(folder / "images", seed=3, split="train", count=NUM_PAIRS))
    source, target = write_stage_folder(folder / "preferences", pairs), folder / "training"
    with when_steps_are_done(target, 10, kill_training_worker):
        return run(CONFIG, base=pack_path("vlm"), examples=source, target=target, round=1, judge=JUDGE)


def test_every_pair_is_trained_on_in_every_epoch(trained: TrainingResult) -> None:
    metrics = trained.metrics
    assert metrics["num_examples"] == NUM_PAIRS
    assert metrics["steps"] == 3 * math.ceil(NUM_PAIRS / 16)
    assert metrics["first_loss"] == pytest.approx(math.log(2), abs=0.35)
    assert metrics["last_loss"] < metrics["first_loss"] - 0.1


def test_the_judge_is_far_above_its_base_on_held_out_pairs(trained: TrainingResult, tmp_path: Path) -> None:
    generator = VllmGenerator(ENGINE.model_copy(update={"model": str(trained.model)}))
    judge = Judge(with_model_settings(JudgeConfig(), trained.model), generator)
    heldout = list(gold_pairs(tmp_path, seed=9, split="heldout", count=160))
    results = [unit.records[0] for unit in judge_pairs(judge, heldout, limits=ImageLimits())]
    generator.close()
    # The base model is right in half of the pairs.
    assert judge_metrics(results)["pairwise_accuracy"] > 0.56
