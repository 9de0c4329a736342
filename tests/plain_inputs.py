"""A batch as a model takes it that knows nothing of shared pictures."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlgenrm_ray.engines.vlm_batch import Batch


def plain_inputs(batch: "Batch") -> "dict[str, Any]":
    """The batch's inputs with the pixels of every row, repeated where rows show one picture."""
    import torch

    distinct = [batch.image_of_row.index(picture) for picture in range(max(batch.image_of_row) + 1)]
    patches = batch.inputs["image_grid_thw"][distinct].prod(-1).tolist()
    pictures = torch.split(batch.inputs["pixel_values"], patches)
    return batch.inputs | {"pixel_values": torch.cat([pictures[picture] for picture in batch.image_of_row])}
