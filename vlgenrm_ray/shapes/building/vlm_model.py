"""Architecture of the tiny VLM: a Qwen3-VL of about a million parameters, its tokenizer, processor and chat template.

It sees the 3 x 3 grid of a scene as nine image tokens.
"""

import json
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vlgenrm_ray.shapes.building.vlm_dataset import draw_exercise
from vlgenrm_ray.shapes.language import NUMBERS, cot_prompt, direct_prompt, object_phrase
from vlgenrm_ray.shapes.questions import KINDS, draw_question
from vlgenrm_ray.shapes.reference_critiques import reference_critique
from vlgenrm_ray.shapes.scenes import COLOURS, SHAPES, draw_scene

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"
SPECIAL = (
    *(END_OF_TEXT, "<|im_start|>", END_OF_TURN),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
VOCABULARY = 512
"""Tokens in total: 256 bytes, merges, special tokens. Enough for every word of the world to be one token."""

PATCH = 12
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


def corpus() -> Iterator[str]:
    """Generate text in which every word of the world is frequent, with and without a leading space."""
    rng = random.Random(0)
    for _ in range(400):
        for kind in KINDS:
            while (question := draw_question(scene := draw_scene(rng), kind, rng)) is None:
                pass
            yield question.text
            yield question.reference
            yield cot_prompt(question.text, question.reference)
            yield direct_prompt(question.text, question.reference)
            yield reference_critique(scene, question.text, question.reference)
            yield from draw_exercise(scene, rng)
    for _ in range(100):
        yield from (f" no {colour} {shape}s" for colour in COLOURS for shape in (*SHAPES, "shape"))
        yield from (f" {number} {shape}s, nothing at" for number in NUMBERS for shape in SHAPES)
        yield from (object_phrase(f"{colour} star", 4) for colour in COLOURS)
        yield "user assistant system"
        yield from ("Yes No yes no Verdict: Yes", "Verdict: No", "Right. Wrong.", "left of right of above below")


def build_processor() -> "Qwen3VLProcessor":
    """Build the processor: tokenizer trained on `corpus`, images of 72 x 72 pixels if square, Qwen's chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2TokenizerFast, Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    empty = Qwen2TokenizerFast(vocab={}, merges=[])
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = empty.backend_tokenizer.normalizer
    bpe.pre_tokenizer = empty.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus(), trainer)
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
    side = 6 * PATCH
    size = {"shortest_edge": side**2 - 100, "longest_edge": side**2 + 200}
    images = Qwen2VLImageProcessor(
        size=size, patch_size=PATCH, merge_size=MERGE, temporal_patch_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    videos = Qwen3VLVideoProcessor(
        size=size, patch_size=PATCH, merge_size=MERGE, temporal_patch_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return Qwen3VLProcessor(
        image_processor=images, tokenizer=tokenizer, video_processor=videos, chat_template=CHAT_TEMPLATE
    )


WIDTH = 128
MAX_TOKENS = 512
"""Longest prompt plus answer, in tokens."""


def build_model(tokenizer: "PreTrainedTokenizerBase", seed: int) -> "Qwen3VLForConditionalGeneration":
    """Build the model with random float32 weights and its generation settings."""
    import torch
    from transformers import GenerationConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    def token(text: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(text))

    config = Qwen3VLConfig(
        text_config={
            # vLLM builds the language model by this name and fails with an IndexError without it.
            "architectures": ["Qwen3ForCausalLM"],
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 32,
            "max_position_embeddings": MAX_TOKENS,
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
            "depth": 2,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_heads": 4,
            "out_hidden_size": WIDTH,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            # One learned position per patch of a 6 x 6 grid: rotary positions alone do not suffice to learn places.
            "num_position_embeddings": 36,
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
