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
    return encoder.batch([(encoder.encode((p,), e.prompt, e.completion), (p,), 1.0) for p, e in rows])


@pytest.fixture(scope="module")
def encoder() -> VlmEncoder:
    return VlmEncoder(pack_path("vlm"), ImageLimits())


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

    assert batch.image_indices == IMAGE_OF_ROW
    logits, gradients, seen = forward_and_backward(module(), plain_inputs(batch))
    shared = module()
    with SharedVisionTower(shared).sharing(batch.image_indices):
        same_logits, same_gradients, fewer = forward_and_backward(shared, batch.inputs)
    assert (seen, fewer) == ([2 * len(batch.inputs["pixel_values"])], [len(batch.inputs["pixel_values"])])
    torch.testing.assert_close(same_logits, logits)
    assert len(same_gradients) == len(gradients) == len(list(shared.parameters()))
    for mine, theirs in zip(same_gradients, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_an_example_of_several_images_equals_the_model_on_its_own(
    encoder: VlmEncoder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Rows of two, one and two images in one batch, of which two images are shared, against each row alone."""
    import torch

    examples = draw_examples(tmp_path_factory.mktemp("world"), 10)
    a, b, c = list({e.image.sha256: e.image for e in examples}.values())[:3]
    rows = []
    for refs, example in zip(((a, b), (b,), (c, a)), examples[:3], strict=True):
        tokens = encoder.encode(refs, example.prompt, example.completion)
        num_image_tokens = sum(encoder.num_image_tokens(ref.width, ref.height) for ref in refs)
        assert tokens.ids.count(encoder.image_token) == num_image_tokens
        rows.append((tokens, refs, 1.0))
    together = encoder.batch(rows)
    assert together.image_indices == (0, 1, 1, 2, 0)
    shared = module()
    with torch.no_grad(), SharedVisionTower(shared).sharing(together.image_indices):
        logits = shared(**together.inputs, use_cache=False).logits
    plain = module()
    for number, row in enumerate(rows):
        alone = encoder.batch([row])
        with torch.no_grad():
            expected = plain(**alone.inputs, use_cache=False).logits[0]
        torch.testing.assert_close(logits[number, : len(row[0])], expected, rtol=1e-4, atol=1e-4)
    swapped = encoder.batch([(rows[0][0], (b, a), 1.0)])
    with torch.no_grad():
        assert not torch.allclose(plain(**swapped.inputs, use_cache=False).logits[0], logits[0, : len(rows[0][0])])


def test_a_module_without_a_vision_tower_is_refused() -> None:
    import torch

    with pytest.raises(InputError, match="Linear"):
        SharedVisionTower(torch.nn.Linear(2, 2))
