"""The `Expert` protocol, its input and output `ImageTask`, and the settings of experts in a recipe.

Experts run one after another. Each receives a batch of `ImageTask`s and returns them with its evidence added: the
detector adds boxes, the matcher attributes and window scores, an additional expert (OCR, VQA, a captioner) findings on
claims. `pipeline` runs them; see README.md for an example of an expert of your own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from pydantic import Field, field_validator, model_validator

from vlgenrm_ray import plugins
from vlgenrm_ray.data.flow import ActorPoolConfig
from vlgenrm_ray.engines.detectors import DetectorConfig
from vlgenrm_ray.engines.matchers import MatcherConfig
from vlgenrm_ray.experts.calibration import FusionConfig, calibrated, load_calibration
from vlgenrm_ray.experts.checking import Thresholds
from vlgenrm_ray.experts.evidence import ImageEvidence, WindowMatch
from vlgenrm_ray.experts.noise import NoiseConfig
from vlgenrm_ray.records import Box, Claim, Detection, Finding, WindowScore
from vlgenrm_ray.settings import RemovedSetting, Settings

if TYPE_CHECKING:
    import PIL.Image

EXPERTS = {
    "llm_claims": "vlgenrm_ray.experts.llm_claims:LlmClaimsExpert",
    "detector": "vlgenrm_ray.experts.detector:DetectorExpert",
    "second_detector": "vlgenrm_ray.experts.detector:SecondDetectorExpert",
    "matcher": "vlgenrm_ray.experts.matcher:MatcherExpert",
    "noise": "vlgenrm_ray.experts.noise:NoiseExpert",
    "ocr": "vlgenrm_ray.experts.ocr:OcrExpert",
    "vlm": "vlgenrm_ray.experts.vlm:VlmExpert",
    "function": "vlgenrm_ray.experts.function:FunctionExpert",
}
"""Kind -> class. Each class is constructed with the `ExpertPipelineConfig`, and its options as keyword arguments."""


BUILTIN_EXPERTS = ("llm_claims", "detector", "second_detector", "matcher", "noise")
"""Kinds with a section of their own, in the order in which they run."""


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


class ClaimsConfig(Settings):
    """Extraction of claims from texts."""

    extractor: Literal["grammar", "llm"] = "grammar"
    """`grammar`: the grammar alone. `llm`: a language model through vLLM as well, which also understands sentences with
    words that the grammar does not know; its claims are checked against the text and the grammar."""
    model: str = ""
    """llm: model folder or hub name of a vision-language or language model that vLLM runs."""
    options: dict[str, Any] = Field(default_factory=dict)
    """llm: settings of the vLLM engine, such as `{max_model_len: 4096, kv_cache_gib: 2}`."""
    actors: ActorPoolConfig = ActorPoolConfig()
    """llm: actors with the engine, in the experts stage."""

    @model_validator(mode="after")
    def _has_model(self) -> Self:
        if self.extractor == "llm" and not self.model:
            raise ValueError("extractor 'llm' needs a model; set claims.model")
        return self


class ExpertPipelineConfig(Settings):
    """The experts, the vocabulary, and the thresholds of their verdicts."""

    renamed: ClassVar[Mapping[str, str]] = {"bands": "thresholds"}
    removed: ClassVar = {
        "same_label_overlap": RemovedSetting(0.5, "suppress boxes in a detector of your own"),
        "any_label_overlap": RemovedSetting(0.8, "suppress boxes in a detector of your own"),
    }

    vocabulary: str = "coco"
    """Vocabulary that claims are read with: `coco`, `shapes`, `shapes_hard`, or the path of a YAML file."""
    claims: ClaimsConfig = ClaimsConfig()
    """Extraction of claims from texts."""
    detector: DetectorConfig
    """Object detector."""
    second_detector: DetectorConfig | None = None
    """Another detector, best of another architecture or training: objects that both see are surer, and an object is
    absent if neither sees it. None: absence takes the matcher."""
    matcher: MatcherConfig | None = None
    """Image-text matcher: attributes of detected objects, and phrases in windows. None: attributes stay unknown, and so
    does absence unless there is a second detector."""
    noise: NoiseConfig | None = None
    """Errors added to detectors and matcher, for experiments with experts of a chosen quality. None: none are added."""
    additional_experts: tuple[ExpertConfig, ...] = ()
    """Experts that run after these, and decide claims that they leave unknown. The first one takes precedence."""
    matching: MatchingConfig = MatchingConfig()
    """Margins and windows of the matcher."""
    thresholds: Thresholds = Thresholds()
    """Limits between definite and unknown verdicts."""
    calibration: str = ""
    """File of fitted limits and weights, which take precedence; all nodes read it. "": none."""
    max_side: int = Field(default=1024, ge=32)
    """Larger images are scaled down to this side, in pixels, before the experts receive them."""

    def fitted_thresholds(self) -> Thresholds:
        """Return the thresholds, with those of the calibration. Raises InputError if it cannot be read."""
        return calibrated(self.thresholds, self.calibration)

    def fusion(self) -> FusionConfig:
        """Return the weights of two detectors. Raises InputError if the calibration cannot be read."""
        return load_calibration(self.calibration).fusion

    @field_validator("additional_experts")
    @classmethod
    def _are_additional(cls, experts: tuple[ExpertConfig, ...]) -> tuple[ExpertConfig, ...]:
        if any(expert.kind in BUILTIN_EXPERTS for expert in experts):
            raise ValueError(f"{', '.join(BUILTIN_EXPERTS)} have sections of their own; set them up there")
        return experts


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTask:
    """One image on its way through the experts, with the claims about it and the evidence collected so far."""

    id: str
    """Unique within a batch; the image's sha256 in the experts stage."""
    original_width: int
    original_height: int
    questions: tuple[str, ...] = ()
    """The question that each text answers; () if they answer none."""
    texts: tuple[str, ...] = ()
    """The texts about the image."""
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
    searched_nouns: tuple[str, ...] = ()
    """Nouns that the detector searched for."""
    nouns_searched_twice: tuple[str, ...] = ()
    """Nouns that the second detector searched for as well."""
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
        """Return the evidence of the detectors and the matcher."""
        return ImageEvidence(
            self.original_width,
            self.original_height,
            self.detections,
            self.window_matches,
            frozenset(self.nouns_searched_twice),
        )

    def with_boxes(self, boxes: Sequence[Box]) -> "ImageTask":
        """Return the task with other boxes, and their detections without attributes."""
        detections = (Detection(box=box.scaled(*self.scale), attribute="", attribute_score=0.0) for box in boxes)
        return replace(self, boxes=tuple(boxes), detections=tuple(detections))

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
