"""The rollout orchestrator on Ray with the real engine: steps, new weights, and actors that are killed."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import descendants

from vlgenrm_ray.data.images import ImageLimits, keep
from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.engines.vllm_config import VllmConfig
from vlgenrm_ray.errors import WeightSyncError
from vlgenrm_ray.policy.config import AlgorithmConfig
from vlgenrm_ray.policy.orchestrator import OrchestratorConfig, start_orchestrator
from vlgenrm_ray.policy.rollouts import RolloutBatch, RolloutsConfig
from vlgenrm_ray.records import Question
from vlgenrm_ray.rewards.composite import RetryConfig
from vlgenrm_ray.rewards.config import RewardConfig
from vlgenrm_ray.shapes import pack_path
from vlgenrm_ray.weight_sync import object_store

ENGINE = VllmConfig(max_model_len=384, kv_cache_gib=0.05, threads=1)


def length(question: Question, response: str) -> float | None:
    """Reward short answers; an empty one has no reward."""
    return 1.0 / len(response) if response else None


def questions(folder: Path) -> list[Question]:
    import io

    from PIL import Image

    rows = []
    for i in range(12):
        data = io.BytesIO()
        Image.new("RGB", (48, 48), (20 * i, 80, 120)).save(data, "PNG")
        image = keep(data.getvalue(), folder, ImageLimits())
        rows.append(Question(id=f"q{i}", image=image, text="Describe the image.", source="test"))
    return rows


def stored(rows: list[Question], folder: Path) -> StageFolder:
    stage = StageFolder(folder)
    stage.begin("test", {})
    write_units(stage, Question, [Unit(id=question.id, records=(question,)) for question in rows])
    return stage


@pytest.fixture(scope="module")
def actor(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import ray

    folder = tmp_path_factory.mktemp("questions")
    rows = questions(folder)
    config = OrchestratorConfig(
        model=str(pack_path("vlm")),
        questions=stored(rows, folder / "pool"),
        held_out=stored(rows[:3], folder / "heldout-pool"),
        rollouts=RolloutsConfig(engine=ENGINE, group_size=4, max_tokens=8, num_cpus=0.5, stall_timeout_s=20),
        rewards=(RewardConfig(name="length", function=f"{length.__module__}:length"),),
        retry=RetryConfig(startup_timeout_s=5),
        algorithm=AlgorithmConfig(),
        questions_per_step=6,
        seed=0,
        images=ImageLimits(),
    )
    handle = start_orchestrator(config, "test")
    ray.get(handle.start.remote())
    yield handle
    ray.get(handle.close.remote())
    ray.kill(handle)


def step(actor: Any, number: int, version: int) -> RolloutBatch:
    import ray

    batch: RolloutBatch = ray.get(actor.collect_step.remote(number, version), timeout=120)
    return batch


def weights(factor: float) -> dict[str, Any]:
    from safetensors.torch import load_file

    whole = {name: t for path in pack_path("vlm").glob("*.safetensors") for name, t in load_file(path).items()}
    return {name: tensor * factor for name, tensor in whole.items() if "visual" not in name}


def engine_process() -> psutil.Process:
    """Return the process of the running rollout worker."""
    (process,) = descendants("ray::RolloutWorker")
    return process


def test_a_step_has_rewarded_groups(actor: Any) -> None:
    batch = step(actor, 0, 0)
    assert batch.statuses == {"ok": 24}
    assert {(len(group), len({r.question.id for r in group})) for group in batch.groups} == {(4, 1)}
    for rollout in batch.rollouts:
        assert len(rollout.ids) == len(rollout.logprobs) > 0
        assert rollout.reward == pytest.approx(1.0 / len(rollout.text))
    assert step(actor, 0, 0).groups == batch.groups
    assert step(actor, 1, 0).groups != batch.groups


def test_a_step_is_the_same_after_its_engine_is_killed_and_has_the_current_weights(actor: Any) -> None:
    import ray

    object_store.send(actor, weights(1.0).items(), 3)
    expected = step(actor, 5, 3)
    assert {r.version for r in expected.rollouts} == {3}
    process = engine_process()
    # Suspended first, so that it dies with requests and without answers.
    process.suspend()
    pending = actor.collect_step.remote(5, 3)
    time.sleep(0.5)
    process.kill()
    batch = ray.get(pending, timeout=240)
    assert engine_process().pid != process.pid
    assert [[r.ids for r in group] for group in batch.groups] == [[r.ids for r in g] for g in expected.groups]
    assert {r.version for r in batch.rollouts} == {3}


def test_a_step_is_the_same_after_its_engine_hangs_and_is_replaced(actor: Any) -> None:
    import ray

    object_store.send(actor, weights(1.0).items(), 3)
    expected = step(actor, 5, 3)
    process = engine_process()
    process.suspend()
    batch = ray.get(actor.collect_step.remote(5, 3), timeout=240)
    assert [[r.ids for r in group] for group in batch.groups] == [[r.ids for r in g] for g in expected.groups]
    assert not process.is_running()


def test_new_weights_are_sampled_from(actor: Any) -> None:
    import ray

    object_store.send(actor, weights(1.0).items(), 4)
    before = ray.get(actor.collect_evaluation.remote(0, 4))
    began = time.monotonic()
    object_store.send(actor, weights(1.1).items(), 5)
    assert time.monotonic() - began < 5
    after = ray.get(actor.collect_evaluation.remote(0, 5))
    assert [r.logprobs for r in after.rollouts] != [r.logprobs for r in before.rollouts]
    with pytest.raises(WeightSyncError, match="have weights of version 5, not 4; send those again"):
        step(actor, 1, 4)


def test_a_killed_orchestrator_is_restarted_and_needs_the_weights_again(actor: Any) -> None:
    """Runs last, because it ends the orchestrator that the other tests share."""
    import ray
    from ray.exceptions import RayActorError

    def process() -> int:
        return int(ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=60))

    killed = process()
    ray.kill(actor, no_restart=False)
    for _ in range(60):
        # Ray returns before the kill is complete: the old process may still answer.
        with suppress(RayActorError):
            if process() != killed:
                break
        time.sleep(0.5)
    assert ray.get(actor.version.remote(), timeout=60) == 0
    with pytest.raises(WeightSyncError, match="version 0, not 5"):
        step(actor, 6, 5)
    object_store.send(actor, weights(1.1).items(), 5)
    assert {r.version for r in step(actor, 6, 5).rollouts} == {5}
