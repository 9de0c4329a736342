"""Export of a trained model to a Hugging Face folder that transformers and vLLM load.

Files other than weights are copied from the base folder, except for those that describe the base as a judge.
"""

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vlgenrm_ray.engines.deepspeed import Learner
from vlgenrm_ray.engines.model_folder import JUDGE_PROMPT, JUDGE_SETTINGS

if TYPE_CHECKING:
    import torch

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")

_OF_THE_JUDGE = (JUDGE_SETTINGS, JUDGE_PROMPT)
"""Files about the base, which the trained model outdates."""


def export(learner: Learner, target: Path, texts: Mapping[str, str] | None = None) -> None:
    """Write the learner's model to `target` in the precision of its base folder. Collective; rank 0 writes.

    The folder gets its name only when it is complete, and then replaces an earlier one.

    Args:
        learner: Trained model.
        target: Folder to write.
        texts: Name -> content of further text files.
    """
    import torch

    writes = torch.distributed.get_rank() == 0
    state = {name: weight.cpu() for name, weight in learner.weights() if writes}
    if writes:
        write_folder(state, base=learner.model_folder, target=target, texts=texts)
    torch.distributed.barrier()


def write_folder(
    state: "dict[str, torch.Tensor]", *, base: Path, target: Path, texts: Mapping[str, str] | None = None
) -> None:
    """Write the weights `state`, the other files of `base`, and the files `texts` to `target`."""
    from huggingface_hub import save_torch_state_dict

    for left_over in target.parent.glob(f".{target.name}.*"):
        shutil.rmtree(left_over)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    shutil.copytree(
        base,
        partial,
        ignore=lambda _, names: [n for n in names if n.endswith(_WEIGHTS) or n.startswith(".") or n in _OF_THE_JUDGE],
    )
    for name, text in (texts or {}).items():
        (partial / name).write_text(text, encoding="utf-8")
    save_torch_state_dict(state, partial, metadata={"format": "pt"})
    if target.exists():
        shutil.rmtree(target)
    os.replace(partial, target)
