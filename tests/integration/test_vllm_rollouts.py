"""Rollouts on the real engine: sampled tokens, their log-probabilities, and new weights."""

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.engines.contracts import Prompt, Refusal, Sample, Sampling
from vlgenrm_ray.engines.vllm import VllmGenerator
from vlgenrm_ray.engines.vllm_config import RolloutVllmConfig
from vlgenrm_ray.errors import ConfigError, WeightSyncError
from vlgenrm_ray.policy.rollout_worker import RolloutWorker
from vlgenrm_ray.shapes import pack_path
from vlgenrm_ray.weight_sync.object_store import pack
from vlgenrm_ray.weight_sync.versions import WeightChecksum, WeightVersion

if TYPE_CHECKING:
    import torch

CONFIG = RolloutVllmConfig(model=str(pack_path("vlm")), max_model_len=384, kv_cache_gib=0.05)


@pytest.fixture(scope="module")
def generator() -> Iterator[VllmGenerator]:
    engine = VllmGenerator(CONFIG)
    yield engine
    engine.close()


def prompt(shade: int, text: str = "Describe the image.") -> Prompt:
    return Prompt(images=(Image.new("RGB", (48, 48), (shade, 80, 120)),), text=text)


def sampled(generator: VllmGenerator, sampling: Sampling, num_prompts: int = 4) -> list[Sample]:
    outcomes = generator.generate([prompt(shade) for shade in range(num_prompts)], sampling)
    return [sample for outcome in outcomes if not isinstance(outcome, Refusal) for sample in outcome]


def test_every_sampled_token_is_returned_with_the_end_of_turn(generator: VllmGenerator) -> None:
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


def test_logprobs_are_those_of_the_distribution_at_the_temperature(generator: VllmGenerator) -> None:
    """Log-probability differences of two first tokens halve at twice the temperature."""

    def first(temperature: float) -> dict[int, float]:
        (outcome,) = generator.generate(
            [prompt(1, "Is there a red circle?")],
            Sampling(n=128, max_tokens=1, temperature=temperature, seed=1, logprobs=True),
        )
        assert not isinstance(outcome, Refusal)
        return {sample.ids[0]: sample.logprobs[0] for sample in outcome}

    plain, hot = first(1.0), first(2.0)
    both = sorted(plain.keys() & hot.keys())
    assert len(both) >= 2
    one, other = both[:2]
    assert plain[one] - plain[other] == pytest.approx(2.0 * (hot[one] - hot[other]), abs=2e-2)
    assert sum(map(math.exp, hot.values())) <= 1.0 + 1e-4


def test_sampling_that_the_engine_was_not_started_for_is_refused(generator: VllmGenerator) -> None:
    assert not sampled(generator, Sampling(max_tokens=2), num_prompts=1)[0].ids
    with pytest.raises(ConfigError, match="cannot be tracked by an engine of rollouts"):
        sampled(generator, Sampling(tracked_words=("Yes",)))


def weights() -> "dict[str, torch.Tensor]":
    from safetensors.torch import load_file

    return {name: t for path in pack_path("vlm").glob("*.safetensors") for name, t in load_file(path).items()}


def test_untrained_weights_may_be_left_out(generator: VllmGenerator) -> None:
    greedy = Sampling(max_tokens=4, temperature=0.0, logprobs=True)
    generator.load_weights(weights().items())
    whole = sampled(generator, greedy)
    language = {name: tensor for name, tensor in weights().items() if "visual" not in name}
    generator.load_weights((name, tensor * 1.05) for name, tensor in language.items())
    assert sampled(generator, greedy) != whole
    generator.load_weights(language.items())
    assert sampled(generator, greedy) == whole


def test_weights_that_do_not_fit_are_an_error_until_a_full_set_is_loaded(generator: VllmGenerator) -> None:
    import torch

    greedy = Sampling(max_tokens=4, temperature=0.0, logprobs=True)
    generator.load_weights(weights().items())
    whole = sampled(generator, greedy)
    (first, tensor) = next((name, t) for name, t in weights().items() if name.endswith("q_proj.weight"))
    with pytest.raises(WeightSyncError, match=r"k_proj\.weight did not come"):
        generator.load_weights([(first, tensor)])
    with pytest.raises(WeightSyncError, match="nonsense"):
        generator.load_weights([("nonsense.weight", torch.ones(2))])
    generator.load_weights(weights().items())
    assert sampled(generator, greedy) == whole


def test_loaded_weights_equal_those_of_an_engine_started_with_them(generator: VllmGenerator, tmp_path: Path) -> None:
    """Runs last: closing the second engine ends the distributed state that both share."""
    from safetensors.torch import save_file

    greedy = Sampling(max_tokens=4, temperature=0.0, logprobs=True)
    generator.load_weights(weights().items())
    before = sampled(generator, greedy)
    new = {name: tensor * 1.05 if "language_model" in name else tensor for name, tensor in weights().items()}
    checksum = WeightChecksum()
    parts = tuple(pack(checksum.observe(new.items()), part_bytes=1 << 20))
    sent = WeightVersion(version=1, checksum=checksum.hexdigest(), parts=parts)
    assert len(parts) > 2

    worker = RolloutWorker(CONFIG, ImageLimits(), lambda config: generator)
    with pytest.raises(WeightSyncError, match=r"version 1 arrived damaged.*version 0 stays"):
        worker.load(replace(sent, checksum="0" * 32))
    assert (sampled(generator, greedy), worker.version) == (before, 0)
    assert worker.load(sent) == 1
    after = sampled(generator, greedy)

    shutil.copytree(pack_path("vlm"), tmp_path / "new")
    (old,) = (tmp_path / "new").glob("*.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in new.items()}, old, {"format": "pt"})
    other = VllmGenerator(CONFIG.model_copy(update={"model": str(tmp_path / "new")}))
    expected = sampled(other, greedy)
    other.close()
    assert [s.ids for s in after] == [s.ids for s in expected]
    for one, same, old_one in zip(after, expected, before, strict=True):
        assert one.logprobs == pytest.approx(same.logprobs, abs=1e-4)
        assert one.logprobs != pytest.approx(old_one.logprobs, abs=1e-3)
