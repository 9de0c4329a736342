"""What a policy learns from, on the real engine: the tokens it sampled and their log-probabilities."""

import math
from collections.abc import Iterator

import pytest
from PIL import Image

from vlgenrm_ray.engines.contracts import Prompt, Refused, Sample, Sampling
from vlgenrm_ray.engines.vllm import VllmConfig, VllmGenerator
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.shapes import pack_path

CONFIG = VllmConfig(model=str(pack_path("vlm")), max_model_len=384, kv_cache_gib=0.05, logprobs="sampled")


@pytest.fixture(scope="module")
def generator() -> Iterator[VllmGenerator]:
    engine = VllmGenerator(CONFIG)
    yield engine
    engine.close()


def ask(shade: int, text: str = "Describe the image.") -> Prompt:
    return Prompt(images=(Image.new("RGB", (48, 48), (shade, 80, 120)),), text=text)


def sampled(generator: VllmGenerator, sampling: Sampling, prompts: int = 4) -> list[Sample]:
    outcomes = generator.generate([ask(shade) for shade in range(prompts)], sampling)
    return [sample for outcome in outcomes if not isinstance(outcome, Refused) for sample in outcome]


def test_every_token_is_there_with_the_end_of_turn(generator: VllmGenerator) -> None:
    samples = [
        sample
        for max_tokens in (3, 120)
        for sample in sampled(generator, Sampling(n=4, max_tokens=max_tokens, seed=3, logprobs=True))
    ]
    assert {sample.finish for sample in samples} == {"stop", "length"}
    for sample in samples:
        assert len(sample.ids) == len(sample.logprobs) == len(sample.tokens) + (sample.finish == "stop")
        assert [token.id for token in sample.tokens] == list(sample.ids[: len(sample.tokens)])
        assert all(-50.0 < logprob <= 0.0 for logprob in sample.logprobs)
        if sample.finish == "stop":
            assert sample.ids[-1] in generator.vocabulary.special


def test_logprobs_are_of_the_tempered_distribution(generator: VllmGenerator) -> None:
    """From p at temperature 1 follows p at any: the first tokens of many samples are nearly all there are."""

    def first(temperature: float) -> dict[int, float]:
        (outcome,) = generator.generate(
            [ask(1, "Is there a red circle?")],
            Sampling(n=128, max_tokens=1, temperature=temperature, seed=1, logprobs=True),
        )
        assert not isinstance(outcome, Refused)
        return {sample.ids[0]: sample.logprobs[0] for sample in outcome}

    plain, hot = first(1.0), first(2.0)
    both = sorted(plain.keys() & hot.keys())
    assert len(both) >= 2
    one, other = both[:2]
    assert plain[one] - plain[other] == pytest.approx(2.0 * (hot[one] - hot[other]), abs=2e-2)
    assert sum(map(math.exp, hot.values())) <= 1.0 + 1e-4


def test_what_is_not_the_engines_to_give_is_refused(generator: VllmGenerator) -> None:
    assert not sampled(generator, Sampling(max_tokens=2), prompts=1)[0].ids
    with pytest.raises(ConfigError, match=r"engine\.logprobs: raw"):
        sampled(generator, Sampling(watch=("Yes",)))
