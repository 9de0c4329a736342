"""Model inputs in which rows do not share images."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlgenrm_ray.engines.vlm_batch import Batch


def plain_inputs(batch: "Batch") -> "dict[str, Any]":
    """Return the inputs of a batch with the pixels of every row, repeated where rows show the same image."""
    import torch

    first_rows = [batch.image_indices.index(image) for image in range(max(batch.image_indices) + 1)]
    num_patches = batch.inputs["image_grid_thw"][first_rows].prod(-1).tolist()
    pixels = torch.split(batch.inputs["pixel_values"], num_patches)
    return batch.inputs | {"pixel_values": torch.cat([pixels[image] for image in batch.image_indices])}
