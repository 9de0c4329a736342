"""The weights of a model in training, one by one, under the names of its Hugging Face folder."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.engines.contracts import TensorSpec
from vlgenrm_ray.engines.vlm_module import ADAPTER

if TYPE_CHECKING:
    import torch

_ADAPTED = ".base_layer.weight"
"""End of the name of a weight that has an adapter."""


def exported_weights(
    model: Any, folder: Path, *, trained_only: bool = False, training_dtype: bool = False
) -> "Iterator[tuple[str, torch.Tensor]]":
    """Yield the name and a copy of each weight, always in the same order. Collective.

    Adapters are merged into the copies. Weights partitioned by ZeRO 3 are gathered one by one: every worker must
    iterate over all of them, and gets all of them. Tied weights come once, under their first name.

    Args:
        model: A transformers model. Copies are on its device.
        folder: Folder that the model was loaded from.
        trained_only: Skip what training does not change: a frozen vision tower or, with adapters, weights without one.
        training_dtype: Use the dtype of the model instead of the folder's. Small steps of an fp32 model would be lost
            in a folder's bf16.
    """
    return _export(model, folder, _gather, trained_only, training_dtype)


def exported_specs(
    model: Any, folder: Path, *, trained_only: bool = False, training_dtype: bool = False
) -> list[TensorSpec]:
    """Return the specs of what `exported_weights` yields, in its order, without gathering anything."""
    weights = _export(model, folder, _empty, trained_only, training_dtype)
    return [TensorSpec.of(name, tensor) for name, tensor in weights]


def _export(
    model: Any,
    folder: Path,
    value_of: "Callable[[torch.Tensor, Any], torch.Tensor]",
    trained_only: bool,
    training_dtype: bool,
) -> "Iterator[tuple[str, torch.Tensor]]":
    import torch
    from transformers import AutoConfig
    from transformers.core_model_loading import revert_weight_conversion

    dtype = None if training_dtype else AutoConfig.from_pretrained(folder).dtype or torch.float32
    for name, parameter in model.named_parameters():
        adapted = name.endswith(_ADAPTED)
        if ".lora_" in name or (trained_only and not (adapted or parameter.requires_grad)):
            continue
        layer = model.get_submodule(name.removesuffix(_ADAPTED)) if adapted else None
        value = value_of(parameter, layer).to(dtype or parameter.dtype)
        # The modules of some model families have other names than their files.
        yield from revert_weight_conversion(model, {name.replace(".base_layer.", "."): value}).items()


def _gather(parameter: "torch.Tensor", layer: Any) -> "torch.Tensor":
    """Copy a whole weight; merge the adapter of `layer` into it if there is one."""
    import deepspeed
    import torch

    parts = [] if layer is None else [layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight]
    # Gathers nothing without ZeRO 3.
    with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter, *parts]):
        value = parameter.detach().clone(memory_format=torch.contiguous_format)
        return value if layer is None else value.float() + layer.get_delta_weight(ADAPTER).float()


def _empty(parameter: "torch.Tensor", _: Any) -> "torch.Tensor":
    """Create a meta tensor with dtype and full shape of a weight, also if ZeRO 3 has partitioned it."""
    import torch

    return torch.empty(getattr(parameter, "ds_shape", parameter.shape), dtype=parameter.dtype, device="meta")
