"""A discriminative judge: trained on pairs, exported, and scored by the batch engine and by a serving engine alike."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from world_examples import write_stage_folder

from vlgenrm_ray.data.files import read_json
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.deepspeed_config import DeepSpeedConfig
from vlgenrm_ray.engines.vllm import VllmConfig, VllmGenerator
from vlgenrm_ray.judge import prompts
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.judge import Judge, JudgeInput
from vlgenrm_ray.judge.model_settings import JudgeModelSettings, read_settings, with_model_settings, write_settings
from vlgenrm_ray.records import Preference, Side
from vlgenrm_ray.reward.training import TrainingConfig, TrainingResult, run
from vlgenrm_ray.serving.config import ServingConfig
from vlgenrm_ray.serving.engine import ScoreTask
from vlgenrm_ray.serving.engine_worker import EngineWorker
from vlgenrm_ray.serving.images import ImageStore
from vlgenrm_ray.serving.model_version import read_version
from vlgenrm_ray.shapes import pack_path
from vlgenrm_ray.shapes.pairs import gold_pairs

NUM_PAIRS = 16
JUDGE = JudgeConfig(kind="discriminative", direct_prompt="shapes_direct")
ENGINE = VllmConfig(max_model_len=512, kv_cache_gib=0.1, threads=1)
CONFIG = TrainingConfig(
    objective="bradley_terry",
    workers=1,
    num_cpus=1,
    epochs=2,
    examples_per_step=8,
    tokens_per_batch=2048,
    checkpoint_every=0,
    num_probes=2,
    engine=DeepSpeedConfig(zero_stage=2, precision="fp32", learning_rate=1.5e-3, freeze_vision=True),
)
NO_IMAGE, TOO_LONG, EMPTY = "p-no-image", "p-long", "p-empty"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Preference]:
    return list(gold_pairs(tmp_path_factory.mktemp("images"), seed=3, split="train", count=NUM_PAIRS))


def preferences(folder: Path, pairs: list[Preference]) -> StageFolder:
    """The pairs as a finished stage, with three that cannot be trained on."""
    gone = replace(pairs[0].question, image=replace(pairs[0].question.image, uri=str(folder / "gone.png")))
    others = [
        replace(pairs[0], id=NO_IMAGE, question=gone),
        replace(pairs[1], id=TOO_LONG, rejected=pairs[1].rejected * 400),
        replace(pairs[2], id=EMPTY, rejected="   "),
    ]
    return write_stage_folder(folder, [*pairs, *others])


@pytest.fixture(scope="module")
def trained(ray_local: None, pairs: list[Preference], tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    folder = tmp_path_factory.mktemp("discriminative")
    source, target = preferences(folder / "preferences", pairs), folder / "training"
    return run(CONFIG, base=pack_path("vlm"), examples=source, target=target, round=1, judge=JUDGE)


def test_pairs_are_trained_on_or_dropped_with_their_reason(trained: TrainingResult) -> None:
    metrics = trained.metrics
    assert metrics["num_examples"] == NUM_PAIRS
    assert metrics["dropped"] == {"image_missing": 1, "example_too_long": 1, "empty_text": 1}
    assert metrics["steps"] == 2 * NUM_PAIRS / 8
    assert metrics["first_loss"] == pytest.approx(math.log(2), abs=0.35)
    assert metrics["last_loss"] < metrics["first_loss"]


def test_the_export_says_that_it_is_discriminative_and_has_its_prompt(trained: TrainingResult) -> None:
    assert read_settings(trained.model).kind == "discriminative"
    config = with_model_settings(JudgeConfig(num_critiques=8), trained.model)
    assert config.is_discriminative
    assert prompts.load(config.direct_prompt) == prompts.load(JUDGE.direct_prompt)


def test_batch_and_serving_engine_give_the_rewards_of_the_trainer(
    trained: TrainingResult, pairs: list[Preference]
) -> None:
    by_id = {pair.id: pair for pair in pairs}
    probes = read_json(trained.model.parent / "probes.json")["probes"]
    assert len(probes) == 2 * CONFIG.num_probes
    sides = [(by_id[probe["id"].rpartition("/")[0]], Side(probe["id"].rpartition("/")[2])) for probe in probes]
    expected = np.array([probe["p_yes"] for probe in probes])

    settings = ENGINE.model_copy(update={"model": str(trained.model)})
    generator = VllmGenerator(settings)
    judge = Judge(with_model_settings(JudgeConfig(), trained.model), generator)
    items = [
        JudgeInput(id=f"{p.id}/{s}", images=p.question.images, question=p.question.text, response=p.response(s))
        for p, s in sides
    ]
    judgements = judge.score(items)
    assert [j.status for j in judgements] == ["ok"] * len(items)
    assert all(j.critiques == () and j.num_asked == 0 and j.num_tokens == 0 for j in judgements)
    # The export is rounded to the precision of the base folder.
    np.testing.assert_allclose([j.reward for j in judgements], expected, atol=0.03)
    generator.close()

    write_settings(JudgeModelSettings(kind="discriminative", reward_temperature=2.0), trained.model)
    served = asyncio.run(serve(settings, trained.model, [sides[0], sides[1]]))
    logits = np.log(expected[:2] / (1 - expected[:2])) / 2.0
    np.testing.assert_allclose(served, 1 / (1 + np.exp(-logits)), atol=0.03)


async def serve(engine: VllmConfig, model: Path, sides: Sequence[tuple[Preference, Side]]) -> list[float]:
    """The rewards of an engine as the service runs it, for requests that ask for critiques."""
    config = ServingConfig(engine=engine)
    version = read_version(model, 0)
    assert version.name != f"{model.name}-{model_folder.digest(model)[:8]}", "a calibration must be seen in the version"
    worker = await EngineWorker.start(config, version)
    store = ImageStore(config.images, max_bytes=1 << 24)
    tasks = [
        ScoreTask(
            images=(store.add(Path(pair.question.image.uri).read_bytes()),),
            question=pair.question.text,
            response=pair.response(side),
            config=JudgeConfig(mode="cot", num_critiques=2),
            deadline_s=60.0,
        )
        for pair, side in sides
    ]
    name, judgements = await worker.judge(tasks, version)
    worker.close()
    assert name == version.name
    assert all(j.status == "ok" and not j.critiques for j in judgements), judgements
    return [j.reward for j in judgements if j.reward is not None]
