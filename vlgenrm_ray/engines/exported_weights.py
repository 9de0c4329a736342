"""A module's weights, one by one, under the names of its Hugging Face folder."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.engines.vlm_module import ADAPTER
from vlgenrm_ray.engines.weight_sync import Entry, entry

if TYPE_CHECKING:
    import torch

_ADAPTED = ".base_layer.weight"


def exported_weights(
    model: Any, folder: Path, *, trained_only: bool = False, as_learnt: bool = False
) -> "Iterator[tuple[str, torch.Tensor]]":
    """Names and weights of a transformers `model`, a copy of each on its device, always in the same order.

    Adapters are merged into the copies. Weights that ZeRO 3 holds in parts are gathered one by one: every worker must
    go through all of them, and gets them all. Tied weights come once, under their first name. Precision is that of
    `folder`, the one the model came from, or with `as_learnt` the model's own: small steps of an fp32 model would be
    lost in its folder's bf16. `trained_only`: leave out what training does not change (a frozen vision tower; with
    adapters, all they are not on).
    """
    return _exported(model, folder, _whole, trained_only, as_learnt)


def outline(model: Any, folder: Path, *, trained_only: bool = False, as_learnt: bool = False) -> list[Entry]:
    """Names, dtypes and shapes of what `exported_weights` gives, in its order; nothing is gathered."""
    return [entry(name, hollow) for name, hollow in _exported(model, folder, _hollow, trained_only, as_learnt)]


def _exported(
    model: Any,
    folder: Path,
    value_of: "Callable[[torch.Tensor, Any], torch.Tensor]",
    trained_only: bool,
    as_learnt: bool,
) -> "Iterator[tuple[str, torch.Tensor]]":
    import torch
    from transformers import AutoConfig
    from transformers.core_model_loading import revert_weight_conversion

    dtype = None if as_learnt else AutoConfig.from_pretrained(folder).dtype or torch.float32
    for name, parameter in model.named_parameters():
        adapted = name.endswith(_ADAPTED)
        if ".lora_" in name or (trained_only and not (adapted or parameter.requires_grad)):
            continue
        layer = model.get_submodule(name.removesuffix(_ADAPTED)) if adapted else None
        value = value_of(parameter, layer).to(dtype or parameter.dtype)
        # Some families' modules have other names than their files.
        yield from revert_weight_conversion(model, {name.replace(".base_layer.", "."): value}).items()


def _whole(parameter: "torch.Tensor", layer: Any) -> "torch.Tensor":
    """A copy of a weight, with the adapter of its `layer` merged into it if there is one."""
    import deepspeed
    import torch

    parts = [] if layer is None else [layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight]
    # Without ZeRO 3 it gathers nothing.
    with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter, *parts]):
        value = parameter.detach().clone(memory_format=torch.contiguous_format)
        return value if layer is None else value.float() + layer.get_delta_weight(ADAPTER).float()


def _hollow(parameter: "torch.Tensor", _: Any) -> "torch.Tensor":
    """A weight's dtype and shape, that of ZeRO 3's whole where this worker holds a part, without its values."""
    import torch

    return torch.empty(getattr(parameter, "ds_shape", parameter.shape), dtype=parameter.dtype, device="meta")
