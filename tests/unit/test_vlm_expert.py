"""The VLM expert: yes/no questions about a claim and those that exclude it."""

from collections.abc import Callable, Sequence

import PIL.Image
import pytest

from vlgenrm_ray.curation.experts import ExpertsConfig
from vlgenrm_ray.engines.contracts import Prompt, Refusal, Sample, Sampling, Token
from vlgenrm_ray.engines.detectors import DetectorConfig
from vlgenrm_ray.errors import ConfigError, DropReason
from vlgenrm_ray.experts.pipeline import ExpertPipeline
from vlgenrm_ray.experts.vlm import VlmExpert
from vlgenrm_ray.records import Finding, Truth

CONFIG = ExpertsConfig(detector=DetectorConfig(model="none"))
PLAIN_IMAGE = PIL.Image.new("RGB", (64, 64), "white")


class FakeVlm:
    """Says yes with a probability that depends on the question."""

    def __init__(self, p_yes: Callable[[str], float], mass: float = 1.0) -> None:
        self.p_yes = p_yes
        self.mass = mass
        self.questions: list[str] = []

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> list[list[Sample] | Refusal]:
        self.questions += [prompt.text for prompt in prompts]
        return [self.sample(self.p_yes(prompt.text)) for prompt in prompts]

    def sample(self, p: float) -> list[Sample] | Refusal:
        if p < 0:
            return Refusal(reason=DropReason.PROMPT_TOO_LONG, detail="too long")
        tracked = {"Yes": p * self.mass, "No": (1 - p) * self.mass}
        return [Sample(text="Yes", tokens=(Token(id=1, text="Yes", tracked_probabilities=tracked),), finish="length")]


def finding(text: str, vlm: FakeVlm) -> Finding:
    """The finding on the last claim of a text."""
    return ExpertPipeline(CONFIG, [VlmExpert(CONFIG, generator=vlm)]).report(PLAIN_IMAGE, [text]).findings[0][-1]


def honest(*facts: str) -> FakeVlm:
    """A model that knows some facts, and takes every other statement for false."""

    def p_yes(question: str) -> float:
        is_true = any(fact in question.lower() for fact in facts)
        return 0.95 if is_true != ("image false" in question) else 0.05

    return FakeVlm(p_yes)


def test_an_attribute_competes_with_the_others_of_its_family() -> None:
    assert finding("The car is red.", honest("car is red")).truth is Truth.SUPPORTED
    assert finding("The car is red.", honest("car is blue")).truth is Truth.CONTRADICTED
    assert finding("The car is not red.", honest("car is blue")).truth is Truth.SUPPORTED
    assert finding("The car is red.", honest()).truth is Truth.UNKNOWN, "no colour at all"


def test_a_relation_competes_with_its_opposite_or_its_denial() -> None:
    assert finding("The dog is left of the car.", honest("dog is left of the car")).truth is Truth.SUPPORTED
    assert finding("The dog is left of the car.", honest("dog is right of the car")).truth is Truth.CONTRADICTED
    assert finding("The dog is behind the car.", honest("dog is behind the car")).truth is Truth.SUPPORTED
    assert finding("The dog is behind the car.", honest()).truth is Truth.CONTRADICTED


@pytest.mark.parametrize("text", ["The car is red.", "The dog is left of the car.", "The dog is behind the car."])
@pytest.mark.parametrize("p", [0.99, 0.01, 0.5, -1.0])
def test_a_model_that_always_says_the_same_decides_nothing(text: str, p: float) -> None:
    result = finding(text, FakeVlm(lambda question: p))
    assert (result.truth, result.score) == (Truth.UNKNOWN, 0.0)


def test_a_model_that_does_not_answer_decides_nothing() -> None:
    vlm = honest("car is red")
    vlm.mass = 0.3
    assert finding("The car is red.", vlm).truth is Truth.UNKNOWN


def test_only_claims_of_its_kinds_are_asked_each_once() -> None:
    vlm = honest("car is red")
    pipeline = ExpertPipeline(CONFIG, [VlmExpert(CONFIG, generator=vlm)])
    pipeline.report(PLAIN_IMAGE, ["There is a dog. The car is red.", "There is a cat."])
    assert len(vlm.questions) == len(set(vlm.questions)) == 11, "one for each colour"
    pipeline.report(PLAIN_IMAGE, ["Perhaps the car is red."])
    assert len(vlm.questions) == 11


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"vlm\.kinds: 'colour' is unknown; choose from attribute, count"):
        VlmExpert(CONFIG, kinds=["colour"], generator=honest())
    with pytest.raises(ConfigError, match=r"vlm\.sure"):
        VlmExpert(CONFIG, sure=0.4, generator=honest())
    with pytest.raises(ConfigError, match=r"vlm\.model: there is none"):
        VlmExpert(CONFIG)
    with pytest.raises(ConfigError, match=r"vlm: 1 validation error for VllmConfig\nmax_len"):
        VlmExpert(CONFIG, model="x", max_len=3)
