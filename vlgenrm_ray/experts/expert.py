"""The `Expert` protocol, its input and output `ImageTask`, and the settings of experts in a recipe.

Experts run one after another. Each receives a batch of `ImageTask`s and returns them with its evidence added: the
detector adds boxes, the matcher attributes and window scores, an additional expert (OCR, VQA, a captioner) findings on
claims. `pipeline` runs them; see README.md for an example of an expert of your own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import Field, field_validator

from vlgenrm_ray import plugins
from vlgenrm_ray.data.flow import ActorPoolConfig
from vlgenrm_ray.engines.detectors import DetectorConfig
from vlgenrm_ray.engines.matchers import MatcherConfig
from vlgenrm_ray.experts.checking import Thresholds
from vlgenrm_ray.experts.evidence import ImageEvidence, WindowMatch
from vlgenrm_ray.records import Box, Claim, Detection, Finding, WindowScore
from vlgenrm_ray.settings import RemovedSetting, Settings

if TYPE_CHECKING:
    import PIL.Image

EXPERTS = {
    "detector": "vlgenrm_ray.experts.detector:DetectorExpert",
    "matcher": "vlgenrm_ray.experts.matcher:MatcherExpert",
}
"""Kind -> class. Each class is constructed with the `ExpertPipelineConfig`, and its options as keyword arguments."""


class MatchingConfig(Settings):
    """Margins and windows of the matching of attributes and phrases."""

    removed: ClassVar = {"crop_margin": RemovedSetting(0.05, "another margin needs a matcher of your own")}

    attribute_margin: float = Field(default=0.3, ge=0, le=1)
    """An attribute is decided if its probability exceeds the second best by at least this."""
    grids: tuple[int, ...] = (1, 2, 3)
    """Phrases are searched for in the n x n windows of each n; 1 is the whole image."""


class ExpertConfig(Settings):
    """One expert, and the actors that run it."""

    kind: str
    """A name of the table `EXPERTS`, or an import path `package.module:Class` of an expert of your own."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the class, after the `ExpertPipelineConfig`."""
    actors: ActorPoolConfig = ActorPoolConfig(num_cpus=0.5, batch_size=32)
    """Actors that run it in the experts stage. A service runs all experts in one process."""

    @field_validator("kind")
    @classmethod
    def _is_known(cls, kind: str) -> str:
        return plugins.check_name(kind, EXPERTS)


class ExpertPipelineConfig(Settings):
    """The experts, the vocabulary, and the thresholds of their verdicts."""

    renamed: ClassVar[Mapping[str, str]] = {"bands": "thresholds"}
    removed: ClassVar = {
        "same_label_overlap": RemovedSetting(0.5, "suppress boxes in a detector of your own"),
        "any_label_overlap": RemovedSetting(0.8, "suppress boxes in a detector of your own"),
    }

    vocabulary: str = "coco"
    """Vocabulary that claims are read with: `coco`, `shapes`, or the path of a YAML file."""
    detector: DetectorConfig
    """Object detector."""
    matcher: MatcherConfig
    """Image-text matcher: attributes of detected objects, and phrases in windows."""
    additional_experts: tuple[ExpertConfig, ...] = ()
    """Experts that run after these two, and decide claims that they leave unknown. The first one takes precedence."""
    matching: MatchingConfig = MatchingConfig()
    """Margins and windows of the matcher."""
    thresholds: Thresholds = Thresholds()
    """Limits between definite and unknown verdicts."""
    max_side: int = Field(default=1024, ge=32)
    """Larger images are scaled down to this side, in pixels, before the experts receive them."""

    @field_validator("additional_experts")
    @classmethod
    def _are_additional(cls, experts: tuple[ExpertConfig, ...]) -> tuple[ExpertConfig, ...]:
        if any(expert.kind in ("detector", "matcher") for expert in experts):
            raise ValueError("detector and matcher always run; set them up under `detector` and `matcher`")
        return experts


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTask:
    """One image on its way through the experts, with the claims about it and the evidence collected so far."""

    id: str
    """Unique within a batch; the image's sha256 in the experts stage."""
    original_width: int
    original_height: int
    width: int = 0
    height: int = 0
    """Size of `pixels`, which may be scaled down."""
    pixels: bytes = b""
    """RGB, row by row."""
    claims: tuple[tuple[Claim, ...], ...] = ()
    """For each text about the image its claims, in the text's order."""
    phrases: tuple[str, ...] = ()
    """Noun phrases of the claims. The detector expert removes those whose nouns its model does not know."""
    boxes: tuple[Box, ...] = ()
    """Detected objects, in pixels of `image()`."""
    searched_all_nouns: bool = False
    """True if the detector searched for every noun of the vocabulary. Otherwise no window counts as empty."""
    detections: tuple[Detection, ...] = ()
    """Boxes with matched attributes, in pixels of the original image."""
    window_matches: tuple[WindowMatch, ...] = ()
    """Probability of each of `phrases` in each window, in pixels of the original image."""
    window_scores: tuple[WindowScore, ...] = ()
    """Probability of any object in each window, in pixels of the original image."""
    findings: tuple[Finding, ...] = ()
    """Findings of additional experts, on any of the claims. Boxes are in pixels of the original image."""
    drop_reason: str = ""
    """A `DropReason` if the image cannot be used, else ""."""
    detail: str = ""

    def image(self) -> "PIL.Image.Image":
        """Return the pixels as an RGB image."""
        from PIL import Image

        return Image.frombytes("RGB", (self.width, self.height), self.pixels)

    @property
    def scale(self) -> tuple[float, float]:
        """Original pixels per pixel of `image()`, horizontally and vertically: the arguments of `Box.scaled`."""
        return self.original_width / self.width, self.original_height / self.height

    def evidence(self) -> ImageEvidence:
        """Return the evidence of the detector and the matcher."""
        return ImageEvidence(self.original_width, self.original_height, self.detections, self.window_matches)

    def mark_dropped(self, reason: str, detail: str) -> "ImageTask":
        """Return the task marked as unusable."""
        return replace(self, drop_reason=reason, detail=detail)


class Expert(Protocol):
    """A source of evidence about images. It lives in one process together with its model."""

    def examine(self, tasks: Sequence[ImageTask]) -> list[ImageTask]:
        """Return the tasks, in order, with this expert's evidence added (`dataclasses.replace`).

        A batch that raises is repeated image by image, so that one bad image does not affect the others.
        """
        ...
