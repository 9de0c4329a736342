"""Engines of every family: started from a folder as the hub has it, given new weights, compared with the learner."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_families_folders import FAMILIES, IDS, write_family
from PIL import Image
from plain_inputs import plain_inputs

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.engines.contracts import Prompt, Refusal, Sample, Sampling
from vlgenrm_ray.engines.vllm import VllmGenerator
from vlgenrm_ray.engines.vllm_config import RolloutVllmConfig
from vlgenrm_ray.engines.vlm_batch import VlmEncoder

SIZES = ((96, 150), (200, 41), (301, 203))
IMAGE_PROCESSOR = {"size": {"shortest_edge": 3136, "longest_edge": 50176}}
TEXT = "Describe the image."
SAMPLING = Sampling(n=2, max_tokens=6, seed=5, logprobs=True)
# All compute in fp32; they differ in the order of their sums.
TOLERANCE = 2e-3
CASES = [
    pytest.param(family, tied, id=f"{family}-{'tied' if tied else 'untied'}", marks=marks)
    for family in FAMILIES
    for tied in (True, False)
    # One case that the ordinary run has time for.
    for marks in [() if (family, tied) == ("qwen3_vl", True) else pytest.mark.slow]
]


def draw_image(size: tuple[int, int]) -> Image.Image:
    noise = np.random.default_rng(size).integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size)


def sampled(generator: VllmGenerator) -> list[Sample]:
    outcomes = generator.generate([Prompt(images=(draw_image(size),), text=TEXT) for size in SIZES], SAMPLING)
    assert not [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
    return [sample for outcome in outcomes if not isinstance(outcome, Refusal) for sample in outcome]


def start(folder: Path) -> VllmGenerator:
    config = RolloutVllmConfig(model=str(folder), max_model_len=1024, kv_cache_gib=0.1, image_processor=IMAGE_PROCESSOR)
    return VllmGenerator(config)


def logprobs_of_learner(folder: Path, target: Path, samples: Sequence[Sample]) -> list[list[float]]:
    """Compute the log-probabilities of samples from the learner's tokens and pixels, in fp32."""
    import torch
    from transformers import AutoModelForImageTextToText

    encoder = VlmEncoder(folder, ImageLimits(), image_processor=IMAGE_PROCESSOR)
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    logprobs = []
    for number, sample in enumerate(samples):
        size = SIZES[number // SAMPLING.n]
        file = target / f"{size[0]}x{size[1]}.png"
        draw_image(size).save(file)
        ref = images.probe(str(file), ImageLimits())
        tokens = encoder.encode_rollout((ref,), TEXT, sample.ids)
        assert tokens.num_prompt == sample.num_prompt_tokens
        batch = encoder.batch([(tokens, (ref,), 1.0)])
        with torch.no_grad():
            logits = model(**plain_inputs(batch), use_cache=False).logits
        # The engine samples no placeholder of an image; its log-probabilities are of what remains.
        logits[..., list(IDS.values())] = -math.inf
        rows, columns = batch.predictor_positions
        values = logits[rows, columns].log_softmax(-1).gather(-1, batch.target_ids[:, None])[:, 0]
        logprobs.append(values.tolist())
    return logprobs


@pytest.mark.parametrize(("family", "tied"), CASES)
def test_new_weights_give_what_an_engine_started_with_them_gives(family: str, tied: bool, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    old, new = (write_family(tmp_path / name, family, tied=tied, seed=seed) for seed, name in enumerate(("a", "b")))
    engine = start(old)
    before = sampled(engine)
    engine.load_weights(load_file(new / "model.safetensors").items())
    after = sampled(engine)
    engine.close()
    fresh = start(new)
    expected = sampled(fresh)
    fresh.close()
    assert [sample.ids for sample in before] != [sample.ids for sample in after]
    assert [sample.ids for sample in after] == [sample.ids for sample in expected]
    of_learner = logprobs_of_learner(new, tmp_path, expected)
    for one, same, learner in zip(after, expected, of_learner, strict=True):
        assert one.logprobs == pytest.approx(same.logprobs, abs=TOLERANCE)
        assert one.logprobs == pytest.approx(learner, abs=TOLERANCE)
