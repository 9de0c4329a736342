"""Object detectors: settings, the table of kinds, and loading.

To add a detector, write a class that takes a `DetectorConfig` and satisfies `contracts.Detector`, and add a line to
`DETECTORS`, or name the class in a recipe as `kind: package.module:Class`.
"""

from typing import Any

from pydantic import Field, field_validator, model_validator

from vlgenrm_ray import plugins
from vlgenrm_ray.engines.contracts import Detector
from vlgenrm_ray.engines.environment import limit_threads
from vlgenrm_ray.settings import Settings

DETECTORS = {
    "ultralytics": "vlgenrm_ray.engines.detectors.yolo:YoloDetector",
    "zero_shot": "vlgenrm_ray.engines.detectors.zero_shot:ZeroShotDetector",
}
"""Kind -> class. Each class is constructed with a `DetectorConfig`."""


class DetectorConfig(Settings):
    """An object detector and the resources it uses."""

    kind: str = "ultralytics"
    """`ultralytics`, `zero_shot` (Grounding DINO, OWLv2, OWL-ViT: every `AutoModelForZeroShotObjectDetection`), or an
    import path `package.module:Class` of a detector of your own."""
    model: str
    """ultralytics: a `.pt` file (YOLO of any version, RT-DETR, YOLO-World, YOLOE), a folder with `model.pt`, or an
    `.onnx` file. zero_shot: a folder, or a Hugging Face hub name."""
    min_score: float = Field(default=0.1, gt=0, lt=1)
    """Boxes with a lower score are discarded. Keep it low: a weak box makes a claim `unknown` rather than `absent`."""
    image_size: int = Field(default=640, ge=32)
    """Longer side that images are scaled to, in pixels. For ultralytics only; zero-shot processors have their own."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`; `auto` uses a GPU if there is one."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of the process."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further settings for a detector of your own."""

    @field_validator("kind")
    @classmethod
    def _is_known(cls, kind: str) -> str:
        return plugins.check_name(kind, DETECTORS)

    @model_validator(mode="after")
    def _options_are_for_own_kinds(self) -> "DetectorConfig":
        if self.options and self.kind in DETECTORS:
            raise ValueError(f"'{self.kind}' has no options; remove them, or give an import path as kind")
        return self


def build_detector(config: DetectorConfig) -> Detector:
    """Load a detector into this process.

    Raises:
        InputError: The model cannot be read, or the device does not exist.
        ConfigError: `kind` is an import path that cannot be imported.
    """
    limit_threads(config.threads)
    detector: Detector = plugins.load(config.kind, DETECTORS, "detector.kind")(config)
    return detector
