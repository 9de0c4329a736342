"""The tiny VLM's shape: a Qwen3-VL of about a million parameters that sees a 3 x 3 grid as nine tokens."""

from typing import TYPE_CHECKING

from vlgenrm_ray.shapes.building.vlm_tokenizer import END_OF_TEXT, END_OF_TURN, MERGE, PATCH, VOCABULARY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen3VLForConditionalGeneration

WIDTH = 128
MAX_TOKENS = 512
"""Longest prompt and answer together, in tokens."""


def build_model(tokenizer: "PreTrainedTokenizerBase", seed: int) -> "Qwen3VLForConditionalGeneration":
    """The model with random weights, in float32, with generation settings."""
    import torch
    from transformers import GenerationConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    def token(text: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(text))

    config = Qwen3VLConfig(
        text_config={
            # vLLM builds the language model by this name; without it, it fails with an IndexError.
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
            # One learned position per patch of a 6 x 6 grid: with rotary ones alone it does not learn where.
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
