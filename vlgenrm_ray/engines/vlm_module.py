"""The torch module of a vision-language model under training: loading, adapters, and the shared vision tower."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.engines.deepspeed_config import DeepSpeedConfig, LoraConfig
from vlgenrm_ray.errors import InputError

if TYPE_CHECKING:
    import torch

ADAPTER = "default"
"""Name that peft gives the only adapter."""


def load_module(folder: Path, config: DeepSpeedConfig, settings: dict[str, Any]) -> Any:
    """Load a model for training.

    Args:
        folder: Hugging Face folder.
        config: Settings of the training.
        settings: DeepSpeed's configuration, which decides precision and partitioning. With ZeRO 3 the model is
            partitioned while it is loaded, never whole on one worker.

    Raises:
        InputError: The folder cannot be loaded.
    """
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    bf16 = bool(settings["bf16"]["enabled"])
    # While this object is alive, transformers partitions what it loads.
    partitioned = HfDeepSpeedConfig(settings) if config.zero_stage == 3 else None
    try:
        module: Any = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=torch.bfloat16 if bf16 else torch.float32,
            trust_remote_code=False,
            # `shared_prompts` needs an attention that takes any mask.
            attn_implementation="sdpa",
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"model: cannot load {folder} ({error}); give a complete Hugging Face folder") from error
    del partitioned
    module.config.use_cache = False
    if config.freeze_vision:
        module.model.visual.requires_grad_(False)
    if config.gradient_checkpointing:
        module.gradient_checkpointing_enable({"use_reentrant": False})
    return module


def add_adapters(module: Any, lora: LoraConfig | None) -> Any:
    """Wrap the module in new adapters and freeze the rest; return it unchanged for None. Raises InputError."""
    import peft

    if lora is None:
        return module
    settings = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.target_modules
    )
    try:
        return peft.get_peft_model(module, settings, autocast_adapter_dtype=False)
    except ValueError as error:
        raise InputError(f"lora.target_modules: {lora.target_modules!r} matches no module of the model") from error


class SharedVisionTower:
    """Runs the vision tower once per distinct image of a batch, however many rows contain that image.

    The samples of a group, and the two sides of a pair, share one image, and the tower is a large part of the work of a
    small model, or of a large one with large images. Replaces `get_image_features` of a Qwen-VL-like module.
    """

    def __init__(self, module: Any) -> None:
        """Patch the module. Raises InputError for a module without such a vision tower."""
        inner = next((m for m in module.modules() if "visual" in m._modules and hasattr(m, "get_image_features")), None)
        if inner is None:
            raise InputError(f"model: {type(module).__name__} has no vision tower like that of Qwen-VL models")
        self.model: Any = inner
        """Part of the module that contains the tower."""
        self._compute_features = inner.get_image_features
        self._image_indices: Sequence[int] = ()
        inner.get_image_features = self._features_by_place

    @contextmanager
    def sharing(self, image_indices: Sequence[int]) -> Iterator[None]:
        """Share images while the context lasts.

        `pixel_values` then holds the distinct images, and `image_indices` the index among them of each of the rows'
        images, in order; `image_grid_thw` has one entry for each of the latter.
        """
        self._image_indices = image_indices
        try:
            yield
        finally:
            self._image_indices = ()

    def _features_by_place(self, pixel_values: "torch.Tensor", image_grid_thw: "torch.Tensor", **options: Any) -> Any:
        if not self._image_indices:
            return self._compute_features(pixel_values, image_grid_thw, **options)
        first_places = [self._image_indices.index(image) for image in range(max(self._image_indices) + 1)]
        features = self._compute_features(pixel_values, image_grid_thw[first_places], **options)
        features.pooler_output = self._repeat(features.pooler_output)
        if getattr(features, "deepstack_features", None) is not None:
            features.deepstack_features = [self._repeat(layer) for layer in features.deepstack_features]
        return features

    def _repeat(self, features: "Sequence[torch.Tensor]") -> "tuple[torch.Tensor, ...]":
        return tuple(features[image] for image in self._image_indices)
