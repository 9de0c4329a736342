"""Export of a trained model to a Hugging Face folder that transformers and vLLM load.

Files other than weights are copied from the base folder.
"""

import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from vlgenrm_ray.engines.deepspeed import Learner

if TYPE_CHECKING:
    import torch

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")


def export(learner: Learner, target: Path) -> None:
    """Write the learner's model to `target` in the precision of its base folder. Collective; rank 0 writes.

    The folder gets its name only when it is complete, and then replaces an earlier one.
    """
    import torch

    writes = torch.distributed.get_rank() == 0
    state = {name: weight.cpu() for name, weight in learner.weights() if writes}
    if writes:
        write_folder(state, base=learner.model_folder, target=target)
    torch.distributed.barrier()


def write_folder(state: "dict[str, torch.Tensor]", *, base: Path, target: Path) -> None:
    """Write the weights `state` and the other files of `base` to `target`."""
    from huggingface_hub import save_torch_state_dict

    for left_over in target.parent.glob(f".{target.name}.*"):
        shutil.rmtree(left_over)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    shutil.copytree(
        base,
        partial,
        ignore=lambda _, names: [n for n in names if n.endswith(_WEIGHTS) or n.startswith(".")],
    )
    save_torch_state_dict(state, partial, metadata={"format": "pt"})
    if target.exists():
        shutil.rmtree(target)
    os.replace(partial, target)
