"""Tiny folders of every trainable family: random weights under the hub's key names, and its processor settings."""

import json
import shutil
from pathlib import Path
from typing import Any

from vlgenrm_ray.shapes import pack_path

TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
IDS = {"image_token_id": 492, "video_token_id": 493, "vision_start_token_id": 489, "vision_end_token_id": 490}
WIDTH = 64
TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 8192,
    "bos_token_id": 487,
    "eos_token_id": 486,
    "pad_token_id": 487,
}
QWEN2_PROCESSOR = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
}
PROCESSORS: dict[str, dict[str, Any]] = {
    # The first family's folders state the limits twice.
    "qwen2_vl": QWEN2_PROCESSOR
    | {"size": {"max_pixels": 12845056, "min_pixels": 3136}, "processor_class": "Qwen2VLProcessor"},
    "qwen2_5_vl": QWEN2_PROCESSOR | {"processor_class": "Qwen2_5_VLProcessor"},
    "qwen3_vl": {
        "size": {"longest_edge": 16777216, "shortest_edge": 65536},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
    },
}
"""`preprocessor_config.json` of the published instruction models."""
VISION: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"embed_dim": 64, "hidden_size": WIDTH, "mlp_ratio": 2},
    "qwen2_5_vl": {
        "hidden_size": 64,
        "out_hidden_size": WIDTH,
        "intermediate_size": 48,
        "fullatt_block_indexes": [1],
        "window_size": 112,
    },
    "qwen3_vl": {
        "hidden_size": 64,
        "out_hidden_size": WIDTH,
        "intermediate_size": 48,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 2304,
    },
}
FAMILIES = tuple(PROCESSORS)
HUB_KEYS = {
    "qwen2_vl": ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "visual.blocks.0.norm1.weight"),
    "qwen2_5_vl": (
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "visual.blocks.0.norm1.weight",
    ),
    "qwen3_vl": (
        "model.language_model.embed_tokens.weight",
        "model.language_model.layers.0.self_attn.q_proj.weight",
        "model.visual.blocks.0.norm1.weight",
    ),
}
"""Some keys of the published weights."""


def write_family(folder: Path, family: str, *, tied: bool = False, seed: int = 0) -> Path:
    """Write a model folder of a family in bf16, as the hub has it: without `architectures` of the language model."""
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    write_processor(folder, family)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}
    vision = {"depth": 2, "num_heads": 2, "in_channels": 3, "spatial_merge_size": 2, "temporal_patch_size": 2}
    vision |= {"patch_size": PROCESSORS[family]["patch_size"]} | VISION[family]
    text = TEXT | {"rope_parameters": rope | ({"mrope_interleaved": True} if family == "qwen3_vl" else {})}
    config = transformers.AutoConfig.for_model(
        family, text_config=text, vision_config=vision, tie_word_embeddings=tied, **IDS
    )
    torch.manual_seed(seed)
    model: Any = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger than an initialisation: greedy texts and log-probabilities of two models then differ clearly.
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    model.save_pretrained(folder)
    return folder


def write_processor(folder: Path, family: str) -> Path:
    """Write configuration, tokenizer and processor only; enough for whatever counts tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TEXT_FILES:
        shutil.copy(pack_path("vlm") / name, folder / name)
    file = folder / "tokenizer_config.json"
    changed = {"processor_class": PROCESSORS[family]["processor_class"], "model_max_length": 32768}
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[family]))
    return folder
