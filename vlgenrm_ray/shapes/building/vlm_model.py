"""Architecture of the tiny VLMs: a Qwen3-VL of one to two million parameters, tokenizer, processor and chat template.

It sees the 3 x 3 grid of a scene as nine image tokens.
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.shapes.building.curriculum import VlmCurriculum

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"
SPECIAL = (
    *(END_OF_TEXT, "<|im_start|>", END_OF_TURN),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VlmArchitecture:
    """Sizes of a tiny VLM."""

    vocabulary: int = 512
    """Tokens in total: 256 bytes, merges, special tokens. Enough for every word of the world to be one token."""
    patch: int = 12
    """Side of a patch in pixels. An image is seen as 6 x 6 patches."""
    width: int = 128
    layers: int = 3
    """Layers of the language model."""
    vision_layers: int = 2
    max_tokens: int = 512
    """Longest prompt plus answer, in tokens."""


GRID = 6
"""Patches along a side of an image."""
MERGE = 2

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}
{%- for part in message.content -%}
{%- if part.type in ('image', 'image_url') or 'image' in part -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in part -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""


def build_processor(curriculum: VlmCurriculum, architecture: VlmArchitecture) -> "Qwen3VLProcessor":
    """Build the processor: tokenizer trained on the corpus, images of 6 x 6 patches if square, Qwen's chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2TokenizerFast, Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    empty = Qwen2TokenizerFast(vocab={}, merges=[])
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = empty.backend_tokenizer.normalizer
    bpe.pre_tokenizer = empty.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=architecture.vocabulary - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(curriculum.corpus(), trainer)
    model = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2TokenizerFast(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        extra_special_tokens=list(SPECIAL),
        model_max_length=1024,
    )
    side = GRID * architecture.patch
    pixels: dict[str, Any] = {
        "size": {"shortest_edge": side**2 - 100, "longest_edge": side**2 + 200},
        "patch_size": architecture.patch,
        "merge_size": MERGE,
        "temporal_patch_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    images, videos = Qwen2VLImageProcessor(**pixels), Qwen3VLVideoProcessor(**pixels)
    return Qwen3VLProcessor(
        image_processor=images, tokenizer=tokenizer, video_processor=videos, chat_template=CHAT_TEMPLATE
    )


def build_model(
    tokenizer: "PreTrainedTokenizerBase", architecture: VlmArchitecture, seed: int
) -> "Qwen3VLForConditionalGeneration":
    """Build the model with random float32 weights and its generation settings."""
    import torch
    from transformers import GenerationConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    def token(text: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(text))

    config = Qwen3VLConfig(
        text_config={
            # vLLM builds the language model by this name and fails with an IndexError without it.
            "architectures": ["Qwen3ForCausalLM"],
            "vocab_size": architecture.vocabulary,
            "hidden_size": architecture.width,
            "intermediate_size": 2 * architecture.width,
            "num_hidden_layers": architecture.layers,
            "num_attention_heads": architecture.width // 32,
            "num_key_value_heads": architecture.width // 32,
            "head_dim": 32,
            "max_position_embeddings": architecture.max_tokens,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "bos_token_id": token(END_OF_TEXT),
            "eos_token_id": token(END_OF_TURN),
            "pad_token_id": token(END_OF_TEXT),
            "tie_word_embeddings": False,
        },
        vision_config={
            "depth": architecture.vision_layers,
            "hidden_size": architecture.width,
            "intermediate_size": 2 * architecture.width,
            "num_heads": architecture.width // 32,
            "out_hidden_size": architecture.width,
            "patch_size": architecture.patch,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            # One learned position per patch of a 6 x 6 grid: rotary positions alone do not suffice to learn places.
            "num_position_embeddings": GRID**2,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        max_new_tokens=192,
        bos_token_id=token(END_OF_TEXT),
        eos_token_id=[token(END_OF_TURN), token(END_OF_TEXT)],
        pad_token_id=token(END_OF_TEXT),
    )
    return model
