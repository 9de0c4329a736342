"""Policy, learner, judge and experts see one picture, whatever its format and mode."""

import ast
import asyncio
import base64
import io
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_experts import PIPELINE
from image_corpus import (
    CorpusImage,
    as_rgb,
    colours,
    corpus_images,
    encode,
    exif,
    greys,
    lying,
    on_white,
    opacity,
    swapped_profile,
)
from PIL import Image
from serving_examples import item, request, says_yes, service

import vlgenrm_ray
from vlgenrm_ray.curation.pool import PoolConfig, resolve_row
from vlgenrm_ray.curation.sources.rows import SourceRow
from vlgenrm_ray.curation.sources.values import SourceImage
from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.data.pixels import to_rgb
from vlgenrm_ray.engines.contracts import Prompt, Sampling
from vlgenrm_ray.engines.scripted import ScriptedGenerator
from vlgenrm_ray.engines.vllm_config import VllmConfig
from vlgenrm_ray.engines.vllm_requests import VllmRequests
from vlgenrm_ray.engines.vlm_batch import VlmEncoder
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.images import ImageUploads
from vlgenrm_ray.judge.judge import Judge, JudgeInput
from vlgenrm_ray.policy.rollout_worker import RolloutWorker
from vlgenrm_ray.policy.rollouts import RolloutRequest
from vlgenrm_ray.records import ImageRef, Question

LIMITS = ImageLimits()
EACH_IMAGE = pytest.mark.parametrize("example", corpus_images(), ids=lambda example: example.name)


def pixels(image: Image.Image) -> bytes:
    """Size, mode and pixels of an image that a model gets."""
    assert (image.mode, image.info) == ("RGB", {})
    return repr(image.size).encode() + image.tobytes()


@EACH_IMAGE
def test_a_picture_is_decoded_as_it_is_shown(example: CorpusImage) -> None:
    decoded = images.decode(example.data, LIMITS)
    assert decoded.size == (example.shows.shape[1], example.shows.shape[0])
    difference = np.abs(np.asarray(decoded).astype(int) - example.shows.astype(int)).mean()
    assert difference <= example.tolerance
    assert pixels(decoded) == pixels(to_rgb(decoded))


@EACH_IMAGE
def test_an_exported_picture_is_seen_alike_by_other_programs(example: CorpusImage) -> None:
    exported = images.portable(example.data, LIMITS)
    decoded = images.decode(example.data, LIMITS)
    assert Image.open(io.BytesIO(exported)).convert("RGB").tobytes() == decoded.tobytes()
    assert images.decode(exported, LIMITS).tobytes() == decoded.tobytes()
    if example.name in ("png", "jpeg", "png-grey", "webp"):
        assert exported is example.data, "plain images are not encoded again"


# -- what each of them sees ------------------------------------------------------------------------------------------


def seen_by_policy(ref: ImageRef) -> list[Image.Image]:
    """The images of vLLM's request for a rollout."""
    prompts: list[Prompt] = []
    generator = ScriptedGenerator(lambda prompt, random: prompts.append(prompt) or "A square.")
    worker = RolloutWorker(VllmConfig(model="none"), LIMITS, lambda config: generator)  # type: ignore[arg-type,return-value]
    rollout = RolloutRequest(question=Question(id="q", image=ref, text="What is it?", source="test"), step=0, seed=0)
    list(worker.sample([rollout], Sampling(logprobs=True)))
    return [seen_by_vllm(prompt) for prompt in prompts]


def seen_by_vllm(prompt: Prompt) -> Image.Image:
    requests = object.__new__(VllmRequests)
    requests._config = VllmConfig(model="none")
    requests._turns = [("", ""), ("", "")]
    requests.vocabulary = SimpleNamespace(escape_special_tokens=lambda text: text)  # type: ignore[assignment]
    sent = requests.request(prompt)
    assert isinstance(sent, dict)
    (image,) = sent["multi_modal_data"]["image"]
    return image


def seen_by_learner(ref: ImageRef) -> list[Image.Image]:
    """The images that the learner gives to the model's image processor."""
    seen: list[Image.Image] = []

    def image_processor(images: list[Image.Image], return_tensors: str) -> dict[str, Any]:
        seen.extend(images)
        return {"image_grid_thw": np.array([[1, 1, 1]]), "pixel_values": np.zeros(1)}

    encoder = object.__new__(VlmEncoder)
    encoder.processor = SimpleNamespace(image_processor=image_processor)
    encoder._limits, encoder._cache, encoder._cached, encoder._cache_bytes = LIMITS, OrderedDict(), 0, 1
    encoder.pixels(ref)
    return seen


def recording(seen: list[Image.Image]) -> Any:
    """A script of a judge that records its images."""

    def record(prompt: Prompt, random: object) -> str:
        seen.append(seen_by_vllm(prompt))
        return says_yes(prompt, random)

    return record


def seen_by_judge(image: ImageRef | Image.Image) -> list[Image.Image]:
    """The images of a judge in batches."""
    seen: list[Image.Image] = []
    judge = Judge(JudgeConfig(num_critiques=1), ScriptedGenerator(recording(seen)))
    judge.score([JudgeInput(id="q", images=(image,), question="What is it?", response="A square.")])
    return seen


def seen_by_served_judge(*forms: Any) -> list[Image.Image]:
    """The images of a served judge, uploaded by an adapter in several forms."""
    seen: list[Image.Image] = []
    served = service(recording(seen))
    uploads = ImageUploads()
    references = [uploads.reference(form) for form in forms]
    for data in uploads.encoded.values():
        served.images.add(data)

    async def run() -> None:
        for number, reference in enumerate(references):
            await served.score(request(item(image=reference, num_critiques=1, seed=number)))

    asyncio.run(run())
    return seen


def seen_by_experts(image: Image.Image) -> Image.Image:
    return PIPELINE.open_task("q", image, ["A circle."]).image()


@EACH_IMAGE
def test_everyone_sees_the_picture_that_is_decoded(example: CorpusImage, tmp_path: Path) -> None:
    row = SourceRow(id="d:1", question_id="q", text="What is it?", images=(SourceImage(data=example.data),))
    (question,) = resolve_row(row, PoolConfig(), tmp_path).records
    decoded = images.decode(example.data, LIMITS)
    opened = Image.open(io.BytesIO(example.data))
    forms = [
        example.data,
        question.image.uri,
        images.data_url(example.data),
        base64.b64encode(example.data).decode(),
        {"bytes": example.data, "path": None},
        opened,
    ]
    everyone = {
        "policy": seen_by_policy(question.image),
        "learner": seen_by_learner(question.image),
        "judge": seen_by_judge(question.image),
        "judge, given pixels": seen_by_judge(Image.open(io.BytesIO(example.data))),
        "served judge": seen_by_served_judge(*forms),
        "experts": [seen_by_experts(images.read(question.image, LIMITS))],
        "experts, given pixels": [seen_by_experts(Image.open(io.BytesIO(example.data)))],
    }
    assert (question.image.width, question.image.height) == decoded.size
    for who, seen in everyone.items():
        assert seen, who
        assert {pixels(image) for image in seen} == {pixels(decoded)}, who


# -- images that a trainer holds as pixels ---------------------------------------------------------------------------


def _modes() -> dict[str, tuple[Image.Image, np.ndarray[Any, Any]]]:
    """Every mode of Pillow -> an image in it, and the pixels it shows."""
    image, grey, alpha = Image.fromarray(colours()), greys(), opacity()
    rgba = Image.fromarray(np.dstack([colours(), alpha]))
    la = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
    deep = grey.astype(np.uint16) * 257
    shown = {
        mode: (image.convert(mode), np.asarray(image.convert(mode).convert("RGB")))
        for mode in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
    }
    palette_alpha = image.quantize(16).convert("PA")
    palette_alpha.putalpha(Image.fromarray(alpha))
    grey_pixels = as_rgb(grey)
    return shown | {
        "LA": (la, on_white(grey_pixels, alpha)),
        "La": (la.convert("La"), on_white(grey_pixels, alpha)),
        "RGBA": (rgba, on_white(colours(), alpha)),
        "RGBa": (rgba.convert("RGBa"), on_white(colours(), alpha)),
        "PA": (palette_alpha, on_white(np.asarray(image.quantize(16).convert("RGB")), alpha)),
        "I;16": (Image.fromarray(deep), grey_pixels),
        "I;16L": (Image.frombytes("I;16L", grey.shape[::-1], deep.astype("<u2").tobytes()), grey_pixels),
        "I;16B": (Image.frombytes("I;16B", grey.shape[::-1], deep.astype(">u2").tobytes()), grey_pixels),
        "I;16N": (Image.frombytes("I;16N", grey.shape[::-1], deep.astype("=u2").tobytes()), grey_pixels),
        "I": (Image.fromarray(deep.astype(np.int32)), grey_pixels),
        "I of 8 bits": (Image.fromarray(grey.astype(np.int32)), grey_pixels),
        "F": (Image.fromarray(grey.astype(np.float32)), grey_pixels),
        "F from 0 to 1": (Image.fromarray(grey.astype(np.float32) / 255), grey_pixels),
    }


@pytest.mark.parametrize("mode", _modes())
def test_pixels_of_any_mode_are_seen_as_they_are_shown(mode: str) -> None:
    image, shows = _modes()[mode]
    seen = np.asarray(to_rgb(image)).astype(int)
    assert seen.shape == shows.shape
    # Colours that are stored multiplied by their opacity lose precision.
    assert np.abs(seen - shows.astype(int)).mean() < (2.0 if mode in ("La", "RGBa") else 0.5)
    assert pixels(seen_by_served_judge(image)[0]) == pixels(to_rgb(image))


def test_every_mode_of_pillow_is_among_them() -> None:
    assert set(Image.MODES) <= set(_modes())


def test_plain_pixels_are_not_copied() -> None:
    image = Image.fromarray(colours())
    assert to_rgb(image) is image
    assert PIPELINE.open_task("q", image, []).width == image.width
    assert np.array_equal(np.asarray(image), colours()), "nobody changes the caller's image"


def test_an_image_that_is_turned_already_is_not_turned_again() -> None:
    stored = encode(lying(6), "PNG", exif=exif(6))
    once = to_rgb(Image.open(io.BytesIO(stored)))
    assert np.array_equal(np.asarray(to_rgb(once)), colours())


def test_a_profile_of_another_colour_space_is_ignored() -> None:
    grey = Image.fromarray(greys())
    data = encode(grey, "JPEG", quality=95, icc_profile=swapped_profile())
    assert images.decode(data, LIMITS).tobytes() == images.decode(encode(grey, "JPEG", quality=95), LIMITS).tobytes()


# -- the one place ---------------------------------------------------------------------------------------------------


def test_no_other_module_opens_or_converts_an_image() -> None:
    package = Path(vlgenrm_ray.__file__).parent
    users = []
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name = ast.unparse(node.func)
                if name.endswith("Image.open") or name.endswith("exif_transpose") or node.func.attr == "convert":
                    users.append((path.relative_to(package).as_posix(), name))
    assert {path for path, _ in users} <= {"data/images.py", "data/pixels.py"}, users
