"""Other trainers' own code against one running service, each in an environment of its own (`tests/trainers`)."""

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from running_service import CONFIG, USER_SECRET, service
from trainer_environments import run_script
from trainers.exchange import Sample

from vlgenrm_ray.adapters.clients import TOKEN_VARIABLE, URL_VARIABLE
from vlgenrm_ray.bench.items import draw_shapes_items
from vlgenrm_ray.judge.remote import RemoteJudge, ScoreInput
from vlgenrm_ray.shapes import pack_path

NUM_IMAGES = 3
EXACT = 1e-6
_NO_REWARD = r"RemoteError.*empty_text"


@pytest.fixture(scope="module")
def http(ray_local: None) -> Iterator[httpx.Client]:
    """Yield a client of a service that also judges questions without an image, as LLaMA-Factory sends them."""
    with service(CONFIG.model_copy(update={"blind_judging": "text_only", "experts": None})) as client:
        yield client


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """A right and a wrong answer about each image, then the same answers about the next image."""
    folder = tmp_path_factory.mktemp("images")
    samples = []
    for number, item in enumerate(draw_shapes_items(2 * NUM_IMAGES, seed=7)):
        path = folder / f"{number // 2}.png"
        with Image.open(io.BytesIO(item.image)) as image:
            # As clients encode pixels: the seeds of the critiques follow from the bytes of the image.
            image.convert("RGB").save(path, compress_level=1)
        samples.append(Sample(str(path), item.question, item.response))
    images = [sample.image for sample in samples]
    others = zip(images[2:] + images[:2], samples, strict=True)
    return samples + [Sample(image, sample.question, sample.response) for image, sample in others]


@pytest.fixture(scope="module")
def expected(http: httpx.Client, samples: list[Sample]) -> list[float]:
    """Rewards of `/v1/score`. All depend on the image, so that an entrance that loses it has others."""
    rewards = score(http, [ScoreInput(image=Path(s.image), question=s.question, response=s.response) for s in samples])
    half = len(samples) // 2
    changes = [abs(own - other) for own, other in zip(rewards[:half], rewards[half:], strict=True)]
    assert min(changes) > 10 * EXACT, changes
    return rewards


def score(http: httpx.Client, inputs: Sequence[ScoreInput]) -> list[float]:
    with RemoteJudge(str(http.base_url), token=USER_SECRET) as judge:
        replies = judge.score(inputs)
    rewards = [reply.reward for reply in replies if reply.reward is not None]
    assert len(rewards) == len(inputs), replies
    return rewards


def run(script: str, http: httpx.Client, samples: list[Sample], folder: Path) -> dict[str, Any]:
    """Outcomes of a trainer's code by entrance. All responses are sent with the policy's end-of-turn token."""
    request = {
        "model": str(pack_path("vlm")),
        "samples": [asdict(sample) for sample in samples],
        "empty": asdict(Sample(samples[0].image, samples[0].question, "")),
    }
    variables = {URL_VARIABLE: str(http.base_url).rstrip("/"), TOKEN_VARIABLE: USER_SECRET}
    outcomes: dict[str, Any] = run_script(script, request, folder, variables)["outcomes"]
    return outcomes


@pytest.mark.parametrize(
    ("script", "missing"),
    [
        ("run_areal.py", {"reward_fn": _NO_REWARD, "workflow": _NO_REWARD}),
        (
            "run_miles.py",
            {
                "/rm": "ClientResponseError: 422",
                "custom_rm_path": _NO_REWARD,
                "group_rm": "the mean of the others: True, removed: True",
            },
        ),
        ("run_ms_swift.py", {"reward_funcs": _NO_REWARD}),
        ("run_nemo_gym.py", {"/verify": "^masked: vlgenrm:empty_text$"}),
        ("run_openai.py", {"/v1/chat/completions": "UnprocessableEntityError.*empty_text"}),
        # The gateway's sample reaches the trainer without a reward.
        ("run_openrlhf.py", {"/get_reward": "^None$", "executor": _NO_REWARD}),
        ("run_skyrl.py", {"environment": _NO_REWARD}),
        ("run_verifiers.py", {"reward": _NO_REWARD}),
        ("run_verl.py", {"function": _NO_REWARD, "manager": _NO_REWARD}),
    ],
)
def test_rewards_equal_those_of_the_service_and_a_missing_one_is_no_number(
    script: str,
    missing: dict[str, str],
    http: httpx.Client,
    samples: list[Sample],
    expected: list[float],
    tmp_path: Path,
) -> None:
    outcomes = run(script, http, samples, tmp_path)
    assert outcomes.keys() == missing.keys()
    for entrance, outcome in outcomes.items():
        assert outcome["rewards"] == pytest.approx(expected, abs=EXACT), entrance
        assert re.search(missing[entrance], outcome["missing"], re.DOTALL), outcome["missing"]


def test_llama_factory_sends_texts_alone_and_stops_without_a_reward(
    http: httpx.Client, samples: list[Sample], tmp_path: Path
) -> None:
    outcomes = run("run_llama_factory.py", http, samples, tmp_path)
    blind = score(http, [ScoreInput(question=s.question, response=s.response) for s in samples])
    assert outcomes["empty response"]["rewards"] == pytest.approx(blind, abs=EXACT)
    # Also where the prompt refers to an image.
    assert [outcome["missing"] for outcome in outcomes.values()] == ["KeyError: 'scores'"] * 2
