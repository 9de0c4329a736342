"""A rollout worker on the scripted generator: groups, failures, versions."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import factories
import pytest
from PIL import Image

from vlgenrm_ray.data import images
from vlgenrm_ray.engines.contracts import Prompt
from vlgenrm_ray.engines.scripted import END_OF_TURN, ScriptedGenerator
from vlgenrm_ray.engines.vllm_config import VllmConfig
from vlgenrm_ray.errors import WeightSyncError
from vlgenrm_ray.policy.rollout_worker import RolloutWorker
from vlgenrm_ray.policy.rollouts import UNSCORED, RolloutRequest, RolloutsConfig
from vlgenrm_ray.records import Question
from vlgenrm_ray.weight_sync import object_store
from vlgenrm_ray.weight_sync.versions import WeightChecksum, WeightVersion

if TYPE_CHECKING:
    import torch

CONFIG = RolloutsConfig(group_size=3, max_tokens=4)


class FakePolicy(ScriptedGenerator):
    """Writes the name of the weights it has."""

    def __init__(self) -> None:
        super().__init__(self.respond)
        self.weights = ["base"]

    def respond(self, prompt: Prompt, random_source: object) -> str:
        return self.weights[0] if "short" in prompt.text else f"{self.weights[0]} and so on and on"

    def load_weights(self, weights: "Iterable[tuple[str, torch.Tensor]]") -> None:
        self.weights = [name for name, _ in weights]


@pytest.fixture
def worker() -> RolloutWorker:
    return RolloutWorker(VllmConfig(), images.ImageLimits(), lambda config: FakePolicy())


def question(tmp_path: Path, id: str, text: str = "long?") -> Question:
    path = tmp_path / "image.png"
    Image.new("RGB", (8, 8)).save(path)
    return factories.question(id, text=text, image=images.probe(str(path), images.ImageLimits()))


def test_rollouts_have_tokens_logprobs_and_ids(worker: RolloutWorker, tmp_path: Path) -> None:
    requests = [RolloutRequest(question=question(tmp_path, "q0"), step=7, seed=1)]
    requests.append(RolloutRequest(question=question(tmp_path, "q1", "short?"), step=7, seed=2, purpose="e"))
    (first, short), (second, long) = worker.sample(requests, CONFIG.training_sampling())
    assert (first, second) == (1, 0), "the group that is finished first comes first"
    assert [rollout.id for rollout in short] == ["q1/e7/r0", "q1/e7/r1", "q1/e7/r2"]
    assert {(r.text, r.finish, r.status, r.reward) for r in short} == {("base", "stop", UNSCORED, None)}
    assert {(r.text, r.finish) for r in long} == {("base and so on", "length")}
    assert short[0].ids[-1] == END_OF_TURN
    assert [len(r.ids) for r in long] == [len(r.logprobs) for r in long] == [4, 4, 4]


def test_a_question_without_a_readable_image_has_a_status(worker: RolloutWorker, tmp_path: Path) -> None:
    missing = RolloutRequest(question=factories.question("missing"), step=0, seed=1)
    requests = [missing, RolloutRequest(question=question(tmp_path, "q"), step=0, seed=1)]
    groups = dict(worker.sample(requests, CONFIG.training_sampling()))
    assert [(r.status, r.reward, r.ids) for r in groups[0]] == [("image_missing", None, ())] * 3
    assert {r.status for r in groups[1]} == {UNSCORED}


def test_a_rollout_has_the_version_of_the_weights_that_sampled_it(worker: RolloutWorker, tmp_path: Path) -> None:
    import torch

    checksum = WeightChecksum()
    parts = tuple(object_store.pack(checksum.observe([("new", torch.ones(3))])))
    weights = WeightVersion(version=5, checksum=checksum.hexdigest(), parts=parts)
    requests = [RolloutRequest(question=question(tmp_path, "q", "short?"), step=9, seed=1)]

    def sampled() -> tuple[str, int]:
        ((_, group),) = worker.sample(requests, CONFIG.evaluation_sampling())
        return group[0].text, group[0].version

    assert sampled() == ("base", 0)
    assert worker.load(weights) == 5
    assert sampled() == ("new", 5)
    with pytest.raises(WeightSyncError, match=r"version 6 arrived damaged.*version 5 stays"):
        worker.load(WeightVersion(version=6, checksum="another", parts=parts))
    assert sampled() == ("new", 5)
