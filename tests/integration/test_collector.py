"""The collector on Ray with the real engine: steps, weights that arrive while it runs, actors that are killed."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import below

from vlgenrm_ray.data.images import ImageLimits, keep
from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.engines.vllm_config import VllmConfig
from vlgenrm_ray.errors import WeightSyncError
from vlgenrm_ray.policy import collector
from vlgenrm_ray.policy.collecting import Collected
from vlgenrm_ray.policy.config import AlgorithmConfig
from vlgenrm_ray.policy.reward import PatienceConfig, RewardConfig
from vlgenrm_ray.policy.rollouts import RolloutsConfig
from vlgenrm_ray.records import Question
from vlgenrm_ray.shapes import pack_path

ENGINE = VllmConfig(max_model_len=384, kv_cache_gib=0.05, threads=1)


def length(question: Question, response: str) -> float | None:
    """The reward: short answers are better; there is none of empty ones."""
    return 1.0 / len(response) if response else None


def questions(folder: Path) -> list[Question]:
    import io

    from PIL import Image

    made = []
    for i in range(12):
        data = io.BytesIO()
        Image.new("RGB", (48, 48), (20 * i, 80, 120)).save(data, "PNG")
        image = keep(data.getvalue(), folder, ImageLimits())
        made.append(Question(id=f"q{i}", image=image, text="Describe the image.", source="test"))
    return made


def stored(asked: list[Question], folder: Path) -> StageFolder:
    made = StageFolder(folder)
    made.begin("test", {})
    write_units(made, Question, [Unit(id=question.id, records=(question,)) for question in asked])
    return made


@pytest.fixture(scope="module")
def actor(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import ray

    folder = tmp_path_factory.mktemp("asked")
    asked = questions(folder)
    job = collector.CollectorJob(
        model=str(pack_path("vlm")),
        questions=stored(asked, folder / "pool"),
        held_out=stored(asked[:3], folder / "heldout-pool"),
        rollouts=RolloutsConfig(engine=ENGINE, group_size=4, max_tokens=8, num_cpus=0.5, stall_timeout_s=20),
        rewards=(RewardConfig(name="length", function=f"{length.__module__}:length"),),
        patience=PatienceConfig(start_s=5),
        algorithm=AlgorithmConfig(),
        questions_per_step=6,
        seed=0,
        images=ImageLimits(),
    )
    handle = collector.start(job, "test")
    ray.get(handle.start.remote())
    yield handle
    ray.get(handle.close.remote())
    ray.kill(handle)


def step(actor: Any, number: int, version: int) -> Collected:
    import ray

    collected: Collected = ray.get(actor.step.remote(number, version), timeout=120)
    return collected


def weights(factor: float) -> dict[str, Any]:
    from safetensors.torch import load_file

    whole = {name: t for path in pack_path("vlm").glob("*.safetensors") for name, t in load_file(path).items()}
    return {name: tensor * factor for name, tensor in whole.items() if "visual" not in name}


def engine_process() -> psutil.Process:
    """Of the rollout actor that lives."""
    (found,) = below("ray::RolloutActor")
    return found


def test_a_step_has_rewarded_groups(actor: Any) -> None:
    collected = step(actor, 0, 0)
    assert collected.statuses == {"ok": 24}
    assert {(len(group), len({r.question.id for r in group})) for group in collected.groups} == {(4, 1)}
    for rollout in collected.rollouts:
        assert len(rollout.ids) == len(rollout.logprobs) > 0
        assert rollout.reward == pytest.approx(1.0 / len(rollout.text))
    assert step(actor, 0, 0).groups == collected.groups
    assert step(actor, 1, 0).groups != collected.groups


def test_killed_in_the_middle_a_step_is_the_same_and_has_the_present_weights(actor: Any) -> None:
    import ray

    collector.send(actor, weights(1.0).items(), 3)
    expected = step(actor, 5, 3)
    assert {r.version for r in expected.rollouts} == {3}
    process = engine_process()
    # Held, so that it has the questions when it dies, and no answer.
    process.suspend()
    pending = actor.step.remote(5, 3)
    time.sleep(0.5)
    process.kill()
    collected = ray.get(pending, timeout=240)
    assert engine_process().pid != process.pid
    assert [[r.ids for r in group] for group in collected.groups] == [[r.ids for r in g] for g in expected.groups]
    assert {r.version for r in collected.rollouts} == {3}


def test_an_engine_that_hangs_in_the_middle_is_ended_and_the_step_is_the_same(actor: Any) -> None:
    import ray

    collector.send(actor, weights(1.0).items(), 3)
    expected = step(actor, 5, 3)
    process = engine_process()
    process.suspend()
    collected = ray.get(actor.step.remote(5, 3), timeout=240)
    assert [[r.ids for r in group] for group in collected.groups] == [[r.ids for r in g] for g in expected.groups]
    assert not process.is_running()


def test_new_weights_are_sampled_from(actor: Any) -> None:
    import ray

    collector.send(actor, weights(1.0).items(), 4)
    before = ray.get(actor.evaluate.remote(0, 4))
    began = time.monotonic()
    collector.send(actor, weights(1.1).items(), 5)
    assert time.monotonic() - began < 5
    after = ray.get(actor.evaluate.remote(0, 5))
    assert [r.logprobs for r in after.rollouts] != [r.logprobs for r in before.rollouts]
    with pytest.raises(WeightSyncError, match="have weights of version 5, not 4; send those again"):
        step(actor, 1, 4)


def test_a_collector_that_is_killed_asks_for_the_weights(actor: Any) -> None:
    """Last of this collector."""
    import ray
    from ray.exceptions import RayActorError

    def process() -> int:
        return int(ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=60))

    killed = process()
    ray.kill(actor, no_restart=False)
    for _ in range(60):
        # Ray returns before the kill is done: the old process may answer still.
        with suppress(RayActorError):
            if process() != killed:
                break
        time.sleep(0.5)
    assert ray.get(actor.version.remote(), timeout=60) == 0
    with pytest.raises(WeightSyncError, match="version 0, not 5"):
        step(actor, 6, 5)
    collector.send(actor, weights(1.1).items(), 5)
    assert {r.version for r in step(actor, 6, 5).rollouts} == {5}
