"""The tiny VLM's tokenizer, image processor and chat template, in Qwen's formats."""

import json
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vlgenrm_ray.shapes.building.vlm_exercises import exercise
from vlgenrm_ray.shapes.critiques import critique
from vlgenrm_ray.shapes.judging import cot_prompt, direct_prompt
from vlgenrm_ray.shapes.phrases import NUMBERS, placed
from vlgenrm_ray.shapes.questions import KINDS, ask
from vlgenrm_ray.shapes.scenes import COLOURS, SHAPES, draw

if TYPE_CHECKING:
    from transformers import Qwen3VLProcessor

END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"
SPECIAL = (
    *(END_OF_TEXT, "<|im_start|>", END_OF_TURN),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
VOCABULARY = 512
"""Tokens in all: 256 bytes, merges, special ones. Room enough for every word of the world to be one token."""

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
    """Text in which every word of the world stands often, with and without a space before it."""
    rng = random.Random(0)
    for _ in range(400):
        for kind in KINDS:
            while (asked := ask(scene := draw(rng), kind, rng)) is None:
                pass
            yield asked.text
            yield asked.reference
            yield cot_prompt(asked.text, asked.reference)
            yield direct_prompt(asked.text, asked.reference)
            yield critique(scene, asked.text, asked.reference)
            yield from exercise(scene, rng)
    for _ in range(100):
        yield from (f" no {colour} {shape}s" for colour in COLOURS for shape in (*SHAPES, "shape"))
        yield from (f" {number} {shape}s, nothing at" for number in NUMBERS for shape in SHAPES)
        yield from (placed(f"{colour} star", 4) for colour in COLOURS)
        yield "user assistant system"
        yield from ("Yes No yes no Verdict: Yes", "Verdict: No", "Right. Wrong.", "left of right of above below")


def build_processor() -> "Qwen3VLProcessor":
    """Tokenizer trained on `corpus`, images brought to 72 x 72 pixels (square ones exactly), Qwen's chat template."""
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
