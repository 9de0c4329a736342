"""Which detector, from its settings: ultralytics YOLO, or an open-vocabulary detector of transformers."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from vlgenrm_ray.engines.contracts import Detector
from vlgenrm_ray.engines.environment import has_gpu, limit_threads
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.settings import Settings


class DetectorConfig(Settings):
    """A detector and how it runs."""

    kind: Literal["ultralytics", "zero_shot"] = "ultralytics"
    """`zero_shot` is any `AutoModelForZeroShotObjectDetection`: Grounding DINO, OWLv2, OWL-ViT."""
    model: str
    """ultralytics: a `.pt` file, or a folder with `model.pt`. zero_shot: a folder, or a Hugging Face hub name."""
    min_score: float = Field(default=0.1, gt=0, lt=1)
    """Boxes below are not reported. Keep it low: weak boxes are what makes a claim `unknown` rather than `absent`."""
    image_size: int = Field(default=640, ge=32)
    """Longer side the image is scaled to, in pixels (ultralytics; the others bring their own)."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`; `auto` takes a GPU where there is one."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of the process."""


def build_detector(config: DetectorConfig) -> Detector:
    """Load a detector into this process. Raises InputError if its model cannot be read."""
    limit_threads(config.threads)
    device = device_of(config.device)
    if config.kind == "ultralytics":
        from vlgenrm_ray.engines.yolo import YoloDetector

        return YoloDetector(Path(config.model), min_score=config.min_score, image_size=config.image_size, device=device)
    from vlgenrm_ray.engines.zero_shot import ZeroShotDetector

    return ZeroShotDetector(config.model, min_score=config.min_score, device=device)


def device_of(name: str) -> str:
    """The device behind a `device` setting. Raises InputError for a GPU on a machine that has none."""
    if name == "auto":
        return "cuda" if has_gpu() else "cpu"
    if name.startswith("cuda") and not has_gpu():
        raise InputError(
            f"device: {name!r}, but this process sees no GPU; use 'auto' or 'cpu', or give the pool num_gpus"
        )
    return name
