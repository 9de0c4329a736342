"""Rollouts of an engine with weights that change, on the scripted generator."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import factories
import pytest
from PIL import Image
from pydantic import ValidationError

from vlgenrm_ray.data import images
from vlgenrm_ray.engines import weight_sync
from vlgenrm_ray.engines.contracts import Prompt
from vlgenrm_ray.engines.scripted import END_OF_TURN, ScriptedGenerator
from vlgenrm_ray.engines.vllm_config import VllmConfig
from vlgenrm_ray.engines.weight_sync import Checksum, Weights
from vlgenrm_ray.errors import WeightSyncError
from vlgenrm_ray.policy.rollouts import UNSCORED, Asked, RolloutEngine, RolloutsConfig
from vlgenrm_ray.records import Question

if TYPE_CHECKING:
    import torch

CONFIG = RolloutsConfig(group_size=3, max_tokens=4)


class Policy(ScriptedGenerator):
    """Says the name of the weights it has."""

    def __init__(self) -> None:
        super().__init__(self.say)
        self.weights = ["base"]

    def say(self, prompt: Prompt, chance: object) -> str:
        return self.weights[0] if "short" in prompt.text else f"{self.weights[0]} and so on and on"

    def load_weights(self, weights: "Iterable[tuple[str, torch.Tensor]]") -> None:
        self.weights = [name for name, _ in weights]


@pytest.fixture
def engine() -> RolloutEngine:
    return RolloutEngine(VllmConfig(), images.ImageLimits(), lambda config: Policy())


def question(tmp_path: Path, id: str, text: str = "long?") -> Question:
    path = tmp_path / "shown.png"
    Image.new("RGB", (8, 8)).save(path)
    return factories.question(id, text=text, image=images.probe(str(path), images.ImageLimits()))


def test_rollouts_have_what_is_learnt_from(engine: RolloutEngine, tmp_path: Path) -> None:
    asked = [Asked(question=question(tmp_path, "q0"), step=7, seed=1)]
    asked.append(Asked(question=question(tmp_path, "q1", "short?"), step=7, seed=2, occasion="e"))
    (first, short), (second, long) = engine.sample(asked, CONFIG.sampling())
    assert (first, second) == (1, 0), "what is finished first comes first"
    assert [rollout.id for rollout in short] == ["q1/e7/r0", "q1/e7/r1", "q1/e7/r2"]
    assert {(r.text, r.finish, r.status, r.reward) for r in short} == {("base", "stop", UNSCORED, None)}
    assert {(r.text, r.finish) for r in long} == {("base and so on", "length")}
    assert short[0].ids[-1] == END_OF_TURN
    assert [len(r.ids) for r in long] == [len(r.logprobs) for r in long] == [4, 4, 4]


def test_only_samples_to_learn_from_are_cut_to_the_likeliest() -> None:
    config = RolloutsConfig(top_p=0.9, evaluation_temperature=1.0)
    assert (config.sampling().top_p, config.answering().top_p) == (0.9, 1.0)


def test_a_question_that_cannot_be_asked_says_why(engine: RolloutEngine, tmp_path: Path) -> None:
    lost = Asked(question=factories.question("lost"), step=0, seed=1)
    asked = [lost, Asked(question=question(tmp_path, "q"), step=0, seed=1)]
    groups = dict(engine.sample(asked, CONFIG.sampling()))
    assert [(r.status, r.reward, r.ids) for r in groups[0]] == [("image_missing", None, ())] * 3
    assert {r.status for r in groups[1]} == {UNSCORED}


def test_a_rollout_has_the_version_that_wrote_it(engine: RolloutEngine, tmp_path: Path) -> None:
    import torch

    total = Checksum()
    parts = list(weight_sync.pack(total.counting([("new", torch.ones(3))])))
    weights = Weights(version=5, checksum=total.hexdigest(), parts=tuple(parts))
    asked = [Asked(question=question(tmp_path, "q", "short?"), step=9, seed=1)]

    def said() -> tuple[str, int]:
        ((_, group),) = engine.sample(asked, CONFIG.answering())
        return group[0].text, group[0].version

    assert said() == ("base", 0)
    assert engine.load(weights, lambda: parts) == 5
    assert said() == ("new", 5)
    with pytest.raises(WeightSyncError, match=r"version 6 arrived damaged.*version 5 stays"):
        engine.load(Weights(version=6, checksum="another", parts=()), lambda: parts)
    assert said() == ("new", 5)


def test_the_runs_engine_gives_the_logprobs_that_are_learnt_from() -> None:
    assert CONFIG.engine_of("/model").logprobs == "sampled"
    with pytest.raises(ValidationError, match="top_k"):
        RolloutsConfig.model_validate({"top_k": 5})
