"""A trained engine -> a plain Hugging Face folder that transformers and vLLM load.

Weights are gathered one tensor at a time (ZeRO 3 holds them in parts) and adapters are merged into them on the way, so
the engine itself stays as it is. Everything that is not a weight is copied from the base folder unchanged.
"""

import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.engines.deepspeed import ADAPTER, Learner

if TYPE_CHECKING:
    import torch

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")
_ADAPTED = ".base_layer.weight"


def export(learner: Learner, target: Path) -> None:
    """Write the learner's model to `target`, in the precision its base folder names. Collective; rank 0 writes.

    The folder appears under its name only when it is complete; an earlier one of that name is replaced.
    """
    import torch
    from transformers import AutoConfig

    model = learner.module.get_base_model() if learner.config.lora else learner.module
    dtype = AutoConfig.from_pretrained(learner.model_folder).dtype or torch.float32
    state = _gathered(learner, model, dtype)
    if torch.distributed.get_rank() == 0:
        write_folder(model, state, base=learner.model_folder, target=target)
    torch.distributed.barrier()


def write_folder(model: Any, state: "dict[str, torch.Tensor]", *, base: Path, target: Path) -> None:
    """Write weights `state` of a transformers `model`, with the other files of `base`, to `target`."""
    for left_over in target.parent.glob(f".{target.name}.*"):
        shutil.rmtree(left_over)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    model.save_pretrained(partial, state_dict=state, max_shard_size="5GB")
    for file in partial.iterdir():
        if not file.name.endswith(_WEIGHTS):
            file.unlink()
    shutil.copytree(
        base,
        partial,
        dirs_exist_ok=True,
        ignore=lambda _, names: [n for n in names if n.endswith(_WEIGHTS) or n.startswith(".")],
    )
    if target.exists():
        shutil.rmtree(target)
    os.replace(partial, target)


def _gathered(learner: Learner, model: Any, dtype: "torch.dtype") -> "dict[str, torch.Tensor]":
    """Name -> whole weight on the CPU, on rank 0; empty elsewhere. Tied weights stand under their first name."""
    import torch

    keep = torch.distributed.get_rank() == 0
    state: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                continue
            parts, layer = [parameter], None
            if name.endswith(_ADAPTED):
                layer = model.get_submodule(name.removesuffix(_ADAPTED))
                parts += [layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight]
            with _whole(learner, parts):
                if keep:
                    value = parameter.detach()
                    if layer is not None:
                        value = value.float() + layer.get_delta_weight(ADAPTER).float()
                    # A copy: gathered weights are freed, others change with the next step.
                    state[name.replace(".base_layer.", ".")] = value.to("cpu", dtype, copy=True).contiguous()
    return state


def _whole(learner: Learner, parameters: "list[torch.Tensor]") -> Any:
    """A context in which parameters shared out by ZeRO 3 are whole on every worker."""
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, enabled=learner.config.zero_stage == 3)
