"""Families of vision-language models: which ones can be trained, and what their folders need to be read alike.

The learner and vLLM load the same folder, each with its own code. A picture must become the same number of tokens in
both, or the learner trains on other positions than the engine sampled from.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.errors import InputError

TRAINABLE = {"qwen2_vl": "Qwen2-VL", "qwen2_5_vl": "Qwen2.5-VL", "qwen3_vl": "Qwen3-VL"}
"""`model_type` of the families that the learner trains. Engines of other families can be judged by and served."""
_TEXT_ARCHITECTURES = {"qwen3_vl": "Qwen3ForCausalLM", "qwen3_vl_moe": "Qwen3MoeForCausalLM"}
"""Architecture of the language model inside a family. vLLM 0.29 on a CPU looks for it in the folder, where published
folders of these families have none."""
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_SIZE_NAMES = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}
"""New name of a limit of an image's pixels, inside `size` -> old name, beside it."""


def check_trainable(folder: Path) -> None:
    """Raise InputError, with the name of the family, unless the learner can train the model in `folder`."""
    family = model_folder.configuration(folder)["model_type"]
    if family not in TRAINABLE:
        raise InputError(
            f"model folder {folder}: models of family {family!r} cannot be trained here; the learner trains "
            f"{', '.join(TRAINABLE.values())} (they can be judged by and served: rounds.num_rounds=0, vlgenrm serve)"
        )


def image_processor_settings(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of an image processor that mean the same to transformers' processor and to vLLM.

    Published folders of Qwen2-VL and Qwen2.5-VL limit the size of images by `min_pixels` and `max_pixels`, later ones
    by `size`. Where a folder has the old names, they override a `size` that is passed when the processor is loaded, and
    a `size` with one limit loses the other. Hence all limits are passed, in both ways.

    Args:
        folder: Hugging Face folder.
        settings: Settings that the user gives, such as `{size: {longest_edge: 1003520}}`.

    Returns:
        The settings, with the limits of Qwen's processors completed from the folder.
    """
    limits = {new: settings["size"][new] for new in _SIZE_NAMES if new in (settings.get("size") or {})}
    limits |= {new: settings[old] for new, old in _SIZE_NAMES.items() if old in settings}
    stored = _stored_processor(folder)
    if not limits or not str(stored.get("image_processor_type", "")).startswith("Qwen2VLImageProcessor"):
        return dict(settings)
    size = stored.get("size") or {}
    for new, old in _SIZE_NAMES.items():
        candidates = (limits.get(new), stored.get(old), size.get(new), size.get(old))
        limits[new] = next((value for value in candidates if value is not None), None)
    complete = {new: value for new, value in limits.items() if value is not None}
    return {**settings, "size": complete, **{_SIZE_NAMES[new]: value for new, value in complete.items()}}


def config_overrides(folder: Path) -> dict[str, Any]:
    """Return entries that vLLM needs in a model's configuration and that published folders lack, for `hf_overrides`."""
    configuration = model_folder.configuration(folder)
    architecture = _TEXT_ARCHITECTURES.get(configuration["model_type"])
    text = configuration.get("text_config")
    if architecture is None or not isinstance(text, Mapping) or text.get("architectures"):
        return {}
    return {"text_config": {"architectures": [architecture]}}


def _stored_processor(folder: Path) -> dict[str, Any]:
    """Return the settings of the image processor in a folder; the newer file, which is read first, nests them."""
    for name in reversed(_PROCESSOR_FILES):
        try:
            stored = json.loads((folder / name).read_text())
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise InputError(f"model folder {folder}: {name} cannot be read ({error})") from error
        stored = stored.get("image_processor", stored)
        if "image_processor_type" in stored:
            return dict(stored)
    return {}
