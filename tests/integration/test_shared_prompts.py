"""Samples that share a row with their prompt are to every family of models what they are alone."""

from typing import TYPE_CHECKING, Any

import pytest
from tensors import assert_close

from vlgenrm_ray.engines import shared_prompts
from vlgenrm_ray.engines.shared_prompts import model_inputs
from vlgenrm_ray.engines.vlm_batch import Batch, Tokens
from vlgenrm_ray.engines.vlm_module import SharedVisionTower

if TYPE_CHECKING:
    import torch

IMAGE, START = 60, 61
GRID = (1, 4, 6)
"""Of patches: 2 x 3 tokens."""
PROMPTS = ((1, START, *[IMAGE] * 6, 2, 3), (4, 4, START, *[IMAGE] * 6, 5, 6, 7))
SAMPLES = (((10, 11, 12), (13,), (14, 15)), ((20, 21),))
TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
VISION = {
    "depth": 2,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
}
SECTIONS: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen2_vl": ({}, {"embed_dim": 32, "hidden_size": 32}),
    "qwen2_5_vl": (
        {},
        {
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 48,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
    ),
    "qwen3_vl": (
        {"mrope_interleaved": True},
        {
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 48,
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": [0],
        },
    ),
}


def model(family: str) -> Any:
    """Build a tiny model with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    rope, vision = FAMILIES[family]
    config = AutoConfig.for_model(
        family,
        text_config=TEXT | {"rope_parameters": SECTIONS | rope},
        vision_config=VISION | vision,
        image_token_id=IMAGE,
        vision_start_token_id=START,
        video_token_id=62,
        vision_end_token_id=63,
    )
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").eval()


def inputs(ids: "torch.Tensor", mask: "torch.Tensor") -> "dict[str, torch.Tensor]":
    """Build the inputs of rows that show the same image."""
    import torch

    patches = torch.randn(GRID[1] * GRID[2], 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(1))
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": (ids == IMAGE).int(),
        "pixel_values": patches,
        "image_grid_thw": torch.tensor([GRID] * len(ids)),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_in_one_row_are_what_they_are_alone(family: str) -> None:
    import torch

    vlm = model(family)
    groups = [
        [Tokens(prompt + sample, len(prompt)) for sample in samples]
        for prompt, samples in zip(PROMPTS, SAMPLES, strict=True)
    ]
    expected = []
    for tokens in (tokens for group in groups for tokens in group):
        ids = torch.tensor([tokens.ids])
        logits = vlm(**inputs(ids, torch.ones_like(ids)), use_cache=False).logits[0]
        expected.append(logits[tokens.num_prompt - 1 : -1])
    rows = [shared_prompts.build_row(group) for group in groups]
    ids = torch.zeros((len(rows), max(len(row.ids) for row in rows)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)], mask[i, : len(row.ids)] = torch.tensor(row.ids), 1
    shared = shared_prompts.build_layout(rows)
    batch = Batch(inputs(ids, mask), (0, 0), torch.ones(4, 1), layout=shared)
    tower = SharedVisionTower(vlm)
    with tower.sharing(batch.image_indices):
        together = vlm(**model_inputs(batch, shared, tower.model), use_cache=False).logits
    assert shared.target_ids.tolist() == [word for samples in SAMPLES for sample in samples for word in sample]
    assert_close(together[shared.predictor_positions], torch.cat(expected), atol=1e-5)
    # What the test would not see of a model that is blind to order.
    assert float((expected[0] - expected[0].roll(1, 0)).detach().abs().max()) > 1e-2
