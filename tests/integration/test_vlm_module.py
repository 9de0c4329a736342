"""The vision tower encodes an image of several rows once, with equal outputs and gradients."""

from typing import TYPE_CHECKING, Any

import pytest
from plain_inputs import plain_inputs
from world_examples import draw_examples

from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.engines.vlm_batch import Batch, VlmEncoder
from vlgenrm_ray.engines.vlm_module import SharedVisionTower
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.shapes import pack_path

if TYPE_CHECKING:
    import torch

IMAGE_OF_ROW = (0, 1, 0, 2, 1, 0)


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """Six rows of three images, one of which three rows share."""
    examples = draw_examples(tmp_path_factory.mktemp("world"), 10)
    different = {example.image.sha256: example for example in examples}
    images = [example.image for example in different.values()][:3]
    encoder = VlmEncoder(pack_path("vlm"), ImageLimits())
    rows = [(images[index], examples[number]) for number, index in enumerate(IMAGE_OF_ROW)]
    return encoder.batch([(encoder.encode(p, e.prompt, e.completion), p, 1.0) for p, e in rows])


def module() -> Any:
    import torch
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(pack_path("vlm"), dtype=torch.float32)


def forward_and_backward(model: Any, inputs: dict[str, Any]) -> "tuple[torch.Tensor, list[torch.Tensor], list[int]]":
    """Logits, gradients of all parameters, and the patches that went through the tower."""
    seen: list[int] = []
    model.model.visual.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    logits = model(**inputs, use_cache=False).logits
    logits.logsumexp(-1).mean().backward()
    return logits.detach(), [p.grad for p in model.parameters() if p.grad is not None], seen


def test_rows_of_one_image_share_its_encoding(batch: Batch) -> None:
    import torch

    assert batch.image_of_row == IMAGE_OF_ROW
    logits, gradients, seen = forward_and_backward(module(), plain_inputs(batch))
    shared = module()
    with SharedVisionTower(shared).sharing(batch.image_of_row):
        same_logits, same_gradients, fewer = forward_and_backward(shared, batch.inputs)
    assert (seen, fewer) == ([2 * len(batch.inputs["pixel_values"])], [len(batch.inputs["pixel_values"])])
    torch.testing.assert_close(same_logits, logits)
    assert len(same_gradients) == len(gradients) == len(list(shared.parameters()))
    for mine, theirs in zip(same_gradients, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_a_module_without_a_vision_tower_is_refused() -> None:
    import torch

    with pytest.raises(InputError, match="Linear"):
        SharedVisionTower(torch.nn.Linear(2, 2))
