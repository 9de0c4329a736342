"""A picture is the same number of tokens, and the same pixels, for vLLM and for the learner, whatever the settings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from model_families_folders import FAMILIES, HUB_KEYS, IDS, PROCESSORS, write_family
from PIL import Image

from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.engines import model_families, vllm_config
from vlgenrm_ray.engines.vllm_config import VllmConfig
from vlgenrm_ray.engines.vlm_batch import VlmEncoder
from vlgenrm_ray.errors import InputError

SIZES = ((28, 28), (37, 501), (200, 300), (336, 336), (640, 427), (1023, 769), (1600, 1200), (2048, 57), (2400, 1800))
SETTINGS: tuple[Mapping[str, Any], ...] = (
    {},
    # Of the recipes.
    {"size": {"shortest_edge": 50176, "longest_edge": 1003520}},
    {"size": {"longest_edge": 401408}},
    # As users know them from the first Qwen2-VL.
    {"min_pixels": 200704, "max_pixels": 802816},
)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("models") / request.param, request.param)


def processed_by_vllm(folder: Path, settings: Mapping[str, Any], images: Sequence[Image.Image]) -> list[Any]:
    """Process images by the code that an engine runs, with the arguments it is started with, but without weights."""
    from vllm.config import ModelConfig
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.processing import ProcessorInputs, TimingContext

    config = VllmConfig(model=str(folder), max_model_len=16384, image_processor=dict(settings))
    arguments = vllm_config.engine_arguments(config, folder)
    names = ("dtype", "max_model_len", "mm_processor_kwargs", "limit_mm_per_prompt")
    processor = MULTIMODAL_REGISTRY.create_processor(
        ModelConfig(model=str(folder), **{name: arguments[name] for name in names})
    )
    prompt = [IDS["vision_start_token_id"], IDS["image_token_id"], IDS["vision_end_token_id"]]
    return [
        processor.apply(
            ProcessorInputs(prompt=prompt, mm_data_items=processor.info.parse_mm_data({"image": [image]})),
            TimingContext(enabled=False),
        )
        for image in images
    ]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_engine_and_learner_count_the_same_tokens(folder: Path, settings: Mapping[str, Any]) -> None:
    encoder = VlmEncoder(folder, ImageLimits(), image_processor=settings)
    outputs = processed_by_vllm(folder, settings, [Image.effect_noise(size, 60).convert("RGB") for size in SIZES])
    of_engine = [output["prompt_token_ids"].count(IDS["image_token_id"]) for output in outputs]
    assert of_engine == [encoder.num_image_tokens(*size) for size in SIZES]
    side = PROCESSORS[folder.name]["patch_size"] * 2
    limits = model_families.image_processor_settings(folder, settings)
    most = limits.get("max_pixels", 12845056)
    assert max(of_engine) <= most / side**2
    if most < 1600 * 1200:
        assert max(of_engine) >= 0.9 * most / side**2, "the setting limits large images, and only these"


def test_engine_and_learner_compute_the_same_pixels(folder: Path) -> None:
    import torch

    settings = SETTINGS[1]
    image = Image.effect_noise((301, 203), 60).convert("RGB")
    (output,) = processed_by_vllm(folder, settings, [image])
    data = output["mm_kwargs"]["image"][0].get_data()
    encoder = VlmEncoder(folder, ImageLimits(), image_processor=settings)
    processed = encoder.processor.image_processor(images=[image], return_tensors="pt")
    assert data["image_grid_thw"].tolist() == processed["image_grid_thw"][0].tolist()
    pixels = data["pixel_values"]
    if pixels.dtype == torch.uint8:
        # vLLM sends bytes to the engine, which normalises them in the model: [patches, channels x patch volume].
        stored = PROCESSORS[folder.name]
        mean, deviation = (torch.tensor(stored[name])[None, :, None] for name in ("image_mean", "image_std"))
        pixels = ((pixels.unflatten(1, (3, -1)) / 255 - mean) / deviation).flatten(1)
    torch.testing.assert_close(pixels, processed["pixel_values"], rtol=1e-5, atol=1e-5)


def test_the_users_settings_are_not_changed(folder: Path) -> None:
    """transformers writes the folder's limits into the dictionary that it is given."""
    settings = {"size": {"shortest_edge": 50176, "longest_edge": 1003520}}
    VlmEncoder(folder, ImageLimits(), image_processor=settings)
    assert settings == {"size": {"shortest_edge": 50176, "longest_edge": 1003520}}


def test_folders_have_the_hubs_names(folder: Path) -> None:
    """The other tests rely on it: the published folders are read as these are."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert set(HUB_KEYS[folder.name]) <= set(weights.keys())
    assert '"Qwen3ForCausalLM"' not in (folder / "config.json").read_text()


@pytest.mark.parametrize("family", ["internvl_chat", "internvl", "llava_onevision", "gemma3", "llama"])
def test_a_family_that_cannot_be_trained_is_refused_by_name(tmp_path: Path, family: str) -> None:
    (tmp_path / "config.json").write_text(f'{{"model_type": "{family}"}}')
    with pytest.raises(InputError, match=rf"family '{family}' cannot be trained.*Qwen2-VL, Qwen2\.5-VL, Qwen3-VL"):
        model_families.check_trainable(tmp_path)


def test_trainable_families_are_those_tested() -> None:
    assert set(model_families.TRAINABLE) == set(FAMILIES)
