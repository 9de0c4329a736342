"""The real vLLM engine: failures in its middle, broken weights, its cost per sample."""

import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from image_corpus import corpus_images
from PIL import Image

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.engines.contracts import Prompt, Refusal, Sampling
from vlgenrm_ray.engines.vllm import VllmConfig, VllmGenerator, versions
from vlgenrm_ray.engines.vllm_requests import refusal
from vlgenrm_ray.errors import DropReason, StageError
from vlgenrm_ray.shapes import pack_path

SAMPLING = Sampling(max_tokens=4, tracked_words=("Yes", "No"), seed=1)


@pytest.fixture(scope="module")
def generator() -> Iterator[VllmGenerator]:
    engine = VllmGenerator(VllmConfig(model=str(pack_path("vlm")), max_model_len=384, kv_cache_gib=0.05, max_images=3))
    yield engine
    engine.close()


@pytest.fixture
def steps(generator: VllmGenerator, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], None]], None]:
    """Call a function with the schedule of every engine step, before the model runs."""
    executor = generator._llm.llm_engine.engine_core.engine_core.model_executor
    execute = executor.execute_model

    def watch(look: Callable[[Any], None]) -> None:
        def watched(schedule: Any, *rest: Any, **more: Any) -> Any:
            look(schedule)
            return execute(schedule, *rest, **more)

        monkeypatch.setattr(executor, "execute_model", watched)

    return watch


def ask(text: str) -> Prompt:
    return Prompt(images=(Image.new("RGB", (48, 48), (200, 30, 30)),), text=text)


def test_a_failure_inside_a_step_affects_its_own_prompt_only(generator: VllmGenerator, steps: Any) -> None:
    prompts = [ask("Describe the image."), ask("How many stars are there?"), ask("Is there a red circle?")]
    alone = generator.generate([prompts[0], prompts[2]], SAMPLING, [1, 3])
    (star,) = generator.vocabulary.token_ids(("stars",))["stars"]

    def fail(schedule: Any) -> None:
        if any(star in new.prompt_token_ids for new in schedule.scheduled_new_reqs):
            raise RuntimeError("a kernel failed")

    steps(fail)
    outcomes = generator.generate(prompts, SAMPLING, [1, 2, 3])
    assert outcomes[1] == Refusal(reason=DropReason.ENGINE_ERROR, detail="RuntimeError: a kernel failed")
    assert [outcomes[0], outcomes[2]] == alone


def test_an_engine_that_fails_on_everything_stops_the_stage(generator: VllmGenerator, steps: Any) -> None:
    def fail(schedule: Any) -> None:
        raise RuntimeError("out of order")

    steps(fail)
    with pytest.raises(StageError, match=r"every prompt.*out of order"):
        generator.generate([ask("a?"), ask("b?")], SAMPLING)


def test_samples_of_a_prompt_share_its_prefill(generator: VllmGenerator, steps: Any) -> None:
    scheduled: list[int] = []
    steps(lambda schedule: scheduled.append(schedule.total_num_scheduled_tokens))
    text = "Question: Describe the image.\n" + "Response: There is a red circle at the top left. " * 10

    def cost(n: int, shade: int) -> int:
        scheduled.clear()
        image = Image.new("RGB", (48, 48), (shade, shade, shade))
        generator.generate([Prompt(images=(image,), text=text)], Sampling(n=n, max_tokens=1))
        return sum(scheduled)

    once = cost(1, 10)
    assert cost(8, 20) < 3 * once


def test_images_are_examined_in_order(generator: VllmGenerator) -> None:
    red, blue = (Image.new("RGB", (48, 48), color) for color in ((200, 30, 30), (30, 30, 200)))
    strip = Image.new("RGB", (4000, 8))
    lists = [(red,), (red, blue), (blue, red), (red, red), (red, blue, red), (red, strip)]
    sampling = Sampling(max_tokens=1, temperature=0.0, tracked_words=("Yes", "No"))
    *judged, refused = generator.generate([Prompt(images=s, text="Is there a red circle?") for s in lists], sampling)
    probabilities = [
        outcome[0].tokens[0].tracked_probabilities["Yes"] for outcome in judged if not isinstance(outcome, Refusal)
    ]
    assert len(probabilities) == 5
    # Rounding in a batch of another shape is below 1e-4.
    assert all(abs(a - b) > 1e-4 for i, a in enumerate(probabilities) for b in probabilities[:i]), probabilities
    assert isinstance(refused, Refusal)


def test_an_image_it_cannot_take_is_refused_alone(generator: VllmGenerator) -> None:
    strip = Prompt(images=(Image.new("RGB", (4000, 8)),), text="What is this?")
    refused, good = generator.generate([strip, ask("Is there a star?")], SAMPLING, [1, 2])
    assert isinstance(refused, Refusal)
    assert refused.reason is DropReason.PROMPT_REFUSED
    assert refusal(RuntimeError("out of memory")).reason is DropReason.ENGINE_ERROR
    assert not isinstance(good, Refusal)


def test_transparency_is_decoded_as_vllm_shows_it_to_a_policy() -> None:
    from vllm.multimodal.image import convert_image_mode

    # vLLM overlooks ICC profiles, depths above 8 bits, and the transparent colour of a PNG in RGB.
    alike = ("png-rgba", "png-la", "png-palette", "webp-rgba", "gif", "bmp", "jpeg-cmyk")
    for example in corpus_images():
        if example.name.startswith(alike):
            shown = convert_image_mode(Image.open(io.BytesIO(example.data)), "RGB")
            assert shown.tobytes() == images.decode(example.data, ImageLimits()).tobytes(), example.name


def test_placeholders_are_never_sampled(generator: VllmGenerator) -> None:
    params = generator.requests.params(SAMPLING, {}, 0)
    assert params.logit_bias
    names = generator._llm.get_tokenizer().convert_ids_to_tokens(sorted(params.logit_bias))
    assert set(names) == {"<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"}
    assert set(params.logit_bias.values()) == {-math.inf}


def test_versions_name_the_engine() -> None:
    assert {"torch", "transformers"} < set(versions())


def test_logits_that_are_no_numbers_become_no_numbers(generator: VllmGenerator) -> None:
    """Last of this engine: it breaks the model, for prompts that have the word `purple` only."""
    good = ask("Is there a red circle?")
    (before,) = generator.generate([good], SAMPLING, [1])
    purple = generator.vocabulary.token_ids(("purple",))["purple"]

    def breaks(model: Any) -> None:
        model.language_model.model.embed_tokens.weight.data[list(purple)] = math.nan

    generator._llm.apply_model(breaks)
    refused, after = generator.generate([ask("Is there a purple circle?"), good], SAMPLING, [2, 1])
    assert refused == Refusal(reason=DropReason.ENGINE_ERROR, detail="the model's logits are not numbers (NaN)")
    assert after == before
