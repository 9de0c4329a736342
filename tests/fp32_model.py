"""A copy of the embedded model in fp32, for exact comparisons."""

import json
import shutil
from pathlib import Path
from typing import Any


def copy_in_fp32(pack: Path, target: Path) -> Path:
    """Copy a model folder with weights in fp32: an export then rounds nothing, and tolerances can be tight."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(pack, target)
    weights = load_file(target / "model.safetensors")
    save_file({k: v.float() for k, v in weights.items()}, target / "model.safetensors", {"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(_with_fp32_dtype(config)))
    return target


def _with_fp32_dtype(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: "float32" if k == "dtype" else _with_fp32_dtype(v) for k, v in value.items()}
    return value
