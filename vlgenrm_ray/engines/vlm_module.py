"""A Hugging Face folder -> the torch module that is trained: what of it learns, with adapters or without."""

from pathlib import Path
from typing import Any

from vlgenrm_ray.engines.deepspeed_config import DeepSpeedConfig, LoraConfig
from vlgenrm_ray.errors import InputError

ADAPTER = "default"
"""Name peft gives the one adapter there is."""


def load_module(folder: Path, config: DeepSpeedConfig, settings: dict[str, Any]) -> Any:
    """The model, in bf16 or fp32 as `settings` (those of DeepSpeed) say.

    Under ZeRO 3 it comes already shared out, never whole on one worker. Raises InputError for a folder that cannot be
    loaded.
    """
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    halved = bool(settings["bf16"]["enabled"])
    # While this object lives, transformers shares out what it loads.
    shared_out = HfDeepSpeedConfig(settings) if config.zero_stage == 3 else None
    try:
        module: Any = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=torch.bfloat16 if halved else torch.float32,
            trust_remote_code=False,
            # Takes any mask: see `shared_prompts`.
            attn_implementation="sdpa",
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"model: cannot load {folder} ({error}); give a complete Hugging Face folder") from error
    del shared_out
    module.config.use_cache = False
    if config.freeze_vision:
        module.model.visual.requires_grad_(False)
    if config.gradient_checkpointing:
        module.gradient_checkpointing_enable({"use_reentrant": False})
    return module


def with_adapters(module: Any, lora: LoraConfig | None) -> Any:
    """The module wrapped in fresh adapters, all else frozen; as it is for None. Raises InputError."""
    import peft

    if lora is None:
        return module
    settings = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.target_modules
    )
    try:
        return peft.get_peft_model(module, settings, autocast_adapter_dtype=False)
    except ValueError as error:
        raise InputError(f"lora.target_modules: {lora.target_modules!r} fits no module of the model") from error
